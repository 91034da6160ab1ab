"""VGG-19 (Simonyan and Zisserman, 2015, arXiv:1409.1556) up to its last convolution, for features.

Its weights are not to be had freely in a package; gm/weights/vgg.py reads a file of the user's own.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from gm.nn import conv

WIDTHS = ((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4)  # a maximum between
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of R, G, B, as torchvision trained it


class VGG19(nn.Module):
  """Images [N, H, W, 3] in [-1, 1] -> maps after the ReLU, {"2_2": conv2_2, "5_4": conv5_4}.

  Under `jit`, layers whose output is not used are not computed. 20,024,384 parameters.
  """

  @nn.compact
  def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
    """Describes images."""
    x, maps = ((x + 1) / 2 - jnp.asarray(MEAN)) / jnp.asarray(STD), {}
    for i, widths in enumerate(WIDTHS, 1):
      if i > 1:
        x = nn.max_pool(x, (2, 2), (2, 2))
      for j, width in enumerate(widths, 1):
        x = nn.relu(conv.Conv(width, 3, name=f"conv{i}_{j}")(x))
        maps[f"{i}_{j}"] = x
    return {name: maps[name] for name in ("2_2", "5_4")}
