"""Networks of the game between an attack and a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from gm.nn import conv


class Classifier(nn.Module):
  """Images [B, H, W, C] -> logits [B, num_classes], float32.

  Convolutions of 5 x 5, each followed by a ReLU and half the resolution, and one dense layer.

  Attributes:
    num_classes: K.
    widths: of the convolutions.
    features: of the dense layer.
    pool: halve by the largest of 2 x 2, as Madry et al., not by a stride of 2, which is quicker.
    dropout: rate at the dense layer's input and output, in training, which then needs
      `rngs={"dropout": key}`.
  """

  num_classes: int
  widths: Sequence[int] = (32, 64)
  features: int = 1024
  pool: bool = True
  dropout: float = 0.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Classifies x."""
    he, drop = nn.initializers.he_normal(), nn.Dropout(self.dropout, deterministic=not train)
    for width in self.widths:
      stride = 1 if self.pool else 2
      x = nn.relu(conv.Conv(width, 5, stride, kernel_init=he, dtype=self.dtype)(x))
      if self.pool:
        x = nn.max_pool(x, (2, 2), (2, 2), "SAME")
    x = drop(x.reshape(len(x), -1))
    x = drop(nn.relu(nn.Dense(self.features, kernel_init=he, dtype=self.dtype)(x)))
    return nn.Dense(self.num_classes, dtype=self.dtype)(x).astype(jnp.float32)


class Perturber(nn.Module):
  """What it is shown [B, H, W, I] -> a direction for every pixel [B, H, W, channels], float32.

  U-shaped: twice to half the resolution, a residual block there, and back beside what was before.
  At the full resolution each pixel of what is shown is added by itself, as a convolution there
  would take most of the time. Zero at the start.

  Attributes:
    channels: of the image that is perturbed.
    base: width at half the resolution, doubled at a quarter.
  """

  channels: int
  base: int = 16
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Finds directions."""
    act, shown = nn.leaky_relu, x.astype(self.dtype)
    he, zeros = nn.initializers.he_normal(), nn.initializers.zeros
    layer = {"kernel_init": he, "dtype": self.dtype}

    def up(x, width, like, init=he):  # an odd side was rounded up on the way down
      x = conv.ConvTranspose(width, 4, 2, kernel_init=init, dtype=self.dtype)(x)
      return x[:, : like.shape[1], : like.shape[2]]

    half = act(conv.Conv(self.base, 4, 2, **layer)(shown))
    quarter = act(conv.Conv(2 * self.base, 4, 2, **layer)(half))
    within = act(conv.Conv(2 * self.base, 3, **layer)(quarter))
    quarter = quarter + conv.Conv(2 * self.base, 3, **layer)(within)
    x = jnp.concatenate([act(up(act(quarter), self.base, half)), half], axis=-1)
    alone = conv.Conv(self.channels, 1, kernel_init=zeros, dtype=self.dtype)(shown)
    return (up(x, self.channels, shown, zeros) + alone).astype(jnp.float32)
