"""Images as the vectors that a likelihood is of, and back. All is flat: [B, P] with P = H W C.

XLA's loops on a CPU are slow where the last axis has length 1, as that of grey images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

MIN_SHARE = 0.01  # of a pixel that was always or never on


def unit(image: jax.Array) -> jax.Array:
  """Images [B, H, W, C] in [-1, 1] as rows [B, P] in [0, 1].

  >>> unit(jnp.array([[[[-1.0], [1.0]]]])).tolist()
  [[0.0, 1.0]]
  """
  return (image.reshape(-1, math.prod(image.shape[1:])) + 1) / 2


def image(x: jax.Array, shape: Sequence[int]) -> jax.Array:
  """Rows [N, P] in [0, 1] as images [N, *shape] in [-1, 1].

  >>> image(jnp.array([[0.0, 1.0]]), (1, 2, 1)).ravel().tolist()
  [-1.0, 1.0]
  """
  return 2 * x.reshape(-1, *shape) - 1


def binarise(key: jax.Array, x: jax.Array) -> jax.Array:
  """Draws each pixel anew: 1 with probability x, else 0.

  Args:
    key: PRNG key.
    x: [B, P] in [0, 1]. 16 random bits a pixel suffice for what has 8: shares are exact to 2^-16.

  Returns:
    f32 [B, P] of 0 and 1.

  >>> binarise(jax.random.key(0), jnp.array([[0.0, 1.0, 1.0]])).tolist()
  [[0.0, 1.0, 1.0]]
  """
  num = x.shape[1]
  words = jax.random.bits(key, (len(x), -(-num // 2)))  # faster than to ask for uint16
  bits = jnp.concatenate([words >> 16, words & 0xFFFF], axis=1)[:, :num]
  return (bits.astype(jnp.float32) < x * 65_536).astype(jnp.float32)


def log_odds(image: jax.Array) -> jax.Array:
  """Logits of how often each pixel is on, where a decoder starts; shares stay within 1 and 99 %.

  Args:
    image: [B, H, W, C] in [-1, 1].

  Returns:
    [P].

  >>> log_odds(jnp.zeros((3, 1, 2, 1))).tolist()
  [0.0, 0.0]
  """
  share = jnp.clip((image.mean(0).ravel() + 1) / 2, MIN_SHARE, 1 - MIN_SHARE)
  return jnp.log(share / (1 - share))
