"""Runs that are killed at random moments, again and again, end as one that was not.

python -m pytest -m learning tests/integration/test_kills.py: 20 kills of each method.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from conftest import ROOT
from ml_collections import ConfigDict

from gm import job
from gm.workdir import log, record

NUM_KILLS = 20
EARLY = 0.2  # share of kills that may fall before the first step
KEYS = {"num_steps": 60, "log_every": 5, "checkpoint_every": 10, "sample_every": 10}
KEYS |= {"eval_every": 20, "keep_checkpoints": 2}
RUNS = {  # one stage, several, and steps of several kinds
  "vae": {},
  "progan": {"model.stable_images": 160, "model.fade_images": 160, "num_steps": 60},
  "stylegan2": {"num_steps": 40},
}


def start(name, workdir):
  """The run as a process, and an event: it has logged a step."""
  flags = [f"--config.{k}={v}" for k, v in {**KEYS, **RUNS[name]}.items()]
  process = subprocess.Popen(
    [sys.executable, "main.py", f"--config=configs/{name}.py:test", f"--workdir={workdir}", *flags],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
  )
  stepped, said = threading.Event(), []

  def read():
    for line in process.stdout:
      said.append(line)
      if "steps/s" in line:
        stepped.set()
    stepped.set()

  threading.Thread(target=read, daemon=True).start()
  return process, stepped, said


def states(workdir):
  """All arrays of the last state of every stage."""
  made = job.prepare(ConfigDict(record.read_config(workdir)["config"]))
  found = [job.restore(made, str(workdir), i) for i in range(len(made.stages))]
  return [np.asarray(x) for x in jax.tree.leaves(found)]


def outcome(workdir):
  """What must not depend on kills: scalars of the log, the evaluation, names and bytes of files."""
  timed = ("seconds", "examples_per_second")
  lines = [{k: v for k, v in r.items() if k not in timed} for r in log.read_metrics(workdir)]
  pictures = {p.name: p.read_bytes() for p in sorted((workdir / "samples").iterdir())}
  metrics = json.loads((workdir / "eval.json").read_text())["metrics"]
  return {"log": lines, "metrics": metrics, "pictures": pictures}


@pytest.mark.learning
@pytest.mark.parametrize("name", RUNS)
def test_twenty_kills_change_nothing(name, tmp_path):
  whole, seed = tmp_path / "whole", random.randrange(2**32)
  for _ in range(2):  # the second finds its programs compiled
    shutil.rmtree(whole, ignore_errors=True)
    begun = time.perf_counter()
    process, stepped, said = start(name, whole)
    stepped.wait()
    first = time.perf_counter() - begun
    assert process.wait() == 0, "".join(said)
    seconds = time.perf_counter() - begun
  expected, arrays = outcome(whole), states(whole)
  assert len(expected["pictures"]) >= 5
  draw, kills, ended = random.Random(seed), [], 0
  while len(kills) < NUM_KILLS or ended < len(lives(kills)):
    workdir = tmp_path / f"life{ended}"
    process, stepped, said = start(name, workdir)
    if len(kills) < NUM_KILLS:
      if draw.random() < EARLY:
        time.sleep(draw.uniform(0, first))
      else:
        stepped.wait()
        time.sleep(draw.uniform(0, 1.1 * (seconds - first)))
    if len(kills) < NUM_KILLS and process.poll() is None:
      process.send_signal(signal.SIGKILL)
      process.wait()
      kills.append((ended, sum("steps/s" in line for line in said)))
      continue
    assert process.wait() == 0, (seed, "".join(said))
    assert outcome(workdir) == expected, (seed, kills)
    for a, b in zip(arrays, states(workdir), strict=True):
      np.testing.assert_array_equal(a, b, err_msg=f"{seed} {kills}")
    ended += 1
  print(f"{name}: seed {seed}, {len(kills)} kills in {ended} runs, (run, lines logged): {kills}")


def lives(kills):
  """The runs that were killed."""
  return {life for life, _ in kills}
