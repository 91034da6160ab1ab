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

from gm import core, diagnostics, evaluation, feed, processes, programs, steps
from gm.errors import user_input
from gm.interrupt import Interrupt, Stopped
from gm.job import Job, check_workdir, initial_state, last_state, load, open_workdir, prepare
from gm.progress import Bar, Clock, say
from gm.workdir import checkpoint, lock, log, report, samples, saver

AGREE_CALLS = 8  # between two questions of several processes to one another


class Shared(NamedTuple):
  """What all stages of one training have in common."""

  job: Job
  workdir: str  # holds the checkpoints, which all processes write
  desk: str  # logs and pictures: the workdir in one process, a folder that nobody reads in others
  log: log.Log
  interrupt: Interrupt
  shelf: programs.Shelf | None
  facts: dict  # that checkpoints keep of the run


def train(
  config: ConfigDict, workdir: str, shelf: programs.Shelf | None = None, changed_data: bool = False
) -> None:
  """Trains every stage that is not finished, then evaluates and writes the report.

  Args:
    config: from configs/.
    workdir: created, or continued where it holds a run of the same config.
    shelf: of this config, for a quicker second start; only where all functions are those of the
      files, as in `main.py` (see gm/programs.py).
    changed_data: go on though the data have changed since the run began; that is put on record.

  Raises:
    UserError: for input that the user can mend.
    Stopped: after SIGTERM or Ctrl-C, with everything saved.
    FloatingPointError: where a metric is not finite; the last checkpoint before it stays.
  """
  job = prepare(config, shelf)
  evaluation.try_metrics(job)
  desk = workdir if jax.process_index() == 0 else tempfile.mkdtemp()
  check_workdir(job, desk)  # and once more where it is opened
  with lock.Lock(desk) as held:
    resumed = last_state(job, workdir, resume=True)
    start, state = resumed or initial_state(job)
    source = load(job, start, "train")
    evaluation.enough(job, "train", source)
    at = f"step {state.step if resumed else 0} of {job.stages[start].name}"
    opened = open_workdir(job, held, source, changed_at=at if changed_data else "")
    facts = {**opened, "devices": job.mesh.size}
    with report.following(desk) as lines, Interrupt() as interrupt:
      shared = Shared(job, workdir, desk, lines, interrupt, shelf, facts)
      for index in range(start, len(job.stages)):
        here = source if index == start else load(job, index, "train")
        run = Run(shared, index, state, here, bool(resumed) and index == start)
        state = run.train()
        interrupt.check(f"saved at step {run.step} of {run.stage.name}; the same command resumes")
        interrupt.holds = False  # until the next stage has done a step
      interrupt.holds = True
      metrics = interrupt.attempt(lambda: run.evaluator.finish(desk, state))
      interrupt.check("trained and saved, not evaluated: the same command does it")
      say(evaluation.spell(metrics))
      last = {"stage": job.stages[-1].name, "step": int(state.step), **metrics}
      for alarm in diagnostics.alarms([last]):
        say(f"ALARM {alarm.name} at the end: {alarm.message}")
  say(f"done: {workdir}/report.html")


