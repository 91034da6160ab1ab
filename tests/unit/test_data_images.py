"""A user's own images: plain folders, prepared TFDS sets, and sets that are streamed."""

import io
import os
import struct
import zlib

import grain
import ml_collections
import numpy as np
import pytest
import tensorflow_datasets
from PIL import Image

from gm.core import Info
from gm.data import folder, images, memory, stream, tfds


def config(**keys):
  base = {"name": "", "dir": "", "image_size": 8, "channels": 3, "num_classes": 0}
  return ml_collections.ConfigDict({**base, **keys})


def paint(path, color, size=(12, 8), mode="RGB"):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new(mode, size, color).save(path)


def bomb(path, width=60_000, height=60_000):
  """A PNG of a few hundred bytes whose header announces 3.6 gigapixels."""

  def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

  head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
  data = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
  path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


@pytest.fixture
def classes(tmp_path):
  for i in range(40):
    paint(tmp_path / "cat" / f"{i}.png", (255, i, 0))
    paint(tmp_path / "dog" / "deep" / f"{i}.PNG", (0, i, 255))
  (tmp_path / "cat" / "notes.txt").write_text("not an image")
  paint(tmp_path / ".hidden" / "x.png", 0)
  return tmp_path


# ---- one image


def test_crop_takes_the_centre_and_keeps_the_aspect():
  x = np.zeros((8, 16, 3), np.uint8)
  x[:, 4:12] = 200  # the centred square
  np.testing.assert_array_equal(images.crop(Image.fromarray(x), 8, 8, 3), x[:, 4:12])
  short = Image.fromarray(x).resize((8, 4), Image.Resampling.LANCZOS)  # short side, then the centre
  np.testing.assert_array_equal(images.crop(Image.fromarray(x), 4, 4, 3), np.asarray(short)[:, 2:6])
  assert images.crop(Image.fromarray(x), 8, 4, 1).shape == (8, 4, 1)
  upright = Image.fromarray(x.swapaxes(0, 1))
  assert (images.crop(upright, 8, 8, 3) == 200).all()
  np.testing.assert_array_equal(images.crop(Image.fromarray(x), 8, 16, 3), x)


def test_pixels_of_every_mode(tmp_path):
  def read(image, channels):
    image.save(tmp_path / "x.png")
    return images.read(tmp_path / "x.png", 2, 2, channels)[0, 0].tolist()

  deep = Image.fromarray(np.full((2, 2), 0x7F80, np.uint16))
  assert read(deep, 1) == [0x7F]  # not clipped to 255
  assert read(Image.new("RGBA", (2, 2), (10, 20, 30, 0)), 3) == [255] * 3  # hidden colour stays out
  assert read(Image.new("L", (2, 2), 9), 3) == [9, 9, 9]
  assert read(Image.new("RGB", (2, 2), (255, 0, 0)), 1) == [76]  # 0.299 of 255
  assert read(Image.new("P", (2, 2)), 3) == [0, 0, 0]
  Image.new("F", (2, 2), 0.5).save(tmp_path / "f.tif")
  with pytest.raises(ValueError, match=r"f\.tif.*mode 'F'"):
    images.read(tmp_path / "f.tif", 2, 2, 1)


def test_exif_orientation_is_followed(tmp_path):
  x = np.zeros((8, 8, 3), np.uint8)
  x[:4] = 255
  exif = Image.Exif()
  exif[0x0112] = 3  # turned by 180 degrees
  Image.fromarray(x).save(tmp_path / "x.png", exif=exif)
  np.testing.assert_array_equal(images.read(tmp_path / "x.png", 8, 8, 3), x[::-1])


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "bmp"])
def test_truncated_files_are_named(tmp_path, suffix):
  path = tmp_path / f"broken.{suffix}"
  noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
  Image.fromarray(noise).save(path)
  images.read(path, 8, 8, 3)
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  with pytest.raises(ValueError, match=rf"broken\.{suffix}: .*remove it or fix it"):
    images.read(path, 8, 8, 3)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_and_disguises_are_refused(tmp_path):
  bomb(tmp_path / "bomb.png")
  with pytest.raises(ValueError, match=r"bomb\.png.*remove it"):
    images.read(tmp_path / "bomb.png", 8, 8, 1)
  bomb(tmp_path / "small.png", 12_000, 12_000)  # below Pillow's own limit
  with pytest.raises(ValueError, match=r"small\.png.*12000 x 12000"):
    images.read(tmp_path / "small.png", 8, 8, 1)
  (tmp_path / "x.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n")
  with pytest.raises(ValueError, match=r"x\.png.*remove it"):  # would start an interpreter
    images.read(tmp_path / "x.png", 8, 8, 1)
  (tmp_path / "empty.jpg").touch()
  with pytest.raises(ValueError, match=r"empty\.jpg.*remove it"):
    images.read(tmp_path / "empty.jpg", 8, 8, 1)


