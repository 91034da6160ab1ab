"""CGAN: sizes, start, constants, who moves, the pairs that D judges, and that labels are obeyed."""

import functools
import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import OPTIMISED, described, quickly, train
from flax import linen as nn

from gm import core, errors, evaluation, inspection, job, losses
from gm.methods import cgan
from gm.metrics import digits
from gm.nets import cgan as cgan_nets
from gm.nets import mlp
from gm.nn import init


def config_of(variant, **changes):
  config = importlib.import_module("configs.cgan").get_config(variant)
  config.update_from_flattened_dict({"num_devices": 1, **changes})
  return config


PASSES = [("test", {}, {"g": 1})]  # see test_promises.py


NARROW = {  # the paper's networks, small and without dropout
  **{"batch_size": 8, "model.z_dim": 4, "model.g_paths": (3, 5), "model.g_widths": (6,)},
  **{"model.d_paths": (4, 2), "model.d_widths": (5,), "model.dropout": 0.0},
}
QUICK = {"xla_backend_optimization_level": 0}
LABEL = jnp.array([3, 3, 1, 4, 1, 5, 9, 2])


@functools.cache
def play(variant="test", num_steps=1, **changes):
  """The stage, a batch, and (state, metrics) before and after one step."""
  (stage,) = job.prepare(config_of(variant, **changes)).stages
  image = jnp.tanh(jax.random.normal(jax.random.key(3), (8, 28, 28, 1)))
  batch, key = {"image": image, "label": LABEL}, jax.random.key(1)
  state = jax.jit(stage.init, compiler_options=QUICK)(jax.random.key(0), batch, None)
  step = jax.jit(stage.step, compiler_options=QUICK)
  return stage, batch, state, *(step(state, batch, key) if num_steps else ())


# ------------------------------------------------------------------------------------------ sizes


@pytest.mark.parametrize(
  "variant, g, d",
  [("paper", 2_413_984, 1_224_351), ("small", 1_511_412, 538_725), ("port", 1_511_412, 538_725)],
)
def test_published_sizes(variant, g, d):
  (stage,) = described("cgan", variant)
  assert stage["params"] == {"g": g, "d": d}
  assert stage["outputs"]["image"][1:] == [28, 28, 1]


@pytest.mark.parametrize("variant", ["small", "paper"])
def test_images_need_not_be_square(variant):
  config = config_of(variant, **{"data.image_size": (20, 36)})
  (stage,) = inspection.describe(job.prepare(config))["stages"]
  assert stage["outputs"]["image"][1:] == [20, 36, 1]


def test_the_port_starts_as_published():
  _, _, state = play("port", num_steps=0)
  for path, p in jax.tree_util.tree_leaves_with_path(state.params):
    name = jax.tree_util.keystr(path)
    if "embedding" in name:
      assert p.shape == (10, 10) and abs(p.std() - 1) < 0.2, name
    elif p.ndim == 2:
      off = p.std() / (0.1 * np.sqrt(2 / len(p))) - 1
      assert abs(off) < max(0.03, 4 / np.sqrt(2 * p.size)), name
    else:
      assert (p == name.endswith("['scale']")).all(), name
  assert "BatchNorm_3" not in state.params["g"]["net"]  # three of the four hidden layers


def test_the_paper_networks_start_as_the_first_gan():
  _, _, state = play("paper", num_steps=0)
  for n, limit in (("g", 0.05), ("d", 0.005)):
    for p in jax.tree.leaves(state.params[n]):
      assert not p.any() if p.ndim == 1 else 0.95 * limit < np.abs(p).max() <= limit
  assert state.stats["g"] == {}


# ---------------------------------------------------------------------------------------- networks


