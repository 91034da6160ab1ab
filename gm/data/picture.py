"""One picture, all that there is to learn from: scikit-learn's photographs, or a file of your own.

config.data: source="picture", channels (0 = 3; 1: grey), image_size ((height, width) or int), name:

  china, flower  photographs of scikit-learn, CC BY 2.0; image_size 0 = 427 x 640
  file           your own, dir = its path; image_size must be given

The largest centred part of that shape is taken and resized. Both splits are this one picture: there
is nothing to hold out.
"""

from __future__ import annotations

import pathlib
from typing import Any

from gm.core import Info, Source
from gm.data import folder, images, memory, photos

NAMES = ("china", "flower", "file")
SIZE = (427, 640)  # of scikit-learn's two


def reads(cfg: Any) -> frozenset[str]:
  """Returns the keys of `cfg` that this source reads."""
  own = {"dir"} if cfg["name"] == "file" else set()
  return frozenset({"name", "image_size", "channels"} | own)


def info(cfg: Any) -> Info:
  """Returns the shape of the picture under `cfg`; reads nothing.

  Raises:
    ValueError: for an unknown name, size or number of channels.

  >>> info({"name": "china", "image_size": 64}).shape
  {'image': (64, 64, 3)}
  """
  memory.require(cfg["name"], NAMES, what="picture", flag="--config.data.name")
  channels = cfg.get("channels", 0) or 3
  if channels not in (1, 3):
    raise ValueError(f"channels {channels}: set --config.data.channels to one of [0, 1, 3]")
  native = None if cfg["name"] == "file" else SIZE
  return Info({"image": (*images.size(cfg.get("image_size", 0), native), channels)})


def load(
  cfg: Any, split: str, *, seed: int = 0, shuffle: bool = True, part: tuple[int, int] = (0, 1)
) -> Source:
  """Loads the picture; leaf image uint8 [1, H, W, C].

  Args:
    cfg: config.data.
    split: "train" or "test": the same.
    seed: of no effect.
    shuffle: of no effect.
    part: (process index, number of processes).

  Returns:
    Source; origin of a file of your own has its path ("name") and its size ("bytes").

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: for an unknown name or split, or a file that cannot be read.
  """
  facts = info(cfg)
  memory.require_split(split)
  shape, name, origin = facts.shape["image"], cfg["name"], {}
  if name == "file":
    if not cfg.get("dir"):
      raise ValueError("the picture 'file' needs its path: set --config.data.dir to it")
    path = pathlib.Path(cfg["dir"]).expanduser()
    if not path.is_file():
      raise FileNotFoundError(f"{path} is no file: set --config.data.dir to the picture")
    image = images.read(path, *shape)
    origin = {"name": folder.printable(str(path.absolute())), "bytes": path.stat().st_size}
  else:
    image = images.read(photos.installed(f"{name}.jpg"), *shape, name=name)
  order = {"seed": seed, "shuffle": shuffle, "part": part}
  decode = images.decoder(shape[2])
  source = memory.from_arrays(facts, {"image": image[None]}, decode, **order)
  return source._replace(origin=origin)
