"""Pictures of a latent space for `Stage.show`: pure functions of a decoder."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp


def lines(decode: Callable, start: jax.Array, end: jax.Array, *, frames: int = 10) -> jax.Array:
  """Decodes straight lines between latents: z_t = (1 - t) start + t end.

  Args:
    decode: [N, Z] -> [N, ...].
    start: [R, Z].
    end: [R, Z].
    frames: points on each line, both ends among them.

  Returns:
    [R, frames, ...].

  >>> lines(lambda z: z, jnp.zeros((1, 1)), jnp.ones((1, 1)), frames=3).ravel().tolist()
  [0.0, 0.5, 1.0]
  """
  t = jnp.linspace(0.0, 1.0, frames)[None, :, None]
  z = (1 - t) * start[:, None] + t * end[:, None]
  out = decode(z.reshape(-1, start.shape[-1]))
  return out.reshape(len(start), frames, *out.shape[1:])


def between(start: jax.Array, end: jax.Array, t: jax.Array, *, straight: bool) -> jax.Array:
  """Latents on the way from one to another, at t = 0 and t = 1 exactly those.

  On a sphere (Shoemake, 1985), with w the angle between the two, sin((1 - t) w) / sin(w) start +
  sin(t w) / sin(w) end: independent normal latents keep their usual length. Where w is nearly 0 or
  pi, or if `straight`, (1 - t) start + t end. Of whole numbers the nearer one is taken.

  Args:
    start: [N, ...].
    end: [N, ...].
    t: [N], from 0 to 1.
    straight: for laws on a box, such as the uniform one, which a sphere would leave.

  Returns:
    [N, ...].

  >>> a, b = jnp.array([[2.0, 0.0]]), jnp.array([[0.0, 2.0]])
  >>> [round(float(x), 3) for x in between(a, b, jnp.array([0.5]), straight=False)[0]]
  [1.414, 1.414]
  >>> between(a, b, jnp.array([0.5]), straight=True)[0].tolist()
  [1.0, 1.0]
  """
  along = lambda x: x.reshape(-1, *[1] * (start.ndim - 1))
  if not jnp.issubdtype(start.dtype, jnp.floating):
    return jnp.where(along(t) < 0.5, start, end)
  a, b = 1 - t, t
  if not straight:
    flat = lambda x: x.reshape(len(x), -1)
    dot, norm = jnp.sum(flat(start) * flat(end), 1), jnp.linalg.norm
    lengths = norm(flat(start), axis=1) * norm(flat(end), axis=1)
    angle = jnp.arccos(jnp.clip(dot / jnp.maximum(lengths, 1e-12), -1.0, 1.0))
    flat_arc = jnp.sin(angle) < 1e-3
    sine = jnp.where(flat_arc, 1.0, jnp.sin(angle))
    a = jnp.where(flat_arc, a, jnp.sin(a * angle) / sine)
    b = jnp.where(flat_arc, b, jnp.sin(b * angle) / sine)
  return along(a) * start + along(b) * end


def plane(decode: Callable, *, size: int = 20) -> jax.Array:
  """Decodes a grid of a two-dimensional latent space that is even in probability under N(0, I).

  Args:
    decode: [N, 2] -> [N, ...].
    size: points along each axis, at the Gaussian quantiles (i + 1/2) / size.

  Returns:
    [size, size, ...]; the first latent grows to the right, the second upwards.

  Source: Kingma and Welling, 2014, arXiv:1312.6114, appendix A.

  >>> [round(float(z), 3) for z in plane(lambda z: z, size=2)[0, 0]]  # upper left corner
  [-0.674, 0.674]
  """
  quantiles = jax.scipy.stats.norm.ppf((jnp.arange(size) + 0.5) / size)
  right, up = jnp.meshgrid(quantiles, quantiles[::-1])
  out = decode(jnp.stack([right.ravel(), up.ravel()], axis=-1))
  return out.reshape(size, size, *out.shape[1:])


def traversals(decode: Callable, z: jax.Array, *, reach: float = 3.0, frames: int = 9) -> jax.Array:
  """Decodes one latent after the other from -reach to reach, the others where they are.

  Args:
    decode: [N, Z] -> [N, ...].
    z: of one example, [Z].
    reach: in standard deviations of the prior.
    frames: values of each latent.

  Returns:
    [Z, frames, ...], a row for each latent.

  Source: Higgins et al., 2017, beta-VAE.

  >>> traversals(lambda z: z, jnp.array([7.0, 8.0]), reach=1.0, frames=2)[0].tolist()
  [[-1.0, 8.0], [1.0, 8.0]]
  """
  num = len(z)
  moved = jnp.eye(num, dtype=bool)[:, None]  # row i moves latent i
  rows = jnp.where(moved, jnp.linspace(-reach, reach, frames)[:, None], z)
  out = decode(rows.reshape(-1, num))
  return out.reshape(num, frames, *out.shape[1:])


def pairs(x: jax.Array, rec: jax.Array, *, cols: int = 8) -> jax.Array:
  """Lays examples and their reconstructions out in alternating rows.

  Args:
    x: [N, ...], N a multiple of cols.
    rec: [N, ...].
    cols: examples in a row.

  Returns:
    [2 N / cols, cols, ...].

  >>> pairs(jnp.zeros(2), jnp.ones(2), cols=2).tolist()
  [[0.0, 0.0], [1.0, 1.0]]
  """
  both = jnp.stack([x.reshape(-1, cols, *x.shape[1:]), rec.reshape(-1, cols, *x.shape[1:])], axis=1)
  return both.reshape(-1, cols, *x.shape[1:])
