"""Sets that stand in this repository: real images with nothing to download.

mnist10k: the first 10,000 images of MNIST's training set, 28 x 28 grey, 9,000 for training and
1,000 for testing (by class as in the whole, 86 to 113 each). It shares no image with the test split
of `mnist` (source=prepared). Source and licences: files/LICENCE-mnist10k.txt.

config.data: source="embedded", name="mnist10k", image_size (0 = 28; larger is padded with
background, 32 adds 2 on each side; smaller is resized by area), channels (0 = 1; 3 repeats the
grey).
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from gm.core import Info, Source
from gm.data import images, memory

FILES = pathlib.Path(__file__).parent / "files"
NAMES = ("mnist10k",)
NUM_TRAIN = 9_000  # the file is in split order: these rows, then the test rows


def reads(cfg: Any) -> frozenset[str]:
  """Returns the keys of `cfg` that this source reads."""
  del cfg
  return frozenset({"name", "image_size", "channels", "num_train"})


def info(cfg: Any) -> Info:
  """Returns the shapes under `cfg`; reads no file.

  Raises:
    ValueError: for an unknown name, size or number of channels.

  >>> info({"name": "mnist10k", "image_size": 32}).shape
  {'image': (32, 32, 1), 'label': ()}
  """
  memory.require(cfg["name"], NAMES, what="embedded set", flag="--config.data.name")
  return Info({"image": images.shape(cfg, (28, 28, 1)), "label": ()}, num_classes=10)


def load(
  cfg: Any, split: str, *, seed: int = 0, shuffle: bool = True, part: tuple[int, int] = (0, 1)
) -> Source:
  """Loads a split; leaves image uint8 [N, H, W, 1] and label uint8 [N].

  Args:
    cfg: config.data.
    split: "train" or "test".
    seed: order of the rows.
    shuffle: False reads them in their one constant order, a permutation.
    part: (process index, number of processes).

  Raises:
    ValueError: for an unknown name or split.

  >>> load({"name": "mnist10k"}, "test").num_examples
  1000
  """
  facts = info(cfg)
  memory.require_split(split)
  part_of_file = slice(NUM_TRAIN) if split == "train" else slice(NUM_TRAIN, None)
  with np.load(FILES / f"{cfg['name']}.npz", allow_pickle=False) as file:
    image, label = file["image"][part_of_file, ..., None], file["label"][part_of_file]
  rows = memory.rows(cfg, split, len(image))
  image, label = image[rows], label[rows]
  height, width, channels = facts.shape["image"]
  arrays = {"image": images.fit(image, height, width), "label": label}
  source = memory.from_arrays(
    facts, arrays, images.decoder(channels), seed=seed, shuffle=shuffle, part=part
  )
  return source._replace(classes=tuple("0123456789"))
