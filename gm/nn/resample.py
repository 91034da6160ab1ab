"""Resampling of images [N, H, W, C]: FIR filters, nearest upsampling, mean pooling.

All of it is one linear map along one axis at a time. With x_u the signal x with u - 1 zeros after
each of its values,

  y[o] = sum_j h[j] x_u[d o + j - lo],  h the taps in reverse,

and its adjoint is the same map with u and d exchanged and the taps turned. So the derivative of
every function here, of every order, is another of them. They are sums of shifted slices, weighted:
taps that meet a zero of x_u are never computed (the polyphase form). On a CPU a pass forward and
back over 16 x 16 x 64 maps takes half the time that autodiff of the same slices takes and a tenth
of that of a depthwise convolution. No forward mode, as in `gm.nn.conv`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gm.nn import conv

TAPS = (1.0, 3.0, 3.0, 1.0)  # StyleGAN2's filter, normalised where it is used
RESAMPLING = ("none", "up", "down")


class _Fir(NamedTuple):
  """The map along one axis; static and hashable."""

  axis: int
  taps: tuple[float, ...]  # h: as they are laid on the signal
  up: int
  down: int
  low: int  # zeros before the signal
  size: int  # of x
  out: int  # of y


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fir(f: _Fir, x: jax.Array) -> jax.Array:
  """Applies f: in each of the interleaved phases of y the taps meet values of x, not zeros."""
  num_phases = f.up // math.gcd(f.up, f.down)
  stride, count = num_phases * f.down // f.up, -(-f.out // num_phases)
  phases = []  # of (first index into x, tap): output q of the phase meets x[first + stride q]
  for r in range(num_phases):
    offsets = [r * f.down + j - f.low for j in range(len(f.taps))]
    phases.append([(o // f.up, h) for o, h in zip(offsets, f.taps) if o % f.up == 0])
  firsts = [first for phase in phases for first, _ in phase]
  below = max(0, -min(firsts, default=0))
  above = max(0, max(firsts, default=0) + stride * (count - 1) + 1 - f.size)
  edges = [(0, 0, 0)] * x.ndim
  edges[f.axis] = (below, above, 0)
  x = lax.pad(x, np.zeros((), x.dtype), edges)  # lax: a step traces this some hundred times
  cut = lambda i: lax.slice_in_dim(x, i, i + stride * (count - 1) + 1, stride, f.axis)
  weigh = lambda x, h: lax.mul(x, lax.full_like(x, h))
  sums = [[weigh(cut(first + below), h) for first, h in phase] for phase in phases]
  shape = lambda n: (*x.shape[: f.axis], n, *x.shape[f.axis + 1 :])
  none = lambda: jnp.zeros(shape(count), x.dtype)
  sums = [functools.reduce(lax.add, parts) if parts else none() for parts in sums]
  if num_phases == 1:
    return sums[0]
  y = jnp.stack(sums, f.axis + 1).reshape(shape(count * num_phases))
  return lax.slice_in_dim(y, 0, f.out, 1, f.axis)


def _adjoint(f: _Fir) -> _Fir:
  low = len(f.taps) - 1 - f.low
  return _Fir(f.axis, f.taps[::-1], f.down, f.up, low, f.out, f.size)


_fir.defvjp(lambda f, x: (_fir(f, x), None), lambda f, _, dy: (_fir(_adjoint(f), dy),))


def upfirdn(
  x: jax.Array,
  taps: Sequence[float],
  *,
  up: int = 1,
  down: int = 1,
  padding: tuple[int, int] = (0, 0),
  gain: float = 1.0,
) -> jax.Array:
  """Inserts zeros, pads with zeros, convolves with a separable filter, keeps every `down`-th pixel.

  Per axis: y[o] = sum_j taps[k - 1 - j] x_u[down o + j - padding[0]], and gain once for both.

  Args:
    x: [N, H, W, C].
    taps: the filter of one axis, [k], used as it is; the filter in two is its outer product.
    up: up - 1 zeros follow each pixel.
    down: step between the pixels that are kept.
    padding: zeros (before, after) on both axes, after the zeros are inserted; may be negative.
    gain: factor of the result.

  Returns:
    [N, P, Q, C], P = (H up + sum(padding) - k) // down + 1.

  Raises:
    ValueError: if nothing is left.

  Source: Karras et al., 2020, arXiv:1912.04958, and its code.

  >>> upfirdn(jnp.ones((1, 2, 1, 1)), (1.0, 1.0), up=2, padding=(1, 0))[0, :, 0, 0].tolist()
  [1.0, 1.0, 1.0, 1.0]
  """
  scaled = tuple(math.sqrt(gain) * float(t) for t in taps)[::-1]
  for axis in (1, 2):
    out = (x.shape[axis] * up + sum(padding) - len(scaled)) // down + 1
    if out < 1:
      raise ValueError(
        f"a filter of {len(scaled)} taps does not fit into {x.shape[axis]} pixels with padding"
        f" {tuple(padding)}: change --config.data.image_size or the padding"
      )
    x = _fir(_Fir(axis, scaled, up, down, padding[0], x.shape[axis], out), x)
  return x


def _normalised(taps: Sequence[float]) -> tuple[float, ...]:
  return tuple(t / sum(taps) for t in taps)


def upsample(x: jax.Array, taps: Sequence[float] = TAPS, *, factor: int = 2) -> jax.Array:
  """Upsamples by an FIR filter that keeps the mean of what lies inside; zeros lie outside.

  Args:
    x: [N, H, W, C].
    taps: of one axis, normalised here to sum 1.
    factor: of both sides.

  Returns:
    [N, factor H, factor W, C].

  Source: Karras et al., 2020, arXiv:1912.04958, appendix B, and its code.

  >>> upsample(jnp.ones((1, 4, 4, 1)))[0, 2, :3, 0].tolist()  # a zero beyond the edge weighs 1/4
  [0.75, 1.0, 1.0]
  """
  k = len(taps)
  padding = ((k + factor - 1) // 2, (k - factor) // 2)
  return upfirdn(x, _normalised(taps), up=factor, padding=padding, gain=factor**2)


def downsample(x: jax.Array, taps: Sequence[float] = TAPS, *, factor: int = 2) -> jax.Array:
  """Filters, then keeps every factor-th pixel; zeros lie outside.

  Args:
    x: [N, H, W, C], sides divisible by factor.
    taps: of one axis, normalised here to sum 1.
    factor: of both sides.

  Returns:
    [N, H / factor, W / factor, C].

  Source: Karras et al., 2020, arXiv:1912.04958, appendix B, and its code.

  >>> downsample(jnp.ones((1, 8, 8, 1)))[0, 2, :2, 0].tolist()
  [0.875, 1.0]
  """
  k = len(taps)
  padding = ((k - factor + 1) // 2, (k - factor) // 2)
  return upfirdn(x, _normalised(taps), down=factor, padding=padding)


def nearest(x: jax.Array, *, factor: int = 2) -> jax.Array:
  """Repeats every pixel: [N, H, W, C] -> [N, factor H, factor W, C].

  >>> nearest(jnp.arange(2.0).reshape(1, 1, 2, 1))[0, :, :, 0].tolist()
  [[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]]
  """
  return upfirdn(x, (1.0,) * factor, up=factor, padding=(factor - 1, 0))


def mean_pool(x: jax.Array, *, factor: int = 2) -> jax.Array:
  """Means of factor x factor blocks: [N, H, W, C] -> [N, H / factor, W / factor, C].

  Raises:
    ValueError: if the sides are not divisible.

  >>> mean_pool(jnp.arange(4.0).reshape(1, 2, 2, 1)).item()
  1.5
  """
  if any(n % factor for n in x.shape[1:3]):
    raise ValueError(
      f"images of {x.shape[1]}x{x.shape[2]} pixels do not split into blocks of {factor}: change"
      " --config.data.image_size"
    )
  return upfirdn(x, (1 / factor,) * factor, down=factor)


def pixel_shuffle(x: jax.Array, *, factor: int = 2) -> jax.Array:
  """Lays factor^2 channels out as a block of pixels: [N, H, W, C f^2] -> [N, f H, f W, C].

  Channels are ordered as torch orders them, (C, f, f); TensorFlow's depth_to_space has (f, f, C).

  Raises:
    ValueError: if the channels do not divide.

  Source: Shi et al., 2016, arXiv:1609.05158.

  >>> pixel_shuffle(jnp.arange(4.0).reshape(1, 1, 1, 4))[0, :, :, 0].tolist()
  [[0.0, 1.0], [2.0, 3.0]]
  """
  n, h, w, c = x.shape
  if c % factor**2:
    raise ValueError(f"{c} channels do not make blocks of {factor} x {factor} pixels")
  x = x.reshape(n, h, w, c // factor**2, factor, factor)
  return x.transpose(0, 1, 4, 2, 5, 3).reshape(n, factor * h, factor * w, c // factor**2)


def fir_conv(
  x: jax.Array,
  w: jax.Array,
  *,
  resampling: str = "none",
  taps: Sequence[float] = TAPS,
) -> jax.Array:
  """Convolution, "SAME", with an FIR filter behind its upsampling or before its downsampling.

  "up": x with zeros between its pixels, convolved with the turned kernel (a transposed convolution
  of stride 2, as the authors' code lays its kernel), then the filter. "down": the filter, then a
  convolution of stride 2.

  Args:
    x: [N, H, W, I].
    w: [k, k, I, O], k odd.
    resampling: "none", "up" or "down", by 2.
    taps: of one axis, normalised here to sum 1.

  Returns:
    [N, P, Q, O]: H and W as they are, times 2 or by 2.

  Raises:
    ValueError: for another name, or an even kernel.

  >>> fir_conv(jnp.ones((1, 4, 4, 1)), jnp.ones((1, 1, 1, 1)), resampling="up").shape
  (1, 8, 8, 1)
  """
  k, n = w.shape[0], len(taps)
  if resampling not in RESAMPLING or k % 2 == 0:
    raise ValueError(
      f"resampling {resampling!r} with a kernel of {k}: choose one of {', '.join(RESAMPLING)} and"
      " an odd kernel"
    )
  if resampling == "up":
    y = conv.conv_transpose(x, w[::-1, ::-1], strides=2, padding=((k - 1, k - 1), (k - 1, k - 1)))
    # y is 2 H + k - 2 wide; of the filter's own padding the convolution has taken k // 2
    padding = ((n + 1) // 2 - k // 2, n // 2 - k // 2)
    return upfirdn(y, _normalised(taps), padding=padding, gain=4.0)
  if resampling == "down" and k == 1:
    return conv.conv(downsample(x, taps), w)  # the same, filtered where it is kept
  if resampling == "down":
    padding = ((n - 1) // 2 + k // 2, n // 2 - 1 + k // 2)
    x = upfirdn(x, _normalised(taps), padding=padding)
    return conv.conv(x, w, strides=2, padding="VALID")
  return conv.conv(x, w)
