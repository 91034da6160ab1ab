"""Evaluation of a stage: held-out metrics, metrics of samples, pictures.

All of it runs jitted in batches from (config, state) alone; training calls it as it goes, and
`--mode=eval` from a workdir.
"""

from __future__ import annotations

import importlib
import math
import pathlib
import time
from collections.abc import Callable

import jax
import numpy as np
from ml_collections import ConfigDict

from gm import core, sharding
from gm.errors import UserError, user_input
from gm.job import Job, load, newest
from gm.workdir import record, samples

NUM_TILES = 64  # examples in a picture of fixed noise
NUM_POINTS = 2_500  # examples in a plot of points or rows
NUM_SHOWN = 1_000  # examples that Stage.show gets, fewer if they are large


class Evaluator:
  """Draws from and measures the states of one stage.

  The rows of the test split, in their order, give the conditioning; keys are fixed, so pictures and
  numbers of different steps can be compared.
  """

  def __init__(self, job: Job, index: int):
    self.job, self.index = job, index
    self.stage, self.info, self.keys = job.stages[index], job.infos[index], job.keys[index]
    self.metrics = {name: find_metric(name) for name in job.config.metrics}
    self.source = source = load(job, index, "test", shuffle=False, whole=True)

    def on_rows(function):  # every process gets the whole result
      def call(state, rows, key):
        with sharding.over(job.mesh):
          return function(state, source.decode(rows), key)

      return jax.jit(call, out_shardings=sharding.replicated(job.mesh))

    def sample(state, batch, key):
      found = self.stage.sample(state, batch, key)
      even = all(x.shape[0] % job.mesh.size == 0 for x in jax.tree.leaves(found))
      return core.shard(found) if even else found

    self._sample, self._show = on_rows(sample), on_rows(self.stage.show)
    self._evaluate = on_rows(self.stage.evaluate)

  def evaluate(self, state: core.State) -> dict[str, float]:
    """Returns the stage's own metrics on the test split, and config.metrics of samples."""
    found = {} if self.stage.evaluate is core.nothing else self._held_out(state)
    if self.metrics:
      num = self.job.config.num_eval_samples
      real, fake = self.real(num), self.draw(state, num)
      for metric in self.metrics.values():
        found |= metric(fake, real, self.info)
    return {k: float(v) for k, v in found.items()}

  def real(self, num: int) -> dict[str, np.ndarray]:
    """Returns up to `num` real examples of config.reference_split."""
    split = self.job.config.reference_split
    source = load(self.job, self.index, split, shuffle=False, whole=True)
    rows = source.batch(0, min(num, source.num_examples))
    return jax.tree.map(np.asarray, source.decode(rows))

  def draw(self, state: core.State, num: int) -> dict[str, np.ndarray]:
    """Returns `num` samples, {name: [num, ...]}."""
    size, parts = self.job.sizes[self.index], []
    for i in range(-(-num // size)):
      key = jax.random.fold_in(self.keys["sample"], i)
      parts.append(jax.device_get(self._sample(state, self._rows(i, size), key)))
    return {k: np.concatenate([p[k] for p in parts])[:num] for k in parts[0]}

  def write_samples(self, workdir: str, state: core.State) -> None:
    """Writes samples/<stage>_<step>.png, or what suits the kind of data."""
    if {"point", "row"} & set(self.info.shape):
      batch = self.draw(state, NUM_POINTS)
    else:
      batch = jax.device_get(self._sample(state, self._tiles(), self.keys["sample"]))
    real = jax.tree.map(np.asarray, self.source.decode(self.source.batch(0, NUM_POINTS)))
    samples.write_samples(workdir, self.stage.name, int(state.step), batch, real, self.info)

  def write_extra(self, workdir: str, state: core.State) -> None:
    """Writes the stage's other pictures: interpolations, reconstructions, manifolds."""
    each = sum(math.prod(shape) for shape in self.info.shape.values())
    num = int(np.clip(2**22 // each, NUM_TILES, NUM_SHOWN))
    found = jax.device_get(self._show(state, self._tiles(num), self.keys["show"]))
    samples.write_show(workdir, self.stage.name, int(state.step), found, self.info)

  def finish(self, workdir: str, state: core.State) -> dict[str, float]:
    """Evaluates, and writes eval.json with the protocol that the numbers need."""
    config, start = self.job.config, time.perf_counter()
    metrics = self.evaluate(state)
    nets = [getattr(metric, "feature_net", "") for metric in self.metrics.values()]
    protocol = {
      "num_samples": config.num_eval_samples if self.metrics else 0,
      "num_held_out": self.source.num_examples,
      "seed": config.seed,
      "data": f"{config.data.source}:{config.data.name}",
      "reference_split": config.reference_split,
      "feature_net": ", ".join(dict.fromkeys(filter(None, nets))) or "none",
      "seconds": round(time.perf_counter() - start, 1),
    }
    step = {"stage": self.stage.name, "step": int(state.step)}
    with user_input():
      record.write_eval(workdir, {**step, "metrics": metrics, "protocol": protocol})
    return metrics

  def _held_out(self, state: core.State) -> dict[str, float]:
    size = self._even_size()
    count, sums = max(1, self.source.num_examples // size), {}
    for i in range(count):
      key = jax.random.fold_in(self.keys["evaluate"], i)
      found = jax.device_get(self._evaluate(state, self._rows(i, size), key))
      sums = {k: sums.get(k, 0.0) + float(v) for k, v in found.items()}
    return {k: v / count for k, v in sums.items()}

  def _even_size(self) -> int:
    """The largest batch that divides split and devices evenly; the batch size if that is tiny."""
    limit, num = self.job.sizes[self.index], self.source.num_examples
    even = [n for n in range(1, limit + 1) if num % n == 0 and n % self.job.mesh.size == 0]
    return even[-1] if even and 4 * even[-1] > limit else limit

  def _rows(self, i: int, size: int) -> dict:
    return jax.device_put(self.source.batch(i, size), sharding.batched(self.job.mesh))

  def _tiles(self, num: int = NUM_TILES) -> dict:
    return jax.device_put(self.source.batch(0, num), sharding.replicated(self.job.mesh))


def find_metric(name: str) -> Callable:
  """Returns the function of gm/metrics that "file.function" names.

  Raises:
    UserError: if there is none.
  """
  module, _, function = name.partition(".")
  folder = pathlib.Path(__file__).parent / "metrics"
  known = sorted(p.stem for p in folder.glob("*.py") if p.stem != "__init__")
  if module in known:
    found = getattr(importlib.import_module(f"gm.metrics.{module}"), function, None)
    if found is not None:
      return found
  raise UserError(
    f"--config.metrics names {name!r}; it takes 'file.function' of gm/metrics, with the files"
    f" {', '.join(known)}"
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
  """`--mode=eval`: evaluates the newest checkpoint of a workdir and writes eval.json."""
  evaluator, state = from_workdir(workdir, config)
  return evaluator.finish(workdir, state)