def test_embedding_by_hand():
  """A linear net of ones adds x and the row of the class."""
  net = mlp.Discriminator((), kernel_init=init.constant(1.0))
  both = cgan_nets.Embedding(net, features=2)
  x, y = jnp.array([[[1.0], [2.0]], [[3.0], [4.0]]]), jax.nn.one_hot(jnp.array([1, 0]), 3)
  params, _ = core.build(both, jax.random.key(0), x, y)
  params["embedding"]["kernel"] = jnp.array([[10.0, 20.0], [30.0, 40.0], [0.0, 0.0]])
  assert core.apply(both, params, {}, x, y)[0].tolist() == [3 + 70, 7 + 30]


def test_paths_by_hand():
  """Rectified, and maxout of two pieces, against NumPy."""
  x, y = jnp.array([[1.0, -2.0]]), jnp.array([[0.0, 1.0]])
  for pieces in (1, 2):
    paths = cgan_nets.Paths(mlp.Discriminator((), kernel_init=init.constant(1.0)), (3, 2), pieces)
    params, _ = core.build(paths, jax.random.key(1), x, y)
    want = 0.0
    for name, v in (("of_x", x), ("of_y", y)):
      layer = params[name] if pieces == 1 else params[name]["dense"]
      h = np.asarray(v @ layer["kernel"])
      want += np.maximum(h, 0).sum() if pieces == 1 else h.reshape(-1, 2).max(1).sum()
    np.testing.assert_allclose(core.apply(paths, params, {}, x, y)[0], [want], rtol=1e-5)


# ------------------------------------------------------------------------------------------ losses


def test_constants_of_an_undecided_discriminator():
  zero = jnp.zeros(7)
  for name, d, g in (("log", np.log(4), np.log(2)), ("squared", 0.5, 0.25)):
    d_loss, g_loss = cgan.LOSSES[name]
    np.testing.assert_allclose([d_loss(zero, zero), g_loss(zero)], [d, g], atol=1e-6)
  sure = jnp.array([-9.0])  # where D is sure, the squared loss is flat and the log loss is not
  assert abs(jax.grad(cgan.squared_g)(sure)[0]) < 1e-3
  assert jax.grad(losses.nonsaturating_g)(sure)[0] < -0.99
  s = jax.nn.sigmoid(jnp.array([0.3, -1.2]))  # by hand, and which side is which
  found = cgan.squared_d(jnp.array([0.3]), jnp.array([-1.2]))
  np.testing.assert_allclose(found, (s[0] - 1) ** 2 + s[1] ** 2, rtol=1e-6)


@pytest.mark.parametrize("variant, changes", [("test", {}), ("paper", NARROW)])
def test_d_judges_pairs_and_each_loss_moves_its_own_network(variant, changes):
  """Losses and gradients by hand: data with their labels, fakes with those they were drawn for."""
  _, batch, state, after, found = play(variant, **changes)
  config = config_of(variant, **changes)
  g, d = cgan.networks(config.model, (28, 28, 1), "float32")
  k_noise, k_label, *_ = jax.random.split(jax.random.key(1), 4)
  wanted = jax.nn.one_hot(jax.random.randint(k_label, (8,), 0, 10), 10)
  if variant == "paper":  # uniform noise in the unit cube, pixels in [0, 1]
    z, x = jax.random.uniform(k_noise, (8, 4)), (batch["image"] + 1) / 2
  else:
    z, x = jax.random.normal(k_noise, (8, 4)), batch["image"]

  def judge(p, x, y):
    return core.apply(d, p, {}, x, y)[0]

  def loss_d(p, p_g):
    fake, _ = core.apply(g, p_g, state.stats["g"], z, wanted)
    real = judge(p, x, jax.nn.one_hot(batch["label"], 10))
    return losses.bce_d(real, judge(p, fake, wanted))

  def loss_g(p, p_d):
    fake, _ = core.apply(g, p, state.stats["g"], z, wanted)
    return losses.nonsaturating_g(judge(p_d, fake, wanted))

  @functools.partial(jax.jit, compiler_options=QUICK)
  def by_hand(p, p_d):
    of_d = jax.value_and_grad(loss_d)(p["d"], p["g"])
    return {"d": of_d, "g": jax.value_and_grad(loss_g)(p["g"], p_d)}

  for n, (loss, grad) in by_hand(state.params, after.params["d"]).items():  # G meets the new D
    np.testing.assert_allclose(found[f"loss_{n}"], loss, rtol=1e-5)
    if variant == "test":  # Adam's first average is half of the gradient: b1 is 1/2
      close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6)
      jax.tree.map(lambda a, b: close(2 * a, b), after.opt[n][0].mu[n], grad)
    assert found[f"gradnorm_{n}"] > 0


