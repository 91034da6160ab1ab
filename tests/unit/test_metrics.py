"""Metrics against closed forms, exact samplers and known failures."""

import functools
import json
import types

import numpy as np
import pytest

from gm.core import Info
from gm.data import embedded, points
from gm.metrics import coverage, digits, frechet, fresh
from gm.weights import digits as weights

RNG = functools.partial(np.random.default_rng, 0)


# --- Frechet distance


def random_cov(rng, dim):
  root = rng.standard_normal((dim, dim))
  return root @ root.T


def test_frechet_of_means_alone_is_their_squared_distance():
  cov = random_cov(RNG(), 3)
  assert frechet.gaussian_distance([1, 2, 3], cov, [1, 0, 0], cov) == pytest.approx(13.0)


def test_frechet_of_commuting_covariances():
  a, b = np.diag([1.0, 4.0, 0.0]), np.diag([9.0, 1.0, 16.0])
  expected = (1 - 3) ** 2 + (2 - 1) ** 2 + (0 - 4) ** 2
  assert frechet.gaussian_distance(np.zeros(3), a, np.zeros(3), b) == pytest.approx(expected)


def test_frechet_in_the_plane_by_the_trace_and_determinant():
  """For 2 x 2 matrices tr M^1/2 = sqrt(tr M + 2 sqrt(det M)); these two do not commute."""
  a, b = np.array([[1.5, 0.4], [0.4, 0.8]]), np.array([[1.0, -0.2], [-0.2, 2.0]])
  assert np.abs(a @ b - b @ a).max() > 0.1
  shared = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a) * np.linalg.det(b)))
  expected = 0.25 + 1.69 + np.trace(a) + np.trace(b) - 2 * shared
  found = frechet.gaussian_distance([0.5, -1.0], a, [0.0, 0.3], b)
  assert found == pytest.approx(expected, rel=1e-12)


def test_frechet_of_a_linear_map_is_that_of_its_optimal_transport():
  """If x ~ N(0, C) and A is symmetric and positive, A x is the nearest of its law: E|x - A x|^2."""
  rng, dim = RNG(), 6
  c, a = random_cov(rng, dim), random_cov(rng, dim)
  gap = np.eye(dim) - a
  found = frechet.gaussian_distance(np.zeros(dim), c, np.zeros(dim), a @ c @ a)
  assert found == pytest.approx(np.trace(gap @ c @ gap), rel=1e-9)


def test_frechet_of_features_is_that_of_their_moments():
  rng = RNG()
  x = rng.standard_normal((400, 5)) @ random_cov(rng, 5)
  y = rng.standard_normal((300, 5)) @ random_cov(rng, 5) + 1
  moments = [x.mean(0), np.cov(x, rowvar=False), y.mean(0), np.cov(y, rowvar=False)]
  expected = frechet.gaussian_distance(*moments)
  assert frechet.feature_distance(x, y) == pytest.approx(expected, rel=1e-9)
  assert frechet.feature_distance(y, x) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("num", [500, 7])
def test_frechet_is_zero_on_equal_sets_and_exact_for_shifts(num):
  x = RNG().standard_normal((num, 20)) * np.logspace(-3, 3, 20)
  scale = (x**2).sum() / num
  assert frechet.feature_distance(x, x) < 1e-12 * scale
  assert frechet.feature_distance(x, x[::-1]) < 1e-12 * scale
  assert frechet.feature_distance(x, x + 2) == pytest.approx(80.0, abs=1e-9 * scale)


def test_frechet_with_fewer_examples_than_features():
  """Two examples make a line: (|u| - |v|)^2 on one line, |u|^2 + |v|^2 on orthogonal ones."""
  line = lambda v: np.stack([v, -v]) / np.sqrt(2)  # covariance v v^T
  u, v = np.zeros(50), np.zeros(50)
  u[0], v[1] = 3.0, 4.0
  assert frechet.feature_distance(line(u), line(v)) == pytest.approx(25.0)
  assert frechet.feature_distance(line(u), line(2 * u)) == pytest.approx(9.0)
  many = np.concatenate([line(v)] * 40)  # the other root, of a singular covariance
  expected = 9.0 + 16.0 * 80 / 79 / 2  # covariance of 80 rows of v / sqrt(2)
  assert frechet.feature_distance(line(u), many) == pytest.approx(expected)


