"""Codes of data against the prior that they are meant to follow."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gm.core import Info

NUM = 1_000  # codes that are compared, and as many draws


def codes(
  fake: Mapping[str, np.ndarray], real: Mapping[str, np.ndarray], info: Info
) -> dict[str, float]:
  """How far the codes of held-out data, taken together, are from draws of the prior.

  Decoded draws of the prior can only look like data where the codes of data fill it. A random 1,000
  of each are compared.

  Args:
    fake: "code" [N, Z], drawn from q(z|x) for held-out x, and "latent" [N, Z], from the prior.
    real: not used.
    info: not used.

  Returns:
    code_mmd: `mmd` of codes and draws, squared, with the median distance of two draws as the
      bandwidth, so that models of one prior compare; 0 for equal laws, at most 2.
    code_mmd_self: the same between two random halves of the draws, a floor.
    code_ks: `ks_distance`, the largest over the axes. For n independent codes of the prior's law it
      exceeds 1.63 sqrt(2 / n) on an axis once in a hundred times, 0.073 for 1,000.
    code_mean: largest distance of the two means on an axis.
    code_std_min, code_std_max: least and largest deviation of the codes on an axis, over that of
      the draws.

  Raises:
    ValueError: if there are no codes or draws, fewer than 4, or a value is not finite.

  >>> z = np.random.default_rng(0).standard_normal((2, 1000, 2))
  >>> found = codes({"code": 3 * z[0], "latent": z[1]}, {}, Info({}))
  >>> found["code_mmd"] > 100 * found["code_mmd_self"], round(found["code_std_min"])
  (True, 3)
  """
  if "code" not in fake or "latent" not in fake or len(fake["code"]) < 4:
    raise ValueError(
      "mmd.codes takes 4 codes of data and as many draws of their prior at least; the samples"
      f" hold {', '.join(sorted(fake)) or 'nothing'}: take it out of --config.metrics, or use"
      " --config.method=aae"
    )
  some = lambda x: np.random.default_rng(0).permutation(np.asarray(x, np.float64))[:NUM]
  code, latent = some(fake["code"]), some(fake["latent"])
  if not (np.isfinite(code).all() and np.isfinite(latent).all()):
    raise ValueError("codes or draws are not finite: lower --config.lr, or change --config.seed")
  half, width = len(latent) // 2, median_distance(latent)
  ratio = code.std(0) / latent.std(0)
  return {
    "code_mmd": mmd(code, latent, bandwidth=width),
    "code_mmd_self": mmd(latent[:half], latent[half : 2 * half], bandwidth=width),
    "code_ks": max(ks_distance(a, b) for a, b in zip(code.T, latent.T, strict=True)),
    "code_mean": float(np.abs(code.mean(0) - latent.mean(0)).max()),
    "code_std_min": float(ratio.min()),
    "code_std_max": float(ratio.max()),
  }


codes.least = 4


def mmd(a: np.ndarray, b: np.ndarray, *, bandwidth: float) -> float:
  """Squared maximum mean discrepancy under k(x, y) = exp(-|x - y|^2 / 2 h^2), without bias.

  E k(a, a') + E k(b, b') - 2 E k(a, b) over distinct pairs; its expectation is 0 if and only if the
  laws are equal, so on equal laws it is negative half of the time.

  Args:
    a: [N, D], N >= 2.
    b: [M, D], M >= 2.
    bandwidth: h, in units of the points.

  Returns:
    The estimate.

  Raises:
    ValueError: for fewer than 2 points, different dimensions, or a bandwidth that is not positive.

  Source: Gretton et al., A kernel two-sample test, JMLR 2012, equation 3.

  >>> two = np.array([[0.0], [1.0]])
  >>> round(mmd(two, two, bandwidth=1.0), 4)  # e^-1/2 + e^-1/2 - (1 + e^-1/2)
  -0.3935
  """
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  if min(len(a), len(b)) < 2 or a.shape[1:] != b.shape[1:] or not bandwidth > 0:
    raise ValueError(
      f"points {a.shape} and {b.shape} with a bandwidth of {bandwidth}: give two of each at least,"
      " of one dimension, that do not all coincide"
    )
  kernel = lambda x, y: np.exp(-_squares(x, y) / (2 * bandwidth**2))
  apart = lambda x: (kernel(x, x).sum() - len(x)) / (len(x) * (len(x) - 1))
  return float(apart(a) + apart(b) - 2 * kernel(a, b).mean())


def median_distance(x: np.ndarray) -> float:
  """Median of the distances of all pairs of points x [N, D].

  >>> median_distance(np.array([[0.0], [1.0], [3.0]]))  # of 1, 2, 3
  2.0
  """
  rows, cols = np.triu_indices(len(x), 1)
  return float(np.sqrt(np.median(_squares(x, x)[rows, cols])))


def ks_distance(a: np.ndarray, b: np.ndarray) -> float:
  """Kolmogorov-Smirnov distance of two samples of numbers: the largest |F_a - F_b|.

  Args:
    a: [N].
    b: [M].

  Returns:
    From 0 to 1.

  >>> ks_distance(np.array([0.0, 1.0]), np.array([0.5, 2.0]))
  0.5
  """
  both = np.concatenate([a, b])
  share = lambda x: np.searchsorted(np.sort(x), both, side="right") / len(x)
  return float(np.abs(share(a) - share(b)).max())


def _squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Squared distances [N, M]."""
  found = (x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T
  return np.maximum(found, 0.0)
