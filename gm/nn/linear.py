"""Dense layers that Flax does not have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


class Maxout(nn.Module):
  """y_j = max_k (x W + b)_{j, k}, k over `pieces` linear maps (arXiv:1302.4389).

  Parameters are those of one dense layer to features * pieces; the pieces of a unit are neighbours.
  """

  features: int
  pieces: int
  kernel_init: Callable = nn.initializers.lecun_normal()
  bias_init: Callable = nn.initializers.zeros
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., I] -> [..., features]."""
    y = nn.Dense(
      self.features * self.pieces,
      kernel_init=self.kernel_init,
      bias_init=self.bias_init,
      dtype=self.dtype,
      name="dense",
    )(x)
    return y.reshape(*y.shape[:-1], self.features, self.pieces).max(-1)
