"""The sliced Wasserstein distance of image patches, scale by scale (ProGAN's own metric)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gm.core import Info

SMALLEST = 16  # pixels of the coarsest scale
PATCH = 7  # pixels of a patch's side, or all of a smaller image's
NUM_PATCHES = 2**17  # of each side and scale; the paper: 128 of each of 16,384 images
NUM_DIRECTIONS = 512  # the paper's 4 times 128
_BINOMIAL = np.array([1, 4, 6, 4, 1], np.float32) / 16


def wasserstein(
  fake: Mapping[str, np.ndarray], real: Mapping[str, np.ndarray], info: Info
) -> dict[str, float]:
  """Compares patches of samples and of data at every scale of a Laplacian pyramid.

  Patches are 7 x 7 pixels at random places, or as large as an image that is smaller; each side's
  are normalised by their own mean and standard deviation per channel, so brightness and contrast do
  not count. The distance is the mean over random unit directions of W1 between their projections on
  it, times 1000. The finest scale holds sharpness and noise, the coarsest the layout.

  Args:
    fake: "image" [N, H, W, C]; values are clipped to [-1, 1].
    real: "image" [M, H, W, C]; min(N, M) images of each, chosen at random, are compared.
    info: not used.

  Returns:
    swd_<pixels> for every halving of the shorter side down to 16, and swd, their mean.

  Raises:
    ValueError: if there are no images, or they differ in size.

  Source: Karras et al., 2018, arXiv:1710.10196, section 5, and its code.

  >>> x = {"image": np.random.default_rng(0).uniform(-1, 1, (8, 16, 16, 1))}
  >>> wasserstein(x, x, Info({}))
  {'swd_16': 0.0, 'swd': 0.0}
  """
  x, y = (np.clip(np.asarray(b.get("image", ()), np.float32), -1, 1) for b in (real, fake))
  if x.ndim != 4 or y.ndim != 4 or x.shape[1:] != y.shape[1:]:
    raise ValueError(
      f"sliced.wasserstein takes images of one size, not {x.shape} and {y.shape}: take it out of"
      " --config.metrics, or use data with images"
    )
  num = min(len(x), len(y))
  some = lambda z: z if len(z) == num else np.random.default_rng(0).permutation(z)[:num]
  found = {}
  for a, b in zip(pyramid(some(x)), pyramid(some(y))):
    found[f"swd_{min(a.shape[1:3])}"] = 1000 * _distance(_patches(a), _patches(b))
  return {**found, "swd": float(np.mean(list(found.values())))}


def pyramid(x: np.ndarray) -> list[np.ndarray]:
  """The Laplacian pyramid of images [N, H, W, C]: details, finest first, and what is left.

  >>> [level.shape[1] for level in pyramid(np.zeros((1, 64, 64, 3)))]
  [64, 32, 16]
  """
  levels = []
  while min(x.shape[1:3]) >= 2 * SMALLEST:
    down = _blur(x)[:, ::2, ::2]
    up = np.zeros_like(x)
    up[:, ::2, ::2] = 4 * down
    levels.append(x - _blur(up))
    x = down
  return [*levels, x]


def _blur(x: np.ndarray) -> np.ndarray:
  """Convolves both axes with the binomial kernel, mirrored at the borders."""
  for axis in (1, 2):
    n, edges = x.shape[axis], [(0, 0)] * 4
    edges[axis] = (2, 2)
    wide = np.pad(x, edges, mode="reflect")
    x = sum(k * wide.take(range(i, i + n), axis) for i, k in enumerate(_BINOMIAL))
  return x


def _patches(x: np.ndarray) -> np.ndarray:
  """[N, H, W, C] -> [P, side^2 C], normalised per channel; the places are the same every time."""
  n, h, w = x.shape[:3]
  side = min(PATCH, h, w)
  rng = np.random.default_rng(0)
  image = np.tile(np.arange(n), -(-min(NUM_PATCHES, 128 * n) // n))
  top = rng.integers(0, h - side + 1, len(image))
  left = rng.integers(0, w - side + 1, len(image))
  windows = np.lib.stride_tricks.sliding_window_view(x, (side, side), (1, 2))
  found = windows[image, top, left]  # [P, C, side, side]
  found = found - found.mean((0, 2, 3), keepdims=True)
  std = found.std((0, 2, 3), keepdims=True)
  return (found / np.where(std > 0, std, 1.0)).reshape(len(image), -1)


def _distance(x: np.ndarray, y: np.ndarray) -> float:
  rng, total = np.random.default_rng(1), 0.0
  for _ in range(NUM_DIRECTIONS // 16):  # 16 at a time, to save memory
    directions = rng.standard_normal((x.shape[1], 16)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=0)
    a, b = (np.sort((points @ directions).T, 1) for points in (x, y))
    total += float(np.abs(a - b).mean())
  return total / (NUM_DIRECTIONS // 16)
