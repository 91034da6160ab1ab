"""Faces with attributes: the drawing, the columns of labels, and the prepared set."""

import itertools
import sys

import ml_collections
import numpy as np
import pytest
import tensorflow_datasets

from gm.core import batch_shapes
from gm.data import attributes, avatars, packages, prepare, prepared, sets

NAMES, VALUES = avatars.NAMES, avatars.VALUES


def face(**values):
  """A plain face, with what is given changed."""
  base = {name: VALUES[name][0] for name in NAMES} | {"hair": "caesar", "brows": "default"}
  base |= {"eyes": "default", "clothes": "shirt_crew_neck"}
  return avatars.edit(np.zeros(len(NAMES)), **(base | values))


# ---- attributes of faces


def test_draw_is_a_function_of_the_seed():
  np.testing.assert_array_equal(avatars.draw(50, seed=3), avatars.draw(50, seed=3))
  assert (avatars.draw(50, seed=3) != avatars.draw(50, seed=4)).any()


def test_draw_is_uniform_but_half_without_beard_and_glasses_and_independent():
  n = 40_000
  rows = avatars.draw(n)
  for i, (name, values) in enumerate(VALUES.items()):
    share = np.bincount(rows[:, i], minlength=len(values)) / n
    want = np.full(len(values), 1 / len(values))
    if name in ("facial_hair", "glasses"):
      assert values[0] == "none"
      want = np.r_[0.5, np.full(len(values) - 1, 0.5 / (len(values) - 1))]
    assert len(share) == len(values)
    np.testing.assert_allclose(share, want, atol=5 * np.sqrt(want.max() / n))
  correlation = np.corrcoef(rows.T) - np.eye(len(NAMES))
  assert np.abs(correlation).max() < 5 / np.sqrt(n)


def test_edit_changes_what_it_names_and_nothing_else():
  row = avatars.draw(1, seed=5)[0]
  after = avatars.edit(row, glasses="round", skin="black")
  changed = {"glasses": VALUES["glasses"].index("round"), "skin": VALUES["skin"].index("black")}
  assert after.tolist() == [changed.get(name, row[i]) for i, name in enumerate(NAMES)]
  np.testing.assert_array_equal(row, avatars.draw(1, seed=5)[0])
  with pytest.raises(ValueError, match=r"no glasses=monocle.*none, eyepatch"):
    avatars.edit(row, glasses="monocle")
  with pytest.raises(ValueError, match=r"no ears=big.*skin, hair_color"):
    avatars.edit(row, ears="big")


# ---- the drawing


def test_a_face_is_a_function_of_its_row():
  row = avatars.draw(1, seed=2)[0]
  image = avatars.render(row)
  assert (image.shape, image.dtype) == ((64, 64, 3), np.uint8)
  assert (image[[0, 0], [0, -1]] == 255).all()  # white behind
  np.testing.assert_array_equal(avatars.render(row), image)
  small = avatars.render(row, size=32).astype(float)
  halved = image.reshape(32, 2, 32, 2, 3).mean((1, 3))
  assert np.abs(small - halved).mean() < 3


def test_colours_are_those_of_their_names():
  at = lambda y, x, **values: avatars.render(face(**values))[y, x].tolist()
  for name, colour in [("pale", [255, 219, 180]), ("black", [97, 67, 53])]:
    assert at(18, 32, skin=name, hair="none") == colour  # forehead
  for name, colour in [("red", [255, 92, 92]), ("blue_03", [37, 85, 124])]:
    assert at(60, 32, clothes_color=name) == colour
  for name, colour in [("red", [201, 51, 5]), ("platinum", [236, 220, 191])]:
    assert at(40, 26, facial_hair="beard_medium", hair="none", hair_color=name) == colour
    assert at(10, 32, hair="fro", hair_color=name) == colour


def test_faces_stand_in_the_middle():
  image = avatars.render(face(hair="none", mouth="serious")).astype(int)
  body = np.flatnonzero((image != 255).any((0, 2)))
  assert body[0] == 63 - body[-1]
  assert np.abs(image - image[:, ::-1]).mean() < 2  # but for shading


def test_every_value_looks_different():
  for name, values in VALUES.items():
    seen = {value: avatars.render(face(**{name: value})).astype(int) for value in values}
    for a, b in itertools.combinations(values, 2):
      assert np.abs(seen[a] - seen[b]).max(2).max() >= 25, f"{name}: {a} and {b} look alike"


