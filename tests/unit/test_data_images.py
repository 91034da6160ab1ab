"""A user's own images: plain folders, prepared TFDS sets, and sets that are streamed."""

import io
import os
import re
import shutil
import socket
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


def png_of(width, height, depth, kind, data, *more):
  """A PNG whose parts fit together or do not."""

  def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

  head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
  parts = [(b"IHDR", head), *more, (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
  return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def bomb(path, width=60_000, height=60_000):
  """A PNG of a few hundred bytes whose header announces 3.6 gigapixels."""
  path.write_bytes(png_of(width, height, 8, 0, bytes(1000)))


def write_set(root, examples, label=None, **more):
  """Writes an array_record set below `root`; returns its folder."""
  from tensorflow_datasets import core, features

  at = root / "toy" / "1.0.0"
  at.mkdir(parents=True)
  identity = core.DatasetIdentity(name="toy", version="1.0.0", data_dir=str(at), module_name="")
  kinds = {"photo": features.Image(shape=(None, None, 3)), **more}
  kinds["label"] = label or features.ClassLabel(num_classes=2)
  facts = core.DatasetInfo(builder=identity, features=features.FeaturesDict(kinds))
  writer = core.SequentialWriter(facts, 10, file_format="array_record")
  writer.initialize_splits(list(examples))
  writer.add_examples(examples)
  writer.close_all()
  return at


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


RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255,) * 3, (0,) * 3


def encoded(image, kind="PNG", **options):
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def halves(mode, left, right, kind="PNG", palette=(), **options):
  """A file of 16 x 16 pixels, the left half of one value and the right half of another."""
  image = Image.new(mode, (16, 16), left)
  image.paste(right, (8, 0, 16, 16))
  if palette:
    image.putpalette(sum(palette, ()))
  return encoded(image, kind, **options)


def turned():
  """Red left of blue, with a camera's note that it is to be turned by 90 degrees to the right."""
  exif = Image.Exif()
  exif[0x0112] = 6
  return halves("RGB", RED, BLUE, "JPEG", quality=100, subsampling=0, exif=exif)


def deep(left, right):
  return np.array([[left] * 8 + [right] * 8] * 16, np.uint16)


def transparent(depth, kind, left, right):
  """A file as of `halves`, of one byte or more a half, `left` being the transparent value."""
  value = left if kind else bytes(2 - len(left)) + left  # a grey one has two bytes
  packed = lambda v: bytes([sum(v[0] << shift for shift in range(0, 8, depth))]) * depth
  row = b"".join(v * 8 if depth > 8 else packed(v) for v in (left, right))
  return png_of(16, 16, depth, kind, 16 * (b"\0" + row), (b"tRNS", value))


GREY = (100,) * 3
CMYK = (0, 255, 255, 0), (255, 255, 0, 0)  # red and blue
DEEP_RED, DEEP_BLUE = b"\xff\x34\0\x34\0\x34", b"\0\0\0\0\xff\xff"
MODES = {  # a file, and the colours of the left and the right half
  "1": (halves("1", 0, 1), BLACK, WHITE),
  "1, 0 transparent": (transparent(1, 0, b"\0", b"\0"), WHITE, WHITE),
  "2 bit grey, 1 transparent": (transparent(2, 0, b"\1", b"\2"), WHITE, (170,) * 3),
  "4 bit grey, 2 transparent": (transparent(4, 0, b"\2", b"\6"), WHITE, (102,) * 3),
  "L": (halves("L", 0, 100), BLACK, GREY),
  "L, 7 transparent": (halves("L", 7, 100, transparency=7), WHITE, GREY),
  "LA": (halves("LA", (9, 0), (100, 255)), WHITE, GREY),
  "P": (halves("P", 0, 1, palette=(RED, BLUE)), RED, BLUE),
  "P of 3 colours": (halves("P", 2, 1, palette=(GREEN, BLUE, RED)), RED, BLUE),
  "P, 0 transparent": (halves("P", 0, 1, palette=(RED, BLUE), transparency=0), WHITE, BLUE),
  "P, GIF": (halves("P", 0, 1, "GIF", palette=(RED, BLUE)), RED, BLUE),
  "RGB": (halves("RGB", RED, BLUE), RED, BLUE),
  "RGB, red transparent": (halves("RGB", RED, BLUE, transparency=RED), WHITE, BLUE),
  "RGB of 16 bit, red transparent": (transparent(16, 2, DEEP_RED, DEEP_BLUE), WHITE, BLUE),
  "RGBA": (halves("RGBA", (9, 9, 9, 0), (0, 0, 255, 255)), WHITE, BLUE),
  "RGBA, a fifth of black": (halves("RGBA", (0, 0, 0, 51), (*BLUE, 255)), (204,) * 3, BLUE),
  "CMYK, JPEG": (halves("CMYK", *CMYK, "JPEG", quality=100), RED, BLUE),
  "CMYK, TIFF": (halves("CMYK", *CMYK, "TIFF"), RED, BLUE),
  "I;16, PNG": (encoded(Image.fromarray(deep(0x00FF, 0x64FF))), BLACK, GREY),
  "I;16, TIFF": (encoded(Image.fromarray(deep(0x00FF, 0x64FF)), "TIFF"), BLACK, GREY),
  "I;16, 0x6401 transparent": (transparent(16, 0, b"\x64\1", b"\x64\2"), WHITE, GREY),
  "16 bit PGM": (b"P5 16 16 65535\n" + deep(0x00FF, 0x64FF).astype(">u2").tobytes(), BLACK, GREY),
  "10 bit PGM": (b"P5 16 16 1023\n" + deep(0, 1023).astype(">u2").tobytes(), BLACK, WHITE),
}


def test_pixels_of_every_mode_are_the_same_from_a_folder_and_from_tfds(tmp_path):
  files = [*(file for file, *_ in MODES.values()), turned()]
  at = write_set(tmp_path / "set", {"train": [{"photo": io.BytesIO(f), "label": 0} for f in files]})
  for i, file in enumerate(files):
    (tmp_path / "train").mkdir(exist_ok=True)
    (tmp_path / "train" / f"{i:02d}.png").write_bytes(file)  # the bytes tell the format
  paint(tmp_path / "test" / "x.png", 0)
  shape = {"image_size": 16, "channels": 3}
  by_folder = folder.load(config(dir=str(tmp_path), **shape), "train").arrays["image"]
  by_tfds = tfds.load(config(dir=str(at), image_key="photo", **shape), "train").arrays["image"]
  np.testing.assert_array_equal(by_folder, by_tfds)
  for (name, (_, left, right)), found in zip(MODES.items(), by_folder, strict=False):
    want = np.array([[left] * 8 + [right] * 8] * 16, np.int32)
    slack = 2 if "JPEG" in name else 0
    assert np.abs(found - want).max() <= slack, (name, found[0, 0], found[0, -1])
  upright = np.array([[RED] * 16] * 8 + [[BLUE] * 16] * 8)
  assert np.abs(by_folder[-1] - upright).max() <= 2


def test_colours_as_grey_and_what_has_no_range(tmp_path):
  assert images.read(halves("RGB", RED, WHITE), 16, 16, 1)[0, 0] == [76]  # 0.299 of 255
  Image.new("F", (2, 2), 0.5).save(tmp_path / "f.tif")
  with pytest.raises(ValueError, match=r"f\.tif.*mode 'F'"):
    images.read(tmp_path / "f.tif", 2, 2, 1)
  with pytest.raises(ValueError, match=r"^number 3: not readable .*mode 'I'"):
    wide = Image.fromarray(np.full((2, 2), 70_000, np.int32))
    images.read(encoded(wide, "TIFF"), 2, 2, 1, name="number 3")


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
  assert len(folder.files_of(tmp_path)) == 1


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


def names(top, **keys):
  """The red of the images of each split, which tells the files."""
  cfg = config(dir=str(top), **keys)
  found = {}
  for split in ("train", "test"):
    source = folder.load(cfg, split)
    found[split] = sorted(source.arrays["image"][:, 0, 0, 0].tolist())
  return found, source


@pytest.mark.parametrize(
  "train, held_out, unused",
  [
    ("train", "test", []),
    ("Training", "TESTING", []),
    ("train", "val", []),
    ("TRAIN", "Valid", []),
    ("train", "validation", []),
    ("train", "dev", []),
    ("train", "test", ["Validation"]),
    ("train", "test", ["raw", "val"]),
  ],
)
@pytest.mark.parametrize("labelled", [False, True])
def test_folders_named_after_splits_are_the_splits(tmp_path, train, held_out, unused, labelled):
  below = ("cat", "dog") if labelled else ("", "")
  for i, name in enumerate((train, held_out, *unused)):
    for j, label in enumerate(below):
      paint(tmp_path / name / label / f"{i}{j}.png", (10 * i + j, 0, 0))
  found, source = names(tmp_path, num_classes=2 if labelled else 0)
  assert found == {"train": [0, 1], "test": [10, 11]}
  assert source.origin["files"] == {"train": 2, "test": 2}
  assert source.origin.get("unused", []) == unused
  assert source.classes == (below if labelled else ())
  if labelled:
    assert (
      source.batch(0, 2)["label"].tolist()
      == (source.batch(0, 2)["image"][:, 0, 0, 0] % 10).tolist()
    )


def test_a_class_may_have_the_name_of_a_split(tmp_path):
  for name in ("bus", "train"):
    for i in range(30):
      paint(tmp_path / name / f"{i}.png", i)
  found, source = names(tmp_path, num_classes=2)
  assert source.classes == ("bus", "train") and len(found["train"]) + len(found["test"]) == 60


def test_folders_of_splits_that_do_not_fit_are_refused(tmp_path):
  cases = [
    (("train",), r"train/ and no test/: add it.*--config\.data\.dir=.*/train$"),
    (("dev", "test"), r"dev/ and test/ and no train/"),
    (("train", "Train", "test"), r"Train/ and train/ for one split"),
    (("train", "val", "dev"), r"dev/ and val/ for one split"),
    (("cats/train", "cats/val"), r"cats/ alone.*--config\.data\.dir=.*/cats$"),
  ]
  for i, (folders, message) in enumerate(cases):
    for name in folders:
      paint(tmp_path / str(i) / name / "0.png", 0)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
      folder.load(config(dir=str(tmp_path / str(i))), "train")


def test_what_is_no_file_is_left_out(tmp_path, monkeypatch):
  """To open a pipe would wait for ever; links to files are files."""
  for i in range(20):
    paint(tmp_path / "all" / f"{i}.png", 0)
  os.mkfifo(tmp_path / "all" / "pipe.png")
  with socket.socket(socket.AF_UNIX) as door:
    monkeypatch.chdir(tmp_path)  # the name of a socket must be short
    door.bind("all/door.png")
  os.symlink("/dev/zero", tmp_path / "all" / "zero.png")
  os.symlink("0.png", tmp_path / "all" / "link.png")
  assert len(folder.files_of(tmp_path)) == 21
  names(tmp_path)
  os.symlink("nowhere.png", tmp_path / "all" / "lost.png")
  with pytest.raises(FileNotFoundError, match=r"lost\.png cannot be found.*remove it"):
    names(tmp_path)


def test_a_folder_that_cannot_be_listed_is_an_error(classes, monkeypatch):
  true = os.scandir

  def scandir(path):
    if str(path).endswith("deep"):
      raise PermissionError(13, "Permission denied", str(path))
    return true(path)

  monkeypatch.setattr(os, "scandir", scandir)
  with pytest.raises(PermissionError, match="deep"):
    names(classes)


def test_the_listing_tells_another_set(classes):
  """By names and sizes, not by contents, the folder's place or its order on disk."""

  def origin(top=classes, split="train"):
    return folder.load(config(dir=str(top), num_classes=2), split).origin

  first = origin()
  assert first["name"] == str(classes) and sum(first["files"].values()) == 80
  assert first == origin(split="test")
  moved = shutil.copytree(classes, classes.parent / "moved")
  assert origin(moved) == {**first, "name": str(moved)}
  (classes / "cat" / "notes.txt").write_text("of no account")
  assert origin() == first
  path = classes / "cat" / "0.png"
  path.write_bytes(path.read_bytes() + b"\0")  # decoders stop before it
  longer = origin()
  assert longer["listing"] != first["listing"] and longer["files"] == first["files"]
  path.rename(path.with_name("x.png"))
  assert origin()["listing"] not in (first["listing"], longer["listing"])


def test_names_that_are_no_text_can_be_recorded(tmp_path):
  name = os.fsdecode(b"caf\xe9")  # Latin-1
  for split in ("train", "test"):
    paint(tmp_path / split / name / "0.png", 0)
  source = folder.load(config(dir=str(tmp_path), num_classes=1), "train")
  assert source.classes == ("caf\\xe9",)


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
  return io.BytesIO(encoded(Image.new("RGB", size, color)))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """An array_record set of 20 + 5 PNG images of several sizes; red tells the index."""
  root = tmp_path_factory.mktemp("tfds")
  row = lambda i: {"photo": png((i * 10, 0, 0), (10 + i, 12)), "label": i % 2}
  write_set(root, {"train": [row(i) for i in range(20)], "validation": [row(i) for i in range(5)]})
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
  assert sorted(source.batch(0, 4)["image"][:, 4, 4, 0]) == [0, 50, 100, 150]


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
    *(
      (
        {"test_split": spec},
        ValueError,
        r"^--config\.data\.test_split='" + re.escape(spec) + reason,
      )
      for spec, reason in (
        ("validation[:1%]", r"' of toy/1\.0\.0 holds no example \(of .*'validation': 5"),
        ("validation[3:2]", r"' of toy/1\.0\.0 holds no example \(of .*'validation': 5"),
        ("validation[9:]", r"' of toy/1\.0\.0: Requested slice"),
        ("validation[", r"' of toy/1\.0\.0: Error parsing split"),
      )
    ),
    ({"train_split": "train[:1%]"}, ValueError, r"train_split='train\[:1%\]' .* no example"),
  ]
  for keys, kind, message in cases:
    cfg = config(**{**TOY, "dir": str(prepared), "name": "toy", **keys})
    with pytest.raises(kind, match=message):
      tfds.load(cfg, "test")


