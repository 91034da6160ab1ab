"""Mixtures of discretised logistics: a law of pixels of 2^bits levels, one mixture for each pixel.

A channel's density is a mixture of logistics, of which every level takes the part between the
middles to its neighbours, the first and the last all that is beyond. So probabilities sum to 1:

  P(x) = F((x + h - m) / s) - F((x - h - m) / s),  F = sigmoid, 2 h between levels, x in [-1, 1]

In colour all channels are of one component, and means depend on the channels before:
m_G = a + c_1 R and m_B = b + c_2 R + c_3 G, c = tanh of the network's numbers.

A network gives, for K components of C channels, in this order of the last axis: K logits; then for
each channel K means, K log scales and, in colour, K coefficients: c_1, c_2 and c_3. That is the
order of the published networks.

Source: Salimans et al., PixelCNN++, 2017, arXiv:1701.05517. Their code has another formula for
probabilities below 1e-5, with which the sum is 1 to 2e-5; here logarithms are exact everywhere:
F(a) - F(b) = F(a) F(-b) (1 - exp(b - a)).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

MIN_LOG_SCALE = -7.0
NEAR = 1e-3  # levels this near to -1 or 1 are the outermost


class Mixture(NamedTuple):
  """What a network's numbers stand for."""

  log_share: jax.Array  # [..., K], normalised
  mean: jax.Array  # [..., C, K], of a channel where those before it are 0
  log_scale: jax.Array  # [..., C, K]
  coeff: jax.Array | None  # [..., 3, K]: of R in G, of R in B, of G in B; None if grey


def num_outputs(channels: int, num_components: int) -> int:
  """Numbers that a network gives for each pixel.

  Raises:
    ValueError: if there are neither one nor three channels.

  >>> num_outputs(3, 10), num_outputs(1, 10)
  (100, 30)
  """
  if channels not in (1, 3):
    raise ValueError(
      f"a mixture of logistics is of pixels in grey or RGB, not of {channels} channels: set"
      " --config.data.channels"
    )
  return num_components * (10 if channels == 3 else 3)


def unpack(out: jax.Array, channels: int) -> Mixture:
  """Reads the numbers of a network, [..., num_outputs]; at least float32."""
  out = out.astype(jnp.promote_types(out.dtype, jnp.float32))
  num = out.shape[-1] // num_outputs(channels, 1)
  logits, rest = out[..., :num], out[..., num:]
  parts = jnp.split(rest.reshape(*out.shape[:-1], channels, -1), 3 if channels == 3 else 2, -1)
  coeff = jnp.tanh(parts[2]) if channels == 3 else None
  log_scale = jnp.maximum(parts[1], MIN_LOG_SCALE)
  return Mixture(jax.nn.log_softmax(logits), parts[0], log_scale, coeff)


def _shift(mix: Mixture, x: list[jax.Array], channel: int) -> jax.Array:
  """What the channels before add to the means of one, [..., K]; x: each [...]."""
  if channel == 0:
    return jnp.zeros(())
  first = mix.coeff[..., channel - 1, :] * x[0][..., None]
  return first if channel == 1 else first + mix.coeff[..., 2, :] * x[1][..., None]


def log_prob(x: jax.Array, out: jax.Array, *, bits: int = 8, event_ndim: int = 3) -> jax.Array:
  """Log-probability of images.

  Args:
    x: [B, H, W, C], levels of 2^bits in [-1, 1], C = 1 or 3.
    out: [B, H, W, num_outputs], or with leading axes more.
    bits: of a channel.
    event_ndim: number of trailing axes of one example, summed.

  Returns:
    [B], nats; finite for finite numbers.

  >>> flat = jnp.array([0.0, 0.0, 100.0])  # a very wide logistic: half of it is below, half above
  >>> [round(float(log_prob(jnp.array([v]), flat, event_ndim=1)), 4) for v in (-1.0, 1.0)]
  [-0.6931, -0.6931]
  """
  mix, half = unpack(out, x.shape[-1]), 1 / (2**bits - 1)
  before = [x[..., c] for c in range(x.shape[-1])]
  means = [mix.mean[..., c, :] + _shift(mix, before, c) for c in range(len(before))]
  mean = jnp.stack(jnp.broadcast_arrays(*means), -2)
  x = x[..., None]
  per_scale = jnp.exp(-mix.log_scale)
  below, above = (x - half - mean) * per_scale, (x + half - mean) * per_scale
  width = 2 * half * per_scale
  # log (1 - exp(-width)), also where width is below the smallest number
  between = jnp.where(
    width > 1e-6,
    jnp.log(-jnp.expm1(-jnp.maximum(width, 1e-6))),
    math.log(2 * half) - mix.log_scale - width / 2,
  )
  first, last = x < -1 + NEAR, x > 1 - NEAR
  found = jnp.where(last, 0.0, jax.nn.log_sigmoid(above))
  found += jnp.where(first, 0.0, jax.nn.log_sigmoid(-below))
  found += jnp.where(first | last, 0.0, between)
  pixel = jax.nn.logsumexp(mix.log_share + found.sum(-2), axis=-1)
  return pixel.sum(tuple(range(1 - event_ndim, 0)))


def draw(out: jax.Array, u: jax.Array, *, bits: int = 8) -> jax.Array:
  """Draws images; a channel depends on the levels of those before it, as in `log_prob`.

  Args:
    out: [..., num_outputs].
    u: uniform on [0, 1], [..., 1 + C]: for the component, and for each channel.
    bits: of a channel.

  Returns:
    [..., C], levels of 2^bits in [-1, 1].

  >>> draw(jnp.array([0.0, 0.5, -9.0]), jnp.array([0.3, 0.5])).tolist()  # level 191 of 0 .. 255
  [0.49803924560546875]
  """
  channels, top = u.shape[-1] - 1, 2**bits - 1
  mix = unpack(out, channels)
  shares = jnp.cumsum(jnp.exp(mix.log_share), -1)
  number = jnp.sum(u[..., :1] * shares[..., -1:] > shares[..., :-1], -1)
  chosen = jax.nn.one_hot(number, shares.shape[-1], dtype=mix.mean.dtype)
  u = jnp.clip(u[..., 1:], 1e-7, 1 - 1e-7)
  noise, x = jnp.log(u) - jnp.log1p(-u), []
  for c in range(channels):
    mean = jnp.sum((mix.mean[..., c, :] + _shift(mix, x, c)) * chosen, -1)
    scale = jnp.exp(jnp.sum(mix.log_scale[..., c, :] * chosen, -1))
    level = jnp.round((mean + scale * noise[..., c] + 1) * (top / 2))
    x.append(jnp.clip(level, 0, top) * (2 / top) - 1)
  return jnp.stack(x, -1)
