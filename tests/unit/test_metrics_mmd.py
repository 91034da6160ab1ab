"""Codes against their prior: closed forms, brute force, and what each number can and cannot see."""

import itertools

import numpy as np
import pytest
from scipy import spatial, stats

from gm.core import Info
from gm.metrics import mmd


def kernel(x, y, h):
  return np.exp(-((x - y) ** 2).sum() / (2 * h**2))


def test_the_estimate_is_the_mean_over_distinct_pairs():
  rng, h = np.random.default_rng(0), 1.3
  a, b = rng.standard_normal((5, 3)), rng.standard_normal((7, 3)) + 0.5
  pairs = lambda x: np.mean([kernel(*p, h) for p in itertools.combinations(x, 2)])
  across = np.mean([kernel(x, y, h) for x, y in itertools.product(a, b)])
  expected = pairs(a) + pairs(b) - 2 * across
  assert mmd.mmd(a, b, bandwidth=h) == pytest.approx(expected, abs=1e-12)
  assert mmd.mmd(b, a, bandwidth=h) == pytest.approx(expected, abs=1e-12)


def test_two_normals_are_as_far_apart_as_the_integral_says():
  """In the plane, for x - y ~ N(m, v I), E k = h^2 / (h^2 + v) e^(-m^2 / 2 (h^2 + v))."""
  rng, h, s, shift = np.random.default_rng(0), 1.5, 0.6, np.array([1.0, -0.5])
  mean = lambda m2, v: h**2 / (h**2 + v) * np.exp(-m2 / (2 * (h**2 + v)))
  exact = mean(0, 2) + mean(0, 2 * s**2) - 2 * mean(shift @ shift, 1 + s**2)
  a, b = rng.standard_normal((4_000, 2)), s * rng.standard_normal((4_000, 2)) + shift
  assert mmd.mmd(a, b, bandwidth=h) == pytest.approx(exact, abs=0.01)
  assert exact > 0.2


def test_equal_laws_give_zero_on_average():
  """The estimate that counts a point with itself would be about 0.1 above."""
  rng = np.random.default_rng(0)
  found = [mmd.mmd(*rng.standard_normal((2, 10, 2)), bandwidth=1.0) for _ in range(2_000)]
  assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(len(found)) < 0.01
  assert min(found) < 0 < max(found)


def test_distances():
  rng = np.random.default_rng(0)
  x, y = rng.standard_normal((41, 3)), rng.standard_normal(30)
  assert mmd.median_distance(x) == pytest.approx(np.median(spatial.distance.pdist(x)))
  for a, b in ((x[:, 0], y), (np.array([1.0, 1.0, 2.0]), np.array([1.0, 3.0]))):
    assert mmd.ks_distance(a, b) == pytest.approx(stats.ks_2samp(a, b).statistic)


def codes(code, latent):
  return mmd.codes({"code": code, "latent": latent}, {}, Info({}))


def test_codes_of_the_priors_law():
  z, latent = np.random.default_rng(0).standard_normal((2, 1_000, 2))
  found = codes(z, latent)
  assert abs(found["code_mmd"]) < 0.005 and abs(found["code_mmd_self"]) < 0.01
  assert found["code_ks"] < 0.073
  assert found["code_mean"] < 0.15
  assert 0.9 < found["code_std_min"] <= found["code_std_max"] < 1.1


def test_codes_of_other_laws():
  rng = np.random.default_rng(0)
  z, latent = rng.standard_normal((2, 1_000, 2))
  wide = codes(z * [1, 5], latent)
  assert wide["code_std_max"] == pytest.approx(5, rel=0.1)
  assert wide["code_std_min"] == pytest.approx(1, rel=0.1)
  assert wide["code_mmd"] > 0.1 and wide["code_ks"] > 0.25
  moved = codes(z + np.array([0, -2]), latent)
  assert moved["code_mean"] == pytest.approx(2, abs=0.2)
  assert moved["code_ks"] == pytest.approx(2 * stats.norm.cdf(1) - 1, abs=0.05)  # the gap at 1
  # on a line both axes are as they should be: only the joint law tells
  line = codes(np.repeat(z[:, :1], 2, 1), latent)
  assert line["code_ks"] < 0.073 and line["code_mmd"] > 0.03


def test_codes_may_come_in_any_order():
  """As where a class has its own part of the prior, and classes stand together."""
  z, latent = np.random.default_rng(0).standard_normal((2, 2_000, 2))
  in_order = lambda x: x[np.argsort(x[:, 0])]
  found = codes(in_order(z), in_order(latent))
  assert abs(found["code_mmd"]) < 0.005 and abs(found["code_mmd_self"]) < 0.01
  assert found["code_ks"] < 0.073


def test_the_prior_alone_sets_the_unit():
  """The same codes and draws in other units give the same; the bandwidth is not the codes'."""
  z, latent = np.random.default_rng(0).standard_normal((2, 500, 2))
  one, other = codes(3 * z, latent), codes(300 * z, 100 * latent)
  assert one["code_mmd"] == pytest.approx(other["code_mmd"], rel=1e-9)
  far = [codes(s * z, latent)["code_mmd"] for s in (10, 100, 1_000)]
  assert far[0] < far[1] < far[2] < 2  # a bandwidth of both would stop at some scale


def test_errors():
  x = np.zeros((8, 2))
  with pytest.raises(ValueError, match=r"hold image.*config.method=aae"):
    mmd.codes({"image": x}, {}, Info({}))
  with pytest.raises(ValueError, match="not finite"):
    codes(x * np.nan, x)
  with pytest.raises(ValueError, match="4 codes"):
    codes(x[:3], x[:3])
  for a, b, h in ((x[:1], x, 1.0), (x, x[:, :1], 1.0), (x, x, 0.0)):
    with pytest.raises(ValueError, match="two of each"):
      mmd.mmd(a, b, bandwidth=h)
