"""Chains of latents z_L -> ... -> z_1 -> x of diagonal normal laws, and their posteriors.

A law is (mean, log_var), both [..., Z]. z_0 stands for x. `prior(i, z)` is the law of z_i given
z_i+1, 1 <= i < L; z_L is N(0, I). `posterior(i, h)` is the law of z_i+1 given z_i, 0 <= i < L.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from gm.probability import likelihood

Law = tuple[jax.Array, jax.Array]


def draw(law: Law, eps: jax.Array) -> jax.Array:
  """Returns mean + std eps, which is of the law where eps is standard normal.

  >>> draw((jnp.array([1.0]), jnp.array([0.0])), jnp.array([2.0])).tolist()
  [3.0]
  """
  mean, log_var = law
  return mean + jnp.exp(0.5 * log_var) * eps


def log_prob(law: Law, z: jax.Array) -> jax.Array:
  """Log-density of z [..., Z] under a law, summed over latents: [...], nats."""
  mean, log_var = law
  return likelihood.gaussian_log_prob(z, mean, 0.5 * log_var, event_ndim=1)


def merge(one: Law, other: Law) -> Law:
  """The product of two densities: precisions add, means are weighted by precision.

  v = 1 / (1/v1 + 1/v2), m = v (m1/v1 + m2/v2), by v/v1 = sigmoid(log v2 - log v1).

  Source: Sonderby et al., 2016, arXiv:1602.02282.

  >>> mean, log_var = merge((jnp.zeros(1), jnp.zeros(1)), (2 * jnp.ones(1), jnp.zeros(1)))
  >>> float(mean[0]), round(float(jnp.exp(log_var[0])), 6)
  (1.0, 0.5)
  """
  (m1, l1), (m2, l2) = one, other
  share = jax.nn.sigmoid(l2 - l1)
  return share * m1 + (1 - share) * m2, -jnp.logaddexp(-l1, -l2)


def climb(
  posterior: Callable, x: jax.Array, eps: Sequence[jax.Array], density: Callable | None = None
) -> tuple[list[jax.Array], list[jax.Array]]:
  """Draws z_1 ~ q(z_1|x), z_2 ~ q(z_2|z_1), ...

  Args:
    posterior: (i, h) -> law.
    x: [B, P].
    eps: standard normal, [..., B, Z_i] for each layer.
    density: stands for `posterior` in the density of what was drawn, where it is given.

  Returns:
    [z_1, ..., z_L] and their log q, [..., B] each.
  """
  below, z, log_q = x, [], []
  for i, e in enumerate(eps):
    law = posterior(i, below)
    z.append(draw(law, e))
    log_q.append(log_prob(density(i, below) if density else law, z[-1]))
    below = z[-1]
  return z, log_q


def descend(prior: Callable, eps: Sequence[jax.Array]) -> jax.Array:
  """Draws z_L ~ N(0, I), then each layer given the one above it; returns z_1.

  Args:
    prior: (i, z) -> law.
    eps: standard normal, [..., Z_i] for each layer, z_1's first.

  >>> prior = lambda i, z: (10 * z, jnp.zeros_like(z))
  >>> descend(prior, [jnp.array([1.0]), jnp.array([2.0])]).tolist()
  [21.0]
  """
  z = eps[-1]
  for i in range(len(eps) - 1, 0, -1):
    z = draw(prior(i, z), eps[i - 1])
  return z


def log_prior(prior: Callable, z: Sequence[jax.Array]) -> list[jax.Array]:
  """Returns log p(z_i|z_i+1) of every layer, the top's under N(0, I); [..., B] each."""
  below = [log_prob(prior(i, z[i]), z[i - 1]) for i in range(1, len(z))]
  return [*below, likelihood.standard_normal_log_prob(z[-1], event_ndim=1)]


def noise(key: jax.Array, shape: Sequence[int], sizes: Sequence[int]) -> list[jax.Array]:
  """Standard normal [*shape, Z_i] for each layer, by a key of its own.

  >>> [e.shape for e in noise(jax.random.key(0), (4,), (3, 2))]
  [(4, 3), (4, 2)]
  """
  keys = jax.random.split(key, len(sizes))
  return [jax.random.normal(k, (*shape, n)) for k, n in zip(keys, sizes, strict=True)]
