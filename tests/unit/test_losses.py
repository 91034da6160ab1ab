"""Losses at their optima, at values computed by hand, and against NumPy in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm import losses

REAL = np.array([2.0, -1.0, 0.5, 0.0])
FAKE = np.array([-0.5, 1.5, -2.0])  # another batch size: a pairing or a joint mean would show
LOG2 = np.log(2)


def sigmoid(x):
  return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def close(got, want, rtol=1e-6, atol=1e-6):
  np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=rtol, atol=atol)


def f32(*arrays):
  return tuple(jnp.asarray(a, jnp.float32) for a in arrays)


VALUES = {
  "bce_d": (
    lambda r, f: losses.bce_d(r, f),
    -np.log(sigmoid(REAL)).mean() - np.log(1 - sigmoid(FAKE)).mean(),
  ),
  "bce_d_smoothed": (
    lambda r, f: losses.bce_d(r, f, real_target=0.9),
    -(0.9 * np.log(sigmoid(REAL)) + 0.1 * np.log(1 - sigmoid(REAL))).mean()
    - np.log(1 - sigmoid(FAKE)).mean(),
  ),
  "nonsaturating_g": (lambda r, f: losses.nonsaturating_g(f), -np.log(sigmoid(FAKE)).mean()),
  "minimax_g": (lambda r, f: losses.minimax_g(f), np.log(1 - sigmoid(FAKE)).mean()),
  # squared errors against b = 1 (1, 4, .25, 1), against a = 0 (.25, 2.25, 4), a = -1 (.25, 6.25, 1)
  "least_squares_d_01": (
    lambda r, f: losses.least_squares_d(r, f, a=losses.ZERO_ONE.a, b=losses.ZERO_ONE.b),
    6.25 / 8 + 6.5 / 6,
  ),
  "least_squares_d_pearson": (
    lambda r, f: losses.least_squares_d(r, f, a=losses.PEARSON.a, b=losses.PEARSON.b),
    6.25 / 8 + 7.5 / 6,
  ),
  "least_squares_g_01": (
    lambda r, f: losses.least_squares_g(f, c=losses.ZERO_ONE.c),
    (2.25 + 0.25 + 9) / 6,
  ),
  "least_squares_g_pearson": (
    lambda r, f: losses.least_squares_g(f, c=losses.PEARSON.c),
    (0.25 + 2.25 + 4) / 6,
  ),
  "wasserstein_d": (losses.wasserstein_d, -1 / 3 - 1.5 / 4),
  "wasserstein_g": (lambda r, f: losses.wasserstein_g(f), 1 / 3),
  "hinge_d": (losses.hinge_d, (0 + 2 + 0.5 + 1) / 4 + (0.5 + 2.5 + 0) / 3),
  "hinge_g": (lambda r, f: losses.hinge_g(f), 1 / 3),
  "relativistic_d": (
    lambda r, f: losses.relativistic_d(r[:3], f),
    -np.log(sigmoid(REAL[:3] - FAKE)).mean(),
  ),
  "relativistic_g": (
    lambda r, f: losses.relativistic_g(r[:3], f),
    -np.log(sigmoid(FAKE - REAL[:3])).mean(),
  ),
  "relativistic_average_d": (
    losses.relativistic_average_d,
    -np.log(sigmoid(REAL - FAKE.mean())).mean() - np.log(1 - sigmoid(FAKE - REAL.mean())).mean(),
  ),
  "relativistic_average_g": (
    losses.relativistic_average_g,
    -np.log(sigmoid(FAKE - REAL.mean())).mean() - np.log(1 - sigmoid(REAL - FAKE.mean())).mean(),
  ),
}


@pytest.mark.parametrize("name", VALUES)
def test_adversarial_loss_has_the_hand_computed_value(name):
  loss, want = VALUES[name]
  got = jax.jit(loss)(*f32(REAL, FAKE))
  assert got.shape == () and got.dtype == jnp.float32
  close(got, want)


@pytest.mark.parametrize("name", VALUES)
def test_adversarial_loss_is_a_mean_over_the_batch(name):
  loss, want = VALUES[name]
  if name in ("relativistic_d", "relativistic_g"):
    loss = {"relativistic_d": losses.relativistic_d, "relativistic_g": losses.relativistic_g}[name]
    twice = f32(np.tile(REAL[:3], 2), np.tile(FAKE, 2))
  else:
    twice = f32(np.tile(REAL, 2), np.tile(FAKE, 2))
  close(jax.jit(loss)(*twice), want)  # a sum would double


def test_patch_outputs_average_over_every_element():
  patch = jnp.asarray(np.tile(REAL, (5, 2, 1)), jnp.float32)  # [B, h, w]
  close(losses.nonsaturating_g(patch), -np.log(sigmoid(REAL)).mean())
  close(losses.hinge_d(patch, patch), losses.hinge_d(patch[0, 0], patch[0, 0]))


def test_logistic_loss_is_log_4_at_zero_logits():
  close(losses.bce_d(jnp.zeros(5), jnp.zeros(7)), np.log(4), rtol=0, atol=1e-6)
  close(losses.nonsaturating_g(jnp.zeros(5)), LOG2)
  close(losses.minimax_g(jnp.zeros(5)), -LOG2)


def test_logistic_optimum_is_the_density_ratio_and_gives_the_jensen_shannon_divergence():
  p, q = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.3, 0.6])
  best = jnp.asarray(np.log(p / q), jnp.float32)

  @jax.jit
  def loss(logits):  # expectations as batches in which each point appears p (q) times out of 10
    rows = lambda w: jnp.repeat(logits, np.round(10 * w).astype(int), total_repeat_length=10)
    return losses.bce_d(rows(p), rows(q))

  m = (p + q) / 2
  jsd = 0.5 * (p * np.log(p / m)).sum() + 0.5 * (q * np.log(q / m)).sum()
  close(loss(best), np.log(4) - 2 * jsd)
  slope = jax.jit(jax.grad(loss))
  close(slope(best), np.zeros(3), atol=1e-7)
  assert float(slope(best + 0.1)[0]) > 1e-3  # a minimum, not only a stationary point


def test_smoothed_target_moves_the_optimum_on_data():
  logit = float(np.log(0.9 / 0.1))
  grad = jax.jit(jax.grad(lambda l: losses.bce_d(l, -80.0 * jnp.ones(1), real_target=0.9)))
  close(grad(jnp.array([logit])), [0.0])
  close(grad(jnp.array([0.0])), [0.5 - 0.9])


def test_derivatives_of_both_generator_losses_in_the_logits():
  logits = jnp.linspace(-12, 12, 25)
  d = sigmoid(logits)
  total = lambda loss: jax.jit(jax.grad(lambda l: loss(l) * len(logits)))(logits)  # undo the mean
  close(total(losses.minimax_g), -d, rtol=0, atol=1e-6)
  close(total(losses.nonsaturating_g), -(1 - d), rtol=0, atol=1e-6)


@pytest.mark.parametrize("logit", [-80.0, 80.0])
def test_logistic_losses_and_derivatives_are_finite_at_large_logits(logit):
  l = jnp.array([logit])
  for loss in (
    losses.nonsaturating_g,
    losses.minimax_g,
    lambda l: losses.bce_d(l, l),
    lambda l: losses.bce_d(l, l, real_target=0.9),
    lambda l: losses.relativistic_d(l, -l),
    lambda l: losses.relativistic_average_g(l, -l),
  ):
    value, grad = jax.jit(jax.value_and_grad(loss))(l)
    assert np.isfinite(float(value)) and np.isfinite(np.asarray(grad)).all()
  close(losses.bce_d(l, l), 80.0)
  win = jnp.abs(l)  # D certain and right: no cost, and none by cancellation of large numbers
  assert 0 <= float(losses.bce_d(win, -win)) < 1e-30
  close(jax.grad(losses.nonsaturating_g)(-win), [-1.0])  # the loss that keeps its gradient


def test_least_squares_optimum_and_the_two_schemes():
  p, q = 0.3, 0.9  # one point, with weight p in the data and q in the samples

  def slope(t, d):
    weighted = lambda d: (
      p * losses.least_squares_d(d, t.a * jnp.ones(1), a=t.a, b=t.b)
      + (q * losses.least_squares_d(t.b * jnp.ones(1), d, a=t.a, b=t.b))
    )
    return jax.grad(weighted)(jnp.array([d]))

  for t in (losses.ZERO_ONE, losses.PEARSON):
    close(slope(t, (t.b * p + t.a * q) / (p + q)), [0.0])
  assert losses.ZERO_ONE == (0, 1, 1) and losses.PEARSON == (-1, 1, 0)
  # D* maps to 2 D* - 1 between the schemes, so L_D is 4 times as large there
  l01 = losses.least_squares_d(*f32(REAL, FAKE), a=0.0, b=1.0)
  close(losses.least_squares_d(*f32(2 * REAL - 1, 2 * FAKE - 1), a=-1.0, b=1.0), 4 * l01)


def test_least_squares_pulls_back_what_the_logistic_loss_leaves():
  far = jnp.array([10.0])
  close(jax.grad(losses.least_squares_g)(far), [9.0])
  close(jax.grad(losses.nonsaturating_g)(far), [-4.53979e-5], rtol=1e-4, atol=0)
  close(jax.grad(losses.least_squares_g)(jnp.array([1.0])), [0.0])


def test_squares_are_averaged_not_means_squared():
  close(losses.least_squares_g(jnp.array([0.0, 2.0]), c=1.0), 0.5)  # errors must not cancel


def test_hinge_at_its_optimum_at_zero_and_its_slopes():
  close(losses.hinge_d(jnp.full(3, 2.0), jnp.full(3, -2.0)), 0.0)
  close(losses.hinge_d(jnp.zeros(3), jnp.zeros(3)), 2.0)
  close(losses.hinge_g(jnp.zeros(3)), 0.0)
  slope = jax.grad(losses.hinge_d, argnums=(0, 1))(jnp.array([0.0, 3.0]), jnp.array([0.0, -3.0]))
  close(slope, [[-0.5, 0.0], [0.5, 0.0]])


def test_critic_and_generator_pull_in_opposite_directions():
  score = jnp.array([0.3])
  for d, g in (
    (losses.wasserstein_d, losses.wasserstein_g),
    (losses.hinge_d, losses.hinge_g),
    (losses.bce_d, losses.minimax_g),
    (losses.bce_d, losses.nonsaturating_g),
    (losses.least_squares_d, losses.least_squares_g),
  ):
    (real, fake), up = jax.jit(lambda s: (jax.grad(d, (0, 1))(s, s), jax.grad(g)(s)))(score)
    assert float(real[0]) < 0 < float(fake[0]) and float(up[0]) < 0
  for d, g in (
    (losses.relativistic_d, losses.relativistic_g),
    (losses.relativistic_average_d, losses.relativistic_average_g),
  ):
    fake = jax.jit(lambda s: [jax.grad(loss, 1)(s, s)[0] for loss in (d, g)])(score)
    assert float(fake[0]) > 0 > float(fake[1])


def test_relativistic_losses_ignore_a_common_shift():
  real, fake = f32(REAL[:3], FAKE)
  for loss in (
    losses.relativistic_d,
    losses.relativistic_g,
    losses.relativistic_average_d,
    losses.relativistic_average_g,
  ):
    loss = jax.jit(loss)
    close(loss(real + 3, fake + 3), loss(real, fake), rtol=1e-5)


def test_relativistic_pairs_refuse_to_broadcast():
  for loss in (losses.relativistic_d, losses.relativistic_g):
    with pytest.raises(ValueError, match=r"\(4,\).*\(4, 1\)|\(4, 1\).*\(4,\)"):
      loss(jnp.zeros(4), jnp.zeros((4, 1)))


def test_half_precision_logits_are_widened_before_anything_is_computed():
  real, fake = (jnp.asarray(a, jnp.bfloat16) for a in (REAL, FAKE))  # these are exact there
  for name, (loss, want) in VALUES.items():
    got = jax.jit(loss)(real, fake)
    assert got.dtype == jnp.float32, name
    close(got, want)


# --- divergences and likelihoods ----------------------------------------------------------------


def test_kl_of_the_homework():
  mean, log_var = np.array([[1.0, -2.0, 0.5]]), np.full((1, 3), 2 * np.log(0.7))
  close(losses.kl_gaussian(*f32(mean, log_var)), [2.930024831816197])
  with jax.enable_x64(True):
    got = losses.kl_gaussian(jnp.asarray(mean), jnp.asarray(log_var))
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
  close(losses.kl_gaussians(*f32(m1, lv1, m2, lv2)), numpy_kl(m1, lv1, m2, lv2), rtol=2e-6)
  zero = np.zeros_like(m1)
  close(losses.kl_gaussian(*f32(m1, lv1)), numpy_kl(m1, lv1, zero, zero), rtol=2e-6)
  close(losses.kl_gaussians(*f32(m1, lv1, m1, lv1)), np.zeros(6))
  reverse = losses.kl_gaussians(*f32(m2, lv2, m1, lv1))
  assert np.abs(reverse - numpy_kl(m1, lv1, m2, lv2)).max() > 0.1  # the order of arguments matters


def test_kl_is_zero_only_at_the_prior_and_never_negative():
  close(losses.kl_gaussian(jnp.zeros((2, 4)), jnp.zeros((2, 4))), np.zeros(2), atol=0)
  small = jnp.full((1, 1000), 1e-4)  # 1 + u - 1 - u in float32 would give 0 or less
  close(losses.kl_gaussian(0 * small, small), [0.25 * 1000 * 1e-8], rtol=2e-2, atol=0)
  mean, log_var = f32(*np.random.default_rng(1).normal(size=(2, 500, 3)))
  assert float(losses.kl_gaussian(mean, log_var).min()) > 0
  close(
    jax.grad(lambda v: losses.kl_gaussian(jnp.zeros((1, 1)), v).sum())(jnp.ones((1, 1))),
    0.85914,
    1e-5,
  )


def test_bernoulli_log_prob_against_numpy():
  rng = np.random.default_rng(2)
  x, logits = rng.integers(0, 2, (3, 4, 4, 1)).astype(float), 3 * rng.normal(size=(3, 4, 4, 1))
  p = sigmoid(logits)
  want = (x * np.log(p) + (1 - x) * np.log(1 - p)).sum(axis=(1, 2, 3))
  close(losses.bernoulli_log_prob(*f32(x, logits)), want, rtol=2e-6)
  binary = jnp.asarray(x, jnp.uint8)  # integers as they are stored
  close(losses.bernoulli_log_prob(binary, jnp.asarray(logits, jnp.float32)), want, rtol=2e-6)


def test_bernoulli_probabilities_sum_to_one():
  logits = jnp.array([[0.3, -1.2, 2.0]])
  every = jnp.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)], jnp.float32)
  total = jnp.exp(losses.bernoulli_log_prob(every, jnp.tile(logits, (8, 1)))).sum()
  close(total, 1.0)


def test_bernoulli_is_finite_at_large_logits():
  for logit in (-200.0, -80.0, 80.0, 200.0):
    l = jnp.full((1, 1), logit)
    for x in (0.0, 1.0):
      value, grad = jax.value_and_grad(
        lambda l: losses.bernoulli_log_prob(jnp.full((1, 1), x), l).sum()
      )(l)
      right = (logit > 0) == (x == 1)
      close(value, 0.0 if right else -abs(logit))
      assert np.isfinite(np.asarray(grad)).all()


def test_gaussian_log_prob_against_numpy_with_constants():
  rng = np.random.default_rng(3)
  x, mean, log_std = (rng.normal(size=(3, 7)) for _ in range(3))
  s = np.exp(log_std)
  want = np.log(np.exp(-0.5 * ((x - mean) / s) ** 2) / (s * np.sqrt(2 * np.pi))).sum(axis=1)
  close(losses.gaussian_log_prob(*f32(x, mean, log_std)), want, rtol=2e-6)
  close(losses.standard_normal_log_prob(*f32(x)), losses.gaussian_log_prob(*f32(x, 0 * x), 0.0))
  grid = np.linspace(-12, 12, 4001)[:, None]
  density = np.exp(losses.gaussian_log_prob(*f32(grid, 0 * grid + 1.0), 0.5))
  close(density.sum() * (grid[1, 0] - grid[0, 0]), 1.0, rtol=1e-4)


def test_a_scalar_log_std_counts_once_for_every_element():
  x, mean = f32(*np.random.default_rng(4).normal(size=(2, 3, 5)))
  log_prob = jax.jit(losses.gaussian_log_prob)
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
  bernoulli = jax.jit(losses.bernoulli_log_prob, static_argnames="event_ndim")
  gaussian = jax.jit(losses.gaussian_log_prob, static_argnames="event_ndim")
  close(bernoulli(x, out, event_ndim=3), each(bernoulli))
  close(gaussian(x, out, 0.1, event_ndim=3), each(lambda x, o: gaussian(x, o, 0.1)), rtol=2e-6)
  z = out.reshape(6, 3, 16)
  assert losses.standard_normal_log_prob(z, event_ndim=1).shape == (6, 3)
  assert losses.kl_gaussian(z, z, event_ndim=1).shape == (6, 3)
  assert losses.standard_normal_log_prob(z).shape == (6,)
  close(bernoulli(x, out[0], event_ndim=0), x * out[0] - np.log1p(np.exp(out[0])))


def test_silent_broadcasts_are_refused():
  x = jnp.zeros((3, 4, 4, 1))
  for log_prob in (
    losses.bernoulli_log_prob,
    lambda x, m, **kw: losses.gaussian_log_prob(x, m, 0.0, **kw),
  ):
    with pytest.raises(ValueError, match="event_ndim"):  # would sum over the samples
      log_prob(x, jnp.zeros((6, 3, 4, 4, 1)))
    with pytest.raises(ValueError, match="event_ndim=3"):  # one channel against three
      log_prob(x, jnp.zeros((3, 4, 4, 3)), event_ndim=3)
    with pytest.raises(ValueError, match="image_size"):
      log_prob(jnp.zeros((16,)), jnp.zeros((4, 4)), event_ndim=2)
  with pytest.raises(ValueError, match="kl_gaussian"):
    losses.kl_gaussian(jnp.zeros((3, 2)), jnp.zeros((3, 1)))


# --- the importance-weighted bound --------------------------------------------------------------


def test_bound_with_one_sample_is_the_elbo():
  log_w = jnp.array([[-3.0, 4.0]])
  close(losses.importance_weighted_bound(log_w), log_w[0], atol=0)


def test_bound_is_logsumexp_minus_log_k():
  log_w = np.random.default_rng(6).normal(size=(5, 3)) * 4
  want = np.log(np.exp(log_w).mean(axis=0))
  close(losses.importance_weighted_bound(*f32(log_w)), want, rtol=2e-6)
  close(losses.importance_weighted_bound(*f32(log_w.T), axis=1), want, rtol=2e-6)
  shifted = losses.importance_weighted_bound(*f32(log_w - 1000))  # e^-1000 underflows
  close(shifted, want - 1000, rtol=1e-6)
  assert (want > log_w.mean(axis=0)).all()  # not the average of k ELBOs


def test_bound_gradient_is_the_softmax_weighting():
  log_w = np.random.default_rng(7).normal(size=(5, 3)) * 2
  grad = jax.grad(lambda l: losses.importance_weighted_bound(l).sum())(*f32(log_w))
  want = np.exp(log_w) / np.exp(log_w).sum(axis=0)
  close(grad, want, rtol=2e-6)


def test_bound_grows_with_k_to_the_evidence_of_a_linear_gaussian_model():
  # z ~ N(0, 1), x | z ~ N(z, 1), so x ~ N(0, 2); q is the prior
  x, keys = 1.3, jax.random.split(jax.random.key(0), 3)
  evidence = -0.5 * (x**2 / 2 + np.log(2 * np.pi * 2))

  @functools.partial(jax.jit, static_argnums=1)
  def bound(key, k):
    z = jax.random.normal(key, (k, 4000, 1))
    log_w = losses.gaussian_log_prob(jnp.full((4000, 1), x), z, 0.0, event_ndim=1)
    return losses.importance_weighted_bound(log_w).mean()

  elbo, five, fifty = (float(bound(key, k)) for key, k in zip(keys, (1, 5, 50)))
  # E_q log p(x | z) = -1/2 (log 2 pi + x^2 + 1)
  assert abs(elbo - -0.5 * (np.log(2 * np.pi) + x**2 + 1)) < 0.1
  assert elbo < five - 0.1 < fifty and abs(fifty - evidence) < 0.02
