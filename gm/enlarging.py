"""Images of the user's own, each made larger by the `enlarger` of a stage, tile by tile.

Every tile is shown with what lies around it, as far as the network reaches, and of the result only
what knows all of its surroundings is kept. So the tiles together are what the whole image would
give, up to rounding, and the memory does not grow with it: beside the network's own maps of one
tile the result is held in bytes, twice while it is written.

Transparency is laid over white, 16 bits become 8, and a grey image stays grey.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gm import asked, core, sharding
from gm.data import images
from gm.errors import UserError, user_input
from gm.job import Job
from gm.progress import Count
from gm.workdir import drawn, files, tiles

TILE = 128  # pixels of an image that are made larger at a time, and what lies around them
MOST_PIXELS = 2**24  # of an image: 268 million of one that is 4 times as wide and high


def windows(length: int, size: int, reach: int) -> Iterator[tuple[int, int, int]]:
  """Covers an axis with windows, each of which is right but for `reach` at ends inside the axis.

  Args:
    length: of the axis.
    size: of a window, above 2 reach; at least `length` for a single one.
    reach: what is wrong at an end that is not the axis' own.

  Yields:
    (start, first, last): from first to last, last left out, the window at `start` is right.

  >>> list(windows(10, 6, 1)), list(windows(4, 6, 1))
  ([(0, 0, 5), (4, 5, 10)], [(0, 0, 4)])
  """
  size, first = min(size, length), 0
  while first < length:
    start = min(max(first - reach, 0), length - size)
    last = length if start + size == length else start + size - reach
    yield start, first, last
    first = last


class Enlargement:
  """What one state of a stage makes of files.

  Attributes:
    files: that are made larger.
    factor: by which.
  """

  def __init__(self, job: Job, index: int, state: core.State, inputs: Sequence[str]):
    """Looks for the files and sees that each can be read.

    Args:
      job: the run.
      index: of the stage, which has an enlarger.
      state: of that stage.
      inputs: files, and folders of them.

    Raises:
      UserError: if a file cannot be read, or is too large.
    """
    self.state, self.files = state, asked.image_files(inputs)
    enlarge, self.factor, self.reach = job.stages[index].enlarger
    self.channels = job.infos[index].shape["image"][2]
    self._enlarge = jax.jit(enlarge, out_shardings=sharding.replicated(job.mesh))
    for file in self.files:
      self._read(file)

  def stream(self) -> Iterator[np.ndarray]:
    """Yields u8 [factor H, factor W, 1 or 3] for every file."""
    for file in self.files:
      yield self.apply(self._read(file))

  def apply(self, image: np.ndarray, tile: int = TILE) -> np.ndarray:
    """Makes an image larger.

    A network of grey images is given colours one by one; of one of colours a grey image becomes the
    mean of three.

    Args:
      image: u8 [H, W, 3], or [H, W, 1] where it is grey.
      tile: pixels of a side that are made larger at a time.

    Returns:
      u8 [factor H, factor W, 3 or 1].
    """
    (height, width, channels), k = image.shape, self.factor
    out = np.empty((k * height, k * width, channels), np.uint8)
    size = tile + 2 * self.reach
    for y, top, bottom in windows(height, size, self.reach):
      for x, left, right in windows(width, size, self.reach):
        part = self._seen(image[y : y + size, x : x + size])
        part = part[k * (top - y) : k * (bottom - y), k * (left - x) : k * (right - x)]
        out[k * top : k * bottom, k * left : k * right] = part
    return out

  def _seen(self, part: np.ndarray) -> np.ndarray:  # u8 to u8
    x = part.astype(np.float32) / 127.5 - 1
    if self.channels == 1:
      made = self._enlarge(self.state, np.moveaxis(x, 2, 0)[..., None])
      return tiles.to_uint8(np.moveaxis(made[..., 0], 0, 2))
    made = np.asarray(self._enlarge(self.state, np.broadcast_to(x, (*x.shape[:2], 3))[None])[0])
    return tiles.to_uint8(made if part.shape[2] == 3 else made.mean(2, keepdims=True))

  def _read(self, file: str) -> np.ndarray:
    try:
      with user_input():
        x = images.read_whole(file, 3, most=MOST_PIXELS)
    except UserError as error:
      raise UserError(f"--input: {error}") from error
    return x[..., :1] if (x == x[..., :1]).all() else x


def write(enlargement: Enlargement, place: drawn.Place, request: Any) -> list[Path]:
  """Writes an image each, NAME_x4.png; returns their folder.

  Args:
    enlargement: of the files.
    place: where to.
    request: sampling.Request.

  Raises:
    ValueError: for what means nothing here.
  """
  asked.check_one_each(request, "larger one", "images that are made larger", targets=False)
  names = [f"{n}_x{enlargement.factor}.png" for n in asked.image_names(enlargement.files)]
  paths = [place.folder() / name for name in names]
  place.check(paths)
  with Count(len(paths), "images") as count:
    for path, image in zip(paths, enlargement.stream(), strict=True):
      if jax.process_index() == 0:
        _save(path, image)
      count.add(1)
  return [place.folder()]


def _save(path: Path, image: np.ndarray) -> None:  # whole or not at all, and not held encoded
  from PIL import Image

  temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  with files.explained(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    picture.save(temp, "PNG", compress_level=4)
    temp.replace(path)
