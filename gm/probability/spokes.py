"""A mixture of narrow normals that lie like the spokes of a wheel, in every pair of axes: a prior.

Source: Makhzani et al., 2016, arXiv:1511.05644, figure 3; numbers of its TensorFlow port
(conan7882/adversarial-autoencoders).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

RADIUS, LENGTH, WIDTH = 1.4, 0.5, 0.1  # of a spoke: its centre and its standard deviations


def draw(key: jax.Array, label: jax.Array, z_dim: int, num: int) -> jax.Array:
  """Draws z = R(2 pi k / num) (1.4 + u, v), u ~ N(0, 0.5^2), v ~ N(0, 0.1^2), R a rotation.

  Args:
    key: PRNG key.
    label: k, i32 [B]; num or more draws one of the spokes.
    z_dim: even.
    num: spokes.

  Returns:
    [B, z_dim], one spoke in all pairs.

  >>> z = draw(jax.random.key(0), jnp.zeros(1000, jnp.int32), 2, 10)  # along the first axis
  >>> [round(float(m), 1) for m in z.mean(0)], [round(float(s), 1) for s in z.std(0)]
  ([1.4, 0.0], [0.5, 0.1])
  """
  k_spoke, k_place = jax.random.split(key)
  drawn = jax.random.randint(k_spoke, label.shape, 0, num)
  angle = 2 * math.pi * jnp.where(label < num, label, drawn) / num
  place = jax.random.normal(k_place, (len(label), z_dim // 2, 2))
  along, across = RADIUS + LENGTH * place[..., 0], WIDTH * place[..., 1]
  cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
  pairs = jnp.stack([along * cos - across * sin, along * sin + across * cos], axis=-1)
  return pairs.reshape(len(label), z_dim)


def nearest(z: jax.Array, num: int) -> jax.Array:
  """Returns the spoke next to each code in the first pair of axes, a whole number, f32 [B].

  >>> nearest(jnp.array([[1.4, 0.1], [0.1, -1.4]]), 4).tolist()
  [0.0, 3.0]
  """
  turn = jnp.arctan2(z[:, 1], z[:, 0]) / (2 * math.pi)
  return jnp.round(turn * num) % num


def along(z_dim: int, num: int, places: int) -> jax.Array:
  """Returns codes on the axes of the spokes, from -2 to 2 deviations outwards: [num, places, Z].

  >>> along(2, 4, 3)[0].tolist()
  [[0.3999999761581421, 0.0], [1.399999976158142, 0.0], [2.4000000953674316, 0.0]]
  """
  angle = 2 * math.pi * jnp.arange(num) / num
  ray = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
  radius = RADIUS + jnp.linspace(-2, 2, places) * LENGTH
  return jnp.tile(ray[:, None] * radius[:, None], z_dim // 2)
