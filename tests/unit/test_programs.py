"""Programs on disk: found again, never where they would be wrong, never in the way."""

import functools
import importlib
import itertools
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from test_ends import stages as quick_stages

from gm import job, loop, programs, sharding
from gm.methods import gan


def config_of(**changes):
  config = importlib.import_module("configs.gan").get_config("test")
  config.update_from_flattened_dict({"num_devices": 1, "metrics": (), **changes})
  return config


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
  """An empty shelf for each test."""
  monkeypatch.setattr(programs, "folder", lambda: tmp_path / "programs")
  return tmp_path / "programs"


@pytest.fixture
def quick(monkeypatch):
  """A method that is compiled in no time."""
  monkeypatch.setattr(gan, "stages", quick_stages)


@pytest.fixture
def run(tmp_path, monkeypatch, blind):
  """Makes a short run; returns its last state and what was traced in it."""
  traced, true = [], gan.stages

  def stages(*args):
    (stage,) = true(*args)
    init = lambda *a: traced.append("init") or stage.init(*a)
    return [stage._replace(init=init, step=lambda *a: traced.append("step") or stage.step(*a))]

  monkeypatch.setattr(gan, "stages", stages)
  number = itertools.count()

  def run(keep=True, **changes):
    config, workdir = config_of(**changes), str(tmp_path / f"run{next(number)}")
    shelf = programs.Shelf(config, sharding.start(config)) if keep else None
    if shelf:
      shelf.read_ahead(workdir)
    traced.clear()
    loop.train(config, workdir, shelf)
    found = list(traced)
    return job.restore(job.prepare(config), workdir, 0), found

  return run


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("num_devices", [1, 2])
def test_a_second_start_traces_nothing_and_gives_the_same_bits(run, num_devices):
  plain, _ = run(keep=False, num_devices=num_devices)
  first, traced = run(num_devices=num_devices)
  assert traced == ["init", "step"]
  second, traced = run(num_devices=num_devices)
  assert traced == []
  same(first, second)
  same(plain, first)


def test_without_leave_nothing_is_kept_or_found(run, folder):
  run(keep=False)
  assert not folder.exists()
  run()
  assert run(keep=False)[1] == ["init", "step"]


def test_another_config_is_traced(run):
  run()
  assert run(lr=1e-4)[1] == ["init", "step"]


def test_what_was_compiled_is_shared_by_seeds(run, folder, monkeypatch):
  run()
  compiled = [p for p in folder.iterdir() if "-" not in p.name]
  monkeypatch.setattr(jax.stages.Lowered, "compile", None)  # nothing is compiled again
  assert run(seed=1)[1] == ["init", "step"]
  assert [p for p in folder.iterdir() if "-" not in p.name] == compiled
  assert run(seed=1)[1] == []


def test_arguments_that_are_not_used_count():
  mesh = sharding.make_mesh(1)
  function = lambda x, unused: 2 * x
  for n in (3, 4):
    args = [jax.device_put(np.ones(m, np.float32), sharding.replicated(mesh)) for m in (2, n)]
    program = programs.Shelf(config_of(), mesh).make(f"double{n}", function, tuple(args))
    assert program(*args).tolist() == [2.0, 2.0]


def test_what_was_loaded_from_the_cache_of_jax_is_not_kept(folder, tmp_path):
  """XLA would serialise it without its functions."""
  mesh = sharding.make_mesh(1)
  x = jax.device_put(np.ones((64, 64), np.float32), sharding.replicated(mesh))

  def function(x):
    return jax.random.normal(jax.random.key(3), x.shape) + (jax.numpy.sin(x) @ x)[::-1]

  expected = jax.jit(function)(x)
  jax.clear_caches()
  assert programs.Shelf(config_of(), mesh).make("f", function, (x,))(x).shape == x.shape
  same(programs.Shelf(config_of(), mesh).find("f", (x,))(x), expected)


