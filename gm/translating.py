"""Images of the user's own, each translated whole, in its own size.

This is for stages whose `sample` takes images of any size (`multiple` of core.Stage): networks of
convolutions that draw nothing. Sides that are no multiples of what the network needs are mirrored
at their ends, and as much is cut off the result. Each new size is compiled anew. Norms are over the
whole image, so parts of one that is too large could not be translated each for itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gm import asked, core, inspection, sharding
from gm.data import images
from gm.errors import UserError, user_input
from gm.job import Job
from gm.progress import Count
from gm.workdir import drawn

MOST_PIXELS = 2**22  # of an image; a network holds some hundred numbers for each pixel of it


class Translation:
  """What one state of a stage makes of files.

  Attributes:
    names: of the entries that are made: all domains, or the one that was asked for.
    files: that are translated.
  """

  def __init__(
    self, job: Job, index: int, state: core.State, inputs: Sequence[str], target: str | None = None
  ):
    """Looks for the files and sees that each can be read.

    Args:
      job: the run.
      index: of the stage, whose `multiple` is above 0.
      state: of that stage.
      inputs: files, and folders of them.
      target: the domain that they shall come to; None: all of them.

    Raises:
      UserError: if there is no such domain, or a file cannot be read.
    """
    self.job, self.index, self.state = job, index, state
    self.stage, self.files = job.stages[index], asked.image_files(inputs)
    shapes = core.batch_shapes(job.infos[index], 1)
    key = jax.eval_shape(lambda: jax.random.key(0))
    paths, _ = inspection.depends(self.stage.sample, job.templates[index], shapes, key)
    self._made_of = {
      name: [n for n in shapes if f"[1]['{n}']" in read] for name, read in paths.items()
    }
    self.names = sorted(self._made_of) if target is None else [str(target)]
    if not set(self.names) <= set(self._made_of):
      raise UserError(
        f"--target={target}: there is no such domain: {' or '.join(sorted(self._made_of))}"
      )
    self._translate = jax.jit(self._whole, out_shardings=sharding.replicated(job.mesh))
    for file in self.files:
      self._read(file)

  def stream(self) -> Iterator[dict[str, np.ndarray]]:
    """Yields {name: [1, H, W, C]} in [-1, 1] for every file."""
    for file in self.files:
      x = self._read(file)
      more = [(0, -n % self.stage.multiple) for n in x.shape[:2]]
      found = self._translate(self.state, np.pad(x, [*more, (0, 0)], mode="symmetric")[None])
      yield {n: y[:, : x.shape[0], : x.shape[1]] for n, y in jax.device_get(found).items()}

  def _whole(self, state, x):
    batch = dict.fromkeys({n for name in self.names for n in self._made_of[name]}, x)
    others = core.batch_shapes(self.job.infos[self.index], 1)
    blank = {n: jnp.zeros(s.shape, s.dtype) for n, s in others.items() if n not in batch}
    made = self.stage.sample(state, {**blank, **batch}, self.job.keys[self.index]["seeds"])
    return {name: made[name] for name in self.names}

  def _read(self, file: str) -> np.ndarray:
    shape = self.job.infos[self.index].shape
    channels = shape[self._made_of[self.names[0]][0]][2]
    try:
      with user_input():
        x = images.read_whole(file, channels)
    except UserError as error:
      raise UserError(f"--input: {error}") from error
    height, width, _ = x.shape
    if height * width > MOST_PIXELS:
      raise UserError(
        f"--input: {file} has {width} x {height} pixels: at most {MOST_PIXELS:,} are translated at"
        " once, and not in tiles, since norms are over the whole image: make it smaller"
      )
    return x.astype(np.float32) / 127.5 - 1


def write(translation: Translation, place: drawn.Place, request: Any) -> list[Path]:
  """Writes an image each, NAME_DOMAIN.png; returns their folder.

  Args:
    translation: of the files.
    place: where to.
    request: sampling.Request.

  Raises:
    ValueError: for what means nothing here.
  """
  asked.check_one_each(request, "translation", "images that are translated", targets=True)
  names, kinds = asked.image_names(translation.files), translation.names
  tail = f"_{kinds[0]}" if len(kinds) == 1 else ""  # of several, the writer adds it
  writer = drawn.Files(place, [f"{name}{tail}" for name in names], kinds)
  with Count(len(names), "images") as count:
    for part in translation.stream():
      if jax.process_index() == 0:
        writer.add(part)
      count.add(1)
  return writer.close() if jax.process_index() == 0 else []
