"""Laws, divergences and normals against closed forms and the worked table."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import datasets

from gm.probability import gaussian, information, joint, likelihood, linear_gaussian

TABLE = np.array([[0.32, 0.03, 0.01], [0.06, 0.24, 0.02], [0.02, 0.03, 0.27]])
PX, PY = TABLE.sum(1), TABLE.sum(0)
LOG_2 = math.log(2)


@pytest.fixture
def float64():
  with jax.enable_x64(True):
    yield


def close(got, want, atol=1e-9):
  np.testing.assert_allclose(got, want, rtol=0, atol=atol)


# --- joint tables


def test_marginals_and_conditionals_of_the_table(float64):
  close(joint.marginal(TABLE, 0), [0.36, 0.32, 0.32])
  close(joint.marginal(TABLE, 1), [0.40, 0.30, 0.30])
  rows = [[8 / 9, 1 / 12, 1 / 36], [0.1875, 0.75, 0.0625], [0.0625, 0.09375, 0.84375]]
  close(joint.conditional(TABLE, given=0), rows)
  columns = np.array([[0.8, 0.15, 0.05], [0.1, 0.8, 0.1], [1 / 30, 1 / 15, 0.9]]).T
  close(joint.conditional(TABLE, given=1), columns)
  close(joint.conditional(TABLE, given=-1), columns)
  close(joint.bayes(PX, rows), columns)
  close(joint.bayes(PX, rows)[0, 0], 8 / 9 * 0.36 / 0.40)
  close(joint.marginal(100 * TABLE, 0), PX)  # counts


def test_moments_of_the_table(float64):
  v = np.arange(3.0)
  close(joint.expectation(PX, v), 0.96)
  close(joint.expectation(PY, v), 0.90)
  close(joint.expectation(TABLE, v[:, None] * v), 1.42)
  close(joint.covariance(TABLE, v, v), 0.556)
  close(joint.covariance(np.diag(PX), v, v), 0.6784)
  close(joint.covariance(np.diag(PY), v, v), 0.69)
  close(joint.correlation(TABLE, v, v), 0.812657, atol=5e-7)
  on_x = joint.conditional_expectation(TABLE, v, given=0)
  close(on_x, [5 / 36, 0.875, 1.78125])
  close(joint.expectation(PX, on_x), 0.90)  # the tower rule
  close(joint.expectation(PY, joint.conditional_expectation(TABLE, v, given=1)), 0.96)
  close(joint.expectation(PX, v + 1), 1.96)
  close(joint.expectation(TABLE, (v[:, None] + 1) * (v + 1)), 4.28)
  skew = np.array([[1.0, 2, 3], [4, 0, 1]])  # axes of two lengths
  x, y = np.array([-1.0, 3]), np.array([2.0, 5, 7])
  p = skew / skew.sum()
  want = (p * np.outer(x, y)).sum() - (p.sum(1) @ x) * (p.sum(0) @ y)
  close(joint.covariance(skew, x, y), want)
  close(joint.conditional_expectation(skew, x, given=1), x @ skew / skew.sum(0))


def test_three_variables(float64):
  p = np.random.default_rng(0).uniform(size=(2, 3, 4))
  p /= p.sum()
  close(joint.marginal(p, 1), p.sum((0, 2)))
  close(joint.conditional(p, given=2), p / p.sum((0, 1)))
  h = information.conditional_entropy(p, given=1)
  close(h, information.entropy(p) - information.entropy(p.sum((0, 2))))


# --- information

NATS_AND_BITS = {
  "H(x)": (lambda base: information.entropy(PX, base=base), 1.0970323904, 1.5826831893),
  "H(y)": (lambda base: information.entropy(PY, base=base), 1.0888999753, 1.5709505945),
  "H(x,y)": (lambda base: information.entropy(TABLE, base=base), 1.6423776313, 2.3694500639),
  "H(y|x)": (
    lambda base: information.conditional_entropy(TABLE, given=0, base=base),
    0.5453452409,
    0.7867668747,
  ),
  "H(x|y)": (
    lambda base: information.conditional_entropy(TABLE, given=1, base=base),
    0.5534776559,
    0.7984994695,
  ),
  "I(x;y)": (
    lambda base: information.mutual_information(TABLE, base=base),
    0.5435547344,
    0.7841837198,
  ),
  "KL": (lambda base: information.kl(PX, PY, base=base), 0.0033748679, 0.0048689052),
  "H(x,x')": (
    lambda base: information.cross_entropy(PX, PY, base=base),
    1.1004072582,
    1.5875520944,
  ),
  "JSD": (lambda base: information.js(PX, PY, base=base), 0.0008491957, 0.0008491957 / LOG_2),
}


@pytest.mark.parametrize("name", NATS_AND_BITS)
def test_information_of_the_table(name):
  value, nats, bits = NATS_AND_BITS[name]
  close(value("nats"), nats, atol=1e-5)  # float32
  close(value("bits"), bits, atol=1e-5)
  with jax.enable_x64(True):
    close(value("nats"), nats)
    close(value("bits"), bits)
    close(value("bits"), value("nats") / LOG_2, atol=1e-15)


def test_kl_is_zero_only_at_equality(float64):
  rng = np.random.default_rng(0)
  p, q = rng.dirichlet(np.ones(5), (2, 1000))
  found = jax.jit(jax.vmap(information.kl))(p, q)
  want = (p * np.log(p / q)).sum(1)
  close(found, want, atol=1e-12)
  assert found.min() > 0
  js = jax.jit(jax.vmap(information.js))
  close(js(p, q), js(q, p), atol=1e-15)
  assert js(p, q).min() > 0 and js(p, q).max() < LOG_2
  assert (jax.jit(jax.vmap(information.kl))(p, p) == 0).all()
  with jax.enable_x64(False):
    kl, small = jax.jit(jax.vmap(information.kl)), rng.uniform(-1e-3, 1e-3, p.shape)
    near = p * (1 + small)
    near /= near.sum(1, keepdims=True)
    want = (p * np.log(p / near)).sum(1)  # about 1e-7, where p log(p / q) in float32 is noise
    found = np.asarray(kl(jnp.asarray(p, jnp.float32), jnp.asarray(near, jnp.float32)))
    assert found.min() > 0 and np.abs(found - want).max() < 0.01 * want.max()
    far = kl(jnp.array([[1.0, 1e-20]]), jnp.array([[1e-20, 1.0]]))  # q / p - 1 rounds to -1
    close(far, 20 * np.log(10), atol=1e-4)


def test_zeros_follow_the_convention(float64):
  p, q = jnp.array([0.5, 0.5, 0.0]), jnp.array([0.25, 0.5, 0.25])
  close(information.entropy(p), LOG_2)
  close(information.kl(p, q), 0.5 * LOG_2)
  close(information.cross_entropy(p, q, base="bits"), 1.5)
  assert information.kl(q, p) == information.cross_entropy(q, p) == jnp.inf
  close(information.js(jnp.array([1, 0]), jnp.array([0, 1])), LOG_2)
  assert jnp.isfinite(jax.grad(lambda q: information.kl(p, q))(q)).all()


def test_code_of_powers_of_two(float64):
  p = jnp.array([1 / 2, 1 / 4, 1 / 8, 1 / 8])
  lengths = information.code_lengths(p)
  close(lengths, [1, 2, 3, 3])
  close(joint.expectation(p, lengths), 1.75)
  close(information.entropy(p, base="bits"), 1.75)
  close(information.cross_entropy(p, jnp.ones(4), base="bits"), 2.0)  # two bits each: 1/4 wasted


def test_jensen_gap(float64):
  rng = np.random.default_rng(1)
  v, p = rng.uniform(0.5, 2, 7), rng.dirichlet(np.ones(7))
  close(information.jensen_gap(jnp.square, v, p), p @ v**2 - (p @ v) ** 2)
  assert information.jensen_gap(jnp.exp, v, p) > 0 > information.jensen_gap(jnp.log, v, p)
  close(information.jensen_gap(lambda t: 3 * t + 1, v, p), 0, atol=1e-14)


@pytest.mark.parametrize("bad", [[0.5, -0.1], [0.0, 0.0], [0.5, np.nan], [np.inf, 1.0], []])
def test_what_is_no_law_is_refused_and_nan_inside_jit(bad):
  bad, good = jnp.array(bad), jnp.ones(max(1, len(bad)))
  calls = {
    "p": lambda x: information.entropy(x),
    "q": lambda x: information.kl(good, x),
    "probs": lambda x: joint.expectation(x, 1.0),
    "joint": lambda x: joint.marginal(x, 0),
  }
  for name, call in calls.items():
    with pytest.raises(ValueError, match=rf"{name}: given .*(finite, none negative)"):
      call(bad)
  if len(bad):
    assert all(jnp.isnan(v).all() for v in jax.jit(lambda x: [c(x) for c in calls.values()])(bad))


def test_wrong_shapes_and_bases_are_named():
  two, three = jnp.ones(2), jnp.ones(3)
  for call, message in [
    (lambda: information.kl(two, three), r"\(2,\) and q \(3,\)"),
    (lambda: information.entropy(two, base="dits"), "'dits' is not known: nats, bits"),
    (lambda: information.mutual_information(two), r"\[X, Y\], given \(2,\)"),
    (lambda: information.conditional_entropy(TABLE, given=2), "given=2 is no axis"),
    (lambda: information.estimate(jnp.ones(1)), "at least 2"),
    (lambda: information.monte_carlo_kl(two, three), "not of the same draws"),
    (lambda: information.jensen_gap(jnp.exp, two, three), r"values \(2,\)"),
    (lambda: joint.marginal(TABLE, 2), "axis 2 is none"),
    (lambda: joint.covariance(TABLE, two, three), r"values \(2,\) do not fit axis 0"),
    (lambda: joint.conditional_expectation(two, two, 0), r"\[X, Y\], given \(2,\)"),
    (lambda: joint.bayes(two, np.ones((3, 2))), r"prior \(2,\) and likelihood \(3, 2\)"),
  ]:
    with pytest.raises(ValueError, match=message):
      call()


# --- normals

M1, S1 = np.array([0.5, -1.0]), np.array([[1.5, 0.4], [0.4, 0.8]])
M2, S2 = np.array([0.0, 0.3]), np.array([[1.0, -0.2], [-0.2, 2.0]])


def test_kl_and_entropy_of_two_normals(float64):
  close(gaussian.kl(M1, S1, M2, S2), 0.8194129004527)
  close(gaussian.kl(M2, S2, M1, S1), 2.1518881199554)
  close(gaussian.kl(M1, S1, M1, S1), 0, atol=1e-15)
  close(gaussian.entropy(S1), 2.8574874229860)


def test_kl_of_the_homework_and_its_minimum(float64):
  close(gaussian.kl_standard(jnp.array([1, -2, 0.5]), 0.7), 2.930024831816197, atol=1e-14)
  assert gaussian.kl_standard(jnp.zeros(3), 1.0) == 0
  slope = jax.grad(lambda s: gaussian.kl_standard(jnp.zeros(5), s))
  for s in (0.5, 1.0, 3.0):
    close(slope(s), 5 * (s - 1 / s), atol=1e-13)


def test_diagonal_kl_is_the_full_one_and_that_of_the_losses(float64):
  rng = np.random.default_rng(2)
  for m1, m2, s1, s2 in rng.uniform(0.3, 2, (20, 4, 3)):
    want = gaussian.kl(m1, np.diag(s1**2), m2, np.diag(s2**2))
    close(gaussian.kl_diagonal(m1, s1, m2, s2), want, atol=1e-13)
    close(gaussian.kl_standard(m1, s1), gaussian.kl_diagonal(m1, s1, np.zeros(3), 1.0))
    batch = [a[None] for a in (m1, 2 * np.log(s1), m2, 2 * np.log(s2))]
    close(likelihood.kl_gaussians(*map(jnp.asarray, batch))[0], want, atol=1e-13)


def test_log_prob_against_the_written_out_density(float64):
  x = np.random.default_rng(3).normal(size=(4, 5, 2))
  d = x - M1
  want = -0.5 * np.einsum("...i,ij,...j->...", d, np.linalg.inv(S1), d)
  want -= np.log(2 * np.pi) + 0.5 * np.log(np.linalg.det(S1))
  close(gaussian.log_prob(x, M1, S1), want, atol=1e-13)


def test_monte_carlo_kl_agrees_with_the_closed_form(float64):
  eps = np.random.default_rng(4).standard_normal((200_000, 2))
  x = M1 + eps @ np.linalg.cholesky(S1).T
  log_p, log_q = gaussian.log_prob(x, M1, S1), gaussian.log_prob(x, M2, S2)
  exact = 0.8194129004527
  for mean, error in information.monte_carlo_kl(log_p, log_q):
    assert abs(mean - exact) < 4 * error and error < 0.05 * exact
  plain, positive = information.monte_carlo_kl(log_p[:4], log_q[:4])
  ratio = np.exp(log_q - log_p)[:4]
  close(plain.mean, -np.log(ratio).mean(), atol=1e-12)
  close(plain.standard_error, np.log(ratio).std(ddof=1) / 2, atol=1e-12)
  close(positive.mean, (ratio - 1 - np.log(ratio)).mean(), atol=1e-12)
  # q close to p: the second has far less variance, and no draw of it is negative
  near = gaussian.log_prob(x, M1 + 0.01, S1)
  plain, positive = information.monte_carlo_kl(log_p, near)
  assert positive.standard_error < 0.1 * plain.standard_error
  assert abs(positive.mean - gaussian.kl(M1, S1, M1 + 0.01, S1)) < 4 * positive.standard_error


def test_triangular_parametrisation(float64):
  raw = np.random.default_rng(5).normal(size=(7, 10))
  chol = np.asarray(jax.jit(gaussian.lower_triangular)(raw))
  assert chol.shape == (7, 4, 4)
  assert (np.triu(chol, 1) == 0).all()
  close(chol[0, 2], [*raw[0, 3:5], np.log1p(np.exp(raw[0, 5])) + 1e-5, 0], atol=1e-12)
  cov = chol @ chol.swapaxes(1, 2)
  close(gaussian.log_det(chol), np.linalg.slogdet(cov)[1], atol=1e-9)
  x = np.random.default_rng(6).normal(size=(3, 4))
  close(gaussian.whiten(chol[0], x) @ chol[0].T, x, atol=1e-12)
  assert gaussian.lower_triangular(jnp.full(1, -800.0))[0, 0] == 1e-5  # never singular
  with pytest.raises(ValueError, match=r"\(7, 5\).*1, 3, 6, 10"):
    gaussian.lower_triangular(jnp.ones((7, 5)))


@pytest.mark.parametrize(
  "cov", [[[1.0, 2], [2, 1]], [[1, 0.5], [0, 1]], [[0, 0], [0, 0]], [[np.nan, 0], [0, 1]]]
)
def test_covariance_must_be_positive_definite(cov):
  cov = jnp.array(cov)
  with pytest.raises(ValueError, match="symmetric and positive definite"):
    gaussian.kl(jnp.zeros(2), jnp.eye(2), jnp.zeros(2), cov)
  assert jnp.isnan(jax.jit(gaussian.entropy)(cov))
  assert jnp.isnan(jax.jit(lambda: gaussian.entropy(cov))())  # a constant


def test_other_wrong_normals_are_named():
  zero, eye = jnp.zeros(2), jnp.eye(2)
  model = linear_gaussian.LinearGaussian(jnp.ones((3, 2)), jnp.zeros(3), jnp.array(0.0))
  for call, message in [
    (lambda: gaussian.kl_standard(zero, 0.0), "std_1: given 0.0; it must be positive"),
    (lambda: gaussian.kl_diagonal(zero, 1.0, jnp.zeros(3), 1.0), r"means \(2,\) and \(3,\)"),
    (lambda: gaussian.kl_standard(zero, jnp.ones(3)), r"std \(3,\) beside a mean \(2,\)"),
    (lambda: gaussian.kl(zero, jnp.eye(3), zero, eye), r"mean \(2,\) and cov \(3, 3\)"),
    (lambda: gaussian.log_prob(jnp.zeros(3), zero, eye), r"x \(3,\) and mean \(2,\)"),
    (lambda: linear_gaussian.log_likelihood(model, jnp.zeros(3)), "var: given 0.0"),
    (
      lambda: linear_gaussian.maximum_log_likelihood(jnp.ones(3), 3),
      "num_latents 3 is not in 1..2",
    ),
    (
      lambda: linear_gaussian.maximum_log_likelihood(jnp.zeros(3), 1),
      "smallest eigenvalues: given 0.0",
    ),
  ]:
    with pytest.raises(ValueError, match=message):
      call()
  assert jnp.isnan(jax.jit(gaussian.kl_standard)(zero, -1.0))


# --- the linear model

W = np.array([[1, 0], [0.8, 0.5], [0, 1.2], [-0.6, 0.4], [0.3, -0.9]])
MODEL = linear_gaussian.LinearGaussian(W, np.array([0.1, -0.2, 0.3, 0, 0.5]), 0.25)
X = np.array([1, 0, 0.5, -0.3, 0.2])
LOG_PX = -4.279372658473659


def test_linear_model_of_the_fixture(float64):
  close(linear_gaussian.log_likelihood(MODEL, X), LOG_PX, atol=1e-8)
  mean, cov = linear_gaussian.posterior(MODEL, X)
  close(mean, [0.50026, 0.18729], atol=5e-6)
  close(cov, [[0.10703, 0.00405], [0.00405, 0.08606]], atol=5e-6)
  best_mean, best_var = linear_gaussian.best_diagonal(MODEL, X)
  close(best_mean, mean, atol=0)
  close(best_var, [0.10684, 0.08591], atol=5e-6)
  best = (best_mean, jnp.diag(best_var))
  close(linear_gaussian.gap(MODEL, X, *best), 0.000889268021604, atol=1e-12)
  close(
    linear_gaussian.log_likelihood(MODEL, X) - linear_gaussian.elbo(MODEL, X, *best),
    0.000889268021604,
    1e-8,
  )
  prior = (jnp.zeros(2), jnp.eye(2))
  close(linear_gaussian.elbo(MODEL, X, *prior), -12.768956763223638, atol=1e-8)
  close(linear_gaussian.gap(MODEL, X, *prior), 8.489584104749979, atol=1e-8)
  close(linear_gaussian.elbo(MODEL, X, mean, cov), LOG_PX, atol=1e-8)
  rows = np.stack([X, 0 * X])  # many examples at once
  close(linear_gaussian.log_likelihood(MODEL, rows)[0], LOG_PX, atol=1e-8)
  close(linear_gaussian.posterior(MODEL, rows)[0][0], mean, atol=1e-14)


def test_gap_is_the_divergence_for_any_q(float64):
  rng = np.random.default_rng(7)
  means = rng.standard_normal((100, 2))
  chols = gaussian.lower_triangular(rng.standard_normal((100, 3)))
  covs = chols @ chols.swapaxes(1, 2)

  def both(m, s):
    return linear_gaussian.elbo(MODEL, X, m, s), linear_gaussian.gap(MODEL, X, m, s)

  elbo, gap = jax.jit(jax.vmap(both))(means, covs)
  close(linear_gaussian.log_likelihood(MODEL, X) - elbo, gap, atol=1e-10)
  assert gap.min() > 0


def test_importance_weighted_bound_rises_to_the_likelihood(float64):
  eps = np.random.default_rng(8).standard_normal((200_000, 2))

  @jax.jit
  def log_weights(q_mean, q_cov):  # through the densities of this module alone
    z = q_mean + eps @ gaussian.cholesky(q_cov).T
    log_px = gaussian.log_prob(X - MODEL.mean - z @ W.T, jnp.zeros(5), 0.25 * jnp.eye(5))
    log_pz = gaussian.log_prob(z, jnp.zeros(2), jnp.eye(2))
    return log_px + log_pz - gaussian.log_prob(z, q_mean, q_cov)

  def bounds(q_mean, q_cov):  # mean and standard error for each k
    log_w, found = np.asarray(log_weights(q_mean, q_cov)), {}
    for k in (1, 5, 50, 1000):
      each = np.logaddexp.reduce(log_w.reshape(-1, k), axis=1) - np.log(k)
      found[k] = (each.mean(), each.std(ddof=1) / np.sqrt(len(each)))
    return found

  mean, var = linear_gaussian.best_diagonal(MODEL, X)
  best, prior = bounds(mean, jnp.diag(var)), bounds(jnp.zeros(2), jnp.eye(2))
  for found, elbo in ((best, LOG_PX - 0.000889268021604), (prior, -12.768956763223638)):
    assert abs(found[1][0] - elbo) < 4 * found[1][1]
    for low, high in ((1, 5), (5, 50)):
      assert found[low][0] < found[high][0]
  assert abs(best[1000][0] - LOG_PX) < 0.01
  assert abs(prior[5][0] - -5.374) < 4 * prior[5][1] + 0.002
  assert abs(prior[1000][0] - -4.282) < 4 * prior[1000][1] + 0.002


@pytest.mark.parametrize(("d", "want", "var"), [(2, 0.005707, 0.054117), (8, 14.209788, 0.027329)])
def test_maximum_likelihood_on_the_digits(float64, d, want, var):
  x = datasets.load_digits().data / 16.0
  mean, cov = x.mean(0), np.cov(x.T, bias=True)
  model = linear_gaussian.maximum_likelihood(mean, cov, d)
  close(model.var, var, atol=1e-6)
  average = jax.jit(lambda model: linear_gaussian.log_likelihood(model, x).mean())
  found = average(model)
  close(found, want, atol=1e-6)
  close(linear_gaussian.maximum_log_likelihood(np.linalg.eigvalsh(cov), d), found, atol=1e-9)
  inner = model.weight.T @ model.weight  # diagonal, so that independent latents have no gap
  close(inner, np.diag(np.diag(inner)), atol=1e-12)
  best_mean, best_var = linear_gaussian.best_diagonal(model, x[0])
  close(linear_gaussian.gap(model, x[0], best_mean, jnp.diag(best_var)), 0, atol=1e-10)
  for change in (0.97, 1.03):  # any other weight or variance is worse
    for worse in (
      model._replace(weight=model.weight * change),
      model._replace(var=model.var * change),
    ):
      assert average(worse) < found
