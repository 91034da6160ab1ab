"""The only training loop: runs any list of stages.

Files, time, devices and signals are handled around here and in no method. Training is a pure
function of (config, data): batch i and key i are functions of the seed and i, so a run that was
killed and resumed ends with the same parameters, bit for bit, as one that was not.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from gm import checkpoint, core, diagnostics, evaluation, programs, report, sharding, writers
from gm.job import Job, UserError, load, open_workdir, prepare, restore, user_input

CALL_SECONDS = 0.3  # aim for one compiled call: long beside its start, short beside a signal
MAX_STEPS_PER_CALL = 64
DONATED = (0, 1)  # the call may use the memory of the old state and totals
DEVICE_BYTES = 2**30  # a data set up to this size lives in device memory


class Stopped(Exception):
  """The run was asked to stop by a signal and has saved its state."""

  def __init__(self, message: str, signum: int):
    super().__init__(message)
    self.signum = signum


def train(config: ConfigDict, workdir: str, shelf: programs.Shelf | None = None) -> None:
  """Trains every stage that is not finished, then evaluates and writes the report.

  Args:
    config: from configs/.
    workdir: created, or continued where it holds a run of the same config.
    shelf: of this config, for a quicker second start; only where all functions are those of the
      files, as in `main.py` (see gm/programs.py).

  Raises:
    UserError: for input that the user can mend.
    Stopped: after SIGTERM or Ctrl-C, with everything saved.
    FloatingPointError: where a metric is not finite; the last checkpoint before it stays.
  """
  job = prepare(config, shelf)
  start, state = initial_state(job)
  source = load(job, start, "train")
  # one process of a job writes the logs and pictures; all of them write the checkpoints
  desk = workdir if jax.process_index() == 0 else tempfile.mkdtemp()
  open_workdir(job, desk, source)
  with user_input():
    log = writers.Log(desk)
  try:
    with Interrupt() as interrupt:
      for index in range(start, len(job.stages)):
        source = source if index == start else load(job, index, "train")
        evaluator = evaluation.Evaluator(job, index)
        state = run_stage(
          job, index, state, source, evaluator, workdir, desk, log, interrupt, shelf
        )
    metrics = evaluator.finish(desk, state)
    say("  ".join(f"{k} {v:.4g}" for k, v in metrics.items()))
    last = {"stage": job.stages[-1].name, "step": int(state.step), **metrics}
    for alarm in diagnostics.alarms([last]):
      say(f"ALARM {alarm.name} at the end: {alarm.message}")
  finally:
    log.close()
    report.write(desk)
  say(f"done: {workdir}/report.html")


def initial_state(job: Job) -> tuple[int, core.State | None]:
  """Returns the first stage to run and the state before it, which config.init_from may name."""
  folder = job.config.init_from.rstrip("/")
  if not folder:
    return 0, None
  workdir, _, name = folder.rpartition("/checkpoints/")
  names = [f"{i:02d}-{stage.name}" for i, stage in enumerate(job.stages[:-1])]
  if name not in names:
    raise UserError(
      f"--config.init_from={folder} must end in /checkpoints/ and the name of a stage that another"
      f" follows: {', '.join(names) or 'this method has one stage only'}"
    )
  state = restore(job, workdir, names.index(name))
  if state is None:
    raise UserError(f"--config.init_from={folder} holds no checkpoint")
  return names.index(name) + 1, state


def run_stage(
  job: Job,
  index: int,
  prev: core.State | None,
  source: core.Source,
  evaluator: evaluation.Evaluator,
  workdir: str,
  desk: str,
  log: writers.Log,
  interrupt: Interrupt,
  shelf: programs.Shelf | None = None,
) -> core.State:
  """Trains one stage from its last checkpoint, or from its start, to its end."""
  stage, config = job.stages[index], job.config
  source, data = on_device(source, job.mesh)
  state = restore(job, workdir, index)
  resumed = state is not None
  state = state if resumed else initialise(job, index, prev, source, shelf)
  step = int(state.step)
  if resumed and step >= stage.num_steps:
    return state
  log.rewind(stage.name, step, [s.name for s in job.stages])
  bar = Bar(stage, step, writers.read_metrics(desk), resumed)
  saver = Saver(checkpoint.stage_dir(workdir, index, stage.name), config, step if resumed else -1)
  pace, rows = make_feed(job, index, source)
  if step < stage.num_steps:
    with user_input():
      example = data, rows(step, 1)
    call, totals = make_call(job, index, source, example, shelf)
  clock = Clock(step, bar.seconds)

  while step < stage.num_steps:
    n = min(pace.steps, steps_until_event(step, stage.num_steps, config))
    with saver.rescuing(state), user_input():
      chunk = rows(step, n)
    state, totals, done = call(state, totals, data, chunk, job.keys[index]["step"], n)
    step += n
    pace.wait(done, n)
    bar.move(step)
    stop = interrupt.agreed(step, config.log_every or config.checkpoint_every)
    ends = step == stage.num_steps or stop
    due = {k: ends or (p and step % p == 0) for k, p in periods(config).items()}
    if due["log"] or due["checkpoint"]:
      check_finite(totals, stage.name, saver.last)
    if due["log"]:
      seconds, rate = clock.lap(step)
      metrics = {k: float(v) / int(totals.count) for k, v in totals.sums.items()}
      log.write(stage.name, step, seconds, rate * job.sizes[index], metrics)
      bar.log(step, rate, metrics)
      totals = zero_totals(job, index, totals.sums)
    with clock.paused():
      found = None
      last = ends and index == len(job.stages) - 1  # is evaluated by train()
      if config.eval_every and due["eval"] and not (stop or last):
        found = evaluator.evaluate(state)
        log.write(stage.name, step, seconds, 0.0, found)
        bar.log(step, None, found)
      if due["checkpoint"] or (found and config.best_metric):
        saver.save(state, found)
      if due["sample"] and not stop:
        evaluator.write_samples(desk, state)
        evaluator.write_extra(desk, state)
    if stop:
      saver.close()
      raise Stopped(f"saved at step {step}; the same command resumes", stop)
  if stage.num_steps == 0:  # a sampler: nothing to train, something to show
    saver.save(state, None)
    evaluator.write_samples(desk, state)
    evaluator.write_extra(desk, state)
  bar.close()
  writers.write_gif(desk, stage.name)
  saver.close()
  return state


# ------------------------------------------------------------------------- the compiled call


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
  """Returns the first state of a stage, made where it will live; `shelf` as in `make_call`."""
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
  return jax.tree.unflatten(jax.tree.structure(job.templates[index]), program(*args))


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
        row = {k: jnp.take(a, row, axis=0) for k, a in data.items()}
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


# ---------------------------------------------------------------------------- feeding the call


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


# ------------------------------------------------------------------------ when to do what else


def periods(config: ConfigDict) -> dict[str, int]:
  """Returns the steps between events of each kind; 0: only at the end."""
  return {
    "log": config.log_every,
    "checkpoint": config.checkpoint_every,
    "sample": config.sample_every,
    "eval": config.eval_every,
  }


def steps_until_event(step: int, num_steps: int, config: ConfigDict) -> int:
  """Returns the number of steps until the next event or the end.

  >>> steps_until_event(70, 1000, ConfigDict({"log_every": 100, "checkpoint_every": 80,
  ...   "sample_every": 0, "eval_every": 0}))
  10
  """
  return min([num_steps - step, *(p - step % p for p in periods(config).values() if p)])


class Clock:
  """Seconds of training: time spent on pictures, evaluation and saving does not count."""

  def __init__(self, step: int, seconds: float):
    self.step, self.seconds, self.since = step, seconds, time.perf_counter()

  def lap(self, step: int) -> tuple[float, float]:
    """Returns seconds so far and the steps per second since the last lap."""
    now = time.perf_counter()
    rate = (step - self.step) / max(1e-9, now - self.since)
    self.seconds, self.step, self.since = self.seconds + now - self.since, step, now
    return self.seconds, rate

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Does not count the time inside."""
    start = time.perf_counter()
    yield
    self.since += time.perf_counter() - start


