"""Equalised learning rate: variances at the start, the multiplier, the fused resampling."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gm.nn import equalized, resample


def normal(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def build(layer, x):
  return layer.init(jax.random.key(0), x)


@pytest.mark.parametrize("gain", [1.0, 2.0**0.5])
@pytest.mark.parametrize("layer", [equalized.Dense, equalized.Conv])
def test_stored_variance_is_one_and_output_variance_gain_squared(layer, gain):
  shape = (256, 128) if layer is equalized.Dense else (8, 10, 10, 64)
  x = normal(1, *shape)
  v = build(layer(128, gain=gain), x)
  assert 0.95 < v["params"]["kernel"].std() < 1.05
  y = layer(128, gain=gain).apply(v, x)
  inner = y[:, 1:-1, 1:-1] if y.ndim == 4 else y  # zeros lie beyond the border
  np.testing.assert_allclose(inner.var(), gain**2, rtol=0.15)


def test_values_by_hand():
  x = jnp.array([[3.0, 4.0]])
  v = {"params": {"kernel": jnp.array([[1.0], [2.0]]), "bias": jnp.array([7.0])}}
  y = equalized.Dense(1, gain=2.0, lr_mult=0.5).apply(v, x)
  np.testing.assert_allclose(y, [[11 * 2 * 0.5 / 2**0.5 + 7 * 0.5]], rtol=1e-6)
  v = {"params": {"kernel": jnp.ones((3, 3, 2, 1)), "bias": jnp.array([0.5])}}
  y = equalized.Conv(1, gain=3.0).apply(v, jnp.ones((1, 3, 3, 2)))
  np.testing.assert_allclose(y[0, 1, 1, 0], 18 * 3 / 18**0.5 + 0.5, rtol=1e-6)  # fan_in 18


def test_a_multiplier_leaves_the_function_and_slows_the_layer():
  """Used weights start alike for any m; Adam's first step moves them by m lr / sqrt(fan_in)."""
  x, lr = normal(0, 4, 16), 0.01
  for m in (1.0, 0.01):
    layer = equalized.Dense(64, lr_mult=m, bias_start=1.0)
    v = build(layer, x)
    np.testing.assert_allclose(v["params"]["kernel"].std() * m, 1.0, rtol=0.1)
    used = lambda v: layer.apply(v, jnp.eye(16)) - layer.apply(v, jnp.zeros((1, 16)))
    np.testing.assert_allclose(layer.apply(v, jnp.zeros((1, 16))), 1.0, rtol=1e-6)
    np.testing.assert_allclose(used(v).std(), 16**-0.5, rtol=0.1)
    grads = jax.grad(lambda v: jnp.sum(jnp.sin(layer.apply(v, x))))(v)
    updates, _ = optax.adam(lr).update(grads, optax.adam(lr).init(v))
    moved = np.abs(used(optax.apply_updates(v, updates)) - used(v)).max()
    assert 0.5 * m * lr / 4 < moved <= 1.02 * m * lr / 4


def test_resampling_is_fused_and_before_the_bias():
  x = normal(0, 2, 4, 4, 3)
  plain = equalized.Conv(5)
  v = build(plain, x)
  v = {"params": {**v["params"], "bias": normal(1, 5)}}
  up = equalized.Conv(5, resampling="nearest").apply(v, x)
  np.testing.assert_allclose(up, plain.apply(v, resample.nearest(x)), atol=1e-5)
  down = equalized.Conv(5, resampling="mean").apply(v, x)
  np.testing.assert_allclose(down, resample.mean_pool(plain.apply(v, x)), atol=1e-5)
  fir = equalized.Conv(5, resampling="down").apply(v, x) - v["params"]["bias"]
  w = v["params"]["kernel"] / 27**0.5
  np.testing.assert_allclose(fir, resample.fir_conv(x, w, resampling="down"), atol=1e-5)
  with pytest.raises(ValueError, match="none, up, down, nearest, mean"):
    build(equalized.Conv(5, resampling="bilinear"), x)


def test_types_and_no_bias():
  x = normal(0, 2, 4, 4, 3)
  for layer in (equalized.Dense(5, use_bias=False), equalized.Conv(5, use_bias=False)):
    v = build(layer, x)
    assert set(v["params"]) == {"kernel"} and v["params"]["kernel"].dtype == jnp.float32
    half = layer.clone(dtype=jnp.bfloat16).apply(v, x)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), layer.apply(v, x), atol=0.05)


def test_lrelu():
  x = normal(0, 100_000)
  np.testing.assert_allclose(jnp.mean(equalized.lrelu(x) ** 2), 1.04, rtol=0.02)  # 2 (1 + .04) / 2
