"""The patch discriminator of pix2pix (Isola et al., 2017, arXiv:1611.07004): an output per patch.

CycleGAN and VQGAN use the same one. With widths (64, 128, 256, 512) each output sees 70 x 70 pixels
and a 256 x 256 image has 30 x 30 of them; 2,765,633 parameters with batch norm and 3 channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from gm.nn import conv, init
from gm.nn import norm as norms

NORMS = ("batch", "instance", "layer", "none")


def grid(size: int, num_widths: int, padding: int = 1) -> int:
  """Returns the side of the output for images of `size`: 4 x 4 windows, at the end at stride 1.

  Raises:
    ValueError: if nothing is left.

  >>> grid(256, 4), grid(256, 4, padding=2)
  (30, 35)
  """
  side = size
  for i in range(num_widths + 1):
    side = (side + 2 * padding - 4) // (2 if i < max(1, num_widths - 1) else 1) + 1
  if side < 1:
    raise ValueError(
      f"images of {size} pixels are too small for a patch discriminator of {num_widths} widths:"
      f" raise --config.data.image_size to {3 * 2 ** (num_widths - 1)}, or give"
      " --config.model.d_widths fewer"
    )
  return side


class PatchDiscriminator(nn.Module):
  """Images [N, H, W, C] -> logits [N, h, w], float32.

  Convolutions 4 x 4, all of stride 2 but the last of `widths` and the output's, each followed by
  the norm, but the first, and LeakyReLU.

  Attributes:
    widths: channels, one or more.
    norm: batch, instance, layer or none. With `batch` a convolution before it has no bias;
      statistics of batches are used if `train`, and may be left to nobody.
    affine: instance norms have scale and bias (CycleGAN's Lua code), or not (its PyTorch code).
    padding: 1, or 2 as in the Lua code.
  """

  widths: Sequence[int] = (64, 128, 256, 512)
  norm: str = "batch"
  affine: bool = False
  padding: int = 1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
    """Scores patches."""
    normalise = self._normaliser()
    how = {"padding": self.padding, "kernel_init": init.normal(0.02), "dtype": self.dtype}
    for i, width in enumerate(self.widths):
      stride = 1 if i and i + 1 == len(self.widths) else 2
      bias = i == 0 or self.norm != "batch"
      x = conv.Conv(width, 4, stride, use_bias=bias, name=f"conv{i}", **how)(x)
      x = nn.leaky_relu(normalise(i, x, train) if i else x, 0.2)
    return conv.Conv(1, 4, name="last", **how)(x)[..., 0].astype(jnp.float32)

  def _normaliser(self) -> Callable:
    if self.norm == "none":
      return lambda i, x, train: x
    how = {"scale_init": init.normal(0.02, mean=1.0), "dtype": self.dtype}
    if self.norm == "instance":
      return lambda i, x, train: norms.InstanceNorm(self.affine, name=f"norm{i}", **how)(x)
    if self.norm == "layer":
      return lambda i, x, train: norms.LayerNorm(name=f"norm{i}", **how)(x)
    if self.norm == "batch":
      return lambda i, x, train: norms.BatchNorm(name=f"norm{i}", **how)(x, train)
    raise ValueError(f"norm {self.norm!r}: choose {', '.join(NORMS)} (--config.model.d_norm)")
