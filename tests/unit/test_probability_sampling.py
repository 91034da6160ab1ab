"""Samplers against the laws that they draw from, 200,000 draws each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm.probability import fit, gradients, sampling

N = 200_000
KS_LIMIT = 1.63 / np.sqrt(N)  # the 1 % point of the Kolmogorov-Smirnov distance
KEY = jax.random.key(0)
TABLE = jnp.array([0.32, 0.03, 0.01, 0.06, 0.24, 0.02, 0.02, 0.03, 0.27])
DISTANCE = jax.jit(lambda x, mask: fit.ks_distance(x, sampling.quadratic_cdf, mask))


def ks(x):
  """The distance to 3/8 x^2 by NumPy."""
  cdf, n = np.sort(np.asarray(x, np.float64)) ** 3 / 8, len(x)
  return max((np.arange(1, n + 1) / n - cdf).max(), (cdf - np.arange(n) / n).max())


def log_f(x):
  return jnp.log(sampling.quadratic_pdf(x))


# bound, its sampler, and the acceptance 1 / (integral of the bound)
BOUNDS = {
  "constant": (
    lambda x: jnp.full_like(x, jnp.log(1.5)),
    lambda key, n: 2 * jax.random.uniform(key, (n,)),
    1 / 3,
  ),
  "triangle": (
    lambda x: jnp.log(0.75 * x),
    lambda key, n: 2 * jnp.sqrt(jax.random.uniform(key, (n,))),
    2 / 3,
  ),
}


# --- inverses


def test_analytic_and_tabulated_inverse_follow_the_law():
  grid = jnp.linspace(0, 2, 2049)
  density, cdf = sampling.quadratic_pdf(grid), 5 + 3 * sampling.quadratic_cdf(grid)

  @jax.jit
  def draw(key):
    return (
      sampling.inverse_transform(key, sampling.quadratic_inverse_cdf, (N,)),
      sampling.tabulated_inverse(key, grid, 7 * density, (N,)),
      sampling.tabulated_inverse(key, grid, cdf, (N,), cumulative=True),
    )

  analytic, *tabulated = draw(KEY)
  assert ks(analytic) < KS_LIMIT
  assert abs(analytic.mean() - 1.5) < 4 * np.sqrt(0.15 / N)
  assert abs(analytic.var() - 0.15) < 0.002
  for x in tabulated:
    assert ks(x) < KS_LIMIT and x.min() >= 0 and x.max() <= 2
    # the same u: the two inverses agree, but for the corner at 0 where F is flattest
    assert np.abs(x - analytic).max() < 2e-3 and np.median(np.abs(x - analytic)) < 1e-6


@pytest.mark.parametrize("bits, normal", [(0, -12.95), (1, -5.17), (2**23 - 1, 5.17)])
def test_where_normals_by_their_inverse_end(monkeypatch, bits, normal):
  """The three draws at the ends, by jax's own formula for them from 23 random bits."""

  def uniform(key, shape, dtype, *, minval):
    u = jnp.full(shape, bits * 2.0**-23, dtype)
    return jnp.maximum(minval, u * (1 - minval) + minval)

  monkeypatch.setattr(jax.random, "uniform", uniform)
  x = sampling.inverse_transform(KEY, jax.scipy.stats.norm.ppf, ())
  np.testing.assert_allclose(x, normal, atol=0.01)


def test_closed_forms_of_the_law():
  with jax.enable_x64(True):
    x = jnp.linspace(0, 2, 9)
    np.testing.assert_allclose(sampling.quadratic_cdf(x), x**3 / 8, atol=1e-15)
    np.testing.assert_allclose(
      jax.vmap(jax.grad(sampling.quadratic_cdf))(x[1:-1]), sampling.quadratic_pdf(x[1:-1])
    )
    inverse = sampling.quadratic_inverse_cdf(sampling.quadratic_cdf(x))
    np.testing.assert_allclose(inverse, x, atol=1e-15)
    np.testing.assert_allclose(sampling.quadratic_inverse_cdf(0.5), 1.587401, atol=5e-7)
    grid = (np.arange(100_000) + 0.5) / 50_000
    f = sampling.quadratic_pdf(grid)
    np.testing.assert_allclose(-(f * jnp.log(f)).sum() / 50_000, 0.261202, atol=5e-7)
    assert (sampling.quadratic_pdf(jnp.array([-0.1, 2.1])) == 0).all()


