"""The law of pixels: against NumPy in float64, sums over all levels, extremes, and draws."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import test_util

from gm.probability import logistic_mixture


def sigmoid(x):
  return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def numbers(seed, shape, channels, num=3, spread=1.0):
  rng = np.random.default_rng(seed)
  out = spread * rng.normal(size=(*shape, num, 10 if channels == 3 else 3))
  return out.reshape(*shape, -1)


def levels(bits):
  return 2 * np.arange(2**bits) / (2**bits - 1) - 1


def by_hand(x, out, bits):
  """P(x) of one pixel [C]; the layout of the numbers is read off one by one."""
  channels, top = len(x), 2**bits - 1
  num = len(out) // (10 if channels == 3 else 3)
  share = np.exp(out[:num]) / np.exp(out[:num]).sum()
  kinds = 3 if channels == 3 else 2
  total = 0.0
  for k in range(num):
    of = lambda channel, kind: out[num + channel * kinds * num + kind * num + k]
    means = [of(c, 0) for c in range(channels)]
    if channels == 3:
      c_rg, c_rb, c_gb = (np.tanh(of(c, 2)) for c in range(3))
      means = [means[0], means[1] + c_rg * x[0], means[2] + c_rb * x[0] + c_gb * x[1]]
    p = share[k]
    for c in range(channels):
      scale = np.exp(max(of(c, 1), -7.0))
      upper = 1.0 if np.isclose(x[c], 1) else sigmoid((x[c] + 1 / top - means[c]) / scale)
      lower = 0.0 if np.isclose(x[c], -1) else sigmoid((x[c] - 1 / top - means[c]) / scale)
      p *= upper - lower
    total += p
  return total


@pytest.mark.parametrize("channels, bits", [(1, 8), (3, 8), (3, 5)])
def test_probabilities_by_hand(channels, bits):
  rng, out = np.random.default_rng(0), numbers(1, (5, 4, 4), channels)
  x = rng.choice(levels(bits), (5, 4, 4, channels))
  x[0, :2], x[1, 2:] = -1, 1
  want = [
    sum(np.log(by_hand(x[i, j, k], out[i, j, k], bits)) for j in range(4) for k in range(4))
    for i in range(5)
  ]
  with jax.enable_x64(True):
    got = logistic_mixture.log_prob(jnp.asarray(x), jnp.asarray(out), bits=bits)
    np.testing.assert_allclose(got, want, rtol=1e-9)
  got = logistic_mixture.log_prob(*(jnp.asarray(a, jnp.float32) for a in (x, out)), bits=bits)
  np.testing.assert_allclose(got, want, rtol=1e-4)
  some = jnp.asarray(np.stack([out, 2 * out]), jnp.float32)  # [k, B, ...]
  again = logistic_mixture.log_prob(jnp.asarray(x, jnp.float32), some, bits=bits)
  assert again.shape == (2, 5)
  np.testing.assert_allclose(again[0], want, rtol=1e-4)


def test_all_levels_sum_to_one():
  """256 of grey for 1,000 laws, narrow ones too; all triples of colours for fewer bits."""
  x = jnp.asarray(levels(8))[:, None, None]
  out = numbers(2, (1_000,), 1, spread=3.0)
  wide = lambda out: jnp.asarray(out)[None]
  with jax.enable_x64(True):
    log_p = logistic_mixture.log_prob(
      jnp.asarray(levels(8))[:, None, None], wide(out), event_ndim=1
    )
    np.testing.assert_allclose(jnp.exp(log_p).sum(0), 1, rtol=1e-12)
  log_p = logistic_mixture.log_prob(x, wide(out.astype(np.float32)), event_ndim=1)
  np.testing.assert_allclose(jnp.exp(log_p).sum(0), 1, rtol=3e-5)
  x = np.array(list(itertools.product(levels(3), repeat=3)))[:, None]
  with jax.enable_x64(True):
    out = numbers(3, (200,), 3, spread=2.0)
    log_p = logistic_mixture.log_prob(jnp.asarray(x), wide(out), bits=3, event_ndim=1)
    np.testing.assert_allclose(jnp.exp(log_p).sum(0), 1, rtol=1e-12)


@pytest.mark.parametrize("log_scale", [-100.0, -7.0, 0.0, 30.0, 80.0])
@pytest.mark.parametrize("mean", [-1e4, 0.3, 1e4])
def test_extremes_are_finite_and_so_are_gradients(mean, log_scale):
  x = jnp.asarray(levels(8), jnp.float32)[:, None]
  out = jnp.broadcast_to(jnp.array([0.0, mean, log_scale]), (256, 3))
  value, grad = jax.value_and_grad(lambda o: logistic_mixture.log_prob(x, o, event_ndim=1).sum())(
    out
  )
  assert np.isfinite(value) and np.isfinite(grad).all()
  if log_scale >= 30:  # flat: half on either side, and the levels between share 2 / 255 / 4 scale
    log_p = logistic_mixture.log_prob(x, out, event_ndim=1)
    want = np.log(2 / 255 / 4) - log_scale
    np.testing.assert_allclose(log_p[1:-1], want, rtol=1e-4)


def test_gradients_are_those_of_differences():
  x = np.random.default_rng(0).choice(levels(8), (1, 2, 1, 3))
  x[0, 0] = -1, 1, -1
  with jax.enable_x64(True):
    f = lambda o: logistic_mixture.log_prob(jnp.asarray(x), o)[0]
    test_util.check_grads(f, (jnp.asarray(numbers(4, (1, 2, 1), 3)),), order=1, modes=["rev"])


@pytest.mark.parametrize("channels", [1, 3])
def test_draws_are_of_the_law(channels):
  """Frequencies of all combinations against probabilities, within five deviations."""
  num, bits = 200_000, 2
  out = jnp.asarray(numbers(5, (), channels, spread=1.5), jnp.float32)
  u = jax.random.uniform(jax.random.key(0), (num, 1 + channels))
  x = logistic_mixture.draw(jnp.broadcast_to(out, (num, *out.shape)), u, bits=bits)
  every = np.array(list(itertools.product(levels(bits), repeat=channels)), np.float32)
  p = np.exp(logistic_mixture.log_prob(jnp.asarray(every), out, bits=bits, event_ndim=1))
  index = np.round((np.asarray(x) + 1) * (2**bits - 1) / 2).astype(int)
  assert index.min() >= 0 and index.max() < 2**bits
  counts = np.bincount(index @ 4 ** np.arange(channels)[::-1], minlength=len(every))
  assert (abs(counts - num * p) < 5 * np.sqrt(num * p) + 5).all()
  assert np.corrcoef(counts, num * p)[0, 1] > 0.999


def test_only_grey_and_colour():
  with pytest.raises(ValueError, match=r"not of 2 channels: set --config\.data\.channels"):
    logistic_mixture.num_outputs(2, 5)
