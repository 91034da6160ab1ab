"""Labels as vectors, and what a discriminator does with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


def rows(table: jax.Array, labels: jax.Array) -> jax.Array:
  """Looks rows up: table [K, F], labels [...] -> [..., F]; a label outside 0 ... K - 1 gives NaN.

  >>> rows(jnp.array([[1.0], [2.0]]), jnp.array([1, -1, 2])).ravel().tolist()
  [2.0, nan, nan]
  """
  # as an index -1 is the last row; as a label it says that there is none
  look_up = table.at[labels].get
  return look_up(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)


def one_hot(labels: jax.Array, num_classes: int) -> jax.Array:
  """Labels [...] as f32 [..., num_classes] of 0 and 1; one outside 0 ... num_classes - 1 gives NaN.

  >>> one_hot(jnp.array([1, -1, 2]), 2).tolist()
  [[0.0, 1.0], [nan, nan], [nan, nan]]
  """
  known = (labels >= 0) & (labels < num_classes)
  return jnp.where(known[..., None], jax.nn.one_hot(labels, num_classes), jnp.nan)


def tiled(x: jax.Array, told: jax.Array) -> jax.Array:
  """Joins a row with every pixel: x [B, H, W, C], told [B, A] -> [B, H, W, C + A].

  >>> tiled(jnp.zeros((1, 1, 2, 1)), jnp.array([[3.0, 4.0]])).tolist()
  [[[[0.0, 3.0, 4.0], [0.0, 3.0, 4.0]]]]
  """
  rows = jnp.broadcast_to(told[:, None, None].astype(x.dtype), (*x.shape[:3], told.shape[-1]))
  return jnp.concatenate([x, rows], axis=-1)


class Embed(nn.Module):
  """A table of vectors: labels [...] -> [..., features]; a label outside the table gives NaN.

  Rows are gathered: a product with one-hot labels would read the whole table.

  >>> embed = Embed(3, 2, embedding_init=lambda key, shape: jnp.arange(6.0).reshape(shape))
  >>> embed.init_with_output(jax.random.key(0), jnp.array([2, 0]))[0].tolist()
  [[4.0, 5.0], [0.0, 1.0]]
  """

  num_embeddings: int
  features: int
  embedding_init: Callable = nn.initializers.normal(1.0)
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, labels: jax.Array) -> jax.Array:
    """Looks the labels up."""
    table = self.param("embedding", self.embedding_init, (self.num_embeddings, self.features))
    return rows(table, labels).astype(self.dtype)


class ProjectionHead(nn.Module):
  """The last layer of a discriminator: features h [B, F], labels [B] -> logits [B], float32.

  w.h + b + <embed(y), h>; without classes the first two terms alone.

  Source: Miyato and Koyama, 2018, arXiv:1802.05637, equation 3.
  """

  num_classes: int = 0
  use_bias: bool = True
  kernel_init: Callable = nn.initializers.glorot_uniform()
  bias_init: Callable = nn.initializers.zeros
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, h: jax.Array, labels: jax.Array | None = None) -> jax.Array:
    """Scores h.

    Raises:
      ValueError: if there are classes and no labels.
    """
    logits = nn.Dense(
      1,
      use_bias=self.use_bias,
      kernel_init=self.kernel_init,
      bias_init=self.bias_init,
      dtype=self.dtype,
      name="dense",
    )(h)[:, 0]
    if self.num_classes:
      if labels is None:
        raise ValueError(
          f"a discriminator of {self.num_classes} classes needs labels: choose data that have them"
          " (--config.data), or set --config.model.conditional=False"
        )
      embed = Embed(
        self.num_classes,
        h.shape[-1],
        embedding_init=self.kernel_init,
        dtype=self.dtype,
        name="embed",
      )
      logits = logits + jnp.sum(embed(labels) * h.astype(self.dtype), -1)
    return logits.astype(jnp.float32)
