"""Encoders that meet in one space: of a caption's words and sentence, of an image's regions and
whole (DAMSM: Xu et al., 2018, arXiv:1711.10485). `gm.matching` tells how well two of them fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from gm.nets import inception
from gm.nn import conv, embed, rnn
from gm.nn import init as inits

PADDING = 0  # the token that is no word


class Text(NamedTuple):
  """A caption."""

  sentence: jax.Array  # [B, F]
  words: jax.Array  # [B, T, F], zeros at padding
  mask: jax.Array  # bool [B, T], False at padding


class TextEncoder(nn.Module):
  """Tokens [B, T] -> `Text`: an embedding, and an LSTM in both directions.

  A word is what both have said when they come to it, the sentence what they have said at their
  ends. Token 0 is padding, which changes nothing; of a caption without any word it is one word.

  Attributes:
    vocab_size: tokens are 0 to vocab_size - 1.
    features: of a word and of the sentence, even.
    embed: of a token.
    dropout: of the embedding, where `train`.
  """

  vocab_size: int
  features: int = 256
  embed: int = 300
  dropout: float = 0.5
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, tokens: jax.Array, train: bool = True) -> Text:
    """Encodes."""
    mask = jnp.asarray(tokens != PADDING).at[:, 0].set(True)
    x = embed.Embed(
      self.vocab_size,
      self.embed,
      embedding_init=inits.uniform(0.1),
      dtype=self.dtype,
      name="embed",
    )(tokens)
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    start = inits.uniform((self.features // 2) ** -0.5)
    both = []
    for name in ("forward", "backward"):
      lstm = rnn.LSTM(
        self.features // 2,
        forget_bias=0.0,
        reverse=name == "backward",
        kernel_init=start,
        bias_init=start,
        dtype=self.dtype,
        name=name,
      )
      both.append(lstm(x, mask=mask))
    words = jnp.concatenate([h for h, _ in both], axis=-1).astype(jnp.float32)
    sentence = jnp.concatenate([h for _, (h, _) in both], axis=-1).astype(jnp.float32)
    return Text(sentence, words * mask[..., None], mask)


class ImageEncoder(nn.Module):
  """Images [B, H, W, C] -> regions [B, R, F] and whole [B, F], by a few convolutions.

  Attributes:
    features: F.
    widths: channels of convolutions of stride 2. The map of the second one gives the regions, the
      mean over the last one's the whole.
  """

  features: int
  widths: Sequence[int] = (32, 64, 128)
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = True) -> tuple[jax.Array, jax.Array]:
    """Encodes; `train` makes no difference."""
    options = {"kernel_init": inits.he(), "dtype": self.dtype}
    for i, width in enumerate(self.widths):
      x = nn.relu(conv.Conv(width, 4, 2, **options, name=f"down{i}")(x))
      if i < 2:
        regions = x
    return _heads(self, regions, x.mean((1, 2)))


class InceptionEncoder(nn.Module):
  """The same by Inception-v3 at 299 pixels: 17 x 17 regions, as in DAMSM."""

  features: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = True) -> tuple[jax.Array, jax.Array]:
    """Encodes; batch norms use their batch where `train`."""
    regions, whole = inception.Trunk(self.dtype, name="trunk")(inception.resize(x), train)
    return _heads(self, regions, whole)


def _heads(module: Any, regions: jax.Array, whole: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Maps [B, h, w, I] and vectors [B, J] into the common space."""
  options = {"kernel_init": inits.uniform(0.1), "dtype": module.dtype}
  regions = regions.reshape(len(regions), -1, regions.shape[-1])
  regions = nn.Dense(module.features, use_bias=False, **options, name="local")(regions)
  whole = nn.Dense(module.features, **options, name="whole")(whole)
  return regions.astype(jnp.float32), whole.astype(jnp.float32)
