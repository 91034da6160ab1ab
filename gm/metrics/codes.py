"""Do the categories that a model chose by itself agree with classes that it was never told?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.optimize import linear_sum_assignment

from gm.core import Info
from gm.metrics import digits

_MEND = (
  "take it out of --config.metrics, or use --config=configs/infogan.py or configs/aae.py:clustering"
)


def purity(
  fake: Mapping[str, np.ndarray], real: Mapping[str, np.ndarray], info: Info
) -> dict[str, float]:
  """Agreement of the category that a sample was made from with the class that it shows.

  The class is the digit that the classifier sees in an image, or the mode nearest to a point.

  Args:
    fake: "category" int [N], and "image" [N, H, W, C] or "point" [N, D].
    real: not used.
    info: with modes, where there are points.

  Returns:
    code_purity: share of samples that are of their category's most frequent class. 1 also where
      all samples are of one class.
    code_matched: the same share where every category has a class of its own, the best such choice:
      at most the purity, and at most one over the number of classes where all are of one.
    code_classes: how many classes are the most frequent one of a category.

  Raises:
    ValueError: if there are no categories, or nothing that shows a class.

  Source: Chen et al., 2016, arXiv:1606.03657, section 7.2, for the matching.

  >>> two = Info({"point": (1,)}, modes=((0.0,), (9.0,)), mode_std=1.0)
  >>> fake = {"point": np.array([[8.0], [9.0], [1.0], [0.0]]), "category": np.array([0, 0, 1, 0])}
  >>> purity(fake, {}, two)
  {'code_purity': 0.75, 'code_matched': 0.75, 'code_classes': 2.0}
  """
  if "category" not in fake or not ("image" in fake or ("point" in fake and info.modes)):
    raise ValueError(
      "codes.purity takes samples with a category, as images of digits or as points with known"
      f" modes; these hold {_names(fake)}: {_MEND}"
    )
  if "image" in fake:
    classes = digits.classify(fake["image"])[0].argmax(1)
  else:
    gap = np.asarray(fake["point"])[:, None] - np.asarray(info.modes)
    classes = (gap**2).sum(-1).argmin(1)
  return {f"code_{k}": v for k, v in agreement(fake["category"], classes).items()}


def clusters(
  fake: Mapping[str, np.ndarray], real: Mapping[str, np.ndarray], info: Info
) -> dict[str, float]:
  """Agreement of the categories that a model sees in held-out data with their labels.

  Args:
    fake: "data_category" and "data_label", int [N].
    real: not used.
    info: not used.

  Returns:
    cluster_purity, cluster_matched, cluster_classes: as `purity`, of the data.

  Raises:
    ValueError: if there are no such arrays.

  >>> clusters({"data_category": np.array([1, 1, 0]), "data_label": np.array([4, 4, 7])}, {}, None)
  {'cluster_purity': 1.0, 'cluster_matched': 1.0, 'cluster_classes': 2.0}
  """
  if "data_category" not in fake or "data_label" not in fake:
    raise ValueError(
      "codes.clusters takes the categories that a model sees in labelled data; the samples hold"
      f" {_names(fake)}: {_MEND}"
    )
  found = agreement(fake["data_category"], fake["data_label"])
  return {f"cluster_{k}": v for k, v in found.items()}


def agreement(category: np.ndarray, classes: np.ndarray) -> dict[str, float]:
  """How well one numbering follows another, whatever the names.

  With n_kc examples of category k and class c: purity = sum_k max_c n_kc / N; matched = max over
  one-to-one maps f of sum_k n_k,f(k) / N.

  Args:
    category: int [N], not negative.
    classes: int [N], not negative.

  Returns:
    purity, matched, and classes: the number of classes that are the most frequent of a category.

  Raises:
    ValueError: if there is nothing to compare, or the lengths differ.

  >>> agreement(np.array([0, 0, 1, 1]), np.array([5, 5, 5, 5]))
  {'purity': 1.0, 'matched': 0.5, 'classes': 1.0}
  """
  category, classes = np.asarray(category), np.asarray(classes)
  if category.shape != classes.shape or not category.size:
    raise ValueError(
      f"{category.shape} categories and {classes.shape} classes do not pair: give one of each for"
      " every example"
    )
  table = np.zeros((category.max() + 1, classes.max() + 1), np.int64)
  np.add.at(table, (category, classes), 1)
  rows, cols = linear_sum_assignment(table, maximize=True)
  most = table[table.any(1)].argmax(1)
  return {
    "purity": float(table.max(1).sum() / category.size),
    "matched": float(table[rows, cols].sum() / category.size),
    "classes": float(len(np.unique(most))),
  }


def _names(batch: Mapping) -> str:
  return ", ".join(sorted(batch)) or "nothing"
