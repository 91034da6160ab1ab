"""VQGAN's networks (arXiv:2012.09841 and the authors' code): images to maps of features and back.

| nets | width | multipliers | blocks | attention | z_width | parameters with their 1 x 1 |
|---|---|---|---|---|---|---|
| ImageNet, 16 x 16 codes | 128 | (1, 1, 2, 2, 4) | 2 | after 4 halvings | 256 | 29.4 M, 42.5 M |

Each level but the last halves the map, so an image's sides are multiples of 2^(levels - 1). The
decoder has one block more at a level than the encoder, and ends before its last convolution: whose
kernel's gradient weighs its losses is a network of its own, `Last`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from gm.nn import attention, conv, fold, init, norm


def _conv(features: int, x: jax.Array, size: int, name: str, **how: Any) -> jax.Array:
  fan = size**2 * x.shape[-1]
  starts = {"kernel_init": init.torch(), "bias_init": init.torch_bias(fan)}
  return conv.Conv(features, size, name=name, **starts, **how)(x)


class Residual(nn.Module):
  """skip + conv 3 x 3 (swish(norm(conv 3 x 3 (swish(norm x))))); skip 1 x 1 where widths differ."""

  features: int
  groups: int = 32
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> [N, H, W, features]."""
    h = x
    for i in range(2):
      h = nn.swish(norm.GroupNorm(self.groups, dtype=self.dtype, name=f"norm{i}")(h))
      h = _conv(self.features, h, 3, f"conv{i}", dtype=self.dtype)
    if x.shape[-1] != self.features:
      x = _conv(self.features, x, 1, "skip", dtype=self.dtype)
    return x + h


class Attention(nn.Module):
  """x + attention in one head of the normalised pixels of x to all of them."""

  groups: int = 32
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> the same."""
    h = norm.GroupNorm(self.groups, dtype=self.dtype, name="norm")(x)
    starts = {"kernel_init": init.torch(), "out_init": init.torch()}
    attend = attention.MultiHeadAttention(1, **starts, dtype=self.dtype, name="attention")
    return x + attend(h.reshape(len(x), -1, x.shape[-1])).reshape(x.shape)


class Sizes(NamedTuple):
  """Of both networks.

  Attributes:
    width: channels of the first convolution.
    multipliers: channels of each level, in widths; each level but the last halves the map.
    num_blocks: residual blocks of each of the encoder's levels.
    attention: levels whose blocks are each followed by attention; 0 is the images' own size.
    z_width: channels of the last map but one, on either side of the codes.
    groups: of all normalisations.
  """

  width: int = 128
  multipliers: Sequence[int] = (1, 1, 2, 2, 4)
  num_blocks: int = 2
  attention: Sequence[int] = (4,)
  z_width: int = 256
  groups: int = 32


def _level(x: jax.Array, i: int, num_blocks: int, sizes: Sizes, dtype: Any) -> jax.Array:
  """The blocks of level i."""
  for j in range(num_blocks):
    x = Residual(sizes.multipliers[i] * sizes.width, sizes.groups, dtype, name=f"block{i}_{j}")(x)
    if i in sizes.attention:
      x = Attention(sizes.groups, dtype, name=f"attention{i}_{j}")(x)
  return x


def _middle(x: jax.Array, groups: int, dtype: Any) -> jax.Array:
  x = Residual(x.shape[-1], groups, dtype, name="middle0")(x)
  x = Attention(groups, dtype, name="middle_attention")(x)
  return Residual(x.shape[-1], groups, dtype, name="middle1")(x)


class Encoder(nn.Module):
  """Images [N, H, W, C] -> [N, H / 2^k, W / 2^k, features], float32; k + 1 levels.

  Attributes:
    features: of a position, those of a code.
  """

  features: int
  sizes: Sizes = Sizes()
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Encodes."""
    s, how = self.sizes, {"dtype": self.dtype}
    x = _conv(s.width, x, 3, "first", **how)
    for i in range(len(s.multipliers)):
      x = _level(x, i, s.num_blocks, s, self.dtype)
      if i + 1 < len(s.multipliers):  # padded at the bottom and on the right only
        pads = ((0, 1), (0, 1))
        x = _conv(x.shape[-1], x, 3, f"down{i}", strides=2, padding=pads, **how)
    x = _middle(x, s.groups, self.dtype)
    x = nn.swish(norm.GroupNorm(s.groups, name="norm", **how)(x))
    x = _conv(s.z_width, x, 3, "last", **how)
    return _conv(self.features, x, 1, "to_codes", **how).astype(jnp.float32)


class Decoder(nn.Module):
  """Maps [N, h, w, features] -> [N, 2^k h, 2^k w, width], of which `Last` makes images."""

  sizes: Sizes = Sizes()
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, z: jax.Array) -> jax.Array:
    """Decodes."""
    s, how = self.sizes, {"dtype": self.dtype}
    x = _conv(s.z_width, z, 1, "from_codes", **how)
    x = _conv(s.multipliers[-1] * s.width, x, 3, "first", **how)
    x = _middle(x, s.groups, self.dtype)
    for i in reversed(range(len(s.multipliers))):
      x = _level(x, i, s.num_blocks + 1, s, self.dtype)
      if i:
        starts = {"kernel_init": init.torch(), "bias_init": init.torch_bias(9 * x.shape[-1])}
        x = fold.UpConv(x.shape[-1], name=f"up{i}", **starts, **how)(x)
    return nn.swish(norm.GroupNorm(s.groups, name="norm", **how)(x))


class Last(nn.Module):
  """The convolution that ends the decoder: [N, H, W, width] -> images, unbounded, float32."""

  channels: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Makes the image."""
    return _conv(self.channels, x, 3, "conv", dtype=self.dtype).astype(jnp.float32)
