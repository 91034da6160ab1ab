"""The loop's parts: checkpoints, feeding, stopping, errors on the way."""

import importlib
import json
import math
import shutil
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import OPTIMISED
from test_ends import stages as quick_stages

from gm import core, errors, feed, job, loop, steps
from gm.methods import gan
from gm.workdir import checkpoint, curves, quirks, record, saver


def config_of(**changes):
  config = importlib.import_module("configs.gan").get_config("test")
  config.update_from_flattened_dict({"num_devices": 1, "metrics": (), **changes})
  return config


def state_at(step):
  return core.State(jnp.array(step, jnp.int32), {"g": jnp.arange(1000.0) * step}, {})


def like():
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  shapes = jax.eval_shape(lambda: state_at(1))
  return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=device), shapes)


def damage(folder):
  """Flips one bit in the middle of the largest data file."""
  path = max(folder.rglob("ocdbt.process_0/d/*"), key=lambda p: p.stat().st_size)
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def saved(folder, steps, **options):
  manager = checkpoint.open_manager(folder, **options)
  for step in steps:
    checkpoint.save(manager, state_at(step))
  manager.wait_until_finished()
  return manager


def test_the_last_few_checkpoints_and_the_best_stay(tmp_path):
  scores = {1: 5.0, 2: 1.0, 3: math.nan, 4: 3.0, 5: 2.0}
  for best, kept in (("-score", [2, 4, 5]), ("+score", [1, 4, 5]), ("", [4, 5])):
    config = config_of(keep_checkpoints=2, best_metric=best, eval_every=1)
    folder = tmp_path / f"x{best}"
    saving = saver.Saver(folder, config, -1)
    for step, score in scores.items():
      saving.rate(step, {"score": score, "other": 0.0})
      saving.save(state_at(step))
    saving.close()
    assert sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) == kept, best
  with pytest.raises(errors.UserError, match=r"--config.best_metric=-score .*: other"):
    saver.Saver(tmp_path, config_of(best_metric="-score"), -1).rate(1, {"other": 0.0})


def tree_of(folder):
  return sorted((str(p), p.stat().st_mtime_ns) for p in folder.rglob("*"))


def test_damaged_checkpoints_are_skipped_and_go_when_training_saves(tmp_path, caplog, capfd):
  saved(tmp_path, [1, 2, 3]).close()
  damage(tmp_path / "3")
  (tmp_path / "4.orbax-checkpoint-tmp").mkdir()  # of a run that is still going
  before = tree_of(tmp_path)
  manager = checkpoint.open_manager(tmp_path, read_only=True)
  assert int(checkpoint.restore(manager, like()).step) == 2
  manager.close()
  assert tree_of(tmp_path) == before
  (record,) = caplog.records  # one line, no traceback of a library
  assert "3 skipped" in record.getMessage() and "\n" not in record.getMessage()
  assert "Traceback" not in capfd.readouterr().err
  state = restored(tmp_path, resume=True)
  np.testing.assert_array_equal(state.params["g"], np.arange(1000.0) * 2)
  assert tree_of(tmp_path) == before
  saving = saver.Saver(tmp_path, config_of(), 2)
  saving.save(state_at(3))
  saving.close()
  assert int(restored(tmp_path, resume=True).step) == 3


def restored(folder, **how):
  manager = checkpoint.open_manager(folder, read_only=True)
  try:
    return checkpoint.restore(manager, like(), **how)
  finally:
    manager.close()