# ---- folders


def test_hash_split_is_fixed_and_disjoint(classes):
  cfg = config(dir=str(classes), num_classes=2)
  rows = {s: folder.load(cfg, s, shuffle=False).arrays for s in ("train", "test")}
  seen = {
    s: {(int(x[0, 0, 1]), int(y)) for x, y in zip(a["image"], a["label"])} for s, a in rows.items()
  }
  assert len(seen["train"]) + len(seen["test"]) == 80
  assert not seen["train"] & seen["test"]
  want = {(i, 0) for i in range(40) if folder.in_test(f"cat/{i}.png")}
  want |= {(i, 1) for i in range(40) if folder.in_test(f"dog/deep/{i}.PNG")}
  assert seen["test"] == want
  paint(classes / "cat" / "new.png", (255, 99, 0))  # a new file moves no other
  later = folder.load(cfg, "test", shuffle=False).arrays
  assert {(int(x[0, 0, 1]), int(y)) for x, y in zip(later["image"], later["label"])} - {
    (99, 0)
  } == want


def test_labels_follow_the_names_in_both_splits(tmp_path):
  for split, names in (("train", "abc"), ("test", "bc")):  # a class without test images
    for name in names:
      paint(tmp_path / split / name / "0.png", (ord(name), 0, 0))
  cfg = config(dir=str(tmp_path), num_classes=3)
  for split in ("train", "test"):
    arrays = folder.load(cfg, split).arrays
    np.testing.assert_array_equal(arrays["image"][:, 0, 0, 0] - ord("a"), arrays["label"])
  batch = folder.load(cfg, "train").decode({"image": np.full((1, 8, 8, 3), 255, np.uint8)})
  assert float(batch["image"].max()) == 1


def test_memory_and_stream_hold_the_same_rows(classes):
  cfg = config(dir=str(classes), num_classes=2, image_size=(4, 6))
  held = folder.load(cfg, "train", shuffle=False)
  with cfg.unlocked():
    cfg.memory_mb = 0
  streamed = folder.load(cfg, "train", shuffle=False)
  assert held.arrays is not None
  assert streamed.arrays is None
  assert streamed.indices is None
  assert held.num_examples == streamed.num_examples
  labels = held.batch(0, 20)["label"]  # the folder is read class by class
  assert 5 < labels.sum() < 15
  for i in (0, 1, 2, 9, 3):
    for name, leaf in held.batch(i, 16).items():
      np.testing.assert_array_equal(leaf, streamed.batch(i, 16)[name])
      assert leaf.dtype == streamed.batch(i, 16)[name].dtype


def test_links_in_a_circle_end(tmp_path):
  paint(tmp_path / "a" / "x.png", 0)
  os.symlink(tmp_path, tmp_path / "a" / "loop")
  assert len(folder._files(tmp_path)) == 1


