"""Terms of the variational bounds: log-probabilities, divergences and the bound itself.

For batches: sums over the event axes, in nats. Half-precision inputs are widened to float32 before
anything is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

_LOG_2PI = math.log(2 * math.pi)


def _wide(*arrays: jax.Array) -> tuple[jax.Array, ...]:
  """Half precision and integers to float32; float32 and float64 stay."""
  arrays = tuple(map(jnp.asarray, arrays))
  return tuple(x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in arrays)


def _sum_event(x: jax.Array, event_ndim: int | None) -> jax.Array:
  """Sums over the last `event_ndim` axes; None means all axes but the first."""
  return jnp.sum(x, axis=tuple(range(-(x.ndim - 1 if event_ndim is None else event_ndim), 0)))


def _check_events(name: str, x: jax.Array, other: jax.Array, event_ndim: int | None) -> None:
  """Refuses what would give a wrong number: a broadcast event, a summed sample axis."""
  if event_ndim is None:
    if x.shape != other.shape:
      raise ValueError(
        f"{name}: given {x.shape} and {other.shape}; without event_ndim both must have one shape "
        "[B, ...]. With a leading sample axis pass event_ndim, the number of trailing axes of "
        "one example (1 for [D], 3 for [H, W, C]); --config.data.image_size and "
        "--config.data.channels set an image's shape"
      )
  else:
    ours, theirs = (a.shape[a.ndim - event_ndim :] for a in (x, other))
    if min(x.ndim, other.ndim) < event_ndim or ours != theirs:
      raise ValueError(
        f"{name}: given {x.shape} and {other.shape}; the last event_ndim={event_ndim} axes must "
        "be equal; --config.data.image_size and --config.data.channels set an image's shape"
      )


def kl_gaussian(mean: jax.Array, log_var: jax.Array, *, event_ndim: int | None = None) -> jax.Array:
  """KL divergence of a diagonal normal from the standard normal.

  KL(N(m, diag v) || N(0, I)) = 1/2 sum_j (m_j^2 + v_j - 1 - log v_j): a sum over the latents, not
  a mean.

  Args:
    mean: m, [B, Z] or [..., *event].
    log_var: log v, the same shape.
    event_ndim: number of trailing axes to sum; None sums all but the first.

  Returns:
    [B], nats, never negative.

  Raises:
    ValueError: if the shapes differ.

  Source: Kingma and Welling, 2014, arXiv:1312.6114, appendix B.

  >>> float(kl_gaussian(jnp.array([[1.0, -2.0]]), jnp.zeros((1, 2)))[0])
  2.5
  """
  mean, log_var = _wide(mean, log_var)
  _check_events("kl_gaussian", mean, log_var, event_ndim)
  # expm1(u) - u is v - 1 - log v without the cancellation near v = 1
  return 0.5 * _sum_event(mean**2 + jnp.expm1(log_var) - log_var, event_ndim)


def kl_gaussians(
  mean_1: jax.Array,
  log_var_1: jax.Array,
  mean_2: jax.Array,
  log_var_2: jax.Array,
  *,
  event_ndim: int | None = None,
) -> jax.Array:
  """KL divergence between two diagonal normals.

  KL(N(m1, v1) || N(m2, v2)) = 1/2 sum_j (v1/v2 - 1 - log(v1/v2) + (m1 - m2)^2 / v2).

  Args:
    mean_1: m1, [B, Z] or [..., *event].
    log_var_1: log v1, the same shape.
    mean_2: m2, the same shape.
    log_var_2: log v2, the same shape.
    event_ndim: number of trailing axes to sum; None sums all but the first.

  Returns:
    [B], nats, never negative.

  Raises:
    ValueError: if the shapes differ.

  Source: Kingma and Welling, 2014, arXiv:1312.6114, appendix B, for a general second normal.

  >>> one = jnp.ones((1, 2))
  >>> float(kl_gaussians(one, 0 * one, 3 * one, 0 * one)[0])
  4.0
  """
  mean_1, log_var_1, mean_2, log_var_2 = _wide(mean_1, log_var_1, mean_2, log_var_2)
  for other in (log_var_1, mean_2, log_var_2):
    _check_events("kl_gaussians", mean_1, other, event_ndim)
  log_ratio = log_var_1 - log_var_2
  distance = (mean_1 - mean_2) ** 2 * jnp.exp(-log_var_2)
  return 0.5 * _sum_event(jnp.expm1(log_ratio) - log_ratio + distance, event_ndim)


def bernoulli_log_prob(
  x: jax.Array, logits: jax.Array, *, event_ndim: int | None = None
) -> jax.Array:
  """Log-probability of independent Bernoulli variables: log p(x) = sum_i x_i l_i - softplus(l_i).

  Args:
    x: [B, ...] in {0, 1}; values between are accepted, but then this is a cross-entropy and not a
      likelihood.
    logits: l = log p - log(1 - p), the shape of x, or [k, B, ...] together with event_ndim.
    event_ndim: number of trailing axes of one example, summed; None sums all but the first.

  Returns:
    [B] (or [k, B]), nats; finite for any finite logit.

  Raises:
    ValueError: if the event shapes differ, or a sample axis is given without event_ndim.

  Source: Kingma and Welling, 2014, arXiv:1312.6114, appendix C.1.

  >>> round(float(bernoulli_log_prob(jnp.ones((1, 2)), jnp.zeros((1, 2)))[0]), 4)  # 2 log 1/2
  -1.3863
  """
  x, logits = _wide(x, logits)
  _check_events("bernoulli_log_prob", x, logits, event_ndim)
  return _sum_event(x * logits - jax.nn.softplus(logits), event_ndim)


def gaussian_log_prob(
  x: jax.Array, mean: jax.Array, log_std: jax.Array | float, *, event_ndim: int | None = None
) -> jax.Array:
  """Log-density of a diagonal normal, constants kept.

  log p(x) = -1/2 sum_i ((x_i - m_i)^2 / s_i^2 + 2 log s_i + log 2 pi).

  Args:
    x: [B, ...].
    mean: m, the shape of x, or [k, B, ...] together with event_ndim.
    log_std: log s, a scalar or anything that broadcasts against x; it counts once for every element
      of the event.
    event_ndim: number of trailing axes of one example, summed; None sums all but the first.

  Returns:
    [B] (or [k, B]), nats.

  Raises:
    ValueError: if the event shapes of x and mean differ, or a sample axis is given without
      event_ndim.

  Source: Kingma and Welling, 2014, arXiv:1312.6114, appendix C.2.

  >>> round(float(gaussian_log_prob(jnp.zeros((1, 2)), jnp.zeros((1, 2)), 0.0)[0]), 4)  # -log 2 pi
  -1.8379
  """
  x, mean, log_std = _wide(x, mean, log_std)
  _check_events("gaussian_log_prob", x, mean, event_ndim)
  log_prob = -0.5 * (((x - mean) * jnp.exp(-log_std)) ** 2 + 2 * log_std + _LOG_2PI)
  return _sum_event(log_prob, event_ndim)


def logit_laplace_log_prob(
  x: jax.Array, mean: jax.Array, log_scale: jax.Array, *, event_ndim: int | None = None
) -> jax.Array:
  """Log-density of x in (0, 1) whose logit is Laplace: -|logit x - m| / b - log(2 b x (1 - x)).

  At 0 and 1 it is singular: map pixels into the inside first, as x <- 0.8 x + 0.1.

  Args:
    x: in (0, 1), [B, ...] or [..., *event].
    mean: m, the same shape.
    log_scale: log b, the same shape.
    event_ndim: number of trailing axes to sum; None sums all but the first.

  Returns:
    [B], nats.

  Source: Ramesh et al., 2021, arXiv:2102.12092, section 2.1 and appendix A.3.

  >>> round(logit_laplace_log_prob(*jnp.array([[[0.5]], [[0.0]], [[0.0]]])).item(), 4)  # log 2
  0.6931
  """
  x, mean, log_scale = _wide(x, mean, log_scale)
  _check_events("logit_laplace_log_prob", x, mean, event_ndim)
  logit = jnp.log(x) - jnp.log1p(-x)
  log_prob = -jnp.abs(logit - mean) * jnp.exp(-log_scale) - log_scale
  return _sum_event(log_prob - jnp.log(2 * x * (1 - x)), event_ndim)


def kl_uniform(logits: jax.Array) -> jax.Array:
  """KL divergence of a categorical from the uniform law: log K - entropy.

  Args:
    logits: [..., K].

  Returns:
    [...], nats, from 0 to log K.

  >>> [round(kl.item(), 4) for kl in kl_uniform(jnp.array([[0.0, 0.0], [99.0, 0.0]]))]
  [0.0, 0.6931]
  """
  (logits,) = _wide(logits)
  log_q = jax.nn.log_softmax(logits)
  return math.log(logits.shape[-1]) + jnp.sum(jnp.exp(log_q) * log_q, -1)


def standard_normal_log_prob(z: jax.Array, *, event_ndim: int | None = None) -> jax.Array:
  """Log-density of N(0, I): log p(z) = -1/2 sum_j (z_j^2 + log 2 pi).

  Args:
    z: [B, Z] or [..., *event].
    event_ndim: number of trailing axes to sum; None sums all but the first.

  Returns:
    [B], nats.

  Source: Kingma and Welling, 2014, arXiv:1312.6114, appendix B.

  >>> round(float(standard_normal_log_prob(jnp.array([[1.0, 2.0]]))[0]), 4)
  -4.3379
  """
  (z,) = _wide(z)
  return _sum_event(-0.5 * (z**2 + _LOG_2PI), event_ndim)


def importance_weighted_bound(log_w: jax.Array, *, axis: int = 0) -> jax.Array:
  """Importance-weighted bound on log p(x) from k draws z_i ~ q(z | x).

  L_k = log (1/k) sum_i w_i,  log w_i = log p(x, z_i) - log q(z_i | x). L_1 is one draw of the ELBO,
  and E L_k does not fall with k. Its gradient is sum_i softmax(log w)_i grad log w_i. Averaging log
  w over `axis` instead leaves the ELBO as it is.

  Args:
    log_w: [k, B], nats.
    axis: where the k draws are.

  Returns:
    [B], nats.

  Source: Burda et al., 2016, arXiv:1509.00519, equation 8.

  >>> round(float(importance_weighted_bound(jnp.log(jnp.array([1.0, 3.0])))), 4)  # log 2
  0.6931
  """
  (log_w,) = _wide(log_w)
  return jax.nn.logsumexp(log_w, axis=axis) - math.log(log_w.shape[axis])


def in_parts(draw: Callable, key: jax.Array, k: int, size: int) -> jax.Array:
  """Joins k draws that are made `size` at a time, so that the memory is that of `size`.

  Args:
    draw: key -> [size, ...].
    key: PRNG key; each part has its own.
    k: how many.
    size: of a part.

  Returns:
    [k, ...].

  Raises:
    ValueError: if there are none to make.

  >>> in_parts(lambda key: jax.random.normal(key, (2, 4)), jax.random.key(0), 5, 2).shape
  (5, 4)
  """
  if k < 1 or size < 1:
    raise ValueError(f"{k} draws in parts of {size}: both must be 1 or more")
  parts = jax.lax.map(draw, jax.random.split(key, -(-k // size)))
  return parts.reshape(-1, *parts.shape[2:])[:k]
