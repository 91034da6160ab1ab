"""A plain folder of images: PNG, JPEG, WebP, BMP, GIF (first frame), TIFF, PPM; any sizes.

Layouts, all below --config.data.dir, sub-folders read to any depth, hidden files left out:

  a.png b.jpg ...                      no labels, split by hash
  cat/a.png dog/b.png ...              a sub-folder per class (labels in the order of the names),
                                       split by hash
  train/... test/...                   either of the above in each: the split is yours

Split by hash: a file is in the test split if the SHA-256 of its path below `dir` is 0 modulo 10, so
1 in 10 is, and files that are added later move no other. Images are resized by the short side and
cropped to the centre (images.crop).

config.data: source="folder", dir, image_size (int or (height, width)), channels (1 or 3),
num_classes (0 = labels are not read), memory_mb (256: a larger set is streamed). A file that cannot
be read is an error that names it.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
from typing import Any

import numpy as np

from gm.core import Info, Source
from gm.data import images, memory, stream

TEST_SHARE = 10  # one file in ten


def info(cfg: Any) -> Info:
  """Returns the shapes that `cfg` declares; touches no file.

  Raises:
    ValueError: if image_size, channels or num_classes is missing.

  >>> info({"image_size": (48, 64), "channels": 1, "num_classes": 2}).shape
  {'image': (48, 64, 1), 'label': ()}
  """
  return images.declared(cfg, "folder")


def _files(top: pathlib.Path) -> list[str]:
  """Returns the images below `top` as sorted relative paths; links are followed once."""
  found, seen = [], set()
  for folder, names, files in os.walk(top, followlinks=True):
    real = os.path.realpath(folder)
    names[:] = [] if real in seen else [n for n in names if not n.startswith(".")]
    if real not in seen:
      seen.add(real)
      paths = (pathlib.Path(folder, f) for f in files if not f.startswith("."))
      paths = (p for p in paths if p.suffix.lower() in images.SUFFIXES)
      found += [p.relative_to(top).as_posix() for p in paths]
  return sorted(found)


def in_test(path: str) -> bool:
  """Returns whether the file of this relative path belongs to the test split.

  >>> [in_test(f"{i}.png") for i in range(4)]
  [False, True, False, False]
  """
  digest = hashlib.sha256(path.encode("utf-8", "surrogateescape")).digest()
  return int.from_bytes(digest[:8]) % TEST_SHARE == 0


def _splits(top: pathlib.Path) -> dict[str, list[tuple[str, str]]]:
  """Returns the (file, path below its split) pairs of each split."""
  folders = {p.name for p in top.iterdir() if p.is_dir() and not p.name.startswith(".")}
  if folders >= set(memory.SPLITS):
    return {s: [(str(top / s / f), f) for f in _files(top / s)] for s in memory.SPLITS}
  if len(folders) == 1 and folders & set(memory.SPLITS):
    only = folders.pop()
    other = memory.SPLITS[only == "train"]
    raise FileNotFoundError(
      f"{top} has {only}/ and no {other}/: add it, or split it by hash with "
      f"--config.data.dir={top / only}"
    )
  files = _files(top)
  return {
    s: [(str(top / f), f) for f in files if in_test(f) == (s == "test")] for s in memory.SPLITS
  }


def load(
  cfg: Any, split: str, *, seed: int = 0, shuffle: bool = True, part: tuple[int, int] = (0, 1)
) -> Source:
  """Loads a split; rows image uint8 [H, W, C] and, with classes, label i32.

  Args:
    cfg: config.data.
    split: "train" or "test".
    seed: order of the rows.
    shuffle: False reads them in their one constant order, a permutation.
    part: (process index, number of processes).

  Raises:
    FileNotFoundError: if the folder or the split has no images.
    ValueError: for missing keys, classes that do not agree with the folders, or a file that cannot
      be read.
  """
  facts = info(cfg)
  memory.require_split(split)
  if not cfg.get("dir"):
    raise ValueError("source 'folder' needs a folder: set --config.data.dir")
  top = pathlib.Path(cfg["dir"]).expanduser()
  if not top.is_dir():
    raise FileNotFoundError(f"{top} is not a folder: set --config.data.dir to the folder of images")
  splits = _splits(top)
  if not splits[split]:
    counts = {s: len(files) for s, files in splits.items()}
    raise FileNotFoundError(
      f"{top} has no images for split {split!r} (found {counts}; "
      f"suffixes {sorted(images.SUFFIXES)}): "
      "add images, sort them into train/ and test/, or change --config.data.dir"
    )
  labels = {}
  if facts.num_classes:
    loose = [path for files in splits.values() for path, f in files if "/" not in f]
    if loose:
      raise ValueError(
        f"{loose[0]} is in no class folder: move it into one, or set --config.data.num_classes=0"
      )
    names = sorted({f.split("/")[0] for files in splits.values() for _, f in files})
    if len(names) != facts.num_classes:
      raise ValueError(
        f"{top} has {len(names)} class folders with images ({', '.join(names[:10])}): "
        f"set --config.data.num_classes to {len(names)}, it is {facts.num_classes}"
      )
    labels = {name: i for i, name in enumerate(names)}
  shape = facts.shape["image"]
  files = [splits[split][i] for i in memory.rows(cfg, split, len(splits[split]))]

  def read(example: tuple[str, str]) -> dict[str, np.ndarray]:
    path, f = example
    row = {"image": images.read(path, *shape)}
    return {**row, "label": np.int32(labels[f.split("/")[0]])} if labels else row

  return stream.from_reader(
    facts,
    files,
    read,
    images.decoder(shape[2]),
    memory_mb=cfg.get("memory_mb", stream.MEMORY_MB),
    seed=seed,
    shuffle=shuffle,
    part=part,
  )
