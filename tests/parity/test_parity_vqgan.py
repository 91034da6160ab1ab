"""VQGAN's networks against the authors' (CompVis/taming-transformers, commit 3ba01b2).

The patch discriminator also against CycleGAN's (junyanz/pytorch-CycleGAN-and-pix2pix).
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from formula import agrees, case, inputs, nchw, nhwc, real, run, state

from gm.nets import patch, vqgan
from gm.nn import quantize

QUICK = {"xla_backend_optimization_level": 0}
jit = functools.partial(jax.jit, compiler_options=QUICK)
LAYERS = (  # their names -> ours, within the encoder or the decoder
  (r"(down|up)\.(\d+)\.block\.(\d+)\.", r"block\2_\3."),
  (r"(down|up)\.(\d+)\.attn\.(\d+)\.", r"attention\2_\3."),
  (r"(down|up)\.(\d+)\.(down|up)sample\.conv\.", r"\1\2."),
  (r"mid\.block_1\.", "middle0."),
  (r"mid\.attn_1\.", "middle_attention."),
  (r"mid\.block_2\.", "middle1."),
  (r"norm1\.", "norm0."),
  (r"conv1\.", "conv0."),
  (r"norm2\.", "norm1."),
  (r"conv2\.", "conv1."),
  (r"nin_shortcut\.", "skip."),
  (r"norm_out\.", "norm."),
  (r"conv_in\.", "first."),
  (r"proj_out\.", "attention.out."),
)
WHERE = {  # first parts of names that say more than where in the encoder or the decoder
  "encoder.conv_out": "enc.last",
  "decoder.conv_out": "last.conv",
  "quant_conv": "enc.to_codes",
  "post_quant_conv": "dec.from_codes",
}


def ours(name):
  """A name of theirs as our path; of queries, keys, values with q, k, v before the last part."""
  head, _, leaf = name.rpartition(".")
  if head in WHERE:
    path = f"{WHERE[head]}."
  else:
    net, _, rest = f"{head}.".partition(".")
    path = net[:3] + "."
    for old, new in zip(*zip(*LAYERS)):
      # a name is looked at by one rule of each kind: blocks first, then what is in them
      rest = re.sub(f"(?<![a-z_]){old}", new, rest)
    path += rest
  norm = re.search(r"norm\d?\.$", path)
  return path + ("bias" if leaf == "bias" else "scale" if norm else "kernel")


def lay(w):  # OIHW -> HWIO
  return w.transpose(2, 3, 1, 0) if w.ndim == 4 else w


def params_of(tensors):
  """Their tensors as {"enc", "dec", "last", "book"}."""
  flat, parts = {"book.codes": tensors["quantize.embedding.weight"]}, {}
  for name, w in tensors.items():
    if not name.startswith("quantize"):
      path = ours(name)
      found = re.fullmatch(r"(.*)\.([qkv])\.(kernel|bias)", path)
      if found:
        parts.setdefault((found[1], found[3]), {})[found[2]] = w[..., 0, 0].T if w.ndim == 4 else w
      else:
        dense = ".attention.out." in path and w.ndim == 4
        flat[path] = w[..., 0, 0].T if dense else lay(w)
  for (path, leaf), w in parts.items():
    flat[f"{path}.attention.qkv.{leaf}"] = np.concatenate([w[n] for n in "qkv"], axis=-1)
  return traverse_util.unflatten_dict({tuple(n.split(".")): w for n, w in flat.items()})


def nets_of(args):
  """Our networks for the arguments of theirs."""
  d = args["ddconfig"]
  sides = [d["resolution"] >> i for i in range(len(d["ch_mult"]))]
  sizes = vqgan.Sizes(
    d["ch"],
    tuple(d["ch_mult"]),
    d["num_res_blocks"],
    tuple(i for i, side in enumerate(sides) if side in d["attn_resolutions"]),
    d["z_channels"],
  )
  return vqgan.Encoder(args["embed_dim"], sizes), vqgan.Decoder(sizes), vqgan.Last(3)


def shapes_of(nets, x):
  enc, dec, last = nets
  make = lambda net, x: jax.eval_shape(net.init_with_output, jax.random.key(0), x)
  z, of_enc = make(enc, x)
  h, of_dec = make(dec, z)
  of_last = make(last, h)[1]
  params = {"enc": of_enc, "dec": of_dec, "last": of_last}
  return {n: p["params"] for n, p in params.items()}


def autoencode(nets, p, x):
  enc, dec, last = nets
  z = enc.apply({"params": p["enc"]}, x)
  index = quantize.nearest(z, p["book"]["codes"])
  e = p["book"]["codes"][index]
  h = dec.apply({"params": p["dec"]}, quantize.straight_through(z, e))
  return z, index, e, last.apply({"params": p["last"]}, h)


def check(file, name):
  of, rules = case(file, name)
  nets, want = nets_of(of["args"]), run(of)
  params, x = params_of(state(of, rules)), jnp.asarray(nhwc(inputs(of)["x"]))
  book = params.pop("book")
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes_of(nets, x))
  params = jax.tree.map(jnp.asarray, {**params, "book": book})
  z, index, e, r = jit(functools.partial(autoencode, nets))(params, x)
  out = want["outputs"]
  agrees(nchw(z), out["h"], atol=1e-4)
  agrees(np.ravel(index), out["indices"], atol=0)
  agrees(nchw(e), out["quant"], atol=1e-5)
  agrees(nchw(r), out["out"], atol=1e-4)
  # theirs weighs the codes' term by 0.25 and the encoder's by 1: ours the other way round
  mean = quantize.objective(z, e, beta=0.25)
  np.testing.assert_allclose(mean, out["loss"]["sum"], rtol=1e-4)
  if "grad" in want:
    cot = jnp.asarray(nhwc(real("cot:out", out["out"]["shape"], 0, 1)))
    of_x = jit(jax.grad(lambda x: jnp.sum(autoencode(nets, params, x)[3] * cot)))(x)
    agrees(nchw(of_x), want["grad"], atol=2e-3)


@pytest.mark.parametrize("name", ["vqmodel", "vqmodel-3level"])
def test_the_autoencoder_is_the_authors(name):
  """What is encoded, its codes, what is decoded, and the gradient past the codes."""
  check("taming_vqgan", name)


def test_the_published_one_has_these_tensors():
  of, _ = case("taming_vqgan_full", "imagenet_f16_1024")
  nets, x = nets_of(of["args"]), jnp.zeros((1, 64, 64, 3))
  like = {n: np.broadcast_to(np.float32(0), shape) for n, shape, *_ in of["state"]}
  params = params_of(like)
  assert params.pop("book")["codes"].shape == (1024, 256)
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes_of(nets, x))


@pytest.mark.learning
def test_the_published_one_is_the_authors():
  check("taming_vqgan_full", "imagenet_f16_1024")


# ----------------------------------------------------------------------------------- discriminators


def patch_params(tensors, kind):
  """Their layers are numbered; those with four axes are convolutions, in our order."""
  found, stats, num = {}, {}, sum(w.ndim == 4 for w in tensors.values())
  convs = iter([*(f"conv{i}" for i in range(num - 1)), "last"])
  leaves = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
  for name, w in tensors.items():
    head, _, leaf = name.rpartition(".")
    if w.ndim == 4:
      layer = next(convs)
      found[layer] = {"kernel": lay(w)}
      if f"{head}.bias" in tensors:
        found[layer]["bias"] = tensors[f"{head}.bias"]
    elif tensors[f"{head}.weight"].ndim == 1:
      tree = stats if leaf.startswith("running") else found
      tree.setdefault(layer.replace("conv", "norm"), {})[leaves[leaf]] = w
  return {"params": found, **({"batch_stats": stats} if kind == "batch" else {})}


@pytest.mark.parametrize(
  "file, name, kind, mode",
  [
    ("taming_vqgan", "disc", "batch", "eval"),
    ("taming_vqgan", "disc", "batch", "train"),
    ("cyclegan_pix2pix", "patchgan-instance", "instance", "eval"),
    ("cyclegan_pix2pix", "patchgan-batch", "batch", "eval"),
  ],
)
def test_the_patch_discriminator_is_theirs(file, name, kind, mode):
  of, rules = case(file, name)
  args, want = of["args"], run(of, mode)
  net = patch.PatchDiscriminator([args["ndf"] * 2**i for i in range(args["n_layers"] + 1)], kind)
  variables = jax.tree.map(jnp.asarray, patch_params(state(of, rules), kind))
  x = jnp.asarray(nhwc(inputs(of)["x"]))
  made = jax.eval_shape(net.init, jax.random.key(0), x)
  assert jax.tree.map(jnp.shape, dict(made)) == jax.tree.map(jnp.shape, variables)

  def logits(x):
    return net.apply(variables, x, train=mode == "train", mutable=["batch_stats"])[0]

  out = want["outputs"]["out"]
  agrees(nchw(jit(logits)(x)[..., None]), out, atol=1e-4)
  assert out["shape"][2:] == [patch.grid(n, args["n_layers"] + 1) for n in x.shape[1:3]]
  if want.get("grad"):
    cot = jnp.asarray(nhwc(real("cot:out", out["shape"], 0, 1)))[..., 0]
    agrees(nchw(jit(jax.grad(lambda x: jnp.sum(logits(x) * cot)))(x)), want["grad"], atol=1e-3)
