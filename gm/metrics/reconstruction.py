"""Autoencoders: the least that a linear one of the same size loses, and what random codes give."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gm.core import Info

QUANTILE = 0.95  # of real images that are accepted
CHUNK = 500  # rows of a distance matrix at a time


def pca(
  fake: Mapping[str, np.ndarray], real: Mapping[str, np.ndarray], info: Info
) -> dict[str, float]:
  """Mean squared errors per pixel that principal components leave on the real images themselves.

  No linear autoencoder with so many latents leaves less on these images: set
  config.reference_split to the split whose error it is compared with.

  Args:
    fake: "latent" [N, Z]; only Z is used.
    real: "image" [M, H, W, C] in [-1, 1]; errors are of pixels in [0, 1].
    info: not used.

  Returns:
    pca_mse: with Z components, `pca_error`.
    mean_mse: with none, so that the mean image stands for every one.

  Raises:
    ValueError: if there are no latents or no images.

  >>> line = np.linspace(-1, 1, 8).reshape(8, 1, 1, 1) * np.ones((1, 2, 2, 1))
  >>> found = pca({"latent": np.zeros((1, 1))}, {"image": line}, Info({}))
  >>> round(found["pca_mse"], 6), round(found["mean_mse"], 6)
  (0.0, 0.107143)
  """
  if "latent" not in fake or "image" not in real:
    raise ValueError(
      "reconstruction.pca takes samples with a latent and real images: take it out of"
      " --config.metrics, or use --config.method=autoencoder and data with images"
    )
  x = _unit(real)
  return {
    "pca_mse": pca_error(x, fake["latent"].shape[1]),
    "mean_mse": pca_error(x, 0),
  }


def pca_error(x: np.ndarray, num: int) -> float:
  """Mean over the entries of x of the squared error that `num` principal components leave.

  (1 / D) sum_{j > num} lambda_j, lambda_1 >= lambda_2 >= ... the eigenvalues of the covariance with
  divisor N: the least of all affine maps to `num` numbers and back (Eckart and Young, 1936).

  Args:
    x: [N, D].
    num: from 0 to D.

  Returns:
    The error, in squared units of x.

  Raises:
    ValueError: if num does not fit.

  >>> pca_error(np.array([[0.0, 1.0], [2.0, 1.0]]), 0)
  0.5
  """
  if not 0 <= num <= x.shape[1]:
    raise ValueError(
      f"{num} components of {x.shape[1]} numbers: change --config.model.z_dim, at most that many"
    )
  x = x - x.mean(0)
  values = np.linalg.eigvalsh(x.T @ x / len(x))  # rising
  return float(np.maximum(values[: x.shape[1] - num], 0.0).sum() / x.shape[1])


def accepted(
  fake: Mapping[str, np.ndarray], real: Mapping[str, np.ndarray], info: Info
) -> dict[str, float]:
  """Share of samples that a test of the distance to the nearest real image lets pass.

  The test lets 95 % of the real images pass, each measured to the nearest other one. It sees images
  that are far from all data. It does not see missing ones, nor copies, and a blurred image is near
  to many: read it together with the pictures and the shares of the classes.

  Args:
    fake: "image" [N, H, W, C] in [-1, 1].
    real: "image" [M, H, W, C].
    info: not used.

  Returns:
    accepted: the share, 0.95 for an exact sampler.
    nearest_ratio: median distance of samples over that of real images, 1 for an exact sampler.

  Raises:
    ValueError: if there are no images, or only one real one.

  >>> real = np.linspace(-1, 1, 20).reshape(20, 1, 1, 1)
  >>> fake = np.array([0.0, 5.0]).reshape(2, 1, 1, 1)
  >>> accepted({"image": fake}, {"image": real}, Info({}))["accepted"]
  0.5
  """
  if "image" not in fake or "image" not in real or len(real["image"]) < 2:
    raise ValueError(
      "reconstruction.accepted takes images, two real ones at least: take it out of"
      " --config.metrics, or use data with images"
    )
  x, y = _unit(fake), _unit(real)
  among, to = _nearest(y, y, itself=True), _nearest(x, y)
  return {
    "accepted": float((to <= np.quantile(among, QUANTILE)).mean()),
    "nearest_ratio": float(np.median(to) / np.median(among)),
  }


def _nearest(x: np.ndarray, y: np.ndarray, *, itself: bool = False) -> np.ndarray:
  """Distance [N] of each row of x to the nearest of y, or to the nearest other one if y is x."""
  found, norm = [], (y**2).sum(1)
  for i in range(0, len(x), CHUNK):
    part = x[i : i + CHUNK]
    square = (part**2).sum(1)[:, None] + norm - 2 * part @ y.T
    if itself:
      square[np.arange(len(part)), i + np.arange(len(part))] = np.inf
    found.append(square.min(1))
  return np.sqrt(np.maximum(np.concatenate(found), 0.0))


def _unit(batch: Mapping[str, np.ndarray]) -> np.ndarray:
  """Images as rows [N, D] of pixels in [0, 1]."""
  x = np.asarray(batch["image"], np.float64)
  return (x.reshape(len(x), -1) + 1) / 2
