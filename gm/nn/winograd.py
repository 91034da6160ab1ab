"""Convolutions with 2 or 3 taps in fewer products: Winograd's minimal filtering.

Two neighbouring outputs of a filter of r taps need 2 r products if each is summed by itself, and
r + 1 if sums and differences are taken before and after, r = 2 for example:

  y_0 = x_0 w_0 + x_1 w_1 = m_0 + m_1     m_0 = (x_0 - x_1) w_0
  y_1 = x_1 w_0 + x_2 w_1 = m_1 + m_2     m_1 = x_1 (w_0 + w_1),  m_2 = (x_2 - x_1) w_1

In general y = A^T ((G w) * (B^T x)). In the plane, with channels, every product becomes one matrix
product over all tiles of 2 x 2 outputs and all images: 9 instead of 16 for 2 x 2 taps, 16 instead
of 36 for 3 x 3. This is exact algebra; rounding in float32 differs from the plain sums by about
1e-6 of the largest output, so half precision is left to the plain form. Tiles of 4 x 4 would need
0.4 of the plain products instead of 0.6, for 36 matrix products and sums that take minutes to
compile and an error of 1e-5.

The convolution, its adjoint in x and its adjoint in w are the same sums read in three directions.
Source: Winograd, Arithmetic Complexity of Computations, SIAM 1980; Lavin and Gray, 2016,
arXiv:1509.09308.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Pair = tuple[int, int]
Matrix = Sequence[Sequence[float]]


class Filter(NamedTuple):
  """The three maps of a filter of r taps for m outputs, with n = m + r - 1 products."""

  of_x: Matrix  # B^T, [n, n]
  of_w: Matrix  # G, [n, r]
  of_y: Matrix  # A^T, [m, n]

  @property
  def step(self) -> int:
    """m: the outputs of a tile."""
    return len(self.of_y)

  @property
  def products(self) -> int:
    """n: also the inputs that a tile reads."""
    return len(self.of_x)


FILTERS = {  # by taps, for two outputs
  2: Filter(
    of_x=((1, -1, 0), (0, 1, 0), (0, -1, 1)),
    of_w=((1, 0), (1, 1), (0, 1)),
    of_y=((1, 1, 0), (0, 1, 1)),
  ),
  3: Filter(
    of_x=((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
    of_w=((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1)),
    of_y=((1, 1, 1, 0), (0, 1, -1, -1)),
  ),
}


def share(out: Pair, taps: Pair) -> float:
  """Products over those of the plain sums; infinite where no filter fits.

  >>> share((8, 8), (2, 2)), share((4, 4), (3, 3))
  (0.5625, 0.4444444444444444)
  """
  if any(r not in FILTERS for r in taps):
    return math.inf
  return math.prod((r + 1) * -(-p // 2) / (r * p) for p, r in zip(out, taps))


@jax.jit  # layers of equal shapes are traced once
def conv(x: jax.Array, w: jax.Array) -> jax.Array:
  """Convolution (cross-correlation) with stride 1 and no padding.

  Args:
    x: [N, P + r - 1, Q + s - 1, C].
    w: [r, s, C, O]; r and s are 2 or 3.

  Returns:
    [N, P, Q, O].

  >>> conv(jnp.ones((1, 3, 4, 1)), jnp.ones((2, 3, 1, 1))).ravel().tolist()
  [6.0, 6.0, 6.0, 6.0]
  """
  out = (x.shape[1] - w.shape[0] + 1, x.shape[2] - w.shape[1] + 1)
  plan = _plan(out, w.shape[:2])
  parts = [(_rows(v) @ u).reshape(*v.shape[:3], -1) for v, u in zip(_of_x(x, plan), _of_w(w, plan))]
  for axis, tiles in reversed(plan):
    parts = [_join(_mix(tiles.filter.of_y, g), axis, out[axis - 1]) for g in _groups(parts, tiles)]
  return parts[0]


@jax.jit
def adjoint_in_x(y: jax.Array, w: jax.Array) -> jax.Array:
  """The adjoint in x: <conv(x, w), y> is <x, this>.

  Args:
    y: [N, P, Q, O].
    w: [r, s, C, O].

  Returns:
    [N, P + r - 1, Q + s - 1, C].
  """
  plan = _plan(y.shape[1:3], w.shape[:2])
  parts = [
    (_rows(m) @ u.T).reshape(*m.shape[:3], -1) for m, u in zip(_of_y(y, plan), _of_w(w, plan))
  ]
  for axis, tiles in reversed(plan):
    size, turned = y.shape[axis] + w.shape[axis - 1] - 1, _turned(tiles.filter.of_x)
    parts = [_place(_mix(turned, g), axis, tiles.filter.step, size) for g in _groups(parts, tiles)]
  return parts[0]


@jax.jit
def adjoint_in_w(x: jax.Array, y: jax.Array) -> jax.Array:
  """The adjoint in w: <conv(x, w), y> is <w, this>.

  Args:
    x: [N, P + r - 1, Q + s - 1, C].
    y: [N, P, Q, O].

  Returns:
    [r, s, C, O].
  """
  plan = _plan(y.shape[1:3], [n - p + 1 for n, p in zip(x.shape[1:3], y.shape[1:3])])
  parts = [_rows(v).T @ _rows(m) for v, m in zip(_of_x(x, plan), _of_y(y, plan))]
  for _, tiles in reversed(plan):
    turned = _turned(tiles.filter.of_w)
    parts = [jnp.stack(_mix(turned, g)) for g in _groups(parts, tiles)]
  return parts[0]


# --- tiles


class Tiles(NamedTuple):
  """How an axis is cut: tiles overlap in what they read, not in what they give."""

  filter: Filter
  num: int


def _plan(out: Sequence[int], taps: Sequence[int]) -> list[tuple[int, Tiles]]:
  """[(axis, tiles)] for rows and columns."""
  filters = [FILTERS[r] for r in taps]
  return [(i + 1, Tiles(f, -(-p // f.step))) for i, (p, f) in enumerate(zip(out, filters))]


def _rows(x: jax.Array) -> jax.Array:
  return x.reshape(-1, x.shape[-1])


def _turned(matrix: Matrix) -> Matrix:
  return tuple(zip(*matrix))


def _mix(matrix: Matrix, parts: Sequence[jax.Array]) -> list[jax.Array]:
  """Every row's weighted sum of the parts."""
  return [_weighted(row, parts) for row in matrix]


