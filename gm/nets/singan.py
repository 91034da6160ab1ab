"""The networks of SinGAN (Rott Shaham et al., ICCV 2019, arXiv:1905.01164), and their pyramid.

Each level has a generator and a discriminator of five 3 x 3 convolutions that see 11 x 11 pixels.
Nothing is padded inside, so a map loses 5 pixels on every side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from gm.nn import conv, init, norm

LAYERS = 5
BORDER = LAYERS  # pixels that a map loses on every side
ROUNDING = 1e-3  # of a level of grey: what is whole but for rounding is not cut to the one below


def pyramid(
  size: tuple[int, int], *, least: int = 25, most: int = 250, factor: float = 0.75
) -> list[tuple[int, int]]:
  """Returns the sizes of the levels, coarsest first, as the authors' code chooses them.

  Args:
    size: (height, width) of the picture.
    least: pixels of the shorter side at the coarsest level; rounding may add one.
    most: pixels of the longer side at the finest; larger pictures are made so small.
    factor: from level to level, about; it is changed so that the levels come out even.

  Raises:
    ValueError: if the picture is too small for two levels.

  >>> pyramid((64, 64)), len(pyramid((384, 512))), pyramid((188, 250))[0]
  ([(25, 25), (31, 31), (37, 37), (44, 44), (54, 54), (64, 64)], 9, (26, 34))
  """
  if min(size) * min(most / max(size), 1.0) <= least:
    raise ValueError(
      f"a picture of {size[0]}x{size[1]} pixels, at most {most} wide and high, has no level above"
      f" that of {least}: raise --config.data.image_size or --config.model.max_size, or lower"
      " --config.model.min_size"
    )
  count = math.ceil(math.log(least / min(size), factor)) + 1
  count -= math.ceil(math.log(min(most, max(size)) / max(size), factor))
  whole = min(most / max(size), 1.0)
  top = tuple(math.ceil(whole * n) for n in size)
  ratio = (least / min(top)) ** (1 / count)
  return [tuple(math.ceil(ratio ** (count - i) * n) for n in top) for i in range(count + 1)]


def resize(x: jax.Array, size: Sequence[int], *, quantise: bool = True) -> jax.Array:
  """Images in another size, bicubic, antialiased where they shrink; a constant to autodiff.

  Args:
    x: [N, H, W, C] in [-1, 1].
    size: (height, width).
    quantise: clip and cut to 8 bits first, as the authors' code does.

  >>> resize(jnp.full((1, 2, 2, 1), 9.0), (1, 3))[0, 0, :, 0].round(3).tolist()
  [1.0, 1.0, 1.0]
  """
  if quantise:
    x = jnp.floor(127.5 * (jnp.clip(x, -1, 1) + 1) + ROUNDING) / 127.5 - 1
  return jax.lax.stop_gradient(jax.image.resize(x, (len(x), *size, x.shape[3]), "cubic"))


class Layers(nn.Module):
  """Maps [N, H, W, C] -> [N, H - 10, W - 10, features]: all layers but the last with batch norm.

  Attributes:
    features: of the result.
    width: channels of the layers between.
  """

  features: int
  width: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Convolves."""

    def layer(x, features, name):
      bias = init.torch_bias(9 * x.shape[-1])
      how = {"padding": "VALID", "kernel_init": init.normal(0.02), "bias_init": bias}
      return conv.Conv(features, 3, name=name, dtype=self.dtype, **how)(x)

    for i in range(LAYERS - 1):
      x = layer(x, self.width, f"conv{i}")
      normed = norm.BatchNorm(
        scale_init=init.normal(0.02, mean=1.0), name=f"norm{i}", dtype=self.dtype
      )
      x = nn.leaky_relu(normed(x, train), 0.2)
    return layer(x, self.features, "last").astype(jnp.float32)


class Generator(nn.Module):
  """What a level adds to an image: tanh of the layers on x, and the image.

  x [N, H + 10, W + 10, C] is the image and noise with zeros around; image [N, H, W, C], or larger
  and then without its border; result [N, H, W, C], float32, not clipped.
  """

  width: int = 32
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, image: jax.Array, train: bool) -> jax.Array:
    """Adds detail."""
    y = jnp.tanh(Layers(x.shape[-1], self.width, self.dtype, name="layers")(x, train))
    cut = [(m - n) // 2 for m, n in zip(image.shape[1:3], y.shape[1:3])]
    return y + image[:, cut[0] : cut[0] + y.shape[1], cut[1] : cut[1] + y.shape[2]]


class Discriminator(nn.Module):
  """Images [N, H, W, C] -> scores of their patches [N, H - 10, W - 10], float32."""

  width: int = 32
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
    """Scores."""
    return Layers(1, self.width, self.dtype, name="layers")(x, train)[..., 0]
