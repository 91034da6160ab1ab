"""Laws of the noise that generators start from."""

from __future__ import annotations

import jax

LAWS = {
  "normal": jax.random.normal,
  "uniform": lambda key, shape: jax.random.uniform(key, shape, minval=-1.0),
  "unit": jax.random.uniform,
}


def draw(law: str, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Draws independent numbers: N(0, 1), or uniform in [-1, 1) or in [0, 1).

  Args:
    law: normal, uniform or unit.
    key: PRNG key.
    shape: of the draws, such as [B, Z].

  >>> draw("uniform", jax.random.key(0), (2, 3)).shape
  (2, 3)
  """
  return LAWS[law](key, shape)
