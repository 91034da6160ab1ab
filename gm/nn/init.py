"""Initialisers, all in one place; each returns f(key, shape, dtype). Kernels are [..., in, out]."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import initializers

Init = Callable


def constant(value: float | jax.Array) -> Init:
  """All entries `value`; an array gives each its own, such as the log-odds of training pixels."""
  return lambda key, shape, dtype=jnp.float32: jnp.broadcast_to(jnp.asarray(value, dtype), shape)


def normal(std: float = 0.02, mean: float = 0.0) -> Init:
  """N(mean, std^2), not truncated; DCGAN: N(0, 0.02^2) kernels, N(1, 0.02^2) batch-norm scales."""
  return lambda key, shape, dtype=jnp.float32: mean + std * jax.random.normal(key, shape, dtype)


def uniform(limit: float) -> Init:
  """U(-limit, limit).

  >>> bool(jnp.abs(uniform(0.05)(jax.random.key(0), (100,))).max() <= 0.05)
  True
  """
  return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -limit, limit)


def glorot() -> Init:
  """U(+-sqrt(6 / (fan_in + fan_out)))."""
  return initializers.glorot_uniform()


def he() -> Init:
  """N(0, 2 / fan_in), for ReLU."""
  return initializers.variance_scaling(2.0, "fan_in", "normal")


def orthogonal(gain: float = 1.0) -> Init:
  """Orthonormal columns (or rows, where there are more columns than rows) times gain."""
  return initializers.orthogonal(gain)


def torch(*, transpose: bool = False) -> Init:
  """The default of torch for kernels, kaiming uniform with a = sqrt 5, which is U(+-1 /
  sqrt(fan_in)).

  torch counts the fan-in of a transposed convolution on its output channels; so does `transpose`.
  """
  return initializers.variance_scaling(1 / 3, "fan_out" if transpose else "fan_in", "uniform")


def torch_bias(fan: int) -> Init:
  """The default of torch for biases: U(+-1 / sqrt(fan)) with the fan of the layer's kernel."""
  return uniform(fan**-0.5)


def improved_wgan(*, transpose: bool = False, stride: int = 1) -> Init:
  """U with std sqrt(4 / (fan_in + fan_out)); a stride thins the image side (WGAN-GP code)."""

  def init(key, shape, dtype=jnp.float32):
    area = math.prod(shape[:-2])
    fan_in, fan_out = shape[-2] * area, shape[-1] * area
    fan_in, fan_out = (fan_in / stride**2, fan_out) if transpose else (fan_in, fan_out / stride**2)
    return uniform((3 * 4 / (fan_in + fan_out)) ** 0.5)(key, shape, dtype)

  return init


class Scheme(NamedTuple):
  """How all layers of a convolutional net start."""

  kernel: Callable[[bool, int], Init]  # (transposed?, stride)
  bias: Callable[[int], Init]  # (fan of the kernel in torch's count)
  scale: Init  # of batch norm


_zeros, _ones = constant(0.0), constant(1.0)
SCHEMES = {
  "dcgan": Scheme(lambda t, s: normal(0.02), lambda fan: _zeros, normal(0.02, mean=1.0)),
  "torch": Scheme(lambda t, s: torch(transpose=t), torch_bias, _ones),
  "improved_wgan": Scheme(
    lambda t, s: improved_wgan(transpose=t, stride=s), lambda fan: _zeros, _ones
  ),
  "glorot": Scheme(lambda t, s: glorot(), lambda fan: _zeros, _ones),
  "he": Scheme(lambda t, s: he(), lambda fan: _zeros, _ones),
  "orthogonal": Scheme(lambda t, s: orthogonal(), lambda fan: _zeros, _ones),
}


def scheme(name: str) -> Scheme:
  """Returns a scheme by name.

  Raises:
    ValueError: for an unknown name.
  """
  if name not in SCHEMES:
    raise ValueError(f"scheme {name!r}: choose one of {', '.join(SCHEMES)} (--config.model.scheme)")
  return SCHEMES[name]


DENSE = {  # of dense kernels: name -> (scale -> initialiser)
  "lecun": lambda scale: initializers.lecun_normal(),
  "glorot": lambda scale: glorot(),
  "he": lambda scale: he(),
  "he_uniform": lambda scale: initializers.he_uniform(),
  "orthogonal": orthogonal,
  "torch": lambda scale: torch(),
  "normal": normal,
  "uniform": uniform,
}


def named(name: str, scale: float = 1.0) -> Init:
  """Returns the initialiser of dense kernels that a config names.

  Args:
    name: lecun, glorot, he, he_uniform, orthogonal, torch, normal or uniform.
    scale: the gain of orthogonal, the standard deviation of normal, the limit of uniform.

  Raises:
    ValueError: for an unknown name.
  """
  if name not in DENSE:
    raise ValueError(f"initialiser {name!r}: choose one of {', '.join(DENSE)} (--config.model)")
  return DENSE[name](scale)