def test_labels_of_samples_are_uniform(monkeypatch):
  seen = []

  def alternate(state, tx, generate, d_loss, g_loss, batch, **options):
    seen.append(batch["wanted"])
    return state, {}

  monkeypatch.setattr(core, "alternate", alternate)
  made = job.prepare(config_of("ring", batch_size=1_000))
  batch = {"point": jnp.zeros((1_000, 2)), "label": jnp.zeros(1_000, jnp.int32)}
  state = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), made.templates[0])
  made.stages[0].step(state, batch, jax.random.key(1))
  np.testing.assert_allclose(seen[0].sum(0), 1_000 / 8, atol=42)  # four deviations


def test_the_rows_of_the_tables_that_move_are_those_of_the_labels():
  """G's those drawn, D's those of the data too."""
  *_, after, _ = play()
  drawn = jax.random.randint(jax.random.split(jax.random.key(1), 4)[1], (8,), 0, 10)
  drawn, real = set(drawn.tolist()), set(LABEL.tolist())
  assert real - drawn and len(drawn | real) < 10  # else the next lines would show nothing
  for n, want in (("g", drawn), ("d", drawn | real)):
    used = np.abs(after.opt[n][0].mu[n]["embedding"]["kernel"]).max(1) > 0
    assert set(np.flatnonzero(used)) == want, n


def test_dropout_in_training_and_in_no_sample():
  stage, batch, state, _, dropped = play("paper", **{**NARROW, "model.dropout": 0.5})
  plain, *_, whole = play("paper", **NARROW)
  assert dropped["loss_d"] != whole["loss_d"] and dropped["gradnorm_g"] != whole["gradnorm_g"]
  a, b = (s.sample(state, batch, jax.random.key(2))["image"] for s in (stage, plain))
  np.testing.assert_array_equal(a, b)


def test_each_part_of_a_batch_has_its_own_dropout(monkeypatch):
  """Three keys a part: one of G, for both its passes, and two of D."""
  seen, true = [], core.apply

  def spy(*args, rngs, **kwargs):
    jax.debug.callback(
      lambda key: seen.append(tuple(key.tolist())), jax.random.key_data(rngs["dropout"])
    )
    return true(*args, rngs=rngs, **kwargs)

  _, batch, state = play("paper", num_steps=0, **NARROW)
  monkeypatch.setattr(core, "apply", spy)
  for parts in (1, 2):
    config = config_of("paper", **{**NARROW, "model.dropout": 0.5, "accumulate": parts})
    (stage,) = job.prepare(config).stages
    seen.clear()
    jax.jit(stage.step, compiler_options=QUICK)(state, batch, jax.random.key(1))
    jax.effects_barrier()
    assert len(set(seen)) == 3 * parts, seen


# ---------------------------------------------------------------------------------------- sampling


def test_samples_are_of_the_labels_asked_for():
  stage, batch, _, state, _ = play()
  found = quickly(stage.sample, state, batch, jax.random.key(4))
  np.testing.assert_array_equal(found["label"], batch["label"])
  g, _ = cgan.networks(config_of("test").model, (28, 28, 1), "float32")
  z = jax.random.normal(jax.random.key(4), (8, 4))
  draw = lambda y: core.apply(
    g, state.ema["g"], state.ema["g_stats"], z, jax.nn.one_hot(y, 10), train=False
  )[0]
  np.testing.assert_allclose(found["image"], draw(batch["label"]), atol=1e-6)
  (one,) = job.prepare(config_of("test", **{"model.sample_label": 7})).stages
  found = one.sample(state, batch, jax.random.key(4))
  assert found["label"].tolist() == [7] * 8 and found["label"].dtype == jnp.int32
  np.testing.assert_allclose(found["image"], draw(jnp.full(8, 7)), atol=1e-6)


