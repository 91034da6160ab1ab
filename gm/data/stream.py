"""Sets too large for memory, trained on in Grain's order, a pure function of (seed, i)."""

from __future__ import annotations

import collections
import concurrent.futures
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gm.core import Info, Source
from gm.data import memory

AHEAD = 4  # batches read ahead of a reader that goes in order
MEMORY_MB = 256  # default of config.data.memory_mb


def from_examples(
  info: Info,
  examples: Sequence[Any],
  read: Callable[[Any], dict],
  decode: Callable,
  *,
  seed: int = 0,
  shuffle: bool = True,
  part: tuple[int, int] = (0, 1),
) -> Source:
  """Returns the Source of a set that is read in batches.

  Row j of global batch i is element i * size + j of the endless stream of epochs, each shuffled by
  Grain with its own seed, or all in the order `memory.constant` of a set in memory; process q of m
  takes j = q, q + m, ... Threads read ahead while batches
  are asked for in order; that changes when an example is read, never which. An error of `read` is
  raised by the `batch` that needs the example.

  Args:
    info: the set's static facts.
    examples: random access by [], with a length; a list of paths or a TFDS data source.
    read: one example -> leaves in storage dtype, all of one shape; called by several threads.
    decode: rows in storage dtype -> Batch; jnp-traceable.
    seed: order of the rows.
    shuffle: False reads them in their one constant order, a permutation.
    part: (process index, number of processes).

  Returns:
    Source with arrays and indices None.

  Raises:
    ValueError: for an empty set, a negative seed, a part that is none.
  """
  import grain

  if not len(examples):
    raise ValueError("the set is empty: point --config.data.dir or --config.data.name at another")
  if seed < 0:
    raise ValueError(f"seed {seed} is negative: set --config.seed to 0 or more")
  memory.require_part(part)
  if shuffle:
    stream = grain.MapDataset.source(examples).seed(seed).shuffle()
  else:
    rows = memory.constant(len(examples))
    stream = grain.MapDataset.source(rows).map(lambda row: examples[int(row)])
  stream = stream.repeat()[part[0] :: part[1]].map(read)
  pool = concurrent.futures.ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))
  lock = threading.Lock()
  ahead: collections.OrderedDict = collections.OrderedDict()  # (i, size) -> future
  last = (-1, 0)

  def batch(i: int, size: int) -> dict[str, np.ndarray]:
    nonlocal last
    i, size = int(i), int(size)
    if i < 0:
      raise ValueError(f"batch {i} does not exist: i counts from 0")
    batches = stream.batch(memory.part_size(size, part))
    with lock:
      mine = ahead.pop((i, size), None) or pool.submit(batches.__getitem__, i)
      if last == (i - 1, size):
        for k in range(i + 1, i + 1 + AHEAD):
          if (k, size) not in ahead:
            ahead[k, size] = pool.submit(batches.__getitem__, k)
        while len(ahead) > AHEAD:
          ahead.popitem(last=False)[1].cancel()
      last = (i, size)
    return mine.result()

  return Source(info, len(examples), batch, decode)


def from_reader(
  info: Info,
  examples: Sequence[Any],
  read: Callable[[Any], dict],
  decode: Callable,
  *,
  memory_mb: float = MEMORY_MB,
  seed: int = 0,
  shuffle: bool = True,
  part: tuple[int, int] = (0, 1),
) -> Source:
  """Reads a set into memory if it fits into `memory_mb` (10^6 bytes), and streams it otherwise.

  The two training orders differ: a run that is to be repeated exactly keeps its `memory_mb`.

  Args:
    info: the set's static facts.
    examples: random access by [], with a length.
    read: one example -> leaves in storage dtype.
    decode: rows in storage dtype -> Batch.
    memory_mb: --config.data.memory_mb; 0 always streams.
    seed: order of the rows.
    shuffle: False reads them in their one constant order, a permutation.
    part: (process index, number of processes).

  Raises:
    ValueError: for an empty set, and whatever `read` raises.
  """
  order = {"seed": seed, "shuffle": shuffle, "part": part}
  if not len(examples):
    raise ValueError("the set is empty: point --config.data.dir or --config.data.name at another")
  first = read(examples[0])
  num_bytes = len(examples) * sum(np.asarray(leaf).nbytes for leaf in first.values())
  if num_bytes > memory_mb * 1e6:
    return from_examples(info, examples, read, decode, **order)
  arrays = {
    name: np.empty((len(examples), *np.shape(leaf)), np.asarray(leaf).dtype)
    for name, leaf in first.items()
  }

  def store(i: int) -> None:
    for name, leaf in read(examples[i]).items():
      arrays[name][i] = leaf

  with concurrent.futures.ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
    tasks = [pool.submit(store, i) for i in range(len(examples))]
    try:
      for task in tasks:
        task.result()
    except BaseException:
      pool.shutdown(cancel_futures=True)  # the first broken file ends it, not the last
      raise
  return memory.from_arrays(info, arrays, decode, **order)