class Interrupt:
  """Remembers SIGTERM and Ctrl-C so that the loop can save first; a second Ctrl-C stops at once."""

  def __enter__(self) -> Interrupt:
    self.signum, self.previous = 0, {}
    with contextlib.suppress(ValueError):  # only the main thread may handle signals
      for s in (signal.SIGTERM, signal.SIGINT):
        self.previous[s] = signal.signal(s, self._remember)
    return self

  def _remember(self, signum: int, frame: Any) -> None:
    del frame
    if self.signum and signum == signal.SIGINT:
      raise KeyboardInterrupt
    self.signum = signum
    say("stopping: the state will be saved first")

  def agreed(self, step: int, period: int) -> int:
    """The signal, or 0; several processes ask one another every `period` steps, to stop as one."""
    if jax.process_count() == 1:
      return self.signum
    if not period or step % period:
      return 0
    return int(multihost_utils.process_allgather(np.int32(self.signum)).max())

  def __exit__(self, *_: object) -> None:
    for s, handler in self.previous.items():
      signal.signal(s, handler)


class Saver:
  """Saves states of one stage in the background; orbax is imported at the first of them."""

  def __init__(self, folder: Any, config: ConfigDict, last: int):
    self.folder, self.config, self.manager = folder, config, None
    self.last = last  # newest step that has been saved; -1: none

  def save(self, state: core.State, metrics: dict | None) -> None:
    """Saves a state under its step.

    Raises:
      UserError: if it cannot be written, or if config.best_metric is none of the metrics.
    """
    wanted = self.config.best_metric.lstrip("+-")
    if metrics and wanted and wanted not in metrics:
      raise UserError(
        f"--config.best_metric={self.config.best_metric} is none of the evaluation's metrics:"
        f" {', '.join(sorted(metrics))}"
      )
    with user_input():
      if self.manager is None:
        keep, best = self.config.keep_checkpoints, self.config.best_metric
        self.manager = checkpoint.open_manager(self.folder, keep=keep, best=best)
      checkpoint.save(self.manager, state, metrics)
    self.last = int(state.step)

  @contextlib.contextmanager
  def rescuing(self, state: core.State) -> Iterator[None]:
    """Saves the state if the input fails inside, such as a damaged file met on the way."""
    try:
      yield
    except UserError:
      if int(state.step) > self.last:
        self.save(state, None)
      self.close()
      raise

  def close(self) -> None:
    """Waits until all is on disk."""
    if self.manager is not None:
      with user_input():
        self.manager.close()


