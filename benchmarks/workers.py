"""What runs in the processes that benchmarks.steps starts: one measurement each."""

from __future__ import annotations

import functools
import importlib
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import measuring

PEAK_SIZE = 2048  # of the square matrices whose product is the machine's peak


def work(side: str, config: Any, workload: Any, args: Any) -> dict:
  """Measures one side of one workload.

  Args:
    side: "facts" (nothing is run), "ours" or a form of PyTorch.
    config: of the workload.
    workload: as in benchmarks.steps.
    args: flags; seconds 0 does one step only.

  Returns:
    Seconds until the first step was done ("start"), of the first step ("first") and of one step
    ("step"); the most memory; parameter counts. For "facts" operations and parameter counts.
  """
  if side == "facts":
    return facts(config, workload.lazy, args.data, workload.stage)
  if side == "ours":
    block, params = ours(config, workload.stage)
  else:
    block, params = theirs(config, workload.torch, side, args.data, args.threads)
  since = time.perf_counter()
  block(1)
  found = {"first": time.perf_counter() - since, "start": time.time() - args.started}
  if args.seconds:
    period = math.lcm(*intervals(config, workload.lazy).values())
    found["step"] = measuring.per_step(block, args.seconds, period=period)
  return {**found, "megabytes": measuring.peak_megabytes(), "params": params}


def intervals(config: Any, lazy: Mapping) -> dict[str, int]:
  """Returns the weights of the lazy parts that a config has, and every how many steps they run."""
  value = lambda key: functools.reduce(getattr, key.split("."), config)
  return {weight: value(every) for weight, every in lazy.items() if value(weight)}


def mean_flops(full: float, without: Sequence[tuple[float, int]]) -> float:
  """Returns the mean operations of a step whose lazy parts run in some steps only.

  Args:
    full: operations of a step with all parts.
    without: for each lazy part, operations of a step without it and every how many steps it runs.
  """
  return full - sum((full - rest) * (1 - 1 / every) for rest, every in without)


def facts(config: Any, lazy: Mapping, data_file: str, index: int = 0) -> dict:
  """Parameters and operations by `--mode=inspect`; saves the data set for PyTorch.

  Operations are those of plain convolutions, as PyTorch makes them: ours may need fewer.
  """
  import numpy as np

  from gm import inspection, job
  from gm.nn import conv

  def describe(**changes):
    changed = config.copy_and_resolve_references()
    changed.update_from_flattened_dict(changes)
    prepared = job.prepare(changed)
    with conv.form("plain"):
      return prepared, inspection.describe(prepared)["stages"][index]

  prepared, stage = describe()
  np.savez(data_file, **job.load(prepared, index, "train").arrays)
  without = [
    (describe(**{weight: 0.0})[1]["flops_per_step"], every)
    for weight, every in intervals(config, lazy).items()
  ]
  return {"params": stage["params"], "flops": mean_flops(stage["flops_per_step"], without)}


def ours(config: Any, index: int = 0) -> tuple:
  """Returns block(n), n steps of a stage as the loop makes them, and the parameter counts."""
  import jax

  from gm import core, feed, job, programs, sharding, steps

  shelf = programs.Shelf(config, sharding.start(config))
  shelf.read_ahead("")
  prepared = job.prepare(config, shelf)
  state = None
  for i in range(index + 1):
    source, data = feed.on_device(job.load(prepared, i, "train"), prepared.mesh)
    state = jax.block_until_ready(steps.initialise(prepared, i, state, source, shelf))
  pace, rows = feed.make_feed(prepared, index, source)
  call = totals = None  # traced and compiled, or waited for, in the first step
  key = prepared.keys[index]["step"]
  params = {name: core.count(p) for name, p in state.params.items()}
  step = 0

  def block(n):
    nonlocal call, state, totals, step
    if call is None:
      call, totals = steps.make_call(prepared, index, source, (data, rows(0, 1)), shelf)
    state, totals, done = call(state, totals, data, rows(step, n), key, n)
    if step == 0:
      done.block_until_ready()
    pace.wait(done, n)  # for the call before this one
    step += n

  return block, params


def theirs(config: Any, model: str, form: str, data_file: str, threads: int) -> tuple:
  """Returns block(n), n steps of PyTorch, and the parameter counts."""
  import numpy as np
  import torch

  from benchmarks import models_torch

  file, _, name = model.partition(":")
  module = importlib.import_module(f"benchmarks.{file}")
  torch.set_num_threads(threads)
  torch.set_flush_denormal(True)  # as XLA does
  with np.load(data_file) as file:
    data = dict(file)
  model = getattr(module, name)(config, data, models_torch.FORMS[form])
  params = {n: sum(p.numel() for p in net.parameters()) for n, net in model.networks.items()}

  def block(n):
    for _ in range(n):
      model.step()

  return block, params


def peak(side: str, seconds: float, threads: int) -> dict:
  """Operations per second of a large matrix product in float32, by jax or by torch."""
  import numpy as np

  x = np.random.default_rng(0).standard_normal((PEAK_SIZE, PEAK_SIZE), np.float32)
  if side == "ours":
    import jax

    x, product = jax.numpy.asarray(x), jax.jit(jax.numpy.matmul)
    block = lambda n: [product(x, x).block_until_ready() for _ in range(n)]
  else:
    import torch

    torch.set_num_threads(threads)
    x = torch.from_numpy(x)
    block = lambda n: [x @ x for _ in range(n)]
  return {"flops_per_second": 2 * PEAK_SIZE**3 / measuring.per_step(block, seconds)}