def test_a_new_process_knows_the_functions_of_linear_algebra(tmp_path):
  """An orthogonal kernel is made by LAPACK, whose addresses a process must look up for itself."""
  code = """if True:
    import importlib, pathlib, sys, jax
    from gm import programs, sharding
    programs.folder = lambda: pathlib.Path(sys.argv[1])
    config, mesh = importlib.import_module("configs.gan").get_config("test"), sharding.make_mesh(1)
    shelf = programs.Shelf(config, mesh)
    x = jax.device_put(jax.numpy.ones((3, 3)), sharding.replicated(mesh))
    make = lambda: shelf.make("q", lambda x: jax.numpy.linalg.qr(x)[0], (x,))
    found = shelf.find("q", (x,))
    print(found is not None, abs((found or make())(x)).sum())
  """
  run = [sys.executable, "-c", code, str(tmp_path / "programs")]
  first, second = (subprocess.run(run, capture_output=True, text=True).stdout for _ in range(2))
  assert first.startswith("False") and second == first.replace("False", "True"), (first, second)


def test_the_oldest_go_first(tmp_path):
  for i in range(5):
    (tmp_path / str(i)).write_bytes(bytes(10))
    os.utime(tmp_path / str(i), (i, 9 - i))
  programs.prune(tmp_path, 35)
  assert sorted(p.name for p in tmp_path.iterdir()) == ["0", "1", "2"]


def test_the_digest_knows_what_a_program_depends_on(tmp_path, monkeypatch):
  mesh = sharding.make_mesh(1)
  found = [programs.digest(config_of(), mesh)]
  assert programs.digest(config_of(), mesh) == found[0]
  found.append(programs.digest(config_of(lr=0.5), mesh))
  found.append(programs.digest(config_of(), sharding.make_mesh(2)))
  (tmp_path / "a.py").write_text("x = 1")
  found.append(programs.digest(config_of(), mesh, tmp_path))
  (tmp_path / "a.py").write_text("x = 2")
  found.append(programs.digest(config_of(), mesh, tmp_path))
  monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_max_isa=AVX")
  found.append(programs.digest(config_of(), mesh))
  monkeypatch.setattr(programs.metadata, "version", lambda name: "0.0")
  found.append(programs.digest(config_of(), mesh))
  assert len(set(found)) == len(found)


def test_a_damaged_program_is_made_again(quick, run, folder, caplog):
  run = functools.partial(run, checkpoint_every=2)
  first, _ = run()
  paths = sorted(folder.iterdir())
  names = [p.name.partition("-")[2] for p in paths]
  assert sorted(names) == ["", "", "00-init", "00-steps", "shapes"]  # "": what was compiled
  for path in paths:
    good = path.read_bytes()
    for content in (b"", b"nonsense", good[: len(good) // 2]):
      path.write_bytes(content)
      caplog.clear()
      again, traced = run()
      same(first, again)
      assert traced and "made again" in caplog.text
    assert run()[1] == []


def test_a_full_disk_costs_the_run_nothing(run, monkeypatch, caplog):
  def full(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(programs.pathlib.Path, "write_bytes", full)
  state, _ = run()
  assert int(state.step) == 2 and "No space left" in caplog.text


def test_what_cannot_be_kept_runs_all_the_same(run, folder, monkeypatch):
  """A step that calls the host."""
  true, seen = gan.stages, []

  def stages(*args):
    (stage,) = true(*args)

    def step(state, batch, key):
      jax.debug.callback(lambda n: seen.append(int(n)), state.step)
      return stage.step(state, batch, key)

    return [stage._replace(step=step)]

  monkeypatch.setattr(gan, "stages", stages)
  for times in (1, 2):
    state, _ = run()
    assert int(state.step) == 2 and sorted(seen) == sorted([0, 1] * times)
    assert not list(folder.glob("*-steps")) and list(folder.glob("*-init"))


def test_a_program_of_other_data_is_not_taken():
  mesh = sharding.make_mesh(1)
  shelf = programs.Shelf(config_of(), mesh)
  whole = sharding.replicated(mesh)
  args = [{"x": jax.device_put(np.ones(n, np.float32), whole)} for n in (3, 4)]
  add = lambda a, b: {"y": a["x"] + b}
  program = shelf.make("add", add, (args[0], 2.0), donate_argnums=(0,))
  assert program(args[0], 2.0)["y"].tolist() == [3.0] * 3
  assert args[0]["x"].is_deleted()  # donated
  assert shelf.find("add", (args[1], 2.0)) is None
  assert shelf.find("add", (2,)) is None  # another type
  assert shelf.find("add", (2.0,)) is not None
