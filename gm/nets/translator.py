"""The residual translator of Johnson et al. (2016, arXiv:1603.08155) of CycleGAN and StarGAN.

An image is convolved, halved, changed by residual blocks, doubled and convolved to an image of its
own size. CycleGAN's for 256 pixels has base=64 and num_blocks=9, 11,378,179 parameters with three
channels; the one for 128 pixels num_blocks=6, 7,837,699. Sides are multiples of 2^num_halvings.
StarGAN's has num_blocks=6, halves and doubles by kernels of 4, and has no biases but those of its
norms: `Translator(3, num_blocks=6, **STARGAN)`.

Instance normalisation takes the mean of every map away, and with it how bright and of which colour
an image is as a whole; where that matters, as in small patches, layer normalisation keeps it.

With skip the image itself is added before the tanh, its colours mixed by a matrix that begins as
the identity. So a translator begins near the image and first learns what all colours have in
common; from a grey image, as else, it may take any colour for any other.

Reflected borders (CycleGAN) show no edge of zeros. With zeros (StarGAN) a constant input channel is
not constant any more near the borders; everywhere else instance normalisation takes it away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from gm.nn import conv, init
from gm.nn import norm as norms

PADS = ("reflect", "zero")
WHITE = 0.98  # the largest value of an image that is added; tanh has no inverse at 1
NORMS = ("instance", "layer")
STARGAN = {"pad": "zero", "affine": True, "kernel": 4, "use_bias": False, "scheme": "torch"}


def check(image: Sequence[int], num_halvings: int) -> None:
  """Raises ValueError unless the sides of an image (H, W, ...) halve so often.

  >>> check((256, 128, 3), 2)
  """
  factor = 2**num_halvings
  if any(n % factor or n < 2 * factor for n in image[:2]):
    raise ValueError(
      f"images of {image[0]}x{image[1]} pixels do not halve {num_halvings} times and leave 2: set"
      f" --config.data.image_size to multiples of {factor} from {2 * factor} on, or lower"
      " --config.model.num_halvings"
    )


def _identity(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
  return jnp.eye(*shape, dtype=dtype)


class Translator(nn.Module):
  """Images [N, H, W, I] -> images [N, H, W, channels] in (-1, 1), float32.

  Attributes:
    channels: of the result.
    base: channels of the first layer; each halving doubles them.
    num_blocks: residual blocks at the lowest resolution.
    num_halvings: of both sides.
    pad: what lies beyond the border: "reflect" or "zero". Of the layers that halve and double it is
      zero always.
    norm: "instance" or "layer".
    affine: instance norms have a scale and a shift (CycleGAN's Lua code, StarGAN), or not (its
      PyTorch code); layer norms have.
    skip: whether the image is added.
    kernel: of the layers that halve and double, 3 or 4.
    use_bias: of all convolutions.
    scheme: how weights start, see init.SCHEMES.
  """

  channels: int
  base: int = 64
  num_blocks: int = 9
  num_halvings: int = 2
  pad: str = "reflect"
  norm: str = "instance"
  affine: bool = False
  skip: bool = False
  kernel: int = 3
  use_bias: bool = True
  scheme: str = "dcgan"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Translates."""
    image = x
    x = nn.relu(self._norm(self._conv(x, self.base, 7, "first"), "first_norm"))
    width, kernel = self.base, self.kernel
    for i in range(self.num_halvings):
      width *= 2
      how = self._how(kernel**2 * x.shape[-1], stride=2)
      x = conv.Conv(width, kernel, 2, padding=1, name=f"down{i}", **how)(x)
      x = nn.relu(self._norm(x, f"down{i}_norm"))
    for i in range(self.num_blocks):
      h = nn.relu(self._norm(self._conv(x, width, 3, f"block{i}_0"), f"block{i}_0_norm"))
      x = x + self._norm(self._conv(h, width, 3, f"block{i}_1"), f"block{i}_1_norm")
    for i in range(self.num_halvings):
      width //= 2
      # torch's transposed convolution of stride 2, padding 1 and, for kernel 3, output padding 1
      pads = ((kernel - 2, 2),) * 2
      how = self._how(kernel**2 * width, stride=2, transposed=True)
      x = conv.ConvTranspose(width, kernel, 2, padding=pads, name=f"up{i}", **how)(x)
      x = nn.relu(self._norm(x, f"up{i}_norm"))
    x = self._conv(x, self.channels, 7, "last").astype(jnp.float32)
    if self.skip:
      image = jnp.arctanh(jnp.clip(image.astype(jnp.float32), -WHITE, WHITE))
      mixed = nn.Dense(self.channels, use_bias=False, kernel_init=_identity, name="colours")
      x = x + mixed(image)
    return jnp.tanh(x)

  def _conv(self, x: jax.Array, features: int, size: int, name: str) -> jax.Array:
    if self.pad not in PADS:
      raise ValueError(f"pad {self.pad!r}: choose {' or '.join(PADS)} (--config.model.pad)")
    padding = size // 2
    if self.pad == "reflect":
      x = jnp.pad(x, ((0, 0), *[(padding, padding)] * 2, (0, 0)), mode="reflect")
      padding = 0
    how = self._how(size**2 * x.shape[-1])
    return conv.Conv(features, size, padding=padding, name=name, **how)(x)

  def _how(self, fan: int, *, stride: int = 1, transposed: bool = False) -> dict:
    of = init.scheme(self.scheme)
    first = {"kernel_init": of.kernel(transposed, stride), "bias_init": of.bias(fan)}
    return {**first, "use_bias": self.use_bias, "dtype": self.dtype}

  def _norm(self, x: jax.Array, name: str) -> jax.Array:
    how = {"scale_init": init.scheme(self.scheme).scale, "dtype": self.dtype}
    if self.norm == "layer":
      return norms.LayerNorm(name=name, **how)(x)
    if self.norm != "instance":
      raise ValueError(f"norm {self.norm!r}: choose {' or '.join(NORMS)} (--config.model.norm)")
    return norms.InstanceNorm(affine=self.affine, name=name, **how)(x)
