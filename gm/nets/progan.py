"""ProGAN's networks (arXiv:1710.10196), which are extended by one resolution at a time.

| pixels | 4 | 8 | 16 | 32 | 64 | 128 | 256 | 512 | 1024 |
|---|---|---|---|---|---|---|---|---|---|
| channels, base=8192, most=512 | 512 | 512 | 512 | 512 | 256 | 128 | 64 | 32 | 16 |

A network of a size has all blocks and all 1x1 layers from and to pixels up to that size, under
names that do not depend on it (`up_8`, `to_rgb_8`), so the parameters of a smaller one are part of
those of a larger one. While a size is faded in, the share `old` of the smaller network's output
falls from 1 to 0; otherwise layers to and from smaller images have no gradient.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from gm.nn import equalized, minibatch, norm, resample

HE = math.sqrt(2)  # gain of a layer that a leaky ReLU follows


def sizes(size: int) -> list[int]:
  """Returns the resolutions from 4 up to `size`.

  Raises:
    ValueError: if size is not 4 times a power of two.

  >>> sizes(32)
  [4, 8, 16, 32]
  """
  found = [4 * 2**i for i in range(max(1, size.bit_length() - 2))]
  if found[-1] != size:
    raise ValueError(
      f"images of {size} pixels cannot be grown from 4 by doubling: set --config.data.image_size to"
      " 4, 8, 16, 32 or another power of two"
    )
  return found


def channels(size: int, *, base: int, most: int) -> int:
  """Channels of the maps of a resolution: min(base / (size / 2), most), at least 1.

  >>> [channels(s, base=8192, most=512) for s in (4, 32, 64, 1024)]
  [512, 512, 256, 16]
  """
  return max(1, min(2 * base // size, most))


def _lrelu(x: jax.Array) -> jax.Array:
  return nn.leaky_relu(x, 0.2)


def _mix(new: jax.Array, old: jax.Array, share: jax.Array) -> jax.Array:
  return new + share.astype(new.dtype) * (old - new)


class Generator(nn.Module):
  """z [B, Z] -> images [B, size, size, C], float32, linear: not bounded.

  Attributes:
    size: of the images.
    image_channels: C.
    base, most: of `channels`.
  """

  size: int
  image_channels: int
  base: int = 8192
  most: int = 512
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, z: jax.Array, old: jax.Array | None = None) -> jax.Array:
    """Generates from z; `old` is the share of the next smaller network, if there is one."""
    width = lambda size: channels(size, base=self.base, most=self.most)
    activate = lambda x: norm.pixel_norm(_lrelu(x))
    to_rgb = lambda size: equalized.Conv(
      self.image_channels, 1, dtype=self.dtype, name=f"to_rgb_{size}"
    )

    def block(x, name, resampling="none"):
      size = int(name.split("_")[1])
      return activate(
        equalized.Conv(width(size), resampling=resampling, gain=HE, dtype=self.dtype, name=name)(x)
      )

    z = norm.pixel_norm(z.astype(self.dtype))
    # a gain 4 times smaller: as if it were a 4x4 convolution that sees z on one of 16 pixels
    first = equalized.Dense(
      16 * width(4), gain=HE / 4, use_bias=False, dtype=self.dtype, name="first"
    )
    x = first(z).reshape(-1, 4, 4, width(4))
    x = block(activate(x + equalized.bias(self, width(4)).astype(self.dtype)), "conv_4")
    below = None  # the maps of the next smaller size
    for size in sizes(self.size)[1:]:
      if self.is_initializing():
        to_rgb(size // 2)(x)
      below, x = x, block(block(x, f"up_{size}", "nearest"), f"conv_{size}")
    image = to_rgb(self.size)(x)
    if old is not None and below is not None:
      image = _mix(image, resample.nearest(to_rgb(self.size // 2)(below)), old)
    return image.astype(jnp.float32)


class Discriminator(nn.Module):
  """Images [B, size, size, C] -> scores [B], float32.

  Attributes:
    size: of the images.
    base, most: of `channels`.
    stddev_group: samples that the minibatch standard deviation compares; 0: all.
  """

  size: int
  base: int = 8192
  most: int = 512
  stddev_group: int = 4
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, image: jax.Array, old: jax.Array | None = None) -> jax.Array:
    """Scores images; `old` is the share of the next smaller network, if there is one."""
    width = lambda size: channels(size, base=self.base, most=self.most)

    def layer(x, size, name, kernel=3, resampling="none"):
      return _lrelu(
        equalized.Conv(
          width(size), kernel, resampling=resampling, gain=HE, dtype=self.dtype, name=name
        )(x)
      )

    from_rgb = lambda image, size: layer(image, size, f"from_rgb_{size}", kernel=1)
    image = image.astype(self.dtype)
    x = from_rgb(image, self.size)
    for size in sizes(self.size)[:0:-1]:
      x = layer(x, size, f"conv_{size}")
      x = layer(x, size // 2, f"down_{size}", resampling="mean")
      if self.is_initializing():
        from_rgb(resample.mean_pool(image, factor=2 * self.size // size), size // 2)
      if old is not None and size == self.size:
        x = _mix(x, from_rgb(resample.mean_pool(image), size // 2), old)
    x = layer(minibatch.stddev(x, group=self.stddev_group), 4, "conv_4")
    x = x.reshape(x.shape[0], -1)
    x = _lrelu(equalized.Dense(width(2), gain=HE, dtype=self.dtype, name="dense")(x))
    return equalized.Dense(1, dtype=self.dtype, name="last")(x)[:, 0].astype(jnp.float32)
