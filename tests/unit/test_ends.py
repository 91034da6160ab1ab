"""How a run ends: full disks, signals, a second run in its folder; and what it owes is made up."""

import errno
import importlib
import io
import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm import core, errors, evaluation, feed, job, loop
from gm.interrupt import Interrupt, Stopped
from gm.methods import gan
from gm.workdir import curves, files, lock, log

KEYS = {"num_devices": 1, "metrics": (), "num_steps": 6, "log_every": 2, "checkpoint_every": 2}
KEYS |= {"sample_every": 2, "eval_every": 0, "batch_size": 50}


def stages(config, info):
  """A method that is compiled in no time: an image goes to the mean of all."""

  def init(key, batch, prev):
    return core.State(jnp.zeros((), jnp.int32), {"w": jax.random.normal(key, (28, 28, 1))}, {})

  def step(state, batch, key):
    w = state.params["w"]
    way = batch["image"].mean(0) - w + 0.1 * jax.random.normal(key, w.shape)
    state = state.replace(step=state.step + 1, params={"w": w + 0.1 * way})
    return state, {"loss_w": jnp.square(way).mean()}

  def sample(state, batch, key):
    return {"image": jax.random.normal(key, batch["image"].shape) + state.params["w"]}

  def evaluate(state, batch, key):
    return {"mse": jnp.square(batch["image"] - state.params["w"]).mean()}

  def show(state, batch, key):
    return {"mean": state.params["w"][None]}

  return [core.Stage("train", config.num_steps, init, step, sample, evaluate, show)]


@pytest.fixture(autouse=True, scope="module")
def tiny():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(gan, "stages", stages)
    yield


@pytest.fixture(autouse=True)
def no_curves(request, monkeypatch):
  if "full_disk" not in request.node.name:  # they take as long as all else
    monkeypatch.setattr(curves, "draw", lambda records: None)


def config_of(**changes):
  config = importlib.import_module("configs.gan").get_config("test")
  config.update_from_flattened_dict({**KEYS, **changes})
  return config


def last_state(workdir, config=None):
  made = job.prepare(config or config_of())
  return job.restore(made, str(workdir), len(made.stages) - 1)


