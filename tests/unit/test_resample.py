"""Resampling against a plain NumPy upfirdn, and its derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gm.nn import conv, resample


def normal(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def numpy_upfirdn(x, taps, up, down, padding, gain):
  """By the definition: zeros in, zeros around, a convolution (the filter is turned), every n-th."""
  x = np.asarray(x, np.float64)
  n, h, w, c = x.shape
  wide = np.zeros((n, h * up, w * up, c))
  wide[:, ::up, ::up] = x
  lo, hi = padding
  wide = np.pad(wide, ((0, 0), *[(max(lo, 0), max(hi, 0))] * 2, (0, 0)))
  cut = slice(max(-lo, 0), -max(-hi, 0) or None)
  wide = wide[:, cut, cut]
  k, f = len(taps), np.outer(taps, taps)[::-1, ::-1]
  out = sum(
    f[i, j] * wide[:, i : wide.shape[1] - k + 1 + i, j : wide.shape[2] - k + 1 + j]
    for i in range(k)
    for j in range(k)
  )
  return gain * out[:, ::down, ::down]


CASES = [  # taps, up, down, padding, gain; filters without symmetry, so that a turn is noticed
  ((1.0, 2.0, -3.0, 0.5), 1, 1, (2, 1), 1.0),
  ((1.0, 2.0, -3.0, 0.5), 2, 1, (2, 1), 4.0),
  ((1.0, 2.0, -3.0, 0.5), 1, 2, (1, 1), 1.0),
  ((1.0, 2.0, 0.5), 3, 2, (4, 0), 2.0),
  ((1.0, -2.0), 2, 3, (0, 3), 1.0),
  ((0.3, 1.0, 2.0, -3.0, 0.5, 0.7), 2, 2, (-1, -2), 1.0),
  ((2.0,), 3, 2, (1, 1), 1.0),  # some pixels meet no tap
]


@pytest.mark.parametrize("taps, up, down, padding, gain", CASES)
def test_equals_numpy_and_its_derivative_is_the_adjoint(taps, up, down, padding, gain):
  x = normal(0, 2, 5, 8, 2)
  want = numpy_upfirdn(x, taps, up, down, padding, gain)
  u = normal(1, *want.shape)

  @jax.jit
  def run(x, u):
    f = lambda x: resample.upfirdn(x, taps, up=up, down=down, padding=padding, gain=gain)
    y, back = jax.vjp(f, x)
    _, forth = jax.vjp(lambda u: back(u)[0], u)  # linear in u, and its adjoint is f
    return y, back(u)[0], forth(x)[0]

  y, adjoint, again = run(x, u)
  np.testing.assert_allclose(y, want, atol=1e-4)
  np.testing.assert_allclose(jnp.vdot(x, adjoint), np.vdot(want, u), rtol=1e-3, atol=1e-3)
  np.testing.assert_allclose(again, want, atol=1e-4)


def test_second_derivatives_equal_those_of_a_plain_convolution():
  x, k = normal(0, 2, 6, 6, 2), np.outer([1, 3, 3, 1], [1, 3, 3, 1])[:, :, None, None] / 64

  def plain(x):  # depthwise, upsampled by 2
    kernel = jnp.asarray(np.tile(4 * k, (1, 1, 1, 2)), jnp.float32)
    return lax.conv_general_dilated(
      x, kernel, (1, 1), [(2, 2)] * 2, (2, 2), None, conv.LAYOUT, feature_group_count=2
    )

  def penalty(f):
    slope = jax.grad(lambda x: jnp.sum(jnp.sin(f(x))))
    return jax.jit(jax.value_and_grad(lambda x: jnp.sum(slope(x) ** 3)))(x)

  (got, d_got), (want, d_want) = penalty(resample.upsample), penalty(plain)
  np.testing.assert_allclose(got, want, rtol=1e-4)
  np.testing.assert_allclose(d_got, d_want, atol=1e-4)


def test_constants_and_smooth_signals():
  one = jnp.ones((1, 8, 8, 1))
  up, down = resample.upsample(one)[0, :, :, 0], resample.downsample(one)[0, :, :, 0]
  np.testing.assert_allclose([up[0, 4], up[0, 0], up[4, 4]], [0.75, 0.5625, 1.0], rtol=1e-6)
  np.testing.assert_allclose([down[0, 2], down[0, 0], down[2, 2]], [0.875, 0.765625, 1.0])
  grid = np.arange(32.0)
  x = jnp.asarray(np.cos(0.15 * grid)[:, None] * np.sin(0.1 * grid + 1), jnp.float32)
  back = resample.downsample(resample.upsample(x[None, :, :, None]))[0, :, :, 0]
  np.testing.assert_allclose(back[4:-4, 4:-4], x[4:-4, 4:-4], atol=0.02)


@pytest.mark.parametrize("factor", [2, 3])
def test_nearest_and_mean_pool(factor):
  x = normal(0, 2, 3, 4, 5)
  big = resample.nearest(x, factor=factor)
  np.testing.assert_allclose(big, np.asarray(x).repeat(factor, 1).repeat(factor, 2), atol=1e-6)
  np.testing.assert_allclose(resample.mean_pool(big, factor=factor), x, atol=1e-6)
  x = normal(1, 2, 2 * factor, 3 * factor, 5)
  blocks = np.asarray(x).reshape(2, 2, factor, 3, factor, 5).mean((2, 4))
  np.testing.assert_allclose(resample.mean_pool(x, factor=factor), blocks, atol=1e-6)


@pytest.mark.parametrize("kernel", [1, 5])
def test_sizes_and_centre_of_other_kernels(kernel):
  """A kernel of one 1 in its middle is the filter alone, wherever the border is far away."""
  x = normal(0, 1, 12, 12, 1)
  w = jnp.zeros((kernel, kernel, 1, 1)).at[kernel // 2, kernel // 2].set(1.0)
  for resampling, plain, edge, size in (
    ("up", resample.upsample, 4, 24),
    ("down", resample.downsample, 2, 6),
  ):
    got = jax.jit(lambda x: resample.fir_conv(x, w, resampling=resampling))(x)
    inner = (slice(None), slice(edge, -edge), slice(edge, -edge))
    np.testing.assert_allclose(got[inner], jax.jit(plain)(x)[inner], atol=1e-5)
    assert got.shape == (1, size, size, 1)
  with pytest.raises(ValueError, match="none, up, down"):
    resample.fir_conv(x, w, resampling="nearest")
  with pytest.raises(ValueError, match="odd kernel"):
    resample.fir_conv(x, jnp.ones((4, 4, 1, 1)))


def test_errors_name_the_flag():
  with pytest.raises(ValueError, match="image_size"):
    resample.mean_pool(jnp.ones((1, 3, 4, 1)))
  with pytest.raises(ValueError, match="image_size"):
    resample.upfirdn(jnp.ones((1, 2, 2, 1)), (1.0, 1.0, 1.0))
