"""How captions and images fit, against loops in NumPy and closed forms."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from gm import matching

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def some(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


REGIONS, WORDS = some(3, 5, 4), some(3, 6, 4, seed=1)
LENGTHS = np.array([6, 2, 1])
MASK = np.arange(6) < LENGTHS[:, None]


def softmax(x, axis):
  e = np.exp(x - x.max(axis, keepdims=True))
  return e / e.sum(axis, keepdims=True)


def cosine(a, b):
  return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def one_by_one(gamma, sharpness):
  """Every image with every caption, cut to its words."""
  found = np.zeros((3, 3))
  for i, v in enumerate(REGIONS):
    for j, n in enumerate(LENGTHS):
      e = WORDS[j, :n]
      weights = softmax(gamma * softmax(v @ e.T, 1), 0)  # [R, n]
      found[i, j] = np.log(np.exp(sharpness * cosine(weights.T @ v, e)).sum())
  return found


def test_relevance_is_that_of_each_pair_alone():
  for gamma, sharpness in ((4.0, 5.0), (1.0, 2.0)):
    how = {"gamma": gamma, "sharpness": sharpness}
    got = jit(functools.partial(matching.relevance, **how))(REGIONS, WORDS, MASK)
    np.testing.assert_allclose(got, one_by_one(gamma, sharpness), rtol=1e-5)


def test_what_stands_at_padding_is_not_seen():
  other = np.where(MASK[..., None], WORDS, 100.0)
  got = [jit(matching.relevance)(REGIONS, w, MASK) for w in (WORDS, other)]
  np.testing.assert_array_equal(*got)


def test_matching_is_the_sum_of_four_entropies():
  """Of rows and of columns, by words and by sentences, with the own pair on the diagonal."""
  whole, sentence = some(3, 4, seed=2), some(3, 4, seed=3)
  own = np.eye(3, dtype=bool)
  got = jit(matching.matching)(REGIONS, whole, sentence, WORDS, MASK, own)
  scores = [one_by_one(4.0, 5.0), cosine(whole[:, None], sentence)]
  want = 0.0
  for s in scores:
    for axis in (0, 1):
      want -= np.log(np.diag(softmax(10.0 * s, axis))).mean()
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_where_all_codes_are_alike_it_is_four_log_b():
  same = [np.broadcast_to(some(*shape), (5, *shape)) for shape in ((7, 4), (4,), (4,), (6, 4))]
  mask = np.ones((5, 6), bool)
  got = jit(matching.matching)(*same, mask, np.eye(5, dtype=bool))
  np.testing.assert_allclose(got, 4 * math.log(5), rtol=1e-5)


def test_pairs_that_fit_as_well_are_not_counted():
  scores, same = some(4, 4), np.eye(4, dtype=bool)
  same[0, 2] = same[2, 0] = True
  rest = lambda s, i: [s[i, j] for j in range(4) if j == i or not same[i, j]]
  want = sum(
    np.log(np.exp(rest(s, i)).sum()) - s[i, i] for s in (scores, scores.T) for i in range(4)
  )
  np.testing.assert_allclose(matching.contrast(scores, same), want / 4, rtol=1e-5)


def test_the_gradient_is_finite_where_a_code_is_zero():
  zero = lambda *shape: jnp.zeros(shape)
  args = (zero(2, 3, 4), zero(2, 4), zero(2, 4), zero(2, 5, 4))
  mask = np.ones((2, 5), bool)
  loss = lambda *args: matching.matching(*args, mask, np.eye(2, dtype=bool))
  value, grads = jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3)))(*args)
  np.testing.assert_allclose(value, 4 * math.log(2), rtol=1e-6)
  assert all(np.isfinite(g).all() for g in grads)


def test_r_precision():
  """Of right codes, of codes that say nothing, of random ones, and where captions repeat."""
  key, code, measure = jax.random.key(0), some(60, 32), matching.r_precision
  of_ten = jit(functools.partial(measure, num=10))
  tokens = jnp.arange(60)[:, None]
  assert of_ten(code, 3 * code, tokens, key) == 1
  assert of_ten(code, -code, tokens, key) == 0
  assert of_ten(np.ones_like(code), np.ones_like(code), tokens, key) == 0
  many, n = some(4_000, 8, seed=4), jnp.arange(4_000)[:, None]
  chance = jit(functools.partial(measure, num=5))(many, some(4_000, 8, seed=5), n, key)
  assert abs(chance - 0.2) < 4 * math.sqrt(0.16 / 4_000)
  # two kinds of caption: of the other kind is nearer to the second half alone
  whole = np.repeat([[1.0, 0.0], [0.8, 0.6]], 30, axis=0)
  sentence = np.repeat([[1.0, 0.0], [0.0, 1.0]], 30, axis=0)
  kind = jnp.repeat(jnp.array([[1], [2]]), 30, axis=0)
  assert of_ten(whole, sentence, kind, key) == 0.5
  assert of_ten(whole, sentence, 0 * kind, key) == 1  # there are no others


def test_weights_of_the_aware_losses():
  """Halves of the real terms, thirds of the others, each by its own logits."""
  logits = [np.float32([x, x + 1]) for x in (-2.0, -1.0, 0.0, 1.0, 2.0)]
  plus = lambda x: np.log1p(np.exp(x)).mean()
  real_image, real_pair, wrong, fake_image, fake_pair = logits
  want = (plus(-real_image) + plus(-real_pair)) / 2
  want += (plus(wrong) + plus(fake_image) + plus(fake_pair)) / 3
  np.testing.assert_allclose(matching.aware_d(*logits), want, rtol=1e-6)
  want = plus(-fake_image) + plus(-fake_pair)
  np.testing.assert_allclose(matching.aware_g(fake_image, fake_pair), want, rtol=1e-6)
