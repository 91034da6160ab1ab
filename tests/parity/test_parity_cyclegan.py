"""The translator against CycleGAN's (junyanz/pytorch-CycleGAN-and-pix2pix, commit f13aab8).

The patch discriminator: test_parity_vqgan.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from formula import agrees, case, inputs, nchw, nhwc, real, run, state

from gm.nets import translator

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
OUTER = {1: "first", 4: "down0", 7: "down1", 19: "up0", 22: "up1", 26: "last"}  # of nine blocks


def params_of(tensors):
  """Their tensors as ours: kernels HWIO; torch turns those of transposed convolutions."""
  flat = {}
  for name, w in tensors.items():
    _, layer, *inner, kind = name.split(".")
    ours = OUTER.get(int(layer)) or f"block{int(layer) - 10}_{('1', '5').index(inner[1])}"
    if kind == "weight":
      turned = w[..., ::-1, ::-1].transpose(2, 3, 0, 1) if ours[:2] == "up" else None
      w = w.transpose(2, 3, 1, 0) if turned is None else turned
    flat[ours, {"weight": "kernel", "bias": "bias"}[kind]] = jnp.asarray(w)
  return traverse_util.unflatten_dict(flat)


@pytest.mark.parametrize(
  "file, name",
  [
    ("cyclegan_pix2pix", "resnet9-instance"),
    ("cyclegan_pix2pix_full", "resnet9-instance-64"),
  ],
)
def test_the_translator_is_theirs(file, name):
  of, rules = case(file, name)
  want, net = run(of), translator.Translator(3, of["args"]["ngf"], of["args"]["n_blocks"])
  params, x = params_of(state(of, rules)), jnp.asarray(nhwc(inputs(of)["x"]))
  made = jax.eval_shape(net.init, jax.random.key(0), x)["params"]
  assert jax.tree.map(jnp.shape, dict(made)) == jax.tree.map(jnp.shape, params)
  layer = lambda module, _: module.name == "down1_norm"

  @jit
  def forward(x):
    out, found = net.apply({"params": params}, x, capture_intermediates=layer)
    return out, found["intermediates"]["down1_norm"]["__call__"][0]

  out, half = forward(x)
  for found, which in ((out, "out"), (np.maximum(half, 0), "model.9")):
    record = want["outputs"][which]
    agrees(nchw(found), record, atol=20 * record["err32"])
  if "grad" in want:
    cot = jnp.asarray(nhwc(real("cot:out", want["outputs"]["out"]["shape"], 0, 1)))
    grad = jit(jax.grad(lambda x: jnp.sum(net.apply({"params": params}, x) * cot)))(x)
    agrees(nchw(grad), want["grad"], atol=2e-2)
