"""What translators are made of: the networks' geometry, jitter, and the score of counterparts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm import augment, core
from gm.metrics import translation
from gm.nets import patch, translator
from gm.nn import conv

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def shapes(net, *size):
  """Number of parameters, and the shape of the output for an image."""
  key = jax.eval_shape(lambda: jax.random.key(0))
  x = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
  with conv.form("plain"):  # traced sooner
    out, variables = jax.eval_shape(net.init_with_output, key, x)
  return core.count(variables["params"]), out.shape[1:]


@pytest.mark.parametrize(
  "num_blocks, affine, num",
  [(9, True, 11_388_675), (9, False, 11_378_179), (6, True, 7_845_123), (6, False, 7_837_699)],
)
def test_the_translators_of_the_paper(num_blocks, affine, num):
  net = translator.Translator(3, num_blocks=num_blocks, affine=affine)
  assert shapes(net, 256, 128) == (num, (256, 128, 3))


@pytest.mark.parametrize("affine, num", [(True, 2_766_529), (False, 2_764_737)])
@pytest.mark.parametrize("padding, at_256, at_128", [(1, 30, 14), (2, 35, 19)])
def test_the_discriminators_of_the_paper(affine, num, padding, at_256, at_128):
  net = patch.PatchDiscriminator(norm="instance", affine=affine, padding=padding)
  assert shapes(net, 256, 128) == (num, (at_256, at_128))
  assert [patch.grid(n, 4, padding) for n in (256, 128)] == [at_256, at_128]


def test_a_logit_sees_70_pixels():
  net, x = patch.PatchDiscriminator((2, 2, 2, 2), norm="none"), jnp.ones((1, 128, 128, 1))
  x = x * jax.random.normal(jax.random.key(1), x.shape)
  variables = jit(net.init)(jax.random.key(0), x)
  grad = jit(jax.grad(lambda x: net.apply(variables, x)[0, 7, 7]))(x)
  rows, columns = np.nonzero(np.asarray(grad[0, :, :, 0]))
  for found in (rows, columns):
    assert found.max() - found.min() + 1 == 70 and len(np.unique(found)) == 70


@pytest.mark.parametrize("pad", translator.PADS)
def test_borders(pad):
  """Of a constant image reflection makes a constant map, zeros do not; no image sees another."""
  net = translator.Translator(1, 4, 1, 1, pad)
  x = jax.random.normal(jax.random.key(1), (2, 8, 12, 1))
  variables = jit(net.init)(jax.random.key(0), x)
  apply = jit(lambda x: net.apply(variables, x))
  np.testing.assert_allclose(apply(x)[1:], apply(x[1:]), atol=1e-5)
  first = jit(lambda x: net.apply(variables, x, capture_intermediates=True)[1])
  seen = first(jnp.ones((1, 8, 12, 1)))["intermediates"]["first"]["__call__"][0]
  spread = np.ptp(np.asarray(seen), axis=(1, 2)).max()
  assert (spread < 1e-6) == (pad == "reflect")


def test_with_skip_the_image_is_added_before_the_tanh():
  """Through a matrix of colours: the identity at first, and then the image itself comes back."""
  net, plain = (translator.Translator(1, 4, 1, 1, norm="layer", skip=s) for s in (True, False))
  x = jnp.linspace(-1, 1, 96).reshape(1, 8, 12, 1)
  start = jit(net.init)(jax.random.key(0), x)["params"]

  @jit
  def both(params):
    others = {n: p for n, p in params.items() if n != "colours"}
    return net.apply({"params": params}, x), plain.apply({"params": others}, x)

  image = np.clip(x, -0.98, 0.98)
  with_image, without = both(start)
  np.testing.assert_allclose(
    with_image, np.tanh(np.arctanh(without) + np.arctanh(image)), atol=1e-4
  )
  assert np.abs(without).max() > 0.1
  nothing = {**jax.tree.map(jnp.zeros_like, start), "colours": start["colours"]}
  np.testing.assert_allclose(both(nothing)[0], image, atol=1e-6)
  nothing["colours"] = {"kernel": jnp.full((1, 1), -0.5)}
  np.testing.assert_allclose(both(nothing)[0], np.tanh(-0.5 * np.arctanh(image)), atol=1e-6)


def test_what_does_not_fit_is_said():
  with pytest.raises(ValueError, match=r"30x32 pixels do not halve 2 times.*image_size"):
    translator.check((30, 32, 3), 2)
  with pytest.raises(ValueError, match=r"pad 'edge'.*model.pad"):
    shapes(translator.Translator(3, 4, 1, 1, "edge"), 8, 8)
  with pytest.raises(ValueError, match=r"16 pixels are too small.*image_size.*d_widths"):
    patch.grid(16, 4)


def test_jitter_moves_an_image_a_little():
  x = jnp.broadcast_to(jnp.linspace(-0.8, 0.8, 20)[None, None, :, None], (32, 16, 20, 1))
  out = augment.jitter(jax.random.key(0), x, 4)
  assert out.shape == x.shape and float(jnp.abs(out).max()) <= 1
  # of 24 columns 20 are left: all five places come, and the slope is 20/24 of what it was
  slope = np.asarray(out[:, 5, 12, 0] - out[:, 5, 8, 0]) / np.asarray(
    x[:, 5, 12, 0] - x[:, 5, 8, 0]
  )
  np.testing.assert_allclose(slope, 20 / 24, rtol=0.02)
  assert len(np.unique(np.asarray(out[:, 8, 10, 0]).round(4))) == 5
  np.testing.assert_array_equal(augment.jitter(jax.random.key(0), x, 0), x)


def test_counterparts_are_told_from_simpler_answers():
  rng = np.random.default_rng(0)
  a = rng.uniform(-1, 1, (6, 4, 4, 3))
  b = np.clip(0.5 * a[..., ::-1] ** 3 + 0.1, -1, 1)
  found = translation.counterparts(
    {"a": a + 0.25, "b": b}, {"a": a, "b": b}, core.Info({}, aligned=True)
  )
  np.testing.assert_allclose(found["l1_a"], 0.25)
  assert found["l1_b"] == 0
  flat = b.reshape(-1, 3)
  np.testing.assert_allclose(found["constant_b"], np.abs(flat - np.median(flat, 0)).mean())
  np.testing.assert_allclose(found["identity"], np.abs(a - b).mean())
  other = a.reshape(-1, 3)
  moved = (other - other.mean(0)) / other.std(0) * flat.std(0) + flat.mean(0)
  np.testing.assert_allclose(found["statistics_b"], np.abs(moved - flat).mean())
  assert found["affine_b"] < found["constant_b"] < found["statistics_b"]
  with pytest.raises(ValueError, match=r"config\.metrics.*data\.paired"):
    translation.counterparts({"a": a, "b": b}, {"a": a, "b": b}, core.Info({}))
