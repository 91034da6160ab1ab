"""The linear probe against hand-made features."""

import numpy as np
import pytest

from gm.core import Info
from gm.metrics import probe


def test_ridge_equals_the_primal_solution():
  rng = np.random.default_rng(0)
  x, y, new = rng.standard_normal((30, 5)), rng.integers(3, size=30), rng.standard_normal((9, 5))
  mean, targets = x.mean(0), np.eye(3)[y]
  z, share = x - mean, targets.mean(0)
  penalty = probe.RIDGE * (z**2).sum() / len(z)
  w = np.linalg.solve(z.T @ z + penalty * np.eye(5), z.T @ (targets - share))
  np.testing.assert_array_equal(probe.ridge(x, y, new), ((new - mean) @ w + share).argmax(1))


def test_a_class_that_is_in_the_features_is_found_and_one_that_is_not_is_not():
  rng = np.random.default_rng(0)
  label = rng.integers(4, size=500)
  noise = rng.standard_normal((500, 20))
  seen = {"feature": noise + 5 * np.eye(20)[label], "data_label": label}
  found = probe.linear(seen, {}, Info({}))
  assert found["probe_accuracy"] > 0.97
  assert 0.2 < found["probe_chance"] < 0.35
  blind = probe.linear({"feature": noise, "data_label": label}, {}, Info({}))
  assert blind["probe_accuracy"] < 0.35


def test_classes_that_take_turns_are_in_every_fold():
  label, noise = np.arange(500) % 10, np.random.default_rng(0).standard_normal((500, 20))
  seen = {"feature": noise + 5 * np.eye(20)[label], "data_label": label}
  assert probe.linear(seen, {}, Info({}))["probe_accuracy"] > 0.97


def test_images_that_come_round_again_count_once():
  """Else a test image would be among those that the classifier knows."""
  rng = np.random.default_rng(0)
  once = {"feature": rng.standard_normal((100, 200)), "data_label": rng.integers(2, size=100)}
  twice = {k: np.concatenate([v, v, v[:30]]) for k, v in once.items()}
  assert probe.linear(once, {}, Info({})) == probe.linear(twice, {}, Info({}))
  assert probe.linear(twice, {}, Info({}))["probe_accuracy"] < 0.7


def test_what_is_missing_is_named():
  with pytest.raises(ValueError, match=r"--config\.model\.probe=True"):
    probe.linear({"image": np.zeros((4, 1))}, {}, Info({}))
  with pytest.raises(ValueError, match="too few for 5 folds"):
    probe.linear({"feature": np.eye(9), "data_label": np.arange(9)}, {}, Info({}))
