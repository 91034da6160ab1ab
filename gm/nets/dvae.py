"""The discrete VAE of DALL-E: images to logits of a map of codes, and codes to images.

| nets | num_codes | code_dim | width | num_blocks | parameters |
|---|---|---|---|---|---|
| DALLE-pytorch's script: `Encoder`, `Decoder` | 8192 | 512 | 256 | 2 | 16,672,259 |
| the paper: `PublishedEncoder` | 8192 | | 256 | 2 | 53,786,240 |
| and `PublishedDecoder` | 8192 | 128 | 256 | 2 | 43,829,766 |

The table of codes is the decoder's first layer, so a decoder takes numbers of codes or, as in
training, weights of all codes at each position. None has a normalisation.

Source: Ramesh et al., 2021, arXiv:2102.12092; github.com/lucidrains/DALLE-pytorch at 58c1e1a and
github.com/openai/DALL-E at 5be4b23.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from gm.nn import conv, init, resample

EPSILON = 0.1  # pixels in [0, 1] are mapped to [EPSILON, 1 - EPSILON]


def inside(x: jax.Array) -> jax.Array:
  """Pixels in [0, 1] to where their logit is finite; `outside` is the way back.

  >>> round(inside(jnp.array(1.0)).item(), 4), outside(inside(jnp.array(0.5))).item()
  (0.9, 0.5)
  """
  return (1 - 2 * EPSILON) * x + EPSILON


def outside(x: jax.Array) -> jax.Array:
  """Undoes `inside`; what lies beyond is cut off."""
  return jnp.clip((x - EPSILON) / (1 - 2 * EPSILON), 0, 1)


class Codes(nn.Module):
  """A table [K, D]: numbers i32 [...] -> [..., D], or weights f32 [..., K] -> their mean code."""

  num_codes: int
  features: int
  use_bias: bool = False
  table_init: Any = nn.initializers.normal(1.0)
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, y: jax.Array) -> jax.Array:
    """Looks codes up."""
    table = self.param("table", self.table_init, (self.num_codes, self.features))
    table = table.astype(self.dtype)
    z = table[y] if y.dtype == jnp.int32 else y.astype(self.dtype) @ table
    if self.use_bias:
      z = z + self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
    return z


def _conv(kind: Any, features: int, size: int, fan: int, name: str, dtype: Any, **how: Any) -> Any:
  transpose = kind is conv.ConvTranspose
  kernel, bias = init.torch(transpose=transpose), init.torch_bias(fan)
  how |= {"kernel_init": kernel, "bias_init": bias, "dtype": dtype, "name": name}
  return kind(features, size, **how)


class Block(nn.Module):
  """x + conv 1 x 1 (relu(conv 3 x 3 (relu(conv 3 x 3 (x)))))."""

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, h, w, C] -> the same."""
    c = x.shape[-1]
    h = nn.relu(_conv(conv.Conv, c, 3, 9 * c, "conv0", self.dtype)(x))
    h = nn.relu(_conv(conv.Conv, c, 3, 9 * c, "conv1", self.dtype)(h))
    return x + _conv(conv.Conv, c, 1, c, "conv2", self.dtype)(h)


