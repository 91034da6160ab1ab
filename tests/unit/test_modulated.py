"""Modulated convolution against per-sample kernels and the reference's order of operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gm.nn import modulated, resample


def normal(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def close(a, b, tolerance=1e-5):
  np.testing.assert_allclose(a, b, atol=tolerance * float(jnp.abs(b).max()))


def plain_conv(x, w, resampling):
  """A convolution of its own for each way, by XLA: zeros in, turned kernel, then the filter."""
  layout = ("NHWC", "HWIO", "NHWC")
  taps = [t / 8 for t in (1, 3, 3, 1)]
  if resampling == "up":  # pads the map with its zeros (2 H, a zero last) by 2
    y = lax.conv_general_dilated(
      x, w[::-1, ::-1], (1, 1), [(2, 3)] * 2, (2, 2), dimension_numbers=layout
    )
    return resample.upfirdn(y, taps, padding=(1, 0), gain=4.0)
  if resampling == "down":
    x = resample.upfirdn(x, taps, padding=(2, 2))
    return lax.conv_general_dilated(x, w, (2, 2), "VALID", dimension_numbers=layout)
  return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=layout)


def per_sample(x, w, style, resampling="none", demodulate=True):
  """The definition: a kernel for every sample."""

  def one(x, s):  # [H, W, I], [I]
    kernel = w * s[:, None]
    if demodulate:
      kernel = kernel * lax.rsqrt(jnp.sum(kernel**2, (0, 1, 2)) + 1e-8)
    return plain_conv(x[None], kernel, resampling)[0]

  return jax.vmap(one)(x, style)


X, W, STYLE = normal(0, 3, 6, 4, 5), normal(1, 3, 3, 5, 4), normal(2, 3, 5)


@pytest.mark.parametrize("resampling", resample.RESAMPLING)
@pytest.mark.parametrize("demodulate", [True, False])
def test_equals_per_sample_kernels(resampling, demodulate):
  options = {"demodulate": demodulate, "resampling": resampling}
  run = lambda f: jax.jit(lambda *a: f(*a, **options))(X, W, STYLE)
  close(run(modulated.modulated_conv), run(per_sample))


@pytest.mark.parametrize("resampling", ["none", "up"])
def test_second_derivatives_equal(resampling):
  """The gradient of a penalty on the gradient in the style, as in path length regularisation."""

  def penalty(f):
    slope = jax.grad(lambda s, x, w: jnp.sum(jnp.sin(f(x, w, s, resampling=resampling))), (0, 1))
    loss = lambda x, w, s: sum(jnp.sum(g**2) for g in slope(s, x, w))
    return jax.jit(jax.grad(loss, (0, 1, 2)))(X, W, STYLE)

  for a, b in zip(penalty(modulated.modulated_conv), penalty(per_sample)):
    close(a, b, 1e-4)


def test_scale_of_the_style_is_divided_out():
  for demodulate, factor in ((True, 1.0), (False, 2.0)):
    f = jax.jit(lambda s: modulated.modulated_conv(X, W, s, demodulate=demodulate))
    close(f(2 * STYLE), factor * f(STYLE))


def test_demodulated_output_of_white_input_has_variance_one():
  x, w, style = normal(3, 16, 12, 12, 32), normal(4, 3, 3, 32, 32), 1 + normal(5, 16, 32)
  y = modulated.modulated_conv(x, w, style)[:, 1:-1, 1:-1]
  np.testing.assert_allclose(y.var(), 1.0, atol=0.1)


def test_undemodulated_output_has_the_mean_square_of_the_styles():
  """1 + 1: styles have mean 1 and variance 1 for a white latent; sqrt(I) is divided out."""
  x, latent = normal(6, 64, 4, 4, 64), normal(7, 64, 32)
  layer = modulated.ModulatedConv(64, 1, demodulate=False)
  y = layer.apply(layer.init(jax.random.key(0), x, latent), x, latent)
  np.testing.assert_allclose(jnp.mean(y**2), 2.0, rtol=0.15)


def test_layer():
  x, latent = normal(0, 4, 4, 4, 64), normal(1, 4, 32)
  layer = modulated.ModulatedConv(8)
  v = layer.init(jax.random.key(0), x, latent)
  p = v["params"]
  assert p["kernel"].shape == (3, 3, 64, 8) and p["affine"]["kernel"].shape == (32, 64)
  np.testing.assert_array_equal(p["affine"]["bias"], 1.0)
  style = latent @ p["affine"]["kernel"] / 32**0.5 + 1
  close(layer.apply(v, x, latent), modulated.modulated_conv(x, p["kernel"], style))
  rgb = layer.clone(demodulate=False).apply(v, x, latent)
  close(rgb, modulated.modulated_conv(x, p["kernel"], style / 8, demodulate=False))
