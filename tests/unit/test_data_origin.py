"""What a workdir records of its data: where they came from, under which names, and whether they
are still the same."""

import importlib
import io
import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, blindfold
from ml_collections import ConfigDict
from PIL import Image
from test_data_images import write_set

from gm import core, errors, job, loop
from gm.workdir import curves, lock, record


def make_job(data, **keys):
  """A job without a model: one stage that does nothing."""
  common = importlib.import_module("configs.common").base("none")
  common.data.update(data)
  common.update(keys)
  stage = core.Stage("train", 3, None, None, None)
  return job.Job(ConfigDict(common), [stage], [], [8], [], [], None)


def open_run(made, workdir):
  """Opens the workdir as training does; returns the facts on the data in config.json."""
  with lock.Lock(workdir) as held:
    job.open_workdir(made, held, job.load(made, 0, "train"))
  return json.loads((workdir / "config.json").read_text())["data"]


@pytest.fixture
def pets(tmp_path, monkeypatch):
  """Folders of splits with 4 + 2 + 1 images of two classes, in the current folder."""
  for split, n in (("train", 4), ("test", 2), ("val", 1)):
    for label in ("cat", "dog"):
      folder = tmp_path / "pets" / split / label
      folder.mkdir(parents=True)
      for i in range(n // 2 or 1):
        Image.new("L", (8, 8), i).save(folder / f"{i}.png")
  monkeypatch.chdir(tmp_path)
  return {"source": "folder", "dir": "pets", "image_size": 8, "channels": 1, "num_classes": 2}


def test_a_folder_is_on_record_by_its_own_name(pets, tmp_path):
  made = make_job(pets)
  data = open_run(made, tmp_path / "run")
  assert data["classes"] == ["cat", "dog"] and data["generated"] is False
  assert data["set"]["name"] == str(tmp_path / "pets")
  assert data["set"]["files"] == {"train": 4, "test": 2}
  listing = data["set"]["listing"]
  where = f"folder:{tmp_path}/pets, listing {listing}"
  assert data["origin"] == f"{where}, 4 training examples; not used: val/"
  assert job.origin(made, job.load(made, 0, "test")) == where  # not by that of the default set


@pytest.mark.parametrize(
  "data, origin, classes",
  [
    ({}, "embedded:mnist10k, 9,000 training examples", list("0123456789")),
    ({"source": "points", "name": "ring"}, "points:ring, 100,000 training examples", None),
  ],
)
def test_built_in_sets_are_on_record_by_name(tmp_path, data, origin, classes):
  found = open_run(make_job(data), tmp_path)
  assert found["origin"] == origin and found.get("classes") == classes and "set" not in found
  assert found["generated"] == (classes is None)


def test_paths_are_on_record_whole_so_that_other_folders_do(pets, tmp_path, monkeypatch):
  (tmp_path / "run").mkdir()
  before = make_job(pets, init_from="other/checkpoints/00-train")
  record.write_config(tmp_path / "run", before.config.to_dict())  # as it was typed: an older run
  open_run(before, tmp_path / "run")
  whole = {**pets, "dir": str(tmp_path / "pets")}
  for data in (whole, pets, {**pets, "dir": "pets/"}, {**pets, "dir": "run/../pets"}):
    open_run(make_job(data, init_from="other/checkpoints/00-train"), tmp_path / "run")
  config = record.read_config(tmp_path / "run")["config"]
  assert config["data"]["dir"] == str(tmp_path / "pets")
  assert config["init_from"] == str(tmp_path / "other/checkpoints/00-train")
  monkeypatch.chdir(tmp_path / "run")  # from here the recorded config still finds its data
  assert job.load(make_job(config["data"]), 0, "test").num_examples == 2
  there = r"data\.dir: '.*/pets' in the workdir, '.*/run/pets' now"
  with lock.Lock(tmp_path / "run") as held, pytest.raises(errors.UserError, match=there):
    job.open_workdir(make_job(pets), held, job.load(make_job(whole), 0, "train"))


def test_a_set_that_has_changed_is_named_and_not_trained_on(pets, tmp_path):
  run, made = tmp_path / "run", make_job(pets)
  assert job.data_changes(str(run), job.load(made, 0, "test")) == []  # no run yet
  first = open_run(made, run)
  Image.new("L", (8, 8)).save(tmp_path / "pets" / "val" / "dog" / "of_no_account.png")
  (tmp_path / "pets" / "more").mkdir()
  assert open_run(made, run)["set"]["unused"] == ["more", "val"]  # what is not used may change
  extra = tmp_path / "pets" / "test" / "dog" / "new.png"
  Image.new("L", (8, 8)).save(extra)
  record = (run / "config.json").read_bytes()
  with pytest.raises(errors.UserError) as refused:
    open_run(made, run)
  said = str(refused.value)
  assert f"the data of {run} have changed" in said and "another --workdir" in said
  assert "files.test: 2 in the workdir, 3 now" in said and "listing" in said and "\n" not in said
  assert (run / "config.json").read_bytes() == record
  now = job.load(made, 0, "test")  # to be evaluated all the same, with a note
  assert now.num_examples == 3 and len(job.data_changes(str(run), now)) == 2
  extra.unlink()
  assert {**open_run(made, run)["set"], "unused": ["val"]} == first["set"]


# --- a set that is read as training goes on, with a damaged image


def grey(i):
  file = io.BytesIO()
  Image.new("L", (9, 9), 8 * i).save(file, "PNG")
  return file.getvalue()


def write_images(source, root, broken=None):
  """30 images that tell their number by their grey; of a broken one the end is missing."""
  shutil.rmtree(root, ignore_errors=True)
  images = [grey(i)[: 45 if i == broken else None] for i in range(30)]
  if source == "tfds":
    rows = [{"photo": io.BytesIO(x), "label": 0} for x in images]
    return write_set(root, {"train": rows[:24], "test": rows[24:]})
  root.mkdir()
  for i, x in enumerate(images):
    (root / f"{i}.png").write_bytes(x)
  return root


@pytest.mark.parametrize("source", ["folder", "tfds"])
def test_a_damaged_image_is_mended_or_removed_and_training_goes_on(source, tmp_path, monkeypatch):
  """The third batch has it; two steps are kept, and what was done to the set is on record."""
  workdir, keys = tmp_path / "run", {"source": source, "image_size": 8, "channels": 1}
  keys |= {"memory_mb": 0, "dir": str(write_images(source, tmp_path / "set"))}
  keys |= {"image_key": "photo"} if source == "tfds" else {}
  keys = {f"data.{key}": value for key, value in keys.items()}
  keys |= {"num_steps": 4, "steps_per_call": 1, "checkpoint_every": 0, "sample_every": 0}
  config = importlib.import_module("configs.gan").get_config("test")
  config.update_from_flattened_dict({**keys, "metrics": (), "num_devices": 1})
  third = importlib.import_module(f"gm.data.{source}").load(config.data, "train").batch(2, 8)
  broken = int(third["image"].flat[0]) // 8

  def process(*more):
    flags = [f"--config.{key}={value}" for key, value in keys.items()]
    flags += ["--config.metrics=()", "--config.num_devices=1", f"--workdir={workdir}", *more]
    return subprocess.run(
      [sys.executable, "main.py", "--config=configs/gan.py:test", *flags],
      cwd=ROOT,
      env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
      capture_output=True,
      text=True,
      timeout=300,
    )

  write_images(source, tmp_path / "set", broken)
  done = process()
  (line,) = done.stderr.splitlines()
  name = f"example {broken} of train in toy/1.0.0" if source == "tfds" else f"/{broken}.png"
  assert done.returncode == 2 and f"{name}: not readable as an image" in line, line
  assert line.endswith("remove it or fix it")
  assert [p.name for p in (workdir / "checkpoints/00-train").glob("[0-9]*")] == ["2"]
  before = (workdir / "config.json").read_bytes()

  top = write_images(source, tmp_path / "set")
  monkeypatch.setattr(curves, "draw", lambda records: None)
  with pytest.raises(errors.UserError, match=r"have changed .*go on with .* by --changed_data"):
    loop.train(config, str(workdir))
  assert (workdir / "config.json").read_bytes() == before
  if source == "tfds":
    loop.train(config, str(workdir), changed_data=True)
  else:
    done = process("--changed_data")
    assert done.returncode == 0 and "resumed at step 2" in done.stdout, done
    assert "note: the data have changed (listing: " in done.stdout
  data = json.loads((workdir / "config.json").read_text())["data"]
  (change,) = data["changes"]
  assert change.startswith(
    "step 2 of train: " + ("bytes" if source == "tfds" else "listing") + ": "
  )
  assert f"changed at {change}" in data["origin"].replace("\n", " ")
  assert "changed at step 2 of train" in (workdir / "report.html").read_text()
  blindfold(monkeypatch)
  loop.train(config, str(workdir))  # nothing has changed since then
  if source == "folder":
    (top / f"{broken}.png").unlink()
    with pytest.raises(errors.UserError, match=r"files\.train: .* now; listing.*--changed_data"):
      loop.train(config, str(workdir))
    loop.train(config, str(workdir), changed_data=True)
    data = json.loads((workdir / "config.json").read_text())["data"]
    assert data["changes"][0] == change
    assert data["changes"][1].startswith("step 4 of train: files.train")