def test_the_picture_has_a_class_in_a_row_and_a_noise_in_a_column():
  stage, batch, _, state, _ = play()
  grid = quickly(stage.show, state, batch, jax.random.key(5))["classes"]
  assert grid.shape == (10, 10, 28, 28, 1)
  g, _ = cgan.networks(config_of("test").model, (28, 28, 1), "float32")
  z, y = jax.random.normal(jax.random.key(5), (10, 4))[6], jax.nn.one_hot(jnp.array([2]), 10)
  want, _ = core.apply(g, state.ema["g"], state.ema["g_stats"], z[None], y, train=False)
  np.testing.assert_allclose(grid[2, 6], want[0], atol=1e-6)


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"data.source": "points", "data.name": "quadratic"}, r"points:quadratic.*data\.num_classes"),
    ({"model.sample_label": 10}, r"sample_label 10 .*--config\.model\.sample_label to 0 \.\.\. 9"),
    ({"model.sample_label": -2}, r"sample_label -2 .*--config\.model\.sample_label"),
    ({"model.loss": "hinge"}, r"--config\.model\.loss='hinge' .* choose log, squared"),
    ({"model.nets": "conv"}, r"--config\.model\.nets='conv' .* choose embedding, paths"),
    ({"model.optimizer": "adm"}, r"--config\.model\.optimizer='adm' .* choose adam, sgd"),
    ({"model.noise": "uniform"}, r"--config\.model\.noise='uniform' .* choose normal, unit"),
    ({"model.g_activation": "gelo"}, r"--config\.model\.g_activation='gelo' .* leaky_relu, tanh"),
    ({"model.g_norm": "instance"}, r"--config\.model\.g_norm=.* choose none, batch, layer"),
    ({"model.g_output": "relu"}, r"--config\.model\.g_output='relu' .* tanh, sigmoid, none"),
  ],
)
def test_errors_name_the_flag(changes, message):
  with pytest.raises(errors.UserError, match=message):
    job.prepare(config_of("test", **changes))


# ---------------------------------------------------------------------------------------- learning


def unpair(monkeypatch):
  """Gives D the data with the labels of their neighbours: a law in which x tells nothing of y."""
  true = core.alternate

  def alternate(state, tx, generate, d_loss, g_loss, batch, **kwargs):
    batch = {**batch, "y": jnp.roll(batch["y"], 1, axis=0)}
    return true(state, tx, generate, d_loss, g_loss, batch, **kwargs)

  monkeypatch.setattr(core, "alternate", alternate)


class Blind(nn.Module):
  """A D that does not see the label."""

  d: nn.Module

  @nn.compact
  def __call__(self, x, y, train=True):
    return self.d(x, jnp.zeros_like(y), train)


