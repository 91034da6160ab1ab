"""A plain folder of images: PNG, JPEG, WebP, BMP, GIF (first frame), TIFF, PPM; any sizes.

Layouts, all below --config.data.dir, sub-folders read to any depth:

  a.png b.jpg ...                      no labels, split by hash
  cat/a.png dog/b.png ...              a sub-folder per class (labels in the order of the names),
                                       split by hash
  train/... test/...                   either of the above in each: the split is yours

The last may be spelled train or training; test or testing; val, valid, validation or dev; in any
case. Where there are all three, test is held out and val is not used; where there is no test, val
is held out. What else lies beside them is not used.

Split by hash: a file is in the test split if the first 8 bytes of the SHA-256 of its path below
`dir` are 0 modulo 10, so 1 in 10 is, and files that are added later move no other. Images are
resized by the short side and cropped to the centre (images.crop). Hidden files are left out, and so
is what is no file, nor a link to one: named pipes, sockets, devices.

config.data: source="folder", dir, image_size (int or (height, width)), channels (1 or 3),
num_classes (0 = labels are not read), memory_mb (256: a larger set is streamed), text_key="caption"
with the keys of text.py (captions.py says where captions stand). A file that cannot be read is an
error that names it.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import stat
from typing import Any, NamedTuple, NoReturn

import numpy as np

from gm.core import Info, Source
from gm.data import captions, images, memory, stream, text

TEST_SHARE = 10  # one file in ten
ROLES = {  # names of the folders that split a set, in lower case
  **dict.fromkeys(("train", "training"), "train"),
  **dict.fromkeys(("test", "testing"), "test"),
  **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
}


class File(NamedTuple):
  """An image that was found."""

  path: str
  name: str  # below its split: the first folder in it is the class
  size: int  # bytes


def reads(cfg: Any) -> frozenset[str]:
  """Returns the keys of `cfg` that this source reads."""
  of_images = frozenset({"dir", "image_size", "channels", "num_classes", "num_train", "memory_mb"})
  return of_images | text.reads(cfg)


def info(cfg: Any) -> Info:
  """Returns the shapes that `cfg` declares; touches no file.

  Raises:
    ValueError: if image_size, channels or num_classes is missing, or text is not as in text.py.

  >>> info({"image_size": (48, 64), "channels": 1, "num_classes": 2}).shape
  {'image': (48, 64, 1), 'label': ()}
  """
  return text.declared(cfg, images.declared(cfg, "folder"), "caption")


def _refuse(error: OSError) -> NoReturn:
  raise error


def files_of(top: pathlib.Path) -> list[File]:
  """Returns the images below `top`, sorted by name; links are followed once."""
  found, seen = [], set()
  for folder, names, files in os.walk(top, followlinks=True, onerror=_refuse):
    real = os.path.realpath(folder)
    names[:] = [] if real in seen else sorted(n for n in names if not n.startswith("."))
    if real in seen:
      continue
    seen.add(real)
    below = os.path.relpath(folder, top) + "/" if folder != str(top) else ""
    for file in files:
      path = os.path.join(folder, file)
      if file.startswith(".") or os.path.splitext(file)[1].lower() not in images.SUFFIXES:
        continue
      try:
        facts = os.stat(path)
      except OSError as error:
        raise FileNotFoundError(
          f"{path} cannot be found ({error.strerror}): mend the link or remove it"
        ) from error
      if stat.S_ISREG(facts.st_mode):  # to open a pipe would wait for ever
        found.append(File(path, below + file, facts.st_size))
  return sorted(found, key=lambda f: f.name)


def in_test(path: str) -> bool:
  """Returns whether the file of this relative path belongs to the test split.

  >>> [in_test(f"{i}.png") for i in range(4)]
  [False, True, False, False]
  """
  digest = hashlib.sha256(as_bytes(path)).digest()
  return int.from_bytes(digest[:8]) % TEST_SHARE == 0


def as_bytes(name: str) -> bytes:
  """Returns a name as it is on disk, which need not be UTF-8."""
  return name.encode("utf-8", "surrogateescape")


def _folders(top: pathlib.Path) -> dict[str, list[str]]:
  """Returns the names of the folders in `top` by their role, "" for none."""
  found = {}
  for name in sorted(p.name for p in top.iterdir() if p.is_dir() and p.name[0] != "."):
    found.setdefault(ROLES.get(name.lower(), ""), []).append(name)
  return found


def _split_folders(top: pathlib.Path) -> dict[str, str] | None:
  """Returns the folder of each split, or None where the set is to be split by hash.

  Raises:
    FileNotFoundError: if there are folders of splits alone, and one is missing.
    ValueError: if there are two for one split, or if they lie one level below.
  """
  folders = _folders(top)
  held_out = "test" if "test" in folders else "val"
  if {"train", held_out} <= set(folders):
    for role in ("train", held_out):
      if len(folders[role]) > 1:
        raise ValueError(
          f"{top} has {'/ and '.join(folders[role])}/ for one split: keep one of them in"
          " --config.data.dir"
        )
    return {"train": folders["train"][0], "test": folders[held_out][0]}
  have = sorted(name for names in folders.values() for name in names)
  if have and "" not in folders:
    missing = "test" if "train" in folders else "train"
    raise FileNotFoundError(
      f"{top} has {'/ and '.join(have)}/ and no {missing}/: add it, or split "
      f"{have[0]}/ by hash with --config.data.dir={top / have[0]}"
    )
  if len(have) == 1:
    inner = _folders(top / have[0])
    if "train" in inner and {"test", "val"} & set(inner):
      raise ValueError(
        f"{top} has {have[0]}/ alone, and that is split by its folders: set"
        f" --config.data.dir={top / have[0]}"
      )
  return None


def splits_of(top: pathlib.Path) -> tuple[dict[str, list[File]], dict[str, Any]]:
  """Returns the files of each split below `top`, and the facts on where they came from.

  Raises:
    FileNotFoundError, ValueError: where folders of splits do not fit together.
  """
  folders, unused = _split_folders(top), []
  if folders:
    splits = {split: files_of(top / name) for split, name in folders.items()}
    unused = [n for names in _folders(top).values() for n in names if n not in folders.values()]
  else:
    files = files_of(top)
    splits = {s: [f for f in files if in_test(f.name) == (s == "test")] for s in memory.SPLITS}
  listing = hashlib.sha256()
  for split, files in splits.items():
    for f in files:
      listing.update(as_bytes(f"{split}/{f.name}\0{f.size}\0"))
  origin = {
    "name": printable(os.path.abspath(top)),
    "files": {split: len(files) for split, files in splits.items()},
    "listing": listing.hexdigest()[:16],
  }
  return splits, {**origin, **({"unused": sorted(map(printable, unused))} if unused else {})}


def printable(name: str) -> str:
  """Returns a name as text that can be written anywhere."""
  return as_bytes(name).decode("utf-8", "backslashreplace")


def _tokens(cfg: Any, top: pathlib.Path, splits: dict) -> tuple[dict, str, str]:
  """Returns the captions of every file of both splits as ids, the tokenizer, and their digest."""
  below = {os.path.relpath(f.path, top): f.path for files in splits.values() for f in files}
  found = captions.of_files(top, below)
  flat = [(path, caption) for name, path in below.items() for caption in found[name]]
  tokens, tokenizer = text.of_set([caption for _, caption in flat], cfg)
  of_path = {path: [] for path in below.values()}
  for (path, _), row in zip(flat, tokens, strict=True):
    of_path[path].append(row)
  digest = text.digest(
    part for name in below for caption, _ in found[name] for part in (name, caption)
  )
  return of_path, tokenizer, digest


def load(
  cfg: Any, split: str, *, seed: int = 0, shuffle: bool = True, part: tuple[int, int] = (0, 1)
) -> Source:
  """Loads a split; rows image uint8 [H, W, C] and, with classes, label i32, with text tokens i32.

  Args:
    cfg: config.data.
    split: "train" or "test".
    seed: order of the rows.
    shuffle: False reads them in their one constant order, a permutation.
    part: (process index, number of processes).

  Returns:
    Source; origin has the absolute folder ("name"), the number of files of each split, and a digest
    of their names and sizes ("listing"), with text one of the captions ("captions").

  Raises:
    FileNotFoundError: if the folder or the split has no images.
    ValueError: for missing keys, classes that do not agree with the folders, a file that cannot be
      read, or captions that are missing.
  """
  facts = info(cfg)
  memory.require_split(split)
  if not cfg.get("dir"):
    raise ValueError("source 'folder' needs a folder: set --config.data.dir")
  top = pathlib.Path(cfg["dir"]).expanduser()
  if not top.is_dir():
    raise FileNotFoundError(f"{top} is not a folder: set --config.data.dir to the folder of images")
  splits, origin = splits_of(top)
  if not splits[split]:
    raise FileNotFoundError(
      f"{top} has no images for split {split!r} (found {origin['files']}; "
      f"suffixes {sorted(images.SUFFIXES)}): "
      "add images, sort them into train/ and test/, or change --config.data.dir"
    )
  classes = []
  if facts.num_classes:
    loose = [f.path for files in splits.values() for f in files if "/" not in f.name]
    if loose:
      raise ValueError(
        f"{loose[0]} is in no class folder: move it into one, or set --config.data.num_classes=0"
      )
    classes = sorted({f.name.split("/")[0] for files in splits.values() for f in files})
    if len(classes) != facts.num_classes:
      raise ValueError(
        f"{top} has {len(classes)} class folders with images ({', '.join(classes[:10])}): "
        f"set --config.data.num_classes to {len(classes)}, it is {facts.num_classes}"
      )
  labels = {name: i for i, name in enumerate(classes)}
  shape = facts.shape["image"]
  examples, tokenizer = [(file, {}) for file in splits[split]], ""
  if "tokens" in facts.shape:
    tokens, tokenizer, origin["captions"] = _tokens(cfg, top, splits)
    examples = [(f, {"tokens": row}) for f in splits[split] for row in tokens[f.path]]

  def read(example: tuple[File, dict]) -> dict[str, np.ndarray]:
    file, told = example
    row = {"image": images.read(file.path, *shape), **told}
    return {**row, "label": np.int32(labels[file.name.split("/")[0]])} if labels else row

  source = stream.from_reader(
    facts,
    [examples[i] for i in memory.rows(cfg, split, len(examples))],
    read,
    images.decoder(shape[2]),
    memory_mb=cfg.get("memory_mb", stream.MEMORY_MB),
    seed=seed,
    shuffle=shuffle,
    part=part,
  )
  classes = tuple(map(printable, classes))
  return source._replace(classes=classes, tokenizer=tokenizer, origin=origin)
