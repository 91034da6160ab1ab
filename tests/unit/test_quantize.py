"""Vector quantisation: gradients and codebooks against closed forms, and what goes wrong fails."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gm import sharding
from gm.nn import quantize

QUICK = {"xla_backend_optimization_level": 0}
jit = functools.partial(jax.jit, compiler_options=QUICK)


def normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


# ------------------------------------------------------------------------------ choice and gradient


def test_the_nearest_code_is_that_of_brute_force():
  rng = np.random.default_rng(0)
  for shift in (0, 1e3):  # far from the origin the squares swamp their differences
    z, codes = rng.normal(size=(7, 9, 5)) + shift, rng.normal(size=(31, 5)) + shift
    z, codes = z.astype(np.float32), codes.astype(np.float32)
    exact = ((z[..., None, :].astype(np.float64) - codes) ** 2).sum(-1).argmin(-1)
    found = jit(quantize.nearest)(jnp.asarray(z), jnp.asarray(codes))
    np.testing.assert_array_equal(found, exact)
    assert found.dtype == jnp.int32
  assert int(quantize.nearest(jnp.zeros(2), jnp.ones((3, 2)))) == 0  # of equals the first


def swapped_estimator(z, e):
  return e + jax.lax.stop_gradient(z - e)


def routes(estimator):
  """Gradients in z, in the codes, and at the decoder's input, of some loss downstream."""
  z, codes, w = normal(0, 6, 4), normal(1, 5, 4), normal(2, 4, 3)
  loss = lambda e: jnp.sum(jnp.sin(e @ w) ** 3)
  index = quantize.nearest(z, codes)
  through = lambda z, codes: loss(estimator(z, codes[index]))
  of_z, of_codes = jax.grad(through, (0, 1))(z, codes)
  return of_z, of_codes, jax.grad(loss)(codes[index])


def test_reconstruction_reaches_the_encoder_as_it_is_and_the_codes_not_at_all():
  of_z, of_codes, at_decoder = routes(quantize.straight_through)
  np.testing.assert_array_equal(of_z, at_decoder)
  assert not of_codes.any()
  of_z, of_codes, _ = routes(swapped_estimator)
  assert not of_z.any() and of_codes.any()  # what a wrong estimator would look like here


def test_the_decoder_sees_the_codes_to_the_bit():
  z, e = 1e3 * normal(0, 50), normal(1, 50)
  np.testing.assert_array_equal(jit(quantize.straight_through)(z, e), e)


def legacy(z, e, *, beta):
  return quantize.commitment(z, e) + beta * quantize.commitment(e, z)


@pytest.mark.parametrize("objective, right", [(quantize.objective, True), (legacy, False)])
def test_beta_weighs_the_commitment_and_not_the_codes(objective, right):
  z, e = normal(0, 6, 4), normal(1, 6, 4)
  grad = lambda beta: jax.grad(functools.partial(objective, beta=beta), (0, 1))(z, e)
  (z_one, e_one), (z_two, e_two) = grad(0.25), grad(0.5)
  close = functools.partial(np.allclose, rtol=1e-5)
  of_z, of_e = 2 * 0.25 * (z - e) / z.size, 2 * (e - z) / z.size
  assert (close(z_one, of_z) and close(e_one, of_e)) == right
  assert (close(z_two, 2 * z_one) and close(e_two, e_one)) == right


# --------------------------------------------------------------------------------- moving averages


CENTRES = np.array([[1.0, 2.0], [-4.0, 0.5], [3.0, -3.0]], np.float32)


def clusters(num=40):
  """Rows whose nearest codes never change, and their means."""
  noise = 0.1 * np.random.default_rng(0).normal(size=(3, num, 2)).astype(np.float32)
  rows = CENTRES[:, None] + noise
  return jnp.asarray(rows.reshape(-1, 2)), rows.mean(1)


def follow(book, z, num_steps, decay=0.99, update=quantize.update):
  def one(book, _):
    counts, sums = quantize.totals(z, quantize.nearest(z, book.codes), len(book.codes))
    return update(book, counts, sums, decay=decay), None

  return jit(lambda book: jax.lax.scan(one, book, length=num_steps)[0])(book)


def test_codes_become_the_means_of_their_clusters_and_unused_ones_stay():
  z, means = clusters()
  far = jnp.array([[90.0, 90.0]])
  book = quantize.start(jnp.concatenate([CENTRES + 0.3, far]))
  for num_steps in (1, 500):
    found = follow(book, z, num_steps)
    np.testing.assert_allclose(found.codes[:3], means, rtol=1e-4)
    np.testing.assert_array_equal(found.codes[3:], far)
    np.testing.assert_allclose(found.counts / (1 - 0.99**num_steps), [40, 40, 40, 0], rtol=1e-4)


