"""Normal laws by their Cholesky factors.

Covariances are never inverted: L L^T = cov, and L^-1 x is a triangular solve. Functions take one
law (vmap over batches). A covariance that is not symmetric and positive definite is an error where
its values are known, and gives NaN inside jit.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular

from gm.probability import arguments

_LOG_2PI = math.log(2 * math.pi)


def cholesky(cov: jax.Array) -> jax.Array:
  """Lower triangular L with L L^T = cov.

  Args:
    cov: [d, d].

  Returns:
    [d, d]; NaN inside jit if cov is not symmetric and positive definite.

  Raises:
    ValueError: if cov is not square, symmetric and positive definite.

  >>> cholesky(jnp.array([[4.0, 2.0], [2.0, 2.0]])).tolist()
  [[2.0, 0.0], [1.0, 1.0]]
  """
  cov = arguments.as_float(cov)
  if cov.ndim != 2 or cov.shape[0] != cov.shape[1]:
    raise ValueError(f"cov: given {cov.shape}; it takes [d, d]")
  size = jnp.sqrt(jnp.diagonal(cov))
  symmetric = (abs(cov - cov.T) <= 1e-5 * size * size[:, None]).all()  # relative to the variances
  chol = jnp.where(symmetric, jnp.linalg.cholesky(cov), jnp.nan)
  # the factor, not cov: inside jit it is unknown even where cov is a constant
  if not isinstance(chol, jax.core.Tracer) and not np.isfinite(np.asarray(chol)).all():
    raise ValueError(f"cov: given {np.asarray(cov)}; it must be symmetric and positive definite")
  return chol


def lower_triangular(raw: jax.Array) -> jax.Array:
  """Turns any numbers, such as a network's output, into a Cholesky factor.

  They fill a lower triangle row by row; softplus plus 1e-5 makes its diagonal positive.

  Args:
    raw: [..., d (d + 1) / 2].

  Returns:
    [..., d, d].

  Raises:
    ValueError: if the length is no d (d + 1) / 2.

  >>> chol = lower_triangular(jnp.array([0.0, 7.0, 0.0]))
  >>> [round(v, 4) for v in chol.ravel().tolist()]  # softplus(0) = log 2
  [0.6932, 0.0, 7.0, 0.6932]
  """
  raw = arguments.as_float(raw)
  d = (math.isqrt(8 * raw.shape[-1] + 1) - 1) // 2
  if not d or d * (d + 1) // 2 != raw.shape[-1]:
    raise ValueError(f"raw: given {raw.shape}; its last axis is d (d + 1) / 2: 1, 3, 6, 10, ...")
  rows, cols = np.tril_indices(d)
  entries = jnp.where(rows == cols, jax.nn.softplus(raw) + 1e-5, raw)
  return jnp.zeros((*raw.shape[:-1], d, d), raw.dtype).at[..., rows, cols].set(entries)


def log_det(chol: jax.Array) -> jax.Array:
  """Log-determinant of L L^T: log |cov| = 2 sum_i log L_ii.

  Args:
    chol: L, [..., d, d], with a positive diagonal.

  Returns:
    [...].

  >>> round(float(log_det(jnp.array([[2.0, 0.0], [5.0, 3.0]]))), 4)  # log 36
  3.5835
  """
  return 2 * jnp.log(jnp.diagonal(chol, axis1=-2, axis2=-1)).sum(-1)


def whiten(chol: jax.Array, x: jax.Array) -> jax.Array:
  """L^-1 x, which is N(0, I) where x is N(0, L L^T).

  Args:
    chol: L, [d, d].
    x: [..., d].

  Returns:
    [..., d].

  >>> whiten(jnp.array([[2.0, 0.0], [1.0, 1.0]]), jnp.array([2.0, 4.0])).tolist()
  [1.0, 3.0]
  """
  x = arguments.as_float(x)
  rows = x.reshape(-1, x.shape[-1])
  return solve_triangular(chol, rows.T, lower=True).T.reshape(x.shape)


def log_prob(x: jax.Array, mean: jax.Array, cov: jax.Array) -> jax.Array:
  """Log-density log N(x; m, S) = -1/2 (d log 2 pi + log |S| + |L^-1 (x - m)|^2).

  Args:
    x: [..., d].
    mean: m, [d].
    cov: S, [d, d].

  Returns:
    [...], nats.

  Raises:
    ValueError: if the shapes do not fit or S is not symmetric and positive definite.

  >>> round(float(log_prob(jnp.zeros(2), jnp.zeros(2), jnp.eye(2))), 4)  # -log 2 pi
  -1.8379
  """
  mean, cov = arguments.moments(mean, cov)
  if jnp.shape(x)[-1:] != mean.shape:
    raise ValueError(f"given x {jnp.shape(x)} and mean {mean.shape}; they are [..., d] and [d]")
  chol = cholesky(cov)
  distance = (whiten(chol, x - mean) ** 2).sum(-1)
  return -0.5 * (len(mean) * _LOG_2PI + log_det(chol) + distance)


def entropy(cov: jax.Array) -> jax.Array:
  """Differential entropy 1/2 (d log 2 pi e + log |S|).

  Args:
    cov: S, [d, d].

  Returns:
    Scalar, nats.

  Raises:
    ValueError: if S is not symmetric and positive definite.

  >>> round(float(entropy(jnp.eye(1))), 4)
  1.4189
  """
  chol = cholesky(cov)
  return 0.5 * (len(chol) * (_LOG_2PI + 1) + log_det(chol))


def kl(mean_1: jax.Array, cov_1: jax.Array, mean_2: jax.Array, cov_2: jax.Array) -> jax.Array:
  """KL divergence between two normals with full covariances.

  KL(N(m1, S1) || N(m2, S2)) = 1/2 (tr(S2^-1 S1) + |L2^-1 (m2 - m1)|^2 - d + log |S2| / |S1|).

  Args:
    mean_1: m1, [d].
    cov_1: S1, [d, d].
    mean_2: m2, [d].
    cov_2: S2, [d, d].

  Returns:
    Scalar, nats.

  Raises:
    ValueError: if the shapes do not fit or a covariance is not symmetric and positive definite.

  >>> float(kl(jnp.zeros(2), jnp.eye(2), 2 * jnp.ones(2), jnp.eye(2)))
  4.0
  """
  (mean_1, cov_1), (mean_2, cov_2) = (
    arguments.moments(mean_1, cov_1),
    arguments.moments(mean_2, cov_2),
  )
  if mean_1.shape != mean_2.shape:
    raise ValueError(f"the two laws have {len(mean_1)} and {len(mean_2)} dimensions")
  one, two = cholesky(cov_1), cholesky(cov_2)
  ratio = solve_triangular(two, one, lower=True)  # tr(S2^-1 S1) is its squared norm
  distance = (whiten(two, mean_2 - mean_1) ** 2).sum()
  return 0.5 * ((ratio**2).sum() + distance - len(mean_1) + log_det(two) - log_det(one))


def kl_diagonal(
  mean_1: jax.Array, std_1: jax.Array, mean_2: jax.Array, std_2: jax.Array
) -> jax.Array:
  """KL divergence between two normals with diagonal covariances.

  KL = sum_j 1/2 (r_j^2 - 1) - log r_j + (m1_j - m2_j)^2 / (2 s2_j^2),  r = s1 / s2.

  `likelihood.kl_gaussians` is the same for batches of means and log variances.

  Args:
    mean_1: m1, [d].
    std_1: s1, [d] or (), a standard deviation for all.
    mean_2: m2, [d].
    std_2: s2, [d] or ().

  Returns:
    Scalar, nats.

  Raises:
    ValueError: if the shapes do not fit or a standard deviation is not positive.

  >>> float(kl_diagonal(jnp.zeros(2), 1.0, 2 * jnp.ones(2), 1.0))
  4.0
  """
  mean_1, mean_2 = arguments.as_float(mean_1), arguments.as_float(mean_2)
  std_1, std_2 = (
    arguments.require_positive("std_1", std_1),
    arguments.require_positive("std_2", std_2),
  )
  if mean_1.ndim != 1 or mean_1.shape != mean_2.shape:
    raise ValueError(f"given means {mean_1.shape} and {mean_2.shape}; both are [d]")
  for std in (std_1, std_2):
    if std.shape not in ((), mean_1.shape):
      raise ValueError(f"given a std {std.shape} beside a mean {mean_1.shape}; it is () or [d]")
  ratio = std_1 / std_2
  # (r^2 - 1) / 2 - log r, without its cancellation near r = 1
  spread = 0.5 * (ratio - 1) * (ratio + 1) - jnp.log1p(ratio - 1)
  return (spread + 0.5 * ((mean_1 - mean_2) / std_2) ** 2).sum()


def kl_standard(mean: jax.Array, std: jax.Array) -> jax.Array:
  """KL divergence from the standard normal.

  KL(N(m, diag s^2) || N(0, I)) = 1/2 sum_j (m_j^2 + s_j^2 - 1 - log s_j^2): zero at m = 0, s = 1;
  for one s in d dimensions its derivative in s is d (s - 1/s).

  Args:
    mean: m, [d].
    std: s, [d], or () for all.

  Returns:
    Scalar, nats.

  Raises:
    ValueError: if the shapes do not fit or s is not positive.

  >>> float(kl_standard(jnp.array([1.0, -2.0]), 1.0))
  2.5
  """
  mean = arguments.as_float(mean)
  return kl_diagonal(mean, std, jnp.zeros_like(mean), jnp.ones_like(mean))
