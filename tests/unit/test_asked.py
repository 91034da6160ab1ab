"""Seeds and labels that are asked for: what is none, or too many, is told in one line."""

import types

import numpy as np
import pytest

from gm import asked, core, errors, sampling
from gm.workdir import drawn

CLASSES = ["2", "1", "cat"]


def test_a_range_of_seeds_stays_one():
  assert asked.parse_seeds("0-2000000000") == range(2_000_000_001)
  assert asked.check_seeds(range(2**31)) == range(2**31) == asked.distinct(range(2**31))
  assert asked.parse_seeds("0-3, 9") == [0, 1, 2, 3, 9]


@pytest.mark.parametrize(
  ("text", "said"),
  [
    ("5-1", "a range goes upwards, as in --walk=1-5"),
    ("0-2147483648", "numbers from 0 to 2147483647"),
    ("1.5", "numbers from 0"),
    ("", "numbers from 0"),
    ("1,,2", "numbers from 0"),
    ("-1", "numbers from 0"),
    ("\u0663", "numbers from 0"),
    ("0-2000000000,5", "give one range"),
  ],
)
def test_texts_that_name_no_seeds(text, said):
  with pytest.raises(errors.UserError, match=rf"^--walk=.*{said}"):
    asked.parse_seeds(text, "--walk")


def test_seeds_in_python():
  assert list(asked.check_seeds("0-2")) == [0, 1, 2]
  assert asked.check_seeds(np.array([3, 1])) == [3, 1] == asked.check_seeds(iter([3, 1]))
  assert asked.distinct([3, 1, 3]) == [3, 1]
  for seeds in (5, [1.5], [None], 1.5):
    with pytest.raises(errors.UserError, match="no whole numbers: give range"):
      asked.check_seeds(seeds)
  for seeds in ([], range(0), [-1], range(-1, 3), [2**31], range(9, -2, -1)):
    with pytest.raises(errors.UserError, match="change --seeds"):
      asked.check_seeds(seeds)


def test_labels_in_python(capsys):
  assert asked.label_numbers("cat", CLASSES) == [2] == asked.label_numbers(2, CLASSES)
  assert asked.label_numbers([0, np.int64(1)], CLASSES) == [0, 1] and not capsys.readouterr().out
  for labels in ([], ""):
    with pytest.raises(errors.UserError, match=r"^--labels"):
      asked.label_numbers(labels, CLASSES)
  for label in ("3", 1.5, -1, None, True):
    with pytest.raises(errors.UserError, match=f"no label '{label}'.*0 to 2 or names: 2, 1, cat"):
      asked.label_numbers([label], CLASSES)


def test_a_name_that_looks_like_a_number_is_the_name_and_is_told(capsys):
  assert asked.label_numbers(["2", "1", "0"], CLASSES) == [0, 1]
  assert capsys.readouterr().out == "labels: 2 -> class 0\n"  # 1 is both


def sampler(kind, shape):
  """As much of one as is asked before anything is drawn; drawing would fail."""
  return types.SimpleNamespace(
    data=[kind],
    images={"image"},
    walks=True,
    classes=(),
    bytes=8 + 4 * int(np.prod(shape)),
    info=core.Info({kind: shape}),
    label=lambda seed, label: label,
  )


IMAGE, POINT, MANY = ("image", (64, 64, 3)), ("point", (2,)), range(2_000_000_000)


@pytest.mark.parametrize(
  ("made", "request_", "said"),
  [
    (IMAGE, sampling.Request(MANY), "a grid holds 400 images.*--seeds, --num_samples"),
    (IMAGE, sampling.Request(MANY, form="files"), "--format=files writes 1,000,000 at most"),
    (
      IMAGE,
      sampling.Request(MANY, form="npz"),
      "98,320.0 GB of the 1,000.0 GB .* free in .*--num_samples",
    ),
    (POINT, sampling.Request(MANY), "a plot holds 67,108,864 samples.*--num_samples"),
    (POINT, sampling.Request([1], form="files"), r"--format=files writes images.*\(point\)"),
    (IMAGE, sampling.Request([1, 2], 10**9), "^--frames=1000000000: .* at most 5,461"),
    (POINT, sampling.Request([1, 2], 10**9), "^--frames=1000000000: .* at most 100,000"),
  ],
)
def test_what_would_not_fit_is_refused_before_anything_is_drawn(
  made, request_, said, tmp_path, monkeypatch
):
  free = types.SimpleNamespace(free=10**12)
  monkeypatch.setattr(sampling.shutil, "disk_usage", lambda folder: free)
  write = sampling._write_walks if request_.frames else sampling._write_samples
  with pytest.raises(ValueError, match=said):
    write(sampler(*made), request_, [None], drawn.Place(tmp_path, None, "train_00000001"))


def test_truncation_that_cannot_be_names_its_flag(monkeypatch, tmp_path):
  def newest(workdir, config):
    raise errors.UserError("--config.model.truncation=-1.0 is not possible")

  monkeypatch.setattr(sampling, "newest", newest)
  monkeypatch.setattr(
    sampling.continuing,
    "require_facts",
    lambda workdir: {"config": {"method": "biggan", "model": {"truncation": 0.5}}},
  )
  with pytest.raises(errors.UserError, match=r"^--truncation=-1.0 is not possible"):
    sampling.open_run(tmp_path, None, -1.0)
  with pytest.raises(errors.UserError, match=r"^--config.model.truncation"):
    sampling.open_run(tmp_path)


def test_more_samples_than_the_memory_holds_are_refused(monkeypatch):
  """In Python, where all are held at once: before the first is drawn."""
  stub = types.SimpleNamespace(bytes=3144, numbers=lambda labels: labels, stream=None)
  monkeypatch.setattr(sampling, "_newest", lambda *given: None)
  monkeypatch.setattr(sampling, "_sampler", lambda *given: stub)
  with pytest.raises(errors.UserError, match=r"2,000,000,000 samples would take .* GB .*stream"):
    sampling.draw("DIR", seeds=range(2_000_000_000))
