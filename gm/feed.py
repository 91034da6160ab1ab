"""The rows of a call: indices into a set on the device, or examples read ahead by threads."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from gm import core, sharding
from gm.job import Job

CALL_SECONDS = 0.3  # aim for one compiled call: long beside its start, short beside a signal
MAX_STEPS_PER_CALL = 64
DEVICE_BYTES = 2**30  # a data set up to this size lives in device memory


def on_device(source: core.Source, mesh: jax.sharding.Mesh) -> tuple[core.Source, dict]:
  """Moves a small set into device memory; a large one is read as it goes."""
  if source.arrays is None or sum(a.nbytes for a in source.arrays.values()) > DEVICE_BYTES:
    return source._replace(arrays=None), {}
  return source, jax.device_put(source.arrays, sharding.replicated(mesh))


class Pace:
  """How many steps a call does: as many as take CALL_SECONDS, by the clock."""

  def __init__(self, fixed: int, most: int):
    self.steps, self.fixed, self.most = min(fixed or 1, most), fixed, most
    self.pending, self.last = None, None

  def wait(self, done: jax.Array, n: int) -> None:
    """Lets the host run at most one call ahead of the device, and measures."""
    before, self.pending = self.pending, (done, n)
    if before is None:
      return
    before[0].block_until_ready()
    now = time.perf_counter()
    if self.last is not None and not self.fixed:
      each = max(1e-6, (now - self.last) / before[1])
      self.steps = int(np.clip(CALL_SECONDS / each, 1, min(self.most, 2 * self.steps)))
    self.last = now


def make_feed(job: Job, index: int, source: core.Source) -> tuple[Pace, Callable]:
  """Returns the pace and rows(start, n): the device rows of n steps.

  Rows are indices, many steps at a time, where the set lives on the device; else the examples of
  one step, read ahead by threads.
  """
  size, where = job.sizes[index], sharding.batched(job.mesh, 1)
  fixed = job.config.steps_per_call
  if jax.process_count() > 1:
    fixed = fixed or 8  # clocks differ, and all processes must make the same calls
  if source.arrays is not None:
    most = max(fixed, MAX_STEPS_PER_CALL)

    def index_rows(start, n):
      found = [source.indices(start + min(j, n - 1), size) for j in range(most)]
      return sharding.put(np.stack(found), where)  # one shape for every n

    return Pace(fixed, most), index_rows

  pool, ahead = ThreadPoolExecutor(8), {}

  def example_rows(start, n):
    del n  # always one
    for i in range(start, start + 16):
      if i not in ahead:
        ahead[i] = pool.submit(source.batch, i, size)
    ahead.pop(start - 1, None)
    return sharding.put({k: v[None] for k, v in ahead[start].result().items()}, where)

  return Pace(1, 1), example_rows
