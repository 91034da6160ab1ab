"""What `--mode=sample` leaves: a picture, files or arrays, in DIR/samples or in --out.

```
<stage>_<step>_seeds0-35[_labels3,7].png (.npz, .txt)   Picture
<stage>_<step>_seeds0-35[_labels3,7].npz                Arrays
<stage>_<step>/seed0005[_label3].png                    Files; in --out without the folder
```
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gm.workdir import files, samples, tiles

# what names of pictures begin with that were asked for; reports leave them out
NAMED = re.compile(r"(truncation[-+.e\d]+_)?(seeds|walk)\d")


class Place(NamedTuple):
  """Where to write, and whether what is there may go."""

  workdir: str | Path
  out: str | Path | None  # None: DIR/samples
  stem: str  # of all names: the stage, the step, and what else the samples belong to
  overwrite: bool = False

  def top(self) -> Path:
    """The folder that all goes to; ~ is the home folder."""
    return Path(self.out).expanduser() if self.out else Path(self.workdir) / "samples"

  def path(self, name: str, ending: str) -> Path:
    """Of a file."""
    return self.top() / f"{self.stem}_{name}.{ending}"

  def folder(self) -> Path:
    """Of many files, whose names need no stem."""
    return self.top() if self.out else self.top() / self.stem

  def check(self, paths: Iterable[Path]) -> None:
    """Raises ValueError if a file is there that must not be overwritten, or none can be written."""
    found = None if self.overwrite else next((path for path in paths if path.exists()), None)
    if found:
      raise ValueError(
        f"{found} is there already: give --overwrite to replace it, or another --out=DIR"
      )
    folder = self.top()
    try:
      folder.mkdir(parents=True, exist_ok=True)
      with tempfile.TemporaryFile(dir=folder):
        pass
    except OSError as error:
      given = f"--out={self.out}" if self.out else str(folder)
      raise ValueError(
        f"{given} is no folder that can be written ({error.strerror}): give another --out=DIR"
      ) from error


def spell(numbers: Sequence[int], most: int = 40) -> str:
  """Returns numbers for the name of a file, runs as ranges.

  >>> spell([0, 1, 2, 3, 9]), spell(range(0, 100, 2))
  ('0-3,9', '0-98of50')
  """
  if isinstance(numbers, range) and numbers.step == 1:  # of any length
    return f"{numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else str(numbers[0])
  runs = []
  for n in numbers:
    if runs and n == runs[-1][1] + 1:
      runs[-1][1] = n
    else:
      runs.append([n, n])
  text = ",".join(f"{a}-{b}" if b > a else str(a) for a, b in runs)
  return text if len(text) <= most else f"{min(numbers)}-{max(numbers)}of{len(numbers)}"


class Files:
  """An image each, in its true size; nothing is held."""

  def __init__(self, place: Place, names: Sequence[str], kinds: Sequence[str]):
    """Names the files.

    Args:
      place: where to; without `out` a folder of their own in DIR/samples.
      names: of all images in the order in which they come.
      kinds: the entries that are images; of several each has its name added.

    Raises:
      ValueError: if a file is there already.
    """
    self.kinds, self.names = list(kinds), iter(names)
    self.folder = place.folder()
    self.tail = {kind: f"_{kind}" if len(self.kinds) > 1 else "" for kind in self.kinds}
    place.check(self.folder / f"{n}{tail}.png" for n in names for tail in self.tail.values())

  def add(self, batch: Mapping[str, np.ndarray]) -> None:
    """Writes images [n, H, W, C] in [-1, 1]."""
    for images in zip(*(batch[kind] for kind in self.kinds)):
      name = next(self.names)
      for kind, image in zip(self.kinds, images):
        files.write_bytes(self.folder / f"{name}{self.tail[kind]}.png", tiles.png(image))

  def close(self) -> list[Path]:
    """Returns the folder."""
    return [self.folder]


class Arrays:
  """One compressed .npz that grows by rows on disk, so that it may be larger than memory."""

  def __init__(self, place: Place, name: str):
    """Names the file; raises ValueError if it is there already."""
    self.path, self.parts = place.path(name, "npz"), {}
    place.check([self.path])

  def add(self, batch: Mapping[str, np.ndarray]) -> None:
    """Adds rows to every entry; bfloat16, unknown to .npz, as float32."""
    with files.explained(self.path):
      self.path.parent.mkdir(parents=True, exist_ok=True)
      for name, x in batch.items():
        x = x.astype(np.float32) if x.dtype.kind == "V" else x
        if name not in self.parts:
          store = tempfile.TemporaryFile(dir=self.path.parent)  # noqa: SIM115, open until close
          self.parts[name] = [store, x.dtype, x.shape[1:], 0]
        self.parts[name][0].write(np.ascontiguousarray(x).tobytes())
        self.parts[name][3] += len(x)

  def close(self) -> list[Path]:
    """Writes the file, whole; returns its path."""
    temp = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
    with files.explained(self.path):
      with zipfile.ZipFile(temp, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, (store, dtype, shape, count) in self.parts.items():
          header = {
            "descr": np.lib.format.dtype_to_descr(dtype),
            "fortran_order": False,
            "shape": (count, *shape),
          }
          with archive.open(f"{name}.npy", "w", force_zip64=True) as entry, store:
            np.lib.format.write_array_header_1_0(entry, header)
            store.seek(0)
            shutil.copyfileobj(store, entry, 2**20)
      temp.replace(self.path)
    return [self.path]


class Picture:
  """One picture of all samples: a grid of images, or what suits the kind of data, and its .npz."""

  def __init__(self, place: Place, name: str, rows: int, info: Any, classes: Sequence[str] = ()):
    """Names the file.

    Args:
      place: where to.
      name: of the samples.
      rows: of the grid; 1 lays images out in a square.
      info: core.Info of the data.
      classes: names of the labels.

    Raises:
      ValueError: if a file is there already.
    """
    self.where = lambda more, ending: place.path(f"{name}_{more}" if more else name, ending)
    self.rows, self.info, self.classes, self.parts = rows, info, classes, []
    place.check(self.where("", ending) for ending in ("png", "npz", "txt"))

  def add(self, batch: Mapping[str, np.ndarray]) -> None:
    """Keeps rows for the end."""
    self.parts.append(batch)

  def close(self) -> list[Path]:
    """Draws the picture; returns the files."""
    batch = {k: np.concatenate([p[k] for p in self.parts]) for k in self.parts[0]}
    return samples.write_kinds(self.where, batch, None, self.info, self.rows, self.classes)
