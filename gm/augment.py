"""Augmentations of images [B, H, W, C]: drawn from a key, one draw for each, differentiable.

`augment` is DiffAugment: the discriminator sees only augmented images, real and fake, in its own
steps and in the generator's, and the generator's gradient passes through. Flip, pad and crop serve
ordinary data augmentation. Any H, W, C; no shape changes but by `pad` and `random_crop`.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp


def _draw(key: jax.Array, x: jax.Array, n: int) -> jax.Array:
  """Returns n numbers in [0, 1) for each example, [n, B], in one call: each is slow to compile."""
  return jax.random.uniform(key, (n, x.shape[0]))


def _place(u: jax.Array, n: int) -> jax.Array:
  """Returns an integer in {0, ..., n - 1} from a number in [0, 1)."""
  return jnp.floor(u * n).astype(int)


def color(key: jax.Array, x: jax.Array) -> jax.Array:
  """Random brightness, saturation and contrast, in this order.

  Brightness adds -0.5 to 0.5; saturation scales by 0 to 2 about the pixel's grey; contrast scales
  by 0.5 to 1.5 about the image's mean.

  Args:
    key: PRNG key.
    x: [B, H, W, C]; brightness assumes the range [-1, 1]. Values may leave it.

  Returns:
    [B, H, W, C].

  Source: Zhao et al., 2020, arXiv:2006.10738, and its code.

  >>> color(jax.random.key(0), jnp.zeros((2, 3, 4, 1))).shape
  (2, 3, 4, 1)
  """
  brightness, saturation, contrast = _draw(key, x, 3).astype(x.dtype)[..., None, None, None]
  channels = x.shape[3]
  # on a CPU 2 times (with its gradient 5 times) faster than a mean over so short a last axis
  grey = sum(jnp.roll(x, i, axis=3) for i in range(channels)) / channels
  mean = jnp.mean(x, axis=(1, 2, 3), keepdims=True)
  # saturation keeps the image's mean, so both means are taken at once, before anything is changed
  saturated = (grey - mean) + 2 * saturation * (x - grey)
  return (mean + brightness - 0.5) + (contrast + 0.5) * saturated


def translation(key: jax.Array, x: jax.Array, *, ratio: float = 0.125) -> jax.Array:
  """Shifts by whole pixels, up to `ratio` of each side either way; what comes in is 0 (mid-grey).

  Args:
    key: PRNG key.
    x: [B, H, W, C].
    ratio: largest shift over the side, rounded to pixels, halves up.

  Returns:
    [B, H, W, C].

  Source: Zhao et al., 2020, arXiv:2006.10738, and its code.

  >>> translation(jax.random.key(0), jnp.ones((2, 8, 16, 1))).shape
  (2, 8, 16, 1)
  """
  sides = x.shape[1:3]
  return random_crop(key, pad(x, tuple(int(n * ratio + 0.5) for n in sides)), sides)


def cutout(key: jax.Array, x: jax.Array, *, ratio: float = 0.5) -> jax.Array:
  """Sets a rectangle to 0 (mid-grey), its centre anywhere in the image, cut off at the border.

  Args:
    key: PRNG key.
    x: [B, H, W, C].
    ratio: the rectangle's side over the image's, rounded to pixels, halves up.

  Returns:
    [B, H, W, C].

  Source: Zhao et al., 2020, arXiv:2006.10738, and its code.

  >>> float(cutout(jax.random.key(0), jnp.ones((1, 8, 8, 1))).min())
  0.0
  """

  def inside(u, side):  # [B, side], whether a row (column) is in the rectangle
    size = int(side * ratio + 0.5)
    # an even rectangle has its centre between two pixels, so one place more
    first = _place(u, side + 1 - size % 2)[:, None] - size // 2
    at = jnp.arange(side)
    return (at >= first) & (at < first + size)

  u, v = _draw(key, x, 2)
  hole = inside(u, x.shape[1])[:, :, None, None] & inside(v, x.shape[2])[:, None, :, None]
  return jnp.where(hole, 0, x)


def flip(key: jax.Array, x: jax.Array, *, p: float = 0.5) -> jax.Array:
  """Mirrors each image left to right with probability p.

  Args:
    key: PRNG key.
    x: [B, H, W, C].
    p: probability.

  Returns:
    [B, H, W, C].

  >>> flip(jax.random.key(0), jnp.array([[[[1.0], [2.0]]]]), p=1.0).ravel().tolist()
  [2.0, 1.0]
  """
  mirror = (_draw(key, x, 1)[0] < p)[:, None, None, None]
  return jnp.where(mirror, x[:, :, ::-1], x)


def pad(x: jax.Array, amount: tuple[int, int], *, mode: str = "constant") -> jax.Array:
  """Adds rows above and below and columns left and right.

  Args:
    x: [B, H, W, C].
    amount: (rows, columns) on each side.
    mode: "constant" (zeros), "reflect" or "edge", as in `jnp.pad`.

  Returns:
    [B, H + 2 rows, W + 2 columns, C].

  >>> pad(jnp.ones((1, 2, 3, 1)), (1, 2)).shape
  (1, 4, 7, 1)
  """
  rows, columns = amount
  return jnp.pad(x, ((0, 0), (rows, rows), (columns, columns), (0, 0)), mode=mode)


def random_crop(key: jax.Array, x: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Cuts a window out of each image, its place uniform.

  Args:
    key: PRNG key.
    x: [B, H, W, C].
    size: (height, width) of the window.

  Returns:
    [B, height, width, C].

  Raises:
    ValueError: if the window is larger than the image.

  >>> random_crop(jax.random.key(0), jnp.ones((2, 8, 9, 3)), (4, 5)).shape
  (2, 4, 5, 3)
  """
  room = (x.shape[1] - size[0], x.shape[2] - size[1])
  if min(room) < 0:
    raise ValueError(
      f"a window of {tuple(size)} does not fit into images of {x.shape[1:3]}; it must be at most "
      "as large: change --config.data.image_size or the crop"
    )
  u, v = _draw(key, x, 2)
  top, left = _place(u, room[0] + 1), _place(v, room[1] + 1)
  # on a CPU 2 times faster than gathering rows and columns, 4 to 13 than one-hot products
  cut = lambda image, i, j: jax.lax.dynamic_slice(image, (i, j, 0), (*size, image.shape[-1]))
  return jax.vmap(cut)(x, top, left)


