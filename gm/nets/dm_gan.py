"""DM-GAN's networks (arXiv:1904.01310): pictures of a caption at doubling sizes, and their judges.

| nets | base of G | base of D | blocks | G's first picture | refinements |
|---|---|---|---|---|---|
| birds (CUB) | 64 | 32 | 2 | 64 px | 2 |
| COCO | 64 | 32 | 3 | 64 px | 2 |

A caption comes as a vector [B, D] of the sentence, vectors [B, T, D] of its words, and a mask
[B, T] that is False at padding (`nets.matching.TextEncoder`). With r refinements and a first map of
4 pixels on the short side, images have 4 * 2^(k + r) pixels there, k at least 1, and on the long
side any multiple of 2^(k + r). All kernels start orthogonal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from gm.nn import attention, conv, norm, resample
from gm.nn import init as inits

START = 4  # short side of G's first map and of D's last
ORTHOGONAL = inits.orthogonal()


def halvings(shape: Sequence[int], num_refine: int) -> int:
  """How often the first picture of images (H, W, ...) halves to a short side of 4 pixels.

  Raises:
    ValueError: if it does not, or not at least once.

  >>> halvings((256, 256, 3), 2), halvings((32, 64, 3), 2)
  (4, 1)
  """
  short = min(shape[:2])
  k = int(math.log2(max(short // START, 1))) - num_refine
  if k < 1 or START * 2 ** (k + num_refine) != short or max(shape[:2]) % 2 ** (k + num_refine):
    raise ValueError(
      f"images of {shape[0]}x{shape[1]} pixels are no {num_refine} doublings of a first picture of"
      f" 8, 16, 32, ... pixels: set --config.data.image_size to 4 * 2^n, n > {num_refine}, or"
      " another --config.model.num_refine"
    )
  return k


def scales(images: jax.Array, num_refine: int) -> list[jax.Array]:
  """Images [B, H, W, C] at the sizes that G makes, by means of blocks, the smallest first."""
  factors = [2**i for i in range(num_refine, 0, -1)]
  return [*(resample.mean_pool(images, factor=f) for f in factors), images]


# ---------------------------------------------------------------------------------------- generator


class Block(nn.Module):
  """Convolution 3 x 3 without bias, batch norm, gated linear unit: [B, H, W, I] -> [B, H, W, F].

  The unit is the first half of the channels times the sigmoid of the second; `gated=False` leaves
  it out.
  """

  features: int
  gated: bool = True
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Convolves, normalises, gates."""
    width = self.features * (2 if self.gated else 1)
    x = conv.Conv(width, 3, use_bias=False, kernel_init=ORTHOGONAL, dtype=self.dtype, name="conv")(
      x
    )
    x = normalize(self.dtype)(x, train)
    return nn.glu(x) if self.gated else x


def normalize(dtype: Any) -> norm.BatchNorm:
  """The batch norm of all of G."""
  return norm.BatchNorm(scale_init=inits.normal(0.02, mean=1.0), dtype=dtype, name="norm")


