"""Built-in sets, orders and point laws; user's own images are in test_data_images.py."""

import hashlib
import importlib

import ml_collections
import numpy as np
import pytest
from sklearn import datasets

from gm.core import Info, batch_shapes
from gm.data import embedded, images, installed, memory, points, shapes, stream


def config(**keys):
  return ml_collections.ConfigDict({"dir": "", "image_size": 0, "channels": 0, **keys})


# ---- order


@pytest.mark.parametrize("size", [1, 3, 7, 10, 23])  # within an epoch, across, several at once
def test_every_epoch_is_a_permutation(size):
  indices = memory.order(10, seed=3)
  rows = np.concatenate([indices(i, size) for i in range(70)])
  epochs = rows[: len(rows) // 10 * 10].reshape(-1, 10)
  assert (np.sort(epochs, 1) == np.arange(10)).all()
  assert len({tuple(e) for e in epochs[:7]}) == 7  # each epoch in its own order


def test_order_does_not_depend_on_batch_size():
  a, b = memory.order(11, seed=1), memory.order(11, seed=1)
  left = np.concatenate([a(i, 4) for i in range(12)])
  right = np.concatenate([b(i, 6) for i in range(8)])
  np.testing.assert_array_equal(left, right)


def test_batch_is_a_pure_function_of_seed_and_i():
  indices = memory.order(100, seed=5)
  first = {i: indices(i, 8).copy() for i in range(60)}  # evicts the cached epochs
  for i in (59, 3, 31, 0, 59):
    np.testing.assert_array_equal(indices(i, 8), first[i])
    np.testing.assert_array_equal(memory.order(100, seed=5)(i, 8), first[i])
  assert any((memory.order(100, seed=6)(i, 8) != first[i]).any() for i in range(3))
  np.testing.assert_array_equal(indices(np.int32(2**30), 8), indices(2**30, 8))  # no overflow


def test_handed_out_order_cannot_be_spoiled():
  indices = memory.order(10, seed=0)
  with pytest.raises(ValueError, match="read-only"):
    indices(0, 4)[:] = 0


def test_unshuffled_is_one_permutation_over_and_over():
  indices = memory.order(50, seed=7, shuffle=False)
  found = np.concatenate([indices(i, 15) for i in range(10)]).reshape(3, 50)
  assert sorted(found[0]) == list(range(50)) and (found == memory.constant(50)).all()
  for seed in range(9):  # it is no order that a run trains in
    trained = memory.order(50, seed=seed)
    assert all((trained(i, 50) != found[0]).any() for i in range(9))
  assert indices(0, 3).dtype == np.int32
  with pytest.raises(ValueError, match="read-only"):
    indices(0, 4)[:] = 0


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("stored", ["class by class", "from the last to the first", "shuffled"])
def test_first_rows_are_a_random_sample_however_the_set_is_stored(stored, streamed):
  label = np.repeat(np.arange(10, dtype=np.int32), 500)
  label = {"class by class": label, "from the last to the first": label[::-1]}.get(
    stored, np.random.default_rng(1).permutation(label)
  )
  if streamed:
    read = lambda y: {"label": y}
    source = stream.from_examples(Info({}), label, read, dict, seed=3, shuffle=False)
  else:
    source = memory.from_arrays(Info({}), {"label": label}, dict, seed=3, shuffle=False)
  rows = source.batch(0, 5_000)["label"]
  assert (np.bincount(rows) == 500).all()
  np.testing.assert_array_equal(source.batch(1, 2_500)["label"], rows[2_500:])
  for num in (120, 2_000):
    counts = np.bincount(rows[:num], minlength=10)
    chi2 = ((counts - num / 10) ** 2 / (num / 10)).sum() / (1 - num / 5_000)  # drawn without return
    assert chi2 < 27.88, counts  # the 99.9 % point with 9 degrees of freedom
    runs = 1 + (np.diff(rows[:num]) != 0).sum()  # neighbours differ as often as by chance
    assert abs(runs - 0.9 * num) < 4 * np.sqrt(0.09 * num)


@pytest.mark.parametrize("shuffle", [True, False])
def test_parts_tile_the_global_batch(shuffle):
  whole = memory.order(10, seed=2, shuffle=shuffle)
  parts = [memory.order(10, seed=2, shuffle=shuffle, part=(p, 3)) for p in range(3)]
  for i in range(8):
    for p, part in enumerate(parts):
      np.testing.assert_array_equal(part(i, 12), whole(i, 12)[p::3])


def test_order_refuses_what_it_cannot_do():
  with pytest.raises(ValueError, match=r"batch of 10 .* 3 processes.*--config\.batch_size"):
    memory.order(10, part=(0, 3))(0, 10)
  with pytest.raises(ValueError, match="part"):
    memory.order(10, part=(3, 3))
  with pytest.raises(ValueError, match=r"--config\.seed"):
    memory.order(10, seed=-1)
  with pytest.raises(ValueError, match="empty"):
    memory.order(0)
  with pytest.raises(ValueError, match="batch -1"):
    memory.order(10)(-1, 2)
  with pytest.raises(ValueError, match="one length"):
    memory.from_arrays(Info({}), {"a": np.zeros(3), "b": np.zeros(4)}, dict)


def test_batch_gathers_the_rows_of_indices():
  arrays = {"x": np.arange(20) * 2, "y": np.arange(40).reshape(20, 2)}
  source = memory.from_arrays(Info({}), arrays, dict, seed=4, part=(1, 2))
  rows = source.indices(3, 8)
  assert rows.shape == (4,)
  for name, leaf in source.batch(3, 8).items():
    np.testing.assert_array_equal(leaf, arrays[name][rows])


# ---- every built-in set

SETS = [
  *(("points", {"name": n}) for n in points.NAMES),
  ("embedded", {"name": "mnist10k"}),
  ("embedded", {"name": "mnist10k", "image_size": (32, 14), "channels": 3}),
  ("installed", {"name": "digits"}),
  ("installed", {"name": "digits", "image_size": 16}),
  ("shapes", {"name": "shapes"}),
]
DENSE = ("gaussian1d", "quadratic", "table")  # independent draws that coincide


@pytest.mark.parametrize("source, keys", SETS)
def test_decoded_batch_is_what_info_says(source, keys):
  module, cfg = importlib.import_module(f"gm.data.{source}"), config(**keys)
  loaded = module.load(cfg, "test", seed=1)
  assert loaded.info == module.info(cfg)
  batch = loaded.decode(loaded.batch(2, 6))
  for name, want in batch_shapes(loaded.info, 6).items():
    assert (batch[name].shape, batch[name].dtype) == (want.shape, want.dtype)
  assert set(batch) == set(loaded.info.shape)
  assert loaded.num_examples == len(next(iter(loaded.arrays.values())))
  names = {"points": (), "shapes": shapes.CLASSES}
  assert loaded.classes == names.get(source, tuple("0123456789"))
  if "label" in batch:
    labels = loaded.decode(loaded.arrays)["label"]
    assert set(np.unique(labels)) == set(range(loaded.info.num_classes))
  if "image" in batch:
    image = np.asarray(loaded.decode(loaded.arrays)["image"])
    assert image.min() == -1
    assert keys.get("image_size") == (32, 14) or image.max() == 1


@pytest.mark.parametrize("source, keys", [s for s in SETS if s[1]["name"] not in DENSE])
def test_train_and_test_share_no_row(source, keys):
  module, cfg = importlib.import_module(f"gm.data.{source}"), config(**keys)
  rows = []
  for split in memory.SPLITS:
    a = module.load(cfg, split).arrays
    rows.append({r.tobytes() for r in a.get("image", a.get("point"))})  # f32 scalars would collide
  assert rows[0] and rows[1] and not rows[0] & rows[1]


@pytest.mark.parametrize("source, keys", SETS)
def test_some_training_examples_are_spread_over_all(source, keys):
  """A fixed choice that does not depend on the seed; the test split stays whole."""
  module = importlib.import_module(f"gm.data.{source}")
  load = lambda split, **more: module.load(config(**keys, **more), split, shuffle=False)
  whole, few = load("train"), load("train", num_train=100)
  assert few.num_examples == 100
  rows = np.arange(100) * whole.num_examples // 100
  for name, a in few.arrays.items():
    np.testing.assert_array_equal(a, whole.arrays[name][rows])
  assert load("test", num_train=100).num_examples == load("test").num_examples
  for bad in (-1, whole.num_examples + 1):
    with pytest.raises(ValueError, match=r"--config\.data\.num_train"):
      load("train", num_train=bad)


@pytest.mark.parametrize("source, keys", [SETS[0], SETS[-5], SETS[-3], SETS[-1]])
def test_unknown_names_and_splits(source, keys):
  module = importlib.import_module(f"gm.data.{source}")
  with pytest.raises(ValueError, match=r"'mnits'.*--config\.data\.name.*" + keys["name"]):
    module.info(config(name="mnits"))
  with pytest.raises(ValueError, match=r"'valid'.*\['test', 'train'\]"):
    module.load(config(**keys), "valid")


# ---- embedded and installed


def test_mnist10k_is_the_first_part_of_mnist():
  train, test = (embedded.load(config(name="mnist10k"), s).arrays for s in memory.SPLITS)
  assert (len(train["image"]), len(test["image"])) == (9_000, 1_000)
  counts = np.bincount(np.concatenate([train["label"], test["label"]]))
  assert counts.tolist() == [1001, 1127, 991, 1032, 980, 863, 1014, 1070, 944, 978]
  assert np.abs(np.bincount(test["label"]) - counts / 10).max() < 1  # stratified
  image = np.concatenate([train["image"], test["image"]])
  label = np.concatenate([train["label"], test["label"]])
  digest = hashlib.sha256(image.tobytes() + label.tobytes()).hexdigest()
  assert digest == "6c335ebc033a4aa9bd30a861fa379cb94eca6922626f109590ffa95effdd2f2a"
  assert abs(image.mean() / 255 - 0.1307) < 0.001  # MNIST's published mean


def test_digits_are_split_by_a_fixed_shuffle():
  """Each of the 1,797 is in one split, with its own label, and the splits are alike."""
  raw = datasets.load_digits()
  key = lambda image, label: (np.asarray(image).tobytes(), int(label))
  given = sorted(key(i.astype(np.uint8), t) for i, t in zip(raw.images, raw.target, strict=True))
  parts = {s: installed.load(config(name="digits"), s, shuffle=False).arrays for s in memory.SPLITS}
  found = [key(i[..., 0], t) for p in parts.values() for i, t in zip(p["image"], p["label"])]
  assert sorted(found) == given
  assert [len(parts[s]["label"]) for s in memory.SPLITS] == [1_500, 297]
  flat = {s: parts[s]["image"].reshape(-1, 64).astype(float) for s in memory.SPLITS}
  nearest = ((flat["test"][:, None] - flat["train"]) ** 2).sum(-1).argmin(1)
  assert (parts["train"]["label"][nearest] == parts["test"]["label"]).mean() > 0.98
  again = installed.load(config(name="digits"), "test", shuffle=False).arrays
  np.testing.assert_array_equal(again["image"], parts["test"]["image"])


# ---- sizes


def test_larger_is_padded_and_smaller_is_averaged():
  x = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4, 1) * 7
  padded = images.fit(x, 7, 6)
  np.testing.assert_array_equal(padded[:, 1:5, 1:5], x)
  assert padded.sum(dtype=int) == x.sum(dtype=int)
  halves = x.reshape(2, 2, 2, 2, 2, 1).mean((2, 4))
  np.testing.assert_array_equal(images.fit(x, 2, 2), np.rint(halves))
  mixed = images.fit(x, 6, 2)  # one axis longer, one shorter
  np.testing.assert_array_equal(mixed[:, 1:5], np.rint(x.reshape(2, 4, 2, 2, 1).mean(3)))