def two_gaussians(seed, num_steps=3_000, exchanged=False):
  """Trains on N(-2, 0.3^2) with label 0, N(2, 0.3^2) with 1; samples [label, 1_000].

  `exchanged` are the labels of the data. With 4 numbers of noise, as in `ring`, the deviations of
  three seeds are 0.06 to 0.15; with 8, and rows of 2 numbers for the labels, 0.16 to 0.24.
  """
  config = config_of("ring", **{"model.ema": 0.0, "model.z_dim": 8, "model.embed": 2})
  (stage,) = cgan.stages(config, core.Info({"point": (1,), "label": ()}, num_classes=2))

  def draw(key, exchanged):
    k_label, k_noise = jax.random.split(key)
    y = jax.random.randint(k_label, (128,), 0, 2)
    return {
      "point": (4.0 * y - 2)[:, None] + 0.3 * jax.random.normal(k_noise, (128, 1)),
      "label": jnp.where(exchanged, 1 - y, y),
    }

  @functools.partial(jax.jit, compiler_options=OPTIMISED)
  def run(key, exchanged):
    def body(i, state):
      k_data, k_step = jax.random.split(jax.random.fold_in(key, i))
      return stage.step(state, draw(k_data, exchanged), k_step)[0]

    state = stage.init(key, draw(jax.random.key(99), exchanged), None)
    state = jax.lax.fori_loop(0, num_steps, body, state)
    y = jnp.repeat(jnp.arange(2), 1_000)
    x = stage.sample(state, {"point": jnp.zeros((2_000, 1)), "label": y}, jax.random.key(98))
    return x["point"].reshape(2, 1_000)

  return run(jax.random.key(seed), exchanged)


def test_two_gaussians_by_label_and_one_law_where_labels_are_of_other_points(monkeypatch):
  x = two_gaussians(0)
  np.testing.assert_allclose(x.mean(1), [-2, 2], atol=0.5)
  assert ((x.std(1) > 0.08) & (x.std(1) < 0.6)).all(), x.std(1)
  unpair(monkeypatch)
  x = two_gaussians(0, num_steps=1_500)
  # both labels have one law; which is chance, the mixture in seeds 1 and 2, one mode in seed 0
  assert np.ptp(x.mean(1)) < 0.5 and np.ptp(x.std(1)) < 0.5, (x.mean(1), x.std(1))


def test_where_d_does_not_see_the_label_g_learns_nothing_of_it(monkeypatch):
  """Data of exchanged labels give the same samples: which label gets which law is chance."""
  runs = lambda: (two_gaussians(0, 100, exchanged) for exchanged in (False, True))
  a, b = runs()
  assert not np.array_equal(a, b)
  true = cgan.networks

  def networks(*args):
    g, d = true(*args)
    return g, Blind(d)

  monkeypatch.setattr(cgan, "networks", networks)
  np.testing.assert_array_equal(*runs())


def spread(x):
  """The mean distance of two of the images, as pixels."""
  x = np.asarray(x, np.float64).reshape(len(x), -1)
  square = (x**2).sum(1)
  gaps = np.sqrt(np.maximum(square[:, None] + square - 2 * x @ x.T, 0))
  return gaps.sum() / (len(x) * (len(x) - 1))


def agreement(images, labels):
  return float((digits.classify(images)[0].argmax(1) == labels).mean())


@pytest.mark.learning
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_small_draws_the_digit_asked_for(tmp_path, seed):
  """Nine times in ten; in none of the classes one picture again and again."""
  train(config_of("small", seed=seed), str(tmp_path))
  found = json.loads((tmp_path / "eval.json").read_text())["metrics"]
  assert found["label_agreement"] >= 0.9, found
  evaluator, state = evaluation.from_workdir(str(tmp_path), None)
  drawn, real = evaluator.draw(state, 1_000), evaluator.real(9_000)
  shuffled = np.random.default_rng(0).permutation(drawn["label"])
  assert 0.05 < agreement(drawn["image"], shuffled) < 0.15
  for digit in range(10):
    fake = drawn["image"][drawn["label"] == digit][:64]
    true = real["image"][real["label"] == digit][:64]
    assert len(fake) == len(true) == 64
    assert spread(fake) >= 0.4 * spread(true), digit


@pytest.mark.learning
def test_small_with_labels_of_other_images_ignores_the_label(tmp_path, monkeypatch):
  unpair(monkeypatch)
  train(config_of("small", num_steps=2_000), str(tmp_path))
  found = json.loads((tmp_path / "eval.json").read_text())["metrics"]
  assert found["label_agreement"] < 0.3, found
