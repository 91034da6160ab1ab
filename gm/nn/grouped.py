"""Grouped convolution: channels in groups, each with kernels of its own, fast on a CPU.

XLA's own form (`feature_group_count`) is slow there. Measured with its gradient, 3 x 3 on 16 maps
of 16 x 16 x 64, ms of CPU time: 4 groups 297, one convolution per group 12, matrix products in a
batch 19; 16 groups 78, 28 and 20. On TPU and GPU XLA's form is right and is used.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from gm.nn import conv

MANY_CHANNELS = 8  # of a group, from which a convolution for each group is the fastest


def grouped(
  x: jax.Array, w: jax.Array, *, groups: int, strides: int = 1, padding: conv.Padding = "SAME"
) -> jax.Array:
  """Convolves every group of channels with its own kernels.

  y[.., g, o] = sum_i,c x[.., g, c] w[i, c, g, o], channels numbered group by group.

  Args:
    x: [N, H, W, G I].
    w: [kh, kw, I, G O], as `lax.conv_general_dilated` and `flax.linen.Conv` lay it.
    groups: G; as many as channels is a depthwise convolution.
    strides: of both axes.
    padding: as in `gm.nn.conv.conv`.

  Returns:
    [N, P, Q, G O].

  Raises:
    ValueError: if the channels do not split.

  >>> x = jnp.ones((1, 2, 2, 4))
  >>> grouped(x, jnp.ones((1, 1, 2, 6)), groups=2)[0, 0, 0].tolist()
  [2.0, 2.0, 2.0, 2.0, 2.0, 2.0]
  """
  inputs, outputs = w.shape[2:]
  if x.shape[-1] != groups * inputs or outputs % groups:
    raise ValueError(
      f"x {x.shape} and kernel {w.shape} do not split into {groups} groups: x must have"
      f" {groups} times the kernel's {inputs} input channels, and its outputs divide by {groups}"
    )
  if groups == 1:
    return conv.conv(x, w, strides=strides, padding=padding)
  steps = (strides, strides)
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(x.shape[1:3], w.shape[:2], steps, padding)
  elif isinstance(padding, int):
    padding = ((padding, padding), (padding, padding))
  if not conv.cpu_form():
    return lax.conv_general_dilated(
      x, w, steps, padding, dimension_numbers=conv.LAYOUT, feature_group_count=groups
    )
  if inputs >= MANY_CHANNELS:
    parts = zip(jnp.split(x, groups, -1), jnp.split(w, groups, -1))
    y = [conv.conv(a, b, strides=strides, padding=padding) for a, b in parts]
    return jnp.concatenate(y, -1)
  taps = _shifts(x, w.shape[:2], strides, padding)
  if inputs == 1 and outputs == groups:  # depthwise: nothing to contract
    return sum(tap * k for tap, k in zip(taps, w.reshape(-1, outputs)))
  n, p, q, _ = taps[0].shape
  area, each = len(taps), outputs // groups
  x = jnp.stack([tap.reshape(-1, groups, inputs) for tap in taps], 2)  # [N P Q, G, area, I]
  x = x.swapaxes(0, 1).reshape(groups, n * p * q, area * inputs)
  w = w.reshape(area, inputs, groups, each).transpose(2, 0, 1, 3)
  y = x @ w.reshape(groups, area * inputs, each)
  return y.swapaxes(0, 1).reshape(n, p, q, outputs)


def _shifts(
  x: jax.Array, kernel: tuple[int, int], stride: int, padding: conv.Padding
) -> list[jax.Array]:
  """What each tap of a kernel meets: a list of [N, P, Q, C], row by row."""
  x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
  p, q = ((n - k) // stride + 1 for n, k in zip(x.shape[1:3], kernel))
  rows, columns = stride * (p - 1) + 1, stride * (q - 1) + 1
  return [
    x[:, i : i + rows : stride, j : j + columns : stride]
    for i in range(kernel[0])
    for j in range(kernel[1])
  ]
