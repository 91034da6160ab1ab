"""How far draws lie from a law, or from other draws."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gm.probability import arguments


def ks_distance(x: jax.Array, cdf: Callable, mask: jax.Array | None = None) -> jax.Array:
  """Kolmogorov-Smirnov distance, the largest |F_n(x) - F(x)|.

  Where the draws follow F it exceeds 1.63 / sqrt(n) once in a hundred times.

  Args:
    x: draws [N].
    cdf: F, [N] -> [N].
    mask: bool [N], which of them count; all by default.

  Returns:
    Scalar in [0, 1]; NaN if none counts.

  >>> float(ks_distance(jnp.array([0.25, 0.75]), lambda x: x))
  0.25
  """
  mask = jnp.ones(x.shape, bool) if mask is None else mask
  order = jnp.argsort(jnp.where(mask, x, jnp.inf))
  x, mask = x[order], mask[order]
  below = jnp.arange(len(x)) / mask.sum()
  step = 1 / mask.sum()
  gap = jnp.maximum(below + step - cdf(x), cdf(x) - below)
  return jnp.where(mask.any(), jnp.where(mask, gap, 0.0).max(), jnp.nan)


def chi_square(index: jax.Array, probs: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Pearson's statistic sum_k (n_k - n p_k)^2 / (n p_k), and the probability of a larger one.

  Args:
    index: draws, i32 [N], in 0..K-1.
    probs: p, [K]; any positive multiple of it.

  Returns:
    Scalars: the statistic, infinite where something impossible was drawn, and its p-value with one
    degree of freedom less than there are positive p.

  Raises:
    ValueError: if a value of probs is negative, not finite, or all are zero.

  >>> statistic, _ = chi_square(jnp.array([0, 0, 0, 1]), jnp.array([0.5, 0.5]))
  >>> float(statistic)  # (3 - 2)^2 / 2 + (1 - 2)^2 / 2
  1.0
  """
  probs = arguments.as_float(probs)
  arguments.require_weights("probs", probs)
  want = index.size * probs / probs.sum()
  have = jnp.zeros_like(want).at[index.ravel()].add(1.0)
  possible = probs > 0
  terms = jnp.where(possible, (have - want) ** 2 / jnp.where(possible, want, 1.0), 0.0)
  impossible = index.size - jnp.where(possible, have, 0.0).sum()
  statistic = jnp.where(impossible > 0, jnp.inf, terms.sum())
  return statistic, jax.scipy.stats.chi2.sf(statistic, possible.sum() - 1)


def wasserstein_1d(x: jax.Array, y: jax.Array) -> jax.Array:
  """Exact W1 between two sets of equally many numbers: mean_i |x_(i) - y_(i)|, both sorted.

  >>> float(wasserstein_1d(jnp.array([0.0, 1.0]), jnp.array([3.0, 2.0])))
  2.0
  """
  return jnp.mean(jnp.abs(jnp.sort(x) - jnp.sort(y)))