def test_tfds_arrays_that_are_no_files(tmp_path):
  """A uint8 array [H, W, C] is an image too, of one channel or three."""
  x = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
  tensor = lambda c: tensorflow_datasets.features.Tensor(shape=(8, 8, c), dtype=np.uint8)
  rows = [{"photo": png(RED, (8, 8)), "label": 0, "a": a, "b": a[..., :1]} for a in x]
  at = write_set(tmp_path, {"train": rows}, a=tensor(3), b=tensor(1))
  for key, channels, want in (("a", 3, x), ("b", 1, x[..., :1])):
    source = tfds.load(config(dir=str(at), image_key=key, channels=channels), "train")
    np.testing.assert_array_equal(source.arrays["image"], want)


def test_attributes_are_those_that_are_named(tmp_path):
  """In memory and streamed; of CelebA they are truth values below one feature."""
  kinds = tensorflow_datasets.features
  truth = {"Young": kinds.Scalar(dtype=np.bool_), "Male": kinds.Scalar(dtype=np.bool_)}
  given = kinds.FeaturesDict({**truth, "age": kinds.Scalar(dtype=np.int64)})

  def row(i):
    told = {"Young": i % 2 == 0, "Male": i % 3 == 0, "age": i}
    return {"photo": png(RED, (8, 8)), "label": 0, "attributes": told}

  rows = {split: [row(i) for i in range(6)] for split in ("train", "test")}
  at = write_set(tmp_path, rows, attributes=given)

  def load(*names, **keys):
    toy = {**TOY, "test_split": "test", "dir": str(at), "num_classes": 0, "attributes": names}
    return tfds.load(config(**toy, **keys), "train", shuffle=False)

  for source in (load("Male", "Young"), load("Male", "Young", memory_mb=0)):
    assert source.info.columns == ("Male", "Young")
    assert source.info.shape == {"image": (8, 8, 3), "attributes": (2,)}
    found = np.asarray(source.decode(source.batch(0, 6))["attributes"])
    assert found.dtype == np.float32
    want = [[float(i % 3 == 0), float(i % 2 == 0)] for i in range(6)]
    assert sorted(found.tolist()) == sorted(want)
  with pytest.raises(ValueError, match=r"no attribute 'Hat', it has Male, Young, age.*attributes"):
    load("Hat")
  with pytest.raises(ValueError, match=r"attribute 'age' of example \d .*no truth value"):
    load("age")
  with pytest.raises(ValueError, match="names one more than once"):
    load("Male", "Male")


