"""Residual generators and discriminators: SN-GAN's (arXiv:1802.05957), BigGAN's (arXiv:1809.11096).

| nets | Generator | Discriminator |
|---|---|---|
| SN-GAN 32 px | widths=(256,) * 3 | widths=(128,) * 4, down=2, head_bias=False |
| SN-GAN 128 px | widths=(1024, 512, 256, 128, 64) | widths=(64, 128, ..., 1024, 1024), down=5 |
| BigGAN 128 px | widths=(16, 8, 4, 2, 1) * 96, + | widths=(1, 2, 4, 8, 16, 16) * 96, down=5, ++ |
| BigGAN 32 px | widths=(256,) * 3 | widths=(256,) * 4, down=2, wide=True |

+: embed_features=128, hierarchical=True, attention=(64,); ++: wide=True, attention=(64,). SN-GAN's
weights are initialised by scheme="glorot", BigGAN's by "orthogonal", at 32 px by "normal".
Spectral normalisation is put around these nets (`gm.nn.spectral`).

Upsampling and a 1 x 1 convolution commute, and so do pooling and one; both run at the lower
resolution here, with the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from gm.nn import attention, conv, embed, fold, init, norm, resample


class Scheme(NamedTuple):
  """How the weights start."""

  residual: init.Init  # 3 x 3 kernels of blocks
  other: init.Init  # all other kernels, and embeddings
  condition: init.Init  # of conditional batch norm
  bias: Callable[[int], init.Init]  # (fan-in)


_zeros = init.constant(0.0)
SCHEMES = {
  "glorot": Scheme(
    jax.nn.initializers.variance_scaling(2.0, "fan_avg", "uniform"),  # limit sqrt 2 times Glorot's
    init.glorot(),
    _zeros,
    lambda fan: _zeros,
  ),
  "orthogonal": Scheme(*[init.orthogonal()] * 3, init.torch_bias),
  "normal": Scheme(*[init.normal(0.02)] * 3, init.torch_bias),
}


def _scheme(name: str) -> Scheme:
  if name not in SCHEMES:
    raise ValueError(f"scheme {name!r}: choose one of {', '.join(SCHEMES)} (--config.model.scheme)")
  return SCHEMES[name]


def _kernel(scheme: Scheme, size: int, fan: int) -> dict:
  return {
    "kernel_init": scheme.residual if size == 3 else scheme.other,
    "bias_init": scheme.bias(size * size * fan),
  }


class UpBlock(nn.Module):
  """Norm, ReLU, up, conv 3 x 3, norm, ReLU, conv 3 x 3, beside up, conv 1 x 1; doubles the sides.

  Attributes:
    features: out, and between the convolutions.
    num_classes: of labels that condition the norms; 0 where the condition is a vector or None.
    eps, momentum: of the norms.
  """

  features: int
  num_classes: int = 0
  eps: float = 1e-5
  momentum: float = 0.9
  scheme: str = "glorot"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, condition: jax.Array | None, train: bool) -> jax.Array:
    """[N, H, W, I], labels [N], vectors [N, E] or None -> [N, 2 H, 2 W, features]."""
    scheme, c = _scheme(self.scheme), x.shape[-1]

    def normalize(x, name):
      options = {"eps": self.eps, "momentum": self.momentum, "dtype": self.dtype, "name": name}
      if condition is None:
        return norm.BatchNorm(**options)(x, train)
      options["kernel_init"] = scheme.condition
      return norm.ConditionalBatchNorm(self.num_classes, **options)(x, condition, train)

    h = nn.relu(normalize(x, "norm0"))
    h = fold.UpConv(self.features, **_kernel(scheme, 3, c), dtype=self.dtype, name="conv0")(h)
    h = nn.relu(normalize(h, "norm1"))
    last = _kernel(scheme, 3, self.features)
    h = conv.Conv(self.features, 3, **last, dtype=self.dtype, name="conv1")(h)
    beside = conv.Conv(self.features, 1, **_kernel(scheme, 1, c), dtype=self.dtype, name="shortcut")
    return h + resample.nearest(beside(x))


class DownBlock(nn.Module):
  """ReLU, conv 3 x 3, ReLU, conv 3 x 3, mean pool, beside conv 1 x 1, mean pool.

  Attributes:
    features: out.
    down: whether there are the pools; without, and with equal widths, the shortcut is the identity.
    first: it sees the image: no leading ReLU.
    wide: width between the convolutions: features, as in BigGAN, or that of the input, as in
      SN-GAN, whose first block is wide all the same.
  """

  features: int
  down: bool = True
  first: bool = False
  wide: bool = False
  scheme: str = "glorot"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, H, W, I] -> [N, H / 2, W / 2, features], or the same size."""
    scheme, c = _scheme(self.scheme), x.shape[-1]
    hidden = self.features if self.wide or self.first else c
    h = x if self.first else nn.relu(x)
    h = conv.Conv(hidden, 3, **_kernel(scheme, 3, c), dtype=self.dtype, name="conv0")(h)
    layer = fold.ConvPool if self.down else conv.Conv
    options = _kernel(scheme, 3, hidden)
    h = layer(self.features, **options, dtype=self.dtype, name="conv1")(nn.relu(h))
    if self.down:
      x = resample.mean_pool(x)
    if self.down or c != self.features:
      options = _kernel(scheme, 1, c)
      x = conv.Conv(self.features, 1, **options, dtype=self.dtype, name="shortcut")(x)
    return h + x


