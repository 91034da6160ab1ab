"""The classifier: its loss and averages by hand, that it learns, and the way of its weights out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import quickly

from configs import classifier as configs
from gm import core, job, loop
from gm.data import embedded
from gm.methods import classifier
from gm.metrics import digits
from gm.nets.classifier import DigitClassifier
from gm.weights import digits as weights


def build(**model):
  config = configs.get_config("test")
  config.model.update(model)
  (stage,) = classifier.stages(config, embedded.info({"name": "mnist10k"}))
  return stage._replace(init=jax.jit(stage.init), step=jax.jit(stage.step))


def batches(split, size):
  source = embedded.load({"name": "mnist10k"}, split)
  return lambda i: {k: jnp.asarray(v) for k, v in source.decode(source.batch(i, size)).items()}


def predictions(params, x):
  return np.asarray(DigitClassifier().apply({"params": params}, x)[0], np.float64)


def test_loss_is_the_mean_cross_entropy():
  stage = build(shift=0)
  batch = batches("train", 8)(0)
  before = quickly(stage.init, jax.random.key(0), batch, None)
  after, found = quickly(stage.step, before, batch, jax.random.key(1))
  logits, y = predictions(before.params["c"], batch["image"]), np.asarray(batch["label"])
  log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
  np.testing.assert_allclose(found["loss_c"], -log_probs[np.arange(8), y].mean(), rtol=1e-4)
  np.testing.assert_allclose(found["train_accuracy"], (logits.argmax(1) == y).mean())
  assert predictions(after.params["c"], batch["image"])[np.arange(8), y].mean() > (
    logits[np.arange(8), y].mean()
  )


def test_images_are_shifted_and_labels_are_not():
  still = build(shift=0)
  shifting = build(shift=2)
  batch = batches("train", 8)(0)
  state = quickly(still.init, jax.random.key(0), batch, None)
  losses = {
    (s, k): float(stage.step(state, batch, jax.random.key(k))[1]["loss_c"])
    for s, stage in ((0, still), (2, shifting))
    for k in (1, 2)
  }
  assert losses[0, 1] == losses[0, 2]
  assert losses[2, 1] != losses[2, 2]
  # an image that is one value everywhere stays itself: the border is repeated
  flat = {**batch, "image": jnp.full_like(batch["image"], 0.3)}
  a, b = (s.step(state, flat, jax.random.key(1))[1]["loss_c"] for s in (still, shifting))
  np.testing.assert_allclose(a, b, rtol=1e-5)


def test_average_starts_at_the_first_weights_and_lengthens():
  stage = build(ema=0.05)
  batch = batches("train", 8)
  states = [quickly(stage.init, jax.random.key(0), batch(0), None)]
  for i in range(3):
    states.append(stage.step(states[-1], batch(i), jax.random.key(i))[0])
  one, two, three = (s.params["c"]["Dense_1"]["bias"] for s in states[1:])
  mean = lambda s: s.ema["c"]["Dense_1"]["bias"]
  np.testing.assert_allclose(mean(states[1]), one, rtol=1e-6)  # decay 0 / 10
  np.testing.assert_allclose(mean(states[2]), 0.05 * one + 0.95 * two, rtol=1e-4)  # not 1 / 11
  np.testing.assert_allclose(
    mean(states[3]), 0.05 * (0.05 * one + 0.95 * two) + 0.95 * three, rtol=1e-4
  )


def test_evaluation_and_samples_use_the_average():
  stage = build()
  batch = batches("test", 40)(0)
  state = quickly(stage.init, jax.random.key(0), batch, None)
  other = quickly(stage.init, jax.random.key(1), batch, None).params
  state = state.replace(ema=other)
  guess = predictions(other["c"], batch["image"]).argmax(1)
  right = (guess == np.asarray(batch["label"])).mean()
  found = quickly(stage.evaluate, state, batch, jax.random.key(2))
  assert float(found["accuracy"]) == pytest.approx(right)
  drawn = quickly(stage.sample, state, batch, jax.random.key(2))
  np.testing.assert_array_equal(drawn["label"], guess)
  np.testing.assert_array_equal(drawn["image"], batch["image"])
  picture = quickly(stage.show, state, batch, jax.random.key(2))["sorted"]
  assert picture.shape == (5, 8, 28, 28, 1)
  ordered = predictions(other["c"], picture.reshape(40, 28, 28, 1)).argmax(1)
  assert (np.diff(ordered) >= 0).all()


def train(num_steps, sign=1.0):
  config = configs.get_config("test")
  config.num_steps, config.lr = num_steps, sign * 2e-3
  (stage,) = classifier.stages(config, embedded.info({"name": "mnist10k"}))
  batch, step = batches("train", 32), jax.jit(stage.step, donate_argnums=0)
  state = jax.jit(stage.init)(jax.random.key(0), batch(0), None)
  for i in range(num_steps):
    state, _ = step(state, batch(i), jax.random.key(i))
  return float(stage.evaluate(state, batches("test", 250)(0), jax.random.key(0))["accuracy"])


def test_it_learns():
  assert train(30) > 0.65
  assert train(8, sign=-1.0) < 0.3


@pytest.mark.learning
def test_it_learns_the_embedded_digits():
  """Two epochs of the 9,000 training digits, on digits that it has not seen."""
  assert train(560) > 0.965


def test_number_of_parameters():
  config = configs.get_config("paper")
  (stage,) = classifier.stages(config, embedded.info({"name": "mnist10k"}))
  batch = core.batch_shapes(embedded.info({"name": "mnist10k"}), 2)
  state = jax.eval_shape(stage.init, jax.random.key(0), batch, None)
  expected = (25 * 32 + 32) + (25 * 32 * 64 + 64) + (7 * 7 * 64 * 128 + 128) + (1280 + 10)
  assert core.count(state.params) == expected == 454_922


def test_other_data_are_refused():
  config = configs.get_config("test")
  for info in (
    embedded.info({"name": "mnist10k", "image_size": 32}),
    core.Info({"point": (2,)}, num_classes=8),
    core.Info({"image": (28, 28, 1)}),
  ):
    with pytest.raises(ValueError, match=r"--config\.data\.name"):
      classifier.stages(config, info)


def test_exported_weights_are_the_averages_and_the_record_is_true(tmp_path, capsys):
  config = configs.get_config("test")
  config.cpu_devices, config.num_devices = 2, 1  # what the tests have, and of these one
  workdir, file = tmp_path / "run", tmp_path / "weights.npz"
  loop.train(config, str(workdir))
  assert digits.main(["export", f"--workdir={workdir}", f"--to={file}"]) == 0
  capsys.readouterr()
  variables, record = weights.load(file)
  state = job.restore(job.prepare(config), str(workdir), 0)
  for a, b in zip(
    jax.tree.leaves(variables["params"]), jax.tree.leaves(state.ema["c"]), strict=True
  ):
    np.testing.assert_array_equal(a, np.asarray(b, np.float16))
  data = batches("test", 1000)(0)
  right = predictions(variables["params"], data["image"]).argmax(1) == np.asarray(data["label"])
  assert record["test_accuracy"] == pytest.approx(right.mean(), abs=2e-3)
  assert record["num_test"] == 1000 and record["data"] == "embedded:mnist10k"
  assert record["steps"] == 2 and record["seed"] == 0
