"""The sliced Wasserstein distance: what it is blind to, what it sees, and its pyramid."""

import numpy as np
import pytest

from gm.core import Info
from gm.metrics import sliced


def images(seed, n=64, size=32, channels=1):
  """Smooth shapes: a bright disc in a random place."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[0:size, 0:size]
  centre = rng.uniform(size / 4, 3 * size / 4, (n, 2, 1, 1))
  distance = np.hypot(y - centre[:, 0], x - centre[:, 1])
  disc = np.tanh(size / 5 - distance)[..., None]
  return np.repeat(disc, channels, -1).astype(np.float32)


def swd(fake, real):
  return sliced.wasserstein({"image": fake}, {"image": real}, Info({}))


@pytest.fixture(autouse=True)
def few_patches(monkeypatch):
  monkeypatch.setattr(sliced, "NUM_PATCHES", 2048)
  monkeypatch.setattr(sliced, "NUM_DIRECTIONS", 64)


def test_equal_sets_are_at_0_and_noise_moves_them_apart():
  x, other = images(0), images(1)
  assert swd(x, x) == {"swd_32": 0.0, "swd_16": 0.0, "swd": 0.0}
  noise = np.random.default_rng(2).normal(size=x.shape).astype(np.float32)
  found = [swd(other + s * noise, x)["swd"] for s in (0.0, 0.1, 0.3, 1.0)]
  assert found == sorted(found) and found[-1] > 3 * found[0]


def test_the_images_of_a_longer_set_are_chosen_at_random():
  """Discs and noise, half of each, against four times as many that stand in that order."""
  noise = np.random.default_rng(2).normal(size=(160, 16, 16, 1)).astype(np.float32)
  real, fake = (
    np.concatenate([images(seed, n, 16), noise[start:][:n]])
    for seed, n, start in ((0, 128, 0), (1, 32, 128))
  )
  shuffled = np.random.default_rng(3).permutation(real)
  assert swd(fake, real)["swd"] == pytest.approx(swd(fake, shuffled)["swd"], rel=0.5)


def test_it_is_blind_to_brightness_and_contrast():
  x = images(0, channels=3)
  scale, shift = np.array([0.5, 0.2, 1.0], np.float32), np.array([0.3, -0.8, 0.0], np.float32)
  assert swd(scale * x + shift, x)["swd"] < 0.5  # of thousandths: rounding


def test_values_are_clipped_as_in_pictures():
  x, other = images(0), images(1)
  loud = np.where(np.abs(other) > 0.999, 3 * other, other)  # what a generator without bounds draws
  assert np.abs(loud).max() > 2
  bounded = np.clip(loud, -1, 1)
  assert swd(loud, x) == swd(bounded, x) and swd(x, loud) == swd(x, bounded)


def test_images_smaller_than_a_patch_are_one():
  x = images(0, size=4)
  assert swd(x, x) == {"swd_4": 0.0, "swd": 0.0}
  assert swd(x[:, :, ::-1] ** 3, x)["swd_4"] > 1.0


def test_scales_see_different_faults():
  """Fine noise is seen at the finest scale most; a wrong layout at the coarsest."""
  x, other = images(0), images(1)
  checks = 0.5 * (np.indices((32, 32)).sum(0) % 2)[..., None].astype(np.float32)
  fine = swd(other + checks, x)
  assert fine["swd_32"] > 3 * fine["swd_16"]
  np.testing.assert_allclose(fine["swd"], (fine["swd_32"] + fine["swd_16"]) / 2)


def test_distance_of_shifted_points_has_a_closed_form():
  """Points moved by v: W1 along u is |u.v|, and E |u.v| = 2 |v| / pi in the plane."""
  x = np.random.default_rng(0).normal(size=(500, 2)).astype(np.float32)
  found = sliced._distance(x, x + np.array([3.0, 4.0], np.float32))
  np.testing.assert_allclose(found, 2 * 5 / np.pi, rtol=0.15)


def test_pyramid_sums_to_the_image():
  x = images(3, n=2, size=64)
  levels = sliced.pyramid(x)
  assert [a.shape[1] for a in levels] == [64, 32, 16]
  out = levels[-1]
  for detail in levels[-2::-1]:
    up = np.zeros_like(detail)
    up[:, ::2, ::2] = 4 * out
    out = sliced._blur(up) + detail
  np.testing.assert_allclose(out, x, atol=1e-5)
  flat = np.full((1, 32, 32, 1), 7.0, np.float32)
  detail, rest = sliced.pyramid(flat)
  np.testing.assert_allclose(rest, 7.0, rtol=1e-6)
  np.testing.assert_allclose(detail[:, 2:-2, 2:-2], 0.0, atol=1e-5)


def test_errors():
  x = images(0, n=4)
  points = np.zeros((4, 2))
  for fake, real in ((x[:, :16], x), (points, x), (points, points)):
    with pytest.raises(ValueError, match=r"config\.metrics"):
      swd(fake, real)
