"""A convolution and the change of resolution beside it, folded into one of fewer operations.

Nearest upsampling by 2 repeats every pixel, so products of a convolution after it share pixels; the
mean of 2 x 2 outputs of a convolution adds its kernel to itself, shifted. Both are exactly one
convolution of stride 2 with a kernel of one more row and column,

  K = sum_{a, b in {0, 1}} w shifted by (a, b)        in one dimension  [w0, w0 + w1, w1 + w2, w2]

transposed for the first, divided by 4 for the second; at 3 x 3 they need 16 products where the
plain form has 36. On a CPU the folded forms are used; elsewhere the plain ones, whose convolutions
are of the most common kind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from gm.nn import conv, resample


def up_conv(x: jax.Array, w: jax.Array) -> jax.Array:
  """A convolution of the map upsampled by 2: conv(nearest(x), w), "SAME".

  Args:
    x: [N, H, W, I].
    w: [k, k, I, O], k odd.

  Returns:
    [N, 2 H, 2 W, O].

  Raises:
    ValueError: if k is even.

  >>> up_conv(jnp.ones((1, 2, 2, 1)), jnp.ones((3, 3, 1, 1)))[0, :, :, 0].astype(int).tolist()
  [[4, 6, 6, 4], [6, 9, 9, 6], [6, 9, 9, 6], [4, 6, 6, 4]]
  """
  half = _half(w)
  if not conv.cpu_form():
    return conv.conv(resample.nearest(x), w)
  pad = (half + 1, half + 1)  # of x with zeros between its pixels
  return conv.conv_transpose(x, _spread(w), strides=2, padding=(pad, pad))


def conv_pool(x: jax.Array, w: jax.Array) -> jax.Array:
  """Means of 2 x 2 outputs of a convolution: mean_pool(conv(x, w)), "SAME".

  Args:
    x: [N, H, W, I], H and W even.
    w: [k, k, I, O], k odd.

  Returns:
    [N, H / 2, W / 2, O].

  Raises:
    ValueError: if k is even, or the map has an odd side.

  >>> conv_pool(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1)))[0, :, :, 0].tolist()
  [[6.25, 6.25], [6.25, 6.25]]
  """
  half = _half(w)
  if x.shape[1] % 2 or x.shape[2] % 2:
    raise ValueError(
      f"a map of {x.shape[1]} x {x.shape[2]} pixels does not halve: choose an image size that is"
      " divisible by 2 as often as the network halves it (--config.data.image_size)"
    )
  if not conv.cpu_form():
    return resample.mean_pool(conv.conv(x, w))
  return conv.conv(x, _spread(w) / 4, strides=2, padding=half)


def _spread(w: jax.Array) -> jax.Array:
  """[k, k, I, O] -> [k + 1, k + 1, I, O], the kernel added to itself at four shifts."""
  w = jnp.pad(w, ((1, 1), (1, 1), (0, 0), (0, 0)))
  w = w[1:] + w[:-1]
  return w[:, 1:] + w[:, :-1]


def _half(w: jax.Array) -> int:
  k = w.shape[0]
  if w.shape[1] != k or k % 2 == 0:
    raise ValueError(f"a kernel of {k} x {w.shape[1]} does not fold: it must be square and odd")
  return k // 2


class UpConv(nn.Module):
  """`up_conv` with parameters: [N, H, W, I] -> [N, 2 H, 2 W, features]; kernel [3, 3, I, F]."""

  features: int
  use_bias: bool = True
  kernel_init: Callable = nn.initializers.lecun_normal()
  bias_init: Callable = nn.initializers.zeros
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Upsamples and convolves x."""
    return _apply(self, up_conv, x)


class ConvPool(nn.Module):
  """`conv_pool` with parameters: [N, H, W, I] -> [N, H / 2, W / 2, features]."""

  features: int
  use_bias: bool = True
  kernel_init: Callable = nn.initializers.lecun_normal()
  bias_init: Callable = nn.initializers.zeros
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Convolves and pools x."""
    return _apply(self, conv_pool, x)


def _apply(module: Any, function: Callable, x: jax.Array) -> jax.Array:
  shape = (3, 3, x.shape[-1], module.features)
  w = module.param("kernel", module.kernel_init, shape, jnp.float32).astype(module.dtype)
  y = function(x.astype(module.dtype), w)
  if module.use_bias:
    bias = module.param("bias", module.bias_init, (module.features,), jnp.float32)
    y = y + bias.astype(module.dtype)
  return y
