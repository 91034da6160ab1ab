"""Pictures cut into tiles: those of a folder, and the photographs that are fetched."""

import hashlib
import importlib.resources
import subprocess
import zipfile

import ml_collections
import numpy as np
import pytest
from PIL import Image

from gm.data import packages, photos, prepare, prepared, sets, tiles


def config(top, **keys):
  return ml_collections.ConfigDict({"dir": str(top), "image_size": 8, "channels": 3, **keys})


@pytest.fixture
def top(tmp_path):
  rng = np.random.default_rng(0)
  for split, sizes in {"train": [(20, 11), (8, 8)], "test": [(9, 17)]}.items():
    (tmp_path / split).mkdir()
    for i, size in enumerate(sizes):
      Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(
        tmp_path / split / f"{i}.png"
      )
  return tmp_path


def pictures(top, split):
  return [np.asarray(Image.open(p)) for p in sorted((top / split).iterdir())]


def test_tiles_cover_whole_pictures_of_their_own_split(top):
  train = tiles.load(config(top), "train")
  first, second = pictures(top, "train")
  want = [first[y : y + 8, x : x + 8] for y in (0, 6, 12) for x in (0, 3)] + [second]
  np.testing.assert_array_equal(train.arrays["image"], want)
  (only,) = pictures(top, "test")
  want = [only[y : y + 8, x : x + 8] for y in (0, 1) for x in (0, 4, 9)]
  np.testing.assert_array_equal(tiles.load(config(top), "test").arrays["image"], want)
  assert train.origin["files"] == {"train": 2, "test": 1}


def test_streamed_tiles_are_the_same(top):
  held = tiles.load(config(top), "train", shuffle=False)
  streamed = tiles.load(config(top, memory_mb=0), "train", shuffle=False)
  assert streamed.arrays is None and streamed.num_examples == held.num_examples == 7
  np.testing.assert_array_equal(streamed.batch(0, 7)["image"], held.batch(0, 7)["image"])
  assert tiles.load(config(top, num_train=3), "train").num_examples == 3


def test_a_picture_on_its_side_is_cut_upright(tmp_path):
  (tmp_path / "train").mkdir()
  (tmp_path / "test").mkdir()
  x, exif = np.random.default_rng(0).integers(0, 256, (8, 16), np.uint8), Image.Exif()
  exif[tiles.ORIENTATION] = 6
  for split in ("train", "test"):
    Image.fromarray(np.rot90(x)).save(tmp_path / split / "a.png", exif=exif)
  assert tiles.size_of(tmp_path / "train" / "a.png") == (8, 16)
  found = tiles.load(config(tmp_path, channels=1), "train").arrays["image"]
  np.testing.assert_array_equal(found[..., 0], [x[:, :8], x[:, 8:]])


def test_what_cannot_be_is_said_in_a_line(top):
  for changes, message in (
    ({"image_size": 12}, r"0\.png has 20 x 11 pixels, tiles 12 x 12.*--config\.data\.image_size"),
    ({"image_size": 0}, r"--config\.data\.image_size"),
    ({"channels": 0}, r"--config\.data\.channels"),
    ({"dir": ""}, r"--config\.data\.dir"),
    ({"dir": "/nowhere"}, r"/nowhere is not a folder"),
  ):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
      tiles.load(config(top, **changes), "train")
    assert "\n" not in str(error.value)
  (top / "test" / "0.png").unlink()
  with pytest.raises(FileNotFoundError, match="no pictures for split 'test'"):
    tiles.load(config(top), "test")


def test_photographs_are_held_out_whole(tmp_path, monkeypatch):
  """A small wheel in the place of scikit-image's; scikit-learn's two are its own."""
  assert not set(photos.TRAIN) & set(photos.TEST)
  rng, wheel = np.random.default_rng(0), tmp_path / "scikit_image.whl"
  with zipfile.ZipFile(wheel, "w") as archive:
    for name in {*photos.TRAIN, *photos.TEST} - {*photos.INSTALLED}:
      path = tmp_path / name
      Image.fromarray(rng.integers(0, 256, (100, 96, 3), np.uint8)).save(path)
      archive.write(path, f"{photos.FOLDER}/{name}")
  found = {split: list(x) for split, x in photos.extract(wheel).items()}
  assert {split: len(x) for split, x in found.items()} == {"train": 3 * 2 + 2 * 35, "test": 2 * 2}
  folder = importlib.resources.files("sklearn.datasets") / "images"
  with Image.open(folder / "china.jpg") as china:
    np.testing.assert_array_equal(found["train"][6]["image"], np.asarray(china)[:96, :96])
  counts = {split: len(x) for split, x in found.items()}
  row = sets.SETS["photos"]._replace(num_examples=counts, sha256=digest(wheel))
  monkeypatch.setitem(sets.SETS, "photos", row)
  prepare.ensure("photos", tmp_path / "data", file=wheel, say=lambda line: None)
  cfg = {"name": "photos", "dir": str(tmp_path / "data")}
  source = prepared.load(cfg, "test")
  assert source.arrays["image"].shape == (4, 96, 96, 3)


def digest(path):
  return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_wheel_with_compiled_code_is_the_same_everywhere(tmp_path, monkeypatch):
  """Whatever the machine and its Python, so that its checksum is the one that is pinned."""
  asked = []

  def run(command, **how):
    asked.append(command)
    (tmp_path / "one.whl").touch()
    return subprocess.CompletedProcess(command, 0, "", "")

  monkeypatch.setattr(subprocess, "run", run)
  packages.fetch(sets.SETS["photos"], tmp_path)
  packages.fetch(sets.SETS["mnist"], tmp_path)
  tag = {"--implementation=cp", "--python-version=311", "--abi=cp311"}
  assert tag | {"--platform=manylinux_2_28_x86_64"} <= set(asked[0])
  assert not [flag for flag in asked[1] if flag.startswith(("--platform", "--abi"))]
