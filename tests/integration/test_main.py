"""main.py as a process: the contract that people and other tools rely on."""

import ast
import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, Blind

SHORT = ("--config.num_steps=40", "--config.log_every=10", "--config.checkpoint_every=10")
SHORT = (*SHORT, "--config.sample_every=20", "--config.steps_per_call=3")


def command(*flags, config="configs/gan.py:test"):
  return [sys.executable, "main.py", f"--config={config}", *map(str, flags)]


def start(cmd, **env):
  environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", **env}
  return subprocess.Popen(
    cmd, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
  )


def run(*flags, config="configs/gan.py:test", **env):
  process = start(command(*flags, config=config), **env)
  out, err = process.communicate(timeout=300)
  return process.returncode, out, err


def arrays(workdir, step=40):
  """All arrays of a checkpoint, read through the project's own restore."""
  from ml_collections import ConfigDict

  from gm import job
  from gm.workdir import checkpoint, record

  config = ConfigDict(record.read_config(workdir)["config"])
  made = job.prepare(config)
  manager = checkpoint.open_manager(checkpoint.stage_dir(workdir, 0, made.stages[0].name))
  state = checkpoint.restore(manager, made.templates[0], step)
  manager.close()
  import jax

  return [np.asarray(x) for x in jax.tree.leaves(state)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """An uninterrupted run of 40 steps."""
  workdir = tmp_path_factory.mktemp("run") / "a"
  status, out, err = run(f"--workdir={workdir}", *SHORT)
  assert status == 0, out + err
  return workdir, out


def test_workdir_holds_what_is_promised(finished):
  workdir, out = finished
  for name in ("config.json", "metrics.jsonl", "curves.png", "eval.json", "report.html"):
    assert (workdir / name).stat().st_size > 0, name
  assert list(workdir.glob("events.out*"))
  assert {p.name for p in (workdir / "samples").glob("*.png")} >= {
    "train_00000020.png",
    "train_00000040.png",
  }
  assert (workdir / "samples/train.gif").exists()
  steps = [int(p.name) for p in (workdir / "checkpoints/00-train").iterdir() if p.name.isdigit()]
  assert 40 in steps and len(steps) == 3
  records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  assert [r["step"] for r in records] == [10, 20, 30, 40]
  for key in ("stage", "seconds", "examples_per_second", "loss_d", "loss_g", "gradnorm_g"):
    assert key in records[-1], key
  assert all(a["seconds"] < b["seconds"] for a, b in itertools.pairwise(records))
  protocol = json.loads((workdir / "eval.json").read_text())["protocol"]
  assert (
    protocol["num_samples"] == 16
    and protocol["seed"] == 0
    and "classifier" in protocol["feature_net"]
  )
  assert re.search(r"train 10/40 .*steps/s.*left", out)


def test_killed_at_any_moment_and_resumed_is_bit_identical(finished, tmp_path):
  """SIGKILL as soon as the first checkpoint stands, again a little later, then to the end."""
  workdir = tmp_path / "b"
  cmd = command(f"--workdir={workdir}", *SHORT)
  folder = workdir / "checkpoints/00-train"
  for wait in (0.0, 0.05):
    process = start(cmd)
    deadline = time.time() + 120
    known = set(folder.glob("[0-9]*"))
    while not set(folder.glob("[0-9]*")) - known and process.poll() is None:
      assert time.time() < deadline
      time.sleep(0.002)
    time.sleep(wait)
    process.send_signal(signal.SIGKILL)
    process.communicate()
  status, out, err = run(f"--workdir={workdir}", *SHORT)
  assert status == 0, out + err
  for a, b in zip(arrays(finished[0]), arrays(workdir), strict=True):
    np.testing.assert_array_equal(a, b)
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(line)["step"] for line in lines] == [10, 20, 30, 40]
  drawn = lambda folder: {p.name: p.read_bytes() for p in (folder / "samples").iterdir()}
  assert drawn(workdir) == drawn(finished[0])


