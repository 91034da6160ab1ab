"""Images of the user's own with attributes changed, each brought to the size that the method knows.

This is for stages with `edit`. What an image shows already is read in it by the method itself, so
no labels are needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gm import asked, columns, core, sharding
from gm.errors import UserError
from gm.job import Job
from gm.progress import Count, say
from gm.workdir import drawn, tiles

MOST_STEPS = 20  # of one row of a grid


class Editing:
  """What one state of a stage makes of files.

  Attributes:
    names: for the files that are written, one for each that is read.
    wanted: f32 [R, S, A], what each image of a grid shall show, NaN: as it is.
    legend: a line that says what stands where in the grid; "" where it is a single image.
  """

  def __init__(
    self,
    job: Job,
    index: int,
    state: core.State,
    inputs: Sequence[str],
    target: str | None = None,
    strengths: Sequence[str | float] | None = None,
  ):
    """Reads the files.

    Args:
      job: the run.
      index: of the stage, which has `edit`.
      state: of that stage.
      inputs: files, and folders of them.
      target: attributes that are changed together, "hair_color=red,-glasses!=none", with a minus
        those that shall not be there; None: a grid of all, one at a time.
      strengths: how far, where the stage knows degrees; several make a grid. None: of a target the
        greatest, else all that the stage names.

    Raises:
      UserError: if there is no such attribute or strength, or a file cannot be read.
    """
    self.stage, self.state, self.columns = job.stages[index], state, job.infos[index].columns
    known = self.stage.strengths
    given = _numbers(strengths, known, job.config.method)
    files = asked.image_files(inputs)
    self.images = asked.read_images(files, job.infos[index].shape["image"])
    if target is not None:
      changes = _listed(str(target), self.columns)
      rows = [[(changes, t) for t in given or [max(known, default=1.0)]]]
    elif known:
      rows = [[([name], t) for t in given or known] for name in self.columns]
    else:  # one row; what is no value among others is turned on, and off
      alone = ~columns.alternatives(self.columns).any(1)
      each = [[n, f"-{n}"] if a else [n] for n, a in zip(self.columns, alone, strict=True)]
      rows = [[([change], 1.0) for changes in each for change in changes]]
    self.wanted = np.array([[self._row(*cell) for cell in row] for row in rows])
    self.single = target is not None and len(rows[0]) == 1
    tail = "edits" if target is None else str(target)
    self.names = asked.text_names([f"{n}_{tail}" for n in asked.image_names(files)])
    degree = (lambda t: f" {t:g}") if known else lambda t: ""
    told = [", ".join(" ".join(changes) + degree(t) for changes, t in row) for row in rows]
    self.legend = "" if self.single else f"from left to right: as it is; {'; '.join(told)}"
    self._edit = jax.jit(self.stage.edit, out_shardings=sharding.replicated(job.mesh))

  def stream(self) -> Iterator[np.ndarray]:
    """Yields for every file [H, W, C] in [-1, 1], or rows [R, 1 + S, H, W, C], first as it is."""
    rows, steps, num = self.wanted.shape
    for x in self.images:
      many = np.repeat(x[None], rows * steps, axis=0)
      made = jax.device_get(self._edit(self.state, many, self.wanted.reshape(-1, num)))
      made = made.reshape(rows, steps, *x.shape)
      before = np.broadcast_to(x, (rows, 1, *x.shape))
      yield made[0, 0] if self.single else np.concatenate([before, made], axis=1)

  def _row(self, changes: list[str], strength: float) -> np.ndarray:
    """What is wanted: a value of an attribute that shall be there rules the others out."""
    row = np.full(len(self.columns), np.nan, np.float32)
    for change in changes:
      i = self.columns.index(change.removeprefix("-"))
      row[i] = -strength if change[0] == "-" else strength
      if row[i] > 0:
        row[columns.rivals(self.columns)[i]] = -1.0
    return row


def _listed(target: str, names: Sequence[str]) -> list[str]:
  """Returns the changes of a target; raises UserError for what is unknown or cannot go together."""
  changes = target.split(",")
  found = [change.removeprefix("-") for change in changes]
  for change, name in zip(changes, found, strict=True):
    if name not in names:
      raise UserError(
        f"--target={change}: there is no such attribute: give {', '.join(names)}, several with"
        " commas, with a - before those that shall not be there"
      )
  here = [names.index(n) for n, change in zip(found, changes, strict=True) if change[0] != "-"]
  if len(set(found)) < len(found) or columns.rivals(names)[np.ix_(here, here)].any():
    raise UserError(f"--target={target}: these exclude each other: leave some out")
  return changes


def _numbers(
  strengths: Sequence[str | float] | None, known: Sequence[float], method: str
) -> list[float]:
  """Returns strengths as numbers; raises UserError where they mean nothing."""
  if strengths is None:
    return []
  shown = ",".join(map(str, strengths))
  if not known:
    raise UserError(f"--strength={shown}: {method} turns attributes on or off: leave it out")
  try:
    found = [float(t) for t in strengths]
  except ValueError:
    found = []
  if not 0 < len(found) <= MOST_STEPS or not all(min(known) <= t <= max(known) for t in found):
    raise UserError(
      f"--strength={shown[:40]!r}: give numbers from {min(known):g} to {max(known):g}, at most"
      f" {MOST_STEPS}"
    )
  return found


def write(editing: Editing, place: drawn.Place, request: Any) -> list[Path]:
  """Writes an image each, NAME_TARGET.png or a grid NAME_edits.png; returns their folder.

  Args:
    editing: of the files.
    place: where to.
    request: sampling.Request.

  Raises:
    ValueError: for what means nothing here.
  """
  asked.check_one_each(request, "edit", "images whose attributes are changed", targets=True)
  writer = drawn.Files(place, editing.names, ["image"])
  if editing.legend:
    say(editing.legend)
  with Count(len(editing.names), "images") as count:
    for made in editing.stream():
      picture = tiles.grid(made) if made.ndim == 5 else made
      if jax.process_index() == 0:
        writer.add({"image": picture.reshape(1, *picture.shape[:2], -1)})
      count.add(1)
  return writer.close() if jax.process_index() == 0 else []
