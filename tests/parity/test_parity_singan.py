"""SinGAN's networks against those of tamarott/SinGAN (index version 38fd0ad)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from formula import agrees, case, inputs, kernel, nchw, nhwc, real, run, state

from gm import core
from gm.nets import singan

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
LEAVES = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
LAYERS = {"head": 0, "block1": 1, "block2": 2, "block3": 3}
CASES = [
  *((name, mode) for name in ("G", "D") for mode in ("eval", "train")),
  ("G-published", "train"),
]


def variables_of(tensors):
  """Their tensors as ours, and the running averages."""
  flat = {}
  for name, w in tensors.items():
    *path, leaf = name.removeprefix("body.").split(".")
    part = "norm" if path[-1] == "norm" else "conv"
    ours = "last" if path[0] == "tail" else f"{part}{LAYERS[path[0]]}"
    new = "kernel" if w.ndim > 1 else LEAVES[leaf]
    where = "batch_stats" if new in ("mean", "var") else "params"
    flat[where, "layers", ours, new] = jnp.asarray(kernel(w) if w.ndim > 1 else w)
  return traverse_util.unflatten_dict(flat)


@pytest.mark.parametrize("name, mode", CASES)
def test_the_network_is_theirs(name, mode):
  of, rules = case("singan", name)
  want, theirs, given = run(of, mode), variables_of(state(of, rules)), inputs(of)
  x, *image = (jnp.asarray(nhwc(given[n])) for n in sorted(given))
  width = of["args"]["nfc"]
  net = singan.Discriminator(width) if name == "D" else singan.Generator(width)
  made = jax.eval_shape(lambda x: net.init(jax.random.key(0), x, *image, True), x)
  assert jax.tree.map(jnp.shape, dict(made)) == jax.tree.map(jnp.shape, theirs)
  stats = {"batch_stats": theirs["batch_stats"]}
  record = want["outputs"]["out"]
  lay = (lambda y: nchw(y[..., None])) if name == "D" else nchw
  cot = jnp.asarray(nhwc(real("cot:out", record["shape"], 0, 1)))
  cot = cot[..., 0] if name == "D" else cot

  @jit
  def both(x):
    def weighed(x):
      y, after = core.apply(net, theirs["params"], stats, x, *image, train=mode == "train")
      return jnp.sum(y * cot), (y, after)

    (_, found), grad = jax.value_and_grad(weighed, has_aux=True)(x)
    return *found, grad

  out, after, grad = both(x)
  agrees(lay(out), record, atol=10 * record["err32"])
  if "grad" in want:
    values = np.array(want["grad"]["values"])
    places = [j * grad.size // len(values) for j in range(len(values))]
    found = nchw(grad).ravel()[places]
    np.testing.assert_allclose(found, values, atol=1e-4 * np.abs(values).max())
    np.testing.assert_allclose((np.asarray(grad) ** 2).sum(), want["grad"]["sumsq"], rtol=1e-4)
  for key, moved in want.get("state_after", {}).items():
    layer, _, leaf = key.split(".")
    found = after["batch_stats"]["layers"][f"norm{LAYERS[layer]}"][LEAVES[leaf]]
    agrees(found, moved, atol=1e-5)