def test_what_was_true_before_decays_as_d_to_the_t():
  """The clusters move by v once: t batches later a code lacks the share of the weight before."""
  z, means = clusters()
  shift, before = jnp.array([0.4, -0.2]), follow(quantize.start(CENTRES), z, 10)
  for t in (1, 5, 50):
    found = follow(before, z + shift, t, decay=0.9)
    # ten batches at 0.99 weigh 1 - 0.99^10, then 0.9^t of that
    old = (1 - 0.99**10) * 0.9**t
    share = old / (old + 1 - 0.9**t)
    np.testing.assert_allclose(found.codes, means + shift * (1 - share), rtol=1e-3, atol=1e-4)


def biased(book, counts, sums, *, decay, eps=1e-5):
  """The rule without debiasing, its sums begun at the codes, as in another library."""
  mix = lambda average, new: decay * average + (1 - decay) * new
  before = jnp.where(book.steps == 0, book.codes, book.sums)
  new_counts, new_sums = mix(book.counts, counts), mix(before, sums)
  total = new_counts.sum()
  smooth = (new_counts + eps) * total / (total + len(counts) * eps)
  return quantize.Codebook(new_sums / smooth[:, None], new_counts, new_sums, book.steps + 1)


def test_without_debiasing_the_first_codes_are_thrown_far_off():
  z, means = clusters()
  off = lambda update: np.abs(
    follow(quantize.start(CENTRES), z, 1, update=update).codes - means
  ).max()
  assert off(quantize.update) < 1e-3 < 1 < off(biased)


def test_eps_is_of_rows_and_not_of_a_share_of_them():
  """One row a code: with counts a hundredth as large, as if they were not debiased, eps shows."""
  book = quantize.start(jnp.zeros((4, 1)))
  sums = jnp.arange(1.0, 5.0)[:, None]
  codes = quantize.update(book, jnp.ones(4), sums, decay=0.99).codes
  np.testing.assert_allclose(codes, sums, rtol=1e-5)
  uneven = quantize.update(book, jnp.array([3.0, 1, 0, 0]), sums, decay=0.5, eps=0.5).codes
  smooth = np.array([3.5, 1.5]) * 4 / 6
  np.testing.assert_allclose(uneven[:2, 0], np.array([1.0, 2.0]) / smooth, rtol=1e-5)


def test_two_devices_give_the_codebook_of_one():
  """Sums go over the whole batch, whichever device its rows are on; half of it gives another."""
  z = normal(0, 64, 3, 4)
  book = quantize.start(quantize.first_codes(jax.random.key(1), z, 8, how="kmeans"))
  mesh = sharding.make_mesh(2)
  split = jax.device_put(z, NamedSharding(mesh, PartitionSpec("data")))

  def one(book, z):
    book = quantize.update(book, *quantize.totals(z, quantize.nearest(z, book.codes), 8), decay=0.9)
    return quantize.restart(book, jax.random.key(2), z, decay=0.9, threshold=20.0)

  want, found, half = jit(one)(book, z), jit(one)(book, split), jit(one)(book, z[:32])
  assert np.abs(half.codes - want.codes).max() > 0.1
  assert (want.counts > 2.1).any() and np.isclose(want.counts, 2.0).any()  # some were restarted
  for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(found), strict=True):
    np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)
  first = jit(functools.partial(quantize.first_codes, num_codes=8, how="kmeans"))
  np.testing.assert_allclose(first(jax.random.key(1), split), book.codes, rtol=1e-6)


def test_dead_codes_begin_again_on_rows_and_only_those():
  z, _ = clusters()
  far = jnp.full((2, 2), 90.0)
  book = follow(quantize.start(jnp.concatenate([CENTRES, far])), z, 3)
  options = {"decay": 0.99, "threshold": 2.0}
  assert quantize.dead(book, **options).tolist() == [False] * 3 + [True] * 2
  found = quantize.restart(book, jax.random.key(0), z, **options)
  np.testing.assert_array_equal(found.codes[:3], book.codes[:3])
  assert all((np.asarray(z) == code).all(1).any() for code in np.asarray(found.codes[3:]))
  again = quantize.restart(found, jax.random.key(1), z, **options)
  jax.tree.map(np.testing.assert_array_equal, again, found)  # they have time to be chosen
  later = follow(found, jnp.broadcast_to(found.codes[0], (40, 2)), 1)  # nobody chooses them
  assert quantize.dead(later, **options).tolist() == [False] * 3 + [True] * 2


# ------------------------------------------------------------- sixteen clusters, by how codes begin