def test_no_hair_hides_another_attribute():
  for hair in VALUES["hair"]:
    before = avatars.render(face(hair=hair)).astype(int)
    others = {"facial_hair": "beard_medium", "glasses": "sunglasses", "hair_color": "platinum"}
    for name, value in others.items():
      if (hair, name) == ("none", "hair_color"):
        continue
      after = avatars.render(face(hair=hair, **{name: value})).astype(int)
      assert (np.abs(after - before).max(2) > 16).sum() >= 9, f"{hair} hides {name}"


@pytest.mark.parametrize("glasses", [v for v in VALUES["glasses"] if v != "none"])
def test_no_glasses_hide_eyes_or_brows(glasses):
  before = avatars.render(face(glasses=glasses)).astype(int)
  for name, value in (("eyes", "heart"), ("brows", "none")):
    after = avatars.render(face(glasses=glasses, **{name: value})).astype(int)
    assert (np.abs(after - before).max(2) > 16).sum() >= 8


def test_a_counterfactual_changes_its_own_place():
  before = avatars.render(face()).astype(int)
  for name, value, top, bottom in [
    ("glasses", "wayfarers", 18, 34),
    ("mouth", "scream_open", 28, 42),
    ("clothes_color", "white", 40, 64),
    ("brows", "angry", 16, 28),
  ]:
    rows = np.flatnonzero((avatars.render(face(**{name: value})) != before).any((1, 2)))
    assert top <= rows[0] and rows[-1] < bottom, name


def test_other_versions_are_refused(monkeypatch, tmp_path):
  avatars.require_packages.cache_clear()
  monkeypatch.setattr(avatars, "PACKAGES", {"python-avatars": "9.9", "resvg-none": "0.5.0"})
  pip = r"pip install python-avatars==9\.9 resvg-none==0\.5\.0"
  with pytest.raises(
    ModuleNotFoundError, match=rf"found python-avatars 1\.4\.1, resvg-none none: {pip}"
  ):
    avatars.render(face())
  with pytest.raises(RuntimeError, match=rf"cannot prepare 'avatars'.*{pip}.*mnist10k"):
    prepare.ensure("avatars", tmp_path, say=lambda line: None)
  assert not prepare.path("avatars", tmp_path).exists()


# ---- columns

HATS = {"size": ("s", "m", "l"), "hat": ("none", "cap", "fez"), "tie": ("no", "yes")}


def test_columns_and_their_values():
  names = attributes.columns(("hat", "size=m|l", "tie!=no", "hat!=cap|fez"), HATS)
  assert names == ("hat=none", "hat=cap", "hat=fez", "size=m|l", "tie!=no", "hat!=cap|fez")
  rows = np.array([[0, 2, 1], [2, 0, 0], [1, 1, 1]], np.uint8)
  found = attributes.encoder(names, HATS)(rows)
  assert found.dtype == np.float32
  assert found.tolist() == [
    [0, 0, 1, 0, 1, 0],
    [1, 0, 0, 1, 0, 1],
    [0, 1, 0, 1, 1, 0],
  ]
  assert attributes.columns("tie", HATS) == ("tie=no", "tie=yes")  # one name needs no brackets
  assert attributes.columns((), HATS) == ()


def test_unknown_columns():
  flag = r"--config\.data\.attributes"
  for wanted, match in [
    ("shoe", rf"'shoe'.*{flag}.*size, hat, tie"),
    ("hat!", rf"'hat!'.*{flag}"),
    ("hat=cap|bowl", rf"no hat 'bowl'.*{flag}.*none, cap, fez"),
    (("hat", "hat=cap"), rf"{flag} names hat=cap more than once"),
  ]:
    with pytest.raises(ValueError, match=match):
      attributes.columns(wanted, HATS)
  with pytest.raises(ValueError, match=r"'shoe'.*--config\.data\.label_key.*size, hat, tie"):
    attributes.position("shoe", HATS)


