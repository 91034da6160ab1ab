"""What functions of this folder ask of their arguments, and say where values are known.

Inside jit values are not known; what then becomes of a wrong one is said by each function.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def known(*arrays: jax.Array) -> bool:
  """Whether values can be looked at; inside jit what is computed from a constant cannot either."""
  return not any(isinstance(a, jax.core.Tracer) for a in arrays)


def as_float(x: jax.Array) -> jax.Array:
  """A float array of its own precision, or of the default one where it is not float.

  >>> as_float(3).dtype
  dtype('float32')
  """
  x = jnp.asarray(x)
  return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(float)


def require_positive(name: str, x: jax.Array) -> jax.Array:
  """Returns x as floats; NaN where it is not positive.

  Args:
    name: what an error calls it.
    x: any shape.

  Raises:
    ValueError: where an entry is known not to be positive.

  >>> require_positive("std", 2).item()
  2.0
  """
  x = as_float(x)
  if known(x) and not (np.asarray(x) > 0).all():
    raise ValueError(f"{name}: given {np.asarray(x)}; it must be positive")
  return jnp.where(x > 0, x, jnp.nan)


def moments(mean: jax.Array, matrix: jax.Array, name: str = "cov") -> tuple[jax.Array, jax.Array]:
  """Returns both as floats.

  Args:
    mean: [d].
    matrix: [d, d], a covariance or a factor of one.
    name: what an error calls the matrix.

  Raises:
    ValueError: if the shapes do not fit.

  >>> [a.shape for a in moments([0, 0], [[1, 0], [0, 1]])]
  [(2,), (2, 2)]
  """
  mean, matrix = as_float(mean), as_float(matrix)
  if mean.ndim != 1 or matrix.shape != (len(mean), len(mean)):
    raise ValueError(f"given mean {mean.shape} and {name} {matrix.shape}; they are [d] and [d, d]")
  return mean, matrix


def require_weights(name: str, weights: jax.Array, need: int = 1) -> None:
  """Refuses what is known to be no law.

  Args:
    name: what an error calls them.
    weights: [K], a law but for a positive factor.
    need: least K.

  Raises:
    ValueError: for another shape, or values that are known and negative, not finite or all zero.

  >>> require_weights("probs", jnp.array([1.0, 3.0]))
  """
  if weights.ndim != 1 or weights.size < need:
    raise ValueError(f"{name}: given {weights.shape}; it takes [K] with K at least {need}")
  if not known(weights):
    return
  values = np.asarray(weights)
  if not np.isfinite(values).all() or (values < 0).any() or not values.any():
    raise ValueError(
      f"{name}: given values from {values.min()} to {values.max()}; they must be finite, none"
      " negative, and one at least positive"
    )
