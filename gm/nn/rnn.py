"""Recurrent layers that are fast on a CPU.

What depends on the input alone is one matrix product before the loop over time, and the gradient of
the recurrent kernel one after it; inside the loop there is one small product per step. The
derivative is made of ordinary operations, so it can itself be differentiated in reverse mode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

Carry = tuple[jax.Array, jax.Array]  # h, c, each [B, H]


def _gates(a: jax.Array) -> tuple[jax.Array, ...]:
  """Pre-activations [..., 4 H] -> i, f, g, o."""
  i, f, g, o = jnp.split(a, 4, axis=-1)
  return nn.sigmoid(i), nn.sigmoid(f), jnp.tanh(g), nn.sigmoid(o)


def _run(inputs, mask, kernel, h, c):
  """The loop: [T, B, 4 H], [T, B, 1] -> h and c after every step, activations, all [T, B, ...]."""

  def step(carry, x):
    (h, c), (a, keep) = carry, x
    i, f, g, o = _gates(a + h @ kernel)
    new_c = f * c + i * g
    new = (o * jnp.tanh(new_c), new_c)
    h, c = (jnp.where(keep, n, old) for n, old in zip(new, carry))
    return (h, c), (h, c, jnp.concatenate([i, f, g, o], -1))

  return lax.scan(step, (h, c), (inputs, mask))[1]


@jax.custom_vjp
def _lstm(inputs, mask, kernel, h, c):
  """Returns h and c after every step, [T, B, H]."""
  return _run(inputs, mask, kernel, h, c)[:2]


def _lstm_fwd(inputs, mask, kernel, h, c):
  hs, cs, gates = _run(inputs, mask, kernel, h, c)
  before = lambda first, rest: jnp.concatenate([first[None], rest[:-1]])
  return (hs, cs), (mask, kernel, before(h, hs), before(c, cs), gates)


def _lstm_bwd(residuals, cotangents):
  mask, kernel, hs, cs, gates = residuals  # h and c before every step

  def step(carry, x):
    (dh, dc), (dh_out, dc_out, keep, c, act) = carry, x
    dh, dc = dh + dh_out, dc + dc_out
    i, f, g, o = jnp.split(act, 4, axis=-1)
    t = jnp.tanh(f * c + i * g)
    d_new = dc + dh * o * (1 - t * t)  # in the cell after this step
    da = jnp.concatenate(
      [
        d_new * g * i * (1 - i),
        d_new * c * f * (1 - f),
        d_new * i * (1 - g * g),
        dh * t * o * (1 - o),
      ],
      -1,
    )
    da = jnp.where(keep, da, 0.0)
    dh, dc = jnp.where(keep, da @ kernel.T, dh), jnp.where(keep, d_new * f, dc)
    return (dh, dc), da

  zero = jnp.zeros_like(hs[0])
  (dh, dc), da = lax.scan(step, (zero, zero), (*cotangents, mask, cs, gates), reverse=True)
  rows = lambda a: a.reshape(-1, a.shape[-1])
  return da, None, rows(hs).T @ rows(da), dh, dc


_lstm.defvjp(_lstm_fwd, _lstm_bwd)


class LSTM(nn.Module):
  """Long short-term memory over a sequence: x [B, T, F] -> h [B, T, H].

  a = [x, h] K + b, split into i, f, g, o;  c' = s(f + forget_bias) c + s(i) tanh(g),
  h' = s(o) tanh(c').  One kernel [F + H, 4 H] and one bias [4 H], as TensorFlow's cell has, whose
  order is i, g, f, o; torch has a second bias and no forget_bias.

  Attributes:
    features: H.
    forget_bias: added to the forget gate; not a parameter.
    reverse: from the last step to the first, outputs in the order of the inputs.
    kernel_init: of the whole kernel.

  Source: Hochreiter and Schmidhuber, 1997, with the forget gate of Gers et al., 2000.

  >>> lstm = LSTM(3)
  >>> (y, (h, c)), _ = lstm.init_with_output(jax.random.key(0), jnp.ones((2, 5, 4)))
  >>> y.shape, h.shape, bool((y[:, -1] == h).all())
  ((2, 5, 3), (2, 3), True)
  """

  features: int
  forget_bias: float = 1.0
  reverse: bool = False
  kernel_init: Callable = nn.initializers.glorot_uniform()
  bias_init: Callable = nn.initializers.zeros
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: jax.Array, carry: Carry | None = None, *, mask: jax.Array | None = None
  ) -> tuple[jax.Array, Carry]:
    """Runs over time.

    Args:
      x: [B, T, F].
      carry: h and c before the first step; zeros by default.
      mask: bool [B, T]; a step where it is False leaves h and c as they are, so that padding after
        a sequence changes nothing, in either direction.

    Returns:
      h after every step [B, T, H], and (h, c) after the last one (the first where `reverse`).
    """
    (n, t, size), width = x.shape, 4 * self.features
    shape = (size + self.features, width)
    kernel = self.param("kernel", self.kernel_init, shape, jnp.float32).astype(self.dtype)
    bias = self.param("bias", self.bias_init, (width,), jnp.float32)
    forget = jnp.zeros(4).at[1].set(self.forget_bias).repeat(self.features)
    x = x.swapaxes(0, 1).astype(self.dtype)  # time first
    inputs = x @ kernel[:size] + (bias + forget).astype(self.dtype)
    keep = jnp.ones((t, n, 1), bool) if mask is None else mask.T[..., None]
    if carry is None:
      carry = (jnp.zeros((n, self.features), self.dtype),) * 2
    if self.reverse:
      inputs, keep = inputs[::-1], keep[::-1]
    hs, cs = _lstm(inputs, keep, kernel[size:], *carry)
    last = (hs[-1], cs[-1])
    return (hs[::-1] if self.reverse else hs).swapaxes(0, 1), last
