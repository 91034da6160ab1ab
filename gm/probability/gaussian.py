"""Normal laws by their Cholesky factors, and the linear latent-variable model that is exact.

Covariances are never inverted: L L^T = cov, and L^-1 x is a triangular solve. Functions take one
law (vmap over batches). A covariance that is not symmetric and positive definite is an error where
its values are known, and gives NaN inside jit.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular

_LOG_2PI = math.log(2 * math.pi)


def _float(x: jax.Array) -> jax.Array:
  x = jnp.asarray(x)
  return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(float)


def _fit(mean: jax.Array, matrix: jax.Array, name: str = "cov") -> tuple[jax.Array, jax.Array]:
  mean, matrix = _float(mean), _float(matrix)
  if mean.ndim != 1 or matrix.shape != (len(mean), len(mean)):
    raise ValueError(f"given mean {mean.shape} and {name} {matrix.shape}; they are [d] and [d, d]")
  return mean, matrix


def _require_positive(name: str, x: jax.Array) -> jax.Array:
  """The array; NaN where it is not positive, an error where that is known."""
  x = _float(x)
  if not isinstance(x, jax.core.Tracer) and not (np.asarray(x) > 0).all():
    raise ValueError(f"{name}: given {np.asarray(x)}; it must be positive")
  return jnp.where(x > 0, x, jnp.nan)


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
  cov = _float(cov)
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
  raw = _float(raw)
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
  x = _float(x)
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
  mean, cov = _fit(mean, cov)
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
  (mean_1, cov_1), (mean_2, cov_2) = _fit(mean_1, cov_1), _fit(mean_2, cov_2)
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

  `gm.losses.kl_gaussians` is the same for batches of means and log variances.

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
  mean_1, mean_2 = _float(mean_1), _float(mean_2)
  std_1, std_2 = _require_positive("std_1", std_1), _require_positive("std_2", std_2)
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
  mean = _float(mean)
  return kl_diagonal(mean, std, jnp.zeros_like(mean), jnp.ones_like(mean))


# --------------------------------------------------------- the linear model, all of it exact


class LinearGaussian(NamedTuple):
  """Probabilistic PCA: z ~ N(0, I_d), x | z ~ N(W z + mean, var I_D).

  Source: Tipping and Bishop, Probabilistic principal component analysis, JRSS B, 1999.
  """

  weight: jax.Array  # W, [D, d]
  mean: jax.Array  # [D]
  var: jax.Array  # s^2, ()


def _checked(model: LinearGaussian) -> LinearGaussian:
  weight, mean = _float(model.weight), _float(model.mean)
  if weight.ndim != 2 or mean.shape != weight.shape[:1] or jnp.shape(model.var):
    raise ValueError(
      f"given weight {weight.shape}, mean {mean.shape} and var {jnp.shape(model.var)}; they are"
      " [D, d], [D] and ()"
    )
  return LinearGaussian(weight, mean, _require_positive("var", model.var))


def log_likelihood(model: LinearGaussian, x: jax.Array) -> jax.Array:
  """Exact log p(x) = log N(x; mean, W W^T + s^2 I).

  Args:
    model: the model.
    x: [..., D].

  Returns:
    [...], nats.

  Raises:
    ValueError: if the shapes do not fit or the variance is not positive.

  >>> model = LinearGaussian(jnp.zeros((2, 1)), jnp.zeros(2), jnp.array(1.0))
  >>> round(float(log_likelihood(model, jnp.zeros(2))), 4)  # -log 2 pi
  -1.8379
  """
  w, mean, var = _checked(model)
  return log_prob(x, mean, w @ w.T + var * jnp.eye(len(w), dtype=w.dtype))


def _precision(model: LinearGaussian) -> jax.Array:
  """Of the posterior, the same for all x: W^T W / s^2 + I."""
  w, _, var = model
  return w.T @ w / var + jnp.eye(w.shape[1], dtype=w.dtype)


def posterior(model: LinearGaussian, x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Exact p(z|x) = N(M^-1 W^T (x - mean), s^2 M^-1), M = W^T W + s^2 I.

  Args:
    model: the model.
    x: [..., D].

  Returns:
    mean [..., d] and covariance [d, d], which does not depend on x.

  Raises:
    ValueError: if the shapes do not fit or the variance is not positive.

  >>> model = LinearGaussian(jnp.ones((1, 1)), jnp.zeros(1), jnp.array(1.0))
  >>> [round(float(v.squeeze()), 4) for v in posterior(model, jnp.array([2.0]))]
  [1.0, 0.5]
  """
  model = _checked(model)
  w, mean, var = model
  # L^-1 with L L^T the precision, so that the covariance is (L^-1)^T L^-1
  factor = whiten(cholesky(_precision(model)), jnp.eye(w.shape[1], dtype=w.dtype)).T
  cov = factor.T @ factor
  return (x - mean) @ w @ cov / var, cov


