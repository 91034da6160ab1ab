"""Convolution and transposed convolution: functions and layers.

On a CPU they are made of the maps of `bilinear`, whose derivatives of every order are fast there,
but which have no forward mode (`jax.jvp`, `jax.jacfwd`, `jax.hessian`). On TPU and GPU the plain
XLA form is right and plain autodiff is used; the backend decides when a function is traced.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from gm.nn import bilinear
from gm.nn.bilinear import LAYOUT, Pair

Padding = str | int | Sequence[tuple[int, int]]

_form = contextvars.ContextVar("conv_form", default="auto")


@contextlib.contextmanager
def form(name: str) -> Iterator[None]:
  """Fixes the form for functions traced inside: "cpu", "plain" or "auto" (by the backend).

  Needed only to compile for a machine that is not there, such as a TPU topology planned on a CPU.
  """
  if name not in ("auto", "cpu", "plain"):
    raise ValueError(f"convolution form {name!r}: choose auto, cpu or plain")
  token = _form.set(name)
  try:
    yield
  finally:
    _form.reset(token)


def cpu_form() -> bool:
  """Whether functions that are traced now use the forms that are fast on a CPU."""
  name = _form.get()
  return jax.default_backend() == "cpu" if name == "auto" else name == "cpu"


def _pair(value: int | Sequence[int]) -> Pair:
  return (value, value) if isinstance(value, int) else tuple(value)


def _check(x: jax.Array, w: jax.Array, padding: Padding) -> None:
  if x.ndim != 4 or w.ndim != 4 or x.shape[-1] != w.shape[2]:
    raise ValueError(
      f"x {x.shape} and kernel {w.shape}: x must be [N, H, W, I] and the kernel [kh, kw, I, O]"
    )
  if isinstance(padding, str) and padding not in ("SAME", "VALID"):
    raise ValueError(
      f"padding {padding!r}: choose SAME, VALID, an int or ((top, bottom), (left, right))"
    )


def _explicit(padding: int | Sequence[Pair]) -> tuple[Pair, Pair]:
  if isinstance(padding, int):
    return ((padding, padding), (padding, padding))
  return tuple((int(lo), int(hi)) for lo, hi in padding)


def conv(
  x: jax.Array, w: jax.Array, *, strides: int | Pair = 1, padding: Padding = "SAME"
) -> jax.Array:
  """Convolution (cross-correlation): y[p, o] = sum_i,c x[s p + i - lo, c] w[i, c, o].

  Args:
    x: [N, H, W, I].
    w: [kh, kw, I, O].
    strides: one number or (vertical, horizontal).
    padding: "SAME" (as TensorFlow and Flax: kernel 5, stride 2 pads (1, 2)), "VALID", an int, or
      explicit pairs.

  Returns:
    [N, P, Q, O].

  Raises:
    ValueError: if shapes or padding do not fit.

  >>> conv(jnp.ones((1, 4, 4, 1)), jnp.ones((4, 4, 1, 2)), strides=2).shape
  (1, 2, 2, 2)
  """
  _check(x, w, padding)
  strides, kernel, size = _pair(strides), w.shape[:2], x.shape[1:3]
  if isinstance(padding, str):
    pads = tuple(lax.padtype_to_pads(size, kernel, strides, padding))
  else:
    pads = _explicit(padding)
  g = bilinear.Geometry(size, kernel, strides, tuple((int(lo), int(hi)) for lo, hi in pads))
  if min(g.out) < 1:
    raise ValueError(f"a {kernel} kernel does not fit into {size} pixels with padding {pads}")
  x, w = _same_dtype(x, w)
  if cpu_form():
    return bilinear.conv(g, x, w)
  return lax.conv_general_dilated(x, w, g.strides, g.pads, dimension_numbers=LAYOUT)


def conv_transpose(
  x: jax.Array, w: jax.Array, *, strides: int | Pair = 1, padding: Padding = "SAME"
) -> jax.Array:
  """Transposed convolution: a convolution of x with s - 1 zeros between its pixels.

  Equal to `lax.conv_transpose` and `flax.linen.ConvTranspose`. Kernel 4, stride 2, "SAME" is
  torch's ConvTranspose2d(4, 2, 1), and "VALID" on a 1x1 map its (4, 1, 0), with torch's kernel in
  (h, w, in, out) order and turned by 180 degrees.

  Args:
    x: [N, H, W, I].
    w: [kh, kw, I, O].
    strides: one number or (vertical, horizontal).
    padding: "SAME" (the output is s times the input), "VALID", or as in Flax the pads of x with its
      zeros between.

  Returns:
    [N, P, Q, O].

  Raises:
    ValueError: if shapes or padding do not fit.

  >>> conv_transpose(jnp.ones((1, 4, 4, 1)), jnp.ones((4, 4, 1, 2)), strides=2).shape
  (1, 8, 8, 2)
  """
  _check(x, w, padding)
  strides, kernel, out = _pair(strides), w.shape[:2], x.shape[1:3]
  pads = _transpose_pads(kernel, strides, padding)
  size = tuple((m - 1) * s + 2 + sum(p) - k for m, k, s, p in zip(out, kernel, strides, pads))
  if min(size) < 1:
    raise ValueError(f"a {kernel} kernel with padding {pads} leaves nothing of a map of {out}")
  x, w = _same_dtype(x, w)
  if not cpu_form():
    return lax.conv_general_dilated(
      x, w, (1, 1), pads, lhs_dilation=strides, dimension_numbers=LAYOUT
    )
  # The convolution whose adjoint this is maps `size` to `out`.
  low = [k - 1 - p[0] for k, p in zip(kernel, pads)]
  high = [(m - 1) * s + k - n - lo for m, s, k, n, lo in zip(out, strides, kernel, size, low)]
  g = bilinear.Geometry(size, kernel, strides, tuple(zip(low, high)))
  return bilinear.adjoint_in_x(g, x, bilinear.turned(w))


def _transpose_pads(kernel: Pair, strides: Pair, padding: Padding) -> tuple[Pair, Pair]:
  if not isinstance(padding, str):
    return _explicit(padding)
  pads = []
  for k, s in zip(kernel, strides):
    total = k + s - 2 + (max(k - s, 0) if padding == "VALID" else 0)
    low = k - 1 if padding == "VALID" or s > k - 1 else -(-total // 2)
    pads.append((low, total - low))
  return tuple(pads)


def _same_dtype(x: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
  dtype = jnp.promote_types(x.dtype, w.dtype)
  return x.astype(dtype), w.astype(dtype)


# --- layers


def _apply(module: Any, function: Callable, x: jax.Array) -> jax.Array:
  """What `Conv` and `ConvTranspose` share: parameters, types, leading axes, bias."""
  shape = (*_pair(module.kernel_size), x.shape[-1], module.features)
  w = module.param("kernel", module.kernel_init, shape, jnp.float32).astype(module.dtype)
  lead = x.shape[:-3]
  y = function(
    x.reshape(-1, *x.shape[-3:]).astype(module.dtype),
    w,
    strides=module.strides,
    padding=module.padding,
  )
  if module.use_bias:
    bias = module.param("bias", module.bias_init, (module.features,), jnp.float32)
    y = y + bias.astype(module.dtype)
  return y.reshape(*lead, *y.shape[1:])


class Conv(nn.Module):
  """`conv` with parameters: [..., H, W, I] -> [..., P, Q, F]; kernel [kh, kw, I, F]."""

  features: int
  kernel_size: int | Pair = 3
  strides: int | Pair = 1
  padding: Padding = "SAME"
  use_bias: bool = True
  kernel_init: Callable = nn.initializers.lecun_normal()
  bias_init: Callable = nn.initializers.zeros
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Convolves x."""
    return _apply(self, conv, x)


class ConvTranspose(nn.Module):
  """`conv_transpose` with parameters: [..., H, W, I] -> [..., P, Q, features]."""

  features: int
  kernel_size: int | Pair = 4
  strides: int | Pair = 2
  padding: Padding = "SAME"
  use_bias: bool = True
  kernel_init: Callable = nn.initializers.lecun_normal()
  bias_init: Callable = nn.initializers.zeros
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Convolves x, transposed."""
    return _apply(self, conv_transpose, x)
