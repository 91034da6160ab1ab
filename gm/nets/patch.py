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

NORMS = ("batch", "instance", "none")


def grid(size: int, num_widths: int) -> int:
  """Returns the side of the output for images of `size`: halved, less one for each stride of 1.

  Raises:
    ValueError: if nothing is left.

  >>> grid(256, 4)
  30
  """
  side = size
  for _ in range(num_widths - 1):
    side //= 2
  if side < 3:
    raise ValueError(
      f"images of {size} pixels are too small for a patch discriminator of {num_widths} widths:"
      f" raise --config.data.image_size to {3 * 2 ** (num_widths - 1)}, or give"
      " --config.model.d_widths fewer"
    )
  return side - 2


class PatchDiscriminator(nn.Module):
  """Images [N, H, W, C] -> logits [N, h, w], float32.

  Convolutions 4 x 4 with a padding of 1, all of stride 2 but the last of `widths` and the output's,
  each followed by the norm, but the first, and LeakyReLU.

  Attributes:
    widths: channels, one or more.
    norm: batch; instance, without scale and bias, as in CycleGAN; none. With `batch` a convolution
      before it has no bias. Statistics of batches are used if `train`, and may be left to nobody.
  """

  widths: Sequence[int] = (64, 128, 256, 512)
  norm: str = "batch"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
    """Scores patches."""
    normalise = self._normaliser()
    how = {"padding": 1, "kernel_init": init.normal(0.02), "dtype": self.dtype}
    for i, width in enumerate(self.widths):
      stride = 1 if i and i + 1 == len(self.widths) else 2
      bias = i == 0 or self.norm != "batch"
      x = conv.Conv(width, 4, stride, use_bias=bias, name=f"conv{i}", **how)(x)
      x = nn.leaky_relu(normalise(i, x, train) if i else x, 0.2)
    return conv.Conv(1, 4, name="last", **how)(x)[..., 0].astype(jnp.float32)

  def _normaliser(self) -> Callable:
    if self.norm == "none":
      return lambda i, x, train: x
    if self.norm == "instance":
      one = lambda x: jnp.ones(x.shape[-1])
      return lambda i, x, train: norms.normalize(x, one(x), 0 * one(x), kind="instance")[0]
    if self.norm == "batch":
      how = {"scale_init": init.normal(0.02, mean=1.0), "dtype": self.dtype}
      return lambda i, x, train: norms.BatchNorm(name=f"norm{i}", **how)(x, train)
    raise ValueError(f"norm {self.norm!r}: choose {', '.join(NORMS)} (--config.model.d_norm)")
