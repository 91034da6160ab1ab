"""Evaluation: each held-out example once, in no stored order, and nothing loaded for nothing."""

import importlib
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from gm import core, errors, evaluation, job, loop
from gm.data import folder as images_of
from gm.data import memory
from gm.metrics import digits, frechet


def prepared(method, variant="test", **changes):
  config = importlib.import_module(f"configs.{method}").get_config(variant)
  config.update_from_flattened_dict({"num_devices": 1, "metrics": (), **changes})
  return job.prepare(config)


def untrained(made):
  """A state of small positive and negative numbers, variances positive; nothing is compiled."""
  rng = np.random.default_rng(0)

  def numbers(path, s):
    x = 0.1 * rng.standard_normal(s.shape)
    return (abs(x) if "var" in jax.tree_util.keystr(path) else x).astype(s.dtype)

  return jax.tree_util.tree_map_with_path(numbers, made.templates[0])


# ---------------------------------------------------------------- held-out metrics, without a model


def evaluator_of(monkeypatch, *, stage, num=97, batch_size=64, num_devices=1, data="image"):
  """An evaluator of a stage of this test's own, on a test split of the numbers 0 ... num - 1."""
  made = prepared("gan", **{"batch_size": batch_size, "num_devices": num_devices})
  shape = (2, 2, 1) if data == "image" else (2,)
  info = core.Info({data: shape})
  rows = np.broadcast_to(np.arange(num).reshape(-1, *[1] * len(shape)), (num, *shape))
  rows = rows.astype(np.float32)

  def load(job, index, split, **options):
    assert (split, options) == ("test", {"shuffle": False, "whole": True})
    return memory.from_arrays(info, {data: rows}, lambda rows: dict(rows), shuffle=False)

  monkeypatch.setattr(evaluation, "load", load)
  made = made._replace(stages=[made.stages[0]._replace(**stage)], infos=[info])
  return evaluation.Evaluator(made, 0)


def numbers(state, batch, key):
  x = batch["image"][:, 0, 0, 0]
  return {"mean": x.mean(), "square": jnp.mean(x**2), "number": x}


def conclude(found, key):
  x = found["number"]
  return {"num": len(x), "distinct": 1 + (jnp.diff(jnp.sort(x)) > 0).sum(), "total": x.sum()}


STATE = core.State(jnp.zeros((), jnp.int32), {}, {})


@pytest.mark.parametrize("num_devices", [1, 2])
@pytest.mark.parametrize(("num", "batch_size"), [(97, 64), (97, 8), (60, 64), (1, 64), (16, 4)])
def test_every_held_out_example_counts_once(monkeypatch, num, batch_size, num_devices):
  options = {"num": num, "batch_size": batch_size, "num_devices": num_devices}
  evaluator = evaluator_of(
    monkeypatch, stage={"evaluate": numbers, "conclude": conclude}, **options
  )
  found = evaluator.evaluate(STATE)
  x = np.arange(num)
  expected = {"mean": x.mean(), "square": (x**2).mean(), "num": num, "distinct": num}
  assert found == pytest.approx({**expected, "total": x.sum()}, rel=1e-6)


def test_batches_are_split_over_the_devices_where_they_divide(monkeypatch):
  placed = []

  def evaluate(state, batch, key):
    placed.append((len(batch["image"]), jax.sharding.get_abstract_mesh().axis_names))
    return {"mean": core.shard(batch["image"]).mean()}

  evaluator = evaluator_of(monkeypatch, stage={"evaluate": evaluate}, num_devices=2)
  assert evaluator.evaluate(STATE)["mean"] == pytest.approx(48)
  assert placed == [(50, ("data",)), (47, ())]


