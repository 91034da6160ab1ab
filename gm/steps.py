"""Training steps as one compiled call, and the first state of a stage."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gm import core, programs, sharding
from gm.errors import user_input
from gm.job import Job

DONATED = (0, 1)  # the call may use the memory of the old state and totals


class Totals(NamedTuple):
  """Sums of the metrics since the last log, and the step at which each was first not finite."""

  sums: dict
  count: jax.Array
  bad: dict  # -1: never


def initialise(
  job: Job,
  index: int,
  prev: core.State | None,
  source: core.Source,
  shelf: programs.Shelf | None = None,
) -> core.State:
  """Returns the first state of a stage, made where it will live; `shelf` as in `make_call`.

  Raises:
    UserError: if weights that it begins with cannot be had.
  """
  rows = sharding.put(source.batch(0, job.sizes[index]), sharding.batched(job.mesh))
  args = (job.keys[index]["init"], rows, jax.tree.leaves(prev))
  program = shelf.find(programs.init_name(index), args) if shelf else None
  if program is None:
    first = jax.jit(job.stages[index].init)  # traced already, for the template
    before = jax.tree.structure(prev)

    def init(key, rows, leaves):
      return jax.tree.leaves(first(key, source.decode(rows), jax.tree.unflatten(before, leaves)))

    # jitted, or else an EMA that starts as the parameters would share buffers that are donated;
    # hardly optimised, because it runs once: random numbers are what takes longest to compile
    quick = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
    options = quick if jax.default_backend() == "cpu" else {}
    how = {"out_shardings": shards_of(job, index), "compiler_options": options}
    made = shelf and shelf.make(programs.init_name(index), init, args, **how)
    program = made or jax.jit(init, **how)
  state = jax.tree.unflatten(jax.tree.structure(job.templates[index]), program(*args))
  furnish = job.stages[index].furnish
  if furnish is None:
    return state
  with user_input():  # they may have to be fetched
    furnished = furnish(state)
  return jax.device_put(furnished, jax.tree.map(lambda like: like.sharding, job.templates[index]))


def zero_totals(job: Job, index: int, names: Iterable[str] = ()) -> Totals:
  """Returns the totals of no steps; the metrics' names are found by tracing a step if not given."""
  if not names:
    # types as in `make_call`, so that the step is traced here for the first and only time
    batch = core.batch_shapes(job.infos[index], job.sizes[index], sharding.batched(job.mesh))
    key = job.keys[index]["step"]
    key = jax.ShapeDtypeStruct((), key.dtype, sharding=sharding.replicated(job.mesh))
    with user_input(), sharding.over(job.mesh):
      names = jax.eval_shape(job.stages[index].step, job.templates[index], batch, key)[1]
  zeros, never = (dict.fromkeys(names, np.array(v)) for v in (np.float32(0), np.int32(-1)))
  # placed like the totals that a call returns: else the call would be compiled twice
  return sharding.put(Totals(zeros, np.int32(0), never), sharding.replicated(job.mesh))


def make_call(
  job: Job, index: int, source: core.Source, example: tuple, shelf: programs.Shelf | None = None
) -> tuple[Callable, Totals]:
  """Returns the compiled (state, totals, data, rows, key, n) -> (state, totals, step), n steps.

  n is a run-time value, so one program serves every n, and the result does not depend on how steps
  are grouped into calls. `data` is the set on the device and rows are indices; or it is empty and
  rows are examples.

  Args:
    job: the run.
    index: of the stage.
    source: as `on_device` left it.
    example: (data, rows), whose shapes and types later ones share.
    shelf: where to look for the compiled program first, and to keep it.

  Returns:
    The call, and the totals of no steps.
  """
  template, key = job.templates[index], job.keys[index]["step"]
  rest = (*example, key, 1)
  program = shelf.find(programs.steps_name(index), rest) if shelf else None
  totals = zero_totals(job, index, program.args_info[0][1][0] if program else ())
  if program is None:
    every = sharding.replicated(job.mesh)
    steps, shards = make_steps(job, index, source), (shards_of(job, index), every, every)
    how = {"donate_argnums": DONATED, "out_shardings": shards, "compiler_options": step_options()}
    args = (jax.tree.leaves(template), tuple(totals), *rest)
    made = shelf and shelf.make(programs.steps_name(index), steps, args, **how)
    program = made or jax.jit(steps, **how)

  def call(state, totals, data, rows, key, n):
    leaves, totals, step = program(jax.tree.leaves(state), tuple(totals), data, rows, key, n)
    return jax.tree.unflatten(jax.tree.structure(template), leaves), Totals(*totals), step

  return call, totals


def step_options() -> dict[str, Any]:
  """What steps are compiled with.

  Of XLA's library for the CPU only the sums are taken, not the matrix products: steps take the same
  time without those and load in 0.6 of the time, because each call of the library is looked up in
  the whole program. Without its sums a step is a tenth slower.
  """
  on_cpu = jax.default_backend() == "cpu"
  return {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"} if on_cpu else {}


def shards_of(job: Job, index: int) -> list[jax.sharding.Sharding]:
  """Where the leaves of a stage's state live."""
  return [leaf.sharding for leaf in jax.tree.leaves(job.templates[index])]


def make_steps(job: Job, index: int, source: core.Source) -> Callable:
  """Returns what `make_call` compiles; state and totals are plain lists, tuples and dicts in it."""
  step, split = jax.jit(job.stages[index].step), sharding.batched(job.mesh)
  structure = jax.tree.structure(job.templates[index])

  def steps(leaves, totals, data, rows, key, n):
    def body(i, carry):
      state, totals = carry
      row = jax.tree.map(lambda r: r[i], rows)
      if data:
        of = row if isinstance(row, dict) else dict.fromkeys(data, row)
        row = {k: jnp.take(a, of[k], axis=0) for k, a in data.items()}
      batch = jax.lax.with_sharding_constraint(source.decode(row), split)
      now = state.step
      state, metrics = step(state, batch, jax.random.fold_in(key, now))
      sums = {k: totals.sums[k] + v for k, v in metrics.items()}
      first_bad = lambda k, v: jnp.where((totals.bad[k] < 0) & ~jnp.isfinite(v), now, totals.bad[k])
      bad = {k: first_bad(k, v) for k, v in metrics.items()}
      return state, Totals(sums, totals.count + 1, bad)

    carry = jax.tree.unflatten(structure, leaves), Totals(*totals)
    with sharding.over(job.mesh):
      state, totals = jax.lax.fori_loop(0, n, body, carry)
    # the step is copied: the state is donated to the next call
    return jax.tree.leaves(state), tuple(totals), state.step + 0

  return steps


def check_finite(totals: Totals, stage: str, saved: int) -> None:
  """Raises FloatingPointError with the metric and the step at which it was first not finite."""
  bad = {k: int(v) for k, v in totals.bad.items() if int(v) >= 0}
  if bad:
    name = min(bad, key=bad.get)
    keeps = f"the checkpoint of step {saved} stays" if saved >= 0 else "no checkpoint had been made"
    raise FloatingPointError(
      f"{name} is not finite at step {bad[name] + 1} of stage {stage}; {keeps}. Try a smaller"
      " --config.lr or another --config.seed"
    )
