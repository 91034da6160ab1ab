"""The networks of SRGAN (Ledig et al., 2017, arXiv:1609.04802).

SRResNet: residual blocks at the low resolution, all of stride 1, and pixel shuffles at the end, so
that an image of any size becomes one 4 times as wide and high. With base=64 and 16 blocks it has
1,548,547 parameters; with biases before batch norms too, and one slope for each activation in place
of one for each channel, 1,549,462. D sees images of one size: 23,563,649 parameters at 96 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from gm.nn import conv, norm, resample

FACTOR = 4
SLOPES = ("channel", "layer")
LASTS = ("linear", "tanh")
HEADS = ("dense", "pool")


def reach(num_blocks: int) -> int:
  """Pixels of the low resolution, to each side, that a pixel of SRResNet's result depends on.

  Both 9 x 9 kernels, the second at four times the resolution; two 3 x 3 in every block and one
  after; one before each shuffle, the second at twice the resolution.

  >>> reach(16)
  40
  """
  return 4 + 2 * num_blocks + 1 + 1 + 1 + 1


def enlarged(x: jax.Array) -> jax.Array:
  """Four times as wide and high by bicubic: [N, h, w, C] -> [N, 4 h, 4 w, C].

  >>> enlarged(jnp.ones((1, 2, 3, 1))).shape
  (1, 8, 12, 1)
  """
  n, h, w, c = x.shape
  return jax.image.resize(x, (n, FACTOR * h, FACTOR * w, c), "cubic")


class PReLU(nn.Module):
  """max(0, x) + a min(0, x) with a learned slope a, 0.25 at first: of each channel, or one."""

  shared: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Bends x."""
    shape = (1,) if self.shared else (x.shape[-1],)
    slope = self.param("slope", nn.initializers.constant(0.25), shape, jnp.float32)
    return jnp.maximum(x, 0) + slope.astype(x.dtype) * jnp.minimum(x, 0)


class Generator(nn.Module):
  """Low-resolution images [N, h, w, C] in [0, 1] -> images [N, 4 h, 4 w, C] about [-1, 1], float32.

  Attributes:
    channels: of the images.
    base: channels of every layer.
    num_blocks: residual blocks.
    slopes: of PReLU, one for each "channel" or "layer".
    bias: convolutions before batch norms have one too.
    last: "linear", or "tanh".
    skip: the image, enlarged by bicubic, is added, and what the last layer gives begins at 0: so a
      short training has not to learn first what an image is (as in BasicSR's MSRResNet).
  """

  channels: int = 3
  base: int = 64
  num_blocks: int = 16
  slopes: str = "channel"
  bias: bool = False
  last: str = "linear"
  skip: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Enlarges."""
    bend = lambda name: PReLU(self.slopes == "layer", name=name)
    layer = lambda n, size, name, bias=True: conv.Conv(
      n, size, use_bias=bias, name=name, dtype=self.dtype
    )

    def normed(x, name):  # convolved before
      x = layer(self.base, 3, name, self.bias)(x)
      return norm.BatchNorm(name=f"{name}_norm", dtype=self.dtype)(x, train)

    small = x
    first = x = bend("first_slope")(layer(self.base, 9, "first")(x))
    for i in range(self.num_blocks):
      y = bend(f"block{i}_slope")(normed(x, f"block{i}_0"))
      x = x + normed(y, f"block{i}_1")
    x = first + normed(x, "after")
    for i in range(2):
      x = resample.pixel_shuffle(layer(4 * self.base, 3, f"up{i}")(x))
      x = bend(f"up{i}_slope")(x)
    start = nn.initializers.zeros if self.skip else nn.initializers.lecun_normal()
    x = conv.Conv(self.channels, 9, name="last", kernel_init=start, dtype=self.dtype)(x)
    x = x.astype(jnp.float32) + (2 * enlarged(small) - 1 if self.skip else 0.0)
    return jnp.tanh(x) if self.last == "tanh" else x


class Discriminator(nn.Module):
  """Images [N, H, W, C] -> logits [N], float32.

  Convolutions 3 x 3, every second of stride 2, each but the first with batch norm, LeakyReLU 0.2;
  then a hidden layer.

  Attributes:
    widths: channels of the convolutions.
    hidden: units.
    bias: convolutions before batch norms have one too.
    head: "dense" reads the last map whole, so images are of one size; "pool" its mean.
  """

  widths: Sequence[int] = (64, 64, 128, 128, 256, 256, 512, 512)
  hidden: int = 1024
  bias: bool = False
  head: str = "dense"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
    """Scores."""
    for i, width in enumerate(self.widths):
      how = {"use_bias": i == 0 or self.bias, "padding": 1, "dtype": self.dtype}
      x = conv.Conv(width, 3, 1 + i % 2, name=f"conv{i}", **how)(x)
      if i:
        x = norm.BatchNorm(name=f"norm{i}", dtype=self.dtype)(x, train)
      x = nn.leaky_relu(x, 0.2)
    x = x.mean((1, 2)) if self.head == "pool" else x.reshape(len(x), -1)
    x = nn.leaky_relu(nn.Dense(self.hidden, name="hidden", dtype=self.dtype)(x), 0.2)
    return nn.Dense(1, name="last", dtype=self.dtype)(x)[:, 0].astype(jnp.float32)