class Encoder(nn.Module):
  """Images [N, H, W, C] in [-1, 1] -> logits of codes, f32 [N, H / 2^L, W / 2^L, num_codes]."""

  num_codes: int
  width: int = 64
  num_halvings: int = 3  # L
  num_blocks: int = 0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Encodes."""
    for i in range(self.num_halvings):
      down = _conv(conv.Conv, self.width, 4, 16 * x.shape[-1], f"down{i}", self.dtype, strides=2)
      x = nn.relu(down(x))
    for i in range(self.num_blocks):
      x = Block(self.dtype, name=f"block{i}")(x)
    last = _conv(conv.Conv, self.num_codes, 1, self.width, "last", self.dtype)
    return last(x).astype(jnp.float32)


class Decoder(nn.Module):
  """Codes i32 [N, h, w], or weights [N, h, w, num_codes], -> [N, 2^L h, 2^L w, channels], float32.

  Linear in the last layer.
  """

  channels: int
  num_codes: int
  code_dim: int = 512
  width: int = 64
  num_halvings: int = 3
  num_blocks: int = 0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, y: jax.Array) -> jax.Array:
    """Decodes."""
    x = Codes(self.num_codes, self.code_dim, dtype=self.dtype, name="codes")(y)
    if self.num_blocks:
      x = _conv(conv.Conv, self.width, 1, self.code_dim, "first", self.dtype)(x)
    for i in range(self.num_blocks):
      x = Block(self.dtype, name=f"block{i}")(x)
    for i in range(self.num_halvings):  # torch counts the fan of a bias on the output channels too
      x = nn.relu(
        _conv(conv.ConvTranspose, self.width, 4, 16 * self.width, f"up{i}", self.dtype)(x)
      )
    last = _conv(conv.Conv, self.channels, 1, self.width, "last", self.dtype)
    return last(x).astype(jnp.float32)


# ------------------------------------------------------------------------ as the authors published


def _published(features: int, size: int, name: str, dtype: Any) -> conv.Conv:
  kernel = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
  return conv.Conv(features, size, kernel_init=kernel, dtype=dtype, name=name)


class Bottleneck(nn.Module):
  """x, through a convolution 1 x 1 where the width changes, + gain times four convolutions of relu.

  Three of them have a quarter of the features.
  """

  features: int
  sizes: tuple[int, ...]
  gain: float
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, h, w, C] -> [N, h, w, features]."""
    h = x
    if x.shape[-1] != self.features:
      x = _published(self.features, 1, "id", self.dtype)(x)
    for i, size in enumerate(self.sizes):
      features = self.features // 4 if i < 3 else self.features
      h = _published(features, size, f"conv{i}", self.dtype)(nn.relu(h))
    return x + self.gain * h


class PublishedEncoder(nn.Module):
  """The paper's: images in [-1, 1] -> logits of codes; max-pooling halves, and widths double."""

  num_codes: int
  width: int = 256
  num_halvings: int = 3
  num_blocks: int = 2
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Encodes."""
    gain = ((self.num_halvings + 1) * self.num_blocks) ** -2.0
    x = _published(self.width, 7, "first", self.dtype)(inside((x + 1) / 2))
    for i in range(self.num_halvings + 1):
      for j in range(self.num_blocks):
        block = Bottleneck(2**i * self.width, (3, 3, 3, 1), gain, self.dtype, name=f"block{i}_{j}")
        x = block(x)
      if i < self.num_halvings:
        x = nn.max_pool(x, (2, 2), (2, 2))
    return _published(self.num_codes, 1, "last", self.dtype)(nn.relu(x)).astype(jnp.float32)


class PublishedDecoder(nn.Module):
  """The paper's: codes or weights of them -> [N, H, W, channels]; the nearest pixel doubles."""

  channels: int
  num_codes: int
  code_dim: int = 128
  width: int = 256
  num_halvings: int = 3
  num_blocks: int = 2
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, y: jax.Array) -> jax.Array:
    """Decodes."""
    gain = ((self.num_halvings + 1) * self.num_blocks) ** -2.0
    table = nn.initializers.normal(1 / math.sqrt(self.num_codes))  # that of a convolution
    x = Codes(self.num_codes, self.code_dim, True, table, self.dtype, name="codes")(y)
    for i in reversed(range(self.num_halvings + 1)):
      for j in range(self.num_blocks):
        block = Bottleneck(2**i * self.width, (1, 3, 3, 3), gain, self.dtype, name=f"block{i}_{j}")
        x = block(x)
      if i:
        x = resample.nearest(x)
    return _published(self.channels, 1, "last", self.dtype)(nn.relu(x)).astype(jnp.float32)
