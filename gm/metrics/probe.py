"""A linear probe: how much of the class can be read, linearly, from features of real images."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gm.core import Info

FOLDS = 5
RIDGE = 0.1  # of the mean squared length of a feature vector


def linear(
  fake: Mapping[str, np.ndarray], real: Mapping[str, np.ndarray], info: Info
) -> dict[str, float]:
  """Accuracy of a linear classifier on a network's features of held-out images.

  The images are those of the test split, whose labels training has not seen; where they come round
  again, the rows after are left out. They are cut at random into 5 folds, and each is classified by
  ridge regression on the other four.

  Args:
    fake: "feature" [N, F] and "data_label" [N] of held-out images, in the split's order.
    real: not used.
    info: not used.

  Returns:
    probe_accuracy: share of the images with the right label.
    probe_chance: share of the most frequent label, what a constant would get.

  Raises:
    ValueError: if there are no features, or fewer than 10 images.

  Source: Radford et al., 2016, arXiv:1511.06434, section 5.1, who use a support vector machine.

  >>> label = np.arange(40) % 2
  >>> linear({"feature": np.c_[label + np.arange(40) / 1e3], "data_label": label}, {}, Info({}))
  {'probe_accuracy': 1.0, 'probe_chance': 0.5}
  """
  if "feature" not in fake or "data_label" not in fake:
    raise ValueError(
      f"probe.linear takes features of labelled images; the samples hold {', '.join(sorted(fake))}:"
      " set --config.model.probe=True, or take it out of --config.metrics"
    )
  x, y = np.asarray(fake["feature"], np.float64), np.asarray(fake["data_label"])
  again = np.flatnonzero((x[1:] == x[0]).all(1) & (y[1:] == y[0]))
  num = again[0] + 1 if len(again) else len(x)
  x, y = x[:num], y[:num]
  if num < 2 * FOLDS:
    raise ValueError(f"{num} images are too few for {FOLDS} folds: raise --config.num_eval_samples")
  fold, right = np.random.default_rng(0).permutation(num) % FOLDS, 0
  for i in range(FOLDS):
    known = fold != i
    found = ridge(x[known], y[known], x[~known])
    right += int((found == y[~known]).sum())
  chance = np.unique(y, return_counts=True)[1].max() / num
  return {"probe_accuracy": right / num, "probe_chance": float(chance)}


linear.least = 2 * FOLDS


def ridge(x: np.ndarray, y: np.ndarray, new: np.ndarray) -> np.ndarray:
  """Labels of new rows by regression of one-hot labels on x, with a penalty on the weights.

  min_W |X W - Y|^2 + lambda |W|^2 by its dual, X and Y less their means, lambda = 0.1 mean |x|^2.

  Args:
    x: [N, F].
    y: [N].
    new: [M, F].

  Returns:
    [M], values of y.

  >>> ridge(np.array([[0.0], [1.0], [10.0], [11.0]]), np.array([3, 3, 8, 8]), np.array([[9.0]]))
  array([8])
  """
  classes, index = np.unique(y, return_inverse=True)
  mean, targets = x.mean(0), np.eye(len(classes))[index]
  x, share = x - mean, targets.mean(0)
  gram = x @ x.T
  penalty = RIDGE * np.trace(gram) / len(x) + 1e-12
  dual = np.linalg.solve(gram + penalty * np.eye(len(x)), targets - share)
  return classes[((new - mean) @ (x.T @ dual) + share).argmax(1)]
