"""Minibatch standard deviation against NumPy, groups, and derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from gm.nn import minibatch


def normal(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("group, features", [(4, 1), (2, 3), (0, 2), (16, 1)])
def test_equals_numpy(group, features):
  x = normal(0, 8, 3, 2, 6)
  y = np.asarray(minibatch.stddev(x, group=group, features=features))
  np.testing.assert_array_equal(y[..., :6], x)
  size = min(group or 8, 8)
  for m in range(8 // size):
    members = np.asarray(x)[m :: 8 // size]  # B / G apart
    assert len(members) == size
    std = np.sqrt(members.var(0) + 1e-8)  # the population's
    for f, part in enumerate(np.split(std, features, axis=-1)):
      np.testing.assert_allclose(y[m :: 8 // size, :, :, 6 + f], part.mean(), rtol=1e-5)


def test_known_values():
  one = jnp.ones((4, 2, 2, 3))
  np.testing.assert_allclose(minibatch.stddev(one)[..., 3], 1e-4, rtol=1e-5)
  np.testing.assert_allclose(minibatch.stddev(one[:1])[..., 3], 1e-4, rtol=1e-5)
  half = one.at[::2].set(-1.0)
  np.testing.assert_allclose(minibatch.stddev(half)[..., 3], 1.0, rtol=1e-5)
  np.testing.assert_allclose(minibatch.stddev(half, group=2)[..., 3], 1e-4, rtol=1e-5)


def test_errors_name_the_flags():
  with pytest.raises(ValueError, match=r"6 .*groups of 4.*batch_size.*batch_sizes.*stddev_group"):
    minibatch.stddev(jnp.ones((6, 1, 1, 3)), group=4)
  with pytest.raises(ValueError, match=r"3 channels.*4 features"):
    minibatch.stddev(jnp.ones((6, 1, 1, 3)), group=2, features=4)


def test_derivatives():
  x = normal(1, 4, 2, 2, 2)
  f = lambda x: jnp.sum(jnp.sin(minibatch.stddev(x, group=2)))
  check_grads(f, (x,), order=2, modes=["rev"], atol=2e-2, rtol=2e-2)
  same = jnp.ones((4, 2, 2, 2))
  assert np.isfinite(jax.grad(f)(same)).all()
