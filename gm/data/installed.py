"""Sets that an installed package ships.

digits: scikit-learn's 1,797 handwritten digits, 8 x 8 with 17 grey levels (UCI Optical Recognition
of Handwritten Digits, test part; E. Alpaydin, C. Kaynak). After a fixed shuffle 1,500 are for
training and 297 for testing: in the file's order writers stand together, and the last 297 are
strangers (the nearest training image has the label of 95 % of them, of 99 % after the shuffle).

config.data: source="installed", name="digits", image_size (0 = 8; larger is padded with background,
smaller is resized by area, rounded to the 17 levels), channels (0 = 1; 3 repeats the grey).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gm.core import Info, Source
from gm.data import images, memory

NAMES = ("digits",)
NUM_TRAIN = 1_500
LEVELS = 16  # the stored value of white


def reads(cfg: Any) -> frozenset[str]:
  """Returns the keys of `cfg` that this source reads."""
  del cfg
  return frozenset({"name", "image_size", "channels", "num_train"})


def info(cfg: Any) -> Info:
  """Returns the shapes under `cfg`; imports nothing.

  Raises:
    ValueError: for an unknown name, size or number of channels.

  >>> info({"name": "digits"}).shape
  {'image': (8, 8, 1), 'label': ()}
  """
  memory.require(cfg["name"], NAMES, what="installed set", flag="--config.data.name")
  return Info({"image": images.shape(cfg, (8, 8, 1)), "label": ()}, num_classes=10)


def load(
  cfg: Any, split: str, *, seed: int = 0, shuffle: bool = True, part: tuple[int, int] = (0, 1)
) -> Source:
  """Loads a split; leaves image uint8 [N, H, W, 1] with values 0 ... 16, and label uint8 [N].

  Args:
    cfg: config.data.
    split: "train" or "test".
    seed: order of the rows.
    shuffle: False reads them in their one constant order, a permutation.
    part: (process index, number of processes).

  Raises:
    ValueError: for an unknown name or split.
    ModuleNotFoundError: if scikit-learn is not installed.

  >>> load({"name": "digits"}, "test").num_examples
  297
  """
  facts = info(cfg)
  memory.require_split(split)
  try:
    from sklearn import datasets
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
      "the set 'digits' comes with scikit-learn, which is not installed: "
      "pip install scikit-learn, or set --config.data.source=embedded --config.data.name=mnist10k"
    ) from error
  bunch = datasets.load_digits()
  rows = np.random.default_rng(0).permutation(len(bunch.target))
  rows = rows[:NUM_TRAIN] if split == "train" else rows[NUM_TRAIN:]
  rows = rows[memory.rows(cfg, split, len(rows))]
  image = bunch.images[rows, ..., None].astype(np.uint8)
  height, width, channels = facts.shape["image"]
  arrays = {
    "image": images.fit(image, height, width),
    "label": bunch.target[rows].astype(np.uint8),
  }
  decode = images.decoder(channels, levels=LEVELS)
  source = memory.from_arrays(facts, arrays, decode, seed=seed, shuffle=shuffle, part=part)
  return source._replace(classes=tuple("0123456789"))