ODD = {  # reasons for which a file cannot be read, and whether that is for good
  "open": (PermissionError(13, "Permission denied"), False),
  "io": (OSError(5, "Input/output error"), False),
  "tensorstore": (
    ValueError("INTERNAL: Error reading x: Input/output error [os_error_code='5']"),
    False,
  ),
  "gone": (FileNotFoundError(2, "No such file"), True),
  "lost": (ValueError("NOT_FOUND: Error opening x [os_error_code='2']"), True),
  "bytes": (ValueError("DATA_LOSS: Digest does not match"), True),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_cannot_be_read_now_is_no_reason_to_go_on_without(kind, tmp_path, monkeypatch):
  """Training says so and stops, unless it is for good; reading modes take the one before."""
  saved(tmp_path, [1, 2]).close()
  error, lasting = ODD[kind]
  whole = ocp.CheckpointManager.restore

  def restore(self, step, *args, **kwargs):
    if step == 2:
      raise Exception("Encountered error while reading") from error
    return whole(self, step, *args, **kwargs)

  monkeypatch.setattr(ocp.CheckpointManager, "restore", restore)
  monkeypatch.setattr(checkpoint, "_of_another_config", lambda *given: "")
  before = tree_of(tmp_path)
  assert int(restored(tmp_path).step) == 1
  if lasting:
    assert int(restored(tmp_path, resume=True).step) == 1
  else:
    with pytest.raises(ValueError, match=rf"{tmp_path}/2 cannot be read now \(.*nothing was"):
      restored(tmp_path, resume=True)
  assert tree_of(tmp_path) == before


def test_a_folder_may_have_any_name(tmp_path, caplog):
  """Orbax looks for its files by a glob."""
  folder = tmp_path / "a[b] *?%20"
  saved(folder, [1, 2]).close()
  assert int(restored(folder, resume=True).step) == 2
  damage(folder / "2")
  assert int(restored(folder).step) == 1 and f"checkpoint {folder}/2 skipped" in caplog.text


def test_a_copy_under_a_larger_number_is_not_the_newest(tmp_path, caplog):
  saved(tmp_path, [1, 2]).close()
  shutil.copytree(tmp_path / "1", tmp_path / "100")
  before = tree_of(tmp_path)
  assert int(restored(tmp_path).step) == 2
  assert "100 skipped: it holds step 1" in caplog.text
  with pytest.raises(ValueError, match=rf"{tmp_path}/100 .*holds step 1.* move it out"):
    restored(tmp_path, resume=True)
  assert tree_of(tmp_path) == before


def test_errors_that_come_too_late_are_not_told(tmp_path, monkeypatch):
  """Of orbax' reads that were under way when another failed; those of others are."""
  told = []
  monkeypatch.setattr(sys, "unraisablehook", told.append)
  saved(tmp_path, [1]).close()
  for path in tmp_path.rglob("ocdbt.process_0/d/*"):
    path.write_bytes(b"")
  with pytest.raises(ValueError, match="none of the checkpoints"):
    restored(tmp_path)
  code = compile("0", "site-packages/orbax/serialization.py", "eval")
  late = [(ValueError("x"), types.SimpleNamespace(cr_code=code))]
  late += [(RuntimeError("Event loop is closed"), None)]
  for error, of in [*late, (ValueError("another"), None)]:
    sys.unraisablehook(types.SimpleNamespace(exc_value=error, object=of))
  assert [str(one.exc_value) for one in told] == ["another"]


def test_a_checkpoint_of_another_structure_is_one_of_another_config(tmp_path):
  saved(tmp_path, [1]).close()
  before = tree_of(tmp_path)
  wide = like().replace(params={"g": jax.ShapeDtypeStruct((7,), jnp.float32)})
  more = like().replace(params={**like().params, "d": like().params["g"]})
  for other, name in ((wide, r"params/g: \(1000,\)"), (more, "params/d: absent")):
    manager = checkpoint.open_manager(tmp_path, read_only=True)
    with pytest.raises(ValueError, match=rf"made with another config \({name} in the check"):
      checkpoint.restore(manager, other, resume=True)
    manager.close()
  assert tree_of(tmp_path) == before


def test_a_run_is_read_by_its_own_config_and_left_as_it_is(tmp_path):
  """Reading modes: with what is free to differ, with another recipe, with a damaged checkpoint."""
  made = job.prepare(config_of())
  facts = {"data": {}, "stages": {}}
  record.write_config(tmp_path, made.config.to_dict(), facts)
  folder = checkpoint.stage_dir(str(tmp_path), 0, made.stages[0].name)
  rng = np.random.default_rng(0)
  numbers = lambda s: jax.device_put(rng.standard_normal(s.shape).astype(s.dtype), s.sharding)
  state = jax.tree.map(numbers, made.templates[0])
  manager = checkpoint.open_manager(folder)
  for step in (1, 2):
    checkpoint.save(manager, state.replace(step=jnp.array(step, jnp.int32)))
  manager.close()
  damage(folder / "2")
  before = tree_of(tmp_path)
  free = config_of(batch_size=4, num_eval_samples=8, cpu_devices=2)
  for config in (None, free):
    assert int(job.newest(str(tmp_path), config)[2].step) == 1
  for key, other in (("lr", config_of(lr=0.25)), ("model.z_dim", config_of(**{"model.z_dim": 3}))):
    with pytest.raises(errors.UserError, match=rf"another config \({key}: "):
      job.newest(str(tmp_path), other)
  for name, variant, said in (
    ("gan", "ring", r"config \(data\.name: .* now; and 8 more keys\): give"),
    ("vae", "test", r"config \(method: 'gan' in the workdir, 'vae' now\): give"),
  ):
    other = importlib.import_module(f"configs.{name}").get_config(variant)
    with pytest.raises(errors.UserError, match=said):
      job.newest(str(tmp_path), other)
  assert tree_of(tmp_path) == before


def test_nothing_readable_is_an_error_and_nothing_there_is_none(tmp_path):
  manager = saved(tmp_path / "a", [1])
  damage(tmp_path / "a/1")
  with pytest.raises(ValueError, match=r"none of the checkpoints \[1\].*--workdir"):
    checkpoint.restore(manager, like())
  manager.close()
  assert (tmp_path / "a/1").is_dir()
  empty = checkpoint.open_manager(tmp_path / "b")
  assert checkpoint.restore(empty, like()) is None
  empty.close()


def test_saved_arrays_are_those_of_the_moment(tmp_path):
  """Training goes on, in donated buffers, while a checkpoint is written."""
  manager = checkpoint.open_manager(tmp_path)
  move = jax.jit(
    lambda s: s.replace(step=s.step + 1, params={"g": s.params["g"] + 1}), donate_argnums=0
  )
  state = jax.jit(lambda: core.State(jnp.zeros((), jnp.int32), {"g": jnp.zeros(1_000_000)}, {}))()
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )
  for _ in range(3):
    state = move(state)
    checkpoint.save(manager, state)
    for _ in range(20):
      state = move(state)
  manager.wait_until_finished()
  for step in manager.all_steps():
    back = checkpoint.restore(manager, shapes, step)
    assert int(back.step) == step and (np.asarray(back.params["g"]) == step).all()
  manager.close()


