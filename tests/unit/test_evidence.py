"""Estimates of the evidence integral beside its exact value, in models where it is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import datasets

from gm.probability import evidence, evidence_study, linear_gaussian

W = np.array([[1, 0], [0.8, 0.5], [0, 1.2], [-0.6, 0.4], [0.3, -0.9]])
MODEL = linear_gaussian.LinearGaussian(W, np.array([0.1, -0.2, 0.3, 0, 0.5]), 0.25)
X = np.array([[1, 0, 0.5, -0.3, 0.2], [0, 0, 0, 0, 0], [0.4, 1.0, -0.5, 0.2, 0.0]])
KEY = jax.random.key(0)


def fixture(x=X):
  """A likelihood, the exact log p(x), and a q that is no posterior: the prior, half as wide."""
  model = linear_gaussian.LinearGaussian(*(jnp.asarray(v, jnp.float32) for v in MODEL))
  log_likelihood, exact = evidence_study.linear(model, jnp.asarray(x, jnp.float32))
  zeros = jnp.zeros((len(x), 2))
  return log_likelihood, exact, zeros, zeros + 2 * np.log(0.7)


def test_the_linear_model_without_its_pixels():
  """|x - mean - W z|^2 by inner products alone, and log p(x) by integration on a grid."""
  log_likelihood, exact, *_ = fixture()
  z = np.random.default_rng(0).normal(size=(7, 1, 2))
  r = X - MODEL.mean - z @ W.T
  want = -0.5 * ((r**2).sum(-1) / 0.25 + 5 * np.log(2 * np.pi * 0.25))
  np.testing.assert_allclose(log_likelihood(jnp.asarray(z, jnp.float32)), want, rtol=1e-5)
  grid = np.linspace(-6, 6, 601)
  z = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 1, 2)
  log_p = log_likelihood(jnp.asarray(z, jnp.float32)) - 0.5 * (z**2).sum(-1) - np.log(2 * np.pi)
  area = (grid[1] - grid[0]) ** 2
  np.testing.assert_allclose(jax.nn.logsumexp(log_p, axis=0) + np.log(area), exact, atol=1e-4)
  np.testing.assert_allclose(exact[0], -4.279372658473659, rtol=1e-5)


def test_all_three_estimates_come_to_the_exact_evidence():
  log_likelihood, exact, mean, log_var = fixture()
  plain = evidence.prior_weights(KEY, log_likelihood, (3, 2), 100_000)
  weighted = evidence.importance_weights(KEY, log_likelihood, mean, log_var, 20_000)
  anneal = jax.jit(lambda key: evidence.annealed_weights(key, log_likelihood, (500, 3, 2)))
  annealed, accepted = anneal(KEY)
  for log_w in (plain, weighted, annealed):
    w = np.exp(np.asarray(log_w, np.float64) - np.asarray(exact))
    error = w.std(0) / np.sqrt(len(w))  # of the ratio to p(x), which the weights have as mean
    assert (np.abs(w.mean(0) - 1) < 4 * error).all() and (error < 0.05).all(), (w.mean(0), error)
    np.testing.assert_allclose(evidence.log_mean(log_w), exact, atol=0.1)
  assert 0.6 < accepted < 0.85
  # weights of chains are nearly the same, those of the prior are not
  assert annealed.std(0).max() < 0.6 < plain.std(0).min() / 2


def test_a_move_that_does_not_keep_its_law_is_found_out(monkeypatch):
  """Without the refusals the leaps' errors stay in the weights: large leaps make them too low."""
  log_likelihood, exact, *_ = fixture()
  run = lambda: evidence.annealed_weights(
    KEY, log_likelihood, (200, 3, 2), num_temperatures=60, num_leaps=2, step=0.5
  )
  honest = evidence.log_mean(run()[0])
  np.testing.assert_allclose(honest, exact, atol=0.15)
  monkeypatch.setattr(jax.random, "uniform", lambda key, shape: jnp.full(shape, 1e-30))
  assert np.abs(evidence.log_mean(run()[0]) - exact).max() > 0.3


def test_the_mean_weight_of_q_is_the_elbo():
  log_likelihood, exact, mean, log_var = fixture()
  weighted = evidence.importance_weights(KEY, log_likelihood, mean, log_var, 40_000)
  cov = jnp.diag(jnp.exp(log_var[0]))
  for b in range(3):
    elbo = linear_gaussian.elbo(MODEL, X[b], mean[b], cov)
    w = np.asarray(weighted[:, b])
    assert abs(w.mean() - elbo) < 4 * w.std() / np.sqrt(len(w)) < 0.3
    assert elbo < exact[b]


# ---------------------------------------------------------------- the bias of a logarithm


