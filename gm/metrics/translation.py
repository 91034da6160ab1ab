"""Translations beside the true counterparts, where both domains show the same scenes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gm.core import Info


def counterparts(
  fake: Mapping[str, np.ndarray], real: Mapping[str, np.ndarray], info: Info
) -> dict[str, float]:
  """Mean absolute differences of translations, and of simpler ones, from the true counterparts.

  Domains have the range [-1, 1], so a difference of 2 is that of black and white. Every reference
  but `identity` is fitted on the very images that it is measured on.

  Args:
    fake: "a" made of the real "b", and "b" made of the real "a", [N, H, W, C].
    real: "a" and "b", the same scenes row by row; set config.reference_split to test.
    info: of the data, with aligned domains.

  Returns:
    l1_a, l1_b: of the translations.
    identity: of the images of one domain from those of the other.
    statistics_a, statistics_b: of images of the other domain, whose channels are given the mean and
      the standard deviation of this one.
    constant_a, constant_b: of the median colour.
    affine_a, affine_b: of the best affine map of colours to colours, by least squares over pairs of
      pixels, which nobody knows who has no pairs.

  Raises:
    ValueError: if the data are no two domains, or their scenes differ.

  >>> a = np.linspace(-1, 1, 12).reshape(1, 2, 2, 3)
  >>> found = counterparts({"a": a, "b": a}, {"a": a, "b": -a}, Info({}, aligned=True))
  >>> round(found["l1_a"], 4), round(found["l1_b"], 4), round(found["identity"], 4)
  (0.0, 1.0909, 1.0909)
  """
  if not info.aligned or not {"a", "b"} <= set(fake) & set(real):
    raise ValueError(
      "translation.counterparts takes two domains that show the same scenes: take it out of"
      " --config.metrics, or set --config.data.source=domains and --config.data.paired=True"
    )
  num = min(len(fake["a"]), len(real["a"]))
  x, y = ({n: np.asarray(of[n][:num], np.float64) for n in "ab"} for of in (fake, real))
  found = {"identity": _l1(y["a"], y["b"])}
  for n, other in ("ab", "ba"):
    flat = {k: v.reshape(-1, v.shape[-1]) for k, v in y.items()}
    found |= {
      f"l1_{n}": _l1(x[n], y[n]),
      f"statistics_{n}": _l1(_standard(flat[other]) * flat[n].std(0) + flat[n].mean(0), flat[n]),
      f"constant_{n}": _l1(np.median(flat[n], 0), flat[n]),
      f"affine_{n}": _l1(_affine(flat[other], flat[n]), flat[n]),
    }
  return found


def _l1(x: np.ndarray, y: np.ndarray) -> float:
  return float(np.abs(x - y).mean())


def _standard(x: np.ndarray) -> np.ndarray:  # [N, C], by channels
  return (x - x.mean(0)) / np.maximum(x.std(0), 1e-12)


def _affine(x: np.ndarray, y: np.ndarray) -> np.ndarray:  # y as x tells it, [N, C]
  x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
  return x @ np.linalg.lstsq(x, y, rcond=None)[0]
