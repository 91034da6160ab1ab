"""Gradients of expectations under a normal law: through its draws, or by its score.

What is no law is an error where values are known, and gives NaN inside jit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gm.probability import arguments


def gaussian_reparam(
  key: jax.Array,
  mean: jax.Array,
  *,
  std: jax.Array | None = None,
  cov: jax.Array | None = None,
  chol: jax.Array | None = None,
  shape: Sequence[int] = (),
) -> jax.Array:
  """Draws x = mean + L eps, eps ~ N(0, I), through which gradients in mean and L pass.

  Args:
    key: PRNG key.
    mean: [d].
    std: [d], the diagonal of L; or
    cov: [d, d], whose Cholesky factor is L; or
    chol: L, [d, d], lower triangular.
    shape: of the draws.

  Returns:
    [*shape, d]; NaN if cov turns out not to be positive definite inside jit.

  Raises:
    ValueError: unless exactly one of std, cov and chol is given, of fitting shape; if std is
      negative, or cov is not symmetric and positive definite.

  Source: Kingma and Welling, 2014, arXiv:1312.6114, section 2.4.

  >>> gaussian_reparam(jax.random.key(0), jnp.ones(2), std=jnp.zeros(2), shape=(3,)).shape
  (3, 2)
  """
  given = {"std": std, "cov": cov, "chol": chol}
  given = {k: arguments.as_float(v) for k, v in given.items() if v is not None}
  mean = arguments.as_float(mean)
  if len(given) != 1:
    raise ValueError(f"one of std, cov and chol is needed, given {sorted(given) or 'none'}")
  (name, spread), d = *given.items(), mean.shape[-1] if mean.ndim else 0
  if mean.ndim != 1 or spread.shape != ((d,) if name == "std" else (d, d)):
    raise ValueError(
      f"given mean {mean.shape} and {name} {spread.shape}; they are [d], and [d] for std, [d, d]"
      " for cov and chol"
    )
  if name == "std":
    if arguments.known(spread) and not (np.asarray(spread) >= 0).all():
      raise ValueError(f"std: given {np.asarray(spread)}; no entry may be negative or NaN")
    factor = jnp.diag(spread)
  else:
    factor = jnp.linalg.cholesky(spread) if name == "cov" else spread
    if name == "cov" and arguments.known(factor):
      lopsided = not np.allclose(np.asarray(spread), np.asarray(spread).T)
      if lopsided or not np.isfinite(np.asarray(factor)).all():
        raise ValueError(f"cov: given {np.asarray(spread)}; not symmetric and positive definite")
  eps = jax.random.normal(key, (*shape, d), jnp.result_type(mean, factor))
  return mean + (factor[jnp.diag_indices(d)] * eps if name == "std" else eps @ factor.T)


def pathwise_gradient(
  key: jax.Array, h: Callable, mean: jax.Array, chol: jax.Array, n: int
) -> jax.Array:
  """Estimates d/dmean E h(x), x ~ N(mean, L L^T), by grad h(mean + L eps), a draw at a time.

  Args:
    key: PRNG key.
    h: [d] -> (), differentiable.
    mean: [d].
    chol: L, [d, d].
    n: number of draws.

  Returns:
    [n, d]; their mean is the estimate and their variance its quality.

  Source: Kingma and Welling, 2014, arXiv:1312.6114, section 2.4.

  >>> half_square = lambda x: x @ x / 2
  >>> one = jnp.ones(1)
  >>> g = pathwise_gradient(jax.random.key(0), half_square, 3 * one, 0 * one[None], 5)
  >>> g.ravel().tolist()  # no noise, so d/dm of m^2 / 2
  [3.0, 3.0, 3.0, 3.0, 3.0]
  """
  return jax.vmap(jax.grad(h))(gaussian_reparam(key, mean, chol=chol, shape=(n,)))


def score_function_gradient(
  key: jax.Array,
  h: Callable,
  mean: jax.Array,
  chol: jax.Array,
  n: int,
  *,
  baseline: jax.Array | float = 0.0,
) -> jax.Array:
  """Estimates d/dmean E h(x) by (h(x) - baseline) grad_mean log N(x; mean, L L^T).

  The score is L^-T eps at x = mean + L eps. h need not be differentiable; the price is variance.

  Args:
    key: PRNG key.
    h: [d] -> ().
    mean: [d].
    chol: L, [d, d].
    n: number of draws.
    baseline: any constant; it changes the variance and not the mean.

  Returns:
    [n, d].

  Source: Williams, Simple statistical gradient-following algorithms, Machine Learning 8, 1992.

  >>> g = score_function_gradient(jax.random.key(0), lambda x: 7.0, jnp.zeros(2), jnp.eye(2), 5,
  ...   baseline=7.0)
  >>> float(abs(g).max())
  0.0
  """
  mean, chol = arguments.as_float(mean), arguments.as_float(chol)
  eps = jax.random.normal(key, (n, *mean.shape), jnp.result_type(mean, chol))
  score = jax.scipy.linalg.solve_triangular(chol, eps.T, lower=True, trans="T").T
  return (jax.vmap(h)(mean + eps @ chol.T) - baseline)[:, None] * score
