"""Equalised learning rate: weights are stored at variance 1 and scaled where they are used.

  used weight = stored * gain * m / sqrt(fan_in),  stored ~ N(0, 1 / m^2);  used bias = stored * m.

Adam moves every stored weight by about its rate, whatever its gradient, so with this scaling all
layers learn equally fast, however wide they are; m slows a layer down (StyleGAN's mapping network:
0.01). ProGAN puts He's gain sqrt 2 into the weights, StyleGAN2 behind the activation (`lrelu`).
Source: Karras et al., 2018, arXiv:1710.10196, section 4.1; 2019, arXiv:1812.04948, appendix C.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from gm.nn import conv, fold, init, resample

RESAMPLING = (*resample.RESAMPLING, "nearest", "mean")


def kernel(
  module: nn.Module,
  shape: Sequence[int],
  *,
  gain: float = 1.0,
  lr_mult: float = 1.0,
  name: str = "kernel",
) -> jax.Array:
  """The scaled weight [..., in, out] of a layer; fan_in is all but the last axis.

  Args:
    module: the layer that owns it, inside its `nn.compact` call.
    shape: of the weight.
    gain: standard deviation of the output for a white input of variance 1.
    lr_mult: m.
    name: of the parameter.
  """
  stored = module.param(name, init.normal(1 / lr_mult), tuple(shape), jnp.float32)
  return stored * (gain * lr_mult / math.sqrt(math.prod(shape[:-1])))


def bias(
  module: nn.Module, features: int, *, start: float = 0.0, lr_mult: float = 1.0
) -> jax.Array:
  """The bias [features] of a layer, `start` at first."""
  stored = module.param("bias", init.constant(start / lr_mult), (features,), jnp.float32)
  return stored * lr_mult


def lrelu(x: jax.Array, *, gain: float = math.sqrt(2)) -> jax.Array:
  """Leaky ReLU of slope 0.2 times sqrt 2, which keeps a variance of about 1 (StyleGAN2).

  >>> [round(v, 4) for v in lrelu(jnp.array([1.0, -5.0])).tolist()]
  [1.4142, -1.4142]
  """
  return nn.leaky_relu(x, 0.2) * gain


class Dense(nn.Module):
  """x W + b with an equalised learning rate: [..., I] -> [..., features].

  Attributes:
    features: outputs.
    gain: in the weight.
    lr_mult: m, of weight and bias.
    use_bias, bias_start: whether there is one, and where it starts.
  """

  features: int
  gain: float = 1.0
  lr_mult: float = 1.0
  use_bias: bool = True
  bias_start: float = 0.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps x."""
    w = kernel(self, (x.shape[-1], self.features), gain=self.gain, lr_mult=self.lr_mult)
    y = x.astype(self.dtype) @ w.astype(self.dtype)
    if self.use_bias:
      b = bias(self, self.features, start=self.bias_start, lr_mult=self.lr_mult)
      y = y + b.astype(self.dtype)
    return y


class Conv(nn.Module):
  """Convolution with an equalised learning rate: [N, H, W, I] -> [N, P, Q, features].

  Attributes:
    features: channels of the output.
    kernel_size, strides, padding: as in `gm.nn.conv.conv`.
    resampling: "nearest" upsamples before the convolution, "mean" pools after it and before the
      bias (ProGAN, see `gm.nn.fold`); "up" and "down" by an FIR filter (StyleGAN2, see
      `gm.nn.resample.fir_conv`). All are "SAME" and by 2.
    gain, lr_mult: in the weight; lr_mult of the bias too.
    use_bias: whether there is one; it starts at 0.
  """

  features: int
  kernel_size: int = 3
  strides: int = 1
  padding: conv.Padding = "SAME"
  resampling: str = "none"
  gain: float = 1.0
  lr_mult: float = 1.0
  use_bias: bool = True
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Convolves x."""
    if self.resampling not in RESAMPLING:
      raise ValueError(f"resampling {self.resampling!r}: choose one of {', '.join(RESAMPLING)}")
    k = self.kernel_size
    w = kernel(self, (k, k, x.shape[-1], self.features), gain=self.gain, lr_mult=self.lr_mult)
    x, w = x.astype(self.dtype), w.astype(self.dtype)
    if self.resampling == "nearest":
      y = fold.up_conv(x, w)
    elif self.resampling == "mean":
      y = fold.conv_pool(x, w)
    elif self.resampling in ("up", "down"):
      y = resample.fir_conv(x, w, resampling=self.resampling)
    else:
      y = conv.conv(x, w, strides=self.strides, padding=self.padding)
    if self.use_bias:
      y = y + bias(self, self.features, lr_mult=self.lr_mult).astype(self.dtype)
    return y
