"""EfficientNet-Lite0, a network of photographs whose weights are published (gm/weights).

Tan and Le, EfficientNet, 2019, arXiv:1905.11946; the Lite form (R. Liu, 2020, in TensorFlow's TPU
repository) has no squeeze-and-excitation and ReLU6 for swish. 4,652,008 parameters.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from gm.nn import conv, grouped, norm

EPS = 1e-3  # of all batch norms
STAGES = (  # kernel, stride, expansion, channels, blocks
  (3, 1, 1, 16, 1),
  (3, 2, 6, 24, 2),
  (5, 2, 6, 40, 2),
  (3, 2, 6, 80, 3),
  (5, 1, 6, 112, 3),
  (5, 2, 6, 192, 4),
  (3, 1, 6, 320, 1),
)


class Depthwise(nn.Module):
  """Convolution of every channel by itself: [N, H, W, C] -> [N, P, Q, C]; kernel [k, k, 1, C]."""

  kernel_size: int
  stride: int = 1

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Convolves x."""
    shape = (self.kernel_size, self.kernel_size, 1, x.shape[-1])
    w = self.param("kernel", nn.initializers.he_normal(), shape, jnp.float32)
    x = lax.optimization_barrier(x)  # else what makes x is computed anew for each of the k^2 taps
    return grouped.grouped(x, w, groups=x.shape[-1], strides=self.stride)


class Block(nn.Module):
  """Inverted residual: 1x1 to `expansion` times the channels, depthwise, 1x1 back; plus x if alike.

  No activation follows the last 1x1 (arXiv:1801.04381).
  """

  features: int
  kernel_size: int
  stride: int
  expansion: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps x."""
    y = x
    if self.expansion != 1:
      y = conv.Conv(self.expansion * x.shape[-1], 1, use_bias=False, name="expand")(y)
      y = nn.relu6(_norm("expand_norm")(y, False))
    y = Depthwise(self.kernel_size, self.stride, name="depthwise")(y)
    y = nn.relu6(_norm("depthwise_norm")(y, False))
    y = conv.Conv(self.features, 1, use_bias=False, name="project")(y)
    y = _norm("project_norm")(y, False)
    return x + y if self.stride == 1 and y.shape == x.shape else y


class EfficientNetLite0(nn.Module):
  """Images [B, H, W, 3] in [-1, 1] -> logits [B, num_classes] and a map per stage, float32.

  Any size of image; it was trained at 224 x 224 on the 1,000 classes of ImageNet. Batch norm uses
  the stored averages throughout. Under `jit`, layers whose output is not used are not computed.
  """

  num_classes: int = 1000
  stem: int = 32
  head: int = 1280
  stages: tuple = STAGES

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
    """Classifies x."""
    x = (127.5 * (x + 1.0) - 127.0) / 128.0  # as it was trained: bytes less 127, over 128
    x = conv.Conv(self.stem, 3, 2, use_bias=False, name="stem")(x)
    x = nn.relu6(_norm("stem_norm")(x, False))
    maps, num = [], 0
    for kernel_size, stride, expansion, features, blocks in self.stages:
      for i in range(blocks):
        x = Block(features, kernel_size, 1 if i else stride, expansion, name=f"block{num}")(x)
        num += 1
      maps.append(x)
    x = conv.Conv(self.head, 1, use_bias=False, name="head")(x)
    x = nn.relu6(_norm("head_norm")(x, False))
    return nn.Dense(self.num_classes, name="classifier")(x.mean((1, 2))), maps


def _norm(name: str) -> norm.BatchNorm:
  return norm.BatchNorm(eps=EPS, name=name)