def test_flat_parts_of_a_table_are_never_drawn():
  grid = jnp.array([0.0, 1, 2, 3, 5, 6, 7])
  x = sampling.tabulated_inverse(KEY, grid, jnp.array([0.0, 0, 1, 0, 0, 2, 0]), (5_000,))
  counts = np.histogram(x, np.asarray(grid))[0]
  assert counts[0] == counts[3] == 0
  np.testing.assert_allclose(counts / 5_000, np.array([0, 1, 1, 0, 2, 2]) / 6, atol=0.03)
  steps = jnp.array([0.0, 0, 0.5, 0.5, 0.5, 1, 1])
  x = sampling.tabulated_inverse(KEY, grid, steps, (5_000,), cumulative=True)
  assert (np.histogram(x, np.asarray(grid))[0][[0, 2, 3, 5]] == 0).all()


def test_u_is_never_0_and_double_precision_is_kept():
  x = sampling.inverse_transform(KEY, lambda u: -jnp.log(u), (N,))
  assert jnp.isfinite(x).all() and abs(x.mean() - 1) < 4 / np.sqrt(N)
  with jax.enable_x64(True):
    x = sampling.inverse_transform(KEY, lambda u: u, (4, 3))
    assert x.dtype == jnp.float64 and x.shape == (4, 3)
    assert (x * 2.0**23 % 1 != 0).any()  # finer than the grid of float32


def test_discrete_inverse_fits_the_table():
  draw = jax.jit(lambda key, p: sampling.discrete_inverse_cdf(key, p, (N,)))
  k = np.asarray(draw(KEY, 50 * TABLE))  # need not be normalised
  want = N * np.asarray(TABLE, np.float64)
  chi2 = ((np.bincount(k, minlength=9) - want) ** 2 / want).sum()
  assert chi2 < 26.12  # the 99.9 % point with 8 degrees of freedom
  assert k.dtype == np.int32
  statistic, p_value = jax.jit(fit.chi_square)(k, 50 * TABLE)
  np.testing.assert_allclose(statistic, chi2, rtol=1e-3)
  assert p_value > 0.001
  zeros = np.asarray(draw(KEY, jnp.array([0, 0.1, 0, 0.3, 0, 0, 0.6, 0, 0])))
  assert set(np.unique(zeros)) == {1, 3, 6}


def test_discrete_inverse_takes_the_first_entry_above_u(monkeypatch):
  corners = jnp.array([0.0, 0.25, 0.5, 1 - 2**-24])
  monkeypatch.setattr(jax.random, "uniform", lambda key, shape, dtype: corners.astype(dtype))
  for probs, want in [
    ([0, 1, 0], [1, 1, 1, 1]),  # u = 0 does not find p_0 = 0
    ([1, 1, 2], [0, 1, 2, 2]),  # F = 1/4, 1/2, 1: right of the jump
    ([1, 1, 2, 0], [0, 1, 2, 2]),
  ]:
    assert sampling.discrete_inverse_cdf(KEY, jnp.array(probs), (4,)).tolist() == want
  thirds = jnp.full(3_000, 0.1)  # a sum that rounds: the last index stays inside
  assert int(sampling.discrete_inverse_cdf(KEY, thirds, (4,))[-1]) == 2_999


def test_samplers_map_over_laws():
  grid = jnp.arange(5.0)

  @jax.jit
  @jax.vmap
  def draw(key, p):
    cdf = jnp.cumsum(jnp.pad(p, (1, 0)))
    return sampling.discrete_inverse_cdf(key, p, (5,)), sampling.tabulated_inverse(
      key, grid, cdf, (5,), cumulative=True
    )

  k, x = draw(jax.random.split(KEY, 4), jnp.eye(4))
  assert (k == np.arange(4)[:, None]).all() and (np.floor(x) == np.arange(4)[:, None]).all()


@pytest.mark.parametrize("bad", [[0.5, -0.1, 1], [0.0, 0, 0], [0.5, np.nan, 1], [np.inf, 1, 1]])
def test_what_is_no_law_is_refused_and_marked_inside_jit(bad):
  bad, grid = jnp.array(bad), jnp.arange(3.0)
  message = "they must be finite, none negative, and one at least positive"
  with pytest.raises(ValueError, match=f"probs: .*{message}"):
    sampling.discrete_inverse_cdf(KEY, bad, (3,))
  with pytest.raises(ValueError, match=f"values: .*{message}"):
    sampling.tabulated_inverse(KEY, grid, bad, (3,))

  @jax.jit
  def inside(bad):
    return sampling.discrete_inverse_cdf(KEY, bad, (3,)), sampling.tabulated_inverse(
      KEY, grid, bad, (3,)
    )

  k, x = inside(bad)
  assert (k == -1).all() and jnp.isnan(x).all()


