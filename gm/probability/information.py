"""Entropies and divergences of discrete laws, in nats or bits (1 nat = 1.442695 bits).

Laws are arrays of any shape, summed over all entries (vmap over batches), given up to a positive
factor. 0 log 0 = 0. What is no law (a negative, a NaN, all zero) is an error where its values are
known, and gives NaN inside jit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import entr, xlogy

from gm.probability.joint import law

_NATS = {"nats": 1.0, "bits": math.log(2.0)}  # in one unit


def _in_base(nats: jax.Array, base: str) -> jax.Array:
  if base not in _NATS:
    raise ValueError(f"base {base!r} is not known: {', '.join(_NATS)}")
  return nats / _NATS[base]


def _laws(p: jax.Array, q: jax.Array) -> tuple[jax.Array, jax.Array]:
  p, q = law("p", p), law("q", q)
  if p.shape != q.shape:
    raise ValueError(f"p {p.shape} and q {q.shape} are laws on different sets")
  return p, q


def _divergence(p: jax.Array, q: jax.Array) -> jax.Array:
  """Sum of p log(p / q) - p + q = p (r - log(1 + r)), r = q / p - 1: terms that are never negative.

  Near r = 0 the logarithm is that of 1 + r, or else rounding would make the sum negative.
  """
  occurs = p >= jnp.finfo(p.dtype).tiny
  safe = jnp.where(occurs, p, 1.0)
  r = (q - p) / safe
  near = abs(r) < 0.5
  log = jnp.where(near, jnp.log1p(jnp.where(near, r, 0.0)), jnp.log(jnp.where(near, 1.0, q) / safe))
  return jnp.where(occurs, p * (r - jnp.where(occurs, log, 0.0)), q).sum()


def entropy(p: jax.Array, *, base: str = "nats") -> jax.Array:
  """Entropy H(p) = -sum p log p; of a joint table, the joint entropy.

  Args:
    p: law, any shape.
    base: "nats" or "bits".

  Returns:
    Scalar in [0, log K].

  Raises:
    ValueError: if p is no law or the base is unknown.

  >>> float(entropy(jnp.array([0.5, 0.25, 0.125, 0.125]), base="bits"))
  1.75
  """
  return _in_base(entr(law("p", p)).sum(), base)


def cross_entropy(p: jax.Array, q: jax.Array, *, base: str = "nats") -> jax.Array:
  """Cross entropy H(p, q) = -sum p log q = H(p) + KL(p || q).

  Args:
    p: law that the symbols follow.
    q: law that the code is made for, the same shape.
    base: "nats" or "bits".

  Returns:
    Scalar; infinite if q is zero where p is not.

  Raises:
    ValueError: if p or q is no law, their shapes differ or the base is unknown.

  >>> float(cross_entropy(jnp.array([1, 0]), jnp.array([0.25, 0.75]), base="bits"))
  2.0
  """
  p, q = _laws(p, q)
  return _in_base(-xlogy(p, q).sum(), base)


def kl(p: jax.Array, q: jax.Array, *, base: str = "nats") -> jax.Array:
  """Kullback-Leibler divergence KL(p || q) = sum p log(p / q).

  Args:
    p: law.
    q: law, the same shape.
    base: "nats" or "bits".

  Returns:
    Scalar, zero only if p = q; infinite if q is zero where p is not.

  Raises:
    ValueError: if p or q is no law, their shapes differ or the base is unknown.

  >>> float(kl(jnp.array([1, 0]), jnp.array([0.25, 0.75]), base="bits"))
  2.0
  """
  p, q = _laws(p, q)
  return _in_base(_divergence(p, q), base)


def js(p: jax.Array, q: jax.Array, *, base: str = "nats") -> jax.Array:
  """Jensen-Shannon divergence 1/2 KL(p || m) + 1/2 KL(q || m), m = (p + q) / 2.

  Args:
    p: law.
    q: law, the same shape.
    base: "nats" or "bits".

  Returns:
    Scalar in [0, log 2], symmetric.

  Raises:
    ValueError: if p or q is no law, their shapes differ or the base is unknown.

  >>> float(js(jnp.array([1, 0]), jnp.array([0, 1]), base="bits"))
  1.0
  """
  p, q = _laws(p, q)
  m = (p + q) / 2
  return _in_base((_divergence(p, m) + _divergence(q, m)) / 2, base)


def conditional_entropy(joint: jax.Array, given: int, *, base: str = "nats") -> jax.Array:
  """Entropy that is left in the other variables, H(y|x) = sum p(x, y) log(p(x) / p(x, y)).

  Args:
    joint: table, [K_0, K_1, ...].
    given: axis of the variable that is known.
    base: "nats" or "bits".

  Returns:
    Scalar, never negative.

  Raises:
    ValueError: if the table is no law, has no such axis, or the base is unknown.

  >>> float(conditional_entropy(jnp.array([[1, 1], [0, 2]]), given=0, base="bits"))  # 1/2 one bit
  0.5
  """
  joint = law("joint", joint)
  if not -joint.ndim <= given < joint.ndim:
    raise ValueError(f"given={given} is no axis of a table {joint.shape}")
  others = tuple(a for a in range(joint.ndim) if a != given % joint.ndim)
  known = joint.sum(others, keepdims=True)
  return _in_base((xlogy(joint, known) + entr(joint)).sum(), base)


def mutual_information(joint: jax.Array, *, base: str = "nats") -> jax.Array:
  """Mutual information I(x; y) = KL(p(x, y) || p(x) p(y)).

  Args:
    joint: table of two variables, [X, Y].
    base: "nats" or "bits".

  Returns:
    Scalar, zero only if x and y are independent.

  Raises:
    ValueError: if the table is no law of two variables or the base is unknown.

  >>> float(mutual_information(jnp.eye(4), base="bits"))
  2.0
  """
  joint = law("joint", joint)
  if joint.ndim != 2:
    raise ValueError(f"a table of two variables is [X, Y], given {joint.shape}")
  apart = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
  return _in_base(_divergence(joint, apart), base)


def code_lengths(p: jax.Array) -> jax.Array:
  """Lengths of the best code, -log2 p_k bits; their mean is the entropy.

  Args:
    p: law.

  Returns:
    The shape of p, bits; infinite for what never occurs. Whole where p are powers of 1/2.

  Raises:
    ValueError: if p is no law.

  Source: Shannon, A mathematical theory of communication, 1948.

  >>> code_lengths(jnp.array([0.5, 0.25, 0.125, 0.125])).tolist()
  [1.0, 2.0, 3.0, 3.0]
  """
  return -jnp.log2(law("p", p))


class Estimate(NamedTuple):
  """A Monte-Carlo mean and its standard error."""

  mean: jax.Array
  standard_error: jax.Array


def estimate(x: jax.Array) -> Estimate:
  """Mean of independent draws, and the standard error std / sqrt(n).

  Args:
    x: [n], n at least 2.

  Returns:
    Scalars.

  Raises:
    ValueError: for any other shape.

  >>> [float(v) for v in estimate(jnp.array([1.0, 3.0]))]
  [2.0, 1.0]
  """
  x = jnp.asarray(x)
  if x.ndim != 1 or len(x) < 2:
    raise ValueError(f"draws are [n] with n at least 2, given {x.shape}")
  return Estimate(x.mean(), x.std(ddof=1) / math.sqrt(len(x)))


def monte_carlo_kl(log_p: jax.Array, log_q: jax.Array) -> tuple[Estimate, Estimate]:
  """Two estimates of KL(p || q) from draws of p, both unbiased; with r = q / p at a draw,

  -log r, whose mean over a finite sample may be negative; and r - 1 - log r, never negative and of
  less variance where q is close to p. Where r has heavy tails the second is the worse of the two.

  Args:
    log_p: log p at draws x ~ p, [n].
    log_q: log q at the same draws, [n].

  Returns:
    The two estimates, nats.

  Raises:
    ValueError: if the shapes differ, or n < 2.

  Source: Schulman, Approximating KL divergence, 2020.

  >>> plain, positive = monte_carlo_kl(jnp.zeros(2), jnp.array([0.5, -0.5]))
  >>> float(plain.mean), round(float(positive.mean), 4)  # (cosh 0.5 - 1)
  (0.0, 0.1276)
  """
  log_p, log_q = jnp.asarray(log_p), jnp.asarray(log_q)
  if log_p.shape != log_q.shape:
    raise ValueError(f"log_p {log_p.shape} and log_q {log_q.shape} are not of the same draws")
  log_r = log_q - log_p
  return estimate(-log_r), estimate(jnp.expm1(log_r) - log_r)


def jensen_gap(f: Callable, values: jax.Array, probs: jax.Array) -> jax.Array:
  """Jensen's gap E f(v) - f(E v): never negative for convex f, never positive for concave f.

  Args:
    f: [...] -> [...], elementwise.
    values: v, [K].
    probs: their law, [K].

  Returns:
    Scalar; zero if f is linear or v constant.

  Raises:
    ValueError: if the shapes differ or probs is no law.

  >>> float(jensen_gap(jnp.square, jnp.array([-1.0, 1.0]), jnp.array([1, 1])))  # the variance
  1.0
  """
  probs, values = law("probs", probs), jnp.asarray(values)
  if probs.shape != values.shape:
    raise ValueError(f"values {values.shape} and probs {probs.shape} differ; both are [K]")
  return (probs * f(values)).sum() - f((probs * values).sum())
