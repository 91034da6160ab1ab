"""Normalisation of images and feature rows: batch (and conditional), instance, layer, group, pixel.

The first four differ only in which (sample, channel) pairs share a mean and a variance, so they
share one function. It reads the input once (mean and mean of squares together, in float32) and has
its own derivative, again one reading, 1.3 to 1.5 times faster on a CPU than autodiff's and, made
of ordinary operations, can itself be differentiated. The one-pass variance loses accuracy where
|mean| / std of the input exceeds about 1000.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from gm.nn import embed

KINDS = ("batch", "instance", "layer", "group")


def _pool(table: jax.Array, kind: str, groups: int) -> jax.Array:
  """Averages a table [N, C] of per-sample means over what shares statistics, to broadcast."""
  if kind == "instance":
    return table
  if kind == "layer":
    return table.mean(1, keepdims=True)
  n, c = table.shape
  if kind == "group":
    return jnp.repeat(table.reshape(n, groups, c // groups).mean(2), c // groups, axis=1)
  means = table.reshape(groups, n // groups, c).mean(1)
  return means if groups == 1 else jnp.repeat(means, n // groups, axis=0)


def _moments(x: jax.Array, kind: str, groups: int, eps: float) -> tuple[jax.Array, ...]:
  mean = _pool(x.mean(1), kind, groups)
  var = jnp.maximum(_pool((x * x).mean(1), kind, groups) - mean * mean, 0.0)
  return mean, var, lax.rsqrt(var + eps)


def _scaled(x, scale, bias, mean, inv):  # x [N, S, C], the others broadcast against [N, C]
  a = inv * scale
  return x * a[:, None] + (bias - mean * a)[:, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _normalize(kind, groups, eps, x, scale, bias):
  """Returns (x - mean) / sqrt(var + eps) * scale + bias, mean, var (constants to autodiff)."""
  mean, var, inv = _moments(x, kind, groups, eps)
  return _scaled(x, scale, bias, mean, inv), mean, var


def _normalize_fwd(kind, groups, eps, x, scale, bias):
  mean, var, inv = _moments(x, kind, groups, eps)
  return (_scaled(x, scale, bias, mean, inv), mean, var), (x, scale, mean, inv)


def _normalize_bwd(kind, groups, eps, residuals, cotangents):
  x, scale, mean, inv = residuals
  dy, space = cotangents[0], x.shape[1]
  s1 = dy.mean(1)  # [N, C]
  s2 = ((dy * x).mean(1) - mean * s1) * inv  # the mean of dy times the normalised x
  # dx = inv (dz - mean(dz) - z mean(dz z)), z the normalised x and dz = scale dy: linear in x, dy
  c1 = -inv * inv * _pool(scale * s2, kind, groups)
  c0 = -inv * _pool(scale * s1, kind, groups) - mean * c1
  dx = (inv * scale)[:, None] * dy + c1[:, None] * x + c0[:, None]
  if scale.ndim == 1:  # one for all samples
    s1, s2 = s1.sum(0), s2.sum(0)
  return dx, space * s2, space * s1


_normalize.defvjp(_normalize_fwd, _normalize_bwd)


def normalize(
  x: jax.Array, scale: jax.Array, bias: jax.Array, *, kind: str, groups: int = 1, eps: float = 1e-5
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Normalises, scales and shifts: (x - mean) / sqrt(var + eps) * scale + bias, var biased.

  Args:
    x: [N, ..., C].
    scale: [C], or [N, C] for each sample its own.
    bias: like scale.
    kind: "batch": statistics over all but C; "instance": over all but N and C; "layer": over all
      but N; "group": as layer, consecutive parts of C apart.
    groups: for "batch": consecutive parts of the batch with statistics of their own (one per
      device, say); for "group": parts of C.
    eps: added to the variance.

  Returns:
    The result like x, and mean and variance of shape [1 or N, 1 or C]; these two are constants to
    autodiff.

  Raises:
    ValueError: for an unknown kind, or a batch or channels that do not split into groups.

  >>> x, one = jnp.array([[1.0], [3.0]]), jnp.ones(1)
  >>> y, mean, var = normalize(x, one, 0 * one, kind="batch", eps=0.0)
  >>> y.ravel().tolist(), mean.item(), var.item()
  ([-1.0, 1.0], 2.0, 1.0)
  """
  if kind not in KINDS:
    raise ValueError(f"normalisation {kind!r}: choose one of {', '.join(KINDS)}")
  if kind == "group" and x.shape[-1] % groups:
    raise ValueError(
      f"{x.shape[-1]} channels do not split into {groups} groups: change the widths or the groups"
      " in --config.model"
    )
  if kind != "group" and x.shape[0] % groups:
    raise ValueError(
      f"a batch of {x.shape[0]} does not split into {groups} groups: change --config.batch_size"
    )
  flat = x.reshape(x.shape[0], -1, x.shape[-1]).astype(jnp.float32)
  y, mean, var = _normalize(kind, groups, eps, flat, scale, bias)
  return y.reshape(x.shape).astype(x.dtype), lax.stop_gradient(mean), lax.stop_gradient(var)


