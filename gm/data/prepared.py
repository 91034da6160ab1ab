"""Sets that are fetched once and kept as TFDS array_record; prepare.py has their table.

mnist: 60,000 training and 10,000 test digits, 28 x 28 grey, in the original order.

config.data: source="prepared", name="mnist", dir ("" = the user's cache folder), image_size (0 =
native; larger is padded with background, smaller is resized by area), channels (0 = native; 3
repeats the grey). The first run that asks for a set prepares it.
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from gm.core import Info, Source
from gm.data import images, memory, prepare


def info(cfg: Any) -> Info:
  """Returns the shapes under `cfg`; fetches and reads nothing.

  Raises:
    ValueError: for an unknown name, size or number of channels.

  >>> info({"name": "mnist", "image_size": 14}).shape
  {'image': (14, 14, 1), 'label': ()}
  """
  spec = prepare.require(cfg["name"])
  shape = images.shape(cfg, spec.shape["image"])
  return Info({**spec.shape, "image": shape}, num_classes=spec.num_classes)


def _read(folder: pathlib.Path, name: str, split: str) -> dict[str, np.ndarray]:
  """Returns the leaves of a split, from the arrays kept beside the records where they are there."""
  spec = prepare.require(name)
  count = spec.num_examples[split]
  try:
    arrays = {
      leaf: np.load(prepare.array_file(folder, split, leaf), allow_pickle=False)
      for leaf in spec.shape
    }
    if all(a.shape == (count, *spec.shape[leaf]) for leaf, a in arrays.items()):
      return arrays
  except (OSError, ValueError, EOFError):  # removed or damaged: the records are the set
    pass
  import tensorflow_datasets as tfds

  try:
    records = tfds.builder_from_directory(folder).as_data_source(split=split)
    if len(records) != count:
      raise ValueError(f"{len(records)} records in {split}, expected {count}")
    arrays = {leaf: np.empty((count, *shape), np.uint8) for leaf, shape in spec.shape.items()}
    for start in range(0, count, 1_000):
      rows = records.__getitems__(range(start, min(start + 1_000, count)))
      for leaf, a in arrays.items():
        a[start : start + len(rows)] = [row[leaf] for row in rows]
  except Exception as error:  # TFDS and array_record raise many types on damaged files
    raise RuntimeError(
      f"the set {name!r} in {folder} cannot be read ({' '.join(str(error).split())}): "
      f"remove that folder and run python -m gm.data.prepare {name} --dir {folder.parent.parent}"
    ) from error
  return arrays


def load(
  cfg: Any, split: str, *, seed: int = 0, shuffle: bool = True, part: tuple[int, int] = (0, 1)
) -> Source:
  """Loads a split, preparing the set where it is missing.

  Leaves: image uint8 [N, H, W, C] and label uint8 [N].

  Args:
    cfg: config.data.
    split: "train" or "test".
    seed: order of the rows.
    shuffle: False reads them as they stand.
    part: (process index, number of processes).

  Raises:
    ValueError: for an unknown name or split.
    RuntimeError: if the set cannot be prepared or read; the message says what to do.
  """
  facts = info(cfg)
  memory.require_split(split)
  arrays = _read(prepare.ensure(cfg["name"], cfg.get("dir", "")), cfg["name"], split)
  height, width, channels = facts.shape["image"]
  arrays["image"] = images.fit(arrays["image"], height, width)
  decode = images.decoder(channels)
  return memory.from_arrays(facts, arrays, decode, seed=seed, shuffle=shuffle, part=part)
