"""Parameter counts of published networks, layer shapes, initial statistics, layers by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm.nets import classifier, dcgan, mlp
from gm.nn import init, linear


def variables(module, *shapes):
  make = lambda: module.init(jax.random.key(0), *map(jnp.zeros, shapes))
  return jax.eval_shape(make)


def start(module, x, key=0):
  """Output and variables, compiled as one program: far quicker than layer by layer."""
  return jax.jit(module.init_with_output)(jax.random.key(key), x)


def count(module, *shapes):
  return sum(math.prod(a.shape) for a in jax.tree.leaves(variables(module, *shapes)["params"]))


G, D = dcgan.Generator, dcgan.Discriminator
CODE = {"base": 128, "kernel": 5}  # the DCGAN authors' code
WGAN = {"base": 256, "use_bias": True}
MNIST = {"base": 64, "kernel": 5, "norm": "none", "use_bias": True, "crop": True}
COUNTS = [
  (mlp.Generator((28, 28, 1), (1200, 1200)), (2, 100), 2_503_984),
  (mlp.Discriminator((240, 240), pieces=5), (2, 28, 28, 1), 1_231_441),
  (G((64, 64, 3)), (2, 100), 3_576_704),
  (D(), (2, 64, 64, 3), 2_765_568),
  (G((64, 64, 3), first="dense", **CODE), (2, 100), 18_885_760),
  (D(last="dense", **CODE), (2, 64, 64, 3), 17_232_768),
  (G((32, 32, 3), **WGAN), (2, 100), 12_141_827),
  (D(norm_first=True, **WGAN), (2, 32, 32, 3), 10_519_809),
  (G((32, 32, 1), **WGAN), (2, 100), 12_133_633),
  (D(norm_first=True, norm="instance", **WGAN), (2, 32, 32, 1), 10_511_617),
  (G((28, 28, 1), first="dense", **MNIST), (2, 128), 1_554_177),
  (D(last="dense", **MNIST), (2, 28, 28, 1), 1_030_145),
]


@pytest.mark.parametrize("module, shape, want", COUNTS)
def test_parameter_counts(module, shape, want):
  assert count(module, shape) == want


def test_iwae_parameter_count():
  encoder, decoder = mlp.Encoder(50), mlp.Decoder((28, 28, 1))
  assert count(encoder, (2, 784)) + count(decoder, (2, 50)) == 425_284


def maps(module, shape):
  def run():
    x = jnp.zeros(shape)
    _, found = module.init_with_output(jax.random.key(0), x, capture_intermediates=True)
    return found["intermediates"]

  found = jax.eval_shape(run)
  layers = found.get("trunk", found)
  return {k: v["__call__"][0].shape[1:] for k, v in layers.items() if k != "__call__"}


def test_layer_shapes():
  g = maps(G((64, 64, 3)), (2, 100))
  assert [g[k] for k in ("first", "up0", "up1", "up2", "up3")] == [
    (4, 4, 512),
    (8, 8, 256),
    (16, 16, 128),
    (32, 32, 64),
    (64, 64, 3),
  ]
  d = maps(D(), (2, 64, 64, 3))
  assert [d[f"down{i}"] for i in range(4)] == [
    (32, 32, 64),
    (16, 16, 128),
    (8, 8, 256),
    (4, 4, 512),
  ]
  d = maps(D(last="dense", **MNIST), (2, 28, 28, 1))
  assert [d[f"down{i}"] for i in range(3)] == [(14, 14, 64), (7, 7, 128), (4, 4, 256)]


@pytest.mark.parametrize(
  "shape, options",
  [
    ((28, 28, 1), {"start": 7}),
    ((28, 28, 1), {"crop": True, "first": "dense", "kernel": 5}),
    ((16, 32, 2), {"norm": "layer"}),
    ((24, 8, 3), {"norm": "instance"}),
  ],
)
def test_sizes(shape, options):
  g = G(shape, base=4, **options)
  x, _ = start(g, jax.random.normal(jax.random.key(1), (2, 5)))
  assert x.shape == (2, *shape) and x.dtype == jnp.float32 and jnp.abs(x).max() <= 1
  kept = {k: options[k] for k in options if k != "first"}
  d = D(base=4, **kept)
  logits, _ = start(d, x, 2)
  assert logits.shape == (2,) and logits.dtype == jnp.float32


@pytest.mark.parametrize("size", [(28, 28), (30, 32), (48, 48), (32, 36), (2, 2)])
def test_sizes_that_do_not_halve(size):
  with pytest.raises(ValueError, match=f"{size[0]}x{size[1]}.*image_size"):
    dcgan.sizes(size)


def test_an_image_of_the_size_of_the_first_map_is_refused():
  """There would be no layer between: the discriminator has no map to score."""
  with pytest.raises(ValueError, match=r"7x7.*image_size or lower --config.model.start"):
    dcgan.sizes((7, 7), start=7)


def test_dcgan_init():
  g = G((32, 32, 3), base=32)
  p = start(g, jnp.zeros((2, 100)))[1]["params"]
  assert not any("bias" in k for name, k in p.items() if name.startswith(("first", "up")))
  for name in ("first", "up0", "up1"):
    k = p[name]["kernel"]
    assert 0.0195 < k.std() < 0.0205
    assert abs(k.mean()) < 3 * 0.02 / k.size**0.5
  scale = jnp.concatenate([v["scale"] for k, v in p.items() if "Norm" in k])
  assert abs(scale.mean() - 1) < 0.006 and 0.016 < scale.std() < 0.024


def test_first_loss_is_log_four():
  d = D(base=8)
  x = jax.random.normal(jax.random.key(1), (16, 32, 32, 3))
  s, _ = start(d, x)
  assert abs(jnp.mean(jax.nn.softplus(s)) + jnp.mean(jax.nn.softplus(-s)) - 1.386) < 0.15


def test_torch_fans():
  """torch: bound 1 / sqrt(fan_in), the fan of a transposed kernel being out * area."""
  shape = (4, 4, 8, 50)
  k = init.torch()(jax.random.key(0), shape, jnp.float32)
  bound = (4 * 4 * 8) ** -0.5
  assert 0.98 * bound < jnp.abs(k).max() <= bound and abs(k.std() / bound - 3**-0.5) < 0.02
  k = init.torch(transpose=True)(jax.random.key(0), shape, jnp.float32)
  bound = (4 * 4 * 50) ** -0.5
  assert 0.98 * bound < jnp.abs(k).max() <= bound


def test_improved_wgan_std():
  k = init.improved_wgan(stride=2)(jax.random.key(0), (5, 5, 64, 128), jnp.float32)
  want = math.sqrt(4 / (64 * 25 + 128 * 25 / 4))
  assert abs(k.std() / want - 1) < 0.02
  k = init.improved_wgan(stride=2, transpose=True)(jax.random.key(0), (5, 5, 64, 128), jnp.float32)
  assert abs(k.std() / math.sqrt(4 / (64 * 25 / 4 + 128 * 25)) - 1) < 0.02
  with pytest.raises(ValueError, match=r"dcgan, torch.*--config.model.scheme"):
    init.scheme("xavier")


def test_constant_bias_per_pixel():
  g = mlp.Generator(
    (2,), (3,), output="none", output_bias_init=init.constant(np.array([1.0, -2.0]))
  )
  x, _ = g.init_with_output(jax.random.key(0), jnp.zeros((1, 4)))
  assert x.tolist() == [[1.0, -2.0]]


def test_maxout_by_hand():
  layer = linear.Maxout(2, 3)
  kernel = jnp.array([[1.0, 2.0, -3.0, 0.0, -1.0, 4.0]])
  p = {"params": {"dense": {"kernel": kernel, "bias": jnp.array([0.0, 0, 0, 5, 0, 0])}}}
  y = layer.apply(p, jnp.array([[1.0], [-1.0]]))
  assert y.tolist() == [[2.0, 5.0], [3.0, 5.0]]  # x=1: max(1, 2, -3), max(5, -1, 4)


def test_dropout_keeps_the_mean_and_needs_training():
  d = mlp.Discriminator((), dropout=(0.2, 0.5), kernel_init=init.constant(1.0))
  x = jnp.ones((200, 50))
  keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
  v = d.init(keys, x)
  assert d.apply(v, x, train=False).tolist() == [50.0] * 200
  y = d.apply(v, x, train=True, rngs={"dropout": jax.random.key(2)})
  assert abs(y.mean() - 50) < 1 and abs(y.std() / math.sqrt(50 * 0.2 / 0.8) - 1) < 0.2


def test_decoder_takes_leading_axes():
  d = mlp.Decoder((4, 4, 1), (8,))
  z = jax.random.normal(jax.random.key(1), (3, 2, 5))
  x, v = d.init_with_output(jax.random.key(0), z)
  assert x.shape == (3, 2, 4, 4, 1)
  np.testing.assert_allclose(x[1], d.apply(v, z[1]), atol=1e-6)


def test_encoder_and_norms_of_the_mlp():
  mean, log_var = mlp.Encoder(3, (8,)).init_with_output(jax.random.key(0), jnp.ones((2, 4, 4, 1)))[
    0
  ]
  assert mean.shape == log_var.shape == (2, 3) and not jnp.allclose(mean, log_var)
  v = variables(mlp.Generator((2,), (8, 8), norm="batch"), (4, 3))
  assert len(v["batch_stats"]) == 2
  assert variables(mlp.Generator((2,), (8,), norm="layer"), (4, 3)).keys() == {"params"}
  for changes in ({"activation": "gelo"}, {"output": "relu"}, {"norm": "group"}):
    ((what, name),) = changes.items()
    with pytest.raises(ValueError, match=rf"{what} '{name}': .*none.*the {what} in --config.model"):
      variables(mlp.Generator((2,), **changes), (4, 3))


def test_bfloat16_computes_and_returns_float32():
  for module, shape in (
    (G((16, 16, 1), base=4, dtype=jnp.bfloat16), (2, 5)),
    (D(base=4, dtype=jnp.bfloat16), (2, 16, 16, 1)),
    (mlp.Discriminator((8,), dtype=jnp.bfloat16), (2, 4)),
  ):
    x = jax.random.normal(jax.random.key(1), shape)
    y, v = start(module, x)
    assert y.dtype == jnp.float32
    assert {a.dtype for a in jax.tree.leaves(v)} == {jnp.dtype("float32")}
    want = jax.jit(module.clone(dtype=jnp.float32).apply)(v, x)
    assert 0 < jnp.abs(y - want).max() < 0.05


def test_features_and_classifier():
  d, x = D(base=4), jnp.ones((2, 16, 16, 1))
  _, v = start(d, x)
  features = jax.jit(lambda v: d.apply(v, x, method="features"))(v)
  assert [f.shape for f in features] == [(2, 8, 8, 4), (2, 4, 4, 8)]
  for size in (8, 28):
    shapes = jax.eval_shape(
      lambda: classifier.DigitClassifier().init_with_output(
        jax.random.key(0), jnp.zeros((2, size, size, 1))
      )[0]
    )
    assert [s.shape for s in shapes] == [(2, 10), (2, 128)]
