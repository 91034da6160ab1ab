"""StarGAN's discriminator (Choi et al., 2018, arXiv:1711.09020): a score per patch and labels.

With widths (64, 128, ... 2048), 128 x 128 pixels and 5 labels it has 44,762,048 parameters. The
labels are read by a kernel as large as the last map, so it knows one size of images. The generator
is `translator.Translator(3, num_blocks=6, **translator.STARGAN)` of the image and the tiled labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from gm.nn import conv, init


def check(image: Sequence[int], widths: Sequence[int]) -> None:
  """Raises ValueError unless the sides of an image (H, W, ...) halve for each width.

  >>> check((128, 64, 3), (64,) * 6)
  """
  factor = 2 ** len(widths)
  if any(n % factor for n in image[:2]):
    raise ValueError(
      f"images of {image[0]}x{image[1]} pixels do not halve {len(widths)} times: set"
      f" --config.data.image_size to a multiple of {factor}, or give --config.model.d_widths fewer"
    )


class Discriminator(nn.Module):
  """Images [N, H, W, C] -> (scores of patches [N, h, w], logits of labels [N, num_labels]).

  Convolutions 4 x 4 of stride 2 with LeakyReLU of slope 0.01 and no norm, then a layer for each
  output, without bias. Both are float32.

  Attributes:
    widths: channels, each at half of the size.
    num_labels: of the second output.
  """

  widths: Sequence[int]
  num_labels: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Judges."""
    how = {"kernel_init": init.torch(), "dtype": self.dtype}
    for i, width in enumerate(self.widths):
      bias = init.torch_bias(16 * x.shape[-1])
      x = conv.Conv(width, 4, 2, padding=1, bias_init=bias, name=f"conv{i}", **how)(x)
      x = nn.leaky_relu(x, 0.01)
    how |= {"use_bias": False}
    scores = conv.Conv(1, 3, padding=1, name="source", **how)(x)[..., 0]
    size = x.shape[1:3]
    logits = conv.Conv(self.num_labels, size, padding="VALID", name="labels", **how)(x)[:, 0, 0]
    return scores.astype(jnp.float32), logits.astype(jnp.float32)
