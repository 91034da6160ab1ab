"""Samples of one picture beside it: which patches they have, and how much they differ.

None of these is the SIFID of the SinGAN paper, which needs a network of photographs.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np

from gm.core import Info

SIDE = 7  # pixels of a patch
NUM_DIRECTIONS = 256
NUM_NEAR = 1_500  # patches of each side whose nearest is looked for


def of_one(
  fake: Mapping[str, np.ndarray], real: Mapping[str, np.ndarray], info: Info
) -> dict[str, float]:
  """Compares the patches, 7 x 7 pixels with their colours, of samples and of one picture.

  Args:
    fake: "image" [N, H, W, C] in [-1, 1].
    real: "image"; the first is the picture, resized to the samples' size.
    info: not used.

  Returns:
    swd: mean over random directions of W1 between the projections of the samples' patches and the
      picture's, in [-1, 1]; the same for patches of pixels that are drawn independently from the
      normal law of the picture's colours (swd_noise), and for patches from the normal law of its
      patches (swd_normal).
    coherence: root mean square difference of a sample's patch from the nearest of the picture's,
      mean over patches; coverage: of the picture's from the nearest of the samples'.
    diversity: standard deviation of a pixel's grey over samples, mean over pixels, divided by that
      of the picture's grey over its pixels: 0 where all are alike.
    apart: root mean square difference of samples from the picture, mean over samples.

  Raises:
    ValueError: if there are no images, or they are smaller than a patch.

  >>> x = np.random.default_rng(0).uniform(-1, 1, (1, 12, 12, 3))
  >>> found = of_one({"image": np.repeat(x, 3, axis=0)}, {"image": x}, Info({}))
  >>> [round(found[name], 2) for name in ("swd", "coherence", "diversity", "apart")]
  [0.0, 0.0, 0.0, 0.0]
  """
  x, y = (np.clip(np.asarray(b.get("image", ()), np.float32), -1, 1) for b in (fake, real))
  if x.ndim != 4 or y.ndim != 4 or min(x.shape[1:3]) < SIDE:
    raise ValueError(
      f"patches.of_one takes images of {SIDE} pixels or more, not {x.shape} and {y.shape}: take it"
      " out of --config.metrics"
    )
  y = y[:1] if y.shape[1:] == x.shape[1:] else _resized(y[:1], x.shape[1:])
  rng = np.random.default_rng(0)
  ours, theirs = patches(x), patches(y)
  colours = y.reshape(-1, y.shape[3])
  noise = patches(_normal(rng, colours, y.size // y.shape[3]).reshape(y.shape).astype(np.float32))
  directions = rng.standard_normal((theirs.shape[1], NUM_DIRECTIONS)).astype(np.float32)
  directions /= np.linalg.norm(directions, axis=0)
  true = np.sort(theirs @ directions, axis=0)
  apart = lambda points: _wasserstein(np.sort(points @ directions, axis=0), true)
  a, b = (p[rng.permutation(len(p))[:NUM_NEAR]] for p in (ours, theirs))
  grey = x.mean(3)
  return {
    "swd": apart(ours),
    "swd_noise": apart(noise),
    "swd_normal": apart(_normal(rng, theirs, len(theirs)).astype(np.float32)),
    "coherence": _nearest(a, theirs),
    "coverage": _nearest(b, ours[rng.permutation(len(ours))[: len(theirs)]]),
    "diversity": float(grey.std(0).mean() / max(y.mean(3).std(), 1e-6)),
    "apart": float(np.sqrt(((x - y) ** 2).mean((1, 2, 3))).mean()),
  }


def patches(x: np.ndarray) -> np.ndarray:
  """All patches of images [N, H, W, C], [N (H - 6) (W - 6), 49 C].

  >>> patches(np.zeros((2, 8, 7, 3))).shape
  (4, 147)
  """
  windows = np.lib.stride_tricks.sliding_window_view(x, (SIDE, SIDE), (1, 2))
  return windows.reshape(-1, SIDE * SIDE * x.shape[3])


def _resized(x: np.ndarray, shape: tuple) -> np.ndarray:
  return np.clip(jax.image.resize(x, (len(x), *shape), "cubic"), -1, 1)


def _normal(rng: np.random.Generator, rows: np.ndarray, num: int) -> np.ndarray:
  """`num` draws from the normal law with the mean and the covariance of rows [N, D]."""
  cov = np.atleast_2d(np.cov(rows, rowvar=False, dtype=np.float64))
  values, vectors = np.linalg.eigh(cov)
  root = vectors * np.sqrt(np.maximum(values, 0))
  return rows.mean(0) + rng.standard_normal((num, len(cov))) @ root.T


def _wasserstein(a: np.ndarray, b: np.ndarray) -> float:
  """W1 of sorted samples along axis 0, mean over columns; b may be the shorter one."""
  if len(a) > len(b):
    b = b[((np.arange(len(a)) + 0.5) * len(b) / len(a)).astype(int)]
  return float(np.abs(a - b).mean())


def _nearest(rows: np.ndarray, others: np.ndarray) -> float:
  """Root mean square difference of rows from the nearest of others, mean over rows."""
  squares = (rows**2).sum(1)[:, None] - 2 * rows @ others.T + (others**2).sum(1)
  return float(np.sqrt(np.maximum(squares.min(1), 0) / rows.shape[1]).mean())