def begin(made, source, data):
  """Returns the compiled call, its totals, the first state and the feed."""
  state = steps.initialise(made, 0, None, source)
  _, rows = feed.make_feed(made, 0, source)
  call, totals = steps.make_call(made, 0, source, (data, rows(0, 1)))
  return call, totals, state, rows


def test_a_set_in_device_memory_and_one_that_is_read_give_the_same_bits(monkeypatch):
  """By two programs, so both are optimised as outside of tests."""
  options = steps.step_options()
  monkeypatch.setattr(steps, "step_options", lambda: {**options, **OPTIMISED})
  made = job.prepare(config_of())
  source = job.load(made, 0, "train")
  results = []
  for arrays in (source.arrays, None):
    fed, data = feed.on_device(source._replace(arrays=arrays), made.mesh)
    call, totals, state, rows = begin(made, fed, data)
    for i in range(3):
      state, totals, _ = call(state, totals, data, rows(i, 1), made.keys[0]["step"], 1)
    results.append(state)
  jax.tree.map(np.testing.assert_array_equal, *results)


def test_the_call_is_compiled_once():
  """Also where totals start anew after a log."""
  made = job.prepare(config_of(num_devices=2))
  source, data = feed.on_device(job.load(made, 0, "train"), made.mesh)
  call, totals, state, rows = begin(made, source, data)
  compiled = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda name, seconds, **_: compiled.append(name) if "backend_compile" in name else None
  )
  for i in range(4):
    before = len(compiled)
    state, totals, _ = call(state, totals, data, rows(i, 1), made.keys[0]["step"], 1)
    assert (len(compiled) > before) == (i == 0)
    if i == 1:
      totals = steps.zero_totals(made, 0, totals.sums)
  assert int(totals.count) == 2


def test_a_damaged_file_on_the_way_saves_first(tmp_path, monkeypatch):
  """A set that is read as it goes and fails at batch 30 loses none of the steps before."""
  true = job.load

  def load(made, index, split, **options):
    source = true(made, index, split, **options)
    if split == "test":
      return source

    def batch(i, size):
      if i == 30:
        raise ValueError("image 7 is damaged")
      return source.batch(i, size)

    return source._replace(arrays=None, batch=batch)

  monkeypatch.setattr(loop, "load", load)
  config = config_of(num_steps=100, checkpoint_every=0, sample_every=0, log_every=0)
  with pytest.raises(errors.UserError, match="image 7 is damaged"):
    loop.train(config, str(tmp_path))
  state = job.restore(job.prepare(config), str(tmp_path), 0)
  assert int(state.step) == 30


