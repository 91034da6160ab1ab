"""Aggregates of posteriors, by densities written out, and scores of codes beside known factors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from gm.probability import aggregate, factors


def posteriors(num):
  rng = np.random.default_rng(0)
  eps, mean, log_var = rng.standard_normal((3, num, 2))
  return mean + np.exp(0.5 * log_var) * eps, mean, log_var


def f32(*arrays):
  return (jnp.asarray(x, jnp.float32) for x in arrays)


def test_information_is_the_mean_gap_of_log_densities():
  """Of every draw under its own posterior and under the mean of all, by densities written out."""
  z, mean, log_var = posteriors(30)
  square = (z[:, None] - mean) ** 2 / np.exp(log_var) + log_var + np.log(2 * np.pi)
  q = np.exp(-0.5 * square.sum(2))  # of z_i under posterior j
  expected = np.log(np.diag(q) / q.mean(1)).mean()
  assert 0.5 < expected < 2.5
  found = aggregate.information(*f32(z, mean, log_var))
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_total_correlation_is_the_gap_to_the_product_of_marginals():
  """Written out; a mixture over the wrong examples or over latents is another number."""
  z, mean, log_var = posteriors(30)
  log_q = -0.5 * (
    (z[:, None] - mean) ** 2 / np.exp(log_var) + log_var + np.log(2 * np.pi)
  )  # z_i under posterior j, [i, j, d]
  gap = lambda log_q, axis: (
    logsumexp(log_q.sum(2), axis) - np.log(30) - (logsumexp(log_q, axis) - np.log(30)).sum(1)
  ).mean()
  found = aggregate.total_correlation(*f32(z, mean, log_var))
  np.testing.assert_allclose(found, gap(log_q, 1), rtol=1e-4)
  assert abs(found - gap(log_q, 0)) > 0.005


def test_the_penalty_of_moments_is_of_the_covariance_of_q():
  """By a sample of q(z) large enough to tell."""
  _, mean, log_var = posteriors(50)
  rng = np.random.default_rng(1)
  z = mean + np.exp(0.5 * log_var) * rng.standard_normal((20_000, 50, 2))
  for log_v, x, rtol in ((None, mean, 1e-5), (log_var, z.reshape(-1, 2), 0.02)):
    cov = np.cov(x.T, bias=True)
    expected = 3 * 2 * cov[0, 1] ** 2 + 5 * ((np.diag(cov) - 1) ** 2).sum()
    given = None if log_v is None else jnp.asarray(log_v, jnp.float32)
    found = aggregate.moments_penalty(jnp.asarray(mean, jnp.float32), given, off=3.0, on=5.0)
    np.testing.assert_allclose(found, expected, rtol=rtol)


def test_free_bits_push_no_group_that_has_few_and_others_as_before():
  """And are no maximum of each example's own, which pushes what has many among those."""
  kl = jnp.array([[0.1, 3.0, 0.0], [0.3, 0.1, 9.0]])  # means 0.2, 1.55, 4.5
  value, slope = jax.value_and_grad(aggregate.free_bits)(kl, 0.5)
  np.testing.assert_allclose(value, 0.5 + 1.55 + 4.5, rtol=1e-6)
  np.testing.assert_array_equal(slope, [[0, 0.5, 0.5]] * 2)
  own = jax.grad(lambda kl: jnp.maximum(kl, 0.5).mean(0).sum())(kl)
  assert (own != slope).any() and own[1, 1] == 0 and own[0, 0] == 0
  all_of_one = jax.grad(aggregate.free_bits)(kl.sum(1, keepdims=True), 7.0)
  assert not all_of_one.any()


@pytest.mark.parametrize("turn, lowest, highest", [(0.0, 0.95, 1.01), (np.pi / 4, -0.01, 0.15)])
def test_the_gap_of_information_is_1_where_codes_are_factors_and_0_where_they_are_turned(
  turn, lowest, highest
):
  v = np.stack(np.meshgrid(np.arange(8), np.arange(8)), -1).reshape(-1, 2)
  r = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
  codes = np.concatenate([v @ r, np.zeros((64, 1))], 1)  # and a code that says nothing
  found = factors.mutual_information_gap(*f32(codes, v))
  assert lowest < found < highest
  still = np.concatenate([v, np.zeros((64, 1))], 1)  # a factor that never varies tells nothing
  half = factors.mutual_information_gap(*f32(codes, still))
  np.testing.assert_allclose(half, found * 2 / 3, rtol=1e-4)


def test_the_score_of_differences_sees_codes_of_one_factor_each():
  """All right for factors as codes, by chance where codes have nothing to do with them."""
  rng = np.random.default_rng(0)
  v = rng.integers(0, 6, (400, 4))
  score = jax.jit(factors.difference_score)
  alone = jnp.asarray(v * [1.0, 5.0, 0.2, 1.0], jnp.float32)
  assert score(jax.random.key(0), alone, jnp.asarray(v)) == 1.0
  other = jnp.asarray(rng.normal(size=(400, 4)), jnp.float32)
  assert 0.15 < score(jax.random.key(0), other, jnp.asarray(v)) < 0.4
  two = alone.at[:, 2:].set(0.0)  # of two factors the codes say nothing, and one is guessed
  assert 0.6 < score(jax.random.key(0), two, jnp.asarray(v)) < 0.9
