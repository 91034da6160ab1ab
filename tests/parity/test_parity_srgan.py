"""SRGAN's networks against leftthomas/SRGAN's (commit 7ddfdf2): five blocks, tanh, pooling."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from formula import agrees, case, inputs, kernel, nchw, nhwc, real, run, state

from gm import core
from gm.nets import srgan

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
LEAVES = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
WIDTHS = (64, 64, 128, 128, 256, 256, 512, 512)


def layer_of_g(path):
  block, *rest = path
  i, inside = int(block.removeprefix("block")), rest[-1] if rest else ""
  if i == 1:
    return ("first", "first_slope")[int(inside)]
  if i == 7:
    return ("after", "after_norm")[int(inside)]
  if i == 8 and rest[0] == "2":
    return "last"
  if i == 8:
    return f"up{rest[0]}" + ("_slope" if inside == "prelu" else "")
  if inside == "prelu":
    return f"block{i - 2}_slope"
  return f"block{i - 2}_{int(inside[-1]) - 1}" + ("_norm" if inside[:2] == "bn" else "")


def layer_of_d(path):
  i = int(path[1])
  if i >= 24:
    return "hidden" if i == 24 else "last"
  return f"norm{i // 3}" if i % 3 == 0 and i else f"conv{(i + 1) // 3}"


def variables_of(tensors, layer):
  """Their tensors as ours, and the running averages."""
  flat = {}
  for name, w in tensors.items():
    *path, leaf = name.split(".")
    ours = layer(path)
    new = LEAVES[leaf]
    if w.ndim > 1:
      w, new = kernel(w), "kernel"
    new = "slope" if ours.endswith("slope") else new
    flat["batch_stats" if new in ("mean", "var") else "params", ours, new] = jnp.asarray(w)
  return traverse_util.unflatten_dict(flat)


NETS = {
  "G4": (
    srgan.Generator(3, 64, 5, slopes="layer", bias=True, last="tanh"),
    lambda y: (y + 1) / 2,
    layer_of_g,
  ),
  "D": (srgan.Discriminator(WIDTHS, 1024, bias=True, head="pool"), jax.nn.sigmoid, layer_of_d),
}


@pytest.mark.parametrize("name", list(NETS))
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_network_is_theirs(name, mode):
  (net, last, layer), (of, rules) = NETS[name], case("srgan", name)
  want, theirs = run(of, mode), variables_of(state(of, rules), layer)
  x = jnp.asarray(nhwc(inputs(of)["x"]))
  made = jax.eval_shape(lambda x: net.init(jax.random.key(0), x, True), x)
  assert jax.tree.map(jnp.shape, dict(made)) == jax.tree.map(jnp.shape, theirs)
  params, stats = theirs["params"], {"batch_stats": theirs["batch_stats"]}

  def forward(x):
    y, after = core.apply(net, params, stats, x, train=mode == "train")
    return last(y), after

  record = want["outputs"]["out"]
  lay = (lambda y: y) if name == "D" else nchw
  cot = real("cot:out", record["shape"], 0, 1)
  cot = jnp.asarray(cot if name == "D" else nhwc(cot))

  @jit
  def both(x):
    (_, found), grad = jax.value_and_grad(
      lambda x: (jnp.sum((found := forward(x))[0] * cot), found), has_aux=True
    )(x)
    return *found, grad

  out, after, grad = both(x)
  agrees(lay(out), record, atol=10 * record["err32"])
  size = np.sqrt(want["grad"]["sumsq"] / grad.size)
  agrees(nchw(grad) / size, scaled(want["grad"], size), atol=1e-3)
  moved = after["batch_stats"]
  for key, what in want.get("state_after", {}).items():
    block, _, kind = key.split(".")
    record = moved[f"block{int(block[-1]) - 2}_0_norm"][LEAVES[kind]]
    agrees(record, what, atol=1e-5)


def scaled(record, size):
  """A record of an array divided by a number."""
  return {
    **record,
    "values": [v / size for v in record["values"]],
    "sum": record["sum"] / size,
    "sumsq": record["sumsq"] / size**2,
  }
