"""Log-probabilities, divergences and the bound, by hand and against NumPy in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm.probability import likelihood


def sigmoid(x):
  return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def close(got, want, rtol=1e-6, atol=1e-6):
  np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=rtol, atol=atol)


def f32(*arrays):
  return tuple(jnp.asarray(a, jnp.float32) for a in arrays)


def test_kl_of_the_homework():
  mean, log_var = np.array([[1.0, -2.0, 0.5]]), np.full((1, 3), 2 * np.log(0.7))
  close(likelihood.kl_gaussian(*f32(mean, log_var)), [2.930024831816197])
  with jax.enable_x64(True):
    got = likelihood.kl_gaussian(jnp.asarray(mean), jnp.asarray(log_var))
    assert got.dtype == jnp.float64
    close(got, [2.930024831816197], rtol=1e-14, atol=0)


def numpy_kl(m1, lv1, m2, lv2):
  """The matrix form, 1/2 (tr(S2^-1 S1) + d^T S2^-1 d - n + log |S2| / |S1|), one row at a time."""
  out = []
  for a, u, b, v in zip(m1, lv1, m2, lv2):
    s1, s2 = np.diag(np.exp(u)), np.diag(np.exp(v))
    inv = np.linalg.inv(s2)
    log_det = np.linalg.slogdet(s2)[1] - np.linalg.slogdet(s1)[1]
    out.append(0.5 * (np.trace(inv @ s1) + (b - a) @ inv @ (b - a) - len(a) + log_det))
  return np.array(out)


def test_kl_between_diagonal_normals_is_the_matrix_formula():
  rng = np.random.default_rng(0)
  m1, lv1, m2, lv2 = (rng.normal(size=(6, 5)) for _ in range(4))
  close(likelihood.kl_gaussians(*f32(m1, lv1, m2, lv2)), numpy_kl(m1, lv1, m2, lv2), rtol=2e-6)
  zero = np.zeros_like(m1)
  close(likelihood.kl_gaussian(*f32(m1, lv1)), numpy_kl(m1, lv1, zero, zero), rtol=2e-6)
  close(likelihood.kl_gaussians(*f32(m1, lv1, m1, lv1)), np.zeros(6))
  reverse = likelihood.kl_gaussians(*f32(m2, lv2, m1, lv1))
  assert np.abs(reverse - numpy_kl(m1, lv1, m2, lv2)).max() > 0.1  # the order of arguments matters


def test_kl_is_zero_only_at_the_prior_and_never_negative():
  close(likelihood.kl_gaussian(jnp.zeros((2, 4)), jnp.zeros((2, 4))), np.zeros(2), atol=0)
  small = jnp.full((1, 1000), 1e-4)  # 1 + u - 1 - u in float32 would give 0 or less
  close(likelihood.kl_gaussian(0 * small, small), [0.25 * 1000 * 1e-8], rtol=2e-2, atol=0)
  mean, log_var = f32(*np.random.default_rng(1).normal(size=(2, 500, 3)))
  assert float(likelihood.kl_gaussian(mean, log_var).min()) > 0
  close(
    jax.grad(lambda v: likelihood.kl_gaussian(jnp.zeros((1, 1)), v).sum())(jnp.ones((1, 1))),
    0.85914,
    1e-5,
  )


def test_bernoulli_log_prob_against_numpy():
  rng = np.random.default_rng(2)
  x, logits = rng.integers(0, 2, (3, 4, 4, 1)).astype(float), 3 * rng.normal(size=(3, 4, 4, 1))
  p = sigmoid(logits)
  want = (x * np.log(p) + (1 - x) * np.log(1 - p)).sum(axis=(1, 2, 3))
  close(likelihood.bernoulli_log_prob(*f32(x, logits)), want, rtol=2e-6)
  binary = jnp.asarray(x, jnp.uint8)  # integers as they are stored
  close(likelihood.bernoulli_log_prob(binary, jnp.asarray(logits, jnp.float32)), want, rtol=2e-6)


def test_bernoulli_probabilities_sum_to_one():
  logits = jnp.array([[0.3, -1.2, 2.0]])
  every = jnp.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)], jnp.float32)
  total = jnp.exp(likelihood.bernoulli_log_prob(every, jnp.tile(logits, (8, 1)))).sum()
  close(total, 1.0)


def test_bernoulli_is_finite_at_large_logits():
  for logit in (-200.0, -80.0, 80.0, 200.0):
    l = jnp.full((1, 1), logit)
    for x in (0.0, 1.0):
      value, grad = jax.value_and_grad(
        lambda l: likelihood.bernoulli_log_prob(jnp.full((1, 1), x), l).sum()
      )(l)
      right = (logit > 0) == (x == 1)
      close(value, 0.0 if right else -abs(logit))
      assert np.isfinite(np.asarray(grad)).all()


def test_gaussian_log_prob_against_numpy_with_constants():
  rng = np.random.default_rng(3)
  x, mean, log_std = (rng.normal(size=(3, 7)) for _ in range(3))
  s = np.exp(log_std)
  want = np.log(np.exp(-0.5 * ((x - mean) / s) ** 2) / (s * np.sqrt(2 * np.pi))).sum(axis=1)
  close(likelihood.gaussian_log_prob(*f32(x, mean, log_std)), want, rtol=2e-6)
  close(
    likelihood.standard_normal_log_prob(*f32(x)), likelihood.gaussian_log_prob(*f32(x, 0 * x), 0.0)
  )
  grid = np.linspace(-12, 12, 4001)[:, None]
  density = np.exp(likelihood.gaussian_log_prob(*f32(grid, 0 * grid + 1.0), 0.5))
  close(density.sum() * (grid[1, 0] - grid[0, 0]), 1.0, rtol=1e-4)


def test_a_scalar_log_std_counts_once_for_every_element():
  x, mean = f32(*np.random.default_rng(4).normal(size=(2, 3, 5)))
  log_prob = jax.jit(likelihood.gaussian_log_prob)
  full = log_prob(x, mean, jnp.full((3, 5), 0.7))
  close(log_prob(x, mean, 0.7), full)
  close(log_prob(x, mean, jnp.full((5,), 0.7)), full)
  # the best single s^2 is the mean squared error, where the distortion is D/2 (log 2 pi s^2 + 1)
  mse = float(jnp.mean((x - mean) ** 2))
  best = 0.5 * np.log(mse)
  close(log_prob(x, mean, best).mean(), -2.5 * (np.log(2 * np.pi * mse) + 1), 1e-5)
  slope = jax.jit(jax.grad(lambda s: log_prob(x, mean, s).mean()))(best)
  close(slope, 0.0, atol=1e-5)


def test_a_leading_sample_axis_is_kept():
  rng = np.random.default_rng(5)
  x, out = f32(rng.integers(0, 2, (3, 4, 4, 1)), rng.normal(size=(6, 3, 4, 4, 1)))
  each = lambda f: np.stack([f(x, o) for o in out])
  bernoulli = jax.jit(likelihood.bernoulli_log_prob, static_argnames="event_ndim")
  gaussian = jax.jit(likelihood.gaussian_log_prob, static_argnames="event_ndim")
  close(bernoulli(x, out, event_ndim=3), each(bernoulli))
  close(gaussian(x, out, 0.1, event_ndim=3), each(lambda x, o: gaussian(x, o, 0.1)), rtol=2e-6)
  z = out.reshape(6, 3, 16)
  assert likelihood.standard_normal_log_prob(z, event_ndim=1).shape == (6, 3)
  assert likelihood.kl_gaussian(z, z, event_ndim=1).shape == (6, 3)
  assert likelihood.standard_normal_log_prob(z).shape == (6,)
  close(bernoulli(x, out[0], event_ndim=0), x * out[0] - np.log1p(np.exp(out[0])))


def test_silent_broadcasts_are_refused():
  x = jnp.zeros((3, 4, 4, 1))
  for log_prob in (
    likelihood.bernoulli_log_prob,
    lambda x, m, **kw: likelihood.gaussian_log_prob(x, m, 0.0, **kw),
  ):
    with pytest.raises(ValueError, match="event_ndim"):  # would sum over the samples
      log_prob(x, jnp.zeros((6, 3, 4, 4, 1)))
    with pytest.raises(ValueError, match="event_ndim=3"):  # one channel against three
      log_prob(x, jnp.zeros((3, 4, 4, 3)), event_ndim=3)
    with pytest.raises(ValueError, match="image_size"):
      log_prob(jnp.zeros((16,)), jnp.zeros((4, 4)), event_ndim=2)
  with pytest.raises(ValueError, match="kl_gaussian"):
    likelihood.kl_gaussian(jnp.zeros((3, 2)), jnp.zeros((3, 1)))


# --- the importance-weighted bound --------------------------------------------------------------


def test_bound_with_one_sample_is_the_elbo():
  log_w = jnp.array([[-3.0, 4.0]])
  close(likelihood.importance_weighted_bound(log_w), log_w[0], atol=0)


def test_bound_is_logsumexp_minus_log_k():
  log_w = np.random.default_rng(6).normal(size=(5, 3)) * 4
  want = np.log(np.exp(log_w).mean(axis=0))
  close(likelihood.importance_weighted_bound(*f32(log_w)), want, rtol=2e-6)
  close(likelihood.importance_weighted_bound(*f32(log_w.T), axis=1), want, rtol=2e-6)
  shifted = likelihood.importance_weighted_bound(*f32(log_w - 1000))  # e^-1000 underflows
  close(shifted, want - 1000, rtol=1e-6)
  assert (want > log_w.mean(axis=0)).all()  # not the average of k ELBOs


def test_bound_gradient_is_the_softmax_weighting():
  log_w = np.random.default_rng(7).normal(size=(5, 3)) * 2
  grad = jax.grad(lambda l: likelihood.importance_weighted_bound(l).sum())(*f32(log_w))
  want = np.exp(log_w) / np.exp(log_w).sum(axis=0)
  close(grad, want, rtol=2e-6)


def test_bound_grows_with_k_to_the_evidence_of_a_linear_gaussian_model():
  # z ~ N(0, 1), x | z ~ N(z, 1), so x ~ N(0, 2); q is the prior
  x, keys = 1.3, jax.random.split(jax.random.key(0), 3)
  evidence = -0.5 * (x**2 / 2 + np.log(2 * np.pi * 2))

  @functools.partial(jax.jit, static_argnums=1)
  def bound(key, k):
    z = jax.random.normal(key, (k, 4000, 1))
    log_w = likelihood.gaussian_log_prob(jnp.full((4000, 1), x), z, 0.0, event_ndim=1)
    return likelihood.importance_weighted_bound(log_w).mean()

  elbo, five, fifty = (float(bound(key, k)) for key, k in zip(keys, (1, 5, 50)))
  # E_q log p(x | z) = -1/2 (log 2 pi + x^2 + 1)
  assert abs(elbo - -0.5 * (np.log(2 * np.pi) + x**2 + 1)) < 0.1
  assert elbo < five - 0.1 < fifty and abs(fifty - evidence) < 0.02
