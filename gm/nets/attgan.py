"""AttGAN's networks (He et al., 2019, arXiv:1711.10678): convolutions 4 x 4 that halve and double.

With widths (64, 128, 256, 512, 1024), 128 x 128 pixels and 13 attributes the encoder has 11,148,160
parameters, the decoder 32,311,043 and the discriminator, features=1024, 44,718,990. The defaults
are those of the authors' TensorFlow code; its PyTorch port has slope=0.01 and eps=1e-5 everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from gm.nn import conv, embed, init, norm


def check(image: Sequence[int], widths: Sequence[int], flag: str = "widths") -> None:
  """Raises ValueError unless the sides of an image (H, W, ...) halve for each width.

  >>> check((128, 64, 3), (64,) * 5)
  """
  factor = 2 ** len(widths)
  if any(n % factor for n in image[:2]):
    raise ValueError(
      f"images of {image[0]}x{image[1]} pixels do not halve {len(widths)} times: set"
      f" --config.data.image_size to a multiple of {factor}, or give --config.model.{flag} fewer"
    )


class Encoder(nn.Module):
  """Images [N, H, W, C] -> what each layer makes of them, [N, H / 2, W / 2, widths[0]] and so on.

  Attributes:
    widths: channels, each at half of the size; every layer has a batch norm and LeakyReLU.
    slope: of LeakyReLU.
    momentum: of the running averages.
    eps: of the batch norms.
  """

  widths: Sequence[int]
  slope: float = 0.2
  momentum: float = 0.999
  eps: float = 1e-3
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = True) -> tuple[jax.Array, ...]:
    """Encodes."""
    how = {"use_bias": False, "kernel_init": init.glorot(), "dtype": self.dtype}
    found = []
    for i, width in enumerate(self.widths):
      x = conv.Conv(width, 4, 2, padding=1, name=f"conv{i}", **how)(x)
      x = norm.BatchNorm(self.momentum, self.eps, name=f"norm{i}", dtype=self.dtype)(x, train)
      found.append(x := nn.leaky_relu(x, self.slope))
    return tuple(found)


class Decoder(nn.Module):
  """The encoder's layers and attributes [N, A] -> images [N, H, W, channels] in (-1, 1), float32.

  The last layer of the encoder, joined with the attributes, is doubled once for each of its layers,
  with a batch norm and ReLU in all but the last. After the first ones the encoder's layer of that
  size (`shortcuts`) and the attributes again (`injections`) are joined on.

  Attributes:
    channels: of the result.
    widths: of the encoder.
    shortcuts: 0 to len(widths) - 1.
    injections: likewise.
    momentum: of the running averages.
    eps: of the batch norms.
  """

  channels: int
  widths: Sequence[int]
  shortcuts: int = 1
  injections: int = 1
  momentum: float = 0.999
  eps: float = 1e-3
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, z: Sequence[jax.Array], attributes: jax.Array, train: bool = True
  ) -> jax.Array:
    """Decodes."""
    how = {"kernel_init": init.glorot(), "dtype": self.dtype}
    x = embed.tiled(z[-1], attributes)
    for i, width in enumerate(reversed(self.widths[1:])):
      x = conv.ConvTranspose(width, use_bias=False, name=f"deconv{i}", **how)(x)
      x = norm.BatchNorm(self.momentum, self.eps, name=f"norm{i}", dtype=self.dtype)(x, train)
      x = nn.relu(x)
      if i < self.shortcuts:
        x = jnp.concatenate([x, z[-2 - i]], axis=-1)
      if i < self.injections:
        x = embed.tiled(x, attributes)
    return jnp.tanh(conv.ConvTranspose(self.channels, name="last", **how)(x).astype(jnp.float32))


class Discriminator(nn.Module):
  """Images [N, H, W, C] -> (scores [N], logits of attributes [N, num_attributes]), float32.

  Convolutions with instance norm and LeakyReLU, and a head of two dense layers for each output.

  Attributes:
    widths: channels, each at half of the size.
    features: of the first layer of each head.
    num_attributes: of the second output.
    slope: of LeakyReLU.
    eps: of the instance norms.
  """

  widths: Sequence[int]
  features: int
  num_attributes: int
  slope: float = 0.2
  eps: float = 1e-6
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Judges."""
    how = {"kernel_init": init.glorot(), "dtype": self.dtype}
    for i, width in enumerate(self.widths):
      x = conv.Conv(width, 4, 2, padding=1, use_bias=False, name=f"conv{i}", **how)(x)
      x = norm.InstanceNorm(eps=self.eps, name=f"norm{i}", dtype=self.dtype)(x)
      x = nn.leaky_relu(x, self.slope)
    x = x.reshape(len(x), -1)

    def head(num, name):
      h = nn.leaky_relu(nn.Dense(self.features, name=f"{name}0", **how)(x), self.slope)
      return nn.Dense(num, name=f"{name}1", **how)(h).astype(jnp.float32)

    return head(1, "critic")[:, 0], head(self.num_attributes, "attributes")
