"""Samples as they are asked for: by seed, by label, truncated, and walks from one to the next.

The sample of a seed is a function of the state, the seed and the label alone: its noise comes from
fold_in(key of seeds, seed), and seeds 64 k ... 64 k + 63 (of large images fewer) are always drawn
together, in one compiled call, of which those asked for are kept. So on one machine with the same
number of devices it is the same bit for bit, whatever else is asked for; with another number it is
the same up to rounding. Samples that are normalised by their batch (model.bn_mode=batch) are so by
these 64. No data set is read, unless the samples themselves depend on an example of it and no
images or texts of the user's own are given in its place.

In a notebook: `sampling.draw("/tmp/run", seeds=range(36), labels=["cat"])["image"]`, or with
`prompts=["a red hat"]`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from gm import asked, checks, continuing, core, editing, enlarging, translating
from gm.errors import UserError, user_input
from gm.job import newest
from gm.progress import Count, say
from gm.sampler import Sampler
from gm.workdir import drawn, record, samples, video

TRUNCATIONS = ("truncation", "psi")  # keys of config.model that --truncation sets
MOST_HELD = 2**30  # bytes of a plot's samples or of a film's frames, which are held at once
MOST_FRAMES = 100_000
MOST_FILES = 1_000_000


def open_run(
  workdir: str,
  config: ConfigDict | None = None,
  truncation: float | None = None,
  inputs: Sequence[str] | None = None,
  complete: Sequence[str] | None = None,
  prompts: Sequence[str] | str | None = None,
) -> Sampler:
  """Returns a sampler of the newest state of a workdir.

  Args:
    workdir: of a run.
    config: None to take it from the workdir.
    truncation: None for the config's own.
    inputs: files of images that samples are made of, in place of the data's.
    complete: files of images that are finished, in place of samples.
    prompts: texts that samples are made for, in place of the data's.

  Raises:
    UserError: if there is no run, or the method has no truncation, takes no images or texts or
      finishes none, or a text holds a word that is not known.
  """
  return _sampler(_newest(workdir, config, truncation), inputs, complete, prompts)


def _newest(workdir, config, truncation) -> tuple:
  """The absolute workdir, what is on record of its run, and (job, last stage, its state)."""
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
  return workdir, facts, (job, index, state)


def _sampler(opened, inputs, complete, prompts) -> Sampler:
  workdir, facts, (job, index, state) = opened
  classes, tokens = (facts.get("data") or {}).get("classes") or (), None
  if prompts is not None:
    shape = job.infos[index].shape.get("tokens")
    if shape is None:
      raise UserError(f"--prompt: this {job.config.method} is told no text: leave it out")
    with user_input():
      tokenizer = record.read_tokenizer(workdir)
    tokens = asked.prompt_tokens(asked.check_prompts(prompts), tokenizer, shape[0])
  return Sampler(job, index, state, classes, inputs, complete, tokens)


def draw(
  workdir: str,
  seeds: Iterable[int] | str = range(64),
  *,
  labels: Sequence[str | int] | str | int | None = None,
  truncation: float | None = None,
  inputs: Sequence[str] | None = None,
  target: str | int | None = None,
  complete: Sequence[str] | None = None,
  prompts: Sequence[str] | str | None = None,
  strengths: Sequence[float] | None = None,
  config: ConfigDict | None = None,
) -> dict[str, np.ndarray]:
  """Returns samples of a run, {name: [N, ...]}; images in [-1, 1]. See `Sampler.stream`.

  Of images of one's own whose attributes are changed it is what `editing.Editing.stream` yields.

  All are held at once, or refused where that is more than the memory: then go through
  `open_run(workdir).stream(seeds)`.
  """
  seeds = asked.check_seeds(seeds)
  opened = _newest(workdir, config, truncation)
  if _edits(opened, inputs, strengths):
    edits = list(editing.Editing(*opened[2], inputs, target, strengths).stream())
    return {"image": np.stack(edits)}
  if _translates(opened, inputs):
    translation = translating.Translation(*opened[2], inputs, target)
    if len(translation.files) > 1:
      raise UserError("images that keep their own size are given one at a time here")
    return next(translation.stream())
  if _enlarges(opened, inputs):
    larger = enlarging.Enlargement(*opened[2], inputs)
    if len(larger.files) > 1:
      raise UserError("images that are made larger are given one at a time here")
    return {"image": next(larger.stream())[None] / np.float32(127.5) - 1}
  sampler = _sampler(opened, inputs, complete, prompts)
  labels = sampler.numbers(labels)
  texts = 1 if prompts is None else len(asked.check_prompts(prompts))
  checks.held(len(seeds) * len(labels or [0]) * texts, 2 * sampler.bytes)  # in parts, and joined
  parts = list(sampler.stream(seeds, labels, sampler.target(target)))
  return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def _stage(opened, inputs) -> core.Stage | None:  # what becomes of images that were given
  if inputs is None:
    return None
  _, _, (job, index, _) = opened
  return job.stages[index]


def _translates(opened, inputs) -> bool:  # in their own size
  stage = _stage(opened, inputs)
  return stage is not None and stage.multiple > 0


def _edits(opened, inputs, strengths) -> bool:  # their attributes
  stage = _stage(opened, inputs)
  edits = stage is not None and stage.edit is not None
  if strengths is not None and not edits:
    raise UserError("--strength is of attributes of images that are given by --input: leave it out")
  return edits


def _enlarges(opened, inputs) -> bool:
  stage = _stage(opened, inputs)
  return stage is not None and stage.enlarger is not None


class Request(NamedTuple):
  """What `--mode=sample` is asked for."""

  seeds: Sequence[int]
  frames: int = 0  # of a walk between the seeds; 0: the samples of the seeds
  labels: Sequence[str] | None = None  # each seed is drawn for each; a walk is made for each
  truncation: float | None = None
  form: str | None = (
    None  # "grid", a row for each of several labels, as if not given; "files"; "npz"
  )
  out: str | None = None  # folder; None: DIR/samples
  overwrite: bool = False  # else a file that is there is an error, before anything is drawn
  inputs: Sequence[str] | None = None  # images, or folders: all seeds and labels for each
  target: str | int | None = None  # the class, the domain or attributes that samples shall have
  complete: Sequence[str] | None = None  # files of images whose lower half is made anew
  prompts: Sequence[str] | None = None  # of each all the rest, in a picture of its own
  strengths: Sequence[str | float] | None = None  # how far attributes are changed


def run(workdir: str, config: ConfigDict | None, request: Request) -> list[Path]:
  """`--mode=sample`: writes what is asked for; returns the files, or the folder of many.

  Raises UserError for what the run cannot give, or a file that is there already.
  """
  request = request._replace(seeds=asked.check_seeds(request.seeds))
  if request.prompts is not None:
    request = request._replace(prompts=asked.check_prompts(request.prompts))
  for kind in ("inputs", "complete"):
    if getattr(request, kind) is not None:
      flag = {"inputs": "--input"}.get(kind, f"--{kind}")
      request = request._replace(**{kind: asked.image_files(getattr(request, kind), flag)})
  opened = _newest(workdir, config, request.truncation)
  _, _, (job, index, state) = opened
  stem = f"{job.stages[index].name}_{int(state.step):08d}"
  stem += "" if request.truncation is None else f"_truncation{request.truncation:g}"
  place = drawn.Place(workdir, request.out, stem, request.overwrite)
  if _edits(opened, request.inputs, request.strengths):
    edits = editing.Editing(*opened[2], request.inputs, request.target, request.strengths)
    with user_input():
      return editing.write(edits, place, request)
  if _translates(opened, request.inputs):
    translation = translating.Translation(*opened[2], request.inputs, request.target)
    with user_input():
      return translating.write(translation, place, request)
  if _enlarges(opened, request.inputs):
    with user_input():
      return enlarging.write(enlarging.Enlargement(*opened[2], request.inputs), place, request)
  sampler = _sampler(opened, request.inputs, request.complete, request.prompts)
  labels = sampler.numbers(request.labels)
  request = request._replace(target=sampler.target(request.target))
  with user_input():
    write = _write_walks if request.frames else _write_samples
    return write(sampler, request, labels or [None], place)


def _write_samples(sampler, request, labels, place) -> list[Path]:
  heads = asked.text_names(request.prompts) if request.prompts else [""]
  given = request.inputs or request.complete or [""]
  per_head = len(asked.distinct(request.seeds)) * len(labels) * len(given)
  writers = [_writer(sampler, request, labels, place, head, len(heads)) for head in heads]
  images, paths = set(sampler.data) <= sampler.images, []
  with Count(per_head * len(heads), "images" if images else "samples") as count:
    for i, writer in enumerate(writers):
      which = None if request.prompts is None else [i]
      seeds = asked.distinct(request.seeds)
      for part in sampler.stream(seeds, labels, request.target, which):
        if jax.process_index() == 0:
          writer.add(part)
        count.add(len(part["seed"]))
      if jax.process_index() == 0:
        paths += [path for path in writer.close() if path not in paths]
  return paths


def _writer(sampler, request, labels, place, head, num_heads):
  """What keeps the samples of one prompt, whose name is `head`; "" where there is none."""
  seeds, form = asked.distinct(request.seeds), request.form
  given = request.inputs or request.complete
  inputs = asked.image_names(given) if given else [""]
  total, images = len(seeds) * len(labels) * len(inputs), set(sampler.data) <= sampler.images
  name = f"seeds{drawn.spell(seeds)}" + (f"_labels{drawn.spell(labels)}" if request.labels else "")
  to = "" if request.target is None else f"_target{request.target}"
  to += "_complete" if request.complete else ""
  name += (f"_{inputs[0]}" if len(inputs) == 1 else f"_{len(inputs)}inputs").rstrip("_") + to
  name += f"_{head}" if head else ""
  fewer = "give fewer --seeds, --num_samples or --labels"
  if form == "files":
    if not images:
      raise ValueError(
        f"--format=files writes images, what this run draws is none ({', '.join(sampler.data)}):"
        " use --format=npz"
      )
    if num_heads * total > MOST_FILES:
      raise ValueError(
        f"--format=files writes {MOST_FILES:,} at most, not {num_heads * total:,}: {fewer}"
      )
    of_label = lambda y: "" if y is None else f"_label{y}"
    heads = [f"{n}_" if n else "" for n in (f"{head}_{n}".strip("_") for n in inputs)]
    names = [
      f"{before}seed{s:04d}{of_label(sampler.label(s, y))}{to}"
      for before in heads
      for y in labels
      for s in seeds
    ]
    return drawn.Files(place, names, sampler.data)
  if form == "npz":
    writer = drawn.Arrays(place, name)
    size, free = num_heads * total * sampler.bytes, shutil.disk_usage(writer.path.parent).free
    if size > free:
      raise ValueError(
        f"{num_heads * total:,} samples would take {size / 1e9:,.1f} GB of the {free / 1e9:,.1f} GB"
        f" that are free in {writer.path.parent}: {fewer}, or another --out"
      )
    return writer
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
  return drawn.Picture(place, name, len(labels) * len(inputs), sampler.info, sampler.classes)


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
  heads = asked.text_names(request.prompts) if request.prompts else [""]
  tail = lambda y, head: ("" if y is None else f"_label{y}") + (f"_{head}" if head else "")
  each = [
    (i, y, f"walk{drawn.spell(seeds)}{tail(y, h)}") for i, h in enumerate(heads) for y in labels
  ]
  names = [name for _, _, name in each]
  place.check(place.path(n, ending) for n in names for ending in ("gif", "mp4", "npz", "png"))
  written, remark = [], ""
  with Count(frames * len(each), "frames") as count:
    for i, y, name in each:
      parts = []
      for part in sampler.walk(seeds, frames, y, i if request.prompts else None):
        parts.append({n: part[n] for n in sampler.data})
        count.add(len(part[sampler.data[0]]))
      found = {n: np.concatenate([p[n] for p in parts]) for n in parts[0]}
      if jax.process_index() == 0:
        paths, remark = video.write_walk(place, name, found, sampler.info)
        written += paths
  if remark:
    say(remark)
  return written
