"""The convolutional networks of beta-VAE (Higgins et al., 2017), for sides that 16 divides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from gm.nn import conv

WIDTHS = (32, 32, 64, 64)  # of the maps, from the image on; each halves the side
FEATURES = 256  # of the layer between maps and code


def grid(shape: Sequence[int]) -> tuple[int, int]:
  """Returns the size of the smallest map.

  Raises:
    ValueError: if 16 does not divide both sides.

  >>> grid((64, 64, 1))
  (4, 4)
  """
  height, width, _ = shape
  if height % 16 or width % 16:
    raise ValueError(
      f"images of {height}x{width} pixels do not halve four times: set --config.data.image_size to"
      " multiples of 16, or --config.model.nets=mlp"
    )
  return height // 16, width // 16


class Encoder(nn.Module):
  """Images [B, H, W, C] -> mean and log-variance, each [B, latent], float32."""

  latent: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Encodes x."""
    init = nn.initializers.glorot_uniform()
    for width, kernel in zip(WIDTHS, (4, 4, 2, 2), strict=True):
      x = nn.relu(conv.Conv(width, kernel, 2, kernel_init=init, dtype=self.dtype)(x))
    x = x.reshape(len(x), -1)
    x = nn.relu(nn.Dense(FEATURES, kernel_init=init, dtype=self.dtype)(x))
    out = nn.Dense(2 * self.latent, kernel_init=init, dtype=self.dtype)(x).astype(jnp.float32)
    mean, log_var = jnp.split(out, 2, axis=-1)
    return mean, log_var


class Decoder(nn.Module):
  """z [..., Z] -> logits [..., H W C], float32; any leading axes (samples by batch)."""

  shape: tuple[int, int, int]
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, z: jax.Array) -> jax.Array:
    """Decodes z."""
    init, lead = nn.initializers.glorot_uniform(), z.shape[:-1]
    small, area = grid(self.shape), math.prod(grid(self.shape))
    x = z.reshape(-1, z.shape[-1])
    x = nn.relu(nn.Dense(FEATURES, kernel_init=init, dtype=self.dtype)(x))
    x = nn.relu(nn.Dense(area * WIDTHS[-1], kernel_init=init, dtype=self.dtype)(x))
    x = x.reshape(-1, *small, WIDTHS[-1])
    for width in (WIDTHS[2], WIDTHS[1], WIDTHS[0]):
      x = nn.relu(conv.ConvTranspose(width, 4, 2, kernel_init=init, dtype=self.dtype)(x))
    x = conv.ConvTranspose(self.shape[2], 4, 2, kernel_init=init, dtype=self.dtype)(x)
    return x.astype(jnp.float32).reshape(*lead, math.prod(self.shape))
