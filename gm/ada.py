"""ADA: augmentations of images [B, H, W, C] with a probability that training adapts.

The discriminator sees images only through `augment`, in its own steps and in the generator's. The
more it overfits, the higher `adapt` makes the probability of each change.

Source: Karras et al., 2020, arXiv:2006.06676.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

# The low-pass filter of the orthogonal wavelet sym6: up- and downsampling by it is the identity.
SYM6 = (
  *(0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633),
  *(0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252),
  *(-0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148),
)
_MARGIN = 3  # pixels around the image that the filter needs


def _normal(u: jax.Array) -> jax.Array:
  """Makes normal numbers of f32 numbers in [0, 1), which are whole multiples of 2^-23."""
  return math.sqrt(2) * jax.lax.erf_inv(2 * u + (2**-23 - 1))  # between them, so never at an end


@functools.cache
def _finer(n: int) -> np.ndarray:
  """[4 (n - 1), n]: a row of n pixels, mirrored at both ends for ever, at twice the resolution.

  The mirrored row has the period 2 (n - 1), so one period is all of it; entry 2 i lies on pixel i.
  """
  period = 2 * (n - 1)
  matrix = np.zeros((2 * period, n), np.float32)
  for j in range(2 * period):
    for s, tap in enumerate(SYM6):
      i, odd = divmod(j + 5 - s, 2)
      if not odd:
        i %= period
        matrix[j, min(i, period - i)] += math.sqrt(2) * tap
  return matrix


@functools.cache
def _coarser(n: int) -> np.ndarray:
  """[n, 2 n + 12]: back from twice the resolution, with a margin that is cut off."""
  matrix = np.zeros((n, 2 * (n + 2 * _MARGIN)), np.float32)
  for i in range(n):
    matrix[i, 2 * i + 1 : 2 * i + 1 + len(SYM6)] = np.array(SYM6) / math.sqrt(2)
  return matrix


def _separable(rows: np.ndarray, columns: np.ndarray, x: jax.Array) -> jax.Array:
  options = {"precision": "highest"}
  x = jnp.einsum("yh,bhwc->bywc", rows.astype(x.dtype), x, **options)
  return jnp.einsum("xw,bywc->byxc", columns.astype(x.dtype), x, **options)


def warp(x: jax.Array, inverse: jax.Array) -> jax.Array:
  """Moves every image by an affine map of its own, without aliasing, mirrored beyond its borders.

  The image is made twice as fine by a wavelet's filter, read between its pixels (bilinear), and
  filtered back. The filter is orthogonal, so the identity and whole shifts lose nothing.

  Args:
    x: [B, H, W, C], H and W at least 2.
    inverse: [B, 2 or 3, 3], from places (column, row, 1) in the result to places in x, in pixels
      from the centre.

  Returns:
    [B, H, W, C].

  Source: Karras et al., 2020, arXiv:2006.06676, appendix B, and its code; there what is mirrored
  ends after one width.

  >>> left = jnp.array([[[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]])
  >>> warp(jnp.arange(4.0).reshape(1, 2, 2, 1), left)[0, :, :, 0].round().astype(int).tolist()
  [[1, 0], [3, 2]]
  """
  b, h, w, c = x.shape
  finer = _separable(_finer(h), _finer(w), x)
  tall, wide = finer.shape[1:3]
  # places of the fine result in x: entry q lies (q - n - 5) / 2 pixels from the centre
  v, u = ((jnp.arange(2 * n + 12, dtype=jnp.float32) - n - 5) / 2 for n in (h, w))
  v, u = v[:, None], u[None, :]
  a = inverse[:, :2, :, None, None]
  column, row = (a[:, i, 0] * u + a[:, i, 1] * v + a[:, i, 2] for i in (0, 1))  # [B, 2H+12, 2W+12]
  column, row = 2 * column + (w - 1), 2 * row + (h - 1)
  left, top = jnp.floor(column), jnp.floor(row)
  right_share = (column - left).astype(x.dtype)[..., None]
  bottom_share = (row - top).astype(x.dtype)[..., None]
  # every pixel with its neighbours to the right, below and beyond, so that one look-up finds all
  right = jnp.roll(finer, -1, 2)
  square = jnp.concatenate([finer, right, *(jnp.roll(f, -1, 1) for f in (finer, right))], -1)
  place = (top.astype(jnp.int32) % tall) * wide + left.astype(jnp.int32) % wide
  found = jnp.take_along_axis(
    square.reshape(b, -1, 4 * c), place.reshape(b, -1, 1), 1, mode="promise_in_bounds"
  )
  found = found.reshape(*place.shape, 2, 2, c)
  above, below = found[..., 0, :, :], found[..., 1, :, :]  # [B, 2H+12, 2W+12, left or right, C]
  lines = above + bottom_share[..., None] * (below - above)
  start, end = lines[..., 0, :], lines[..., 1, :]
  out = start + right_share * (end - start)
  return _separable(_coarser(h), _coarser(w), out)


def _matrix(*rows: tuple) -> jax.Array:
  """[B, n, n] from rows of numbers and arrays [B]."""
  return jnp.stack([jnp.stack(jnp.broadcast_arrays(*map(jnp.asarray, r)), -1) for r in rows], -2)


def _rotation(angle: jax.Array) -> jax.Array:
  c, s, zero = jnp.cos(angle), jnp.sin(angle), jnp.zeros_like(angle)
  return _matrix((c, -s, zero), (s, c, zero), (zero, zero, zero + 1))


def _scaling(a: jax.Array, b: jax.Array) -> jax.Array:
  zero = jnp.zeros_like(a)
  return _matrix((a, zero, zero), (zero, b, zero), (zero, zero, zero + 1))


def _shift(right: jax.Array, down: jax.Array) -> jax.Array:
  zero = jnp.zeros_like(right)
  return _matrix((zero + 1, zero, right), (zero, zero + 1, down), (zero, zero, zero + 1))


def _product(matrices: list[jax.Array]) -> jax.Array:
  return functools.reduce(lambda a, b: jnp.matmul(a, b, precision="highest"), matrices)


def geometry(
  key: jax.Array, p: jax.Array, *, size: tuple[int, int], batch: int, kinds: str = "bg"
) -> jax.Array:
  """Draws ADA's affine maps, inverted: from places in the result to places in the image.

  b: mirror (half of the time), quarter turns (0 to 3), whole shifts of up to an eighth of a side.
  g: scale 2^N(0, 0.2^2), turn, stretch s by 1/s with s = 2^N(0, 0.2^2), turn again, shift by
  N(0, 0.125^2) of a side. Each with probability p, a turn with 1 - sqrt(1 - p), twice.

  Args:
    key: PRNG key.
    p: probability, scalar.
    size: (height, width) in pixels.
    batch: B.
    kinds: "b", "g" or "bg".

  Returns:
    [B, 3, 3], for `warp`.

  Source: Karras et al., 2020, arXiv:2006.06676, appendix B, and its code.

  >>> geometry(jax.random.key(0), 0.0, size=(8, 8), batch=1)[0].tolist()
  [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
  """
  u = jax.random.uniform(key, (18, batch), jnp.float32)
  coin, gauss = iter(u[:14]), iter(_normal(u[14:]))
  height, width = size

  def maybe(value, still, chance=p):
    return jnp.where(next(coin) < chance, value, still)

  maps = []
  if "b" in kinds:
    mirror = maybe(jnp.floor(2 * next(coin)), 0.0)
    turns = maybe(jnp.floor(4 * next(coin)), 0.0)
    right, down = (jnp.round((2 * next(coin) - 1) / 8 * n) for n in (width, height))
    moves = maybe(1.0, 0.0)
    maps.append(_scaling(1 - 2 * mirror, jnp.ones_like(mirror)))
    maps.append(_rotation(math.pi / 2 * turns))
    maps.append(_shift(-moves * right, -moves * down))
  if "g" in kinds:
    chance = 1 - jnp.sqrt(1 - jnp.clip(p, 0.0, 1.0))  # once or twice: p
    turn = lambda: _rotation(maybe(math.pi * (2 * next(coin) - 1), 0.0, chance))
    scale = maybe(jnp.exp2(0.2 * next(gauss)), 1.0)
    maps.append(_scaling(1 / scale, 1 / scale))
    maps.append(turn())
    stretch = maybe(jnp.exp2(0.2 * next(gauss)), 1.0)
    maps.append(_scaling(1 / stretch, stretch))
    maps.append(turn())
    moves = maybe(0.125, 0.0)
    maps.append(_shift(-moves * width * next(gauss), -moves * height * next(gauss)))
  return _product(maps)


def color(key: jax.Array, x: jax.Array, p: jax.Array) -> jax.Array:
  """ADA's changes of colour, in this order, each with probability p for each image.

  With x = g + d, g a pixel's mean over its channels and d what deviates from it: brightness
  g + N(0, 0.2^2); contrast (g, d) * 2^N(0, 0.5^2); half of the time g becomes -g; for RGB d is
  turned about the grey axis by any angle, and d * 2^N(0, 1).

  Args:
    key: PRNG key.
    x: [B, H, W, 1 or 3].
    p: probability, scalar.

  Returns:
    [B, H, W, C].

  Source: Karras et al., 2020, arXiv:2006.06676, appendix B, and its code.

  >>> color(jax.random.key(0), jnp.ones((1, 1, 1, 3)), 0.0).ravel().tolist()
  [1.0, 1.0, 1.0]
  """
  u = jax.random.uniform(key, (10, len(x), 1, 1, 1), jnp.float32)
  coin, gauss = iter(u[:7]), iter(_normal(u[7:]))

  def maybe(value, still):
    return jnp.where(next(coin) < p, value, still)

  brightness = maybe(0.2 * next(gauss), 0.0)
  contrast = maybe(jnp.exp2(0.5 * next(gauss)), 1.0)
  mirror = maybe(jnp.floor(2 * next(coin)), 0.0)
  if x.shape[3] == 1:
    return (1 - 2 * mirror) * contrast * (x + brightness)
  grey = sum(jnp.roll(x, i, axis=3) for i in range(3)) / 3
  d = x - grey
  angle = maybe(math.pi * (2 * next(coin) - 1), 0.0)
  saturation = maybe(jnp.exp2(next(gauss)), 1.0)
  side = (jnp.roll(d, 1, axis=3) - jnp.roll(d, -1, axis=3)) / math.sqrt(3)  # (1, 1, 1) / sqrt 3 x d
  d = saturation * (jnp.cos(angle) * d + jnp.sin(angle) * side)
  return contrast * ((1 - 2 * mirror) * (grey + brightness) + d)


def require(kinds: str, channels: int) -> None:
  """Raises ValueError for another letter than b, g, c, or images with another number of channels.

  >>> require("bgc", 3)
  """
  if set(kinds) - set("bgc") or (kinds and channels not in (1, 3)):
    raise ValueError(
      f"kinds {kinds!r} for images of {channels} channels: choose letters out of 'bgc' for 1 or 3"
      " channels: change --config.model.ada_kinds or --config.data.channels"
    )


def augment(key: jax.Array, x: jax.Array, p: jax.Array, kinds: str = "bgc") -> jax.Array:
  """ADA's augmentation: whole moves (b), other moves (g) and colours (c), each with probability p.

  As long as p < 0.8 or so G learns the plain images: what is done to them can be undone in law.

  Args:
    key: PRNG key; a fresh one for each batch that D sees.
    x: [B, H, W, 1 or 3] in [-1, 1].
    p: probability, a scalar that training adapts (`adapt`).
    kinds: letters out of "bgc"; "" changes nothing.

  Returns:
    [B, H, W, C], differentiable in x; x itself, but for rounding, where p = 0.

  Raises:
    ValueError: for another letter, or images with another number of channels.

  Source: Karras et al., 2020, arXiv:2006.06676, section 3 and appendix B.

  >>> augment(jax.random.key(0), jnp.zeros((2, 8, 8, 1)), 0.0).shape
  (2, 8, 8, 1)
  """
  require(kinds, x.shape[3])
  k_place, k_color = jax.random.split(key)
  if set(kinds) & set("bg"):
    inverse = geometry(k_place, p, size=x.shape[1:3], batch=len(x), kinds=kinds)
    x = warp(x, inverse)
  if "c" in kinds:
    x = color(k_color, x, p)
  return x


def adapt(p: jax.Array, sign: jax.Array, *, target: float, step: float) -> jax.Array:
  """Moves ADA's probability: p + step where D is surer of its data than `target`, else p - step.

  Args:
    p: probability, scalar.
    sign: r, the mean sign of D's logits on data: 0 where it knows nothing, 1 where it knows all.
    target: of r (0.6 in the paper).
    step: images seen since the last move over those in which p goes from 0 to 1 (500,000).

  Returns:
    The new p, at least 0.

  Source: Karras et al., 2020, arXiv:2006.06676, section 3.1, and its code.

  >>> float(adapt(jnp.array(0.5), jnp.array(0.9), target=0.6, step=0.25))
  0.75
  """
  return jnp.maximum(0.0, p + step * jnp.sign(sign - target))