def test_frechet_self_falls_with_the_size():
  x = RNG().standard_normal((8000, 8))
  small, large = frechet.self_distance(x, size=500), frechet.self_distance(x)
  assert 4 < small / large < 16  # 8 expected
  assert frechet.self_distance(x, seed=1) != large


def test_frechet_errors():
  x = RNG().standard_normal((8, 3))
  with pytest.raises(ValueError, match="3 and 2 features"):
    frechet.feature_distance(x, x[:, :2])
  with pytest.raises(ValueError, match="N >= 2"):
    frechet.feature_distance(x[:1], x)
  with pytest.raises(ValueError, match="1 of 8 examples are not finite"):
    frechet.feature_distance(np.where(np.arange(8)[:, None] == 2, np.nan, x), x)
  with pytest.raises(ValueError, match="two halves of 5"):
    frechet.self_distance(x, size=5)
  with pytest.raises(ValueError, match="symmetric"):
    frechet.gaussian_distance([0, 0], [[1, 2], [0, 1]], [0, 0], np.eye(2))
  with pytest.raises(ValueError, match="negative eigenvalue"):
    frechet.gaussian_distance([0, 0], [[1, 2], [2, 1]], [0, 0], np.eye(2))
  with pytest.raises(ValueError, match=r"\[D, D\]"):
    frechet.gaussian_distance([0, 0], np.eye(3), [0, 0], np.eye(2))


# --- coverage


def ring(n, seed=0):
  cfg = {"name": "ring"}
  rows = points.sample(np.random.default_rng(seed), n, cfg)
  return rows["point"], rows["label"], points.info(cfg)


@pytest.mark.parametrize("name", ["ring", "grid"])
def test_an_exact_sampler_is_healthy(name):
  cfg = {"name": name}
  info = points.info(cfg)
  fake = points.sample(RNG(), 2500, cfg)
  found = coverage.modes(fake, {}, info)
  num = len(info.modes)
  assert found["modes_1"] == found["modes_20"] == found["num_modes"] == num
  assert found["high_quality"] == pytest.approx(1 - np.exp(-4.5), abs=0.008)
  assert 0 < found["mode_kl"] < {"ring": 0.006, "grid": 0.012}[name]
  assert 0.6 / num < found["mode_min_share"] <= 1 / num


def test_a_generator_on_one_mode_is_collapsed():
  x, label, info = ring(20_000)
  found = coverage.modes({"point": x[label == 3]}, {}, info)
  assert found["modes_1"] == found["modes_20"] == 1
  assert found["mode_kl"] == pytest.approx(2.079, abs=0.001)
  assert found["mode_min_share"] == 0
  assert found["high_quality"] == pytest.approx(0.989, abs=0.008)


def test_a_stray_point_counts_as_a_mode_only_by_the_weak_rule():
  x, label, info = ring(20_000)
  fake = np.concatenate([x[label == 3][:2000], np.array(info.modes)[5:6]])
  found = coverage.modes({"point": fake}, {}, info)
  assert (found["modes_1"], found["modes_20"]) == (2, 1)
  twenty = np.concatenate([x[label == 3][:2000], np.repeat(np.array(info.modes)[5:6], 20, 0)])
  assert coverage.modes({"point": twenty}, {}, info)["modes_20"] == 2


def test_quality_is_a_radius_of_three_standard_deviations():
  info = Info({"point": (2,)}, modes=((0.0, 0.0), (10.0, 0.0)), mode_std=0.5)
  at = lambda *xs: coverage.modes({"point": np.array(xs)}, {}, info)["high_quality"]
  assert at((1.0, 1.0), (10.0, -1.49)) == 1.0  # 2.83 and 2.98 standard deviations
  assert at((1.1, 1.1), (10.0, -1.51)) == 0.0  # 3.11 though either coordinate is within 3
  nothing = coverage.modes({"point": np.full((4, 2), np.nan)}, {}, info)
  assert nothing["modes_1"] == 0 and nothing["high_quality"] == 0
  assert nothing["mode_kl"] == pytest.approx(np.log(2))