def test_other_wrong_input_is_named():
  up, key = jnp.arange(3.0), KEY
  for call, message in [
    (lambda: sampling.discrete_inverse_cdf(key, jnp.ones((2, 2))), r"\(2, 2\); it takes \[K\]"),
    (lambda: sampling.tabulated_inverse(key, up, jnp.ones(4)), r"grid \(3,\) and values \(4,\)"),
    (lambda: sampling.tabulated_inverse(key, up[::-1], jnp.ones(3)), "finite, none negative"),
    (lambda: sampling.tabulated_inverse(key, up[::-1], -up, cumulative=True), "none negative|rise"),
    (
      lambda: sampling.tabulated_inverse(key, jnp.zeros(3), up, cumulative=True),
      "grid: .* it must rise",
    ),
    (lambda: sampling.tabulated_inverse(key, up, -up, cumulative=True), "steps of values"),
    (lambda: gradients.gaussian_reparam(key, up), "one of std, cov and chol .* none"),
    (lambda: gradients.gaussian_reparam(key, up, std=up, cov=up), r"given \['cov', 'std'\]"),
    (lambda: gradients.gaussian_reparam(key, up, cov=jnp.eye(2)), r"mean \(3,\) and cov \(2, 2\)"),
    (lambda: gradients.gaussian_reparam(key, up, std=-up), "no entry may be negative"),
    (lambda: gradients.gaussian_reparam(key, up, cov=-jnp.eye(3)), "positive definite"),
    (lambda: gradients.gaussian_reparam(key, up, cov=jnp.tri(3)), "positive definite"),
  ]:
    with pytest.raises(ValueError, match=message):
      call()
  cov = jax.jit(lambda c: gradients.gaussian_reparam(key, up, cov=c))(-jnp.eye(3))
  assert jnp.isnan(cov).any()


# --- rejection


@pytest.mark.parametrize("name", BOUNDS)
def test_rejection_follows_the_law_at_the_exact_rate(name):
  log_bound, propose, rate = BOUNDS[name]
  budget = jax.jit(lambda key: sampling.rejection(key, log_f, propose, log_bound, 3 * N))(KEY)
  assert int(budget.tries) == 3 * N and int(budget.violations) == 0
  assert abs(budget.rate - rate) < 0.004
  x = np.asarray(budget.values)[np.asarray(budget.accepted)]
  assert len(x) == int(budget.count) and ks(x) < 1.63 / np.sqrt(len(x))
  distance = DISTANCE(budget.values, budget.accepted)
  np.testing.assert_allclose(distance, ks(x), atol=1e-5)


def test_rejection_in_a_loop_gives_every_draw():
  log_bound, propose, rate = BOUNDS["triangle"]
  draw = jax.jit(lambda key: sampling.rejection_loop(key, log_f, propose, log_bound, N))
  found = draw(KEY)
  assert int(found.count) == N and ks(found.values) < KS_LIMIT
  assert abs(found.rate - rate) < 0.004 and int(found.violations) == 0
  draw = jax.jit(
    lambda key: sampling.rejection_loop(key, log_f, propose, log_bound, 3_000, max_tries=1)
  )
  once = draw(KEY)
  assert int(once.tries) == 3_000 and abs(once.rate - rate) < 4 * np.sqrt(rate * (1 - rate) / 3_000)


def test_a_bound_below_the_density_is_counted_and_refused():
  low = lambda x: jnp.full_like(x, jnp.log(0.75))  # f > 3/4 where x > sqrt 2
  propose = BOUNDS["constant"][1]
  exceeds = 1 - np.sqrt(2) / 2
  for form in (sampling.rejection, sampling.rejection_loop):
    with pytest.raises(ValueError, match=r"log_bound: log_f exceeds it.* at \d+ of \d+ candidates"):
      form(KEY, log_f, propose, low, 500)
    found = jax.jit(lambda key: form(key, log_f, propose, low, 20_000))(KEY)
    assert abs(found.violations / found.tries - exceeds) < 0.015
  # a NaN counts; that f and b vanish together does not, though log f - log b is NaN
  nan = jax.jit(lambda key: sampling.rejection(key, lambda x: x * jnp.nan, propose, low, 8))(KEY)
  assert int(nan.violations) == 8 and int(nan.count) == 0
  peak = jax.jit(lambda key: sampling.rejection(key, lambda x: x + jnp.inf, propose, low, 8))(KEY)
  assert int(peak.violations) == 8
  # f = b far from 1, where a rounding of the logarithms is above 1e-6, is no violation
  same, twice = lambda x: -1000 * x, lambda x: -(1000 * x + 1) + 1
  tight = jax.jit(lambda key: sampling.rejection(key, same, propose, twice, 900))(KEY)
  assert int(tight.violations) == 0 and int(tight.count) > 890
  zero = lambda key, n: jnp.zeros(n)
  none = sampling.rejection(KEY, log_f, zero, BOUNDS["triangle"][0], 8)
  assert int(none.violations) == 0 and int(none.count) == 0