def test_folder_errors_tell_the_fix(classes, tmp_path_factory):
  empty = tmp_path_factory.mktemp("empty")
  cases = [
    ({"dir": ""}, ValueError, r"--config\.data\.dir"),
    ({"dir": str(empty / "no")}, FileNotFoundError, r"not a folder.*--config\.data\.dir"),
    ({"dir": str(empty)}, FileNotFoundError, r"no images for split 'train'"),
    ({"num_classes": 3}, ValueError, r"2 class folders.*cat, dog.*num_classes to 2"),
    ({"image_size": 0}, ValueError, r"--config\.data\.image_size"),
    ({"channels": 0}, ValueError, r"--config\.data\.channels to 1 or 3"),
    ({"num_classes": None}, ValueError, r"--config\.data\.num_classes"),
  ]
  for keys, kind, message in cases:
    with pytest.raises(kind, match=message):
      folder.load(config(**{"dir": str(classes), **keys}), "train")
  paint(empty / "train" / "x.png", 0)
  with pytest.raises(FileNotFoundError, match=r"train/ and no test/"):
    folder.load(config(dir=str(empty)), "train")
  paint(classes / "loose.png", 0)
  with pytest.raises(ValueError, match=r"loose\.png.*num_classes=0"):
    folder.load(config(dir=str(classes), num_classes=2), "train")
  (classes / "cat" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\nxx")
  with pytest.raises(ValueError, match=r"0\.png.*remove it or fix it"):
    for split in ("train", "test"):
      folder.load(config(dir=str(classes)), split)


# ---- streams


def numbers(n=23, **keys):
  read = lambda x: {"x": np.int32(x)}
  return stream.from_examples(Info({"x": ()}), list(range(n)), read, dict, **keys)


def test_stream_is_a_pure_function_of_seed_and_i():
  source = numbers(seed=3)
  first = [source.batch(i, 5)["x"] for i in range(12)]  # in order: read ahead
  for i in (7, 2, 2, 11, 0):  # and at random
    np.testing.assert_array_equal(source.batch(i, 5)["x"], first[i])
    np.testing.assert_array_equal(numbers(seed=3).batch(i, 5)["x"], first[i])
  assert any((numbers(seed=4).batch(i, 5)["x"] != first[i]).any() for i in range(3))
  epochs = np.concatenate([source.batch(i, 23)["x"][None] for i in range(4)])
  assert (np.sort(epochs, 1) == np.arange(23)).all()
  assert len({tuple(e) for e in epochs}) == 4
  np.testing.assert_array_equal(np.concatenate(first), epochs.ravel()[:60])


@pytest.mark.parametrize("shuffle", [True, False])
def test_stream_parts_tile_the_global_batch(shuffle):
  whole = numbers(seed=1, shuffle=shuffle)
  for p in range(2):
    part = numbers(seed=1, shuffle=shuffle, part=(p, 2))
    for i in (0, 3, 4, 1):
      np.testing.assert_array_equal(part.batch(i, 6)["x"], whole.batch(i, 6)["x"][p::2])
  if not shuffle:
    assert (whole.batch(4, 6)["x"] == memory.constant(23)[1:7]).all()  # 24 ... 29 modulo 23


def test_stream_order_is_grains():
  want = grain.MapDataset.source(list(range(23))).seed(9).shuffle().repeat()
  assert numbers(seed=9).batch(2, 10)["x"].tolist() == [want[i] for i in range(20, 30)]


def test_stream_reports_the_broken_example_where_it_is_needed():
  broken = memory.constant(16)[13]

  def read(x):
    if x == broken:
      raise ValueError("13.png: remove it or fix it")
    return {"x": np.int32(x)}

  source = stream.from_examples(Info({"x": ()}), list(range(16)), read, dict, shuffle=False)
  for i in range(3):  # reading ahead meets it and stays quiet
    source.batch(i, 4)
  with pytest.raises(ValueError, match=r"13\.png"):
    source.batch(3, 4)
  with pytest.raises(ValueError, match=r"13\.png"):
    stream.from_reader(Info({"x": ()}), list(range(16)), read, dict)


def test_stream_refuses_what_it_cannot_do():
  with pytest.raises(ValueError, match="empty"):
    numbers(0)
  with pytest.raises(ValueError, match=r"--config\.seed"):
    numbers(seed=-1)
  with pytest.raises(ValueError, match=r"--config\.batch_size"):
    numbers(part=(0, 2)).batch(0, 5)
  with pytest.raises(ValueError, match="batch -1"):
    numbers().batch(-1, 5)


# ---- TFDS


def png(color, size):
  file = io.BytesIO()
  Image.new("RGB", size, color).save(file, "PNG")
  return io.BytesIO(file.getvalue())


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """An array_record set of 20 + 5 PNG images of several sizes; red tells the index."""
  root = tmp_path_factory.mktemp("tfds")
  at = root / "toy" / "1.0.0"
  at.mkdir(parents=True)
  facts = tensorflow_datasets.core.DatasetInfo(
    builder=tensorflow_datasets.core.DatasetIdentity(
      name="toy", version="1.0.0", data_dir=str(at), module_name=""
    ),
    features=tensorflow_datasets.features.FeaturesDict(
      {
        "photo": tensorflow_datasets.features.Image(shape=(None, None, 3)),
        "label": tensorflow_datasets.features.ClassLabel(num_classes=2),
      }
    ),
  )
  writer = tensorflow_datasets.core.SequentialWriter(facts, 10, file_format="array_record")
  writer.initialize_splits(["train", "validation"])
  for split, n in (("train", 20), ("validation", 5)):
    rows = [{"photo": png((i * 10, 0, 0), (10 + i, 12)), "label": i % 2} for i in range(n)]
    writer.add_examples({split: rows})
  writer.close_all()
  return root


TOY = {"num_classes": 2, "image_key": "photo", "test_split": "validation"}


@pytest.mark.parametrize("keys", [{"memory_mb": 256}, {"memory_mb": 0}])
def test_tfds_set_is_read_by_folder_and_by_name(prepared, keys):
  for at in ({"dir": str(prepared / "toy" / "1.0.0")}, {"dir": str(prepared), "name": "toy"}):
    cfg = config(**TOY, **at, **keys)
    source = tfds.load(cfg, "train", shuffle=False)
    rows = source.batch(0, 20)
    assert rows["image"].shape == (20, 8, 8, 3)
    assert rows["image"].dtype == np.uint8
    order = memory.constant(20)
    np.testing.assert_array_equal(rows["image"][:, 4, 4, 0], order * 10)
    np.testing.assert_array_equal(rows["label"], order % 2)
    assert tfds.load(cfg, "test").num_examples == 5
    assert source.info == tfds.info(cfg) == Info({"image": (8, 8, 3), "label": ()}, num_classes=2)
    assert (source.arrays is None) == (keys["memory_mb"] == 0)


@pytest.mark.parametrize("memory_mb", [256, 0])
def test_some_training_examples_are_spread_over_all(prepared, memory_mb):
  cfg = config(**TOY, dir=str(prepared), name="toy", memory_mb=memory_mb, num_train=4)
  source = tfds.load(cfg, "train", shuffle=False)
  assert source.num_examples == 4 and tfds.load(cfg, "test").num_examples == 5
  red = np.sort(source.batch(0, 4)["image"][:, 4, 4, 0])
  assert (red // 50).tolist() == [0, 1, 2, 3]


def test_tfds_splits_in_its_own_notation(prepared):
  cut = {"train_split": "train[:75%]", "test_split": "train[75%:]"}
  cfg = config(**{**TOY, **cut}, dir=str(prepared), name="toy")
  train, test = (
    tfds.load(cfg, s, shuffle=False).arrays["image"][:, 0, 0, 0] for s in ("train", "test")
  )
  assert train.tolist() == list(range(0, 150, 10))
  assert test.tolist() == list(range(150, 200, 10))
  cfg.test_split = "train[70%:]"
  with pytest.raises(ValueError, match=r"overlap.*--config\.data\.test_split"):
    tfds.load(cfg, "train")


def test_tfds_errors_tell_the_fix(prepared, tmp_path):
  cases = [
    ({"dir": str(tmp_path)}, FileNotFoundError, r"'toy'.*--config\.data\.dir"),
    (
      {"dir": str(tmp_path), "name": "mnist", "image_key": "image", "num_classes": 10},
      FileNotFoundError,
      r"mnist.*array_record",
    ),
    ({"name": ""}, ValueError, r"--config\.data\.name"),
    (
      {"test_split": "test"},
      ValueError,
      r"no split 'test'.*validation.*--config\.data\.test_split",
    ),
    ({"image_key": "image"}, ValueError, r"no feature 'image'.*photo.*--config\.data\.image_key"),
    ({"image_key": "label"}, ValueError, r"int64.*--config\.data\.image_key"),
    ({"num_classes": 3}, ValueError, r"2 classes.*num_classes=2"),
    ({"image_size": 0}, ValueError, r"--config\.data\.image_size"),
  ]
  for keys, kind, message in cases:
    cfg = config(**{**TOY, "dir": str(prepared), "name": "toy", **keys})
    with pytest.raises(kind, match=message):
      tfds.load(cfg, "test")


def test_tfds_published_set_under_mock_data():
  cfg = config(name="mnist", image_size=16, channels=1, num_classes=10)
  with tensorflow_datasets.testing.mock_data(num_examples=7):
    source = tfds.load(cfg, "train")
    batch = source.decode(source.batch(0, 4))
  assert source.num_examples == 7
  assert batch["image"].shape == (4, 16, 16, 1)
  assert batch["label"].dtype == np.int32