def test_result_does_not_depend_on_steps_per_call(finished, tmp_path):
  status, out, err = run(f"--workdir={tmp_path}", *SHORT, "--config.steps_per_call=1")
  assert status == 0, out + err
  for a, b in zip(arrays(finished[0]), arrays(tmp_path), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_first_and_says_how_to_resume(tmp_path, signum):
  long = (
    "--config.num_steps=1000000",
    "--config.log_every=50",
    "--config.checkpoint_every=1000000",
  )
  process = start(command(f"--workdir={tmp_path}", *long, "--config.sample_every=0"))
  for line in process.stdout:
    if "steps/s" in line:
      break
  process.send_signal(signum)
  out, err = process.communicate(timeout=120)
  assert process.returncode == 128 + signum, out + err
  step = int(re.search(r"saved at step (\d+); the same command resumes", out)[1])
  assert (tmp_path / "checkpoints/00-train" / str(step)).is_dir()
  assert "Traceback" not in err
  status, out, err = run(f"--workdir={tmp_path}", *long[1:], f"--config.num_steps={step + 10}")
  assert status == 0 and f"resumed at step {step}" in out, out + err


ODD = "a[b] *?%20 größe"  # for a glob, a shell or an address it would be something else


def test_damaged_checkpoint_is_skipped(finished, tmp_path):
  """Its config.json was lost too."""
  workdir = tmp_path / ODD
  shutil.copytree(finished[0], workdir)
  newest = workdir / "checkpoints/00-train/40"
  files = sorted(newest.rglob("ocdbt.process_0/d/*"), key=lambda p: p.stat().st_size)
  content = bytearray(files[-1].read_bytes())
  content[len(content) // 2] ^= 0xFF
  files[-1].write_bytes(content)
  (workdir / "config.json").unlink()
  status, out, err = run(f"--workdir={workdir}", *SHORT)
  assert status == 0, out + err
  assert "resumed at step 30" in out and "config is taken from the checkpoints" in out, out
  (line,) = err.splitlines()
  assert re.search(r"40 skipped", line), err
  assert (workdir / "config.json").exists()
  for a, b in zip(arrays(finished[0]), arrays(workdir), strict=True):
    np.testing.assert_array_equal(a, b)


def test_eval_and_sample_need_only_the_workdir(finished, tmp_path):
  workdir = tmp_path / ODD  # in the home folder, which the shell does not say in --flag=~/...
  shutil.copytree(finished[0], workdir)
  before = json.loads((workdir / "eval.json").read_text())
  (workdir / "eval.json").unlink()
  sample = ("--mode=sample", "--num_samples=20")
  for mode in (("--mode=eval",), sample, (*sample, "--format=npz", "--out=~/out")):
    cmd = [sys.executable, "main.py", f"--workdir=~/{ODD}", *mode]
    _, err = start(cmd, HOME=str(tmp_path)).communicate(timeout=200)
    assert "Traceback" not in err, err
  again = json.loads((workdir / "eval.json").read_text())
  assert again["metrics"] == before["metrics"]
  assert (workdir / "samples/train_00000040_seeds0-19.png").exists()
  drawn = np.load(tmp_path / "out/train_00000040_seeds0-19.npz")
  assert drawn["image"].shape == (20, 28, 28, 1) and drawn["seed"].tolist() == list(range(20))
  assert (workdir / "samples/train_00000040_interpolation.png").exists()


def test_inspect_needs_nothing_and_ends_in_json(tmp_path):
  status, out, err = run("--mode=inspect", "--json", config="configs/gan.py:paper")
  assert status == 0, err
  facts = json.loads(out.splitlines()[-1])
  assert facts["method"] == "gan"
  assert facts["stages"][0]["params"] == {"g": 2_503_984, "d": 1_231_441}
  assert facts["stages"][0]["outputs"] == {"image": [100, 28, 28, 1]}
  assert facts["stages"][0]["flops_per_step"] > 1e9


@pytest.mark.parametrize("size", ["20,36", "(20, 36)"])
def test_images_that_are_not_square_are_a_flag_away(size):
  status, out, err = run(
    f"--config.data.image_size={size}", "--mode=inspect", "--json", config="configs/cgan.py:test"
  )
  assert status == 0, err
  image = json.loads(out.splitlines()[-1])["stages"][0]["outputs"]["image"]
  assert image == [8, 20, 36, 1]


def test_keys_of_a_set_of_ones_own_are_flags():
  """A mistyped key is an error, so those that a source may read are in the common config."""
  keys = {"image_key": "photo", "label_key": "kind", "train_split": "train[:90%]", "memory_mb": 0}
  keys |= {"test_split": "train[90%:]", "source": "tfds", "name": "mine", "channels": 1}
  keys |= {"num_train": 10, "image_size": 28, "num_classes": 3}
  flags = [f"--config.data.{k}={v}" for k, v in keys.items()]
  status, out, err = run("--mode=inspect", *flags, config="configs/cgan.py:test")
  assert status == 0, out + err


SQUARE = ("--config.data.image_size=28", "--config.data.channels=1")
MISTYPED = {  # flags -> what the one line says; none of them waits for jax
  ("--config=configs/nonsense.py", "--workdir=x"): "no config file 'configs/nonsense.py'.* gan.py",
  ("--config", "configs/nonsense.py", "--workdir=x"): "no config file 'configs/nonsense.py'",
  ("--config=configs/gan.py:nosuch", "--workdir=x"): (
    "error: no variant 'nosuch'; this config has small, ring, .*, test$"
  ),
  ("--config", "configs/sngan.py:nosuch", "--workdir=x"): "error: no variant 'nosuch'; this config",
  ("--config=README.md", "--workdir=x"): "README.md",
  ("--config=configs/gan.py", "--workdir=x", "--mod=train"): "'mod'",
  ("--config=configs/gan.py", "--workdir=x", "--mode=fly"): "--mode=fly.*inspect",
  ("--config=configs/gan.py",): "--workdir=DIR",
  ("--workdir=x",): "--config=configs/NAME.py",
  ("--config=configs/gan.py", "--workdir=x", "more"): "'more' is not a flag",
  ("--config=configs/gan.py", "--workdir=x", "--seeds=0-3"): "--seeds belongs to --mode=sample",
  ("--config=configs/gan.py", "--workdir=x", "--layers"): "--layers belongs to --mode=inspect",
  ("--workdir=x", "--mode=sample", "--seeds=1", "--num_samples=3"): "--num_samples exclude",
  ("--workdir=x", "--mode=sample", "--frames=3"): "--frames belongs to --walk",
  ("--config=configs/gan.py", "--workdir=x", "--target=3"): "--target belongs to --mode=sample",
  ("--workdir=x", "--mode=sample", "--walk=1,2", "--input=a.png"): "--walk and --input exclude",
  ("--workdir=x", "--mode=sample", "--complete=b.png", "--input=a.png"): "--complete and --input",
  **{
    ("--config=configs/gan.py", "--workdir=x", flag): said
    for flag, said in {
      "--config.learning_rate=1": "--config.learning_rate is no key",
      "--config.model.zdim=3": "--config.model.zdim is no key .* did you mean z_dim",
      "--config.model.z_dim.x=3": "--config.model.z_dim.x is no key",
      "--config.nolr": "--config.nolr is no key",
      "--config.model=3": "--config.model=3",
      "--config.batch_size=many": "--config.batch_size=many",
      "--config.batch_size=1.5": "--config.batch_size=1.5",
      "--config.lr=abc": "--config.lr=abc",
      "--config.lr=": "--config.lr=",
      "--config.seed": "--config.seed",
      "--config.model.g_bias_from_data=3": "--config.model.g_bias_from_data=3",
      "--config.model.g_widths=(1,": "--config.model.g_widths=",
    }.items()
  },
}
FORKED = """
import ast, os, runpy, sys, traceback
from ml_collections import config_flags
for argv in ast.literal_eval(sys.stdin.read()):
  print("----", flush=True)
  if not os.fork():
    os.dup2(1, 2)
    sys.argv, status = ["main.py", *argv], 0
    try:
      runpy.run_path("main.py", run_name="__main__")
    except SystemExit as end:
      status = end.code
    except BaseException:
      traceback.print_exc()
    print(status, "jax" in sys.modules, flush=True)
    os._exit(0)
  os.wait()
"""


def test_what_is_mistyped_ends_in_one_line():
  """Each in a process of its own, forked from one that has read the libraries."""
  process = subprocess.run(
    [sys.executable, "-c", FORKED],
    input=repr(list(MISTYPED)),
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=100,
  )
  answers = process.stdout.split("----\n")[1:]
  assert len(answers) == len(MISTYPED), process.stdout + process.stderr
  for (flags, said), answer in zip(MISTYPED.items(), answers):
    line, *rest = answer.splitlines()
    assert line.startswith("error: ") and re.search(said, line), (flags, answer)
    assert rest == ["2 False"], (flags, answer)


FAILING = """
import runpy, sys, types
import gm
for name in ("errors", "programs", "sharding", "loop"):
  module = sys.modules["gm." + name] = types.ModuleType(name)
  setattr(gm, name, module)
def fail(*args, **more):
  raise {error}
def nothing(*args, **more):
  return types.SimpleNamespace(read_ahead=nothing)
gm.sharding.start, gm.programs.Shelf, gm.loop.train = nothing, nothing, nothing
gm.errors.UserError, gm.loop.Stopped = type("UserError", (Exception,), {{}}), OSError
{where} = fail
sys.argv = ["main.py", "--config=configs/gan.py:test", "--workdir=x", *{flags}]
runpy.run_path("main.py", run_name="__main__")
"""
NO_MEMORY = "RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\\nAnd so on."
SAID = {
  f"RuntimeError('{NO_MEMORY}')": (
    1,
    r"error: out of memory \(.* 9 bytes\.\): lower --config\.b.*",
  ),
  f"gm.errors.UserError('{NO_MEMORY}')": (1, r"error: out of memory .*9 bytes.*model"),
  "MemoryError()": (1, r"error: out of memory .*"),
  "gm.errors.UserError('a\\nb')": (2, "error: a b"),
  "FloatingPointError('nan at 3')": (1, "error: nan at 3"),
  "IndexError('of\\nrange')": (1, r"error: IndexError: of range \(--traceback shows where\)"),
  "KeyboardInterrupt": (130, "interrupted"),
}


def failing(error, where="gm.loop.train", flags=()):
  code = FAILING.format(error=error, where=where, flags=list(flags))
  return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("error", SAID)
def test_whatever_goes_wrong_ends_in_one_line(error):
  process, (status, said) = failing(error), SAID[error]
  assert process.returncode == status, process.stderr
  (line,) = process.stderr.splitlines()
  assert re.fullmatch(said, line)


IN_C = "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"  # as the compiler: no handler is called
STUCK = {  # signal -> in what it comes, and where that is called
  "C code": (signal.SIGTERM, IN_C, "gm.loop.train"),
  "the start": (signal.SIGINT, "time.sleep(60)", "gm.programs.Shelf"),
  # the garbage collector calls one of jax; what a handler raises there is swallowed
  "a callback": (
    signal.SIGINT,
    "time.sleep(60)",
    "class C: pass\ngm.loop.train = lambda *args, **more: C() and None\nC.__del__",
  ),
}


@pytest.mark.parametrize("case", STUCK)
def test_a_signal_ends_at_once_what_has_nothing_to_save(case):
  signum, work, where = STUCK[case]
  code = FAILING.format(error=f"SystemExit(print(7, flush=True) or {work})", where=where, flags=[])
  process = start([sys.executable, "-c", f"import hashlib, time\n{code}"])
  assert process.stdout.readline() == "7\n", process.communicate()
  process.send_signal(signum)
  _, err = process.communicate(timeout=20)
  assert (process.returncode, err) == (128 + signum, "interrupted\n")


def test_a_second_ctrl_c_does_not_wait(tmp_path):
  flags = ("--config.num_steps=1000000", "--config.log_every=50", "--config.checkpoint_every=0")
  process = start(command(f"--workdir={tmp_path}", *flags, "--config.sample_every=0"))
  for said in ("steps/s", "stopping"):  # before the first save, which imports what it needs
    while said not in (line := process.stdout.readline()):
      assert line, process.communicate()
    process.send_signal(signal.SIGINT)
  _, err = process.communicate(timeout=60)
  assert process.returncode == 130 and err.startswith("interrupted before"), err
  assert err.count("\n") == 1


def test_a_full_disk_keeps_the_checkpoint_before(finished, tmp_path):
  """No file may be as large as a network's largest array: step 20 stays, step 30 finds no room."""
  workdir = tmp_path / "f"
  shutil.copytree(finished[0], workdir, ignore=lambda folder, names: {"30", "40"} & set(names))
  size = (
    max(x.nbytes for x in arrays(workdir, 20)) // 2
  )  # files hold whole ones, and how many varies
  cmd = command(f"--workdir={workdir}", *SHORT, "--config.sample_every=0")
  limited = ["sh", "-c", f'ulimit -f {size // 512}; exec "$@"', "sh", *cmd]
  out, err = (process := start(limited)).communicate(timeout=300)
  assert process.returncode == 2 and "resumed at step 20" in out, out + err
  assert err.count("\n") == 1, err
  assert re.match(r"error: cannot write \S+/checkpoints/00-train: File too large; give", err)
  status, out, err = run(f"--workdir={workdir}", *SHORT)
  assert status == 0 and "resumed at step 20" in out, out + err
  for a, b in zip(arrays(finished[0]), arrays(workdir), strict=True):
    np.testing.assert_array_equal(a, b)


class Reading(Blind):
  """What `--mode=eval` asks of an evaluator, without the numbers: so states are read often."""

  def __init__(self, job, index):
    self.job, self.stage, self.source = job, job.stages[index], None


def test_a_training_is_read_beside_it_and_nobody_else_trains_there(finished, tmp_path, monkeypatch):
  """Evaluations take checkpoints that are deleted as they read; the training ends as alone."""
  from ml_collections import ConfigDict

  from gm import errors, evaluation, loop
  from gm.workdir import curves, record

  monkeypatch.setattr(evaluation, "Evaluator", Reading)
  monkeypatch.setattr(curves, "draw", lambda records: None)
  flags = ("--config.num_steps=40", "--config.metrics=()", "--config.sample_every=0")
  flags = (*flags, "--config.keep_checkpoints=1", "--config.checkpoint_every=1")
  evaluated = 0
  process = start(command(f"--workdir={tmp_path}", *flags))
  while not list(tmp_path.glob("checkpoints/00-train/[0-9]*[0-9]")):
    assert process.poll() is None, process.communicate()
    time.sleep(0.01)
  config = ConfigDict(record.read_config(tmp_path)["config"])
  with pytest.raises(errors.UserError, match=rf"trained by process {process.pid} on"):
    loop.train(config, str(tmp_path))
  while process.poll() is None:
    evaluation.run_eval(str(tmp_path), None)
    evaluated += 1
    time.sleep(0.1)
  out, err = process.communicate()
  assert process.returncode == 0 and not err, out + err
  assert evaluated > 2
  for a, b in zip(arrays(tmp_path), arrays(finished[0]), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("error", ["KeyboardInterrupt", "IndexError('7')"])
def test_so_does_what_goes_wrong_before_training(error):
  process = failing(error, "gm.programs.Shelf")
  assert process.returncode == SAID.get(error, (1,))[0] and process.stderr.count("\n") == 1


def test_a_traceback_is_a_flag_away():
  process = failing("IndexError('7')", flags=["--traceback"])
  assert process.returncode == 1 and "in fail" in process.stderr


BAD = {
  "unwritable": (["--workdir=/proc/nowhere"], "configs/gan.py:test", "/proc/nowhere"),
  "data": (["--workdir={}", "--config.data.name=mnist10"], "configs/gan.py:test", "mnist10k"),
  "source": (["--workdir={}", "--config.data.source=cloud"], "configs/gan.py:test", "embedded"),
  "folder": (
    ["--workdir={}", "--config.data.source=folder", "--config.data.dir=/nowhere", *SQUARE],
    "configs/gan.py:test",
    "/nowhere",
  ),
  "batch": (
    ["--workdir={}", "--config.batch_size=7", "--config.cpu_devices=2"],
    "configs/gan.py:test",
    "batch_size",
  ),
  "augment": (["--workdir={}", "--config.model.augment=color"], "configs/gan.py:ring", "augment"),
  "size": (["--workdir={}", "--config.data.image_size=20x36"], "configs/gan.py:test", "image_size"),
  "layer": (["--workdir={}", "--config.model.g_norm=bach"], "configs/cgan.py:test", "g_norm"),
  "number": (["--workdir={}", "--config.model.z_dim=-1"], "configs/gan.py:test", "z_dim=-1"),
  "devices": (["--workdir={}", "--config.cpu_devices=999999"], "configs/gan.py:test", "999999"),
  "seeds": (
    ["--workdir={}", "--mode=sample", "--seeds=3-1"],
    "configs/gan.py:test",
    "'3-1' is no seed",
  ),
  "metric": (["--workdir={}", "--config.metrics=('nonsense',)"], "configs/gan.py:test", "nonsense"),
}


READY = """
import ast, os, runpy, sys, tempfile, traceback, warnings
import gm.evaluation, gm.loop, gm.sampling
warnings.filterwarnings("ignore", message="os.fork")  # nothing of jax has begun yet
for argv in ast.literal_eval(sys.stdin.read()):
  said = tempfile.TemporaryFile()
  if not os.fork():
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1), os.dup2(said.fileno(), 2)
    sys.argv, status = ["main.py", *argv], 0
    try:
      runpy.run_path("main.py", run_name="__main__")
    except SystemExit as end:
      status = end.code
    except BaseException:
      traceback.print_exc()
    sys.stderr.flush()
    os._exit(status)
  status = os.waitstatus_to_exitcode(os.wait()[1])
  said.seek(0)
  print((status, said.read().decode()), flush=True)
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
  """What each case ends with, in a process of its own, forked from one that has the libraries."""
  argvs = []
  for case, (flags, config, _) in BAD.items():
    workdir = tmp_path_factory.mktemp("bad") / case
    argvs.append([f"--config={config}", *(flag.format(workdir) for flag in flags)])
  process = subprocess.run(
    [sys.executable, "-c", READY],
    input=repr(argvs),
    cwd=ROOT,
    env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert process.returncode == 0, process.stderr
  return dict(zip(BAD, map(ast.literal_eval, process.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_in_one_line(case, refusals):
  status, err = refusals[case]
  assert status == 2, err
  lines = [x for x in err.splitlines() if x.strip()]
  assert len(lines) == 1 and lines[0].startswith("error: ") and BAD[case][2] in lines[0], err


def test_workdir_of_another_config_is_refused(finished):
  before = sorted((p, p.stat().st_mtime_ns) for p in finished[0].rglob("*"))
  status, _, err = run(f"--workdir={finished[0]}", *SHORT, "--config.lr=0.25")
  assert status == 2 and "lr" in err and "0.25" in err and len(err.strip().splitlines()) == 1, err
  assert before == sorted((p, p.stat().st_mtime_ns) for p in finished[0].rglob("*"))


def test_divergence_stops_with_step_and_metric_and_keeps_the_checkpoint(tmp_path):
  status, out, err = run(
    f"--workdir={tmp_path}", *SHORT, "--config.model.loss=minimax", "--config.lr=1e38"
  )
  assert status == 1, out + err
  assert re.search(r"error: (loss|gradnorm)_\w+ is not finite at step \d+", err), err
  assert "Traceback" not in err


def test_tensorflow_is_not_imported():
  code = "import sys, gm.loop, gm.evaluation, gm.inspection; print('tensorflow' in sys.modules)"
  out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  assert out.stdout.strip() == "False", out.stderr


def test_readme_names_every_workdir_file():
  text = pathlib.Path(ROOT / "README.md").read_text()
  for name in ("metrics.jsonl", "curves.png", "eval.json", "report.html", "checkpoints/"):
    assert name in text


JOB = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
NO_JOB = {  # values of the three -> the variable that is named
  ("", "2", "0"): "JAX_COORDINATOR_ADDRESS= is not possible",
  ("localhost", "2", "0"): "JAX_COORDINATOR_ADDRESS=localhost is not possible",
  ("localhost:0", "2", "0"): "JAX_COORDINATOR_ADDRESS=localhost:0 is not possible",
  ("localhost:9", "two", "0"): "JAX_NUM_PROCESSES=two is not possible",
  ("localhost:9", "0", "0"): "JAX_NUM_PROCESSES=0 is not possible",
  ("localhost:9", "2", "2"): "JAX_PROCESS_ID=2 is not possible",
}


def test_variables_of_a_job_are_named(monkeypatch):
  from gm import processes

  for values, said in NO_JOB.items():
    for name, value in zip(JOB, values):
      monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=said):
      processes.Job(300, False)
  for name in JOB:
    monkeypatch.delenv(name)
  status, out, err = run("--workdir=x", "--distributed")
  assert status == 2 and err.count("\n") == 1, out + err
  assert re.search(rf"{JOB[0]} is not set.*{JOB[1]}.*{JOB[2]} is not set.*example {JOB[0]}=10", err)


def test_a_partner_that_does_not_start_is_not_waited_for_for_ever():
  env = dict(zip(JOB, (f"127.0.0.1:{free_port()}", "2", "1")))
  status, out, err = run("--workdir=x", "--distributed", "--wait=6", **env)
  assert status == 1 and err.startswith("error: waited in vain for process 0"), out + err
  assert err.count("\n") == 1 and "waiting up to 6 s for process 0 of this job at 127" in out


def free_port():
  import socket

  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


# without what would make the order of rows matter
TOGETHER = (*SHORT, "--config.model.g_norm=none", "--config.model.d_dropout=(0.0, 0.0)")


def start_two(workdir, *flags):
  """Two processes with one device each, on this machine."""
  address = f"127.0.0.1:{free_port()}"
  return [
    start(
      command(f"--workdir={workdir}", "--distributed", *TOGETHER, *flags),
      JAX_COORDINATOR_ADDRESS=address,
      JAX_NUM_PROCESSES="2",
      JAX_PROCESS_ID=str(i),
      JAX_CPU_COLLECTIVES_IMPLEMENTATION="gloo",
    )
    for i in range(2)
  ]


def end_of(jobs):
  """Waits for all; returns what process 0 said."""
  said = [job.communicate(timeout=300) for job in jobs]
  assert [job.returncode for job in jobs] == [0, 0], said
  return said[0][0]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
  """An uninterrupted run of two processes."""
  workdir = tmp_path_factory.mktemp("together") / "two"
  end_of(start_two(workdir))
  return workdir


def test_two_processes_of_one_job_do_what_one_does(two, tmp_path):
  """Two processes with one device each, against one process with two devices."""
  flags = (*TOGETHER, "--config.cpu_devices=2", "--config.num_steps=10")
  status, out, err = run(f"--workdir={tmp_path}", *flags)
  assert status == 0, out + err
  first = lambda workdir: json.loads((workdir / "metrics.jsonl").read_text().splitlines()[0])
  for key in ("step", "loss_d", "loss_g", "gradnorm_d", "gradnorm_g"):
    np.testing.assert_allclose(first(two)[key], first(tmp_path)[key], rtol=1e-3, err_msg=key)
  assert (two / "report.html").exists()


def test_two_processes_that_were_killed_and_resumed_are_bit_identical(two, tmp_path):
  """Process 0 after a save, with which jax's own service goes: the other would abort by itself,
  with pages of its own."""
  flags = ("--config.checkpoint_every=1", "--config.sample_every=0", "--config.keep_checkpoints=99")
  jobs = start_two(tmp_path, *flags)
  while not list(tmp_path.glob("checkpoints/00-train/[0-9]*[0-9]")):
    assert jobs[0].poll() is None, jobs[0].communicate()
    time.sleep(0.002)
  jobs[0].kill()
  _, err = jobs[1].communicate(timeout=100)
  assert jobs[1].returncode == 1 and err.count("\n") == 1, err
  assert err.startswith("error: another process of this job has ended"), err
  jobs[0].communicate()
  steps = [int(p.name) for p in tmp_path.glob("checkpoints/00-train/[0-9]*[0-9]")]
  assert max(steps) < 40
  out = end_of(start_two(tmp_path))
  assert re.search(r"resumed at step \d+", out), out
  for a, b in zip(arrays(two), arrays(tmp_path), strict=True):
    np.testing.assert_array_equal(a, b)
