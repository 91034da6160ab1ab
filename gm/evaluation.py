"""Evaluation of a stage: held-out metrics, metrics of samples, pictures.

All of it runs jitted in batches from (config, state) alone; training calls it as it goes, and
`--mode=eval` from a workdir. Data are read in the one constant order of `job.load`, so the first
rows of a split are a random sample of it, however the set is stored.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from gm import checks, core, sharding
from gm.data import text
from gm.errors import UserError, user_input
from gm.job import Job, data_changes, load, newest, origin
from gm.progress import say
from gm.workdir import plots, record, report, samples

NUM_TILES = 64  # examples in a picture of fixed noise
NUM_POINTS = 2_500  # examples in a plot of points or rows
NUM_SHOWN = 1_000  # examples that Stage.show gets, fewer if they are large


class Evaluator:
  """Draws from and measures the states of one stage.

  The rows of the test split, in their constant order and over and over, give the conditioning; keys
  are fixed, so pictures and numbers of different steps can be compared.
  """

  def __init__(self, job: Job, index: int):
    self.job, self.index = job, index
    self.stage, self.info, self.keys = job.stages[index], job.infos[index], job.keys[index]
    self.metrics = {name: find_metric(name) for name in job.config.metrics}
    self.source = source = load(job, index, "test", shuffle=False, whole=True)
    enough(job, "test", source)

    def on_rows(function):  # every process gets the whole result
      def call(state, rows, key):
        mesh = sharding.over(job.mesh) if self._even(rows) else contextlib.nullcontext()
        with mesh:
          return function(state, source.decode(rows), key)

      return jax.jit(call, out_shardings=sharding.replicated(job.mesh))

    def sample(state, batch, key):
      found = self.stage.sample(state, batch, key)
      return core.shard(found) if self._even(found) else found

    self._sample, self._show = on_rows(sample), on_rows(self.stage.show)
    self._evaluate = on_rows(self.stage.evaluate)
    self._conclude = jax.jit(self.stage.conclude) if self.stage.conclude else None

  def evaluate(self, state: core.State) -> dict[str, float]:
    """Returns the stage's own metrics on the test split, and config.metrics of samples."""
    found = {} if self.stage.evaluate is core.nothing else self._held_out(state)
    if self.metrics:
      num = self.job.config.num_eval_samples
      real, fake = self.real(num), self.draw(state, num)
      for metric in self.metrics.values():
        with user_input():
          found |= metric(fake, real, self.info)
    return {k: float(v) for k, v in found.items()}

  def real(self, num: int) -> dict[str, np.ndarray]:
    """Returns up to `num` real examples of config.reference_split, a random sample of it."""
    split = self.job.config.reference_split
    if split == "test":
      return self._decoded(self.source, num)
    return self._decoded(load(self.job, self.index, split, shuffle=False, whole=True), num)

  def draw(self, state: core.State, num: int) -> dict[str, np.ndarray]:
    """Returns `num` samples, {name: [num, ...]}."""
    size = self.job.sizes[self.index]

    def part(i):
      key = jax.random.fold_in(self.keys["sample"], i)
      return jax.device_get(self._sample(state, self._place(self.source.batch(i, size)), key))

    return join((part(i) for i in range(-(-num // size))), num)

  def write_samples(self, workdir: str, state: core.State) -> None:
    """Writes samples/<stage>_<step>.png, or what suits the kind of data, and captions beside it."""
    many = {"point", "row"} & set(self.info.shape)
    if many:
      batch = self.draw(state, NUM_POINTS)
    else:
      batch = jax.device_get(self._sample(state, self._tiles(), self.keys["picture"]))
    if "tokens" in batch and self.source.tokenizer:  # what was asked for, a line for each
      batch["text"] = text.decode(self.source.tokenizer, batch["tokens"])
    real = {}  # only plots show real data behind
    if set(plots.BY_KIND) & set(self.info.shape):
      real = self._decoded(self.source, NUM_POINTS if many else NUM_TILES)
    samples.write_samples(workdir, self.stage.name, int(state.step), batch, real, self.info)

  def write_extra(self, workdir: str, state: core.State) -> None:
    """Writes the stage's other pictures: interpolations, reconstructions, manifolds."""
    each = sum(math.prod(shape) for shape in self.info.shape.values())
    num = int(np.clip(min(2**22 // each, self.source.num_examples), NUM_TILES, NUM_SHOWN))
    found = jax.device_get(self._show(state, self._tiles(num), self.keys["show"]))
    classes = self.source.classes
    samples.write_show(workdir, self.stage.name, int(state.step), found, self.info, classes)

  def finish(self, workdir: str, state: core.State) -> dict[str, float]:
    """Evaluates, and writes eval.json with the protocol that the numbers need."""
    config, start = self.job.config, time.perf_counter()
    metrics = self.evaluate(state)
    nets = [getattr(metric, "feature_net", "") for metric in self.metrics.values()]
    protocol = {
      "num_samples": config.num_eval_samples if self.metrics else 0,
      "num_held_out": 0 if self.stage.evaluate is core.nothing else self.source.num_examples,
      "seed": config.seed,
      "data": origin(self.job, self.source),
      "reference_split": config.reference_split,
      "feature_net": ", ".join(dict.fromkeys(filter(None, nets))) or "none",
      "seconds": round(time.perf_counter() - start, 1),
    }
    step = {"stage": self.stage.name, "step": int(state.step)}
    with user_input():
      record.write_eval(workdir, {**step, "metrics": metrics, "protocol": protocol})
    return metrics

  def _held_out(self, state: core.State) -> dict[str, float]:
    """Every example of the test split counts once, whatever the batch and the devices."""
    num = self.source.num_examples
    size = even_size(num, self.job.sizes[self.index], self.job.mesh.size)
    keys, sums, parts = self.keys["evaluate"], {}, []
    for i, rows in enumerate(batches(self.source, num, size)):
      placed = self._place(rows)
      found = jax.device_get(self._evaluate(state, placed, jax.random.fold_in(keys, i)))
      parts.append({k: x for k, x in found.items() if np.ndim(x)})
      count = min(size, num - i * size)
      sums = {k: sums.get(k, 0.0) + count * float(x) for k, x in found.items() if not np.ndim(x)}
    means = {k: x / num for k, x in sums.items()}
    if not parts[0]:
      return means
    key = jax.random.fold_in(keys, num)  # of no batch, and the same whatever their size
    return means | jax.device_get(self._conclude(join(parts, num), key))

  def _decoded(self, source: core.Source, num: int) -> dict[str, np.ndarray]:
    """The first `num` rows, or as many as there are, decoded a batch at a time to save memory."""
    num = min(num, source.num_examples)
    size = even_size(num, self.job.sizes[self.index])
    parts = (jax.device_get(source.decode(rows)) for rows in batches(source, num, size))
    return join(parts, num)

  def _even(self, tree: Any) -> bool:
    return all(len(x) % self.job.mesh.size == 0 for x in jax.tree.leaves(tree))

  def _place(self, rows: dict) -> dict:
    """Splits rows over the devices; each gets all of them where they do not divide."""
    mesh = self.job.mesh
    even = self._even(rows)
    return jax.device_put(rows, sharding.batched(mesh) if even else sharding.replicated(mesh))

  def _tiles(self, num: int = NUM_TILES) -> dict:
    return jax.device_put(self.source.batch(0, num), sharding.replicated(self.job.mesh))


def even_size(num: int, limit: int, num_devices: int = 1) -> int:
  """The size of batches in which `num` rows are read, none of them tiny.

  Args:
    num: rows.
    limit: the largest size, a multiple of num_devices.
    num_devices: that a batch is split over.

  Returns:
    A multiple of num_devices: the largest that divides the rows evenly, so that all batches are of
    one shape; where that is small the one whose last batch is smaller by as little as can be.

  >>> even_size(1_000, 64), even_size(97, 64), even_size(97, 64, 2)  # 20 x 50; 49 + 48; 50 + 47
  (50, 49, 50)
  """
  even = [n for n in range(num_devices, limit + 1, num_devices) if num % n == 0]
  if even and 4 * even[-1] > limit:
    return even[-1]
  parts = -(-num // limit)
  return -(-num // (parts * num_devices)) * num_devices


def batches(source: core.Source, num: int, size: int) -> Iterator[dict]:
  """The first `num` rows of a source, `size` at a time; the last batch has what is left."""
  for i in range(-(-num // size)):
    yield {k: x[: num - i * size] for k, x in source.batch(i, size).items()}


def join(parts: Iterable[dict], num: int) -> dict[str, np.ndarray]:
  """Joins {name: [B, ...]} to {name: [num, ...]}, what is beyond left out.

  Each part can go when it is copied, so there is never twice the whole.

  >>> join(({"x": np.arange(3) + i} for i in (0, 10)), 5)["x"].tolist()
  [0, 1, 2, 10, 11]
  """
  found, start = {}, 0
  for part in parts:
    for name, x in part.items():
      if name not in found:
        found[name] = np.empty((num, *x.shape[1:]), x.dtype)
      found[name][start : start + len(x)] = x[: num - start]
    start += len(x)  # of one length, all of them
  return found


def find_metric(name: str) -> Callable:
  """Returns the function of gm/metrics that "file.function" names.

  Raises:
    UserError: if there is none.
  """
  with user_input():
    checks.metric(name)
    module, _, function = name.partition(".")
    return getattr(importlib.import_module(f"gm.metrics.{module}"), function)


class _Read(Exception):
  """A metric has found what it looked for, and begins to work."""


class _Named(Mapping):
  """A batch of which there are only the names."""

  def __init__(self, names: Iterable[str]):
    self.names = dict.fromkeys(names)

  def __getitem__(self, name):
    if name in self.names:
      raise _Read
    raise KeyError(f"there is no {name!r}, only {', '.join(self.names)}")

  def __contains__(self, name):
    return name in self.names

  def __iter__(self):
    return iter(self.names)

  def __len__(self):
    return len(self.names)


def try_metrics(job: Job) -> None:
  """Asks every metric of the config whether it can be taken of these data and samples.

  Metrics look for what they need before they work, so they are given names without arrays. What a
  stage samples is traced only where the names of its data are not enough.

  Raises:
    UserError: what the metric says.
  """
  stages = range(len(job.stages)) if job.config.eval_every else [len(job.stages) - 1]
  for name, i in itertools.product(job.config.metrics, stages):
    metric, info = find_metric(name), job.infos[i]
    real = _Named(info.shape)
    least, num = getattr(metric, "least", 1), job.config.num_eval_samples
    if num < least:
      raise UserError(
        f"{name} needs {least} samples or more: raise --config.num_eval_samples={num}, or take it"
        " out of --config.metrics"
      )
    try:
      with contextlib.suppress(_Read):
        metric(real, real, info)
    except (ValueError, KeyError):
      batch = core.batch_shapes(info, job.sizes[i])
      made = jax.eval_shape(job.stages[i].sample, job.templates[i], batch, job.keys[i]["sample"])
      with user_input(), contextlib.suppress(_Read):
        metric(_Named(made), real, info)


def enough(job: Job, split: str, source: core.Source) -> None:
  """Makes sure that a split, where it is what samples are compared with, has examples enough.

  Raises:
    UserError: if it has fewer than a metric needs.
  """
  for name in job.config.metrics if job.config.reference_split == split else ():
    least = getattr(find_metric(name), "least", 1)
    if source.num_examples < least:
      raise UserError(
        f"{name} needs {least} real examples or more, the {split} split has {source.num_examples}:"
        " give more (--config.data.num_train=0 is all), another --config.reference_split, or take"
        " it out of --config.metrics"
      )


def from_workdir(workdir: str, config: ConfigDict | None) -> tuple[Evaluator, core.State]:
  """Returns the evaluator and the newest state of the last stage that has one.

  Args:
    workdir: of a run.
    config: None to take it from the workdir.

  Raises:
    UserError: if the folder holds no run, or none of its checkpoints can be read.
  """
  job, index, state = newest(workdir, config)
  return Evaluator(job, index), state


def run_eval(workdir: str, config: ConfigDict | None) -> dict[str, float]:
  """`--mode=eval`: evaluates the newest checkpoint, writes eval.json and the report anew."""
  evaluator, state = from_workdir(workdir, config)
  changed = data_changes(workdir, evaluator.source)
  if changed:
    say(f"note: these are not the data that were trained on ({'; '.join(changed)})")
  try_metrics(evaluator.job)
  metrics = evaluator.finish(workdir, state)
  say(f"{evaluator.stage.name} {int(state.step)}  {spell(metrics)}")
  if jax.process_index() == 0:
    with user_input():
      report.write(workdir)
  say(f"done: {workdir}/eval.json, {workdir}/report.html")
  return metrics


def spell(metrics: dict[str, float]) -> str:
  """Metrics in a line.

  >>> spell({"mse": 0.25, "kl": 1.0})
  'mse 0.25  kl 1'
  """
  return "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