def test_a_best_metric_that_is_none_is_named(tmp_path):
  config = config_of(eval_every=1, best_metric="-nonsense")
  with pytest.raises(errors.UserError, match=r"--config.best_metric=-nonsense .*grad_ratio"):
    loop.train(config, str(tmp_path))


def test_stages_are_evaluated_as_they_end_where_the_config_evaluates_at_all(tmp_path, monkeypatch):
  """The last one is evaluated by the run's end, into eval.json."""

  def two(config, info):
    (stage,) = quick_stages(config, info)
    return [stage._replace(name=name, num_steps=n) for name, n in (("first", 2), ("last", 4))]

  monkeypatch.setattr(gan, "stages", two)
  monkeypatch.setattr(curves, "draw", lambda records: None)
  for every, expected in ((0, []), (3, [("first", 2), ("last", 3)])):
    config = config_of(eval_every=every)
    workdir = tmp_path / str(every)
    loop.train(config, str(workdir))
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    found = [(r["stage"], r["step"]) for r in records if "mse" in r]
    assert found == expected
    assert json.loads((workdir / "eval.json").read_text())["step"] == 4
  # a damaged checkpoint of the first stage is of no account: it is done
  damage(max(checkpoint.stage_dir(str(workdir), 0, "first").glob("[0-9]*")))
  before = tree_of(workdir / "checkpoints"), (workdir / "metrics.jsonl").read_text()
  loop.train(config, str(workdir))
  assert before == (tree_of(workdir / "checkpoints"), (workdir / "metrics.jsonl").read_text())


def test_a_full_disk_is_one_clear_error(tmp_path, monkeypatch):
  def full(*args, **kwargs):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(checkpoint, "save", full)
  with pytest.raises(errors.UserError, match="No space left on device"):
    loop.train(config_of(), str(tmp_path))


def test_pace_finds_a_length_and_keeps_a_fixed_one():
  ready = jnp.zeros(())
  fixed, free = feed.Pace(5, 64), feed.Pace(0, 64)
  for _ in range(20):
    fixed.wait(ready, fixed.steps)
    free.wait(ready, free.steps)
  assert fixed.steps == 5 and free.steps == 64  # steps that take no time: as many as allowed


def test_first_bad_step_is_found_inside_a_call():
  """A metric that is not finite at step 4 of 7 in one call, and finite again after."""

  def step(state, batch, key):
    bad = jnp.where(state.step == 3, jnp.nan, 1.0)
    return state.replace(step=state.step + 1), {"loss": bad}

  made = job.prepare(config_of())
  stage = core.Stage("train", 7, made.stages[0].init, step, made.stages[0].sample)
  made = made._replace(stages=[stage])
  source, data = feed.on_device(job.load(made, 0, "train"), made.mesh)
  call, totals, state, rows = begin(made, source, data)
  _, totals, _ = call(state, totals, data, rows(0, 7), made.keys[0]["step"], 7)
  assert int(totals.count) == 7
  with pytest.raises(FloatingPointError, match=r"loss is not finite at step 4 of stage train"):
    steps.check_finite(totals, "train", -1)


def test_large_states_are_split_over_devices():
  from gm import sharding

  mesh = sharding.make_mesh(2)
  shapes = {
    "w": jax.ShapeDtypeStruct((6, 4), jnp.float32),
    "b": jax.ShapeDtypeStruct((3,), jnp.float32),
  }
  small = sharding.of_state(mesh, shapes)
  large = sharding.of_state(mesh, shapes, split_above=64)
  assert small["w"].is_fully_replicated and large["b"].is_fully_replicated
  assert large["w"].shard_shape((6, 4)) == (3, 4)


def test_a_checkpoint_that_goes_while_the_folder_is_looked_at_is_no_error():
  gone, looks = [FileNotFoundError("82"), FileNotFoundError("83")], []

  def look():
    looks.append(1)
    if gone:
      raise gone.pop()
    return "there"

  assert quirks.settled(look) == "there" and len(looks) == 3
  with pytest.raises(FileNotFoundError):
    quirks.settled(lambda: gone.append(FileNotFoundError()) or look())