class Generator(nn.Module):
  """z [B, Z], labels [B] -> images [B, *shape], float32.

  A dense layer to a small map, an up-block for each width, norm, ReLU, conv 3 x 3, tanh.

  Attributes:
    shape: (H, W, C); H and W are multiples of 2^blocks.
    widths: channels of the blocks; the dense layer makes as many as the first one.
    num_classes: 0: unconditional. Labels act through batch norm alone.
    embed_features: of the one embedding of labels from which dense layers make every block's scales
      and biases; 0: each batch norm has tables of its own.
    hierarchical: z is cut in blocks + 1 equal chunks; the first enters the dense layer, the others
      join the label's embedding in their block.
    attention: heights, such as (64,), of maps that are followed by self-attention.
    eps, momentum: of the norms.
    scheme: glorot, orthogonal or normal.
  """

  shape: tuple[int, int, int]
  widths: Sequence[int] = (256, 256, 256)
  num_classes: int = 0
  embed_features: int = 0
  hierarchical: bool = False
  attention: Sequence[int] = ()
  eps: float = 1e-5
  momentum: float = 0.9
  scheme: str = "glorot"
  dtype: Any = jnp.float32

  @property
  def heights(self) -> list[int]:
    """Of the maps after the blocks."""
    return [self.shape[0] // 2**i for i in reversed(range(len(self.widths)))]

  @nn.compact
  def __call__(self, z: jax.Array, y: jax.Array | None = None, train: bool = True) -> jax.Array:
    """Generates from z."""
    scheme, blocks = _scheme(self.scheme), len(self.widths)
    h, w = (n // 2**blocks for n in self.shape[:2])
    if (h * 2**blocks, w * 2**blocks) != tuple(self.shape[:2]):
      raise ValueError(
        f"images of {self.shape[0]}x{self.shape[1]} pixels do not halve {blocks} times: change"
        " --config.data.image_size or the number of --config.model.g_widths"
      )
    chunks, condition = self._chunks(z, blocks), [y if self.num_classes else None] * blocks
    if self.num_classes and self.embed_features:
      shared = embed.Embed(
        self.num_classes, self.embed_features, embedding_init=scheme.other, name="embed"
      )(y)
      condition = [shared] * blocks
    if self.hierarchical:
      join = lambda c, z: z if c is None else jnp.concatenate([c, z], -1)
      condition = [join(c, z) for c, z in zip(condition, chunks[1:], strict=True)]
    classes = 0 if self.embed_features else self.num_classes
    x = nn.Dense(
      h * w * self.widths[0],
      **_kernel(scheme, 1, chunks[0].shape[-1]),
      dtype=self.dtype,
      name="first",
    )(chunks[0]).reshape(-1, h, w, self.widths[0])
    common = {"eps": self.eps, "momentum": self.momentum, "dtype": self.dtype}
    for i, width in enumerate(self.widths):
      block = UpBlock(width, classes, **common, scheme=self.scheme, name=f"block{i}")
      x = block(x, condition[i], train)
      if x.shape[1] in self.attention:
        x = attention.SelfAttention(scheme.other, self.dtype, name=f"attention{x.shape[1]}")(x)
    x = nn.relu(norm.BatchNorm(**common, name="norm")(x, train))
    last = {"kernel_init": scheme.other, "bias_init": scheme.bias(9 * x.shape[-1])}
    x = conv.Conv(self.shape[2], 3, **last, dtype=self.dtype, name="last")(x)
    return jnp.tanh(x.astype(jnp.float32))

  def _chunks(self, z: jax.Array, blocks: int) -> list[jax.Array]:
    if not self.hierarchical:
      return [z]
    if z.shape[-1] % (blocks + 1):
      raise ValueError(
        f"z of {z.shape[-1]} numbers does not split into {blocks + 1} equal chunks, one for each"
        " block and one more: change --config.model.z_dim"
      )
    if self.num_classes and not self.embed_features:
      raise ValueError(
        "chunks of z join the embedding of the label, and there is none: set"
        " --config.model.embed_features above 0 or --config.model.hierarchical=False"
      )
    return jnp.split(z, blocks + 1, axis=-1)


class Trunk(nn.Module):
  """The discriminator without its head: images [B, H, W, C] -> features [B, F].

  Blocks, ReLU, and the sum over the last map; a mean would make the hinge's margins hard to reach.
  Attributes as in `Discriminator`.
  """

  widths: Sequence[int] = (128, 128, 128, 128)
  down: int = 2
  wide: bool = False
  attention: Sequence[int] = ()
  scheme: str = "glorot"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Computes the features."""
    if not 0 <= self.down <= len(self.widths):
      raise ValueError(
        f"{self.down} of {len(self.widths)} blocks cannot halve the map: set --config.model.d_down"
        f" to 0 ... {len(self.widths)}, or the number of --config.model.d_widths"
      )
    waiting = set(self.attention)  # one layer for each size, after the first map that has it
    for i, width in enumerate(self.widths):
      x = DownBlock(
        width,
        down=i < self.down,
        first=i == 0,
        wide=self.wide,
        scheme=self.scheme,
        dtype=self.dtype,
        name=f"block{i}",
      )(x)
      if x.shape[1] in waiting:
        waiting.remove(x.shape[1])
        init_of = _scheme(self.scheme).other
        x = attention.SelfAttention(init_of, self.dtype, name=f"attention{x.shape[1]}")(x)
    return jnp.sum(nn.relu(x), (1, 2), dtype=jnp.float32)


class Discriminator(nn.Module):
  """Images [B, H, W, C], labels [B] -> logits [B], float32.

  Attributes:
    widths: channels of the blocks.
    down: how many of them, from the first, halve the map.
    wide: see `DownBlock`.
    num_classes: 0: unconditional; else a projection of the label is added.
    attention: heights of maps, after downsampling, that are followed by self-attention; of several
      maps of one height, the first.
    head_bias: of the last dense layer.
    scheme: glorot, orthogonal or normal.
  """

  widths: Sequence[int] = (128, 128, 128, 128)
  down: int = 2
  wide: bool = False
  num_classes: int = 0
  attention: Sequence[int] = ()
  head_bias: bool = True
  scheme: str = "glorot"
  dtype: Any = jnp.float32

  def heights(self, height: int) -> list[int]:
    """Of the maps after the blocks, for images of that height."""
    return [height // 2 ** min(i + 1, self.down) for i in range(len(self.widths))]

  @nn.compact
  def __call__(self, x: jax.Array, y: jax.Array | None = None, train: bool = True) -> jax.Array:
    """Scores x; `train` makes no difference."""
    names = ("widths", "down", "wide", "attention", "scheme", "dtype")
    h = Trunk(**{n: getattr(self, n) for n in names}, name="trunk")(x)
    scheme = _scheme(self.scheme)
    return embed.ProjectionHead(
      self.num_classes,
      use_bias=self.head_bias,
      kernel_init=scheme.other,
      bias_init=scheme.bias(h.shape[-1]),
      dtype=self.dtype,
      name="head",
    )(h, y)


def check_attention(g: Generator, d: Discriminator) -> None:
  """Makes sure that a size for which attention is asked is the height of a map of G or of D.

  Args:
    g: a generator.
    d: a discriminator of its images.

  Raises:
    ValueError: if one is not, so that there would silently be no attention.

  >>> check_attention(Generator((32, 32, 3), attention=(8,)), Discriminator(attention=(8,)))
  """
  of_g, of_d = g.heights, d.heights(g.shape[0])
  for size in {*g.attention, *d.attention}.difference(of_g, of_d):
    raise ValueError(
      f"no map has the height {size} for attention; those of G have {of_g}, those of D {of_d}:"
      " change --config.model.d_down, --config.model.attention, or --config.data.image_size"
    )
