"""The lecture's questions, each with the function that answers it, and its homework, checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gm.probability import coding, gaussian, information, joint, linear_gaussian, sampling

TABLE = ((0.32, 0.03, 0.01), (0.06, 0.24, 0.02), (0.02, 0.03, 0.27))  # rows x, columns y = 0, 1, 2
EQUAL, UNEQUAL = (0.25,) * 4, (1 / 2, 1 / 4, 1 / 8, 1 / 8)  # the two alphabets A, B, C, D
VALUES = (0.0, 1.0, 2.0)  # of x and of y
NUM_DRAWS = 1_000_000  # of estimates


class Question(NamedTuple):
  """A question and how it is answered."""

  text: str
  by: str  # function of gm/probability
  answer: Callable  # () -> numbers or text


class Check(NamedTuple):
  """A formula of the homework against numbers that do not use it."""

  text: str
  by: str
  formula: Callable  # () -> number
  numbers: Callable  # () -> an information.Estimate of it


def _law(axis: int) -> jax.Array:
  return joint.marginal(jnp.array(TABLE), axis)


def _acceptance(propose: Callable, log_bound: Callable) -> jax.Array:
  log_f = lambda x: jnp.log(sampling.quadratic_pdf(x))
  return sampling.rejection(jax.random.key(0), log_f, propose, log_bound, NUM_DRAWS).rate


def _uniform(key: jax.Array, n: int) -> jax.Array:
  return jax.random.uniform(key, (n,), float)


def _moments_of_draws() -> jax.Array:
  inverse = sampling.quadratic_inverse_cdf
  x = sampling.inverse_transform(jax.random.key(0), inverse, (NUM_DRAWS,))
  return jnp.stack([x.mean(), x.var()])


def _densities(shift: float) -> tuple[jax.Array, jax.Array]:  # N(0, 1) and N(shift, 1), on a grid
  x = jnp.linspace(-12.0, 12.0 + shift, 40_001)[:, None]
  one = jnp.eye(1)
  laws = (gaussian.log_prob(x, jnp.zeros(1) + m, one) for m in (0.0, shift))
  return tuple(jnp.exp(log_p) for log_p in laws)


def questions() -> list[Question]:
  """The questions of the lecture in its order; answers are worked out when they are called."""
  table, v = jnp.array(TABLE), jnp.array(VALUES)
  px, py = lambda: _law(0), lambda: _law(1)
  bits = {"base": "bits"}
  asked = [
    ("density 3/8 x^2 on [0, 2]: its median, F^-1(1/2) = 2 (1/2)^(1/3)",
     "sampling.quadratic_inverse_cdf", lambda: sampling.quadratic_inverse_cdf(0.5)),
    ("its mean and variance, of draws x = F^-1(u), u uniform on [0, 1] (3/2 and 3/20)",
     "sampling.inverse_transform", _moments_of_draws),
    ("rejection under the constant 3/2: share accepted (1/3)", "sampling.rejection",
     lambda: _acceptance(lambda k, n: 2 * _uniform(k, n), lambda x: jnp.log(1.5))),
    ("rejection under the triangle 3/4 x: share accepted (2/3)", "sampling.rejection",
     lambda: _acceptance(lambda k, n: 2 * jnp.sqrt(_uniform(k, n)),
                         lambda x: jnp.log(0.75 * x))),
    ("p(x)", "joint.marginal", px),
    ("p(y)", "joint.marginal", py),
    ("p(y | x), a row for each x", "joint.conditional",
     lambda: joint.conditional(table, given=0)),
    ("p(x | y), a column for each y", "joint.conditional",
     lambda: joint.conditional(table, given=1)),
    ("p(x = 0 | y = 0) by Bayes", "joint.bayes",
     lambda: joint.bayes(px(), joint.conditional(table, given=0))[0, 0]),
    ("E x", "joint.expectation", lambda: joint.expectation(px(), v)),
    ("E y", "joint.expectation", lambda: joint.expectation(py(), v)),
    ("E xy", "joint.expectation", lambda: joint.expectation(table, v[:, None] * v)),
    ("E x, E y and E xy with the values 1, 2, 3 for 0, 1, 2", "joint.expectation",
     lambda: jnp.stack([joint.expectation(px(), v + 1), joint.expectation(py(), v + 1),
                        joint.expectation(table, (v[:, None] + 1) * (v + 1))])),
    ("E[y | x], for each x", "joint.conditional_expectation",
     lambda: joint.conditional_expectation(table, v, given=0)),
    ("their mean over x, which is E y", "joint.expectation",
     lambda: joint.expectation(px(), joint.conditional_expectation(table, v, given=0))),
    ("variance of x and of y", "joint.covariance",
     lambda: jnp.stack([joint.covariance(jnp.diag(p), v, v) for p in (px(), py())])),
    ("covariance of x and y", "joint.covariance", lambda: joint.covariance(table, v, v)),
    ("correlation of x and y", "joint.correlation", lambda: joint.correlation(table, v, v)),
    ("H(x), bits", "information.entropy", lambda: information.entropy(px(), **bits)),
    ("H(y), bits", "information.entropy", lambda: information.entropy(py(), **bits)),
    ("H(x, y), bits", "information.entropy", lambda: information.entropy(table, **bits)),
    ("H(y | x), bits", "information.conditional_entropy",
     lambda: information.conditional_entropy(table, given=0, **bits)),
    ("H(x | y), bits", "information.conditional_entropy",
     lambda: information.conditional_entropy(table, given=1, **bits)),
    ("I(x; y), bits", "information.mutual_information",
     lambda: information.mutual_information(table, **bits)),
    ("KL(p_x || p_y), bits", "information.kl", lambda: information.kl(px(), py(), **bits)),
    ("H(p_x, p_y), bits", "information.cross_entropy",
     lambda: information.cross_entropy(px(), py(), **bits)),
    ("JSD of p_x and p_y, nats", "information.js", lambda: information.js(px(), py())),
    ("A, B, C, D equally often: the shortest code", "coding.prefix_code",
     lambda: " ".join(coding.prefix_code(EQUAL).words)),
    ("its bits for a letter", "coding.prefix_code", lambda: coding.prefix_code(EQUAL).mean_length),
    ("A, B, C, D in 1/2, 1/4, 1/8, 1/8: the shortest code", "coding.prefix_code",
     lambda: " ".join(coding.prefix_code(UNEQUAL).words)),
    ("its bits for a letter", "coding.prefix_code",
     lambda: coding.prefix_code(UNEQUAL).mean_length),
    ("what no code is shorter than, H in bits", "information.entropy",
     lambda: information.entropy(jnp.array(UNEQUAL), **bits)),
    ("the second alphabet in the first's code wastes, bits", "information.kl",
     lambda: information.kl(jnp.array(UNEQUAL), jnp.array(EQUAL), **bits)),
    ("value of the GAN's game at the best D, p_g = N(2, 1), p_data = N(0, 1): -log 4 + 2 JSD",
     "information.js", lambda: -jnp.log(4.0) + 2 * information.js(*_densities(2.0))),
    ("the same where p_g = p_data", "information.js",
     lambda: -jnp.log(4.0) + 2 * information.js(*_densities(0.0))),
  ]  # fmt: skip
  return [Question(*row) for row in asked]


_MEAN, _STD = (1.0, -2.0, 0.5), 0.7
_MODEL = linear_gaussian.LinearGaussian(
  ((1.0, 0.0), (0.8, 0.5), (0.0, 1.2), (-0.6, 0.4), (0.3, -0.9)), (0.1, -0.2, 0.3, 0.0, 0.5), 0.25
)
_X = (1.0, 0.0, 0.5, -0.3, 0.2)


def _sampled_kl() -> information.Estimate:
  mean, eye = jnp.array(_MEAN), jnp.eye(3)
  x = mean + _STD * jax.random.normal(jax.random.key(1), (NUM_DRAWS, 3), float)
  log_p, log_q = gaussian.log_prob(x, mean, _STD**2 * eye), gaussian.log_prob(x, 0 * mean, eye)
  return information.monte_carlo_kl(log_p, log_q)[0]


def _sampled_gap() -> information.Estimate:
  """Of log p(x) - E_q[log p(x, z) - log q(z)] with q the prior, p(x) known and the rest drawn."""
  w, mean, var = (jnp.array(v) for v in _MODEL)
  z = jax.random.normal(jax.random.key(2), (NUM_DRAWS, 2), float)
  given = gaussian.log_prob(jnp.array(_X) - mean - z @ w.T, 0 * mean, var * jnp.eye(5))
  return information.estimate(_evidence() - given)


def _evidence() -> jax.Array:
  model = linear_gaussian.LinearGaussian(*(jnp.array(v) for v in _MODEL))
  return linear_gaussian.log_likelihood(model, jnp.array(_X))


def _gap() -> jax.Array:
  model = linear_gaussian.LinearGaussian(*(jnp.array(v) for v in _MODEL))
  return linear_gaussian.gap(model, jnp.array(_X), jnp.zeros(2), jnp.eye(2))


def homework() -> list[Check]:
  """The two answers of the homework, each by its formula and from draws."""
  return [
    Check(
      "KL(N(m, s^2 I) || N(0, I)) = 1/2 (|m|^2 + d s^2 - d - d log s^2), m = (1, -2, 1/2), s = 0.7",
      "gaussian.kl_standard",
      lambda: gaussian.kl_standard(jnp.array(_MEAN), _STD),
      _sampled_kl,
    ),
    Check(
      "log p(x) - ELBO(q) = KL(q(z) || p(z | x)) >= 0, a linear model, q = N(0, I)",
      "linear_gaussian.gap",
      _gap,
      _sampled_gap,
    ),
  ]


def _spell(value: Any) -> str:
  if isinstance(value, str):
    return value
  rows = jnp.asarray(value).round(6).tolist()
  number = lambda v: f"{v:.6g}"
  if not isinstance(rows, list):
    return number(rows)
  flat = [rows] if not isinstance(rows[0], list) else rows
  return "; ".join(" ".join(map(number, row)) for row in flat)


def lines() -> list[str]:
  """All questions and the homework with their answers, a line each, in double precision."""
  with jax.enable_x64(True):
    found = [f"{q.text}: {_spell(q.answer())}  [{q.by}]" for q in questions()]
    for check in homework():
      exact, drawn = check.formula(), check.numbers()
      found.append(
        f"homework: {check.text}: {_spell(exact)}  [{check.by}]; from {NUM_DRAWS:,} draws"
        f" {float(drawn.mean):.4f} +- {float(drawn.standard_error):.4f}"
      )
  return found