@functools.cache
def learn(how, restart_every, num_steps=500, seeds=8):
  """Perplexity and squared error of 16 codes on a grid of 16 clusters, of the last batch."""
  grid = jnp.stack(jnp.meshgrid(*[2.0 * jnp.arange(4)] * 2), -1).reshape(16, 2) + 10

  def draw(key):
    which, noise = jax.random.split(key)
    rows = grid[jax.random.randint(which, (256,), 0, 16)]
    return rows + 0.1 * jax.random.normal(noise, (256, 2))

  def run(key):
    first, again, data = jax.random.split(key, 3)
    z = draw(jax.random.fold_in(data, num_steps))
    book = quantize.start(quantize.first_codes(first, z, 16, how=how))

    def one(book, i):
      z = draw(jax.random.fold_in(data, i))
      index = quantize.nearest(z, book.codes)
      counts, sums = quantize.totals(z, index, 16)
      error = jnp.sum((z - book.codes[index]) ** 2, -1).mean()
      book = quantize.update(book, counts, sums, decay=0.99)
      if restart_every:
        due = (i + 1) % restart_every == 0
        key = jax.random.fold_in(again, i)
        new = quantize.restart(book, key, z, decay=0.99, threshold=1.0)
        book = jax.tree.map(lambda a, b: jnp.where(due, a, b), new, book)
      return book, (quantize.perplexity(counts), error)

    _, (perplexity, error) = jax.lax.scan(one, book, jnp.arange(num_steps))
    return perplexity[-1], error[-1]

  found = jit(jax.vmap(run))(jax.random.split(jax.random.key(0), seeds))
  return [np.asarray(x) for x in found]


def test_codes_that_begin_apart_find_all_clusters():
  perplexity, error = learn("kmeans", 0)
  # of 256 rows in 16 clusters; 2 sd^2 is the least error
  assert (perplexity > 15).all() and np.mean(perplexity) > 15.4, perplexity
  assert error.max() < 0.026 and error.mean() < 0.022, error


def test_codes_that_begin_on_rows_find_most():
  perplexity, error = learn("batch", 0)
  assert 11 < perplexity.mean() < 15 and error.mean() > 0.1, (perplexity, error)


def test_codes_that_begin_elsewhere_need_restarts():
  perplexity, _ = learn("uniform", 0)
  assert (perplexity < 5).all(), perplexity
  perplexity, _ = learn("uniform", 20)
  assert (perplexity > 10).all(), perplexity


def test_fewer_rows_than_codes():
  z = normal(0, 3, 5, 2)
  for how in ("kmeans", "batch"):
    assert quantize.first_codes(jax.random.key(0), z, 15, how=how).shape == (15, 2)
    with pytest.raises(ValueError, match=r"15 positions to begin 16 codes.*num_codes.*code_init"):
      quantize.first_codes(jax.random.key(0), z, 16, how=how)
  assert jnp.abs(quantize.first_codes(jax.random.key(0), z, 16, how="uniform")).max() <= 1 / 16
  with pytest.raises(ValueError, match="code_init='grid'"):
    quantize.first_codes(jax.random.key(0), z, 4, how="grid")
  same = jnp.ones((9, 2))  # of equal rows there is no choice, and no number that is none
  np.testing.assert_array_equal(
    quantize.first_codes(jax.random.key(0), same, 4, how="kmeans"), same[:4]
  )


def test_random_rows_are_different_rows():
  z = jnp.arange(12.0)[:, None]
  found = quantize.first_codes(jax.random.key(0), z, 12, how="batch")
  np.testing.assert_array_equal(np.sort(found, 0), z)


# ------------------------------------------------------------------------------------ soft choices


def test_gumbel_draws_follow_the_logits_at_any_temperature():
  probs = np.array([0.6, 0.3, 0.1])
  logits = jnp.broadcast_to(jnp.log(probs) + 5, (20_000, 3))
  for tau in (0.1, 1.0, 5.0):
    soft = quantize.gumbel_softmax(jax.random.key(0), logits, tau)
    np.testing.assert_allclose(soft.sum(-1), 1, atol=1e-5)
    share = np.bincount(soft.argmax(-1), minlength=3) / 20_000
    np.testing.assert_allclose(share, probs, atol=4 * np.sqrt(0.25 / 20_000))
  half = quantize.gumbel_softmax(jax.random.key(0), jnp.zeros((20_000, 4), jnp.bfloat16), 1.0)
  np.testing.assert_allclose(np.bincount(half.argmax(-1)) / 20_000, 0.25, atol=0.015)


def test_hard_draws_are_one_hot_with_the_gradient_of_soft_ones():
  logits, w, key = normal(0, 6, 4), normal(1, 6, 4), jax.random.key(2)
  draw = lambda hard: lambda x: quantize.gumbel_softmax(key, x, 0.7, hard=hard)
  hard, soft = draw(True)(logits), draw(False)(logits)
  np.testing.assert_array_equal(hard, jax.nn.one_hot(soft.argmax(-1), 4))
  of = lambda hard: jax.grad(lambda x: jnp.sum(w * draw(hard)(x)))(logits)
  np.testing.assert_allclose(of(True), of(False), rtol=1e-6)
  assert np.abs(of(True)).max() > 0.01


def test_a_cold_draw_is_nearly_one_hot_and_a_hot_one_nearly_even():
  spread = lambda tau: quantize.gumbel_softmax(jax.random.key(0), normal(1, 99, 4), tau).max(-1)
  assert spread(0.01).mean() > 0.97 and spread(100.0).mean() < 0.27
