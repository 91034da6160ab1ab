"""Categories against classes: brute force over all one-to-one maps, collapse, digits and points."""

import itertools

import numpy as np
import pytest

from gm.core import Info
from gm.data import points
from gm.metrics import codes, digits


def test_agreement_by_brute_force():
  rng = np.random.default_rng(0)
  for num_categories, num_classes in ((4, 4), (3, 5), (5, 3)):
    k = rng.integers(num_categories, size=60)
    c = np.where(rng.uniform(size=60) < 0.6, k % num_classes, rng.integers(num_classes, size=60))
    most = [np.bincount(c[k == i]).max() for i in range(num_categories)]
    few, many = sorted(((k, num_categories), (c, num_classes)), key=lambda pair: pair[1])
    maps = itertools.permutations(range(many[1]), few[1])
    best = max(sum((many[0] == f[i])[few[0] == i].sum() for i in range(few[1])) for f in maps)
    found = codes.agreement(k, c)
    assert found["purity"] == pytest.approx(sum(most) / 60)
    assert found["matched"] == pytest.approx(best / 60)
    assert found["matched"] <= found["purity"]


def test_agreement_knows_no_names():
  rng = np.random.default_rng(0)
  classes = rng.integers(10, size=500)
  whole = {"purity": 1.0, "matched": 1.0, "classes": 10.0}
  assert codes.agreement(rng.permutation(10)[classes], classes) == whole
  assert codes.agreement(3 * rng.permutation(10)[classes], classes) == whole  # gaps in the numbers
  chance = codes.agreement(rng.integers(10, size=50_000), rng.integers(10, size=50_000))
  assert chance["purity"] == pytest.approx(0.1, abs=0.01)


def test_purity_alone_misses_a_collapse():
  category = np.arange(100) % 10
  found = codes.agreement(category, np.full(100, 3))
  assert found == {"purity": 1.0, "matched": 0.1, "classes": 1.0}
  two = codes.agreement(category, (category >= 5).astype(int))
  assert two == {"purity": 1.0, "matched": 0.2, "classes": 2.0}


def test_digits_are_classified_and_points_go_to_the_nearest_mode(monkeypatch):
  shown = np.array([7, 7, 1, 1, 1])
  monkeypatch.setattr(digits, "classify", lambda images: (np.eye(10)[shown], None))
  fake = {"image": np.zeros((5, 28, 28, 1)), "category": np.array([0, 0, 1, 1, 0])}
  found = codes.purity(fake, {}, Info({}))
  assert found == {"code_purity": 0.8, "code_matched": 0.8, "code_classes": 2.0}
  cfg = {"name": "ring", "num_modes": 4}
  drawn = points.sample(np.random.default_rng(0), 1_000, cfg)
  fake = {"point": drawn["point"], "category": (drawn["label"] + 1) % 4}
  found = codes.purity(fake, {}, points.info(cfg))
  assert found == {"code_purity": 1.0, "code_matched": 1.0, "code_classes": 4.0}


def test_clusters_compare_data_with_labels():
  fake = {"data_category": np.array([2, 2, 0, 0]), "data_label": np.array([5, 5, 5, 1])}
  found = codes.clusters({**fake, "category": np.zeros(4, int)}, {}, Info({}))
  assert found == {"cluster_purity": 0.75, "cluster_matched": 0.75, "cluster_classes": 2.0}


def test_errors():
  x = np.zeros((2, 28, 28, 1))
  for fake in ({"image": x}, {"point": x[:, 0, 0], "category": np.zeros(2, int)}):
    with pytest.raises(ValueError, match="a category, as images of digits or as points"):
      codes.purity(fake, {}, Info({}))
  with pytest.raises(ValueError, match=r"hold image.*config.metrics.*infogan.*aae.py:clustering"):
    codes.clusters({"image": x}, {}, Info({}))
  for k, c in (([0, 1], [0]), ([], [])):
    with pytest.raises(ValueError, match="do not pair"):
      codes.agreement(np.array(k, int), np.array(c, int))
