"""Samples as they are asked for: by seed, by label, truncated, and walks from one to the next.

The sample of a seed is a function of the state, the seed and the label alone: its noise comes from
fold_in(key of seeds, seed), and seeds 64 k ... 64 k + 63 (of large images fewer) are always drawn
together, in one compiled call, of which those asked for are kept. So on one machine with the same
number of devices it is the same bit for bit, whatever else is asked for; with another number it is
the same up to rounding. Samples that are normalised by their batch (model.bn_mode=batch) are so by
these 64. No data set is read, unless the samples themselves depend on an example of it.

In a notebook: `sampling.draw("/tmp/run", seeds=range(36), labels=["cat"])["image"]`.
"""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from gm import asked, checks, continuing, core, inspection, pictures, sharding
from gm.errors import UserError, user_input
from gm.job import Job, load, newest
from gm.progress import Count, say
from gm.workdir import drawn, samples, video

CHUNK = 64  # seeds that are drawn together, fewer of large images; a sample's bits belong to it
TRUNCATIONS = ("truncation", "psi")  # keys of config.model that --truncation sets
MOST_HELD = 2**30  # bytes of a plot's samples or of a film's frames, which are held at once
MOST_FRAMES = 100_000
MOST_FILES = 1_000_000


class Sampler:
  """Draws from one state of a stage, each sample a function of its seed and label.

  Attributes:
    data: names of the entries that are samples: "image", "point", ...
    images: names of all entries that are images.
    conditional: whether they depend on a label.
    walks: whether there is a latent to walk in.
    bytes: of one sample with its seed.
  """

  def __init__(self, job: Job, index: int, state: core.State, classes: Sequence[str] = ()):
    """Takes a state.

    Args:
      job: the run.
      index: of the stage.
      state: of that stage.
      classes: the names of the labels; others than the labels are left aside.
    """
    self.job, self.index, self.state = job, index, state
    self.stage, self.info = job.stages[index], job.infos[index]
    known = len(classes) == self.info.num_classes
    self.classes = list(classes if known else map(str, range(self.info.num_classes)))
    size = sum(math.prod(shape) for shape in self.info.shape.values())
    self.chunk = int(np.clip(2 ** int(math.log2(2**22 / size)), 4, CHUNK))
    shapes = core.batch_shapes(self.info, job.sizes[index])
    key = jax.eval_shape(lambda: jax.random.key(0))
    paths, made = inspection.depends(self.stage.sample, job.templates[index], shapes, key)
    found = {name: {n for n in shapes if f"[1]['{n}']" in read} for name, read in paths.items()}
    self.images = {name for name, x in made.items() if x.ndim == 4}
    self.data = sorted((set(found) & set(self.info.shape)) - {"label"} or set(found))
    self.conditional = any("label" in found[name] for name in self.data)
    self.walks = self.stage.latent is not None
    self._source = None
    kept = [n for n in found if found[n] <= {"label"} and not n.startswith("data_")]
    if any(found[name] - {"label"} for name in self.data):  # then examples are the condition
      self._source, kept = load(job, index, "test", shuffle=False, whole=True), list(found)

    self.bytes = 8 + sum(math.prod(made[n].shape[1:]) * made[n].dtype.itemsize for n in kept)

    def compiled(function):
      def call(state, rows, label, *rest):
        with sharding.over(job.mesh):
          batch = self._source.decode(rows) if self._source else self._blank()
          batch = {**batch, "label": label} if label is not None else batch
          made = function(state, batch, *rest)
          return {name: made[name] for name in kept}

      return jax.jit(call, out_shardings=sharding.replicated(job.mesh))

    self._draw, self._between = compiled(self._samples), compiled(self._way)
    if self.stage.ready is not None:
      with sharding.over(job.mesh):
        self.state = jax.jit(self.stage.ready)(state)

  def stream(
    self, seeds: Iterable[int], labels: Sequence[int] | None = None
  ) -> Iterator[dict[str, np.ndarray]]:
    """Yields samples in parts of up to 64.

    Args:
      seeds: 0 to 2^31 - 1.
      labels: every seed is drawn for each of them, the first label's seeds first; None: the label
        of seed s is s modulo the number of classes or, where an example is the condition, its own.

    Yields:
      {name: [n, ...]}, what `sample` of the stage gives but for what repeats the data, and "seed"
      i64 [n].
    """
    for label in [None] if labels is None else labels:
      for k, group in itertools.groupby(seeds, lambda seed: seed // self.chunk):
        group = np.fromiter(group, np.int64)
        together = np.arange(k * self.chunk, (k + 1) * self.chunk)
        rows = self._source.batch(k, self.chunk) if self._source else None
        y = self._labels(together, label)
        found = jax.device_get(self._draw(self.state, rows, y, together.astype(np.uint32)))
        yield {**{n: x[group - k * self.chunk] for n, x in found.items()}, "seed": group}

  def walk(
    self, seeds: Sequence[int], frames: int, label: int | None = None
  ) -> Iterator[dict[str, np.ndarray]]:
    """Yields the frames of a closed walk from seed to seed and back to the first, in parts.

    Frame i stands at i n / frames of the n legs, so where n divides frames the sample of every seed
    is one of them. The label, or the example that is the condition, is the first seed's throughout.

    Args:
      seeds: two or more.
      frames: their number in all.
      label: of all frames.

    Yields:
      {name: [n, ...]}.
    """
    place = np.arange(frames) * len(seeds) / frames
    leg = place.astype(np.int64)
    stops = np.array([*seeds, seeds[0]], np.uint32)
    y = self._labels(np.full(self.chunk, seeds[0]), label)
    first = self._source.batch(int(seeds[0]), 1) if self._source else {}
    rows = {name: np.repeat(x, self.chunk, axis=0) for name, x in first.items()}
    for start in range(0, frames, self.chunk):
      at = np.minimum(np.arange(start, start + self.chunk), frames - 1)
      way = (stops[leg[at]], stops[leg[at] + 1], (place - leg)[at].astype(np.float32))
      found = jax.device_get(self._between(self.state, rows, y, *way))
      yield {name: x[: frames - start] for name, x in found.items()}

  def numbers(self, labels: Sequence[str | int] | str | int | None) -> list[int] | None:
    """Returns labels, given by number or name, as numbers; raises UserError for unknown ones."""
    if labels is None:
      return None
    if not self.conditional:
      raise UserError(f"--labels: this {self.job.config.method} is told no label: leave it out")
    return asked.label_numbers(labels, self.classes)

  def label(self, seed: int, label: int | None) -> int | None:
    """The label that a seed is drawn for; None where samples do not depend on one."""
    if not self.conditional:
      return None
    y = self._labels(np.array([seed]), label)
    return None if y is None else int(y[0])

  def _labels(self, seeds: np.ndarray, label: int | None) -> np.ndarray | None:
    if "label" not in self.info.shape or (label is None and self._source):
      return None
    every = np.full(len(seeds), label) if label is not None else seeds % self.info.num_classes
    return every.astype(np.int32)

  def _blank(self):
    shapes = core.batch_shapes(self.info, self.chunk)
    return {name: jnp.zeros(s.shape, s.dtype) for name, s in shapes.items()}

  def _share(self, tree):  # over the devices, where they divide a chunk
    return tree if self.chunk % self.job.mesh.size else core.shard(tree)

  def _each(self, function, batch, seeds):  # of one row and its own key, for every seed
    def one(row, seed):
      key = jax.random.fold_in(self.job.keys[self.index]["seeds"], seed)
      found = function(jax.tree.map(lambda x: x[None], row), key)
      return jax.tree.map(lambda x: x[0], found)

    return jax.vmap(one)(batch, seeds)

  def _samples(self, state, batch, seeds):
    batch, seeds = self._share((batch, seeds))
    if not self.walks:
      return self._each(lambda row, key: self.stage.sample(state, row, key), batch, seeds)
    return self.stage.generate(state, self._each(self.stage.latent, batch, seeds), batch)

  def _way(self, state, batch, start, end, t):
    batch, start, end, t = self._share((batch, start, end, t))
    ends = [self._each(self.stage.latent, batch, seeds) for seeds in (start, end)]
    between = lambda a, b: pictures.between(a, b, t, straight=self.stage.straight)
    return self.stage.generate(state, jax.tree.map(between, *ends), batch)


def open_run(
  workdir: str, config: ConfigDict | None = None, truncation: float | None = None
) -> Sampler:
  """Returns a sampler of the newest state of a workdir.

  Args:
    workdir: of a run.
    config: None to take it from the workdir.
    truncation: None for the config's own.

  Raises:
    UserError: if there is no run, or the method has no truncation.
  """
  workdir = continuing.absolute(workdir)
  with user_input():
    facts = continuing.require_facts(workdir)
    config = ConfigDict(facts["config"] if config is None else config.to_dict())
  if truncation is not None:
    name = next((n for n in TRUNCATIONS if n in config.model), None)
    if name is None:
      raise UserError(f"--truncation={truncation}: {config.method} has none: leave it out")
    config.model[name] = float(truncation)
  try:
    job, index, state = newest(workdir, config)
  except UserError as error:  # the flag that was given is not the config's
    if truncation is None:
      raise
    raise UserError(str(error).replace(f"--config.model.{name}=", "--truncation=")) from error
  return Sampler(job, index, state, (facts.get("data") or {}).get("classes") or ())


def draw(
  workdir: str,
  seeds: Iterable[int] | str = range(64),
  *,
  labels: Sequence[str | int] | str | int | None = None,
  truncation: float | None = None,
  config: ConfigDict | None = None,
) -> dict[str, np.ndarray]:
  """Returns samples of a run, {name: [N, ...]}; images in [-1, 1]. See `Sampler.stream`.

  All are held at once, or refused where that is more than the memory: then go through
  `open_run(workdir).stream(seeds)`.
  """
  seeds = asked.check_seeds(seeds)
  sampler = open_run(workdir, config, truncation)
  labels = sampler.numbers(labels)
  checks.held(len(seeds) * len(labels or [0]), 2 * sampler.bytes)  # in parts, and joined
  parts = list(sampler.stream(seeds, labels))
  return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


class Request(NamedTuple):
  """What `--mode=sample` is asked for."""

  seeds: Sequence[int]
  frames: int = 0  # of a walk between the seeds; 0: the samples of the seeds
  labels: Sequence[str] | None = None  # each seed is drawn for each; a walk is made for each
  truncation: float | None = None
  form: str = "grid"  # "grid", a row for each of several labels; "files"; "npz"
  out: str | None = None  # folder; None: DIR/samples
  overwrite: bool = False  # else a file that is there is an error, before anything is drawn


def run(workdir: str, config: ConfigDict | None, request: Request) -> list[Path]:
  """`--mode=sample`: writes what is asked for; returns the files, or the folder of many.

  Raises UserError for what the run cannot give, or a file that is there already.
  """
  request = request._replace(seeds=asked.check_seeds(request.seeds))
  sampler = open_run(workdir, config, request.truncation)
  labels = sampler.numbers(request.labels)
  stem = f"{sampler.stage.name}_{int(sampler.state.step):08d}"
  stem += "" if request.truncation is None else f"_truncation{request.truncation:g}"
  place = drawn.Place(workdir, request.out, stem, request.overwrite)
  with user_input():
    write = _write_walks if request.frames else _write_samples
    return write(sampler, request, labels or [None], place)


def _write_samples(sampler, request, labels, place) -> list[Path]:
  seeds, form = asked.distinct(request.seeds), request.form
  total, images = len(seeds) * len(labels), set(sampler.data) <= sampler.images
  name = f"seeds{drawn.spell(seeds)}" + (f"_labels{drawn.spell(labels)}" if request.labels else "")
  fewer = "give fewer --seeds, --num_samples or --labels"
  if form == "files":
    if not images:
      raise ValueError(
        f"--format=files writes images, what this run draws is none ({', '.join(sampler.data)}):"
        " use --format=npz"
      )
    if total > MOST_FILES:
      raise ValueError(f"--format=files writes {MOST_FILES:,} at most, not {total:,}: {fewer}")
    of_label = lambda y: "" if y is None else f"_label{y}"
    names = [f"seed{s:04d}{of_label(sampler.label(s, y))}" for y in labels for s in seeds]
    writer = drawn.Files(place, names, sampler.data)
  elif form == "npz":
    writer = drawn.Arrays(place, name)
    size, free = total * sampler.bytes, shutil.disk_usage(writer.path.parent).free
    if size > free:
      raise ValueError(
        f"{total:,} samples would take {size / 1e9:,.1f} GB of the {free / 1e9:,.1f} GB that are"
        f" free in {writer.path.parent}: {fewer}, or another --out"
      )
  else:
    if images and total > samples.MAX_TILES:
      raise ValueError(
        f"a grid holds {samples.MAX_TILES} images, {total:,} are asked for: use --format=files or"
        f" --format=npz, or {fewer}"
      )
    if not images and total * sampler.bytes > MOST_HELD:
      raise ValueError(
        f"a plot holds {MOST_HELD // sampler.bytes:,} samples of this run, {total:,} are asked for:"
        f" use --format=npz, or {fewer}"
      )
    writer = drawn.Picture(place, name, len(labels), sampler.info)
  with Count(total, "images" if images else "samples") as count:
    for part in sampler.stream(seeds, labels):
      if jax.process_index() == 0:
        writer.add(part)
      count.add(len(part["seed"]))
  return writer.close() if jax.process_index() == 0 else []


def _write_walks(sampler, request, labels, place) -> list[Path]:
  seeds, frames = request.seeds, request.frames
  if not sampler.walks:
    raise ValueError(f"{sampler.job.config.method} has no latent to walk in: use --seeds")
  if len(seeds) < 2 or frames < len(seeds):
    raise ValueError(
      f"a walk of {frames} frames between {len(seeds)} seeds is not possible: give --walk two seeds"
      " or more, and --frames as many or more"
    )
  shapes = {n: sampler.info.shape.get(n, ()) for n in sampler.data}
  most = min(MOST_FRAMES, MOST_HELD // max(1, sum(map(video.frame_bytes, shapes.values()))))
  if frames > most:
    raise ValueError(f"--frames={frames}: a walk of this run has at most {most:,}: give fewer")
  name = f"walk{drawn.spell(seeds)}"
  names = [name if y is None else f"{name}_label{y}" for y in labels]
  place.check(place.path(n, ending) for n in names for ending in ("gif", "mp4", "npz", "png"))
  written, remark = [], ""
  with Count(frames * len(labels), "frames") as count:
    for name, y in zip(names, labels):
      parts = []
      for part in sampler.walk(seeds, frames, y):
        parts.append({n: part[n] for n in sampler.data})
        count.add(len(part[sampler.data[0]]))
      found = {n: np.concatenate([p[n] for p in parts]) for n in parts[0]}
      if jax.process_index() == 0:
        paths, remark = video.write_walk(place, name, found, sampler.info)
        written += paths
  if remark:
    say(remark)
  return written
