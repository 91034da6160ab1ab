"""The only training loop: runs any list of stages.

Files, time, devices and signals are handled around here and in no method. Training is a pure
function of (config, data): batch i and key i are functions of the seed and i, so a run that was
killed and resumed ends with the same parameters, bit for bit, as one that was not.
"""

from __future__ import annotations

import tempfile
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from gm import core, diagnostics, evaluation, feed, programs, steps
from gm.errors import UserError, user_input
from gm.interrupt import Interrupt
from gm.job import Job, load, open_workdir, prepare, restore
from gm.progress import Bar, Clock, say
from gm.workdir import checkpoint, log, record, report, samples


class Stopped(Exception):
  """The run was asked to stop by a signal and has saved its state."""

  def __init__(self, message: str, signum: int):
    super().__init__(message)
    self.signum = signum


class Shared(NamedTuple):
  """What all stages of one training have in common."""

  job: Job
  workdir: str  # holds the checkpoints, which all processes write
  desk: str  # logs and pictures: the workdir in one process, a folder that nobody reads in others
  log: log.Log
  interrupt: Interrupt
  shelf: programs.Shelf | None


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
  evaluation.try_metrics(job)
  start, state = initial_state(job)
  source = load(job, start, "train")
  desk = workdir if jax.process_index() == 0 else tempfile.mkdtemp()
  open_workdir(job, desk, source)
  with user_input():
    lines = log.Log(desk)
  try:
    with Interrupt() as interrupt:
      shared = Shared(job, workdir, desk, lines, interrupt, shelf)
      for index in range(start, len(job.stages)):
        run = Run(shared, index, state, source if index == start else load(job, index, "train"))
        state = run.train()
    metrics = run.evaluator.finish(desk, state)
    say(evaluation.spell(metrics))
    last = {"stage": job.stages[-1].name, "step": int(state.step), **metrics}
    for alarm in diagnostics.alarms([last]):
      say(f"ALARM {alarm.name} at the end: {alarm.message}")
  finally:
    lines.close()
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
  index = names.index(name)
  try:
    state = restore(job, workdir, index)
  except UserError as error:  # the flag to change is not that of this run's own workdir
    said = str(error).replace("another --workdir", "another --config.init_from")
    raise UserError(f"--config.init_from={folder}: {said}") from error
  if state is None:
    raise UserError(f"--config.init_from={folder} holds no checkpoint")
  num_steps = record.read_steps(workdir).get(job.stages[index].name, 0)
  if int(state.step) < num_steps:
    raise UserError(
      f"--config.init_from={folder} is at step {int(state.step):,} of {num_steps:,}: let that run"
      " finish the stage first"
    )
  return index + 1, state


class Run:
  """The training of one stage, from its last checkpoint or from its start."""

  def __init__(self, shared: Shared, index: int, prev: core.State | None, source: core.Source):
    job = shared.job
    self.shared, self.job, self.index = shared, job, index
    self.stage, self.config = job.stages[index], job.config
    self.evaluator = evaluation.Evaluator(job, index)
    self.source, self.data = feed.on_device(source, job.mesh)
    self.state = restore(job, shared.workdir, index, resume=True)
    self.resumed = self.state is not None
    if not self.resumed:
      self.state = steps.initialise(job, index, prev, self.source, shared.shelf)
    self.step = int(self.state.step)

  def train(self) -> core.State:
    """Trains to the end of the stage and returns its last state."""
    if self.resumed and self.step >= self.stage.num_steps:
      return self.state
    shared, job, stage = self.shared, self.job, self.stage
    shared.log.rewind(stage.name, self.step, [s.name for s in job.stages])
    self.bar = Bar(stage, self.step, log.read_metrics(shared.desk), self.resumed)
    folder = checkpoint.stage_dir(shared.workdir, self.index, stage.name)
    self.saver = checkpoint.Saver(folder, self.config, self.step if self.resumed else -1)
    if stage.num_steps:
      self._advance()
    else:  # a sampler: nothing to train, something to show
      self.saver.save(self.state, None)
      self._draw()
    self.bar.close()
    samples.write_gif(shared.desk, stage.name)
    self.saver.close()
    return self.state

  def _advance(self) -> None:
    """Calls the compiled steps, and does between calls what is due."""
    job, stage, config = self.job, self.stage, self.config
    pace, rows = feed.make_feed(job, self.index, self.source)
    with user_input():
      example = self.data, rows(self.step, 1)
    call, totals = steps.make_call(job, self.index, self.source, example, self.shared.shelf)
    clock = Clock(self.step, self.bar.seconds)
    while self.step < stage.num_steps:
      n = min(pace.steps, steps_until_event(self.step, stage.num_steps, config))
      with self.saver.rescuing(self.state), user_input():
        chunk = rows(self.step, n)
      key = job.keys[self.index]["step"]
      self.state, totals, done = call(self.state, totals, self.data, chunk, key, n)
      self.step += n
      pace.wait(done, n)
      self.bar.move(self.step)
      agree_every = config.log_every or config.checkpoint_every
      stop = self.shared.interrupt.agreed(self.step, agree_every)
      ends = self.step == stage.num_steps or stop
      due = {k: ends or (p and self.step % p == 0) for k, p in periods(config).items()}
      if due["log"] or due["checkpoint"]:
        steps.check_finite(totals, stage.name, self.saver.last)
      if due["log"]:
        self._log(totals, clock)
        totals = steps.zero_totals(job, self.index, totals.sums)
      with clock.paused():
        self._events(due, stop, clock.seconds)
      if stop:
        self.saver.close()
        raise Stopped(f"saved at step {self.step}; the same command resumes", stop)

  def _log(self, totals: steps.Totals, clock: Clock) -> None:
    """Writes and shows the means since the last log."""
    seconds, rate = clock.lap(self.step)
    metrics = {k: float(v) / int(totals.count) for k, v in totals.sums.items()}
    speed = rate * self.job.sizes[self.index]
    self.shared.log.write(self.stage.name, self.step, seconds, speed, metrics)
    self.bar.log(self.step, rate, metrics)

  def _events(self, due: dict, stop: int, seconds: float) -> None:
    """Evaluates, saves and draws, where it is time to."""
    found = None
    last = self.step == self.stage.num_steps and self.index == len(self.job.stages) - 1
    if self.config.eval_every and due["eval"] and not (stop or last):  # the last: by train()
      with self.saver.rescuing(self.state):
        found = self.evaluator.evaluate(self.state)
      self.shared.log.write(self.stage.name, self.step, seconds, 0.0, found)
      self.bar.log(self.step, None, found)
    if due["checkpoint"] or (found and self.config.best_metric):
      self.saver.save(self.state, found)
    if due["sample"] and not stop:
      self._draw()

  def _draw(self) -> None:
    self.evaluator.write_samples(self.shared.desk, self.state)
    self.evaluator.write_extra(self.shared.desk, self.state)


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