def test_a_label_that_is_no_class_is_refused(tmp_path):
  """TFDS lets -1 stand for none. In memory where the set is opened, streamed where it is read."""
  number = tensorflow_datasets.features.Scalar(dtype=np.int64)
  real = tensorflow_datasets.features.Scalar(dtype=np.float32)
  row = lambda y: {"photo": png(RED, (8, 8)), "label": y, "number": 4 + y, "real": 1.0}
  labels = {"train": [0, 1, 1], "test": [0, -1, 1]}
  rows = {split: [row(y) for y in ys] for split, ys in labels.items()}
  at = write_set(tmp_path, rows, number=number, real=real)
  load = lambda split, **keys: tfds.load(
    config(**{**TOY, "test_split": "test", "dir": str(at), **keys}), split
  )
  refused = r"label of example 1 of test in toy/1\.0\.0 is -1, not one of 0 \.\.\. 1.*num_classes=0"
  with pytest.raises(ValueError, match=refused):
    load("test")
  streamed = load("test", memory_mb=0)
  with pytest.raises(ValueError, match=refused):
    streamed.batch(0, 3)
  assert load("train").batch(0, 3)["label"].sum() == 2
  assert load("test", num_classes=0).num_examples == 3
  assert load("train", label_key="number", num_classes=6).classes == ()
  with pytest.raises(
    ValueError, match=r"label of example \d of train .* is [45], not one of 0 \.\.\. 3"
  ):
    load("train", label_key="number", num_classes=4)
  with pytest.raises(
    ValueError, match=r"is float64 \(\), no whole number.*--config\.data\.label_key"
  ):
    load("train", label_key="real")


