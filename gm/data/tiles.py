"""Pictures of your own in their own resolution, cut into tiles: what super-resolution learns from.

The folder is laid out and split as that of `folder` (without classes), whole pictures to a split:
train/ and test/, or by the hash of the name. Each picture is covered evenly by tiles of image_size,
which overlap a little where its sides are no multiples; nothing is resized.

config.data: source="tiles", dir, image_size (int or (height, width)), channels (1 or 3), num_train
(of tiles), memory_mb (256: of a larger set each tile is read from its file when it is needed).
"""

from __future__ import annotations

import concurrent.futures
import os
import pathlib
from typing import Any

import numpy as np

from gm.core import Info, Source
from gm.data import folder, images, memory, stream

ORIENTATION = 0x0112  # in EXIF; above 4 the sides are exchanged


def reads(cfg: Any) -> frozenset[str]:
  """Returns the keys of `cfg` that this source reads."""
  del cfg
  return frozenset({"dir", "image_size", "channels", "num_train", "memory_mb"})


def info(cfg: Any) -> Info:
  """Returns the shapes that `cfg` declares; touches no file.

  Raises:
    ValueError: if image_size or channels is missing.

  >>> info({"image_size": 96, "channels": 3}).shape
  {'image': (96, 96, 3)}
  """
  size = {"image_size": cfg.get("image_size", 0), "channels": cfg.get("channels", 0)}
  return images.declared({**size, "num_classes": 0}, "tiles")


def starts(length: int, size: int) -> list[int]:
  """Returns where the fewest intervals of `size` begin that cover `length`, evenly spaced.

  >>> starts(10, 4), starts(8, 4), starts(4, 4)
  ([0, 3, 6], [0, 4], [0])
  """
  room, steps = length - size, -(-length // size) - 1
  return [room * i // steps for i in range(steps + 1)] if steps else [0]


def cut(picture: np.ndarray, height: int, width: int) -> np.ndarray:
  """Covers a picture with tiles, row by row.

  Args:
    picture: [H, W, C], at least as large as a tile.
    height: of a tile.
    width: of a tile.

  Returns:
    [N, height, width, C].

  >>> cut(np.zeros((10, 8, 3)), 4, 4).shape
  (6, 4, 4, 3)
  """
  boxes = [(y, x) for y in starts(len(picture), height) for x in starts(picture.shape[1], width)]
  return np.stack([picture[y : y + height, x : x + width] for y, x in boxes])


def size_of(file: str | os.PathLike) -> tuple[int, int]:
  """Returns (height, width) of an image file, upright (EXIF), without decoding its pixels.

  Raises:
    FileNotFoundError, ValueError: as `images.read` does.
  """

  def size(image: Any) -> tuple[int, int]:
    sideways = image.getexif().get(ORIENTATION, 1) > 4
    return image.size if sideways else image.size[::-1]

  return images.opened(file, "", size, upright=False)


def load(
  cfg: Any, split: str, *, seed: int = 0, shuffle: bool = True, part: tuple[int, int] = (0, 1)
) -> Source:
  """Loads a split; leaves image uint8 [N, H, W, C].

  Args:
    cfg: config.data.
    split: "train" or "test".
    seed: order of the tiles.
    shuffle: False reads them in their one constant order, a permutation.
    part: (process index, number of processes).

  Returns:
    Source; origin as `folder` gives it.

  Raises:
    FileNotFoundError: if the folder or the split has no pictures.
    ValueError: for missing keys, a picture that is smaller than a tile or cannot be read.
  """
  facts = info(cfg)
  memory.require_split(split)
  if not cfg.get("dir"):
    raise ValueError("source 'tiles' needs a folder of pictures: set --config.data.dir")
  top = pathlib.Path(cfg["dir"]).expanduser()
  if not top.is_dir():
    raise FileNotFoundError(
      f"{top} is not a folder: set --config.data.dir to the folder of pictures"
    )
  splits, origin = folder.splits_of(top)
  if not splits[split]:
    raise FileNotFoundError(
      f"{top} has no pictures for split {split!r} (found {origin['files']}): add some, sort them"
      " into train/ and test/, or change --config.data.dir"
    )
  height, width, channels = shape = facts.shape["image"]
  examples = []
  for file in splits[split]:
    size = size_of(file.path)
    if size[0] < height or size[1] < width:
      raise ValueError(
        f"{file.path} has {size[0]} x {size[1]} pixels, tiles {height} x {width}: lower"
        " --config.data.image_size, or remove it"
      )
    boxes = [(y, x) for y in starts(size[0], height) for x in starts(size[1], width)]
    examples += [(file.path, *box) for box in boxes]
  examples = [examples[i] for i in memory.rows(cfg, split, len(examples))]
  decode, order = images.decoder(channels), {"seed": seed, "shuffle": shuffle, "part": part}

  def tile(picture: np.ndarray, y: int, x: int) -> np.ndarray:
    return picture[y : y + height, x : x + width]

  def read(example: tuple[str, int, int]) -> dict[str, np.ndarray]:
    path, *box = example
    return {"image": tile(images.read_whole(path, channels), *box)}

  if len(examples) * height * width * channels > 1e6 * cfg.get("memory_mb", stream.MEMORY_MB):
    source = stream.from_examples(facts, examples, read, decode, **order)
    return source._replace(origin=origin)
  found = np.empty((len(examples), *shape), np.uint8)
  rows = {}
  for i, (path, *box) in enumerate(examples):
    rows.setdefault(path, []).append((i, box))

  def fill(path: str) -> None:  # each file is read once
    picture = images.read_whole(path, channels)
    for i, box in rows[path]:
      found[i] = tile(picture, *box)

  with concurrent.futures.ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
    for done in [pool.submit(fill, path) for path in rows]:
      done.result()
  source = memory.from_arrays(facts, {"image": found}, decode, **order)
  return source._replace(origin=origin)
