"""Draws from a law given by a table, a formula or an unnormalised density.

Every function takes its key and can be jitted and vmapped. Uniform draws are float32, on a grid of
2^-23, unless 64-bit types are switched on. Input that cannot be a law is an error where values are
known; inside jit, where they are not, it gives what each function says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gm.probability import arguments

_CHUNK = 2**14  # draws that are looked up at a time, so that they stay in the cache


def _last_not_above(table: jax.Array, u: jax.Array) -> jax.Array:
  """Index of the last entry <= u of a table that does not fall, -1 where there is none."""
  found = jax.lax.map(
    lambda v: jnp.searchsorted(table, v, side="right"), u.ravel(), batch_size=_CHUNK
  )
  return found.reshape(u.shape).astype(jnp.int32) - 1


# ------------------------------------------------------------------------ inverse of the cumulative


def discrete_inverse_cdf(key: jax.Array, probs: jax.Array, shape: Sequence[int] = ()) -> jax.Array:
  """Draws from a table: the first k with F_k > u, where F = cumsum(p) / sum(p), u ~ U[0, 1).

  An entry of probability zero is never drawn.

  Args:
    key: PRNG key.
    probs: p, [K]; any positive multiple of the probabilities will do.
    shape: of the draws.

  Returns:
    i32, `shape`, in 0..K-1; -1 throughout if probs turn out to be no law inside jit.

  Raises:
    ValueError: if a value is negative, not finite, or all are zero.

  >>> discrete_inverse_cdf(jax.random.key(0), jnp.array([0, 1, 0]), (4,)).tolist()
  [1, 1, 1, 1]
  """
  probs = arguments.as_float(probs)
  arguments.require_weights("probs", probs)
  total = jnp.cumsum(probs)
  cdf = total / total[-1]  # ends at exactly 1, so u < 1 finds an entry
  u = jax.random.uniform(key, tuple(shape), cdf.dtype)
  valid = jnp.isfinite(total[-1]) & (probs >= 0).all() & (total[-1] > 0)
  return jnp.where(valid, _last_not_above(cdf, u) + 1, -1)


def inverse_transform(key: jax.Array, inv_cdf: Callable, shape: Sequence[int] = ()) -> jax.Array:
  """Draws x = F^-1(u), u ~ U(0, 1).

  u is never 0, so that an inverse may take its logarithm: one draw in 2^23 is the least positive
  normal number in its place. In float32 u is at most 1 - 2^-23. So normals drawn in this way end at
  5.2 standard deviations above; below, at as many, but for that one, which is at -12.9.

  Args:
    key: PRNG key.
    inv_cdf: F^-1, [...] -> [...].
    shape: of the draws.

  Returns:
    `shape`.

  >>> bool((inverse_transform(jax.random.key(0), quadratic_inverse_cdf, (9,)) <= 2).all())
  True
  """
  tiny = jnp.finfo(jnp.result_type(float)).tiny
  return inv_cdf(jax.random.uniform(key, tuple(shape), float, minval=tiny))


def tabulated_inverse(
  key: jax.Array,
  grid: jax.Array,
  values: jax.Array,
  shape: Sequence[int] = (),
  *,
  cumulative: bool = False,
) -> jax.Array:
  """Draws from a density or a cumulative function that is known on a grid.

  F is the sum of trapezoids, divided by its last value, and linear between the points of the grid;
  x = F^-1(u). Where F is flat nothing is drawn.

  Args:
    key: PRNG key.
    grid: [K], rising.
    values: [K], at the grid: f, or any positive multiple of it; or F up to scale and shift.
    shape: of the draws.
    cumulative: whether `values` are F.

  Returns:
    `shape`, between the ends of the grid; NaN throughout if grid or values turn out to be no law
    inside jit.

  Raises:
    ValueError: if the grid does not rise, if f is negative, not finite or zero everywhere, or if F
      falls.

  >>> x = tabulated_inverse(jax.random.key(0), jnp.arange(4.0), jnp.array([0, 0, 1, 1]), (99,))
  >>> bool((x > 1).all() & (x < 3).all())
  True
  """
  grid, values = arguments.as_float(grid), arguments.as_float(values)
  if grid.shape != values.shape:
    raise ValueError(f"grid {grid.shape} and values {values.shape} differ; both are [K]")
  if not cumulative:
    arguments.require_weights("values", values, 2)
  width = jnp.diff(grid)
  mass = jnp.diff(values) if cumulative else (values[1:] + values[:-1]) / 2 * width
  arguments.require_weights("the steps of values", mass)
  if arguments.known(grid) and not (np.diff(np.asarray(grid)) > 0).all():
    raise ValueError(f"grid: given {np.asarray(grid)}; it must rise")
  total = jnp.cumsum(mass)
  cdf = jnp.concatenate([jnp.zeros_like(total[:1]), total]) / total[-1]
  u = jax.random.uniform(key, tuple(shape), cdf.dtype)
  k = _last_not_above(cdf, u)  # F_k <= u < F_k+1: never a flat part
  x = grid[k] + (u - cdf[k]) * (width / jnp.diff(cdf))[k]
  valid = jnp.isfinite(total[-1]) & (mass >= 0).all() & (width > 0).all() & (total[-1] > 0)
  valid &= cumulative or (values >= 0).all()
  return jnp.where(valid, jnp.clip(x, grid[0], grid[-1]), jnp.nan)


def quadratic_pdf(x: jax.Array) -> jax.Array:
  """Density f(x) = 3/8 x^2 on [0, 2]: mean 3/2, variance 3/20, median 4^(1/3).

  >>> float(quadratic_pdf(jnp.array(2.0)))
  1.5
  """
  x = arguments.as_float(x)
  return jnp.where((x >= 0) & (x <= 2), 3 / 8 * x**2, 0.0)


def quadratic_cdf(x: jax.Array) -> jax.Array:
  """Cumulative function of `quadratic_pdf`, F(x) = x^3 / 8.

  >>> float(quadratic_cdf(jnp.array(1.0)))
  0.125
  """
  return jnp.clip(arguments.as_float(x), 0.0, 2.0) ** 3 / 8


def quadratic_inverse_cdf(u: jax.Array) -> jax.Array:
  """Its inverse, F^-1(u) = 2 u^(1/3).

  >>> round(float(quadratic_inverse_cdf(jnp.array(0.5))), 4)
  1.5874
  """
  # a power costs less than cbrt here, and u is not negative
  return 2 * arguments.as_float(u) ** (1 / 3)


# -------------------------------------------------------------------------------------- rejection


class Rejection(NamedTuple):
  """What rejection sampling found."""

  values: jax.Array  # [n, ...]
  accepted: jax.Array  # bool [n]; where False the value is no draw
  tries: jax.Array  # i32 (), candidates in all
  violations: jax.Array  # i32 (), candidates at which f > b: draws follow min(f, b)

  @property
  def count(self) -> jax.Array:
    """Number of draws, i32 ()."""
    return self.accepted.sum(dtype=jnp.int32)

  @property
  def rate(self) -> jax.Array:
    """Share of candidates accepted, in expectation the integral of f over that of b."""
    return self.count / self.tries


def _log_ratio(log_f: Callable, log_bound: Callable, x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns log f(x) - log b(x), NaN made -inf, and whether it is above 0 or NaN."""
  log_density = log_f(x)
  ratio = jnp.where(log_density == -jnp.inf, -jnp.inf, log_density - log_bound(x))
  rounding = 1e-6 + 4 * jnp.finfo(ratio.dtype).eps * abs(log_density)
  broken = ~(ratio < rounding)  # NaN and f = inf count
  return jnp.where(jnp.isnan(ratio), -jnp.inf, ratio), broken


