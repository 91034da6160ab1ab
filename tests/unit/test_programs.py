"""Programs on disk: found again, never where they would be wrong, never in the way."""

import importlib
import itertools

import jax
import numpy as np
import pytest

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
def run(tmp_path, monkeypatch):
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


def test_a_damaged_program_is_made_again(run, folder, caplog):
  first, _ = run()
  paths = sorted(folder.iterdir())
  assert [p.name.split("-", 1)[1] for p in paths] == ["00-init", "00-steps", "shapes"]
  for path in paths:
    good = path.read_bytes()
    for content in (b"", b"nonsense", good[: len(good) // 2]):
      path.write_bytes(content)
      caplog.clear()
      again, traced = run()
      same(first, again)
      assert traced and "made again" in caplog.text
      assert path.stat().st_size == len(good)


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
  state, _ = run()
  assert int(state.step) == 2 and sorted(seen) == [0, 1]
  assert not list(folder.glob("*-steps")) and list(folder.glob("*-init"))


def test_a_program_of_other_data_is_not_taken():
  mesh = sharding.make_mesh(1)
  shelf = programs.Shelf(config_of(), mesh)
  whole = sharding.replicated(mesh)
  args = [{"x": jax.device_put(np.ones(n, np.float32), whole)} for n in (3, 4)]
  add = jax.jit(lambda a, b: {"y": a["x"] + b})
  program = shelf.make("add", add, (args[0], 2.0), donate=(0,))
  assert program.run(args[0], 2.0)["y"].tolist() == [3.0] * 3
  assert args[0]["x"].is_deleted()  # donated
  assert shelf.find("add", (args[1], 2.0)) is None
  assert shelf.find("add", (2,)) is None  # another type
  assert shelf.find("add", (2.0,)) is not None
