"""Optimizers against NumPy versions of their published rules; schedules against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gm import optim

STEPS = 6
GRADS = np.random.default_rng(0).normal(size=(STEPS, 3)) * np.array([1.0, 1e-3, 10.0])
GRADS[2] = 0.0  # a step without gradient must be survived
START = np.array([1.0, -2.0, 0.5])


def run(tx, grads=GRADS, start=START):
  """Parameters after each update, [steps, n]."""

  @jax.jit
  def update(w, state, g):
    updates, state = tx.update(g, state, w)
    return optax.apply_updates(w, updates), state

  w = jnp.asarray(start, jnp.float32)
  state, path = tx.init(w), []
  for g in grads:
    w, state = update(w, state, jnp.asarray(g, jnp.float32))
    path.append(np.asarray(w, np.float64))
  return np.stack(path)


def close(got, want, rtol=2e-5, atol=1e-6):
  np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)


def numpy_adam(lr, b1, b2, eps=1e-8, l2=0.0, decay=0.0):
  w, m, v, path = START.copy(), 0.0, 0.0, []
  for t, g in enumerate(GRADS, 1):
    g = g + l2 * w
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
    step = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
    w = w - lr * (step + decay * w)
    path.append(w)
  return np.stack(path)


def numpy_rmsprop(lr, decay, eps, inside=False):
  w, v, path = START.copy(), 0.0, []
  for g in GRADS:
    v = decay * v + (1 - decay) * g * g
    w = w - lr * g / (np.sqrt(v + eps) if inside else np.sqrt(v) + eps)
    path.append(w)
  return np.stack(path)


@pytest.mark.parametrize("b1, b2, eps", [(0.9, 0.999, 1e-8), (0.5, 0.9, 1e-8), (0.0, 0.99, 1e-2)])
def test_adam_follows_its_rule(b1, b2, eps):
  close(run(optim.adam(0.1, b1, b2, eps)), numpy_adam(0.1, b1, b2, eps))


def test_adam_defaults_are_the_papers():
  close(run(optim.adam(0.1)), numpy_adam(0.1, 0.9, 0.999, 1e-8))


def test_l2_goes_through_the_moments_and_decoupled_decay_does_not():
  coupled = run(optim.adam(0.1, l2=0.3))
  decoupled = run(optim.adamw(0.1, weight_decay=0.3))
  close(coupled, numpy_adam(0.1, 0.9, 0.999, l2=0.3))
  close(decoupled, numpy_adam(0.1, 0.9, 0.999, decay=0.3))
  assert np.abs(coupled - decoupled).max() > 1e-2


def test_adamw_mask_selects_the_leaves_that_decay():
  kernels = lambda params: jax.tree.map(lambda w: w.ndim >= 2, params)
  tx = optim.adamw(0.1, weight_decay=0.5, mask=kernels)
  params = {"kernel": jnp.ones((1, 1)), "bias": jnp.ones(1)}
  updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
  close(updates["kernel"], [[-0.05]])
  close(updates["bias"], [0.0], atol=0)


def test_rmsprop_is_torchs_rule():
  for eps in (1e-8, 1e-2):  # the large eps tells inside from outside of the root
    close(run(optim.rmsprop(0.01, 0.99, eps)), numpy_rmsprop(0.01, 0.99, eps))
  close(run(optim.rmsprop(0.01)), numpy_rmsprop(0.01, 0.99, 1e-8))
  inside = numpy_rmsprop(0.01, 0.99, 1e-2, inside=True)
  assert np.abs(run(optim.rmsprop(0.01, 0.99, 1e-2)) - inside).max() > 1e-3


def test_rmsprop_as_published_by_torch():
  # torch.optim.RMSprop(lr=0.1), two steps with g = 3 from 1: 1 - 0.1 * 3 / (sqrt(0.09) + 1e-8),
  # then - 0.1 * 3 / sqrt(0.0891 + 0.09)
  path = run(optim.rmsprop(0.1), np.full((2, 1), 3.0), np.ones(1))
  close(path[:, 0], [0.0, -0.3 / np.sqrt(0.1791)])


def test_sgd_without_momentum_and_with_a_constant_one():
  close(run(optim.sgd(0.1)), START - 0.1 * GRADS.cumsum(0))
  w, v, path = START.copy(), 0.0, []
  for g in GRADS:
    v = 0.9 * v + g
    w = w - 0.1 * v
    path.append(w)
  close(run(optim.sgd(0.1, 0.9)), np.stack(path))  # torch's form, equal for a constant rate


def test_sgd_with_the_schedules_of_the_first_gan():
  lr, ramp = optim.inverse_decay(0.1, 1.5, floor=0.03), optim.momentum_ramp(num_steps=4)
  w, v, path = START.copy(), 0.0, []
  for t, g in enumerate(GRADS):
    rate, momentum = max(0.1 / 1.5**t, 0.03), 0.5 + 0.2 * min(t / 4, 1)
    v = momentum * v - rate * g  # the rate is inside the velocity
    w = w + v
    path.append(w)
  close(run(optim.sgd(lr, ramp)), np.stack(path))


def test_optimizer_states_are_arrays_only():
  params = {"w": jnp.ones(2)}
  for tx in (
    optim.adam(optim.cosine(0.1, 5), l2=0.1),
    optim.rmsprop(0.1),
    optim.sgd(optim.inverse_decay(0.1), optim.momentum_ramp(num_steps=3)),
    optim.lazy_adam(0.1, 0.0, 0.99, 16),
  ):
    assert isinstance(tx, optax.GradientTransformation)
    state = tx.init(params)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    after = jax.eval_shape(lambda g, s: tx.update(g, s, params)[1], params, state)
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert shapes(after) == shapes(state)  # a fixed point, so that it can be donated


def test_lazy_adam_rescales_rate_and_both_decays():
  c = 4 / 5
  close(run(optim.lazy_adam(0.002, 0.0, 0.99, 4)), numpy_adam(0.002 * c, 0.0, 0.99**c), rtol=1e-6)
  c = 16 / 17
  close(run(optim.lazy_adam(0.1, 0.5, 0.9, 16)), numpy_adam(0.1 * c, 0.5**c, 0.9**c))
  with pytest.raises(ValueError, match=r"at least 1.*r1_every"):
    optim.lazy_adam(0.1, 0.0, 0.99, 0)


def values(schedule, counts):
  """A schedule as an optimizer sees it: traced, with an i32 count."""
  return np.asarray(jax.jit(jax.vmap(schedule))(jnp.asarray(counts, jnp.int32)), np.float64)


def test_momentum_ramp_of_the_first_gan():
  steps = 250 * 500
  counts = np.array([0, 1, 500, 62_500, 125_000, 125_001, 10**6])
  want = 0.5 + 0.2 * np.minimum(counts / steps, 1)
  close(values(optim.momentum_ramp(num_steps=steps), counts), want, rtol=1e-6)


def test_learning_rate_decay_of_the_first_gan():
  counts = np.array([0, 1, 1000, 250_000, 10**6, 2_800_000, 2_900_000, 10**7])
  want = np.maximum(0.1 / 1.000004**counts, 1e-6)
  assert want[-3] > 1e-6 == want[-2]  # the floor is reached between the two
  close(values(optim.inverse_decay(0.1), counts), want, rtol=1e-5, atol=0)


def test_constant_linear_and_cosine():
  assert optim.constant(0.1)(10**6) == 0.1
  t = np.arange(30)
  close(values(optim.linear(2.0, 20), t), 2 * np.maximum(1 - t / 20, 0))
  want = np.where(t < 10, 2.0, 2.0 - 1.5 * np.minimum((t - 10) / 10, 1))
  close(values(optim.linear(2.0, 20, start=10, final=0.5), t), want)
  part = np.minimum(t / 20, 1)
  close(values(optim.cosine(2.0, 20), t), 1 + np.cos(np.pi * part))
  close(values(optim.cosine(2.0, 20, final=0.5), t), 0.5 + 0.75 * (1 + np.cos(np.pi * part)))


def test_warmup_multiplies_a_number_or_a_schedule():
  t = np.arange(12)
  ramp = np.minimum((t + 1) / 5, 1)
  close(values(optim.warmup(0.3, 5), t), 0.3 * ramp)
  close(values(optim.warmup(optim.linear(1.0, 10), 5), t), ramp * np.maximum(1 - t / 10, 0))
  close(values(optim.warmup(0.3, 0), t), np.full(12, 0.3))


def test_staircase_falls_at_each_multiple_and_stops_at_the_floor():
  counts = np.array([0, 1599, 1600, 1999, 3200])
  close(values(optim.staircase(5e-4, 0.1, 1600), counts), 5e-4 * 0.1 ** (counts // 1600), atol=0)
  close(values(optim.staircase(1.0, 0.5, 10, floor=0.2), [0, 10, 20, 30]), [1, 0.5, 0.25, 0.2])
