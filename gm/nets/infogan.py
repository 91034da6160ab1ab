"""InfoGAN's networks (arXiv:1606.03657): DCGAN's generator on a dense layer, a trunk, its heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from gm.nets import dcgan
from gm.nn import conv, norm
from gm.nn import init as inits

_normal = inits.normal(0.02)


def _norm(x: jax.Array, train: bool, dtype: Any) -> jax.Array:
  """Batch normalisation whose scales start as N(1, 0.02^2)."""
  return norm.BatchNorm(scale_init=inits.normal(0.02, mean=1.0), dtype=dtype)(x, train)


def depth(image: tuple[int, int], start: int) -> int:
  """How often a map doubles from `start` pixels on its short side to the image."""
  return len(dcgan.sizes(image, start=start)) - 1


class Generator(nn.Module):
  """Latents [B, Z] -> images [B, *shape] in [0, 1]: a dense layer, and DCGAN's generator on it."""

  shape: tuple[int, int, int]
  base: int = 64
  hidden: int = 1024
  start: int = 7
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, z: jax.Array, train: bool = True) -> jax.Array:
    """Generates from z."""
    x = nn.Dense(self.hidden, kernel_init=_normal, dtype=self.dtype)(z)
    return dcgan.Generator(
      self.shape,
      base=self.base,
      start=self.start,
      use_bias=True,
      first="dense",
      output="sigmoid",
      dtype=self.dtype,
    )(nn.relu(_norm(x, train, self.dtype)), train)


class Trunk(nn.Module):
  """What D and Q share: images [B, H, W, C] in [0, 1] -> [B, hidden]; no norm at first.

  Its convolutions halve the maps as often as G doubles them.
  """

  base: int = 64
  hidden: int = 1024
  start: int = 7
  slope: float = 0.01
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
    """Computes the features."""
    cut = nn.initializers.truncated_normal(0.02)  # at 2 deviations, as TensorFlow does
    for i in range(depth(x.shape[1:3], self.start)):
      x = conv.Conv(self.base * 2**i, 4, 2, kernel_init=cut, dtype=self.dtype)(x)
      x = nn.leaky_relu(_norm(x, train, self.dtype) if i else x, self.slope)
    x = nn.Dense(self.hidden, kernel_init=_normal, dtype=self.dtype)(x.reshape(len(x), -1))
    return nn.leaky_relu(_norm(x, train, self.dtype), self.slope)


class FlatTrunk(nn.Module):
  """The same of dense layers for points or images [B, ...] -> [B, widths[-1]], without norm."""

  widths: tuple[int, ...]
  slope: float = 0.2
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
    """Computes the features."""
    x = x.reshape(len(x), -1)
    for width in self.widths:
      x = nn.leaky_relu(nn.Dense(width, dtype=self.dtype)(x), self.slope)
    return x


class Head(nn.Module):
  """Features [B, F] -> [B, outputs], float32, through one layer of `hidden` units if any."""

  outputs: int = 1
  hidden: int = 0
  slope: float = 0.01
  kernel_init: Callable = _normal
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
    """Reads the features."""
    if self.hidden:
      x = nn.Dense(self.hidden, kernel_init=self.kernel_init, dtype=self.dtype)(x)
      x = nn.leaky_relu(_norm(x, train, self.dtype), self.slope)
    x = nn.Dense(self.outputs, kernel_init=self.kernel_init, dtype=self.dtype)(x)
    return x.astype(jnp.float32)