def _require_bound(violations: jax.Array, tries: jax.Array) -> None:
  if arguments.known(violations) and int(violations):
    raise ValueError(
      f"log_bound: log_f exceeds it, or is NaN, at {int(violations)} of {int(tries)} candidates;"
      " raise the bound until f <= b wherever propose draws"
    )


def _uniform_log(key: jax.Array, shape: tuple) -> jax.Array:
  tiny = jnp.finfo(jnp.result_type(float)).tiny
  return jnp.log(jax.random.uniform(key, shape, float, minval=tiny))


def rejection(
  key: jax.Array, log_f: Callable, propose: Callable, log_bound: Callable, n: int
) -> Rejection:
  """Rejection sampling with a fixed budget: x ~ g, kept if log u <= log f(x) - log b(x).

  f <= b, and g = b / (integral of b); neither f nor b need be normalised.

  Args:
    key: PRNG key.
    log_f: log f, [n, ...] -> [n].
    propose: (key, n) -> draws of g, [n, ...].
    log_bound: log b, [n, ...] -> [n].
    n: number of candidates.

  Returns:
    All candidates, and which of them are draws. A bound below f is counted in `violations`.

  Raises:
    ValueError: outside jit, if the bound is below f, or either is NaN, at a candidate.

  >>> propose = lambda key, n: 2 * jax.random.uniform(key, (n,))
  >>> log_f, log_bound = lambda x: jnp.log(quadratic_pdf(x)), lambda x: jnp.log(1.5)
  >>> found = rejection(jax.random.key(0), log_f, propose, log_bound, 30_000)
  >>> round(float(found.rate), 1)  # 1/3
  0.3
  """
  k_propose, k_accept = jax.random.split(key)
  x = propose(k_propose, n)
  ratio, broken = _log_ratio(log_f, log_bound, x)
  tries, violations = jnp.asarray(n, jnp.int32), broken.sum(dtype=jnp.int32)
  _require_bound(violations, tries)
  return Rejection(x, _uniform_log(k_accept, (n,)) <= ratio, tries, violations)