def jitter(key: jax.Array, x: jax.Array, more: int) -> jax.Array:
  """Enlarges each image a little and cuts a window of the old size out of it, at random.

  Args:
    key: PRNG key.
    x: [B, H, W, C].
    more: pixels that each side grows by, cubic; pix2pix and CycleGAN: 30 of 256. 0 changes nothing.

  Returns:
    [B, H, W, C].

  Source: Isola et al., 2017, arXiv:1611.07004, section 6.2.

  >>> jitter(jax.random.key(0), jnp.ones((2, 8, 16, 1)), 2).shape
  (2, 8, 16, 1)
  """
  if not more:
    return x
  n, h, w, c = x.shape
  larger = jax.image.resize(x, (n, h + more, w + more, c), "cubic")
  return jnp.clip(random_crop(key, larger, (h, w)), -1, 1)


_POLICIES = {"color": color, "translation": translation, "cutout": cutout, "flip": flip}


def require(policy: str, shape: tuple[int, ...]) -> None:
  """Makes sure that a policy can be followed.

  Args:
    policy: as in `augment`.
    shape: of one example.

  Raises:
    ValueError: for an unknown name, or where the data are no images.

  >>> require("color,cutout", (28, 28, 1))
  """
  names = _names(policy)
  for name in names:
    if name not in _POLICIES:
      raise ValueError(
        f"unknown augmentation {name!r} in {policy!r}; known are {sorted(_POLICIES)}: change "
        "--config.model.augment"
      )
  if names and len(shape) != 3:
    raise ValueError(
      f"{policy!r} augments images [H, W, C], not data of shape {tuple(shape)}: set"
      ' --config.model.augment=""'
    )


def _names(policy: str) -> list[str]:
  return [name.strip() for name in policy.split(",") if name.strip()]


def augment(key: jax.Array, x: jax.Array, policy: str = "color,translation,cutout") -> jax.Array:
  """DiffAugment: applies the named transformations in the order given.

  Use a fresh key for each call: the discriminator's real and fake batches and the generator's step
  each have their own.

  Args:
    key: PRNG key.
    x: [B, H, W, C] in [-1, 1].
    policy: names out of color, translation, cutout, flip, separated by commas; "" changes nothing.

  Returns:
    [B, H, W, C], differentiable in x.

  Raises:
    ValueError: for an unknown name, or where x is no image.

  Source: Zhao et al., 2020, arXiv:2006.10738, and its code.

  >>> augment(jax.random.key(0), jnp.zeros((2, 8, 8, 3)), "color,cutout").shape
  (2, 8, 8, 3)
  """
  require(policy, x.shape[1:])
  names = _names(policy)
  for name, part in zip(names, jax.random.split(key, max(len(names), 1))):
    x = _POLICIES[name](part, x)
  return x


def views(key: jax.Array, policy: str) -> Callable:
  """Returns see(i, x): what D sees of x the i-th time that it looks in a step, by `augment`.

  Args:
    key: PRNG key for nothing else; every i draws from one of its own. None will do for no policy.
    policy: as in `augment`; "" shows x itself.

  >>> views(None, "")(0, jnp.ones(2)).tolist()
  [1.0, 1.0]
  """
  return lambda i, x: augment(jax.random.fold_in(key, i), x, policy) if policy else x
