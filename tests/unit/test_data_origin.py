"""What a workdir records of its data: where they came from, under which names, and whether they
are still the same."""

import importlib
import json

import pytest
from ml_collections import ConfigDict
from PIL import Image

from gm import core, errors, job
from gm.workdir import lock, record


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