# --- normals and gradients

MEAN = jnp.array([0.5, -1.0, 2.0])
COV = jnp.array([[1.5, 0.4, 0.1], [0.4, 0.8, -0.3], [0.1, -0.3, 1.1]])


def test_covariance_of_the_draws():
  chol = jnp.linalg.cholesky(COV)

  @jax.jit
  def draw(key):
    full = gradients.gaussian_reparam(key, MEAN, cov=COV, shape=(N,))
    factor = gradients.gaussian_reparam(key, MEAN, chol=chol, shape=(N,))
    return full, factor, gradients.gaussian_reparam(key, MEAN, std=jnp.diag(chol), shape=(N,))

  full, factor, diagonal = draw(KEY)
  np.testing.assert_array_equal(full, factor)
  for x, cov in ((full, COV), (diagonal, np.diag(np.diag(chol) ** 2))):
    var = np.diag(cov)
    error = np.sqrt((np.outer(var, var) + cov**2) / N)  # of a sample covariance
    assert (np.abs(np.cov(np.asarray(x).T) - cov) < 4 * error).all()
    assert (np.abs(x.mean(0) - MEAN) < 4 * np.sqrt(var / N)).all()


def test_gradients_of_a_quadratic_form():
  """E x^T A x = tr(A S) + m^T A m: the gradient in m is 2 A m, that in L is 2 A L."""
  a = jnp.array([[2.0, 0.3, 0], [0.3, 1, -0.5], [0, -0.5, 0.7]])
  h, chol = lambda x: x @ a @ x, jnp.linalg.cholesky(COV)
  exact = 2 * a @ MEAN

  @jax.jit
  def estimates(key):
    path = gradients.pathwise_gradient(key, h, MEAN, chol, N)
    score = gradients.score_function_gradient(key, h, MEAN, chol, N)
    value = jnp.trace(a @ COV) + MEAN @ a @ MEAN
    centred = gradients.score_function_gradient(key, h, MEAN, chol, N, baseline=value)
    draws = lambda factor: gradients.gaussian_reparam(key, MEAN, chol=factor, shape=(N,))
    return path, score, centred, jax.grad(lambda factor: jax.vmap(h)(draws(factor)).mean())(chol)

  path, score, centred, in_chol = estimates(KEY)
  for g in (path, score, centred):
    assert (np.abs(g.mean(0) - exact) < 4 * g.std(0) / np.sqrt(N)).all()
  assert path.var(0).sum() < 0.1 * score.var(0).sum()
  assert centred.var(0).sum() < score.var(0).sum()
  np.testing.assert_allclose(path.var(0), np.diag(4 * a @ COV @ a), rtol=0.05)
  np.testing.assert_allclose(in_chol, 2 * a @ chol, atol=0.05)


# --- fit


def test_distance_and_chi_square_by_hand():
  x = 2 * jnp.array([0.9, 0.1, 0.4, 77.0]) ** (1 / 3)  # where F is 0.9, 0.1, 0.4
  want = max(0.1, 1 / 3 - 0.1, 0.4 - 1 / 3, 2 / 3 - 0.4, 0.9 - 2 / 3)
  np.testing.assert_allclose(DISTANCE(x, jnp.arange(4) < 3), want, atol=1e-6)
  assert jnp.isnan(DISTANCE(x, jnp.zeros(4, bool)))
  chi_square = jax.jit(fit.chi_square)
  law = jnp.array([2, 1, 0, 1])
  as_expected, impossible = jnp.array([0, 0, 1, 3]), jnp.arange(4)  # 2, 1, 0, 1 of 4; a third
  assert [*map(float, chi_square(as_expected, law))] == [0, 1]
  assert [*map(float, chi_square(impossible, law))] == [np.inf, 0]
  statistic, p_value = chi_square(jnp.array([0] * 60 + [1] * 40), jnp.ones(2))
  np.testing.assert_allclose(statistic, 4, rtol=1e-6)
  np.testing.assert_allclose(p_value, 0.0455, atol=1e-4)  # two standard deviations