class BatchNorm(nn.Module):
  """Batch normalisation as in torch: batch statistics in training, running averages otherwise.

  running <- momentum * running + (1 - momentum) * batch, the running variance from the unbiased one
  (n / (n - 1)). The averages live in "batch_stats" and move only where `apply` is given
  `mutable=["batch_stats"]`: a pass without it uses the statistics of its batch and leaves no trace.
  With groups the averages get the mean over groups.
  """

  momentum: float = 0.9
  eps: float = 1e-5
  scale_init: Callable = nn.initializers.ones
  bias_init: Callable = nn.initializers.zeros
  groups: int = 1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Normalises [N, ..., C] over all but C."""
    c = x.shape[-1]
    scale = self.param("scale", self.scale_init, (c,), jnp.float32)
    bias = self.param("bias", self.bias_init, (c,), jnp.float32)
    return _batch_norm(self, x, scale, bias, train)


class ConditionalBatchNorm(nn.Module):
  """Batch normalisation whose scale and bias are functions of a condition c.

  (1 + L_s(c)) (x - mean) / sqrt(var + eps) + L_b(c). For labels [N] i32 the maps L are tables,
  one row per class, and another label gives NaN; for vectors [N, E] they are dense layers without
  bias. At `kernel_init` zero it is the plain one. Statistics and their averages are those of
  `BatchNorm`, over all conditions together.

  Attributes:
    num_classes: of the labels; 0 where the condition is a vector.
    kernel_init: of tables and kernels.

  Source: Dumoulin et al., 2017, arXiv:1610.07629; Brock et al., 2019, arXiv:1809.11096, figure 15.
  """

  num_classes: int = 0
  momentum: float = 0.9
  eps: float = 1e-5
  kernel_init: Callable = nn.initializers.zeros
  groups: int = 1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, condition: jax.Array, train: bool) -> jax.Array:
    """Normalises [N, ..., C] over all but C, for conditions [N] or [N, E]."""
    rows = self.num_classes or condition.shape[-1]
    tables = [self.param(n, self.kernel_init, (rows, x.shape[-1])) for n in ("scale", "bias")]
    if self.num_classes:
      scale, bias = (embed.rows(t, condition) for t in tables)
    else:
      c = condition.astype(self.dtype)
      scale, bias = ((c @ t.astype(self.dtype)).astype(jnp.float32) for t in tables)
    return _batch_norm(self, x, 1 + scale, bias, train)


def _batch_norm(
  module: Any, x: jax.Array, scale: jax.Array, bias: jax.Array, train: bool
) -> jax.Array:
  """What the two batch normalisations share; scale and bias [C] or [N, C]."""
  c = x.shape[-1]
  running_mean = module.variable("batch_stats", "mean", jnp.zeros, (c,), jnp.float32)
  running_var = module.variable("batch_stats", "var", jnp.ones, (c,), jnp.float32)
  if not train:
    a = lax.rsqrt(running_var.value + module.eps) * scale
    b = bias - running_mean.value * a
    if scale.ndim == 2:
      a, b = (t.reshape(len(x), *[1] * (x.ndim - 2), c) for t in (a, b))
    return (x.astype(jnp.float32) * a + b).astype(module.dtype)
  y, mean, var = normalize(x, scale, bias, kind="batch", groups=module.groups, eps=module.eps)
  if module.is_mutable_collection("batch_stats") and not module.is_initializing():
    n = x.size // c // module.groups
    move = lambda old, new: module.momentum * old + (1 - module.momentum) * new
    running_mean.value = move(running_mean.value, mean.mean(0))
    running_var.value = move(running_var.value, var.mean(0) * (n / max(n - 1, 1)))
  return y.astype(module.dtype)


class InstanceNorm(nn.Module):
  """Normalises every map of every sample; affine per channel (WGAN-GP), or not (CycleGAN)."""

  affine: bool = True
  eps: float = 1e-5
  scale_init: Callable = nn.initializers.ones
  bias_init: Callable = nn.initializers.zeros
  dtype: Any = jnp.float32
  kind = "instance"

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Normalises [N, ..., C] over all but N and C; `train` makes no difference."""
    if not self.affine:
      one = jnp.ones(x.shape[-1])
      return normalize(x, one, 0 * one, kind=self.kind, eps=self.eps)[0].astype(self.dtype)
    return _affine(self, x)


