"""A small classifier of digits, for class counts and distances in feature space."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from gm.nn import conv


class DigitClassifier(nn.Module):
  """Images [B, H, W, C] -> logits [B, num_classes] and features [B, num_features], float32.

  Two 5x5 convolutions of stride 2 and one dense layer; the features are its ReLUs. Any size of
  image, but the dense layer's weights are of one; with `maps` it is not reached, and what is
  returned are the convolutions' ReLUs, two maps [B, h, w, base] and [B, h / 2, w / 2, 2 base].
  """

  num_classes: int = 10
  num_features: int = 128
  base: int = 32
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, maps: bool = False) -> tuple[jax.Array, jax.Array]:
    """Classifies x."""
    he, seen = nn.initializers.he_normal(), []
    for width in (self.base, 2 * self.base):
      x = nn.relu(conv.Conv(width, 5, 2, kernel_init=he, dtype=self.dtype)(x))
      seen.append(x.astype(jnp.float32))
    if maps:
      return tuple(seen)
    x = x.reshape(x.shape[0], -1)
    features = nn.relu(nn.Dense(self.num_features, kernel_init=he, dtype=self.dtype)(x))
    logits = nn.Dense(self.num_classes, dtype=self.dtype)(features)
    return logits.astype(jnp.float32), features.astype(jnp.float32)
