"""The history of generated images: what comes back, and what is kept."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm import pool


@functools.partial(jax.jit, static_argnums=1)
def queries(key, size, num):
  """Images 1, 2, ... one by one: what came back, how often each place was full, and the pool."""

  def one(kept, drawn):
    number, key = drawn
    kept, out = pool.query(kept, number[None], key)
    return kept, (out[0], kept["count"])

  numbers = 1.0 + jnp.arange(len(num))
  return jax.lax.scan(one, pool.start(size, ()), (numbers, jax.random.split(key, len(num))))


def test_half_of_what_comes_back_is_old_once_it_is_full():
  kept, (out, counts) = queries(jax.random.key(0), 50, jnp.zeros(2_050))
  new = np.arange(1.0, 2_051)
  np.testing.assert_array_equal(out[:50], new[:50])
  np.testing.assert_array_equal(counts, np.minimum(new, 50))
  old = np.asarray(out[50:]) != new[50:]
  assert abs(old.mean() - 0.5) < 0.05
  assert (np.asarray(out[50:])[old] < new[50:][old]).all()
  # what went in is either still there or has come back, once: nothing is lost or doubled
  came_back = np.asarray(out)[50:][old]
  stored = np.concatenate([new[:50], new[50:][old]])
  assert sorted(np.concatenate([kept["images"], came_back])) == sorted(stored)
  ages = (new[50:][old] - came_back)[200:]  # of uniform places: geometric, mean 50 / 0.5
  assert 80 < ages.mean() < 120


def test_images_of_a_batch_come_one_after_the_other():
  x = jnp.arange(12.0).reshape(6, 2)
  kept, out = pool.query(pool.start(4, (2,)), x, jax.random.key(1))
  np.testing.assert_array_equal(out[:4], x[:4])
  assert kept["count"] == 4
  seen = {tuple(r) for r in np.asarray(out).tolist()} | {tuple(r) for r in kept["images"].tolist()}
  assert seen == {tuple(r) for r in x.tolist()}


@pytest.mark.parametrize("size", [0, 100])
def test_nothing_is_exchanged_without_a_full_pool(size):
  kept, x = pool.start(size, (3,)), jnp.ones((5, 3))
  after, out = pool.query(kept, x, jax.random.key(0))
  np.testing.assert_array_equal(out, x)
  assert (after == {}) == (size == 0)
