"""Images with one attribute changed: whether it is, and whether all else stayed.

A network learns the attributes of real images (reader.py) and names those of the edits. Of faces
that are drawn of parts, the same face with another part is drawn too, and the edit compared with
it, pixel by pixel.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gm import columns
from gm.core import Info
from gm.data import attributes, avatars, images
from gm.metrics import reader

HELD_OUT = 6  # one real image in so many measures the network
DRAWN = 300  # edits that are compared with what is drawn, 9 ms each


def changed(fake: Mapping, real: Mapping, info: Info) -> dict[str, float]:
  """How many edits show what was asked for, what else they change, and how far from the truth.

  Edits that ask for what is there already are left out.

  Args:
    fake: "image", the edits [N, H, W, C], "column" [N], which of info.columns was to change,
      "original" and "data_attributes" [N, A] before, and "data_drawn" [N, K] where the images are
      faces of gm/data/avatars.py.
    real: "image" and "attributes" of at least 600 images of the training split; one in 6 is not
      learned from.
    info: with columns.

  Returns:
    changed, changed_NAME: the share of edits where the network reads the attribute as asked for,
      of all and by column. before: the same of the images before the edit.
    kept: the share of the other attributes that read as they were; but for rivals of the column.
    real: the share of attributes that the network reads rightly in images that it has not seen.
    l1, l1_before: of faces, the mean absolute difference, in [-1, 1], of the edit and of the image
      before from the face that is drawn with the attribute changed; where several faces are, as of
      someone with glasses, from the one that is the nearest to each.

  Raises:
    ValueError: if nothing is edited, or there are too few real images.
  """
  if "column" not in fake or "attributes" not in real:
    raise ValueError(
      "edits.changed needs images with attributes, and a method that changes them: set"
      " --config.data.attributes, or take it out of --config.metrics"
    )
  x, y = np.asarray(real["image"], np.float32), np.asarray(real["attributes"], np.int32)
  if len(x) < changed.least:
    raise ValueError(f"edits.changed needs {changed.least} real images, given {len(x)}")
  num, a = len(x) // HELD_OUT, np.asarray(fake["data_attributes"]).astype(int)
  names, column = info.columns, np.asarray(fake["column"])
  asked = np.asarray(columns.change(a.astype(np.float32), column, names)).astype(int)
  rows = np.arange(len(a))
  use = np.flatnonzero(asked[rows, column] != a[rows, column])
  edit, before = (np.asarray(fake[n], np.float32)[use] for n in ("image", "original"))
  a, asked, column, rows = a[use], asked[use], column[use], np.arange(len(use))
  read = reader.train(x[num:], y[num:], np.full(len(names), 2))
  seen = read(edit)
  right = seen[rows, column] == asked[rows, column]
  others = ~(columns.rivals(names)[column] | np.eye(len(names), dtype=bool)[column])
  found = {
    "changed": right.mean(),
    **{f"changed_{names[i]}": right[column == i].mean() for i in np.unique(column)},
    "before": (read(before)[rows, column] == asked[rows, column]).mean(),
    "kept": (seen == a)[others].mean() if others.any() else 1.0,
    "real": (read(x[:num]) == y[:num]).mean(),
  }
  if "data_drawn" in fake:
    drawn = np.asarray(fake["data_drawn"])[use]
    pairs = [
      _distances(names[column[i]], asked[i, column[i]], drawn[i], edit[i], before[i])
      for i in range(min(DRAWN, len(use)))
    ]
    found |= dict(zip(("l1", "l1_before"), np.mean(pairs, 0)))
  return {n: float(v) for n, v in found.items()}


changed.least = 600


def counterfactuals(name: str, there: int, drawn: np.ndarray, shape: tuple) -> np.ndarray:
  """Draws a face with an attribute changed, in each of the ways that there are.

  Args:
    name: of the column.
    there: 1 or 0, what it shall be.
    drawn: the row of the face, [K].
    shape: H, W, C of the images.

  Returns:
    f32 [M, H, W, C] in [-1, 1].
  """
  attribute, values = attributes.parse(name, avatars.VALUES)
  wanted = [v for v in avatars.VALUES[attribute] if (v in values) == bool(there)]
  faces = np.stack([avatars.render(avatars.edit(drawn, **{attribute: v})) for v in wanted])
  fitted = images.fit(faces, *shape[:2], background=255)
  return np.asarray(images.decoder(shape[2])({"image": fitted})["image"])


def _distances(name, there, drawn, *each) -> list[float]:
  true = counterfactuals(name, there, drawn, each[0].shape)
  return [np.abs(true - x).mean((1, 2, 3)).min() for x in each]
