"""Losses at their optima, at values computed by hand, and against NumPy in float64."""

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