def test_the_log_of_an_unbiased_estimate_is_too_low_by_half_its_relative_variance():
  """Weights e^(s g - s^2 / 2), g normal, have mean 1; log of the mean of n is about -var / 2n."""
  s = 0.5
  g = np.random.default_rng(0).normal(size=1_600_000)
  log_w = jnp.asarray(s * g - s**2 / 2, jnp.float32)
  variance = np.expm1(s**2)
  sizes = (10, 40, 160)
  found = evidence.by_size(log_w, sizes)
  whole = float(evidence.log_mean(log_w))  # its own bias is 1e-7
  np.testing.assert_allclose(whole, 0, atol=4 * np.sqrt(variance / len(log_w)))
  bias = np.asarray(found.mean) - whole
  assert (bias < 0).all()
  np.testing.assert_allclose(bias, -variance / (2 * np.array(sizes)), rtol=0.1)
  np.testing.assert_allclose(bias[:-1] / bias[1:], 4.0, rtol=0.1)  # it falls as 1 / n
  np.testing.assert_allclose(found.spread, np.sqrt(variance / np.array(sizes)), rtol=0.1)
  predicted = np.array([evidence.log_bias(log_w, n) for n in sizes])
  np.testing.assert_allclose(predicted, bias, rtol=0.1)
  few = float(evidence.by_size(log_w, (1,)).mean[0])
  np.testing.assert_allclose(few, -(s**2) / 2, atol=1e-3)  # of one draw the ELBO's whole gap


def test_estimates_by_size_are_of_groups_that_do_not_overlap():
  log_w = jnp.log(jnp.arange(1.0, 13.0)).reshape(6, 2)
  found = evidence.by_size(log_w, (2, 3, 6))
  w = np.arange(1.0, 13.0).reshape(6, 2)
  for i, n in enumerate((2, 3, 6)):
    groups = np.log(w.reshape(6 // n, n, 2).mean(1))
    np.testing.assert_allclose(found.mean[i], groups.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.spread[i], groups.std(0), atol=1e-6)
  for call, message in (
    (lambda: evidence.by_size(log_w, (4,)), "groups of 4 do not divide 6 draws"),
    (lambda: evidence.importance_weights(KEY, None, log_w, log_w, 0), "0 draws in parts of 0"),
  ):
    with pytest.raises(ValueError, match=message):
      call()


# ----------------------------------------------------------------------------- many latents


@functools.cache
def digits():
  return jnp.asarray(datasets.load_digits().data / 16.0, jnp.float32)


def test_plain_draws_fail_as_latents_are_added():
  """Linear models of the 8x8 digits with 2 to 50 latents, against their exact evidence."""
  options = {"num_examples": 4, "num_prior": 10_000, "chains": 4}
  options |= {"num_temperatures": 1_000, "num_leaps": 10}
  study = lambda key, x: evidence_study.over_latents(key, x, (2, 10, 20, 40), **options)
  found = jax.jit(study)(KEY, digits())
  assert found[evidence_study.LATENTS].tolist() == [2, 10, 20, 40]
  prior, weighted, annealed, elbo, bound = (
    np.asarray(found[n]) for n in ("prior", "importance", "annealed", "ELBO", "bound L_50")
  )
  assert abs(prior[0]) < 0.3 and prior[2] < -5 and prior[3] < -30
  assert (np.diff(prior[1:]) < 0).all()  # worse with each latent
  assert (elbo < bound).all() and (bound < 0.1).all() and elbo[3] < bound[3] < weighted[3] + 0.1
  assert (np.abs(annealed) < 1).all() and (np.abs(weighted[:3]) < 1).all(), (annealed, weighted)


def test_curves_over_draws_begin_at_the_elbo_and_end_at_the_evidence():
  log_likelihood, exact, mean, log_var = fixture()
  options = {"num_prior": 100_000, "num_importance": 10_000, "chains": 50, "num_temperatures": 50}
  study = jax.jit(
    lambda key: evidence_study.over_draws(
      key, log_likelihood, mean, log_var, exact=exact, **options
    )
  )
  found = study(KEY)
  estimate, bias, spread = (found[n] for n in ("estimate", "bias", "spread"))
  assert estimate[evidence_study.DRAWS["estimate"]].tolist() == [0, 1, 2, 3, 4, 5]
  np.testing.assert_allclose(estimate["exact"], exact.mean(), rtol=1e-6)
  start = float(estimate["importance (bound L_n)"][0])
  np.testing.assert_allclose(estimate["ELBO"], start, rtol=1e-4)
  for name in ("prior", "importance"):
    errors = np.asarray(bias[name])
    known = np.isfinite(errors)
    assert (np.diff(errors[known]) > -0.01).all() and errors[0] < -0.3  # rises from below
    assert abs(errors[known][-1]) < 0.05
    spreads = np.asarray(spread[name])
    assert (np.diff(spreads[np.isfinite(spreads)]) < 0).all()
  assert known.sum() == 5 and np.isnan(spread["prior"][-1])  # of one group none is known


def test_draws_need_not_come_in_whole_chunks():
  """Of the last chunk only those are given that were asked for, and each is drawn anew."""
  log_p = lambda z: z.sum(-1) * jnp.ones(1)
  many = evidence.prior_weights(KEY, log_p, (1, 2), 20, chunk=10)
  few = evidence.prior_weights(KEY, log_p, (1, 2), 15, chunk=10)
  assert few.shape == (15, 1) and len(np.unique(few)) == 15
  np.testing.assert_array_equal(few, many[:15])