def test_area_matrix_keeps_the_mean():
  for n, m in [(28, 14), (28, 20), (7, 3), (5, 5)]:
    a = images.area_matrix(n, m)
    np.testing.assert_allclose(a.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(a.sum(0), m / n, atol=1e-6)
  np.testing.assert_array_equal(images.area_matrix(5, 5), np.eye(5))


@pytest.mark.parametrize("bad", [-1, (28,), (0, 28), "28x28", 2.5])
def test_image_size_errors_name_the_flag(bad):
  with pytest.raises(ValueError, match=r"--config\.data\.image_size"):
    embedded.info({"name": "mnist10k", "image_size": bad})
  with pytest.raises(ValueError, match=r"--config\.data\.channels to one of \[0, 1, 3\]"):
    embedded.info({"name": "mnist10k", "channels": 4})


# ---- point laws


def grid(low, high, n):
  step = (high - low) / n
  line = low + step * (np.arange(n) + 0.5)
  return np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2), step


LAWS = [
  ("ring", {"std": 0.15}, 3.0, 160),
  ("ring", {"std": 0.1, "num_modes": 3, "radius": 1.0, "scale": 1.5}, 3.0, 160),
  ("grid", {"std": 0.2}, 5.5, 200),
  ("grid", {"side": 2, "std": 0.15, "scale": 2.0}, 4.0, 160),
  ("moons", {"std": 0.1}, 3.0, 150),
  ("spiral", {"std": 0.2}, 5.0, 150),
  ("spiral", {"std": 0.2, "scale": 0.5}, 2.5, 150),
  ("checkerboard", {}, 4.0, 160),
  ("checkerboard", {"scale": 0.25}, 1.0, 160),
  ("correlated", {"mean": (0.5, -1.0), "cov": ((1.5, 0.4), (0.4, 0.8))}, 8.0, 200),
  ("correlated", {"mean": (0.0, 1.0), "cov": ((1.0, -0.2), (-0.2, 2.0)), "scale": 0.5}, 6.0, 200),
]


