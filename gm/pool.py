"""A history of generated images, of which a discriminator sees as many as of new ones.

It keeps D from forgetting what G made before. A pool is a dict of arrays and belongs to the state.
Source: Shrivastava et al., 2017, arXiv:1612.07828, section 2.3; image by image as CycleGAN has it.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def start(size: int, shape: Sequence[int]) -> dict[str, jax.Array]:
  """Returns an empty pool.

  Args:
    size: images that it can hold; of 0 there is nothing to keep, {}.
    shape: of an image.

  >>> start(50, (8, 8, 3))["images"].shape
  (50, 8, 8, 3)
  """
  if not size:
    return {}
  return {"images": jnp.zeros((size, *shape)), "count": jnp.zeros((), jnp.int32)}


def query(
  pool: dict[str, jax.Array], x: jax.Array, key: jax.Array
) -> tuple[dict[str, jax.Array], jax.Array]:
  """Exchanges some new images for old ones, one after the other.

  While the pool is not full an image is stored and comes back. Then with probability 1/2 it takes
  the place of one of those stored, all alike likely, and that one comes back; else it comes back
  itself and is not stored.

  Args:
    pool: from `start`.
    x: new images [B, ...].
    key: PRNG key.

  Returns:
    The pool after, and images [B, ...]. Those of an empty pool {} are x.

  >>> pool, x = query(start(2, ()), jnp.array([3.0, 4.0]), jax.random.key(0))
  >>> pool["images"].tolist(), x.tolist()
  ([3.0, 4.0], [3.0, 4.0])
  """
  if not pool:
    return pool, x
  size = len(pool["images"])

  def one(carry, drawn):
    images, count = carry
    new, (chance, place) = drawn
    full = count == size
    at = jnp.where(full, (place * size).astype(jnp.int32), count)
    exchanged, old = full & (chance < 0.5), images[at]
    images = images.at[at].set(jnp.where(full & ~exchanged, old, new))
    return (images, jnp.minimum(count + 1, size)), jnp.where(exchanged, old, new)

  drawn = x, jax.random.uniform(key, (len(x), 2))
  (images, count), out = jax.lax.scan(one, (pool["images"], pool["count"]), drawn)
  return {"images": images, "count": count}, out