def test_mode_kl_is_that_of_the_high_quality_points():
  info = Info({"point": (1,)}, modes=((0.0,), (10.0,)), mode_std=1.0)
  x = np.array([[0.0]] * 3 + [[10.0]] + [[5.1]] * 6)  # those between belong to none
  found = coverage.modes({"point": x}, {}, info)
  assert found["mode_kl"] == pytest.approx(0.75 * np.log(1.5) + 0.25 * np.log(0.5))
  assert found["mode_min_share"] == 0.25


def test_wasserstein_on_the_line():
  rng = RNG()
  a, b = rng.standard_normal(1000), 3 * rng.standard_normal(1000) + 1
  # for sets of one size the optimal plan pairs them in order
  expected = np.abs(np.sort(a) - np.sort(b)).mean()
  assert coverage.wasserstein_1d(a, b) == pytest.approx(expected)
  assert coverage.wasserstein_1d(np.repeat(a, 3), b) == pytest.approx(expected)  # unequal sizes
  assert coverage.wasserstein_1d(a, a) == 0
  # N(0, 1) from N(0, 3^2): 2 E|x|
  wide = coverage.wasserstein_1d(rng.standard_normal(100_000), 3 * rng.standard_normal(100_000))
  assert wide == pytest.approx(2 * np.sqrt(2 / np.pi), rel=0.02)


def test_sliced_wasserstein_of_a_shift():
  x = RNG().standard_normal((200, 2))
  for v in ((3.0, 4.0), (5.0, 0.0)):  # whichever its direction
    assert coverage.sliced_wasserstein(x, x + v) == pytest.approx(5 * 2 / np.pi, rel=1e-3)
  y = RNG().standard_normal((50, 3))
  assert coverage.sliced_wasserstein(y, y + np.array([0, 0, 2.0])) == pytest.approx(
    1.0, rel=0.15
  )  # |v| / 2


def test_distance_tells_a_good_sampler_from_a_bad_one():
  cfg = {"name": "moons"}
  draw = lambda seed: points.sample(np.random.default_rng(seed), 2000, cfg)
  real = draw(0)
  same = coverage.distance(draw(1), real, points.info(cfg))
  one = draw(2)
  one = {"point": one["point"][one["label"] == 0]}
  half = coverage.distance(one, real, points.info(cfg))
  assert same["sliced_w1"] < 2 * same["sliced_w1_self"] < 0.1 < half["sliced_w1"]


def test_coverage_errors():
  x, _, info = ring(8)
  with pytest.raises(ValueError, match="hold image"):
    coverage.modes({"image": x}, {}, info)
  with pytest.raises(ValueError, match=r"coverage.distance in --config.metrics"):
    coverage.modes({"point": x}, {}, points.info({"name": "moons"}))
  with pytest.raises(ValueError, match="1 dimensions"):
    coverage.modes({"point": x[:, :1]}, {}, info)
  with pytest.raises(ValueError, match="real data hold label"):
    coverage.distance({"point": x}, {"label": x}, info)
  with pytest.raises(ValueError, match="8 of 8 samples are not finite"):
    coverage.distance({"point": x * np.inf}, {"point": x}, info)


def test_birthday_support():
  """400 equally likely atoms; the estimate of one run has a spread of a fourth."""
  rng = RNG()
  draw = lambda: coverage.birthday_support(rng.integers(400, size=(40, 100, 1)))
  found = [draw() for _ in range(20)]
  assert all(400 / 1.8 < n < 400 * 1.8 for n in found)
  assert np.mean(found) == pytest.approx(400, rel=0.15)
  assert coverage.birthday_support(np.arange(200).reshape(2, 100, 1)) == np.inf
  close = 10.0 * rng.integers(400, size=(40, 100, 1)) + rng.uniform(-0.4, 0.4, (40, 100, 1))
  assert coverage.birthday_support(close) == np.inf  # no two are equal
  assert 400 / 1.8 < coverage.birthday_support(close, tolerance=1.0) < 400 * 1.8


