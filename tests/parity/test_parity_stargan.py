"""StarGAN's two networks against the authors' (yunjey/stargan, commit 94dd002)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from formula import agrees, case, inputs, nchw, nhwc, real, run, state

from gm.nets import stargan, translator
from gm.nn import embed

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
KINDS = {"weight": "kernel", "bias": "bias"}


def hwio(w):
  return jnp.asarray(w.transpose(2, 3, 1, 0))


def generator_of(tensors, num_blocks):
  """Their tensors as ours; running averages, which their code never uses, are left out."""
  first, last, flat = 9, 9 + num_blocks, {}
  outer = {0: "first", 3: "down0", 6: "down1", last: "up0", last + 3: "up1", last + 6: "last"}
  for name, w in tensors.items():
    _, layer, *inner, kind = name.split(".")
    if kind.startswith("running"):
      continue
    if inner:
      at, place = int(inner[1]), int(layer) - first
      ours = f"block{place}_{at // 3}" + ("_norm" if at % 3 else "")
    else:
      ours = outer.get(int(layer)) or f"{outer[int(layer) - 1]}_norm"
    if w.ndim == 4:
      turned = w[..., ::-1, ::-1].transpose(2, 3, 0, 1) if ours[:2] == "up" else None
      flat[ours, "kernel"] = hwio(w) if turned is None else jnp.asarray(turned)
    else:
      flat[ours, {"weight": "scale", "bias": "bias"}[kind]] = jnp.asarray(w)
  return traverse_util.unflatten_dict(flat)


def discriminator_of(tensors):
  flat = {}
  for name, w in tensors.items():
    *layer, kind = name.split(".")
    ours = {"conv1": "source", "conv2": "labels"}.get(layer[0]) or f"conv{int(layer[1]) // 2}"
    flat[ours, KINDS[kind]] = hwio(w) if w.ndim == 4 else jnp.asarray(w)
  return traverse_util.unflatten_dict(flat)


def same_shapes(net, params, x):
  made = jax.eval_shape(net.init, jax.random.key(0), x)["params"]
  assert jax.tree.map(jnp.shape, dict(made)) == jax.tree.map(jnp.shape, params)


def test_the_generator_is_theirs():
  of, rules = case("stargan", "G")
  args, want, given = of["args"], run(of, "train"), inputs(of)
  net = translator.Translator(3, args["conv_dim"], args["repeat_num"], **translator.STARGAN)
  params = generator_of(state(of, rules), args["repeat_num"])
  x, c = jnp.asarray(nhwc(given["x"])), jnp.asarray(given["c"], jnp.float32)
  same_shapes(net, params, embed.tiled(x, c))
  layer = lambda module, _: module.name == "down1_norm"

  def forward(x):
    seen = embed.tiled(x, c)
    out, found = net.apply({"params": params}, seen, capture_intermediates=layer)
    return out, jax.nn.relu(found["intermediates"]["down1_norm"]["__call__"][0])

  for found, which in zip(jit(forward)(x), ("out", "main.8"), strict=True):
    record = want["outputs"][which]
    agrees(nchw(found), record, atol=10 * record["err32"])
  cot = jnp.asarray(nhwc(real("cot:out", want["outputs"]["out"]["shape"], 0, 1)))
  grad = jit(jax.grad(lambda x: jnp.sum(forward(x)[0] * cot)))(x)
  agrees(nchw(grad), want["grad"], atol=1e-3)


def test_the_discriminator_is_theirs():
  of, rules = case("stargan", "D")
  want, params = run(of), discriminator_of(state(of, rules))
  net = stargan.Discriminator((6, 12, 24, 48), 5)
  x = jnp.asarray(nhwc(inputs(of)["x"]))
  same_shapes(net, params, x)
  scores, logits = jit(lambda x: net.apply({"params": params}, x))(x)
  for found, which in ((scores[:, None], "src"), (logits, "cls")):
    record = want["outputs"][which]
    agrees(found, record, atol=10 * record["err32"])
  cot = jnp.asarray(real("cot:src", want["outputs"]["src"]["shape"], 0, 1)[:, 0])
  grad = jit(jax.grad(lambda x: jnp.sum(net.apply({"params": params}, x)[0] * cot)))(x)
  agrees(nchw(grad), want["grad"], atol=1e-6)


def test_sizes_are_theirs():
  """Of 128 pixels with 5 and with 8 labels, and of 256 with two sets of labels and a mask."""
  count = lambda net, *shape: sum(
    int(np.prod(x.shape))
    for x in jax.tree.leaves(jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *shape))))
  )
  for size, told, num, g, d in (
    (128, 5, 5, 8_430_528, 44_762_048),
    (128, 8, 8, 8_439_936, 44_786_624),
    (256, 15, 13, 8_461_888, 45_147_072),
  ):
    net = translator.Translator(3, num_blocks=6, **translator.STARGAN)
    assert count(net, size, size, 3 + told) == g
    widths = (64, 128, 256, 512, 1_024, 2_048)
    net = stargan.Discriminator(widths, num)
    assert count(net, size, size, 3) == d
    scores, logits = jax.eval_shape(
      lambda key, x: net.init_with_output(key, x)[0],
      jax.random.key(0),
      jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32),
    )
    assert scores.shape == (1, size // 64, size // 64) and logits.shape == (1, num)
