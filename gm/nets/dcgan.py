"""Convolutional stacks of stride 2: DCGAN's nets (arXiv:1511.06434), also WGAN's and others'.

| nets | Generator | Discriminator |
|---|---|---|
| DCGAN 64 px | base=64 | base=64 |
| its authors' code | base=128, kernel=5, first="dense" | base=128, kernel=5, last="dense" |
| WGAN 32 px | base=256, use_bias=True | base=256, use_bias=True, norm_first=True |
| WGAN-GP 32 px | base=256, use_bias=True | the same, norm="instance" |
| WGAN-GP 28 px | base=64, kernel=5, first="dense", + | base=64, kernel=5, last="dense", + |
| 28 px | start=7 | start=7 |

OPTIONS: norm="none", use_bias=True, crop=True.

+: norm="none", use_bias=True, crop=True.

Sizes: the smallest map has `start` pixels on its short side and every layer doubles (G) or halves
(D), so images have start * 2^k pixels on the short side, and on the long side any multiple of 2^k.
With crop=True an odd half is rounded up (28 -> 14 -> 7 -> 4) and G cuts the extra row and column
off again.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from gm.nn import conv, init, norm

OUTPUTS = {"tanh": jnp.tanh, "sigmoid": nn.sigmoid, "none": lambda x: x}


def sizes(image: tuple[int, int], *, start: int = 4, crop: bool = False) -> list[tuple[int, int]]:
  """Returns the maps' sizes from the image down to the smallest one.

  Raises:
    ValueError: if halving, at least once, does not lead to `start`.

  >>> sizes((32, 64))
  [(32, 64), (16, 32), (8, 16), (4, 8)]
  >>> sizes((28, 28), crop=True)
  [(28, 28), (14, 14), (7, 7), (4, 4)]
  """
  chain = [tuple(image)]
  while min(chain[-1]) > start:
    if not crop and any(n % 2 for n in chain[-1]):
      break
    chain.append(tuple(-(-n // 2) for n in chain[-1]))
  if min(chain[-1]) != start:
    raise ValueError(
      f"images of {image[0]}x{image[1]} pixels do not halve down to {start}: the short side must "
      f"be {start} * 2^k and the long side a multiple of 2^k; change --config.data.image_size or "
      "--config.model.start (7 for 28 pixels)"
    )
  if len(chain) == 1:
    raise ValueError(
      f"images of {image[0]}x{image[1]} pixels are no larger than the first map, of {start}: raise"
      " --config.data.image_size or lower --config.model.start"
    )
  return chain


def _choose(name: str, allowed: tuple[str, ...], flag: str) -> str:
  if name not in allowed:
    raise ValueError(f"{flag} {name!r}: choose one of {', '.join(allowed)} (--config.model.{flag})")
  return name


class Generator(nn.Module):
  """z [B, Z] -> images [B, *shape], float32; channels base * 2^(k-1), ..., 2 base, base, C.

  Attributes:
    shape: (H, W, C).
    base: channels of the last hidden map.
    start: short side of the first map.
    kernel: 4 (no overlap artefacts at stride 2) or 5.
    norm: none, batch, instance or layer, after every layer but the last.
    use_bias: in all layers.
    first: "conv" (z as a 1x1 map) or "dense"; they differ where bias and batch norm act: per
      channel or per feature.
    output: tanh, sigmoid or none.
    scheme: a scheme of `gm.nn.init`.
  """

  shape: tuple[int, int, int]
  base: int = 64
  start: int = 4
  kernel: int = 4
  norm: str = "batch"
  use_bias: bool = False
  first: str = "conv"
  output: str = "tanh"
  crop: bool = False
  scheme: str = "dcgan"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, z: jax.Array, train: bool = True) -> jax.Array:
    """Generates from z."""
    _choose(self.first, ("conv", "dense"), "first")
    _choose(self.output, tuple(OUTPUTS), "output")
    chain = sizes(self.shape[:2], start=self.start, crop=self.crop)[::-1]
    scheme, depth = init.scheme(self.scheme), len(chain) - 1
    normalize = lambda x: norm.layer(self.norm, scale_init=scheme.scale, dtype=self.dtype)(x, train)
    width, area = self.base * 2 ** max(depth - 1, 0), math.prod(chain[0])
    if self.first == "dense":
      x = nn.Dense(
        area * width,
        use_bias=self.use_bias,
        kernel_init=scheme.kernel(False, 1),
        bias_init=scheme.bias(z.shape[-1]),
        dtype=self.dtype,
        name="first",
      )(z)
      x = nn.relu(normalize(x)).reshape(-1, *chain[0], width)
    else:
      x = conv.ConvTranspose(
        width,
        chain[0],
        1,
        "VALID",
        use_bias=self.use_bias,
        kernel_init=scheme.kernel(True, 1),
        bias_init=scheme.bias(area * width),
        dtype=self.dtype,
        name="first",
      )(z[:, None, None])
      x = nn.relu(normalize(x))
    for i, (h, w) in enumerate(chain[1:]):
      last = i == depth - 1
      width = self.shape[2] if last else self.base * 2 ** (depth - 2 - i)
      x = conv.ConvTranspose(
        width,
        self.kernel,
        2,
        use_bias=self.use_bias,
        kernel_init=scheme.kernel(True, 2),
        bias_init=scheme.bias(self.kernel**2 * width),
        dtype=self.dtype,
        name=f"up{i}",
      )(x)[:, :h, :w]
      if not last:
        x = nn.relu(normalize(x))
    return OUTPUTS[self.output](x.astype(jnp.float32))


class Trunk(nn.Module):
  """The discriminator without its last layer: images [B, H, W, C] -> hidden maps, largest first."""

  base: int = 64
  start: int = 4
  kernel: int = 4
  norm: str = "batch"
  norm_first: bool = False
  use_bias: bool = False
  crop: bool = False
  scheme: str = "dcgan"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = True) -> list[jax.Array]:
    """Computes the maps."""
    depth = len(sizes(x.shape[1:3], start=self.start, crop=self.crop)) - 1
    scheme, maps = init.scheme(self.scheme), []
    for i in range(depth):
      x = conv.Conv(
        self.base * 2**i,
        self.kernel,
        2,
        use_bias=self.use_bias,
        kernel_init=scheme.kernel(False, 2),
        bias_init=scheme.bias(self.kernel**2 * x.shape[-1]),
        dtype=self.dtype,
        name=f"down{i}",
      )(x)
      if i > 0 or self.norm_first:
        x = norm.layer(self.norm, scale_init=scheme.scale, dtype=self.dtype)(x, train)
      x = nn.leaky_relu(x, 0.2)
      maps.append(x)
    return maps


class Discriminator(nn.Module):
  """Images [B, H, W, C] -> logits [B], float32; channels base, 2 base, ..., base * 2^(k-1).

  Attributes:
    base: channels of the first map.
    norm, norm_first: none, batch, instance or layer, after every hidden layer; the first one only
      with norm_first.
    last: "conv" (over the whole last map) or "dense"; the same function, kernels of different
      shape.
    start, kernel, use_bias, crop, scheme: as the generator's. A gradient penalty wants no batch
      norm.
  """

  base: int = 64
  start: int = 4
  kernel: int = 4
  norm: str = "batch"
  norm_first: bool = False
  use_bias: bool = False
  last: str = "conv"
  crop: bool = False
  scheme: str = "dcgan"
  dtype: Any = jnp.float32

  def setup(self) -> None:
    """Makes the trunk, whose maps `features` gives too."""
    options = (
      "base",
      "start",
      "kernel",
      "norm",
      "norm_first",
      "use_bias",
      "crop",
      "scheme",
      "dtype",
    )
    self.trunk = Trunk(**{name: getattr(self, name) for name in options})
    self.head = Head(last=self.last, use_bias=self.use_bias, scheme=self.scheme, dtype=self.dtype)

  def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
    """Scores x."""
    return self.head(self.trunk(x, train)[-1])

  def features(self, x: jax.Array, train: bool = False) -> list[jax.Array]:
    """Returns the hidden maps, for a linear probe: `d.apply(v, x, method="features")`."""
    return self.trunk(x, train)


class Head(nn.Module):
  """The last map [B, h, w, F] -> logits [B], or [B, outputs] where outputs > 1; float32."""

  outputs: int = 1
  last: str = "conv"
  use_bias: bool = False
  scheme: str = "dcgan"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Scores the map."""
    _choose(self.last, ("conv", "dense"), "last")
    scheme = init.scheme(self.scheme)
    options = {
      "use_bias": self.use_bias,
      "kernel_init": scheme.kernel(False, 1),
      "bias_init": scheme.bias(math.prod(x.shape[1:])),
      "dtype": self.dtype,
      "name": "last",
    }
    if self.last == "dense":
      y = nn.Dense(self.outputs, **options)(x.reshape(x.shape[0], -1))
    else:
      y = conv.Conv(self.outputs, x.shape[1:3], 1, "VALID", **options)(x)[:, 0, 0]
    y = y.astype(jnp.float32)
    return y[:, 0] if self.outputs == 1 else y