def pictures(workdir):
  return {p.name: p.read_bytes() for p in (workdir / "samples").iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A run that nothing disturbs."""
  workdir = tmp_path_factory.mktemp("whole")
  loop.train(config_of(), str(workdir))
  return workdir


def same(whole, workdir):
  jax.tree.map(np.testing.assert_array_equal, last_state(whole), last_state(workdir))
  assert pictures(whole) == pictures(workdir)
  assert not list(workdir.rglob(".*.tmp"))


class Full(io.RawIOBase):
  """A file on a disk that has no room."""

  def write(self, data):
    raise OSError(errno.ENOSPC, "No space left on device")


def full_for(monkeypatch, name):
  """Writes to files whose path has `name` in it fail from now on."""

  def opened(path, mode="r", **options):
    return Full() if name in str(path) and mode == "wb" else open(path, mode, **options)

  monkeypatch.setattr(files, "open", opened, raising=False)


EVERY = ("config.json", "train_00000002_mean", "train_00000004.png", "train.gif")
EVERY = (*EVERY, "eval.json", "curves.png", "report.html")


def test_a_full_disk_is_named_whatever_was_written_and_costs_nothing(
  whole, tmp_path, monkeypatch, capfd
):
  """One kind of file after the other fails in the same run, which then finds room again."""
  for name in EVERY:
    with monkeypatch.context() as patch:
      full_for(patch, name)
      with pytest.raises(errors.UserError, match=rf"write \S*{name}\S*: No space left.*free some"):
        loop.train(config_of(), str(tmp_path))
  with monkeypatch.context() as patch:  # the cause is told, though the report fails as well
    full_for(patch, "eport.html")
    patch.setattr(evaluation.Evaluator, "finish", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      loop.train(config_of(), str(tmp_path))
  loop.train(config_of(), str(tmp_path))
  same(whole, tmp_path)


def test_events_and_the_log_say_that_the_disk_is_full(whole, tmp_path, monkeypatch):
  def fail(*_):
    raise OSError(errno.ENOSPC, "No space left on device")

  for owner, name, said in (
    (log.Log, "_append", "metrics.jsonl"),
    (log._Events, "flush", "events.out.tfevents"),
  ):
    with monkeypatch.context() as patch:
      patch.setattr(owner, name, fail)
      with pytest.raises(errors.UserError, match=rf"write \S*{said}: No space left"):
        loop.train(config_of(), str(tmp_path))
    assert int(last_state(tmp_path).step) in (2, 4)  # what was trained has been saved
  loop.train(config_of(), str(tmp_path))
  same(whole, tmp_path)


def test_what_a_run_owes_is_made_up_for(whole, tmp_path):
  """It ended after a checkpoint, before the pictures of it, or the film."""
  loop.train(config_of(num_steps=4), str(tmp_path))
  for path in (tmp_path / "samples").glob("train_00000004.png"):
    path.unlink()
  loop.train(config_of(), str(tmp_path))
  same(whole, tmp_path)
  for lost in ("train_00000006.png", "train.gif"):
    (tmp_path / "samples" / lost).unlink()
    loop.train(config_of(), str(tmp_path))
    same(whole, tmp_path)


def test_nothing_is_drawn_again_that_is_there(whole, monkeypatch):
  def fail(*_):
    raise AssertionError

  before = {p: p.stat().st_mtime_ns for p in (whole / "samples").iterdir()}
  monkeypatch.setattr(evaluation.Evaluator, "write_samples", fail)
  loop.train(config_of(), str(whole))
  assert before == {p: p.stat().st_mtime_ns for p in (whole / "samples").iterdir()}


# --- signals


def during(monkeypatch, owner, name, step, signum=signal.SIGTERM):
  """A signal comes to this process while a method works on the state of a step."""
  true = getattr(owner, name)

  def method(self, *args):
    state = next(a for a in args if hasattr(a, "params"))
    if int(state.step) == step:
      os.kill(os.getpid(), signum)
    return true(self, *args)

  monkeypatch.setattr(owner, name, method)


BROKEN = {  # what a signal falls into, and the step that is saved
  "a picture": (evaluation.Evaluator, "write_extra", 4, "saved at step 4"),
  "the last picture": (evaluation.Evaluator, "write_samples", 6, "saved at step 6"),
  "an evaluation": (evaluation.Evaluator, "evaluate", 4, "saved at step 4"),
  "the last evaluation": (evaluation.Evaluator, "evaluate", 6, "trained and saved"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_signal_ends_what_can_be_done_again(case, whole, tmp_path, monkeypatch):
  owner, name, step, said = BROKEN[case]
  config = config_of(eval_every=2, checkpoint_every=0)
  with monkeypatch.context() as patch:
    during(patch, owner, name, step)
    with pytest.raises(Stopped, match=rf"{said}.*the same command") as stopped:
      loop.train(config, str(tmp_path))
  assert stopped.value.signum == signal.SIGTERM
  assert int(last_state(tmp_path).step) == step
  assert (tmp_path / "report.html").exists()
  assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
  loop.train(config, str(tmp_path))
  same(whole, tmp_path)
  records = log.read_metrics(tmp_path)
  assert [r["step"] for r in records if "examples_per_second" not in r] == [2, 4]
  assert (tmp_path / "eval.json").exists()


def test_the_best_stays_though_it_was_measured_after_a_signal_or_before_a_new_start(
  tmp_path, monkeypatch
):
  """Of steps 1, 2, ... 6 the second is the best, and its evaluation is broken off by a signal."""
  config = config_of(eval_every=1, checkpoint_every=1, keep_checkpoints=1, best_metric="-mse")
  score = {1: 3.0, 2: 1.0}
  found = lambda self, state: {"mse": score.get(int(state.step), 2.0)}
  monkeypatch.setattr(evaluation.Evaluator, "evaluate", found)
  folder = tmp_path / "checkpoints/00-train"
  kept = lambda: sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())
  with monkeypatch.context() as patch:
    during(patch, evaluation.Evaluator, "evaluate", 2)
    with pytest.raises(Stopped):
      loop.train(config, str(tmp_path))
  assert kept() == [1, 2]  # nothing is known of the second yet
  with monkeypatch.context() as patch:
    during(patch, evaluation.Evaluator, "write_samples", 4)
    with pytest.raises(Stopped):
      loop.train(config, str(tmp_path))
  assert kept() == [2, 4]
  loop.train(config, str(tmp_path))
  assert kept() == [2, 6]


def test_a_signal_that_came_before_is_heard_before_the_work_begins():
  with Interrupt() as interrupt:
    interrupt.holds = True
    os.kill(os.getpid(), signal.SIGINT)
    assert interrupt.attempt(lambda: 1 / 0) is None
    with pytest.raises(Stopped, match="so be it"):
      interrupt.check("so be it")
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)
  with Interrupt() as interrupt:
    assert interrupt.attempt(lambda: 7) == 7
    interrupt.check("nothing came")


# --- two runs in one folder


def test_a_workdir_is_locked_while_it_is_trained_in_and_no_longer(tmp_path):
  told = rf"trained by process {os.getpid()} on \S+: wait"
  with lock.Lock(tmp_path / "new") as held:  # a folder that is yet to be made
    (tmp_path / "new").mkdir()
    held.take()
    with pytest.raises(errors.UserError, match=told):
      lock.Lock(tmp_path / "new").take()
  with lock.Lock(tmp_path):
    with pytest.raises(errors.UserError, match=told):
      loop.train(config_of(), str(tmp_path))
    assert {p.name for p in tmp_path.iterdir()} == {".lock", "new"}
  old, new = tmp_path / ".old.png.7.tmp", tmp_path / ".new.png.8.tmp"
  for path in (old, new):
    path.write_bytes(b"half")
  os.utime(old, (1, 1))
  with lock.Lock(tmp_path):
    pass
  assert not old.exists() and new.exists()


def test_a_file_may_be_written_by_two_at_once(tmp_path, monkeypatch):
  """Of a report that an evaluation beside the training writes too, one is there, whole."""
  barrier, replace = threading.Barrier(2), os.replace
  monkeypatch.setattr(files.os, "getpid", threading.get_ident)  # as if they were two processes

  def together(*args):
    barrier.wait(10)
    replace(*args)

  monkeypatch.setattr(files.os, "replace", together)
  write = lambda text: files.write_bytes(tmp_path / "report.html", text)
  with ThreadPoolExecutor(2) as pool:
    list(pool.map(write, (b"a" * 9, b"b" * 9)))
  assert (tmp_path / "report.html").read_bytes() in (b"a" * 9, b"b" * 9)
  assert len(list(tmp_path.iterdir())) == 1


# --- logs and calls


def test_evaluations_between_two_logs_have_no_speed(tmp_path):
  loop.train(config_of(eval_every=1, log_every=2, num_steps=4), str(tmp_path))
  lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  found = [(r["step"], r.get("examples_per_second", 0) > 0) for r in lines]
  assert found == [(1, False), (2, True), (2, False), (3, False), (4, True)]
  assert not any(r.get("examples_per_second") == 0 for r in lines)


def test_strange_lines_in_the_log_do_not_keep_a_run_from_going_on(tmp_path):
  loop.train(config_of(num_steps=4), str(tmp_path))
  path = tmp_path / "metrics.jsonl"
  strange = ['{"stage": "train", "step": 4}', '{"stage": "train", "step": null, "loss_g": 1.0}']
  strange += ['{"stage": "train", "step": 3, "loss_g": "much"}', '{"stage": 3, "step": 1}', "[7]"]
  strange += ['{"stage": "train", "step": 4, "seconds": null}', "7", '"stage step"']
  path.write_text(path.read_text() + "\n".join(strange) + "\n")
  before = path.read_text().splitlines()[1]
  loop.train(config_of(), str(tmp_path))
  records = log.read_metrics(tmp_path)
  assert [r["step"] for r in records] == [2, 4, 4, 6]
  assert records[-1]["seconds"] > json.loads(before)["seconds"]


def test_a_call_is_short_however_many_steps_are_asked_for(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(feed.time, "perf_counter", lambda: now[0])
  ready = jnp.zeros(())
  for each, expected in ((0.1, 10), (3.0, 1), (1e-9, 65_536)):
    pace = feed.Pace(65_536, 65_536)
    for _ in range(30):
      now[0] += each * pace.steps
      pace.wait(ready, pace.steps)
    assert expected * 0.9 - 1 <= pace.steps <= expected, each
