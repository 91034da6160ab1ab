"""Three bilinear maps of one geometry, with derivatives of every order that are fast on a CPU.

With x the image side, w the kernel and y the map side:

  C(x, w) = y    convolution            sum_ijc x[s p + i - lo, c] w[i, j, c, o]
  T(y, w) = x    its adjoint in x       <C(x, w), y> = <x, T(y, w)>: the transposed convolution
  W(x, y) = w    its adjoint in w       <C(x, w), y> = <w, W(x, y)>: the weight gradient

Each is linear in both arguments, so the derivative of each is made of the other two:

  of C: x' = T(y', w), w' = W(x, y')
  of T: y' = C(x', w), w' = W(x', y)
  of W: x' = T(y, w'), y' = C(x, w')

The set is closed: a gradient penalty, R1 or a path length never leaves it. Why not plain autodiff:
it writes T and W as convolutions with dilation, reversal and permuted dimensions. XLA's CPU
compiler turns permuted dimensions into its fast form in the outermost computation only; inside a
loop (`lax.fori_loop`, `lax.scan`) they run on a naive path that is up to 30 times slower. Every
convolution emitted here is already in the fast form, W is mostly matrix products, and maps of 32
channels or more take fewer products (`winograd`) where a kernel is 2 or 3 strides wide.

No forward mode (`jax.jvp`, `jax.jacfwd`, `jax.hessian`): a `custom_vjp` has none; use reverse over
reverse.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from gm.nn import winograd

Pair = tuple[int, int]
LAYOUT = ("NHWC", "HWIO", "NHWC")
# T by products and shifted sums beats the sub-pixel form up to these (measured, 2 cores with AVX2).
FEW_CHANNELS = 4  # 1.6 to 3.5 times
FEW_PIXELS = 64  # 1.1 to 1.3 times
# W of so many taps and few channels on a side is one convolution: 1.8 to 6 times quicker than a
# product for each tap, and compiled in a tenth of the time (7 x 7, 3 and 16 or 64 channels).
MANY_TAPS = 49

# Winograd's filtering pays from so many channels on and up to this share of the plain products: 0.5
# to 0.8 of the time (measured there); at 16 channels the sums take as long as the products saved.
MIN_CHANNELS, MAX_SHARE = 32, 0.7


class Geometry(NamedTuple):
  """What C, T and W share; static and hashable. All pairs are (height, width)."""

  size: Pair  # of x
  kernel: Pair
  strides: Pair
  pads: tuple[Pair, Pair]  # of x: ((top, bottom), (left, right))

  @property
  def out(self) -> Pair:
    """The size of y."""
    return tuple(
      (n + sum(p) - k) // s + 1
      for n, k, s, p in zip(self.size, self.kernel, self.strides, self.pads)
    )

  @property
  def blocks(self) -> Pair:
    """The kernel's size in strides, rounded up."""
    return tuple(-(-k // s) for k, s in zip(self.kernel, self.strides))

  @property
  def grid(self) -> Pair:
    """How many s x s blocks of x all positions of the kernel touch."""
    return tuple(p + b - 1 for p, b in zip(self.out, self.blocks))

  @property
  def edges(self) -> tuple[Pair, Pair]:
    """What to add around x (or cut off where negative) so that it is exactly `grid` blocks."""
    return tuple(
      (p[0], s * g - n - p[0]) for n, s, p, g in zip(self.size, self.strides, self.pads, self.grid)
    )

  @property
  def is_exact(self) -> bool:
    """Whether the kernel is a whole number of strides (4 by 2 is, 5 by 2 is not)."""
    return all(k % s == 0 for k, s in zip(self.kernel, self.strides))

  @property
  def is_matmul(self) -> bool:
    """Whether the kernel covers the whole image once."""
    return self.kernel == self.size and self.pads == ((0, 0), (0, 0))


# --- the same sums, rearranged: stride s becomes stride 1 on s x s blocks of pixels


def _pad(x: jax.Array, edges: Sequence[Pair]) -> jax.Array:
  return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((*e, 0) for e in edges), (0, 0, 0)])


