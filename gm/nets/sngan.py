"""The CNNs of spectral normalisation: the paper's (arXiv:1802.05957), and those of a PyTorch port
(hanyoseob/pytorch-SNGAN) with instance norm and a map of logits. Normalised by `nn.spectral`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from gm.nn import conv, norm
from gm.nn import init as inits


def first_map(
  shape: Sequence[int], halvings: int, *, least: int = 1, widths: str = "g_widths"
) -> tuple[int, int]:
  """Returns the size of an image that is halved so often.

  Args:
    shape: (H, W, ...).
    halvings: their number.
    least: sides of the result.
    widths: the key in config.model that sets their number.

  Raises:
    ValueError: if a side does not halve so often, or to less.

  >>> first_map((32, 48, 3), 4)
  (2, 3)
  """
  h, w = (n // 2**halvings for n in shape[:2])
  if (h * 2**halvings, w * 2**halvings) != tuple(shape[:2]) or min(h, w) < least:
    raise ValueError(
      f"images of {shape[0]}x{shape[1]} pixels do not halve {halvings} times, to {least} or more:"
      f" set --config.data.image_size to a multiple of {2**halvings}, at least"
      f" {least * 2**halvings}, or change the number of --config.model.{widths}"
    )
  return h, w


class Generator(nn.Module):
  """The paper's CNN: dense to a map of widths[0], transposed convolutions of stride 2, tanh."""

  shape: tuple[int, int, int]
  widths: Sequence[int] = (512, 256, 128, 64)
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, z: jax.Array, train: bool = True) -> jax.Array:
    """[B, Z] -> [B, *shape]."""
    h, w = first_map(self.shape, len(self.widths) - 1)
    options = {"kernel_init": inits.normal(0.02), "dtype": self.dtype}
    normalize = lambda x: norm.BatchNorm(eps=2e-5, dtype=self.dtype)(x, train)
    x = nn.Dense(math.prod((h, w, self.widths[0])), **options)(z)
    x = nn.relu(normalize(x)).reshape(-1, h, w, self.widths[0])  # statistics of every feature
    for width in self.widths[1:]:
      x = nn.relu(normalize(conv.ConvTranspose(width, 4, 2, **options)(x)))
    x = conv.ConvTranspose(self.shape[2], 3, 1, **options)(x)
    return jnp.tanh(x.astype(jnp.float32))


class Discriminator(nn.Module):
  """The paper's CNN: 3 x 3 convolutions, and 4 x 4 of stride 2 where the width changes."""

  widths: Sequence[int] = (64, 128, 256, 512)
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
    """[B, H, W, C] -> logits [B]."""
    options = {"kernel_init": inits.normal(0.02), "dtype": self.dtype}
    for i, width in enumerate(self.widths):
      if i:
        x = nn.leaky_relu(conv.Conv(width, 4, 2, **options)(x), 0.2)
      x = nn.leaky_relu(conv.Conv(width, 3, 1, **options)(x), 0.2)
    return nn.Dense(1, **options)(x.reshape(len(x), -1))[:, 0].astype(jnp.float32)


def instance_norm(x: jax.Array) -> jax.Array:
  """Normalises every map of every sample of [B, H, W, C], without scale and shift."""
  one = jnp.ones(x.shape[-1])
  return norm.normalize(x, one, 0 * one, kind="instance")[0]


class InstanceGenerator(nn.Module):
  """Transposed 4 x 4 convolutions, the first one to 1 / 2^k of the sides, instance norm; tanh."""

  shape: tuple[int, int, int]
  widths: Sequence[int] = (512, 256, 128, 64)
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, z: jax.Array, train: bool = True) -> jax.Array:
    """[B, Z] -> [B, *shape]; `train` makes no difference."""
    size = first_map(self.shape, len(self.widths), least=2)
    options = {"kernel_init": inits.normal(0.02), "dtype": self.dtype}
    x = conv.ConvTranspose(self.widths[0], size, 1, "VALID", **options)(z[:, None, None])
    for width in self.widths[1:]:
      x = conv.ConvTranspose(width, 4, 2, **options)(nn.relu(instance_norm(x)))
    x = nn.relu(instance_norm(x))
    x = conv.ConvTranspose(self.shape[2], 4, 2, use_bias=False, **options, name="last")(x)
    return jnp.tanh(x.astype(jnp.float32))


class InstanceDiscriminator(nn.Module):
  """Convolutions 4 x 4 of stride 2, instance norm; a logit for every overlapping patch."""

  widths: Sequence[int] = (64, 128, 256, 512)
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
    """[B, H, W, C] -> logits [B, H / 2^k - 1, W / 2^k - 1]; `train` makes no difference."""
    first_map(x.shape[1:], len(self.widths), least=2, widths="d_widths")
    options = {"kernel_init": inits.normal(0.02), "dtype": self.dtype}
    for width in self.widths:
      x = nn.leaky_relu(instance_norm(conv.Conv(width, 4, 2, **options)(x)), 0.2)
    x = conv.Conv(1, 4, 1, padding=1, use_bias=False, **options, name="last")(x)
    return x[..., 0].astype(jnp.float32)