def test_support_is_that_of_the_real_data_for_an_exact_sampler_and_an_eighth_on_one_mode():
  real, _, info = ring(2500)
  exact, _, _ = ring(2500, seed=1)
  many, label, _ = ring(20_100, seed=2)
  found = coverage.support({"point": exact}, {"point": real}, info)
  assert found["support_real"] == pytest.approx(1000, rel=0.25)
  assert found["support"] == pytest.approx(1000, rel=0.35)
  one = coverage.support({"point": many[label == 3][:2400]}, {"point": real}, info)
  assert one["support"] == pytest.approx(125, rel=0.35)
  assert one["support_real"] == pytest.approx(1000, rel=0.25)
  with pytest.raises(ValueError, match="given 99 samples"):
    coverage.support({"point": exact[:99]}, {"point": real}, info)


@pytest.mark.parametrize(
  ("metric", "name", "ratio"),
  [(coverage.distance, "sliced_w1_self", 3), (coverage.support, "support_real", 1.3)],
)
def test_points_may_come_in_any_order(metric, name, ratio):
  """Sorted points: even and odd rows lie side by side, the first rows are of few modes."""
  x, label, info = ring(4_000)
  by_mode = x[np.lexsort((x[:, 1], x[:, 0], label))]
  found, other = (metric({"point": x}, {"point": real}, info)[name] for real in (x, by_mode))
  assert 1 / ratio < found / other < ratio


# --- a fresh discriminator


def test_a_fresh_discriminator_cannot_tell_an_exact_sampler():
  found = fresh.held_out({"point": ring(2500, seed=1)[0]}, {"point": ring(2500)[0]}, None)
  assert found["fresh_accuracy"] == pytest.approx(0.5, abs=0.05)
  assert -0.03 < found["fresh_jsd"] < 0.01


def test_a_fresh_discriminator_finds_lost_modes_where_data_take_turns():
  """Every fourth row is of one mode; two modes have no samples, so the best D is right on 3/4."""
  noise, modes = RNG().standard_normal((2, 2500, 2)), np.array([[0, 0], [9, 0], [0, 9], [9, 9]])
  real = modes[np.arange(2500) % 4] + noise[0]
  fake = modes[2 * RNG().integers(2, size=2500)] + noise[1]
  found = fresh.held_out({"point": fake}, {"point": real}, None)
  assert found["fresh_accuracy"] == pytest.approx(0.75, abs=0.04)


@pytest.mark.parametrize("kept", [1, 4])
def test_a_fresh_discriminator_finds_a_collapse(kept):
  """Of 8 modes k are drawn: JSD by hand, and the best D is right on all lost and all drawn ones."""
  many, label, _ = ring(20_100, seed=1)
  fake = {"point": many[label < kept][:2400]}
  found = fresh.held_out(fake, {"point": ring(2400)[0]}, None)
  p, q = np.full(8, 1 / 8), np.where(np.arange(8) < kept, 1 / kept, 0)
  kl = lambda a: np.sum(a[a > 0] * np.log(a[a > 0] / ((p + q) / 2)[a > 0]))
  assert found["fresh_jsd"] == pytest.approx(0.5 * kl(p) + 0.5 * kl(q), abs=0.03)
  assert found["fresh_accuracy"] == pytest.approx(0.5 * (1 - kept / 8) + 0.5, abs=0.03)


