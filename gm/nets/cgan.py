"""How a label enters a network that knows none: joined with the input, as a row or by a path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from gm.nn import init as inits
from gm.nn import linear


class Embedding(nn.Module):
  """net([x, E y]): the input, flat, joined with a trainable row for each class, N(0, 1) at first.

  Attributes:
    net: [B, N + features] -> anything.
    features: length of a row.
  """

  net: nn.Module
  features: int = 10
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, y: jax.Array, train: bool = True) -> jax.Array:
    """Computes net of x [B, ...] and one-hot labels y [B, K]."""
    table = nn.Dense(
      self.features,
      use_bias=False,
      kernel_init=inits.normal(1.0),
      dtype=self.dtype,
      name="embedding",
    )
    return self.net(jnp.concatenate([x.reshape(len(x), -1), table(y)], axis=1), train)


class Paths(nn.Module):
  """net([h(x), h(y)]): both inputs pass a hidden layer of their own first.

  Attributes:
    net: [B, sum of widths] -> anything.
    widths: of the layers for x and for y.
    pieces: 1 makes them rectified, more maxout over so many linear maps.
  """

  net: nn.Module
  widths: Sequence[int] = (200, 1000)
  pieces: int = 1
  kernel_init: Any = nn.initializers.lecun_normal()
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, y: jax.Array, train: bool = True) -> jax.Array:
    """Computes net of x [B, ...] and one-hot labels y [B, K]."""
    options = {"kernel_init": self.kernel_init, "dtype": self.dtype}
    both = []
    for v, width, name in ((x, self.widths[0], "of_x"), (y, self.widths[1], "of_y")):
      v = v.reshape(len(v), -1)
      if self.pieces > 1:
        both.append(linear.Maxout(width, self.pieces, name=name, **options)(v))
      else:
        both.append(nn.relu(nn.Dense(width, name=name, **options)(v)))
    return self.net(jnp.concatenate(both, axis=1), train)
