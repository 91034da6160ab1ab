"""DALL-E's networks against lucidrains/DALLE-pytorch (58c1e1a) and openai/DALL-E (5be4b23)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util
from formula import agrees, case, inputs, kernel, nchw, nhwc, run, state

from gm.nets import dalle, dvae

QUICK = {"xla_backend_optimization_level": 0}
jit = functools.partial(jax.jit, compiler_options=QUICK)


def tree(rows):
  """{"block0.conv0.kernel": array} -> parameters."""
  return traverse_util.unflatten_dict({k: jnp.asarray(v) for k, v in rows.items()}, sep=".")


def leaf(name, w):
  """Of a convolution of theirs: our leaf and its tensor."""
  return ("bias", w) if w.ndim == 1 else ("kernel", w.transpose(2, 3, 1, 0))


# --------------------------------------------------------------------------------- DALLE-pytorch


def sides(weights, num_halvings, num_blocks):
  """Encoder and decoder of their DiscreteVAE as ours."""
  enc, dec = {}, {"codes.table": weights["codebook.weight"]}
  downs = [f"down{i}" for i in range(num_halvings)]
  blocks, ups = [f"block{i}" for i in range(num_blocks)], [f"up{i}" for i in range(num_halvings)]
  order = {"encoder": [*downs, *blocks, "last"]}
  order["decoder"] = [*(["first"] if blocks else []), *blocks, *ups, "last"]
  for name, w in weights.items():
    side, *path = name.split(".")
    if side not in order:
      continue
    layer = order[side][int(path[0])]
    if layer.startswith("block"):
      layer += f".conv{int(path[2]) // 2}"
    part, value = leaf(name, w)
    if layer.startswith("up") and part == "kernel":  # theirs is [in, out, h, w], and not turned
      value = w.transpose(2, 3, 0, 1)[::-1, ::-1]
    (enc if side == "encoder" else dec)[f"{layer}.{part}"] = value
  return {"params": tree(enc)}, {"params": tree(dec)}


@pytest.mark.parametrize("name, blocks", [("dvae", 1), ("dvae-nores", 0)])
def test_the_discrete_vae(name, blocks):
  record, rules = case("dalle_pytorch", name)
  args, want = record["args"], run(record)["outputs"]
  how = {"width": 8, "num_halvings": args["num_layers"], "num_blocks": blocks}
  enc, dec = sides(state(record, rules), args["num_layers"], blocks)
  x = nhwc(2 * inputs(record)["x"] - 1)
  logits = jit(dvae.Encoder(32, **how).apply)(enc, x)
  agrees(nchw(logits), want["logits"], atol=1e-5)
  codes = jnp.argmax(logits, -1).astype(jnp.int32)
  agrees(codes.reshape(2, -1), want["indices"], atol=0)
  decode = jit(dvae.Decoder(3, 32, 12, **how).apply)
  agrees(nchw(decode(dec, codes)), want["decoded"], atol=1e-5)
  one_hot = decode(dec, jax.nn.one_hot(codes, 32))
  np.testing.assert_allclose(one_hot, decode(dec, codes), atol=1e-5)


def test_the_transformer():
  record, rules = case("dalle_pytorch", "dalle-axial-noshift")
  weights, want = state(record, rules), run(record)["outputs"]
  params = {
    "tokens.embedding": np.concatenate([weights["text_emb.weight"], weights["image_emb.weight"]]),
    "text_positions": weights["text_pos_emb.weight"],
    "rows": weights["image_pos_emb.weights_0"][0, :, 0],
    "columns": weights["image_pos_emb.weights_1"][0, 0],
    "norm.scale": weights["to_logits.0.weight"],
    "norm.bias": weights["to_logits.0.bias"],
    "head.kernel": kernel(weights["to_logits.1.weight"]),
    "head.bias": weights["to_logits.1.bias"],
  }
  parts = {"to_qkv": "attention.qkv", "to_out": "attention.out", "net.0": "up", "net.3": "down"}
  for name, w in weights.items():
    if not name.startswith("transformer.layers"):
      continue
    _, _, _, layer, j, *rest = name.split(".")
    rest = ".".join(rest)
    if rest == "scale":
      params[f"layer{layer}.scale{j}"] = w.ravel()
    elif rest.startswith("fn.norm."):
      params[f"layer{layer}.norm{j}.{'scale' if w.ndim and 'weight' in rest else 'bias'}"] = w
    else:
      place = next(ours for theirs, ours in parts.items() if f"{theirs}." in rest)
      params[f"layer{layer}.{place}.{'bias' if w.ndim == 1 else 'kernel'}"] = (
        w if w.ndim == 1 else kernel(w)
      )
  net = dalle.Dalle(20, 6, 32, (4, 4), num_layers=2, num_heads=2, head_dim=16, width=24)
  given = inputs(record)
  text = dalle.fill(jnp.asarray(given["text"], jnp.int32), 20)
  ids = jnp.concatenate([jnp.zeros((2, 1), jnp.int32), text, 26 + given["image"]], axis=1)
  variables = {"params": tree(params)}
  shapes = jax.eval_shape(net.init, jax.random.key(0), ids[:, :-1])
  assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, shapes)
  logits = jit(net.apply)(variables, ids[:, :-1])
  agrees(jnp.where(logits == dalle.FORBIDDEN, 0, logits), want["logits"], atol=1e-4)
  nats = optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:])
  loss = (nats[:, :6].mean() + 7 * nats[:, 6:].mean()) / 8
  agrees(loss, want["loss"], atol=1e-5)


# ---------------------------------------------------------------------------------- the published


def published(weights):
  found, code = {}, weights.get("blocks.input.w")
  for name, w in weights.items():
    path = name.removeprefix("blocks.").split(".")
    if path[0].startswith("group"):
      g, b = (int(part.partition("_")[2]) - 1 for part in path[:2])
      inner = "id" if path[2] == "id_path" else f"conv{int(path[3][-1]) - 1}"
      layer = f"block{g}_{b}.{inner}"
    else:
      layer = {"input": "first", "output": "last"}[path[0]]
    part, value = leaf(name, w)
    found[f"{layer}.{part}"] = value
  return found, code


def test_the_published_encoder():
  record, rules = case("openai_dalle_dvae", "encoder")
  want, x = run(record)["outputs"], nhwc(2 * inputs(record)["x"] - 1)
  params, _ = published(state(record, rules))
  net = dvae.PublishedEncoder(512, 64, num_halvings=3, num_blocks=1)
  logits = jit(net.apply)({"params": tree(params)}, x)
  agrees(nchw(logits), want["logits"], atol=1e-5)
  agrees(jnp.argmax(logits, -1), want["indices"], atol=0)


def test_the_published_decoder():
  record, rules = case("openai_dalle_dvae", "decoder")
  want, codes = run(record)["outputs"], inputs(record)["idx"]
  found, table = published(state(record, rules))
  params = {}
  for name, w in found.items():  # theirs begin with the widest group, ours count from the narrowest
    group = name.partition("_")[0]
    name = name.replace(group, f"block{3 - int(group[5:])}", 1) if "block" in group else name
    params[name] = w
  params["codes.table"], params["codes.bias"] = table[:, :, 0, 0].T, params.pop("first.bias")
  del params["first.kernel"]
  net = dvae.PublishedDecoder(6, 512, 16, 64, num_halvings=3, num_blocks=1)
  out = jit(net.apply)({"params": tree(params)}, jnp.asarray(codes, jnp.int32))
  agrees(nchw(out), want["stats"], atol=1e-5)
  image = dvae.outside(jax.nn.sigmoid(out[..., :3]))
  agrees(nchw(image), want["image"], atol=1e-5)