def _weighted(row: Sequence[float], parts: Sequence[jax.Array]) -> jax.Array:
  # not by the operators of arrays, which would take most of the time of tracing a step
  total = None
  for c, part in zip(row, parts, strict=True):
    if c:
      term = part if abs(c) == 1 else lax.mul(part, lax.full_like(part, abs(c)))
      if total is None:
        total = term if c > 0 else lax.neg(term)
      else:
        total = (lax.add if c > 0 else lax.sub)(total, term)
  return total


def _groups(parts: Sequence[jax.Array], tiles: Tiles) -> list[Sequence[jax.Array]]:
  """Parts that differ in their place along the last axis of the plan."""
  n = tiles.filter.products
  return [parts[i : i + n] for i in range(0, len(parts), n)]


def _cut(x: jax.Array, axis: int, step: int, tiles: int, num: int) -> list[jax.Array]:
  """Entries i, i + step, i + 2 step, ... of an axis, as many as tiles, for i < num."""
  missing = step * (tiles - 1) + num - x.shape[axis]
  x = lax.pad(x, jnp.zeros((), x.dtype), [(0, missing * (i == axis), 0) for i in range(x.ndim)])
  return [lax.slice_in_dim(x, i, i + step * (tiles - 1) + 1, step, axis) for i in range(num)]


def _join(parts: Sequence[jax.Array], axis: int, size: int) -> jax.Array:
  """Entries of each part in turn: the inverse of `_cut` where tiles do not overlap."""
  x = jnp.stack(parts, axis + 1)
  x = x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
  return lax.slice_in_dim(x, 0, size, axis=axis)


def _place(parts: Sequence[jax.Array], axis: int, step: int, size: int) -> jax.Array:
  """The adjoint of `_cut`: part i is added at i, i + step, i + 2 step, ... of `size` entries."""
  longest = (len(parts) - 1) // step

  def shift(part, by):
    edges = [(by, longest - by, 0) if a == axis else (0, 0, 0) for a in range(part.ndim)]
    return lax.pad(part, jnp.zeros((), part.dtype), edges)

  turns = range(longest + 1)
  sums = [
    functools.reduce(
      lax.add, [shift(parts[i + step * k], k) for k in turns if i + step * k < len(parts)]
    )
    for i in range(step)
  ]
  return _join(sums, axis, size)


def _of_x(x: jax.Array, plan: list) -> list[jax.Array]:
  """B^T x B of every tile: arrays [N, *tiles, C]."""
  parts = [x]
  for axis, (f, num) in plan:
    cut = [_cut(part, axis, f.step, num, f.products) for part in parts]
    parts = [v for pieces in cut for v in _mix(f.of_x, pieces)]
  return parts


def _of_y(y: jax.Array, plan: list) -> list[jax.Array]:
  """A y A^T, the adjoint of what is done to the products: arrays [N, *tiles, O]."""
  parts = [y]
  for axis, (f, num) in plan:
    cut = [_cut(part, axis, f.step, num, f.step) for part in parts]
    parts = [m for pieces in cut for m in _mix(_turned(f.of_y), pieces)]
  return parts


def _of_w(w: jax.Array, plan: list) -> list[jax.Array]:
  """G w G^T: arrays [C, O]."""
  parts = [w]
  for _, (f, _) in plan:
    parts = [u for part in parts for u in _mix(f.of_w, list(part))]
  return parts
