"""What a run is known by, and which configs may continue it or read it."""

import functools
import importlib
import json
import shutil

import jax
import numpy as np
import pytest
from conftest import Kept, blindfold
from ml_collections import ConfigDict

from gm import continuing, errors, job, loop
from gm.workdir import checkpoint, record

TINY = {"num_devices": 1, "metrics": (), "num_steps": 4, "log_every": 2, "sample_every": 0}
TINY |= {"checkpoint_every": 2, "num_eval_samples": 8}


def config_of(name="gan", variant="test", **changes):
  config = importlib.import_module(f"configs.{name}").get_config(variant)
  return continuing.changed(config, {**TINY, **changes})


@pytest.fixture
def quick(blind):
  continuing._say_once.cache_clear()


@pytest.fixture(scope="module")
def half(tmp_path_factory):
  """A run of 2 of 4 steps, the state that it comes to, and its compiled programs."""
  workdir = tmp_path_factory.mktemp("half") / "run"
  kept = Kept()
  with pytest.MonkeyPatch.context() as patch:
    blindfold(patch)
    loop.train(config_of(num_steps=2), str(workdir), kept)
    whole = shutil.copytree(workdir, workdir.parent / "whole")
    loop.train(config_of(), str(whole), kept)
  return workdir, state_of(whole), kept


def state_of(workdir, **changes):
  return job.restore(job.prepare(config_of(**changes)), str(workdir), 0)


def tree_of(folder):
  found = (p for p in folder.rglob("*") if p.name != ".lock")  # which says who looked at it last
  return sorted((str(p), p.stat().st_mtime_ns) for p in found)


# --- what may be changed

OTHER = {  # of every key that is free, another value
  "steps_per_call": 2,
  "log_every": 1,
  "sample_every": 1,
  "eval_every": 1,
  "checkpoint_every": 1,
  "keep_checkpoints": 1,
  "metrics": ("digits.scores",),
  "num_eval_samples": 4,
  "reference_split": "test",
  "best_metric": "-number",
}


def test_every_free_key_has_another_value_here():
  assert set(OTHER) == continuing.FREE_KEYS


@pytest.mark.parametrize("key", OTHER)
def test_a_free_key_moves_no_parameter(key, half, tmp_path, quick):
  before, whole, kept = half
  workdir = shutil.copytree(before, tmp_path / "run")
  more = {"eval_every": 2} if key == "best_metric" else {}
  assert OTHER[key] != config_of()[key]
  loop.train(config_of(**{key: OTHER[key], **more}), str(workdir), kept)
  jax.tree.map(np.testing.assert_array_equal, state_of(workdir), whole)


def test_more_steps_move_no_parameter_on_the_way(half, tmp_path, quick):
  workdir = shutil.copytree(half[0], tmp_path / "run")
  loop.train(config_of(num_steps=6, keep_checkpoints=9), str(workdir), half[2])
  (workdir / "checkpoints/00-train/6").rename(tmp_path / "6")
  jax.tree.map(np.testing.assert_array_equal, state_of(workdir), half[1])


@pytest.mark.parametrize("name", ["autoencoder", "classifier", "sngan"])
def test_another_number_of_steps_is_another_run_where_the_rate_falls_until_the_last(name):
  config = config_of(name)
  assert job._training(config) != job._training(continuing.changed(config, {"num_steps": 9}))


def test_a_rate_that_falls_until_the_last_step_is_not_stretched(tmp_path, quick):
  loop.train(config_of("vae"), str(tmp_path))
  before = tree_of(tmp_path)
  with pytest.raises(
    errors.UserError, match=r"num_steps: 4 in the workdir, 8 now.*rate that falls"
  ):
    loop.train(config_of("vae", num_steps=8), str(tmp_path))
  assert tree_of(tmp_path) == before


READ = [  # whether training does not depend on them
  ("stylegan2", {"model.noise": "const", "model.psi": 0.5}, True),
  ("vae", {"model.eval_k": 2, "model.eval_chunk": 1}, True),
  ("gan", {"model.noise": "uniform"}, False),
  ("gan", {"model.g_bias": 1.0}, False),  # in the first state alone
]


@pytest.mark.parametrize(("name", "values", "same"), READ)
def test_what_only_samples_depend_on_may_differ(name, values, same):
  config = config_of(name)
  other = continuing.changed(config, values)
  assert all(other[k] != config[k] for k in values)
  assert (job._training(config) == job._training(other)) == same
  check = functools.partial(
    continuing.check, "DIR", config.to_dict(), other.to_dict(), same_training=lambda _: same
  )
  for reading in (True, False):
    if same:
      check(reading=reading)
    else:
      with pytest.raises(ValueError, match=r"DIR belongs to a run with another config \(model\."):
        check(reading=reading)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_other_devices_continue_a_run_up_to_rounding(before, after, half, tmp_path, quick, capsys):
  """As in the contract: Adam may flip the sign of a gradient that is rounding alone."""
  workdir = shutil.copytree(half[0], tmp_path / "run") if before == 1 else tmp_path / "run"
  if before == 2:
    loop.train(config_of(num_devices=2, num_steps=2), str(workdir))
  capsys.readouterr()
  loop.train(config_of(num_devices=after), str(workdir))
  said = capsys.readouterr().out
  assert f"number of devices is {after}, it was {before} " in said and "rounding" in said
  flat = lambda state: np.concatenate([np.ravel(x) for x in jax.tree.leaves(state.params)])
  one, other = flat(half[1]), flat(state_of(workdir))
  assert (abs(one - other) > 1e-4 + 1e-3 * abs(one)).mean() < 0.01


