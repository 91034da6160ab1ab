"""Winograd's filtering against plain convolutions: values, adjoints, and where it is used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gm.nn import conv, winograd


def normal(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("taps", winograd.FILTERS)
def test_the_three_maps_of_a_filter(taps):
  """A^T ((G w) * (B^T x)) is the filter for two outputs, with taps + 1 products."""
  of_x, of_w, of_y = (np.array(m) for m in winograd.FILTERS[taps])
  assert (len(of_w), len(of_y)) == (taps + 1, 2)
  for i, j in np.ndindex(taps + 1, taps):
    x, w = np.eye(taps + 1)[i], np.eye(taps)[j]
    np.testing.assert_allclose(of_y @ ((of_w @ w) * (of_x @ x)), np.correlate(x, w), atol=1e-15)


@pytest.mark.parametrize("out", [(4, 6), (5, 7), (8, 11), (1, 2)])
@pytest.mark.parametrize("taps", [(2, 2), (3, 3), (2, 3)])
def test_equals_the_plain_convolution_and_its_adjoints(out, taps):
  size = [p + r - 1 for p, r in zip(out, taps)]
  x, w, y = normal(0, 2, *size, 5), normal(1, *taps, 5, 6), normal(2, 2, *out, 6)
  plain = lambda x, w: lax.conv_general_dilated(
    x, w, (1, 1), "VALID", dimension_numbers=conv.LAYOUT
  )
  value, pullback = jax.vjp(plain, x, w)
  found = winograd.conv(x, w), winograd.adjoint_in_x(y, w), winograd.adjoint_in_w(x, y)
  for got, want in zip(found, (value, *pullback(y)), strict=True):
    np.testing.assert_allclose(got, want, atol=1e-5 * float(jnp.abs(want).max()))


def test_share_counts_the_products():
  """Per tile of 2 x 2 outputs 9 for 16, and 16 for 36; a half-empty tile counts whole."""
  assert winograd.share((4, 4), (2, 2)) == 9 / 16
  assert winograd.share((4, 4), (3, 3)) == 16 / 36
  assert winograd.share((3, 4), (2, 2)) == 2 * 9 / (3 * 8)
  assert winograd.share((7, 8), (3, 3)) == 4 * 4 * 16 / (7 * 8 * 9)
  assert winograd.share((4, 4), (4, 4)) == float("inf")


@pytest.mark.parametrize(
  "kernel, strides, size", [(4, 2, (16, 12)), (3, 1, (8, 6)), (5, 2, (8, 8))]
)
@pytest.mark.parametrize("name", ["conv", "conv_transpose"])
def test_wide_layers_use_it_and_equal_the_plain_form_to_second_order(name, kernel, strides, size):
  x, w = normal(0, 2, *size, 32), normal(1, kernel, kernel, 32, 32) / 24

  def everything(form):
    def loss(x, w):
      with conv.form(form):
        y = getattr(conv, name)(x, w, strides=strides)
      return jnp.mean(jnp.sin(y)), y

    def penalty(x, w):
      (gx, gw), y = jax.grad(loss, (0, 1), has_aux=True)(x, w)
      return jnp.sum(gx**2) + jnp.sum(jnp.tanh(gw)), (gx, gw, y)

    run = jax.jit(jax.grad(penalty, (0, 1), has_aux=True)).lower(x, w)
    return run.as_text().count("stablehlo.convolution"), run.compile()(x, w)

  (count, got), (plain, want) = everything("cpu"), everything("plain")
  assert count == 0 and plain > 0
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * float(jnp.abs(b).max())), got, want
  )


def test_narrow_layers_and_half_precision_do_not():
  def count(channels, dtype):
    x, w = jnp.ones((1, 8, 8, channels), dtype), jnp.ones((3, 3, channels, 32), dtype)
    with conv.form("cpu"):
      return jax.jit(conv.conv).lower(x, w).as_text().count("stablehlo.convolution")

  assert [count(16, jnp.float32), count(32, jnp.bfloat16), count(32, jnp.float32)] == [1, 1, 0]