# ------------------------------------------------------------------------------------- speaking


def say(text: str) -> None:
  """Prints a line, once however many processes there are."""
  if jax.process_index() == 0:
    print(text, flush=True)


class Bar:
  """Progress: a bar on a terminal, plain lines elsewhere; alarms once each."""

  def __init__(self, stage: core.Stage, step: int, records: list[dict], resumed: bool):
    self.stage, self.records, self.raised = stage, records, set()
    self.seconds = records[-1]["seconds"] if records else 0.0
    self.bar = None
    if resumed:
      say(f"{stage.name}: resumed at step {step} of {stage.num_steps}")
    if sys.stderr.isatty() and jax.process_index() == 0:
      from tqdm import tqdm

      self.bar = tqdm(total=stage.num_steps, initial=step, desc=stage.name, unit="step")

  def move(self, step: int) -> None:
    """Shows how far training is."""
    if self.bar is not None:
      self.bar.update(step - self.bar.n)

  def log(self, step: int, rate: float | None, metrics: dict) -> None:
    """Shows the main numbers, and new alarms."""
    self.records.append({"stage": self.stage.name, "step": step, **metrics})
    main = {k: v for k, v in metrics.items() if k.startswith("loss") or rate is None}
    text = "  ".join(f"{k} {v:.4g}" for k, v in main.items())
    if self.bar is not None:
      self.bar.set_postfix_str(text, refresh=False)
    elif rate is None:
      say(f"{self.stage.name} {step}  {text}")
    else:
      left = (self.stage.num_steps - step) / rate
      clock = f"{int(left) // 60}:{int(left) % 60:02d}"
      say(
        f"{self.stage.name} {step}/{self.stage.num_steps}  {rate:.4g} steps/s  {clock} left  {text}"
      )
    for alarm in diagnostics.alarms(self.records[-50:]):
      if alarm.name not in self.raised:
        self.raised.add(alarm.name)
        self.note(f"ALARM {alarm.name} at step {alarm.step}: {alarm.message}")

  def note(self, text: str) -> None:
    """Prints a line above the bar."""
    if self.bar is not None:
      self.bar.write(text)
    else:
      say(text)

  def close(self) -> None:
    """Leaves the bar as it stands."""
    if self.bar is not None:
      self.bar.close()