# --- what a run is known by


def of_another_seed(workdir):
  with pytest.raises(errors.UserError, match=r"another config \(seed: 0 in the workdir, 1 now\)"):
    loop.train(config_of(seed=1), str(workdir))


@pytest.mark.parametrize("text", [None, "", "[1]", '{"config": 3}'])
def test_without_a_config_the_checkpoints_tell_it(text, half, tmp_path, quick, capsys):
  workdir = shutil.copytree(half[0], tmp_path / "run")
  path = workdir / "config.json"
  path.unlink()
  if text is not None:
    path.write_text(text)
  before = tree_of(workdir)
  assert int(job.newest(str(workdir))[2].step) == 2
  (line,) = capsys.readouterr().out.splitlines()
  assert (
    f"{path} " in f"{line} ".replace(";", " ")
    and line.startswith("note: ")
    and line.endswith("taken from the checkpoints")
  )
  of_another_seed(workdir)
  assert tree_of(workdir) == before
  loop.train(config_of(), str(workdir), half[2])
  jax.tree.map(np.testing.assert_array_equal, state_of(workdir), half[1])
  assert record.read_config(workdir)["config"]["seed"] == 0


def test_a_checkpoint_of_another_run_is_found_out(half, tmp_path, quick):
  workdir = shutil.copytree(half[0], tmp_path / "run")
  facts = json.loads((workdir / "config.json").read_text())
  facts["config"]["seed"] = 1
  (workdir / "config.json").write_text(json.dumps(facts))
  before = tree_of(workdir)
  for call in (
    lambda: loop.train(config_of(seed=1), str(workdir), half[2]),
    lambda: job.newest(str(workdir)),
  ):
    with pytest.raises(errors.UserError, match=r"00-train/2 belongs .*\(seed: 0 in .*, 1 now\)"):
      call()
  assert tree_of(workdir) == before


def test_neither_config_nor_checkpoint_is_no_run(tmp_path, quick):
  assert continuing.facts_of(str(tmp_path)) is None
  with pytest.raises(errors.UserError, match=r"there is no .*config\.json; give the --workdir"):
    job.newest(str(tmp_path))
  (tmp_path / "config.json").write_text("{")
  for call in (lambda: job.newest(str(tmp_path)), lambda: loop.train(config_of(), str(tmp_path))):
    with pytest.raises(errors.UserError, match=r"not valid JSON.*--workdir"):
      call()


OLDER = ("model.pack", "data.memory_mb", "accumulate", "best_metric")


def test_the_config_of_an_older_version_has_the_defaults(half, tmp_path, quick, capsys):
  workdir = shutil.copytree(half[0], tmp_path / "run")
  facts = json.loads((workdir / "config.json").read_text())
  for key in OLDER:
    *section, name = key.split(".")
    functools.reduce(dict.get, section, facts["config"]).pop(name)
  (workdir / "config.json").write_text(json.dumps(facts))
  made, _, state = job.newest(str(workdir))
  assert int(state.step) == 2 and made.config.model.pack == made.config.accumulate == 1
  (line,) = capsys.readouterr().out.splitlines()
  assert all(key in line for key in OLDER) and "default" in line
  with pytest.raises(errors.UserError, match=r"accumulate: 1 in the workdir, 2 now"):
    loop.train(config_of(accumulate=2), str(workdir))
  loop.train(config_of(), str(workdir), half[2])
  jax.tree.map(np.testing.assert_array_equal, state_of(workdir), half[1])
  del facts["config"]["method"]
  (workdir / "config.json").write_text(json.dumps(facts))
  with pytest.raises(errors.UserError, match="no key method"):
    job.newest(str(workdir))


def test_nothing_readable_is_told_in_words_of_the_mode(half, tmp_path, quick):
  workdir = shutil.copytree(half[0], tmp_path / "run")
  for path in (workdir / "checkpoints").rglob("ocdbt.process_0/d/*"):
    path.write_bytes(b"")
  before = tree_of(workdir)
  with pytest.raises(
    errors.UserError, match=r"none of the checkpoints \[2\].*put back a copy"
  ) as e:
    job.newest(str(workdir))
  assert "remove" not in str(e.value)
  with pytest.raises(errors.UserError, match=r"none of the .*move the folder away to train"):
    loop.train(config_of(), str(workdir))
  assert tree_of(workdir) == before


def test_the_name_of_a_set_that_is_not_read_is_not_on_record():
  data = {"source": "folder", "name": "mnist10k", "dir": "~/x"}
  found = continuing.plain({**config_of().to_dict(), "data": data})["data"]
  assert found == {"source": "folder", "name": "", "dir": continuing.absolute("~/x")}
  assert continuing.plain(config_of().to_dict())["data"]["name"] == "mnist10k"


def test_a_checkpoint_keeps_what_its_run_was(half):
  kept = checkpoint.last_record(half[0])
  assert kept["step"] == 2 and kept["devices"] == 1
  assert kept["data"]["classes"] == list("0123456789")
  config = continuing.plain(config_of(num_steps=2).to_dict())
  assert ConfigDict(kept["config"]).to_dict() == json.loads(json.dumps(config))