class LayerNorm(nn.Module):
  """Normalises every sample over space and channels together; affine per channel (WGAN-GP)."""

  eps: float = 1e-5
  scale_init: Callable = nn.initializers.ones
  bias_init: Callable = nn.initializers.zeros
  dtype: Any = jnp.float32
  kind = "layer"

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Normalises [N, ..., C] over all but N; `train` makes no difference."""
    return _affine(self, x)


class GroupNorm(nn.Module):
  """Normalises groups of channels of every sample over space; affine per channel.

  Source: Wu and He, 2018, arXiv:1803.08494.
  """

  groups: int = 32
  eps: float = 1e-6
  scale_init: Callable = nn.initializers.ones
  bias_init: Callable = nn.initializers.zeros
  dtype: Any = jnp.float32
  kind = "group"

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Normalises [N, ..., C]; `train` makes no difference."""
    return _affine(self, x, groups=self.groups)


def _affine(module: Any, x: jax.Array, **how: Any) -> jax.Array:
  scale = module.param("scale", module.scale_init, (x.shape[-1],), jnp.float32)
  bias = module.param("bias", module.bias_init, (x.shape[-1],), jnp.float32)
  return normalize(x, scale, bias, kind=module.kind, eps=module.eps, **how)[0].astype(module.dtype)


def pixel_norm(x: jax.Array, *, eps: float = 1e-8) -> jax.Array:
  """Divides every pixel's features by their root mean square: x / sqrt(mean_c x^2 + eps) (ProGAN).

  >>> pixel_norm(jnp.array([3.0, -3.0])).tolist()
  [1.0, -1.0]
  """
  return x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + eps)


LAYERS = {"batch": BatchNorm, "instance": InstanceNorm, "layer": LayerNorm}


def layer(kind: str, *, scale_init: Callable, dtype: Any) -> Callable:
  """Returns the layer of a name as f(x, train): none, batch, instance or layer.

  Raises:
    ValueError: for another name.
  """
  if kind == "none":
    return lambda x, train: x
  if kind not in LAYERS:
    raise ValueError(
      f"norm {kind!r}: choose none, {', '.join(LAYERS)} (the norm in --config.model)"
    )
  return LAYERS[kind](scale_init=scale_init, dtype=dtype)
