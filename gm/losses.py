"""Losses of the games and terms of the variational bounds, as pure functions of arrays.

Adversarial losses take logits (raw discriminator outputs, never sigmoids), average over every
element, so patch outputs [B, h, w] work as well as [B], and are all to be minimised; a name ends in
the player that it trains. The caller decides what is differentiated: no function here stops a
gradient. Log-probabilities and divergences are sums over the event axes, in nats. Half-precision
inputs are widened to float32 before anything is computed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

_LOG_2PI = math.log(2 * math.pi)


def _wide(*arrays: jax.Array) -> tuple[jax.Array, ...]:
  """Half precision and integers to float32; float32 and float64 stay."""
  arrays = tuple(map(jnp.asarray, arrays))
  return tuple(x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in arrays)


def _pairs(real: jax.Array, fake: jax.Array) -> tuple[jax.Array, jax.Array]:
  real, fake = _wide(real, fake)
  if real.shape != fake.shape:  # [B] - [B, 1] would silently broadcast to [B, B]
    raise ValueError(
      "relativistic losses pair real with fake outputs, so both need one shape; given "
      f"{real.shape} and {fake.shape}: make the discriminator return [B] for both "
      "(--config.batch_size sets B)"
    )
  return real, fake


# --- logistic -----------------------------------------------------------------------------------


def bce_d(real_logits: jax.Array, fake_logits: jax.Array, *, real_target: float = 1.0) -> jax.Array:
  """Logistic discriminator loss.

  L_D = -t E log D(x) - (1 - t) E log(1 - D(x)) - E log(1 - D(G(z))), with D = sigmoid(logit) and
  t = real_target. For t = 1 the best D is p_data / (p_data + p_g), and there
  L_D = log 4 - 2 JSD(p_data || p_g).

  Args:
    real_logits: D on data, [B] or any shape.
    fake_logits: D on samples, [B] or any shape; batch sizes may differ.
    real_target: t; 0.9 is one-sided label smoothing (Salimans et al., 2016).

  Returns:
    scalar, nats. Written in softplus, so finite for any finite logit.

  Source: Goodfellow et al., 2014, arXiv:1406.2661, equation 1.

  >>> round(float(bce_d(jnp.zeros(4), jnp.zeros(4))), 4)  # log 4
  1.3863
  """
  real, fake = _wide(real_logits, fake_logits)
  data = real_target * jax.nn.softplus(-real) + (1 - real_target) * jax.nn.softplus(real)
  return jnp.mean(data) + jnp.mean(jax.nn.softplus(fake))


def nonsaturating_g(fake_logits: jax.Array) -> jax.Array:
  """Non-saturating generator loss: G raises log D.

  L_G = -E log D(G(z)); dL/dlogit = -(1 - D) per sample.

  Args:
    fake_logits: D on samples, [B] or any shape.

  Returns:
    scalar, nats.

  Source: Goodfellow et al., 2014, arXiv:1406.2661, section 3.

  >>> round(float(nonsaturating_g(jnp.zeros(4))), 4)  # log 2
  0.6931
  """
  (fake,) = _wide(fake_logits)
  return jnp.mean(jax.nn.softplus(-fake))


def minimax_g(fake_logits: jax.Array) -> jax.Array:
  """Generator side of the zero-sum game.

  L_G = E log(1 - D(G(z))); dL/dlogit = -D per sample, which vanishes where D wins.

  Args:
    fake_logits: D on samples, [B] or any shape.

  Returns:
    scalar, nats, never positive.

  Source: Goodfellow et al., 2014, arXiv:1406.2661, equation 1.

  >>> round(float(minimax_g(jnp.zeros(4))), 4)  # -log 2
  -0.6931
  """
  (fake,) = _wide(fake_logits)
  return -jnp.mean(jax.nn.softplus(fake))


# --- least squares ------------------------------------------------------------------------------


class Targets(NamedTuple):
  """Least-squares targets: D regresses `a` on samples and `b` on data; G wants `c`."""

  a: float
  b: float
  c: float


ZERO_ONE = Targets(a=0.0, b=1.0, c=1.0)  # the paper's 0-1 scheme
PEARSON = Targets(a=-1.0, b=1.0, c=0.0)  # b - c = 1 and b - a = 2: G minimises a Pearson chi^2


def least_squares_d(
  real: jax.Array, fake: jax.Array, *, a: float = 0.0, b: float = 1.0
) -> jax.Array:
  """Least-squares discriminator loss on raw outputs (no sigmoid).

  L_D = 1/2 E (D(x) - b)^2 + 1/2 E (D(G(z)) - a)^2, optimum D = (b p_data + a p_g) / (p_data + p_g).

  Args:
    real: D on data, [B] or any shape.
    fake: D on samples, [B] or any shape.
    a: target on samples, see ZERO_ONE and PEARSON.
    b: target on data.

  Returns:
    scalar; the mean of the squares (not the square of the mean).

  Source: Mao et al., 2017, arXiv:1611.04076, equation 2.

  >>> float(least_squares_d(jnp.array([1.0, 3.0]), jnp.zeros(2), a=ZERO_ONE.a, b=ZERO_ONE.b))
  1.0
  """
  real, fake = _wide(real, fake)
  return 0.5 * jnp.mean((real - b) ** 2) + 0.5 * jnp.mean((fake - a) ** 2)


def least_squares_g(fake: jax.Array, *, c: float = 1.0) -> jax.Array:
  """Least-squares generator loss on raw outputs: L_G = 1/2 E (D(G(z)) - c)^2.

  Args:
    fake: D on samples, [B] or any shape.
    c: what G wants D to say: 1 for ZERO_ONE, 0 for PEARSON.

  Returns:
    scalar.

  Source: Mao et al., 2017, arXiv:1611.04076, equation 2.

  >>> float(least_squares_g(jnp.array([10.0]), c=1.0))
  40.5
  """
  (fake,) = _wide(fake)
  return 0.5 * jnp.mean((fake - c) ** 2)


# --- Wasserstein and hinge ----------------------------------------------------------------------


def wasserstein_d(real: jax.Array, fake: jax.Array) -> jax.Array:
  """Critic loss; its negative estimates the Wasserstein-1 distance if f is 1-Lipschitz.

  L = E f(G(z)) - E f(x).

  Args:
    real: f on data, [B] or any shape.
    fake: f on samples, [B] or any shape.

  Returns:
    scalar, in units of f. Needs a constraint on f: `regularizers.gradient_penalty` or
    `regularizers.clip_weights`.

  Source: Arjovsky et al., 2017, arXiv:1701.07875, equation 2.

  >>> float(wasserstein_d(jnp.array([3.0, 5.0]), jnp.array([1.0])))
  -3.0
  """
  real, fake = _wide(real, fake)
  return jnp.mean(fake) - jnp.mean(real)


def wasserstein_g(fake: jax.Array) -> jax.Array:
  """Generator loss against a critic: L = -E f(G(z)).

  Args:
    fake: f on samples, [B] or any shape.

  Returns:
    scalar, in units of f.

  Source: Arjovsky et al., 2017, arXiv:1701.07875, algorithm 1.

  >>> float(wasserstein_g(jnp.array([1.0, 2.0])))
  -1.5
  """
  (fake,) = _wide(fake)
  return -jnp.mean(fake)


def hinge_d(real: jax.Array, fake: jax.Array) -> jax.Array:
  """Hinge discriminator loss: L_D = E max(0, 1 - D(x)) + E max(0, 1 + D(G(z))).

  Args:
    real: D on data, [B] or any shape.
    fake: D on samples, [B] or any shape.

  Returns:
    scalar, zero once every real output is above 1 and every fake one below -1.

  Source: Lim and Ye, 2017, arXiv:1705.02894; Miyato et al., 2018, arXiv:1802.05957, equation 16.

  >>> float(hinge_d(jnp.array([2.0, 0.0]), jnp.array([-2.0, 0.0])))
  1.0
  """
  real, fake = _wide(real, fake)
  return jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake))


def hinge_g(fake: jax.Array) -> jax.Array:
  """Generator loss that goes with `hinge_d`: L_G = -E D(G(z)), without a hinge.

  Args:
    fake: D on samples, [B] or any shape.

  Returns:
    scalar.

  Source: Miyato et al., 2018, arXiv:1802.05957, equation 17.

  >>> float(hinge_g(jnp.array([-3.0, 1.0])))
  1.0
  """
  return wasserstein_g(fake)


# --- relativistic -------------------------------------------------------------------------------


def relativistic_d(real: jax.Array, fake: jax.Array) -> jax.Array:
  """Relativistic standard GAN (RSGAN), discriminator.

  L_D = -E log sigmoid(C(x) - C(G(z))) over pairs.

  Args:
    real: C on data, [B] or any shape.
    fake: C on samples, the same shape: row i of one is paired with row i of the other.

  Returns:
    scalar, nats.

  Raises:
    ValueError: if the shapes differ.

  Source: Jolicoeur-Martineau, 2018, arXiv:1807.00734, section 4.1.

  >>> round(float(relativistic_d(jnp.array([5.0]), jnp.array([5.0]))), 4)  # log 2
  0.6931
  """
  real, fake = _pairs(real, fake)
  return jnp.mean(jax.nn.softplus(fake - real))


def relativistic_g(real: jax.Array, fake: jax.Array) -> jax.Array:
  """Relativistic standard GAN (RSGAN), generator.

  L_G = -E log sigmoid(C(G(z)) - C(x)) over pairs.

  Args:
    real: C on data, [B] or any shape; it matters here, unlike in the losses above.
    fake: C on samples, the same shape.

  Returns:
    scalar, nats.

  Raises:
    ValueError: if the shapes differ.

  Source: Jolicoeur-Martineau, 2018, arXiv:1807.00734, section 4.1.

  >>> round(float(relativistic_g(jnp.array([5.0]), jnp.array([5.0]))), 4)  # log 2
  0.6931
  """
  return relativistic_d(fake, real)


def relativistic_average_d(real: jax.Array, fake: jax.Array) -> jax.Array:
  """Relativistic average GAN (RaSGAN), discriminator.

  L_D = -E log sigmoid(C(x) - E C(G(z))) - E log(1 - sigmoid(C(G(z)) - E C(x))).

  Args:
    real: C on data, [B] or any shape.
    fake: C on samples, [B] or any shape.

  Returns:
    scalar, nats: the sum of both terms as in the paper (some ports halve it).

  Source: Jolicoeur-Martineau, 2018, arXiv:1807.00734, section 4.2.

  >>> round(float(relativistic_average_d(jnp.ones(3), jnp.ones(3))), 4)  # log 4
  1.3863
  """
  real, fake = _wide(real, fake)
  return bce_d(real - jnp.mean(fake), fake - jnp.mean(real))


def relativistic_average_g(real: jax.Array, fake: jax.Array) -> jax.Array:
  """Relativistic average GAN (RaSGAN), generator: real and fake exchanged.

  L_G = -E log sigmoid(C(G(z)) - E C(x)) - E log(1 - sigmoid(C(x) - E C(G(z)))).

  Args:
    real: C on data, [B] or any shape.
    fake: C on samples, [B] or any shape.

  Returns:
    scalar, nats: the sum of both terms as in the paper (some ports halve it).

  Source: Jolicoeur-Martineau, 2018, arXiv:1807.00734, section 4.2.

  >>> round(float(relativistic_average_g(jnp.ones(3), jnp.ones(3))), 4)  # log 4
  1.3863
  """
  return relativistic_average_d(fake, real)


# --- likelihoods, divergences, bounds -----------------------------------------------------------


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


def wasserstein_1d(x: jax.Array, y: jax.Array) -> jax.Array:
  """Exact W1 between two sets of equally many numbers: mean_i |x_(i) - y_(i)|, both sorted.

  >>> float(wasserstein_1d(jnp.array([0.0, 1.0]), jnp.array([3.0, 2.0])))
  2.0
  """
  return jnp.mean(jnp.abs(jnp.sort(x) - jnp.sort(y)))