# ---- the prepared set


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A folder with a set of 20 faces, made without any fetching."""
  made = tmp_path_factory.mktemp("data")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(packages, "fetch", lambda *_: pytest.fail("nothing is to be fetched"))
    lines = []
    prepare.ensure("avatars_20_3", made, say=lines.append)
  (line,) = lines
  assert "preparing avatars_20_3: drawing 20 examples" in line and str(made) in line
  return made


def load(folder, split="train", **keys):
  cfg = {"name": "avatars_20_3", "dir": str(folder), "image_size": 0, **keys}
  cfg = ml_collections.ConfigDict(cfg)
  source = prepared.load(cfg, split, shuffle=False)
  assert source.info == prepared.info(cfg)
  batch = source.decode(source.batch(0, 2))
  want = batch_shapes(source.info, 2)
  assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
    k: (v.shape, v.dtype) for k, v in want.items()
  }
  return source


def test_the_set_holds_the_faces_of_its_seed(folder):
  rows = avatars.draw(20, seed=3)
  train, test = (load(folder, split) for split in ("train", "test"))
  np.testing.assert_array_equal(train.arrays["attributes"], rows[:18])
  np.testing.assert_array_equal(test.arrays["attributes"], rows[18:])
  for source, first in ((train, 0), (test, 18)):
    np.testing.assert_array_equal(source.arrays["image"][1], avatars.render(rows[first + 1]))
  assert set(train.info.shape) == {"image"} and train.info.num_classes == 0


def test_the_set_can_be_read_by_tfds(folder):
  builder = tensorflow_datasets.builder_from_directory(prepare.path("avatars_20_3", folder))
  assert {s: i.num_examples for s, i in builder.info.splits.items()} == {"train": 18, "test": 2}
  record = builder.as_data_source(split="test")[0]
  row = avatars.draw(20, seed=3)[18]
  np.testing.assert_array_equal(record["attributes"], row)
  np.testing.assert_array_equal(record["image"], avatars.render(row))
  assert "glasses: none, eyepatch" in builder.info.description


def test_attributes_and_label_of_a_batch(folder):
  rows = avatars.draw(20, seed=3)[:18]
  source = load(folder, attributes=("hair_color", "glasses!=none"), label_key="skin")
  shape = {"image": (64, 64, 3), "label": (), "attributes": (11,), "drawn": (10,)}
  assert source.info.shape == shape
  assert source.info.num_classes == 7 and source.classes == avatars.VALUES["skin"]
  assert source.info.columns[1] == "hair_color=black"
  batch = source.decode(source.batch(0, 18))
  rows = rows[source.indices(0, 18)]
  assert np.asarray(batch["label"]).tolist() == rows[:, NAMES.index("skin")].tolist()
  np.testing.assert_array_equal(batch["drawn"], rows)
  found = np.asarray(batch["attributes"])
  assert found[:, :10].argmax(1).tolist() == rows[:, NAMES.index("hair_color")].tolist()
  assert (found[:, :10].sum(1) == 1).all()
  assert found[:, 10].tolist() == (rows[:, NAMES.index("glasses")] != 0).tolist()
  with pytest.raises(ValueError, match=r"'ears'.*--config\.data\.label_key"):
    load(folder, label_key="ears")


def test_sizes(folder):
  full = load(folder).arrays["image"]
  half = load(folder, image_size=32).arrays["image"]
  np.testing.assert_allclose(half, full.reshape(18, 32, 2, 32, 2, 3).mean((2, 4)), atol=0.501)
  large = load(folder, image_size=(80, 64)).arrays["image"]
  np.testing.assert_array_equal(large[:, 8:72], full)
  assert (large[:, :8] == 255).all() and (large[:, 72:] == 255).all()


def test_names_of_sets(tmp_path, capsys):
  assert sets.require("avatars").num_examples == {"train": 9_000, "test": 1_000}
  assert sets.require("avatars_50").num_examples == {"train": 45, "test": 5}
  with pytest.raises(ValueError, match=r"'avatars_x'.*avatars.*NAME_COUNT_SEED"):
    sets.require("avatars_x")
  with pytest.raises(ValueError, match=r"'mnist_50'.*--config\.data\.name"):
    sets.require("mnist_50")
  with pytest.raises(ValueError, match=r"'avatars_3' is too small.*avatars_10"):
    sets.require("avatars_3")
  assert prepare.main(["avatars_20", "--dir", str(tmp_path), "--file", sys.executable]) == 1
  said = capsys.readouterr().err
  assert "drawn and takes no --file" in said and "WHEEL" not in said