def test_sizes_of_batches():
  for num in (1, 7, 64, 97, 1_000, 10_007):
    for limit in (8, 64, 104):
      for devices in (1, 2, 8):
        size = evaluation.even_size(num, limit, devices)
        assert 0 < size <= limit and size % devices == 0
        last = num - (-(-num // size) - 1) * size
        assert 0 < last <= size
        if num > limit:  # few rows at the end are a bad estimate, of a norm or a deviation
          assert num % size == 0 or last > size - -(-num // size) * devices


def test_the_held_out_examples_are_on_record(monkeypatch, tmp_path):
  for stage, expected in (({"evaluate": numbers, "conclude": conclude}, 97), ({}, 0)):
    stage = {"evaluate": core.nothing, **stage}
    evaluator = evaluator_of(monkeypatch, stage=stage)
    evaluator.source = evaluator.source._replace(origin={"name": "/cats", "listing": "3f09"})
    evaluator.finish(str(tmp_path), STATE)
    protocol = json.loads((tmp_path / "eval.json").read_text())["protocol"]
    assert protocol["num_held_out"] == expected
    assert protocol["data"] == "embedded:/cats, listing 3f09"


def test_one_batch_gives_the_same_where_nothing_is_drawn():
  """An autoencoder's 97 images at 64, on one device and two, against all of them at once."""
  found = {}
  for batch_size, num_devices in ((97, 1), (64, 1), (64, 2)):
    changes = {"data.source": "installed", "data.name": "digits", "batch_size": batch_size}
    made = prepared("autoencoder", **changes, num_devices=num_devices)
    evaluator = evaluation.Evaluator(made, 0)
    whole = evaluator.source
    some = {k: a[:97] for k, a in whole.arrays.items()}
    evaluator.source = memory.from_arrays(whole.info, some, whole.decode, shuffle=False)
    found[batch_size, num_devices] = evaluator.evaluate(untrained(made))
  for other in found.values():
    assert other == pytest.approx(found[97, 1], rel=1e-6)
  assert set(other) == {"mse", "nearest_accuracy"} and 0 < other["nearest_accuracy"] < 1


# ----------------------------------------------------------------------- sets stored in some order


def write_images(folder, num_classes, num, order, *, labelled=False):
  """Images of 8 pixels, as bright as their class, named in this order or in class folders."""
  rng = np.random.default_rng(0)
  label = np.repeat(np.arange(num_classes), num)
  x = 20 * rng.standard_normal((len(label), 8, 8)) + 60 + 195 * label[:, None, None] / num_classes
  x = np.clip(x, 0, 255).astype(np.uint8)
  for split in ("train", "test"):
    for place, row in enumerate(order(len(label))):
      name = f"{label[row]}/{place:03}.png" if labelled else f"{place:03}.png"
      path = folder / split / name
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(x[row]).save(path)
  return {"data.source": "folder", "data.dir": str(folder), "data.image_size": 8} | {
    "data.channels": 1,
    "data.num_classes": num_classes if labelled else 0,
  }


ORDERS = {
  "class by class": np.arange,
  "from the last to the first": lambda n: np.arange(n)[::-1],
  "shuffled": np.random.default_rng(1).permutation,
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
  """Three classes of 40 images, stored in three orders: the keys of config.data and the sources."""
  folder, sources = tmp_path_factory.mktemp("stored"), []
  for i, order in enumerate(ORDERS.values()):
    data = write_images(folder / str(i), 3, 40, order)
    keys = {k.removeprefix("data."): v for k, v in data.items()}
    sources.append(images_of.load(keys, "test", shuffle=False))
  return data, sources


def test_held_out_metrics_do_not_depend_on_the_stored_order(stored):
  """Of a VAE that encodes the brightness: its codes tell three classes, and little within them.

  A batch is as large as a class. What is drawn agrees as 120 draws do, the rest is equal.
  """
  data, sources = stored
  changes = {"model.enc_widths": (), "model.likelihood": "gaussian", "model.std": 1.0}
  made = prepared("vae", **data, **changes, batch_size=40)
  state = untrained(made)
  (layer,) = state.params["enc"].values()
  layer["kernel"][:] = np.eye(4)[0] / 16  # 4 times the mean of 64 pixels
  layer["bias"][:] = [0, 0, *[2 * np.log(0.15)] * 2]
  evaluator, found = evaluation.Evaluator(made, 0), []
  for evaluator.source in sources:
    found.append(evaluator.evaluate(state))
  for other in found:
    for name in ("rate", "active_units"):
      assert other[name] == pytest.approx(found[0][name], rel=1e-5), name
    for name in ("nll", "elbo", "distortion", "marginal_kl"):
      assert other[name] == pytest.approx(found[0][name], rel=0.03), name
    assert other["active_units"] == 1  # within a class it would be 0
    assert other["mutual_information"] == pytest.approx(np.log(3) + 0.03, abs=0.1)
  layer["kernel"][:] = 1e3 * np.random.default_rng(0).standard_normal((64, 4)) * [1, 1, 0, 0]
  apart = evaluator.evaluate(state)  # every code by itself: of 120, not of the 40 of a batch
  assert apart["mutual_information"] == pytest.approx(np.log(120), abs=1e-4)
  total = apart["mutual_information"] + apart["marginal_kl"]
  assert apart["active_units"] == 2 and total == pytest.approx(apart["rate"], rel=1e-5)


def quadrants(batch):
  """Mean brightness of the quarters of images, [N, 4]."""
  return batch["image"].reshape(-1, 2, 4, 2, 4).mean((2, 4)).reshape(-1, 4)


def distance(fake, real, info):
  return {"frechet": frechet.feature_distance(quadrants(fake), quadrants(real))}


def test_sample_metrics_do_not_depend_on_the_stored_order(stored):
  """A GAN and a perfect sampler against 60 of 120 images, as against 60 that are drawn at random.

  Distances lie between the least and the largest of 200 random subsets, and the perfect sampler's
  is of the size of the self-distance. The first 60 of a sorted set are far beyond.
  """
  data, sources = stored
  made = prepared("gan", **data, reference_split="test", num_eval_samples=60)
  evaluator, state, rng = evaluation.Evaluator(made, 0), untrained(made), np.random.default_rng(0)
  evaluator.metrics = {"distance": distance}
  whole = evaluator.real(120)
  some = lambda: {"image": rng.permutation(whole["image"])[:60]}
  floor = np.mean([frechet.self_distance(quadrants(whole), seed=i) for i in range(20)])
  for name, fake in (("gan", evaluator.draw(state, 60)), ("perfect", whole)):
    subsets = [distance(fake, some(), None)["frechet"] for _ in range(200)]
    for evaluator.source in sources:
      found = distance(fake, evaluator.real(60), None)["frechet"]
      assert min(subsets) <= found <= max(subsets), name
      if name == "gan":
        assert evaluator.evaluate(state)["frechet"] == pytest.approx(found)
      else:
        assert found < 3 * floor
  by_class = {"image": whole["image"][np.argsort(quadrants(whole).sum(1))][:60]}
  assert distance(fake, by_class, None)["frechet"] > 10 * floor


def test_a_folder_of_class_folders_gives_all_its_classes(tmp_path):
  """To metrics as real examples, and to a conditional GAN as what it is asked for."""
  data = write_images(tmp_path, 10, 20, np.arange, labelled=True)
  evaluator = evaluation.Evaluator(prepared("cgan", **data), 0)
  real = evaluator.real(120)["label"]
  assert np.bincount(real, minlength=10).min() >= 6  # 12 of each on average
  asked = evaluator.draw(untrained(evaluator.job), 32)["label"]
  assert len(set(asked.tolist())) >= 9


# -------------------------------------------------------------------------- nothing is loaded twice


class Reads:
  """Rows that a source was asked for, and those of them that were decoded outside a program."""

  def __init__(self, evaluator):
    source = evaluator.source
    self.asked, self.decoded = [], []

    def batch(i, size):
      self.asked.append(size)
      return source.batch(i, size)

    def decode(rows):
      self.decoded += [np.asarray(x) for x in rows.values()]
      return source.decode(rows)

    evaluator.source = source._replace(batch=batch, decode=decode)


def drawing(data):
  def sample(state, batch, key):
    return {data: jnp.zeros_like(batch[data])}

  def show(state, batch, key):
    return {"shown": batch[data][None]}

  return {"sample": sample, "show": show, "evaluate": core.nothing}


def test_pictures_of_images_decode_no_real_ones(monkeypatch, tmp_path):
  evaluator = evaluator_of(monkeypatch, stage=drawing("image"), num=16)
  reads = Reads(evaluator)
  evaluator.write_samples(str(tmp_path), STATE)
  evaluator.write_extra(str(tmp_path), STATE)
  assert not reads.decoded
  assert reads.asked == [evaluation.NUM_TILES, evaluation.NUM_TILES]


@pytest.mark.parametrize("num", [100, 6_000])
def test_plots_of_points_show_each_real_one_once(monkeypatch, tmp_path, num):
  evaluator = evaluator_of(monkeypatch, stage=drawing("point"), num=num, data="point")
  reads = Reads(evaluator)
  evaluator.write_samples(str(tmp_path), STATE)
  shown = np.concatenate(reads.decoded)[:, 0]
  assert len(shown) == len(set(shown)) == min(num, evaluation.NUM_POINTS)
  reads.asked.clear()
  evaluator.write_extra(str(tmp_path), STATE)
  assert reads.asked == [min(num, evaluation.NUM_SHOWN)]


def test_parts_are_joined_up_to_a_number():
  x = np.arange(18).reshape(9, 2)
  parts = [{"x": x[i : i + 3], "y": x[i : i + 3, 1]} for i in (0, 3, 6)]
  found = evaluation.join(iter(parts), 7)
  np.testing.assert_array_equal(found["x"], x[:7])
  np.testing.assert_array_equal(found["y"], x[:7, 1])


# ------------------------------------------------------------------------------ what a user is told


@pytest.mark.parametrize(
  ("method", "changes", "said"),
  [
    ("gan", {"metrics": ("mmd.codes",)}, r"mmd\.codes takes .* hold image: .*--config\.metrics"),
    (
      "gan",
      {"metrics": ("digits.scores",), "num_eval_samples": 2},
      r"digits\.scores needs 4 samples or more: raise --config\.num_eval_samples=2",
    ),
    (
      "gan",
      {"metrics": ("digits.scores",), "data.num_train": 1},
      r"digits\.scores needs 4 real examples or more, the train split has 1: .*num_train=0",
    ),
    ("gan", {"metrics": ("coverage.modes",)}, r"coverage\.modes needs data with known modes"),
    ("aae", {"metrics": ("mmd.codes", "probe.linear")}, r"probe\.linear .* hold code, .*latent"),
    (
      "cgan",
      {"metrics": ("digits.scores",), "num_classes": 2},
      r"digits\.scores .* 2 classes: take it out of --config\.metrics",
    ),
  ],
)
def test_a_metric_that_has_not_what_it_needs_is_named_before_anything_is_read(
  method, changes, said, monkeypatch, tmp_path
):
  made = prepared(method)
  if "num_classes" in changes:
    made = made._replace(infos=[made.infos[0]._replace(num_classes=changes["num_classes"])])
  made.config.metrics = changes["metrics"]
  made.config.num_eval_samples = changes.get("num_eval_samples", 16)
  made.config.data.num_train = changes.get("data.num_train", 0)
  monkeypatch.setattr(loop, "prepare", lambda *given: made)
  with pytest.raises(errors.UserError, match=said):
    loop.train(made.config, str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()


def test_metrics_that_fit_are_asked_and_run_nothing(monkeypatch):
  made = prepared("aae")
  made.config.metrics = ("mmd.codes", "digits.scores")
  monkeypatch.setattr(digits, "classify", None)
  evaluation.try_metrics(made)


def test_an_error_of_a_metric_is_one_line(monkeypatch):
  evaluator = evaluator_of(monkeypatch, stage={**drawing("image")}, num=16)

  def fails(fake, real, info):
    raise ValueError("4 at least: raise\n--config.num_eval_samples")

  evaluator.metrics, evaluator.real = {"fails": fails}, lambda num: {}
  with pytest.raises(errors.UserError, match=r"^4 at least: raise --config\.num_eval_samples$"):
    evaluator.evaluate(STATE)


def test_a_damaged_image_of_a_streamed_set_is_one_line(tmp_path):
  data = write_images(tmp_path, 10, 2, np.arange)
  for path in sorted(tmp_path.glob("train/*.png"))[1:]:  # the first tells what the set is like
    path.write_bytes(path.read_bytes()[:40])
  source = job.load(prepared("gan", **data, **{"data.memory_mb": 0}), 0, "train")
  with pytest.raises(errors.UserError, match=r"\.png: not readable as an image"):
    source.batch(0, 8)


def test_eval_mode_prints_what_it_found_and_writes_the_page_again(monkeypatch, tmp_path, capsys):
  evaluator = evaluator_of(monkeypatch, stage={"evaluate": numbers, "conclude": conclude}, num=4)
  monkeypatch.setattr(evaluation, "from_workdir", lambda *given: (evaluator, STATE))
  evaluation.run_eval(str(tmp_path), None)
  out = capsys.readouterr().out
  assert re.search(r"^train 0 .*mean 1\.5 .*square 3\.5", out)
  assert f"{tmp_path}/eval.json" in out and (tmp_path / "eval.json").exists()
  assert "3.5" in (tmp_path / "report.html").read_text()
