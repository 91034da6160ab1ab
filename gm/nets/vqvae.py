"""VQ-VAE's networks (arXiv:1711.00937, and the notebook of Sonnet): images to maps and back.

| nets | widths | blocks | block_width | features |
|---|---|---|---|---|
| CIFAR-10, the paper | (256, 256) | 2 | 256 | 10 |
| CIFAR-10, the notebook | (64, 128) | 2 | 32 | 64 |

Every width halves the map, so an image's sides are multiples of 2^len(widths).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from gm.nn import conv


def grid(image: Sequence[int], num_halvings: int, key: str = "widths") -> tuple[int, int]:
  """Returns the sides of the map of an image (H, W, ...); `key` of config.model says how many.

  Raises:
    ValueError: if they do not halve so often.

  >>> grid((28, 28, 1), 2)
  (7, 7)
  """
  factor = 2**num_halvings
  if any(n % factor for n in image[:2]):
    raise ValueError(
      f"images of {image[0]}x{image[1]} pixels do not halve {num_halvings} times: set"
      f" --config.data.image_size to multiples of {factor}, or give --config.model.{key} fewer"
    )
  return image[0] // factor, image[1] // factor


class Residual(nn.Module):
  """Blocks x + conv 1 x 1 (relu(conv 3 x 3 (relu x))), and a ReLU after the last."""

  num_blocks: int
  block_width: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> the same."""
    for i in range(self.num_blocks):
      h = conv.Conv(self.block_width, 3, dtype=self.dtype, name=f"in{i}")(nn.relu(x))
      x = x + conv.Conv(x.shape[-1], 1, dtype=self.dtype, name=f"out{i}")(nn.relu(h))
    return nn.relu(x)


class Encoder(nn.Module):
  """Images [N, H, W, C] -> [N, H / 2^k, W / 2^k, features], float32; k widths.

  Attributes:
    features: of a position, those of a code.
    widths: channels of the halving convolutions, the last also of all that follows.
    num_blocks: residual blocks.
    block_width: channels inside of them.
  """

  features: int
  widths: Sequence[int] = (64, 128)
  num_blocks: int = 2
  block_width: int = 32
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Encodes."""
    for i, width in enumerate(self.widths):
      x = nn.relu(conv.Conv(width, 4, 2, dtype=self.dtype, name=f"down{i}")(x))
    x = conv.Conv(self.widths[-1], 3, dtype=self.dtype, name="conv")(x)
    x = Residual(self.num_blocks, self.block_width, self.dtype, name="blocks")(nn.relu(x))
    return conv.Conv(self.features, 1, dtype=self.dtype, name="last")(x).astype(jnp.float32)


class Decoder(nn.Module):
  """Maps [N, h, w, features] -> [N, 2^k h, 2^k w, channels], linear in the last layer, float32.

  Attributes:
    channels: of the images.
    widths, num_blocks, block_width: the encoder's, which it mirrors.
  """

  channels: int
  widths: Sequence[int] = (64, 128)
  num_blocks: int = 2
  block_width: int = 32
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, z: jax.Array) -> jax.Array:
    """Decodes."""
    x = conv.Conv(self.widths[-1], 3, dtype=self.dtype, name="conv")(z)
    x = Residual(self.num_blocks, self.block_width, self.dtype, name="blocks")(x)
    for i, width in enumerate((*self.widths[-2::-1], self.channels)):
      x = conv.ConvTranspose(width, 4, 2, dtype=self.dtype, name=f"up{i}")(nn.relu(x) if i else x)
    return x.astype(jnp.float32)
