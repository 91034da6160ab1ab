"""Aggregates of posteriors, by densities written out."""

import jax.numpy as jnp
import numpy as np

from gm.probability import aggregate


def test_information_is_the_mean_gap_of_log_densities():
  """Of every draw under its own posterior and under the mean of all, by densities written out."""
  rng = np.random.default_rng(0)
  eps, mean, log_var = rng.standard_normal((3, 30, 2))
  z = mean + np.exp(0.5 * log_var) * eps
  square = (z[:, None] - mean) ** 2 / np.exp(log_var) + log_var + np.log(2 * np.pi)
  q = np.exp(-0.5 * square.sum(2))  # of z_i under posterior j
  expected = np.log(np.diag(q) / q.mean(1)).mean()
  assert 0.5 < expected < 2.5
  found = aggregate.information(*(jnp.asarray(x, jnp.float32) for x in (z, mean, log_var)))
  np.testing.assert_allclose(found, expected, rtol=1e-5)
