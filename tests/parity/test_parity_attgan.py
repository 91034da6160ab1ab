"""AttGAN's networks against a port of them (elvisyjlin/AttGAN-PyTorch, commit be2d6c6).

The port's slope is 0.01 and its eps 1e-5; else its sizes are those of the authors' code.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from formula import agrees, case, inputs, nchw, nhwc, real, run, state

from gm.nets import attgan

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
PORT = {"eps": 1e-5}
WIDTHS = (64, 128, 256, 512, 1_024)
NORM = {"weight": "scale", "bias": "bias"}
AVERAGES = {"running_mean": "mean", "running_var": "var"}


def generator_of(tensors):
  """{"enc", "dec"} of params, and of running averages."""
  params, stats = {}, {}
  num = 1 + max(int(n.split(".")[1]) for n in tensors if n[:3] == "enc")
  for name, w in tensors.items():
    part, layer, _, inner, kind = name.split(".")
    part = part[:3]
    net, i = ("conv", layer) if part == "enc" else ("deconv", layer)
    if w.ndim == 4:
      turned = w[..., ::-1, ::-1].transpose(2, 3, 0, 1)
      w = w.transpose(2, 3, 1, 0) if part == "enc" else turned
    last = part == "dec" and int(layer) == num - 1
    if inner == "0":
      ours = "last" if last else f"{net}{i}"
      params[part, ours, "kernel" if kind == "weight" else "bias"] = jnp.asarray(w)
    elif kind in AVERAGES:
      stats[part, "batch_stats", f"norm{i}", AVERAGES[kind]] = jnp.asarray(w)
    else:
      params[part, f"norm{i}", NORM[kind]] = jnp.asarray(w)
  return traverse_util.unflatten_dict(params), traverse_util.unflatten_dict(stats)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_generator_is_theirs(mode):
  of, rules = case("attgan", "G")
  want, given, train = run(of, mode), inputs(of), mode == "train"
  params, stats = generator_of(state(of, rules))
  widths = (6, 12, 24, 48)
  enc = attgan.Encoder(widths, slope=0.01, momentum=0.9, **PORT)
  dec = attgan.Decoder(3, widths, momentum=0.9, **PORT)
  x, a = jnp.asarray(nhwc(given["x"])), jnp.asarray(given["a"])

  def forward(x):
    z = enc.apply({"params": params["enc"], **stats["enc"]}, x, train)
    return dec.apply({"params": params["dec"], **stats["dec"]}, z, a, train), z[-1]

  made = jax.eval_shape(enc.init, jax.random.key(0), x)
  assert jax.tree.map(jnp.shape, dict(made)["params"]) == jax.tree.map(jnp.shape, params["enc"])
  for found, which in zip(jit(forward)(x), ("out", "z"), strict=True):
    record = want["outputs"][which]
    agrees(nchw(found), record, atol=10 * record["err32"])
  cot = jnp.asarray(nhwc(real("cot:out", want["outputs"]["out"]["shape"], 0, 1)))
  grad = jit(jax.grad(lambda x: jnp.sum(forward(x)[0] * cot)))(x)
  agrees(nchw(grad), want["grad"], atol=1e-4)


def test_batch_norms_move_as_theirs():
  of, rules = case("attgan", "G")
  want, given = run(of, "train")["state_after"], inputs(of)
  params, stats = generator_of(state(of, rules))
  enc = attgan.Encoder((6, 12, 24, 48), slope=0.01, momentum=0.9, **PORT)
  variables = {"params": params["enc"], **stats["enc"]}
  x = jnp.asarray(nhwc(given["x"]))
  _, after = jit(lambda x: enc.apply(variables, x, True, mutable=["batch_stats"]))(x)
  for theirs, ours in AVERAGES.items():
    record = want[f"enc_layers.0.layers.1.{theirs}"]
    agrees(after["batch_stats"]["norm0"][ours], record, atol=1e-5)


def test_the_discriminator_is_theirs():
  of, rules = case("attgan", "D")
  want, x = run(of), jnp.asarray(nhwc(inputs(of)["x"]))
  flat = {}
  for name, w in state(of, rules).items():
    part, layer, _, inner, kind = name.split(".")
    w = jnp.asarray(w)
    if part == "conv":
      flat[(f"conv{layer}", "kernel") if inner == "0" else (f"norm{layer}", NORM[kind])] = (
        w.transpose(2, 3, 1, 0) if w.ndim == 4 else w
      )
      continue
    ours = {"fc_adv": "critic", "fc_cls": "attributes"}[part] + layer
    if w.ndim == 2:  # of maps in their order, channels first
      w = (
        w.reshape(len(w), -1, 2, 2).transpose(2, 3, 1, 0).reshape(-1, len(w))
        if layer == "0"
        else w.T
      )
    flat[ours, "kernel" if kind == "weight" else "bias"] = w
  params = traverse_util.unflatten_dict(flat)
  net = attgan.Discriminator(WIDTHS, of["args"]["fc_dim"], 13, slope=0.01, **PORT)
  made = jax.eval_shape(net.init, jax.random.key(0), x)["params"]
  assert jax.tree.map(jnp.shape, dict(made)) == jax.tree.map(jnp.shape, params)
  scores, logits = jit(lambda x: net.apply({"params": params}, x))(x)
  for found, which in ((scores[:, None], "adv"), (logits, "cls")):
    record = want["outputs"][which]
    agrees(found, record, atol=10 * record["err32"])
  cot = jnp.asarray(real("cot:adv", [2, 1], 0, 1)[:, 0])
  grad = jit(jax.grad(lambda x: jnp.sum(net.apply({"params": params}, x)[0] * cot)))(x)
  agrees(nchw(grad), want["grad"], atol=1e-5)


def test_sizes_are_those_of_the_authors():
  """Of 128 pixels with 13 attributes; the second layer of the decoder reads 1,549 channels."""
  x, a = jnp.zeros((1, 128, 128, 3)), jnp.zeros((1, 13))
  key = jax.random.key(0)
  enc, dec = attgan.Encoder(WIDTHS), attgan.Decoder(3, WIDTHS)
  d = attgan.Discriminator(WIDTHS, 1_024, 13)
  z, of_enc = jax.eval_shape(lambda: enc.init_with_output(key, x))
  out, of_dec = jax.eval_shape(lambda z: dec.init_with_output(key, z, a), z)
  of_d = jax.eval_shape(lambda: d.init(key, x))
  count = lambda tree: sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree["params"]))
  assert [count(t) for t in (of_enc, of_dec, of_d)] == [11_148_160, 32_311_043, 44_718_990]
  assert of_dec["params"]["deconv1"]["kernel"].shape == (4, 4, 1_549, 512)
  assert out.shape == x.shape and [m.shape[1] for m in z] == [64, 32, 16, 8, 4]