class Augmentation(nn.Module):
  """Conditioning augmentation: the law N(mean, exp(log_var)) of a condition, from a sentence.

  Source: Zhang et al., 2017, arXiv:1612.03242, section 3.2; a gated linear unit for its ReLU.
  """

  features: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, sentence: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[B, D] -> mean and log-variance [B, features], float32."""
    x = nn.Dense(4 * self.features, kernel_init=ORTHOGONAL, dtype=self.dtype, name="dense")(
      sentence
    )
    mean, log_var = jnp.split(nn.glu(x).astype(jnp.float32), 2, axis=-1)
    return mean, log_var


class Memory(nn.Module):
  """The dynamic memory: words are written as the picture needs them, and read by every pixel.

  With pixels h_j, words w_i and the mean pixel r, which is a constant to autodiff:
    write:    g_i = sigmoid(A w_i + B r),  m_i = M_w(w_i) g_i + M_r(r) (1 - g_i)
    address:  a_ij = softmax over words i of <K(m_i), h_j>, not scaled; padding has 0
    read:     o_j = sum_i a_ij V(m_i)
    respond:  p_j = sigmoid(R [h_j, o_j]),  h'_j = (1 - p_j) h_j + p_j o_j
  M_w, M_r, K and V are dense with a ReLU. g_i and p_j are numbers.

  Source: Zhu et al., 2019, arXiv:1904.01310, sections 3.2 and 3.3, and its code. There the mask of
  a sample goes to pixels of others where a batch has more than one; here it stays with its sample.
  """

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, h: jax.Array, words: jax.Array, mask: jax.Array) -> jax.Array:
    """Writes, reads, responds: h [B, H, W, C], words [B, T, D], mask bool [B, T] -> like h."""
    c, words = h.shape[-1], words.astype(self.dtype)

    def dense(features, name, use_bias=True):
      return nn.Dense(
        features, use_bias=use_bias, kernel_init=ORTHOGONAL, dtype=self.dtype, name=name
      )

    mean = lax.stop_gradient(h.mean((1, 2)))[:, None]  # [B, 1, C]
    gate = nn.sigmoid(
      dense(1, "gate_word", use_bias=False)(words) + dense(1, "gate_image", use_bias=False)(mean)
    )
    memory = nn.relu(dense(2 * c, "write_word")(words)) * gate
    memory = memory + nn.relu(dense(2 * c, "write_image")(mean)) * (1 - gate)
    key, value = (nn.relu(dense(c, name)(memory)) for name in ("key", "value"))
    pixels = h.reshape(len(h), -1, c)
    read = attention.attend(pixels, key, value, scale=1.0, mask=mask[:, None]).reshape(h.shape)
    respond = nn.sigmoid(dense(1, "respond")(jnp.concatenate([h, read], axis=-1)))
    return h * (1 - respond) + respond * read


class Refine(nn.Module):
  """Features [B, H, W, C] and words -> [B, 2 H, 2 W, C]: memory, residual blocks, doubling.

  What the memory gives is laid beside itself, which makes the 2 C channels of the blocks.
  """

  num_blocks: int = 2
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, h: jax.Array, words: jax.Array, mask: jax.Array, train: bool) -> jax.Array:
    """Refines."""
    c = h.shape[-1]
    h = Memory(self.dtype, name="memory")(h, words, mask)
    h = jnp.concatenate([h, h], axis=-1)
    for i in range(self.num_blocks):
      inside = Block(2 * c, dtype=self.dtype, name=f"in{i}")(h, train)
      h = h + Block(2 * c, gated=False, dtype=self.dtype, name=f"out{i}")(inside, train)
    return Block(c, dtype=self.dtype, name="up")(resample.nearest(h), train)


class Drawn(NamedTuple):
  """What G makes of a caption."""

  images: list  # [B, h, w, C] in [-1, 1], the smallest first
  mean: jax.Array  # [B, F], of the condition's law
  log_var: jax.Array  # [B, F]


class Generator(nn.Module):
  """Noise and a caption -> pictures at 1 + num_refine sizes, each twice the one before.

  Attributes:
    shape: (H, W, C) of the last picture.
    base: channels of all features but the first maps, which have base * 2^k, ..., 2 base.
    condition: features of the condition c, which joins z.
    num_refine: refinements.
    num_blocks: residual blocks of each.
  """

  shape: tuple[int, int, int]
  base: int = 64
  condition: int = 100
  num_refine: int = 2
  num_blocks: int = 2
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    z: jax.Array,
    eps: jax.Array,
    sentence: jax.Array,
    words: jax.Array,
    mask: jax.Array,
    train: bool = True,
  ) -> Drawn:
    """Draws.

    Args:
      z: noise [B, Z].
      eps: noise of the condition, [B, condition]: c = mean + exp(log_var / 2) eps.
      sentence: [B, D].
      words: [B, T, D].
      mask: bool [B, T], False at padding.
      train: batch norms use their batch.
    """
    k = halvings(self.shape, self.num_refine)
    h, w = (n // 2 ** (k + self.num_refine) for n in self.shape[:2])
    mean, log_var = Augmentation(self.condition, self.dtype, name="augmentation")(sentence)
    x = jnp.concatenate([mean + jnp.exp(log_var / 2) * eps, z], axis=-1)
    width = self.base * 2**k
    x = nn.Dense(
      2 * h * w * width, use_bias=False, kernel_init=ORTHOGONAL, dtype=self.dtype, name="first"
    )(x)
    x = nn.glu(normalize(self.dtype)(x, train)).reshape(-1, h, w, width)
    for i in range(k):
      up = Block(width // 2 ** (i + 1), dtype=self.dtype, name=f"up{i}")
      x = up(resample.nearest(x), train)
    images = []
    for i in range(self.num_refine + 1):
      if i:
        x = Refine(self.num_blocks, self.dtype, name=f"refine{i}")(x, words, mask, train)
      last = conv.Conv(
        self.shape[2], 3, use_bias=False, kernel_init=ORTHOGONAL, dtype=self.dtype, name=f"image{i}"
      )
      images.append(jnp.tanh(last(x).astype(jnp.float32)))
    return Drawn(images, mean, log_var)


# ----------------------------------------------------------------------------------- discriminators


class Logits(NamedTuple):
  """What D says of pictures; float32."""

  image: jax.Array  # [B], whether they are real
  pair: jax.Array  # [B], whether they are real and fit their sentences
  wrong: jax.Array  # [M], the same of the first M with sentences that are not theirs


class Discriminator(nn.Module):
  """The judge of one size: pictures [B, H, W, C] and sentences -> `Logits`.

  Convolutions of stride 2 to a short side of 4, doubling from `base`, then 3 x 3 ones that halve
  the channels to the `features` that the judges of all sizes share.

  Attributes:
    features: of the last map.
    base: channels of the first map.
  """

  features: int
  base: int = 32
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, sentence: jax.Array, wrong: jax.Array | None = None) -> Logits:
    """Judges x [B, H, W, C] with sentence [B, D], and its first M rows with wrong [M, D]."""
    options = {"kernel_init": ORTHOGONAL, "dtype": self.dtype}
    width = self.base
    for i in range(halvings(x.shape[1:], 0)):
      width = self.base * 2**i
      x = nn.leaky_relu(conv.Conv(width, 4, 2, **options, name=f"down{i}")(x), 0.2)
    while width > self.features:
      width //= 2
      x = nn.leaky_relu(conv.Conv(width, 3, **options, name=f"narrow{width}")(x), 0.2)

    def score(x, name):  # [N, h, w, F] -> [N]
      logits = conv.Conv(1, x.shape[1:3], 1, "VALID", **options, name=name)(x)
      return logits[:, 0, 0, 0].astype(jnp.float32)

    image, num = score(x, "logits_image"), len(x)
    if wrong is not None:
      x = jnp.concatenate([x, x[: len(wrong)]])
      sentence = jnp.concatenate([sentence, wrong])
    told = jnp.broadcast_to(sentence[:, None, None], (*x.shape[:3], sentence.shape[-1]))
    joint = jnp.concatenate([x, told.astype(x.dtype)], axis=-1)
    joint = nn.leaky_relu(conv.Conv(self.features, 3, **options, name="joint")(joint), 0.2)
    pair = score(joint, "logits_pair")
    return Logits(image, pair[:num], pair[num:])


class Discriminators(nn.Module):
  """A judge for each size: see `Discriminator`. In `spectral.SpectralNorm`, skip LOGITS.

  Attributes:
    base: channels of the first map of each.
  """

  base: int = 32
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    images: Sequence[jax.Array],
    sentence: jax.Array,
    wrong: jax.Array | None = None,
    train: bool = True,
  ) -> list[Logits]:
    """Judges pictures, the smallest first; `train` makes no difference."""
    features = self.base * 2 ** (halvings(images[0].shape[1:], 0) - 1)
    judge = lambda i: Discriminator(features, self.base, self.dtype, name=f"size{i}")
    return [judge(i)(x, sentence, wrong) for i, x in enumerate(images)]


LOGITS = ("logits_image", "logits_pair")  # layers whose weights are not normalised
