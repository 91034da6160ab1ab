"""Inception-v3's trunk (Szegedy et al., 2015, arXiv:1512.00567), as torchvision lays it out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from gm.nn import conv, norm

SIDE = 299

# A branch is a list of convolutions (features, kernel), one after the other; those that halve the
# map have no padding. An entry that is a pair of convolutions has them side by side.
ROW, COLUMN, SPLIT = (1, 7), (7, 1), ((384, (1, 3)), (384, (3, 1)))


def _early(pooled: int) -> list:  # 35 x 35
  double = [(64, 1), (96, 3), (96, 3)]
  return [[(64, 1)], [(48, 1), (64, 5)], double, ["mean", (pooled, 1)]]


def _middle(inner: int) -> list:  # 17 x 17
  double = [(inner, 1), (inner, COLUMN), (inner, ROW), (inner, COLUMN), (192, ROW)]
  return [[(192, 1)], [(inner, 1), (inner, ROW), (192, COLUMN)], double, ["mean", (192, 1)]]


_LATE = [[(320, 1)], [(384, 1), SPLIT], [(448, 1), (384, 3), SPLIT], ["mean", (192, 1)]]  # 8 x 8
STEM = [(32, 3, 2, "VALID"), (32, 3, 1, "VALID"), (64, 3), "max"]
STEM += [(80, 1), (192, 3, 1, "VALID"), "max"]
MIXED = {
  "5b": _early(32),
  "5c": _early(64),
  "5d": _early(64),
  "6a": [[(384, 3, 2, "VALID")], [(64, 1), (96, 3), (96, 3, 2, "VALID")], ["max"]],
  "6b": _middle(128),
  "6c": _middle(160),
  "6d": _middle(160),
  "6e": _middle(192),
  "7a": [
    [(192, 1), (320, 3, 2, "VALID")],
    [(192, 1), (192, ROW), (192, COLUMN), (192, 3, 2, "VALID")],
    ["max"],
  ],
  "7b": _LATE,
  "7c": _LATE,
}


def resize(x: jax.Array, side: int = SIDE) -> jax.Array:
  """Bilinear, corners on corners (torch's align_corners): [B, H, W, C] -> [B, side, side, C].

  >>> resize(jnp.arange(2.0).reshape(1, 1, 2, 1).repeat(2, 1), 3)[0, 0, :, 0].tolist()
  [0.0, 0.5, 1.0]
  """
  scale = jnp.array([(side - 1) / (n - 1) for n in x.shape[1:3]])
  shape = (len(x), side, side, x.shape[-1])
  return jax.image.scale_and_translate(
    x, shape, (1, 2), scale, 0.5 - 0.5 * scale, "linear", antialias=False
  )


class _Unit(nn.Module):
  """Convolution without bias, batch norm, ReLU."""

  features: int
  kernel: Any
  strides: int = 1
  padding: str = "SAME"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = conv.Conv(
      self.features,
      self.kernel,
      self.strides,
      self.padding,
      use_bias=False,
      dtype=self.dtype,
      name="conv",
    )(x)
    return nn.relu(norm.BatchNorm(eps=1e-3, dtype=self.dtype, name="norm")(x, train))


class _Chain(nn.Module):
  """A branch."""

  layers: Sequence
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    unit = lambda name, spec: _Unit(*spec, dtype=self.dtype, name=name)
    for i, layer in enumerate(self.layers):
      if layer == "max":
        x = nn.max_pool(x, (3, 3), (2, 2))
      elif layer == "mean":  # padding counts
        x = nn.avg_pool(x, (3, 3), (1, 1), "SAME")
      elif isinstance(layer[0], Sequence):
        sides = [unit(f"conv{i}{side}", spec)(x, train) for side, spec in zip("ab", layer)]
        x = jnp.concatenate(sides, axis=-1)
      else:
        x = unit(f"conv{i}", layer)(x, train)
    return x


class Trunk(nn.Module):
  """Images [B, 299, 299, 3] -> the map [B, 17, 17, 768] of layer 6e, and means [B, 2048] of 7c."""

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
    """Runs; batch norms use their batch where `train`."""
    x = _Chain(STEM, self.dtype, name="stem")(x, train)
    for name, branches in MIXED.items():
      found = [
        _Chain(layers, self.dtype, name=f"mixed{name}_{i}")(x, train)
        for i, layers in enumerate(branches)
      ]
      x = jnp.concatenate(found, axis=-1)
      if name == "6e":
        middle = x
    return middle, x.mean((1, 2))