def rejection_loop(
  key: jax.Array,
  log_f: Callable,
  propose: Callable,
  log_bound: Callable,
  n: int,
  *,
  max_tries: int = 1000,
) -> Rejection:
  """Rejection sampling until each of n draws has been accepted: a while loop under vmap.

  Args:
    key: PRNG key.
    log_f: log f, [n, ...] -> [n].
    propose: (key, n) -> draws of g, [n, ...].
    log_bound: log b, [n, ...] -> [n].
    n: number of draws.
    max_tries: candidates for one draw, after which it is given up and `accepted` is False.

  Returns:
    The draws, with the candidates that they took in all.

  Raises:
    ValueError: outside jit, if the bound is below f, or either is NaN, at a candidate.

  >>> propose = lambda key, n: 2 * jnp.sqrt(jax.random.uniform(key, (n,)))
  >>> log_f, log_bound = lambda x: jnp.log(quadratic_pdf(x)), lambda x: jnp.log(0.75 * x)
  >>> found = rejection_loop(jax.random.key(0), log_f, propose, log_bound, 9)
  >>> found.values.shape, int(found.count)
  ((9,), 9)
  """

  def candidate(key):
    k_propose, k_accept = jax.random.split(key)
    x = propose(k_propose, 1)
    ratio, broken = _log_ratio(log_f, log_bound, x)
    return x[0], _uniform_log(k_accept, ()) <= ratio[0], broken[0].astype(jnp.int32)

  def one(key):
    def body(carry):
      _, _, tries, violations = carry
      x, accepted, broken = candidate(jax.random.fold_in(key, tries))
      return x, accepted, tries + 1, violations + broken

    def again(carry):
      return ~carry[1] & (carry[2] < max_tries)

    x, accepted, broken = candidate(jax.random.fold_in(key, 0))
    return jax.lax.while_loop(again, body, (x, accepted, jnp.int32(1), broken))

  x, accepted, tries, violations = jax.vmap(one)(jax.random.split(key, n))
  found = Rejection(x, accepted, tries.sum(dtype=jnp.int32), violations.sum(dtype=jnp.int32))
  _require_bound(found.violations, found.tries)
  return found
