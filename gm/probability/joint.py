"""Tables of probabilities p(x, y), one axis for each variable: marginals, conditionals, moments.

A table may be given up to a positive factor, as counts are. One that is no law (a negative, a NaN,
all zero) is an error where its values are known, and gives NaN inside jit.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def law(name: str, table: jax.Array) -> jax.Array:
  """Divides weights by their sum.

  Args:
    name: what an error calls them.
    table: any shape.

  Returns:
    The shape of table, float; NaN throughout if it turns out to be no law inside jit.

  Raises:
    ValueError: if a value is negative or not finite, or all are zero.

  >>> law("counts", jnp.array([1, 3])).tolist()
  [0.25, 0.75]
  """
  table = jnp.asarray(table)
  table = table if jnp.issubdtype(table.dtype, jnp.floating) else table.astype(float)
  if not isinstance(table, jax.core.Tracer):
    values = np.asarray(table)
    if not values.size or not np.isfinite(values).all() or (values < 0).any() or not values.any():
      raise ValueError(
        f"{name}: given {values.tolist()}; its values must be finite, none negative, and one at"
        " least positive"
      )
  total = table.sum()
  return jnp.where((table >= 0).all() & jnp.isfinite(total), table / total, jnp.nan)


def _others(joint: jax.Array, axis: int) -> tuple[int, ...]:
  if not -joint.ndim <= axis < joint.ndim:
    raise ValueError(f"axis {axis} is none of a table {joint.shape}: 0 to {joint.ndim - 1}")
  return tuple(a for a in range(joint.ndim) if a != axis % joint.ndim)


def _along(values: jax.Array, joint: jax.Array, axis: int) -> jax.Array:
  """Values of the variable on `axis`, shaped to broadcast against the table."""
  values = jnp.asarray(values)
  if values.shape != (joint.shape[axis],):
    raise ValueError(f"values {values.shape} do not fit axis {axis} of a table {joint.shape}")
  return jnp.expand_dims(values, _others(joint, axis))


def marginal(joint: jax.Array, axis: int) -> jax.Array:
  """Law of the variable on `axis`: p(x) = sum_y p(x, y).

  Args:
    joint: table, [K_0, K_1, ...].
    axis: the variable that stays.

  Returns:
    [K_axis].

  Raises:
    ValueError: if the table is no law or has no such axis.

  >>> marginal(jnp.array([[1, 1], [0, 2]]), 0).tolist()
  [0.5, 0.5]
  """
  joint = law("joint", joint)
  return joint.sum(_others(joint, axis))


def conditional(joint: jax.Array, given: int) -> jax.Array:
  """Law of the other variables where that on axis `given` is known: p(y|x) = p(x, y) / p(x).

  Args:
    joint: table, [K_0, K_1, ...].
    given: axis of the variable that is known.

  Returns:
    The shape of the table, its axes where they were; sums to 1 over the other axes. NaN where the
    condition has probability zero.

  Raises:
    ValueError: if the table is no law or has no such axis.

  >>> conditional(jnp.array([[1, 1], [0, 2]]), given=0).tolist()
  [[0.5, 0.5], [0.0, 1.0]]
  """
  joint = law("joint", joint)
  return joint / joint.sum(_others(joint, given), keepdims=True)


def bayes(prior: jax.Array, likelihood: jax.Array) -> jax.Array:
  """Turns a conditional round: p(x|y) = p(y|x) p(x) / sum_x p(y|x) p(x).

  Args:
    prior: p(x), [X].
    likelihood: p(y|x), [X, Y]; rows sum to 1.

  Returns:
    p(x|y), [X, Y]; columns sum to 1. NaN where y is impossible.

  Raises:
    ValueError: if the shapes do not fit or the prior is no law.

  >>> bayes(jnp.array([0.5, 0.5]), jnp.array([[0.75, 0.25], [0.25, 0.75]])).tolist()
  [[0.75, 0.25], [0.25, 0.75]]
  """
  prior, likelihood = law("prior", prior), jnp.asarray(likelihood)
  if prior.ndim != 1 or likelihood.ndim != 2 or len(prior) != len(likelihood):
    raise ValueError(f"given prior {prior.shape} and likelihood {likelihood.shape}: [X], [X, Y]")
  return conditional(prior[:, None] * likelihood, given=1)


def expectation(probs: jax.Array, values: jax.Array) -> jax.Array:
  """Expectation sum_k p_k v_k, over a table of any number of axes.

  Args:
    probs: p, [K_0, ...].
    values: v, of a shape that broadcasts to that of p.

  Returns:
    Scalar.

  Raises:
    ValueError: if probs is no law.

  >>> float(expectation(jnp.array([1, 3]), jnp.array([0.0, 4.0])))
  3.0
  """
  probs = law("probs", probs)
  return (probs * jnp.broadcast_to(jnp.asarray(values), probs.shape)).sum()


def conditional_expectation(joint: jax.Array, values: jax.Array, given: int) -> jax.Array:
  """Expectation of one of two variables where the other is known: E[y|x] = sum_y y p(y|x).

  Args:
    joint: table of two variables, [X, Y].
    values: of the variable that is averaged, [Y] for given=0, [X] for given=1.
    given: axis of the variable that is known.

  Returns:
    [X] for given=0, [Y] for given=1.

  Raises:
    ValueError: if the table is no law of two variables, or the values do not fit.

  >>> table = jnp.array([[1, 1], [0, 2]])
  >>> conditional_expectation(table, jnp.array([0.0, 1.0]), given=0).tolist()
  [0.5, 1.0]
  """
  known = conditional(joint, given)
  if known.ndim != 2:
    raise ValueError(f"a table of two variables is [X, Y], given {known.shape}")
  (other,) = _others(known, given)
  return (known * _along(values, known, other)).sum(other)


def covariance(joint: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
  """Covariance E[(x - E x) (y - E y)].

  Args:
    joint: table, [X, Y].
    x: values of the first variable, [X].
    y: values of the second, [Y].

  Returns:
    Scalar.

  Raises:
    ValueError: if the table is no law of two variables, or the values do not fit.

  >>> float(covariance(jnp.eye(2), jnp.array([0.0, 1.0]), jnp.array([0.0, 2.0])))
  0.5
  """
  joint = law("joint", joint)
  if joint.ndim != 2:
    raise ValueError(f"a table of two variables is [X, Y], given {joint.shape}")
  x, y = _along(x, joint, 0), _along(y, joint, 1)
  return (joint * (x - (joint * x).sum()) * (y - (joint * y).sum())).sum()


def correlation(joint: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
  """Correlation cov(x, y) / sqrt(var x var y).

  Args:
    joint: table, [X, Y].
    x: values of the first variable, [X].
    y: values of the second, [Y].

  Returns:
    Scalar in [-1, 1]; NaN if a variable is constant.

  Raises:
    ValueError: if the table is no law of two variables, or the values do not fit.

  >>> float(correlation(jnp.eye(2), jnp.array([0.0, 1.0]), jnp.array([0.0, 2.0])))
  1.0
  """
  shared = covariance(joint, x, y)
  var_x = covariance(jnp.diag(marginal(joint, 0)), x, x)
  var_y = covariance(jnp.diag(marginal(joint, 1)), y, y)
  return shared / jnp.sqrt(var_x * var_y)
