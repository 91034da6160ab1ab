"""The evidence integral log p(x) = log E_{z ~ N(0, I)} p(x|z), estimated in three ways.

Each gives log weights whose mean weight has the expectation p(x). The logarithm of a mean is
concave, so by Jensen's inequality the estimate of log p(x) is too low on average: by about half the
relative variance of a weight divided by their number, once that is small, and by as much as the
largest weight is missing while it is not.

`likelihood` is log p(x_b | z): [..., B, Z] -> [..., B], nats, for examples that it holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gm.probability import likelihood as terms


def log_mean(log_w: jax.Array, axis: int = 0) -> jax.Array:
  """Log (1/n) sum_i w_i: `likelihood.importance_weighted_bound`, by the name of an estimate.

  >>> round(float(log_mean(jnp.log(jnp.array([1.0, 3.0])))), 4)  # log 2
  0.6931
  """
  return terms.importance_weighted_bound(log_w, axis=axis)


def log_bias(log_w: jax.Array, n: int, axis: int = 0) -> jax.Array:
  """Expected error of the log of a mean of n weights: -var(w) / (2 n (E w)^2), for large n.

  Args:
    log_w: draws of the log weight, nats, [N, ...].
    n: weights in a mean.
    axis: of the draws.

  Returns:
    [...], nats, never positive. The rest is of order 1 / n^2.

  >>> round(float(log_bias(jnp.log(jnp.array([1.0, 3.0])), 10)), 4)  # variance 1, mean 2
  -0.0125
  """
  shifted = jnp.exp(log_w - log_w.max(axis, keepdims=True))
  return -shifted.var(axis) / (2 * n * shifted.mean(axis) ** 2)


def prior_weights(
  key: jax.Array, likelihood: Callable, shape: tuple[int, int], n: int, *, chunk: int = 1000
) -> jax.Array:
  """Plain Monte Carlo: log w_i = log p(x | z_i), z_i ~ N(0, I), the same draws for all examples.

  Args:
    key: PRNG key.
    likelihood: [k, 1, Z] -> [k, B], log p(x_b | z).
    shape: B and Z.
    n: draws.
    chunk: of draws that are held at once.

  Returns:
    [n, B], nats.

  >>> square = lambda z: -0.5 * (z**2).sum(-1) * jnp.ones(3)
  >>> prior_weights(jax.random.key(0), square, (3, 2), 10, chunk=5).shape
  (10, 3)
  """
  chunk = min(n, chunk)

  def part(key):
    return likelihood(jax.random.normal(key, (chunk, 1, shape[1])))

  return terms.in_parts(part, key, n, chunk)


def importance_weights(
  key: jax.Array,
  likelihood: Callable,
  mean: jax.Array,
  log_var: jax.Array,
  n: int,
  *,
  chunk: int = 100,
) -> jax.Array:
  """Importance sampling: log w_i = log p(x, z_i) - log q(z_i|x), z_i ~ q = N(mean, diag var).

  Their mean is the ELBO of q, and `log_mean` of n the importance-weighted bound of n draws.

  Args:
    key: PRNG key.
    likelihood: [k, B, Z] -> [k, B], log p(x_b | z).
    mean: of q, an encoder's or another, [B, Z].
    log_var: of q, [B, Z].
    n: draws for each example.
    chunk: of draws that are held at once.

  Returns:
    [n, B], nats.

  >>> flat = lambda z: 0 * z[..., 0]  # x tells nothing about z, so q = p(z) is exact
  >>> zero = jnp.zeros((3, 2))
  >>> float(jnp.abs(importance_weights(jax.random.key(0), flat, zero, zero, 4)).max())
  0.0
  """
  chunk = min(n, chunk)

  def part(key):
    z = mean + jnp.exp(0.5 * log_var) * jax.random.normal(key, (chunk, *mean.shape))
    log_q = terms.gaussian_log_prob(z, mean, 0.5 * log_var, event_ndim=1)
    return likelihood(z) + terms.standard_normal_log_prob(z, event_ndim=1) - log_q

  return terms.in_parts(part, key, n, chunk)


class BySize(NamedTuple):
  """Estimates of log p(x) by their number of draws; [K] or [K, ...] for K numbers."""

  n: tuple[int, ...]
  mean: jax.Array  # of the estimates from disjoint groups of n draws
  spread: jax.Array  # their standard deviation; 0 for one group


def by_size(log_w: jax.Array, sizes: tuple[int, ...]) -> BySize:
  """What estimates of n draws give, for several n, all from the same N draws.

  Args:
    log_w: [N, ...], nats.
    sizes: the n, each of which divides N.

  Raises:
    ValueError: if one does not.

  >>> found = by_size(jnp.log(jnp.array([1.0, 3.0, 1.0, 3.0])), (1, 2))
  >>> [round(float(v), 4) for v in found.mean]  # (log 3) / 2, log 2
  [0.5493, 0.6931]
  """
  for n in sizes:
    if n < 1 or len(log_w) % n:
      raise ValueError(f"groups of {n} do not divide {len(log_w)} draws")
  groups = [log_mean(log_w.reshape(-1, n, *log_w.shape[1:]), axis=1) for n in sizes]
  mean, spread = (jnp.stack([f(g, axis=0) for g in groups]) for f in (jnp.mean, jnp.std))
  return BySize(tuple(sizes), mean, spread)


def annealed_weights(
  key: jax.Array,
  likelihood: Callable,
  shape: tuple[int, int, int],
  *,
  num_temperatures: int = 200,
  num_leaps: int = 5,
  step: float = 0.1,
) -> tuple[jax.Array, jax.Array]:
  """Annealed importance sampling: chains that go from the prior to the posterior.

  log w = sum_t (b_t - b_{t-1}) log p(x | z_{t-1}), z_0 ~ N(0, I), and z_t made from z_{t-1} by a
  move that leaves p(z) p(x|z)^{b_t} as it is: leaps of Hamiltonian dynamics, accepted or refused. b
  rises from 0 to 1 along a sigmoid. Steps grow by 2 % where a move was accepted and shrink by 5 %
  where not, chain by chain, so that about 0.7 are.

  Args:
    key: PRNG key.
    likelihood: [k, B, Z] -> [k, B], log p(x_b | z), differentiable in z.
    shape: chains for each example, B and Z.
    num_temperatures: moves of a chain.
    num_leaps: evaluations of the gradient in a move.
    step: size of a leap at first.

  Returns:
    log weights, [chains, B], nats, and the share of moves that were accepted.

  Source: Neal, Annealed importance sampling, 2001; schedule and steps: Wu et al., 2017,
  arXiv:1611.04273.

  >>> flat = lambda z: 0 * z.sum(-1) - 3.0  # p(x|z) = e^-3 wherever z is
  >>> log_w, _ = annealed_weights(jax.random.key(0), flat, (2, 3, 4), num_temperatures=3)
  >>> [round(float(v), 4) for v in log_w[0]]
  [-3.0, -3.0, -3.0]
  """
  k_start, k_moves = jax.random.split(key)
  ramp = jax.nn.sigmoid(4 * jnp.linspace(-1.0, 1.0, num_temperatures + 1))
  betas = (ramp - ramp[0]) / (ramp[-1] - ramp[0])

  def energy(z, beta):  # -log of what a move leaves as it is
    log_p = likelihood(z)
    return 0.5 * jnp.sum(z**2, -1) - beta * log_p, log_p

  slope = jax.grad(lambda z, beta: energy(z, beta)[0].sum())

  def move(carry, given):
    z, log_p, size, log_w, accepted = carry
    key, before, beta = given
    k_speed, k_accept = jax.random.split(key)
    log_w = log_w + (beta - before) * log_p
    speed, along = jax.random.normal(k_speed, z.shape), size[..., None]

    def leap(_, carry):
      z, speed = carry
      z = z + along * speed
      return z, speed - along * slope(z, beta)

    new, turned = z, speed - along / 2 * slope(z, beta)
    new, turned = jax.lax.fori_loop(0, num_leaps - 1, leap, (new, turned))
    new = new + along * turned
    turned = turned - along / 2 * slope(new, beta)
    after, new_log_p = energy(new, beta)
    start = 0.5 * jnp.sum(z**2, -1) - beta * log_p
    change = start - after + 0.5 * jnp.sum(speed**2 - turned**2, -1)
    yes = jnp.log(jax.random.uniform(k_accept, change.shape)) < change  # a NaN is refused
    z, log_p = jnp.where(yes[..., None], new, z), jnp.where(yes, new_log_p, log_p)
    size = jnp.clip(size * jnp.where(yes, 1.02, 1 / 1.05), 1e-4, 2.0)
    return (z, log_p, size, log_w, accepted + yes.mean()), None

  z = jax.random.normal(k_start, shape)
  start = (z, likelihood(z), jnp.full(shape[:2], step), jnp.zeros(shape[:2]), jnp.zeros(()))
  keys = jax.random.split(k_moves, num_temperatures)
  (_, _, _, log_w, accepted), _ = jax.lax.scan(move, start, (keys, betas[:-1], betas[1:]))
  return log_w, accepted / num_temperatures


def sizes_up_to(most: int) -> tuple[int, ...]:
  """1, 10, 100, ... up to `most`.

  >>> sizes_up_to(2_000)
  (1, 10, 100, 1000)
  """
  return tuple(10**i for i in range(int(math.log10(most) + 1e-9) + 1))
