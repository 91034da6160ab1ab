"""LSGAN's networks (arXiv:1611.04076): strides as listed, labels by a linear map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from gm.nets import mlp
from gm.nn import conv, norm
from gm.nn import init as inits

OF_DENSE = {"kernel_init": inits.normal(0.02)}  # and of transposed convolutions
OF_CONV = {"kernel_init": nn.initializers.truncated_normal(0.02)}  # cut at 2 standard deviations


def first_size(shape: tuple[int, int, int], strides: Sequence[int]) -> tuple[int, int]:
  """Returns the size of the first map, from which the strides lead up to the image.

  Raises:
    ValueError: if there is none.

  >>> first_size((112, 224, 3), (2, 1, 2, 1, 2, 2, 1))
  (7, 14)
  """
  factor = math.prod(strides)
  if shape[0] % factor or shape[1] % factor:
    raise ValueError(
      f"images of {shape[0]}x{shape[1]} pixels are no multiple of {factor}, the product of the"
      f" strides {tuple(strides)}: change --config.data.image_size or --config.model.g_strides"
    )
  return shape[0] // factor, shape[1] // factor


class Generator(nn.Module):
  """z [B, Z] and one-hot labels [B, K] -> images [B, *shape], float32.

  A dense layer makes the first map, transposed convolutions all others, each followed by batch norm
  and ReLU but the last.

  Attributes:
    shape: (H, W, C).
    first: channels of the first map.
    widths: of the maps between the first and the image.
    strides: one more than widths.
    per_feature: the first batch norm is of features, pixels apart; else of channels.
    norm: none, batch or layer.
    output: tanh, sigmoid or none.
    embed: length of the linear map of the label that is joined to z; 0: no labels.
  """

  shape: tuple[int, int, int]
  first: int = 256
  widths: Sequence[int] = (256, 256, 256, 256, 128, 64)
  strides: Sequence[int] = (2, 1, 2, 1, 2, 2, 1)
  kernel: int = 3
  per_feature: bool = False
  norm: str = "batch"
  output: str = "tanh"
  embed: int = 0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, z: jax.Array, train: bool = True, y: jax.Array | None = None) -> jax.Array:
    """Generates from z, and y where there are labels."""
    height, width = first_size(self.shape, self.strides)
    options = {**OF_DENSE, "dtype": self.dtype}
    layer = lambda x: nn.relu(
      norm.layer(self.norm, scale_init=inits.constant(1.0), dtype=self.dtype)(x, train)
    )
    if self.embed:
      z = jnp.concatenate([z, nn.Dense(self.embed, name="label", **options)(y)], axis=1)
    x = nn.Dense(height * width * self.first, name="first", **options)(z)
    maps = lambda x: x.reshape(-1, height, width, self.first)
    x = maps(layer(x)) if self.per_feature else layer(maps(x))
    for i, (features, stride) in enumerate(
      zip((*self.widths, self.shape[2]), self.strides, strict=True)
    ):
      x = conv.ConvTranspose(features, self.kernel, stride, name=f"up{i}", **options)(x)
      x = layer(x) if i < len(self.widths) else x
    return mlp.OUTPUTS[self.output](x.astype(jnp.float32))


class Discriminator(nn.Module):
  """Images [B, H, W, C] and one-hot labels [B, K] -> unbounded outputs [B], float32.

  Convolutions of stride 2, then dense layers, each followed by batch norm (but the first one) and
  LeakyReLU.

  Attributes:
    widths: of the convolutions.
    dense: of the hidden dense layers.
    norm: none, batch or layer.
    embed: length of the linear map of the label that is joined to every hidden layer; 0: no labels.
  """

  widths: Sequence[int] = (64, 128, 256, 512)
  dense: Sequence[int] = ()
  kernel: int = 5
  norm: str = "batch"
  embed: int = 0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = True, y: jax.Array | None = None) -> jax.Array:
    """Scores x, or the pair of x and y."""
    options = {**OF_DENSE, "dtype": self.dtype}
    normalize = lambda x: norm.layer(self.norm, scale_init=inits.constant(1.0), dtype=self.dtype)(
      x, train
    )
    e = nn.Dense(self.embed, name="label", **options)(y) if self.embed else None

    def join(x):  # to every pixel, where x is a map
      if e is None:
        return x
      rows = jnp.expand_dims(e, tuple(range(1, x.ndim - 1)))
      return jnp.concatenate([x, jnp.broadcast_to(rows, (*x.shape[:-1], self.embed))], axis=-1)

    for i, width in enumerate(self.widths):
      x = join(x) if i > 0 else x
      x = conv.Conv(width, self.kernel, 2, name=f"down{i}", **OF_CONV, dtype=self.dtype)(x)
      x = nn.leaky_relu(normalize(x) if i > 0 else x, 0.2)
    x = join(x.reshape(x.shape[0], -1))
    for i, width in enumerate(self.dense):
      x = nn.Dense(width, name=f"dense{i}", **options)(x)
      x = join(nn.leaky_relu(normalize(x), 0.2))
    return nn.Dense(1, name="last", **options)(x)[:, 0].astype(jnp.float32)
