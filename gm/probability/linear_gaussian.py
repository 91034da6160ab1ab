"""The linear latent-variable model: its likelihood, posterior and bound are exact.

Functions take one model (vmap over batches). A variance or covariance that is not positive is an
error where its values are known, and gives NaN inside jit.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gm.probability import arguments, gaussian

_LOG_2PI = math.log(2 * math.pi)


class LinearGaussian(NamedTuple):
  """Probabilistic PCA: z ~ N(0, I_d), x | z ~ N(W z + mean, var I_D).

  Source: Tipping and Bishop, Probabilistic principal component analysis, JRSS B, 1999.
  """

  weight: jax.Array  # W, [D, d]
  mean: jax.Array  # [D]
  var: jax.Array  # s^2, ()


def _checked(model: LinearGaussian) -> LinearGaussian:
  weight, mean = arguments.as_float(model.weight), arguments.as_float(model.mean)
  if weight.ndim != 2 or mean.shape != weight.shape[:1] or jnp.shape(model.var):
    raise ValueError(
      f"given weight {weight.shape}, mean {mean.shape} and var {jnp.shape(model.var)}; they are"
      " [D, d], [D] and ()"
    )
  return LinearGaussian(weight, mean, arguments.require_positive("var", model.var))


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
  return gaussian.log_prob(x, mean, w @ w.T + var * jnp.eye(len(w), dtype=w.dtype))


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
  factor = gaussian.whiten(
    gaussian.cholesky(_precision(model)), jnp.eye(w.shape[1], dtype=w.dtype)
  ).T
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
  q_mean, q_cov = arguments.moments(q_mean, q_cov)
  spread = ((x - mean - w @ q_mean) ** 2).sum() + jnp.trace(w @ q_cov @ w.T)
  likelihood = -0.5 * (len(w) * (_LOG_2PI + jnp.log(var)) + spread / var)
  d = w.shape[1]
  return likelihood - gaussian.kl(q_mean, q_cov, jnp.zeros(d, w.dtype), jnp.eye(d, dtype=w.dtype))


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
  return gaussian.kl(q_mean, q_cov, *posterior(model, x))


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
  mean, cov = arguments.moments(mean, cov)
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
  values = jnp.sort(arguments.as_float(eigenvalues))[::-1]
  var = _residual(values, num_latents)
  rest = len(values) - num_latents
  spread = jnp.log(values[:num_latents]).sum() + rest * jnp.log(var)
  return -0.5 * (len(values) * (_LOG_2PI + 1) + spread)


def _residual(values: jax.Array, num_latents: int) -> jax.Array:
  """Mean of the smallest D - d of falling eigenvalues."""
  if not 0 < num_latents < len(values):
    raise ValueError(f"num_latents {num_latents} is not in 1..{len(values) - 1}")
  return arguments.require_positive(
    "the mean of the smallest eigenvalues", values[num_latents:].mean()
  )