@pytest.mark.parametrize("name, keys, reach, n", LAWS)
def test_density_integrates_to_one_and_matches_the_samples(name, keys, reach, n):
  cfg = config(name=name, **keys)
  x, step = grid(-reach, reach, n)
  mass = np.exp(points.log_density(name, x, cfg)) * step**2
  assert abs(mass.sum() - 1) < 1e-4
  # 10 x 10 coarse cells: the counts of 20,000 samples are multinomial with these probabilities
  coarse = mass.reshape(10, n // 10, 10, n // 10).sum((1, 3)).ravel()
  points_drawn = points.sample(np.random.default_rng(0), 20_000, cfg)["point"]
  cell = np.floor((points_drawn + reach) / (2 * reach / 10)).astype(int)
  assert ((cell >= 0) & (cell < 10)).all()
  counts = np.bincount(cell[:, 0] * 10 + cell[:, 1], minlength=100)
  filled = coarse > 5e-4
  want = 20_000 * coarse[filled]
  chi2 = ((counts[filled] - want) ** 2 / want).sum()
  degrees = filled.sum() - 1
  assert chi2 < degrees + 5 * np.sqrt(2 * degrees)
  assert counts[~filled].sum() < 20_000 * (coarse[~filled].sum() + 0.005)


def test_gaussian1d_is_the_closed_form():
  cfg = config(name="gaussian1d", mean=1.0, std=2.0, scale=3.0)  # N(3, 36)
  x = np.linspace(-20, 25, 9)[:, None]
  want = -((x[:, 0] - 3) ** 2) / 72 - np.log(6) - 0.5 * np.log(2 * np.pi)
  np.testing.assert_allclose(points.log_density("gaussian1d", x, cfg), want, rtol=1e-12)
  drawn = points.load(cfg, "train").arrays["point"]
  assert abs(drawn.mean() - 3) < 5 * 6 / np.sqrt(1e5)
  assert abs(drawn.std() - 6) < 5 * 6 / np.sqrt(2e5)
  assert points.info(cfg) == Info({"point": (1,)}, modes=((3.0,),), mode_std=6.0)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_quadratic_is_the_closed_form(scale):
  cfg = config(name="quadratic", scale=scale)
  line = (np.arange(4_000) + 0.5) / 2_000
  density = np.exp(points.log_density("quadratic", scale * line[:, None], cfg))
  np.testing.assert_allclose(density, 3 / 8 * line**2 / scale, rtol=1e-12)
  assert abs(density.sum() * scale / 2_000 - 1) < 1e-6
  outside = np.array([[-0.1], [0.0], [2.1]]) * scale
  assert (points.log_density("quadratic", outside, cfg) == -np.inf).all()
  x = points.load(cfg, "train").arrays["point"][:, 0] / scale
  assert x.min() >= 0 and x.max() <= 2 + 1e-6
  assert abs(x.mean() - 1.5) < 4 * np.sqrt(0.15 / 1e5)
  want, n = np.sort(x).astype(np.float64) ** 3 / 8, len(x)
  gap = np.maximum(want - np.arange(n) / n, np.arange(1, n + 1) / n - want).max()
  assert gap < 1.95 / np.sqrt(n)  # Kolmogorov-Smirnov at 0.1 %


def test_table_is_drawn_cell_by_cell():
  cfg = config(name="table", scale=2.0)
  facts, arrays = points.info(cfg), points.load(cfg, "train").arrays
  assert facts.num_classes == 9 and facts.shape == {"point": (2,), "label": ()}
  cell = arrays["point"] / 2
  np.testing.assert_array_equal(cell @ [3, 1], arrays["label"])
  want = 1e5 * np.array(points.TABLE).ravel()
  chi2 = ((np.bincount(arrays["label"], minlength=9) - want) ** 2 / want).sum()
  assert chi2 < 26.12  # the 99.9 % point with 8 degrees of freedom
  got = points.log_density("table", np.array([[0.0, 2.0], [4.0, 0.0], [1.0, 0.0], [6.0, 0.0]]), cfg)
  np.testing.assert_allclose(got, [np.log(0.03), np.log(0.02), -np.inf, -np.inf])
  wide = config(name="table", probs=((2, 0, 1), (1, 0, 0)))  # counts, and what never occurs
  label = points.load(wide, "test").arrays["label"]
  assert points.info(wide).num_classes == 6 and set(np.unique(label)) == {0, 2, 3}
  assert abs((label == 0).mean() - 0.5) < 4 * 0.5 / 100


def test_tables_and_covariances_are_checked():
  for probs in ((-1, 2), ((-0.1, 1.1),), ((0, 0),), ((np.nan, 1),)):
    with pytest.raises(ValueError, match=r"--config\.data\.probs"):
      points.info(config(name="table", probs=probs))
  for cov in (((1, 2), (2, 1)), ((1, 0.5), (0, 1)), ((1, 0), (0, 0)), (1, 1)):
    with pytest.raises(ValueError, match=r"--config\.data\.cov"):
      points.info(config(name="correlated", cov=cov))


def test_quadrature_is_converged():
  rng = np.random.default_rng(0)
  for name in ("moons", "spiral"):  # a fine Riemann sum over the curve, 40,000 nodes a branch
    curve, std = points._CURVES[name], points._CURVES[name].std
    x = points.sample(rng, 40, {"name": name})["point"]
    v = (np.arange(40_000) + 0.5) / 40_000
    weight = curve.power * v ** (curve.power - 1) / 80_000
    p = sum(
      np.exp(-(((x[:, None] - curve.centre(np.full(len(v), b), v)) / std) ** 2).sum(-1) / 2)
      @ weight
      for b in (0, 1)
    ) / (2 * np.pi * std**2)
    np.testing.assert_allclose(points.log_density(name, x, {"name": name}), np.log(p), atol=1e-6)


def test_labels_are_the_modes():
  for name, count in (("ring", 8), ("grid", 25)):
    cfg = config(name=name, scale=0.5)
    arrays, facts = points.load(cfg, "test").arrays, points.info(cfg)
    assert len(facts.modes) == facts.num_classes == count
    residual = arrays["point"] - np.array(facts.modes)[arrays["label"]]
    assert abs(residual.std() / facts.mode_std - 1) < 0.03
    assert np.abs(residual.mean(0)).max() < 5 * facts.mode_std / 100
  angle = np.arctan2(*np.array(points.info(config(name="ring")).modes).T[::-1])
  np.testing.assert_allclose(angle % (2 * np.pi), np.arange(8) * np.pi / 4, atol=1e-12)


def test_grids_of_any_side():
  small = points.info(config(name="grid", side=2, std=0.15, scale=2.0))
  assert small.modes == ((-2.0, -2.0), (-2.0, 2.0), (2.0, -2.0), (2.0, 2.0))
  assert small.mode_std == 0.3
  assert set(np.array(points.info(config(name="grid")).modes).ravel()) == {-4, -2, 0, 2, 4}


def test_point_keys_are_checked():
  keys = {"ring": ("std", "radius", "scale", "num_modes"), "grid": ("side",)}
  for name, key in [(n, k) for n, each in keys.items() for k in each]:
    with pytest.raises(ValueError, match=rf"--config\.data\.{key}"):
      points.info(config(name=name, **{key: 0}))


def test_fixed_draw_ignores_the_seed():
  a = points.load(config(name="ring"), "train", seed=0)
  b = points.load(config(name="ring"), "train", seed=1)
  np.testing.assert_array_equal(a.arrays["point"], b.arrays["point"])
  assert (a.batch(0, 8)["point"] != b.batch(0, 8)["point"]).any()


# ---- shapes


def test_every_combination_of_factors_is_drawn_once_and_where_it_says():
  """The middle of the white pixels is where x and y say; areas go with the square of the scale."""
  parts = [shapes.load(config(name="shapes"), s, shuffle=False).arrays for s in memory.SPLITS]
  factors = np.concatenate([p["factors"] for p in parts])
  assert len(np.unique(factors, axis=0)) == len(factors) == 2 * 4 * 8 * 16 * 8
  assert (factors[:, 0] == np.concatenate([p["label"] for p in parts])).all()
  white = np.concatenate([p["image"] for p in parts])[..., 0] / 255.0
  area = white.sum((1, 2))
  middle = (np.arange(32) + 0.5) / 32
  places = {1: 0.25 + 0.5 * factors[:, 3] / 15, 2: 0.35 + 0.3 * factors[:, 4] / 7}
  for axis, place in places.items():  # sums over rows leave x
    np.testing.assert_allclose((white.sum(axis) * middle).sum(1) / area, place, atol=0.01)
  side = 32 * (0.16 + 0.16 * factors[:, 1] / 3)
  share = np.where(factors[:, 0] == 0, 1.0, np.pi / 4 * np.prod(shapes.AXES))
  assert abs(area / (side**2 * share) - 1).mean() < 0.05


def test_shapes_are_drawn_at_any_size_and_every_angle_looks_different():
  factors = np.array([[kind, 3, angle, 0, 0] for kind in (0, 1) for angle in range(8)])
  big = shapes.draw(factors, 64, 64)[..., 0] > 127
  assert len({image.tobytes() for image in big}) == 16
  assert shapes.info(config(name="shapes", image_size=64)).shape["image"] == (64, 64, 1)
  first = (np.argwhere(big[8]) + 0.5) / 64 - np.array([0.35, 0.25])  # of the ellipse
  assert abs(first).max(0)[1] > 1.8 * abs(first).max(0)[0]  # is wider than high