def test_a_fresh_discriminator_estimates_a_divergence_and_is_not_fooled_by_many_pixels():
  rng = RNG()
  shifted = rng.standard_normal((2400, 1)) + 2
  found = fresh.held_out({"point": shifted}, {"point": rng.standard_normal((2400, 1))}, None)
  assert found["fresh_jsd"] == pytest.approx(0.3368308203, abs=0.04)  # N(0, 1) and N(2, 1)
  noise = rng.standard_normal((2, 400, 10, 10, 1))  # fewer examples than it could learn by heart
  found = fresh.held_out({"image": noise[0]}, {"image": noise[1]}, None)
  assert found["fresh_jsd"] < 0.02
  with pytest.raises(ValueError, match="samples hold text"):
    fresh.held_out({"text": noise}, {"image": noise[0]}, None)
  with pytest.raises(ValueError, match="4 finite examples of both, given 2400 samples"):
    fresh.held_out({"point": shifted * np.nan}, {"point": shifted}, None)


# --- digits


@functools.cache
def mnist10k(split="test"):
  """Real digits, decoded. All of mnist10k are images that the classifier was trained on."""
  source = embedded.load({"name": "mnist10k"}, split, shuffle=False)
  return {k: np.asarray(v) for k, v in source.decode(source.batch(0, 1000)).items()}


INFO = embedded.info({"name": "mnist10k"})


def test_the_shipped_weights():
  variables, record = weights.load()
  assert record["test_accuracy"] >= 0.99 and record["num_test"] == 10_000
  assert record["data"] == "prepared:mnist"
  assert weights.FILE.stat().st_size < 1e6
  assert set(variables) >= {"params"}
  _, features = digits.classify(np.zeros((1, 28, 28, 1)))
  assert features.shape == (1, digits.NUM_FEATURES)
  assert f"{digits.NUM_FEATURES} features" in digits.scores.feature_net


def test_the_classifier_is_right_on_digits():
  """Its own training images, so a check of weights and code; see below for held-out ones."""
  data = mnist10k()
  probs, _ = digits.classify(data["image"])
  assert (probs.argmax(1) == data["label"]).mean() >= 0.99
  np.testing.assert_allclose(probs.sum(1), 1, atol=1e-5)


@pytest.mark.learning
def test_the_classifier_is_right_on_the_test_images():
  from gm.data import prepared

  source = prepared.load({"name": "mnist"}, "test", shuffle=False)
  data = source.decode(source.batch(0, 10_000))
  probs, _ = digits.classify(np.asarray(data["image"]))
  accuracy = (probs.argmax(1) == np.asarray(data["label"])).mean()
  assert accuracy >= 0.99
  assert accuracy == pytest.approx(weights.load()[1]["test_accuracy"], abs=2e-4)


