"""StyleGAN2's networks (arXiv:1912.04958): mapping, skip synthesis, residual discriminator.

The mapping network turns z into a latent w, of which each layer of the synthesis network takes one:
2 log2(size) - 2 of them. Its style, an affine function of w, scales the channels of that layer's
input. All weights have an equalised learning rate; resampling is by the FIR filter [1, 3, 3, 1].

Channels at a resolution: min(base / size, most); base is 32768 for the published networks ("F"),
16384 for those of half the width, most 512.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from gm.nn import equalized, init, minibatch, modulated, norm, resample


def sizes(size: int) -> list[int]:
  """Returns the resolutions from 4 up to `size`.

  Raises:
    ValueError: if size is not a power of two of at least 4.

  >>> sizes(32)
  [4, 8, 16, 32]
  """
  if size < 4 or size & (size - 1):
    raise ValueError(
      f"images of {size} pixels are no power of two of at least 4: set --config.data.image_size"
    )
  return [4 * 2**i for i in range(size.bit_length() - 2)]


def channels(size: int, *, base: int, most: int) -> int:
  """Channels of the maps of a resolution.

  >>> [channels(s, base=32768, most=512) for s in (4, 64, 128, 1024)]
  [512, 512, 256, 32]
  """
  return max(1, min(base // size, most))


def num_latents(size: int) -> int:
  """How many latents w the synthesis network of a resolution takes.

  >>> num_latents(32), num_latents(1024)
  (8, 18)
  """
  return 2 * len(sizes(size))


def num_noise(size: int) -> int:
  """How many numbers of noise the synthesis network of a resolution takes for an image.

  One for each pixel of its layers: one layer at 4 pixels, two at every other resolution.

  >>> num_noise(8)
  144
  """
  return sum(n * n for n in _noise_sides(size))


def _noise_sides(size: int) -> list[int]:
  return [4] + [n for n in sizes(size)[1:] for _ in range(2)]


def mix(key: jax.Array, first: jax.Array, second: jax.Array, num: int, *, prob: float) -> jax.Array:
  """Style mixing: layers from a random one on take the second latents, in one batch of 1 / prob.

  Args:
    key: PRNG key.
    first: w of the early layers, [B, D].
    second: w of the later ones.
    num: layers that take a latent; the first of the later ones is uniform in 1, ..., num - 1.
    prob: that there is a second latent at all; one coin for the batch.

  Returns:
    [B, num, D].

  Source: Karras et al., 2019, arXiv:1812.04948, section 3.1.

  >>> mix(jax.random.key(0), jnp.zeros((1, 1)), jnp.ones((1, 1)), 2, prob=1.0).ravel().tolist()
  [0.0, 1.0]
  """
  coin, place = jax.random.uniform(key, (2,))
  cut = jnp.where(coin < prob, 1 + jnp.floor(place * (num - 1)), num)
  early = (jnp.arange(num) < cut)[:, None]
  return jnp.where(early, first[:, None], second[:, None])


def truncate(ws: jax.Array, mean: jax.Array, psi: float) -> jax.Array:
  """Pulls latents towards their mean, mean + psi (w - mean): better images, less variety.

  >>> truncate(jnp.array([[3.0]]), jnp.array([1.0]), 0.5).item()
  2.0
  """
  return mean + psi * (ws - mean)


class Mapping(nn.Module):
  """z [B, Z] -> w [B, features], float32: z normalised, then dense layers.

  Attributes:
    features: of every layer.
    layers: their number.
    lr_mult: their learning rate over that of all else.
  """

  features: int = 512
  layers: int = 8
  lr_mult: float = 0.01
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, z: jax.Array) -> jax.Array:
    """Maps z."""
    x = norm.pixel_norm(z.astype(jnp.float32))
    for i in range(self.layers):
      layer = equalized.Dense(
        self.features, lr_mult=self.lr_mult, dtype=self.dtype, name=f"dense_{i}"
      )
      x = equalized.lrelu(layer(x))
    return x.astype(jnp.float32)


class StyledConv(nn.Module):
  """Modulated convolution, noise of a learned strength, bias, leaky ReLU."""

  features: int
  resampling: str = "none"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, latent: jax.Array, noise: jax.Array | None) -> jax.Array:
    """[B, H, W, I], w [B, D], noise [B or 1, P, Q, 1] -> [B, P, Q, features]."""
    conv = modulated.ModulatedConv(
      self.features, resampling=self.resampling, dtype=self.dtype, name="conv"
    )
    x = conv(x, latent)
    strength = self.param("noise_strength", init.constant(0.0), (), jnp.float32)
    if noise is not None:
      x = x + (strength * noise).astype(self.dtype)
    x = x + equalized.bias(self, self.features).astype(self.dtype)
    return equalized.lrelu(x)


class Synthesis(nn.Module):
  """Latents [B, num_latents, D] -> images [B, size, size, C], float32, linear: not bounded.

  Every resolution adds its own picture to the upsampled sum of the smaller ones.

  Attributes:
    size: of the images.
    image_channels: C.
    base, most: of `channels`.
  """

  size: int
  image_channels: int
  base: int = 32768
  most: int = 512
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, ws: jax.Array, noise: jax.Array | None = None) -> jax.Array:
    """Generates.

    Args:
      ws: [B, num_latents, D].
      noise: N(0, 1), [B or 1, num_noise], for each image or the same for all; None: without.
    """
    sides = _noise_sides(self.size)
    maps = [None] * len(sides)
    if noise is not None:
      maps = jnp.split(noise, np.cumsum([n * n for n in sides[:-1]]), 1)
      maps = [part.reshape(-1, n, n, 1) for part, n in zip(maps, sides, strict=True)]
    width = lambda size: channels(size, base=self.base, most=self.most)

    def layer(x, index, name, size, resampling="none"):
      block = StyledConv(width(size), resampling=resampling, dtype=self.dtype, name=name)
      return block(x, ws[:, index], maps[index])

    def to_rgb(x, index, size):
      one = modulated.ModulatedConv(
        self.image_channels, 1, demodulate=False, dtype=self.dtype, name=f"to_rgb_{size}"
      )
      bias = self.param(f"rgb_bias_{size}", init.constant(0.0), (self.image_channels,), jnp.float32)
      return one(x, ws[:, index]).astype(jnp.float32) + bias

    start = self.param("const", init.normal(1.0), (4, 4, width(4)), jnp.float32)
    x = jnp.broadcast_to(start, (ws.shape[0], *start.shape)).astype(self.dtype)
    x = layer(x, 0, "conv_4", 4)
    image = to_rgb(x, 1, 4)
    for i, size in enumerate(sizes(self.size)[1:]):
      x = layer(x, 2 * i + 1, f"up_{size}", size, "up")
      x = layer(x, 2 * i + 2, f"conv_{size}", size)
      image = resample.upsample(image) + to_rgb(x, 2 * i + 3, size)
    return image


class Discriminator(nn.Module):
  """Images [B, size, size, C] -> logits [B], float32; residual blocks.

  Attributes:
    size: of the images.
    base, most: of `channels`.
    stddev_group: samples that the minibatch standard deviation compares; 0: all.
  """

  size: int
  base: int = 32768
  most: int = 512
  stddev_group: int = 4
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, image: jax.Array, sets: int = 1) -> jax.Array:
    """Scores images.

    Args:
      image: [B, size, size, C].
      sets: batches that lie in it in turns, each compared within itself: with 2 it is real, fake,
        real, fake, ..., and the logits are those of real and of fake alone.
    """
    width = lambda size: channels(size, base=self.base, most=self.most)

    def conv(x, size, name, **options):
      return equalized.Conv(width(size), dtype=self.dtype, name=name, **options)(x)

    x = equalized.lrelu(conv(image.astype(self.dtype), self.size, "from_rgb", kernel_size=1))
    for size in sizes(self.size)[:0:-1]:
      skip = conv(x, size // 2, f"skip_{size}", kernel_size=1, resampling="down", use_bias=False)
      x = equalized.lrelu(conv(x, size, f"conv_{size}"))
      x = conv(x, size // 2, f"down_{size}", resampling="down")
      x = equalized.lrelu(x, gain=1.0) + skip / math.sqrt(2)  # sqrt 2 / sqrt 2: the sum's variance
    n = x.shape[0] // sets
    # the members of a group are a multiple of `sets` apart
    x = minibatch.stddev(x, group=min(self.stddev_group or n, n))
    x = equalized.lrelu(conv(x, 4, "conv_4")).reshape(x.shape[0], -1)
    x = equalized.lrelu(equalized.Dense(width(4), dtype=self.dtype, name="dense")(x))
    return equalized.Dense(1, dtype=self.dtype, name="last")(x)[:, 0].astype(jnp.float32)
