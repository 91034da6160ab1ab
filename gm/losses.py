"""Losses of the games, as pure functions of arrays.

They take logits (raw discriminator outputs, never sigmoids), average over every element, so patch
outputs [B, h, w] work as well as [B], and are all to be minimised; a name ends in the player that
it trains. The caller decides what is differentiated: no function here stops a gradient.
Half-precision inputs are widened to float32 before anything is computed.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


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
