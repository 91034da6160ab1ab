"""The rows of a call: indices into a set on the device, or examples read ahead by threads."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from jax.experimental import multihost_utils

from gm import core, sharding
from gm.job import Job

CALL_SECONDS = 0.3  # aim for one compiled call: long beside its start, short beside a signal
MOST_SECONDS = 1.0  # of a call whose number of steps is asked for
MAX_STEPS_PER_CALL = 64
STEPS_TOGETHER = 8  # of several processes
DEVICE_BYTES = 2**30  # a data set up to this size lives in device memory


def on_device(source: core.Source, mesh: jax.sharding.Mesh) -> tuple[core.Source, dict]:
  """Moves a small set into device memory; a large one is read as it goes."""
  if source.arrays is None or sum(a.nbytes for a in source.arrays.values()) > DEVICE_BYTES:
    return source._replace(arrays=None), {}
  return source, jax.device_put(source.arrays, sharding.replicated(mesh))


class Pace:
  """How many steps a call does: as many as are asked for or take CALL_SECONDS, by the clock.

  Between two calls a run looks for signals, so none may take long, however many are asked for.
  """

  def __init__(self, fixed: int, most: int):
    self.steps, self.most = 1, min(fixed or most, most)
    self.seconds = MOST_SECONDS if fixed else CALL_SECONDS
    self.pending, self.last, self.settled = None, None, False

  def wait(self, done: jax.Array, n: int) -> None:
    """Lets the host run at most one call ahead of the device, and measures."""
    before, self.pending = self.pending, (done, n)
    if before is None:
      return
    before[0].block_until_ready()
    now = time.perf_counter()
    if self.last is not None and not self.settled:
      each, fastest = max(1e-6, (now - self.last) / before[1]), 2 * self.steps
      if jax.process_count() > 1:  # clocks differ, and all must make the same calls
        each, fastest = float(multihost_utils.broadcast_one_to_all(np.float32(each))), self.most
        self.settled = True
      self.steps = int(np.clip(self.seconds / each, 1, min(self.most, fastest)))
    self.last = now


def make_feed(job: Job, index: int, source: core.Source) -> tuple[Pace, Callable]:
  """Returns the pace and rows(start, n): the device rows of n steps.

  Rows are indices, many steps at a time, where the set lives on the device; else the examples of
  one step, read ahead by threads.
  """
  size, where = job.sizes[index], sharding.batched(job.mesh, 1)
  fixed = job.config.steps_per_call
  if jax.process_count() > 1:
    fixed = fixed or STEPS_TOGETHER
  if source.arrays is not None:
    most = max(fixed, MAX_STEPS_PER_CALL)

    def index_rows(start, n):
      found = [source.indices(start + j, size) for j in range(n)]
      found += found[-1:] * (most - n)  # one shape for every n
      return sharding.put(jax.tree.map(lambda *x: np.stack(x), *found), where)

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