def elbo(model: LinearGaussian, x: jax.Array, q_mean: jax.Array, q_cov: jax.Array) -> jax.Array:
  """Exact evidence lower bound of q(z) = N(m, S), which falls short of log p(x) by `gap`.

  -1/2 (D log 2 pi s^2 + (|x - mean - W m|^2 + tr(W S W^T)) / s^2) - KL(q || N(0, I)).

  Args:
    model: the model.
    x: [D].
    q_mean: m, [d].
    q_cov: S, [d, d].

  Returns:
    Scalar, nats.

  Raises:
    ValueError: if the shapes do not fit, or a variance or S is not positive.

  >>> model = LinearGaussian(jnp.zeros((1, 1)), jnp.zeros(1), jnp.array(1.0))
  >>> round(float(elbo(model, jnp.zeros(1), jnp.zeros(1), jnp.eye(1))), 4)  # here log p(x)
  -0.9189
  """
  w, mean, var = _checked(model)
  q_mean, q_cov = _fit(q_mean, q_cov)
  spread = ((x - mean - w @ q_mean) ** 2).sum() + jnp.trace(w @ q_cov @ w.T)
  likelihood = -0.5 * (len(w) * (_LOG_2PI + jnp.log(var)) + spread / var)
  d = w.shape[1]
  return likelihood - kl(q_mean, q_cov, jnp.zeros(d, w.dtype), jnp.eye(d, dtype=w.dtype))


def gap(model: LinearGaussian, x: jax.Array, q_mean: jax.Array, q_cov: jax.Array) -> jax.Array:
  """What the bound lacks: log p(x) - ELBO(q) = KL(q(z) || p(z|x)).

  Args:
    model: the model.
    x: [D].
    q_mean: [d].
    q_cov: [d, d].

  Returns:
    Scalar, nats, computed as the divergence.

  Raises:
    ValueError: if the shapes do not fit, or a variance or q_cov is not positive.

  >>> model = LinearGaussian(jnp.zeros((1, 1)), jnp.zeros(1), jnp.array(1.0))
  >>> float(gap(model, jnp.zeros(1), 2 * jnp.ones(1), jnp.eye(1)))
  2.0
  """
  return kl(q_mean, q_cov, *posterior(model, x))


def best_diagonal(model: LinearGaussian, x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The q of independent latents with the smallest gap: the posterior's mean, 1 / its precision.

  Its gap is 1/2 (sum_j log P_jj - log |P|), P the precision: zero only if W^T W is diagonal.

  Args:
    model: the model.
    x: [..., D].

  Returns:
    mean [..., d] and variances [d].

  Raises:
    ValueError: if the shapes do not fit or the variance is not positive.

  >>> model = LinearGaussian(jnp.ones((1, 1)), jnp.zeros(1), jnp.array(1.0))
  >>> [round(float(v.squeeze()), 4) for v in best_diagonal(model, jnp.array([2.0]))]
  [1.0, 0.5]
  """
  return posterior(model, x)[0], 1 / jnp.diagonal(_precision(_checked(model)))


def maximum_likelihood(mean: jax.Array, cov: jax.Array, num_latents: int) -> LinearGaussian:
  """The model of largest likelihood for data of this mean and covariance.

  s^2 is the mean of the D - d smallest eigenvalues, W = U_d (Lambda_d - s^2 I)^(1/2).

  Args:
    mean: of the data, [D].
    cov: of the data, divided by their number, [D, D].
    num_latents: d, below D.

  Returns:
    The model, in the rotation in which W^T W is diagonal.

  Raises:
    ValueError: if the shapes do not fit, d is not in 1..D-1, or cov has so small a rank that s^2 is
      not positive.

  Source: Tipping and Bishop, Probabilistic principal component analysis, JRSS B, 1999.

  >>> model = maximum_likelihood(jnp.zeros(3), jnp.diag(jnp.array([5.0, 2.0, 0.5])), 1)
  >>> float(model.var), round(abs(float(model.weight[0, 0])), 4)  # (2 + 0.5) / 2, sqrt(5 - 1.25)
  (1.25, 1.9365)
  """
  mean, cov = _fit(mean, cov)
  values, vectors = jnp.linalg.eigh(cov)  # rising
  var = _residual(values[::-1], num_latents)
  top = jnp.maximum(values[::-1][:num_latents] - var, 0.0)
  return LinearGaussian(vectors[:, ::-1][:, :num_latents] * jnp.sqrt(top), mean, var)


def maximum_log_likelihood(eigenvalues: jax.Array, num_latents: int) -> jax.Array:
  """The average log-likelihood that `maximum_likelihood` reaches on its data.

  -1/2 (D log 2 pi + sum_{j <= d} log lambda_j + (D - d) log s^2 + D).

  Args:
    eigenvalues: of the data's covariance, [D], in any order.
    num_latents: d, below D.

  Returns:
    Scalar, nats for an example.

  Raises:
    ValueError: if d is not in 1..D-1, or the smallest D - d eigenvalues are not positive in sum.

  >>> round(float(maximum_log_likelihood(jnp.ones(2), 1)), 4)  # -log 2 pi e
  -2.8379
  """
  values = jnp.sort(_float(eigenvalues))[::-1]
  var = _residual(values, num_latents)
  rest = len(values) - num_latents
  spread = jnp.log(values[:num_latents]).sum() + rest * jnp.log(var)
  return -0.5 * (len(values) * (_LOG_2PI + 1) + spread)


def _residual(values: jax.Array, num_latents: int) -> jax.Array:
  """Mean of the smallest D - d of falling eigenvalues."""
  if not 0 < num_latents < len(values):
    raise ValueError(f"num_latents {num_latents} is not in 1..{len(values) - 1}")
  return _require_positive("the mean of the smallest eigenvalues", values[num_latents:].mean())