def _to_blocks(x: jax.Array, g: Geometry) -> jax.Array:
  """[N, H, W, C] -> [N, *grid, s s C]."""
  (gh, gw), (sh, sw) = g.grid, g.strides
  x = _pad(x, g.edges).reshape(-1, gh, sh, gw, sw, x.shape[-1])
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(x.shape[0], gh, gw, -1)


def _from_blocks(x: jax.Array, g: Geometry) -> jax.Array:
  """[N, *grid, s s C] -> [N, H, W, C]: the adjoint of `_to_blocks`."""
  (gh, gw), (sh, sw) = g.grid, g.strides
  x = x.reshape(-1, gh, gw, sh, sw, x.shape[-1] // (sh * sw))
  x = x.transpose(0, 1, 3, 2, 4, 5).reshape(x.shape[0], gh * sh, gw * sw, -1)
  return _pad(x, [(-lo, -hi) for lo, hi in g.edges])


def _kernel_to_blocks(w: jax.Array, g: Geometry) -> jax.Array:
  """[kh, kw, C, O] -> [*blocks, s s C, O]."""
  (bh, bw), (sh, sw) = g.blocks, g.strides
  w = jnp.pad(w, ((0, bh * sh - w.shape[0]), (0, bw * sw - w.shape[1]), (0, 0), (0, 0)))
  w = w.reshape(bh, sh, bw, sw, *w.shape[2:]).transpose(0, 2, 1, 3, 4, 5)
  return w.reshape(bh, bw, -1, w.shape[-1])


def _kernel_from_blocks(w: jax.Array, g: Geometry) -> jax.Array:
  """[*blocks, s s C, O] -> [kh, kw, C, O]: the adjoint of `_kernel_to_blocks`."""
  (bh, bw), (sh, sw), o = g.blocks, g.strides, w.shape[-1]
  w = w.reshape(bh, bw, sh, sw, -1, o).transpose(0, 2, 1, 3, 4, 5)
  return w.reshape(bh * sh, bw * sw, -1, o)[: g.kernel[0], : g.kernel[1]]


def _scatter(y: jax.Array, w: jax.Array) -> jax.Array:
  """[N, P, Q, O], [bh, bw, I, O] -> [N, P + bh - 1, Q + bw - 1, I]: each pixel adds its w."""
  bh, bw, i, o = w.shape
  parts = (y.reshape(-1, o) @ w.reshape(-1, o).T).reshape(*y.shape[:3], bh, bw, i)
  return sum(
    jnp.pad(parts[:, :, :, a, b], ((0, 0), (a, bh - 1 - a), (b, bw - 1 - b), (0, 0)))
    for a in range(bh)
    for b in range(bw)
  )


def turned(w: jax.Array) -> jax.Array:
  """The kernel of the adjoint: turned by 180 degrees, channels exchanged."""
  return w[::-1, ::-1].swapaxes(2, 3)


def _fewer_products(g: Geometry, inputs: int, outputs: int, dtype: Any) -> bool:
  """Whether Winograd's filtering is worth its sums. A kernel that is no whole number of strides is
  filled up with zeros for it (5 by 2 to 6 by 2), which counts as products.
  """
  filled = math.prod(b * s for b, s in zip(g.blocks, g.strides)) / math.prod(g.kernel)
  fewer = winograd.share(g.out, g.blocks) * filled < MAX_SHARE
  return dtype == jnp.float32 and min(inputs, outputs) >= MIN_CHANNELS and fewer


# --- the three maps


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def conv(g: Geometry, x: jax.Array, w: jax.Array) -> jax.Array:
  """C: x [N, H, W, I], w [kh, kw, I, O] -> y [N, P, Q, O]."""
  if g.is_matmul:
    return (x.reshape(x.shape[0], -1) @ w.reshape(-1, w.shape[-1]))[:, None, None]
  if _fewer_products(g, *w.shape[2:], w.dtype):
    return winograd.conv(_to_blocks(x, g), _kernel_to_blocks(w, g))
  return lax.conv_general_dilated(x, w, g.strides, g.pads, dimension_numbers=LAYOUT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def adjoint_in_x(g: Geometry, y: jax.Array, w: jax.Array) -> jax.Array:
  """T: y [N, P, Q, O], w [kh, kw, I, O] -> x [N, H, W, I]."""
  if g.is_matmul:
    return (y.reshape(y.shape[0], -1) @ w.reshape(-1, w.shape[-1]).T).reshape(-1, *w.shape[:3])
  fewer = _fewer_products(g, *w.shape[2:], w.dtype)
  if g.strides == (1, 1):
    pads = [(k - 1 - p[0], n - m + p[0]) for n, k, p, m in zip(g.size, g.kernel, g.pads, g.out)]
    if fewer:
      return winograd.conv(_pad(y, pads), turned(w))
    return lax.conv_general_dilated(y, turned(w), (1, 1), pads, dimension_numbers=LAYOUT)
  blocks = _kernel_to_blocks(w, g)
  if fewer:
    return _from_blocks(winograd.adjoint_in_x(y, blocks), g)
  few = w.shape[2] <= FEW_CHANNELS or g.out[0] * g.out[1] <= FEW_PIXELS
  if few or not g.is_exact:
    return _from_blocks(_scatter(y, blocks), g)
  # Sub-pixel form: one convolution of the small map makes all s x s pixels of a block at once.
  pads = [(b - 1, b - 1) for b in g.blocks]
  x = lax.conv_general_dilated(y, turned(blocks), (1, 1), pads, dimension_numbers=LAYOUT)
  return _from_blocks(x, g)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def adjoint_in_w(g: Geometry, x: jax.Array, y: jax.Array) -> jax.Array:
  """W: x [N, H, W, I], y [N, P, Q, O] -> w [kh, kw, I, O]."""
  if g.is_matmul:
    return (x.reshape(x.shape[0], -1).T @ y.reshape(y.shape[0], -1)).reshape(*x.shape[1:], -1)
  if _fewer_products(g, x.shape[-1], y.shape[-1], x.dtype):
    return _kernel_from_blocks(winograd.adjoint_in_w(_to_blocks(x, g), y), g)
  few = min(x.shape[-1], y.shape[-1]) <= FEW_CHANNELS and math.prod(g.kernel) >= MANY_TAPS
  if few or not g.is_exact:
    # Blocks would waste products on padding: a kernel as large as y, dilated, in the fast layout.
    pads = [
      (p[0], (m - 1) * s + k - n - p[0])
      for n, k, s, p, m in zip(g.size, g.kernel, g.strides, g.pads, g.out)
    ]
    x, y = x.transpose(3, 1, 2, 0), y.transpose(1, 2, 0, 3)
    w = lax.conv_general_dilated(
      x, y, (1, 1), pads, rhs_dilation=g.strides, dimension_numbers=LAYOUT
    )
    return w.transpose(1, 2, 0, 3)
  # A matrix product for each block of the kernel, contracting batch and space; the side with more
  # channels is the right one, which is up to a tenth faster than the reverse.
  (p, q), (bh, bw) = g.out, g.blocks
  x, y = _to_blocks(x, g), y.reshape(-1, y.shape[-1])
  parts = [
    x[:, a : a + p, b : b + q].reshape(-1, x.shape[-1]) for a in range(bh) for b in range(bw)
  ]
  if x.shape[-1] > y.shape[-1]:
    w = jnp.stack([y.T @ part for part in parts]).swapaxes(1, 2)
  else:
    w = jnp.stack([part.T @ y for part in parts])
  return _kernel_from_blocks(w.reshape(bh, bw, *w.shape[1:]), g)


conv.defvjp(
  lambda g, x, w: (conv(g, x, w), (x, w)),
  lambda g, xw, dy: (adjoint_in_x(g, dy, xw[1]), adjoint_in_w(g, xw[0], dy)),
)
adjoint_in_x.defvjp(
  lambda g, y, w: (adjoint_in_x(g, y, w), (y, w)),
  lambda g, yw, dx: (conv(g, dx, yw[1]), adjoint_in_w(g, dx, yw[0])),
)
adjoint_in_w.defvjp(
  lambda g, x, y: (adjoint_in_w(g, x, y), (x, y)),
  lambda g, xy, dw: (adjoint_in_x(g, xy[1], dw), conv(g, xy[0], dw)),
)