def test_batches_and_padding_do_not_change_the_answer(monkeypatch):
  x = mnist10k()["image"][:60]
  whole = digits.classify(x)
  monkeypatch.setattr(digits, "BATCH", 25)
  for a, b in zip(whole, digits.classify(x), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cfg", [{"image_size": 32, "channels": 3}, {"image_size": (28, 64)}])
def test_padded_and_repeated_images_come_back_exactly(cfg):
  source = embedded.load({"name": "mnist10k", **cfg}, "test", shuffle=False)
  other = np.asarray(source.decode(source.batch(0, 20))["image"])
  np.testing.assert_allclose(digits.to_digits(other), mnist10k()["image"][:20], atol=1e-6)


def test_small_images_are_still_read():
  source = embedded.load({"name": "mnist10k", "image_size": 16}, "test", shuffle=False)
  data = source.decode(source.batch(0, 300))
  probs, _ = digits.classify(np.asarray(data["image"]))
  assert (probs.argmax(1) == np.asarray(data["label"])).mean() > 0.9


def test_values_are_clipped():
  x = mnist10k()["image"][:5]
  np.testing.assert_allclose(digits.to_digits(np.where(x > 0, 1.0, -1.0) * 9), np.sign(x + 1e-9))


@functools.cache
def scores_of(kind):
  rng, data = RNG(), mnist10k()
  x, y = data["image"][:500], data["label"][:500]
  fake = {
    "real": lambda: {"image": x},
    "noisy": lambda: {"image": np.clip(x + 0.5 * rng.standard_normal(x.shape), -1, 1)},
    "noise": lambda: {"image": rng.uniform(-1, 1, x.shape)},
    "threes": lambda: {"image": np.resize(x[y == 3], x.shape)},
    "asked": lambda: {"image": x, "label": y},
    "exchanged": lambda: {"image": x, "label": (y + 1) % 10},
  }[kind]()
  return digits.scores(fake, {"image": data["image"][500:]}, INFO)


def test_real_digits_score_well():
  found = scores_of("real")
  assert found["frechet"] < found["frechet_self"]
  assert found["class_min_share"] > 0.06 and found["class_max_share"] < 0.15
  assert found["class_kl"] < 0.04
  assert found["confidence"] > 0.98
  assert "label_agreement" not in found


def test_worse_images_are_farther():
  distances = [scores_of(kind)["frechet"] for kind in ("real", "noisy", "noise")]
  assert distances[0] * 3 < distances[1] < distances[2]
  assert scores_of("real")["confidence"] > scores_of("noisy")["confidence"]


def test_a_collapse_to_one_class_is_seen():
  found = scores_of("threes")
  assert found["class_min_share"] == 0 and found["class_max_share"] > 0.97
  assert found["class_kl"] > 2
  assert found["frechet"] > 10 * scores_of("real")["frechet"]


def test_label_agreement():
  assert scores_of("asked")["label_agreement"] >= 0.99
  assert scores_of("exchanged")["label_agreement"] <= 0.01


def test_the_self_distance_has_the_size_of_the_smaller_set():
  x = mnist10k()["image"]
  few = digits.scores({"image": x[:100]}, {"image": x[500:]}, INFO)["frechet_self"]
  assert few > 2 * scores_of("real")["frechet_self"]  # 50 against 250 in each half


def test_class_kl_is_relative_to_the_real_shares(monkeypatch):
  one = np.eye(10)
  draw = lambda counts: (np.repeat(one, counts, 0), np.repeat(one, counts, 0))
  fake, real = [5, 15] + [0] * 8, [10, 10] + [0] * 8
  answers = iter([draw(fake), draw(real)])
  monkeypatch.setattr(digits, "classify", lambda images: next(answers))
  found = digits.scores({"image": 0}, {"image": 0}, INFO)
  assert found["class_kl"] == pytest.approx(
    0.25 * np.log(0.25 * 25 / 10.5) + 0.75 * np.log(0.75 * 25 / 10.5)
  )
  assert found["class_max_share"] == 0.75


def test_digit_errors():
  x = mnist10k()["image"]
  with pytest.raises(ValueError, match="samples hold point"):
    digits.scores({"point": x}, {"image": x}, INFO)
  with pytest.raises(ValueError, match="real data hold nothing"):
    digits.scores({"image": x}, {}, INFO)
  with pytest.raises(ValueError, match=r"1 or 3 channels, not \(2, 28, 28, 2\)"):
    digits.classify(np.zeros((2, 28, 28, 2)))
  with pytest.raises(ValueError, match="not finite"):
    digits.scores({"image": x * np.nan}, {"image": x}, INFO)
  with pytest.raises(ValueError, match=r"of digits, these data have 3 classes.*--config\.metrics"):
    digits.scores({"image": x}, {"image": x}, INFO._replace(num_classes=3))


def test_export_refuses_what_is_no_run_of_the_classifier(tmp_path, monkeypatch, capsys):
  assert digits.main(["export", f"--workdir={tmp_path}"]) == 2
  assert str(tmp_path) in capsys.readouterr().err
  from gm import evaluation

  job = types.SimpleNamespace(config=types.SimpleNamespace(method="gan"))
  monkeypatch.setattr(evaluation, "from_workdir", lambda *_: (types.SimpleNamespace(job=job), None))
  with pytest.raises(ValueError, match="a run of gan"):
    digits.export(str(tmp_path), tmp_path / "w.npz")
  assert not (tmp_path / "w.npz").exists()


def test_the_record_is_plain_json():
  with np.load(weights.FILE, allow_pickle=False) as file:
    assert json.loads(str(file["record"]))["seed"] == 0
    assert all(file[name].dtype == np.float16 for name in file.files if name != "record")