def test_tfds_tells_where_its_examples_came_from(prepared):
  cut = {"train_split": "train[:75%]", "test_split": "train[75%:]"}
  cfg = config(**{**TOY, **cut}, dir=str(prepared), name="toy")
  source = tfds.load(cfg, "train")
  assert source.origin["name"] == "toy/1.0.0" and source.origin["bytes"] > 1_000
  assert source.origin["examples"] == {"train": 15, "test": 5}
  assert source.origin["splits"] == {"train": "train[:75%]", "test": "train[75%:]"}
  assert tfds.load(cfg, "test").origin == source.origin


def test_tfds_published_set_under_mock_data():
  cfg = config(name="mnist", image_size=16, channels=1, num_classes=10)
  asked = []

  def examples(builder, split, decoders):  # as TFDS would give them: its own need TensorFlow
    asked.append(decoders)
    return [{"image": encoded(Image.new("L", (28, 28), i)), "label": i} for i in range(7)]

  with tensorflow_datasets.testing.mock_data(as_data_source_fn=examples):
    source = tfds.load(cfg, "train")
    batch = source.decode(source.batch(0, 4))
  assert source.num_examples == 7 and source.classes == tuple("0123456789")
  assert isinstance(asked[0]["image"], tensorflow_datasets.decode.SkipDecoding)
  assert batch["image"].shape == (4, 16, 16, 1)
  assert batch["label"].dtype == np.int32