class Run:
  """The training of one stage, from its last checkpoint or from its start.

  `state` is this stage's own where it is resumed, else the last of the stage before.
  """

  def __init__(
    self, shared: Shared, index: int, state: core.State | None, source: core.Source, resumed: bool
  ):
    job = shared.job
    self.shared, self.job, self.index = shared, job, index
    self.stage, self.config = job.stages[index], job.config
    self.evaluator = evaluation.Evaluator(job, index)
    self.source, self.data = feed.on_device(source, job.mesh)
    self.state, self.resumed = state, resumed
    if not resumed:
      self.state = steps.initialise(job, index, state, self.source, shared.shelf)
    self.step = int(self.state.step)
    folder = checkpoint.stage_dir(shared.workdir, index, self.stage.name)
    last = self.step if self.resumed else -1
    self.saver = saver.Saver(folder, self.config, last, shared.facts)
    self.totals = None

  def train(self) -> core.State:
    """Trains to the end of the stage and returns its last state."""
    shared, job, stage = self.shared, self.job, self.stage
    finished = self.resumed and self.step >= stage.num_steps
    if not finished:
      shared.log.rewind(stage.name, self.step, [s.name for s in job.stages])
      self.bar = Bar(stage, self.step, log.read_metrics(shared.desk), self.resumed)
    with self.saver.rescuing(self._rescued):
      if self.resumed:
        self._make_up()
      if not finished and stage.num_steps:
        self._advance()
      elif not finished:  # a sampler: nothing to train, something to show
        self.saver.save(self.state)
        self._draw()
      if not (finished and samples.is_filmed(shared.desk, stage.name)):
        samples.write_gif(shared.desk, stage.name)
    if not finished:
      self.bar.close()
      self.saver.close()
    return self.state

  def _make_up(self) -> None:
    """Does what is missing where a run ended between a checkpoint and the rest that was due."""
    desk, name, due = self.shared.desk, self.stage.name, self._due(0)
    records = log.read_metrics(desk)
    last = records[-1] if records else {"stage": None}
    measured = log.evaluations(records, name)
    for step, found in measured.items():
      if self.config.best_metric[1:] in found:  # else another one was chosen then
        self.saver.rate(step, found)
    missing = last["stage"] == name and self.step not in measured
    if self._evaluates(due) and processes.decided(missing):
      found = self.evaluator.evaluate(self.state)
      self._measured(found, last.get("seconds", 0.0))
      say(f"{name} {self.step}  {evaluation.spell(found)}")
    if due["sample"] and processes.decided(not samples.is_drawn(desk, name, self.step)):
      self._draw()

  def _advance(self) -> None:
    """Calls the compiled steps, and does between calls what is due."""
    job, stage, config = self.job, self.stage, self.config
    pace, rows = feed.make_feed(job, self.index, self.source)
    with user_input():
      example = self.data, rows(self.step, 1)
    call, self.totals = steps.make_call(job, self.index, self.source, example, self.shared.shelf)
    interrupt, key = self.shared.interrupt, job.keys[self.index]["step"]
    clock = Clock(self.step, self.bar.seconds)
    while self.step < stage.num_steps:
      n = min(pace.steps, steps_until_event(self.step, stage.num_steps, config))
      with user_input():
        chunk = rows(self.step, n)
      interrupt.holds = True
      self.state, self.totals, done = call(self.state, self.totals, self.data, chunk, key, n)
      self.step += n
      pace.wait(done, n)
      self.bar.move(self.step)
      stop = interrupt.agreed(self.step, AGREE_CALLS * pace.steps)
      due = self._due(stop)
      if due["log"] or due["checkpoint"]:
        steps.check_finite(self.totals, stage.name, self.saver.last)
      if due["log"]:
        self._log(clock)
      with clock.paused():
        stop = self._events(due, stop, clock.seconds)
      if stop:
        self.saver.close()
        raise Stopped(f"saved at step {self.step}; the same command resumes", stop)

  def _due(self, stop: int) -> dict[str, bool]:
    """What is to be done after this step, of all that is done from time to time."""
    ends = self.step == self.stage.num_steps or bool(stop)
    return {k: ends or bool(p and self.step % p == 0) for k, p in periods(self.config).items()}

  def _evaluates(self, due: dict) -> bool:
    """Whether to evaluate now; at the very end `train` does it."""
    last = self.step == self.stage.num_steps and self.index == len(self.job.stages) - 1
    return bool(self.config.eval_every) and due["eval"] and not last

  def _rescued(self) -> core.State:
    """The state, if it can be kept."""
    if self.totals is not None:
      steps.check_finite(self.totals, self.stage.name, self.saver.last)
    return self.state

  def _log(self, clock: Clock) -> None:
    """Writes and shows the means since the last log."""
    seconds, rate = clock.lap(self.step)
    sums, count = self.totals.sums, int(self.totals.count)
    metrics = {k: float(v) / count for k, v in sums.items()}
    speed = rate * self.job.sizes[self.index]
    self.shared.log.write(self.stage.name, self.step, seconds, speed, metrics)
    self.bar.log(self.step, rate, metrics)
    self.totals = steps.zero_totals(self.job, self.index, sums)

  def _events(self, due: dict, stop: int, seconds: float) -> int:
    """Evaluates, saves and draws, where it is time to; returns the signal if one came by then."""
    interrupt, found = self.shared.interrupt, None
    if self._evaluates(due) and not stop:
      found = interrupt.attempt(lambda: self.evaluator.evaluate(self.state))
    if found is not None:
      self._measured(found, seconds)
      self.bar.log(self.step, None, found)
    if due["checkpoint"] or (found and self.config.best_metric):
      self.saver.save(self.state)
    if due["sample"] and not stop:
      interrupt.attempt(self._draw)
    stop = stop or interrupt.heard()
    if stop:
      self.saver.save(self.state)
    return stop

  def _measured(self, found: dict[str, float], seconds: float) -> None:
    self.saver.rate(self.step, found)
    self.shared.log.write(self.stage.name, self.step, seconds, None, found)

  def _draw(self) -> None:
    self.evaluator.write_extra(self.shared.desk, self.state)
    self.evaluator.write_samples(self.shared.desk, self.state)  # the last, see samples.is_drawn


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
