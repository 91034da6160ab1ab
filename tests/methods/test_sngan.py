"""SN-GAN: sizes, the game's order and rates, projection, bounds, and that it learns."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import on_paper, train

from gm import core, errors, evaluation, job, losses, optim
from gm.methods import sngan
from gm.nets import sngan as sngan_nets


def config_of(variant, **changes):
  config = importlib.import_module("configs.sngan").get_config(variant)
  config.update_from_flattened_dict({"num_devices": 1, **changes})
  return config


KEY = jax.random.key(2)
QUICK = {"xla_backend_optimization_level": 0}  # compiles faster, runs slower


@functools.cache
def stepper():
  return jax.jit(first_stage().step)  # as the contract test compiles it


@functools.cache
def first_stage():
  return job.prepare(config_of("test")).stages[0]


@functools.cache
def first():
  """The stage, its first state, a batch, and state and metrics after a step."""
  stage = first_stage()
  image = jnp.tanh(jax.random.normal(jax.random.key(3), (16, 8, 8, 1)))
  batch = {"image": image, "label": jnp.arange(len(image), dtype=jnp.int32) % 10}
  state = jax.jit(stage.init, compiler_options=QUICK)(jax.random.key(0), batch, None)
  return stage, state, batch, stepper()(state, batch, jax.random.key(1))


@pytest.mark.parametrize(
  "variant, g, d",
  [
    ("paper", 4_276_739, 1_053_824),
    ("paper_cnn", 3_828_739, 5_860_865),
    ("imagenet", 41_996_931, 30_041_857),
    ("instance", 3_575_744, 2_764_736),
  ],
)
def test_paper_has_the_published_sizes(variant, g, d):
  config = config_of(variant)
  made = on_paper("sngan", variant)
  assert {n: core.count(p) for n, p in made.templates[0].params.items()} == {"g": g, "d": d}
  batch = core.batch_shapes(made.infos[0], 2)
  image = jax.eval_shape(made.stages[0].sample, made.templates[0], batch, KEY)
  side = {"imagenet": 128, "instance": 64}.get(variant, 32)
  assert image["image"].shape == (2, side, side, 3)
  assert config.data.test_split == ("validation" if variant == "imagenet" else "test")


def test_projection_adds_a_vector_for_each_class():
  made = on_paper("sngan", "projection")
  assert core.count(made.templates[0].params["d"]) == 1_053_824 + 1_280
  head = made.templates[0].params["d"]["net"]["head"]
  assert head["embed"]["embedding"].shape == (10, 128) and set(head["dense"]) == {"kernel"}


def test_every_weight_of_d_is_normalised_and_none_of_g():
  _, state, _, _ = first()
  weights = [p for p in jax.tree.leaves(state.params["d"]) if p.ndim > 1]
  assert len(state.stats["d"]["spectral"]["u"]) == len(weights)
  assert set(state.stats["g"]) == {"batch_stats"}
  made = job.prepare(config_of("control"))
  assert made.templates[0].stats["d"] == {}


SOFTPLUS = np.log1p(np.exp(-2.0))
TINY = {  # the variant `instance`, small
  "data.source": "embedded",
  "data.name": "mnist10k",
  "data.channels": 0,
  "data.image_size": 8,
  "batch_size": 8,
  "model.g_widths": (8, 4),
  "model.d_widths": (4, 8),
}


# of both in 2 steps of D and one of G; see test_promises.py
PASSES = [("test", {}, {"g": 3, "d": 3}), ("instance", TINY, {"g": 2, "d": 2})]


@pytest.mark.parametrize(
  "variant, changes",
  [("test", {}), ("test_cnn", {}), ("instance", {**TINY, "model.d_widths": (4, 8, 8)})],
)
def test_images_need_not_be_square(variant, changes):
  made = job.prepare(config_of(variant, **{**changes, "data.image_size": (16, 24)}))
  batch = core.batch_shapes(made.infos[0], made.sizes[0])
  out = jax.eval_shape(made.stages[0].sample, made.templates[0], batch, KEY)
  assert out["image"].shape == (made.sizes[0], 16, 24, 1)
  jax.eval_shape(lambda *a: made.stages[0].step(*a), made.templates[0], batch, KEY)


def test_instance_normalises_all_weights_but_the_last():
  """Of G and of D, whose output is a map; maps have mean 0 and variance 1, and no scale."""
  config = config_of("instance")
  made = job.prepare(config)
  for n in ("g", "d"):
    net = made.templates[0].params[n]["net"]
    kernels = {path for path, w in core_paths(net) if w.ndim > 1}
    assert "last/kernel" in kernels and set(net["last"]) == {"kernel"} and len(kernels) == 5
    assert set(made.templates[0].stats[n]) == {"spectral"}
    assert set(made.templates[0].stats[n]["spectral"]["u"]) == kernels - {"last/kernel"}
    assert {path for path, w in core_paths(net) if w.ndim == 1} == {
      path.replace("kernel", "bias") for path in kernels - {"last/kernel"}
    }
  _, d = sngan.networks(config, (64, 64, 3), 0)
  logits = jax.eval_shape(lambda: d.init_with_output(KEY, jnp.zeros((2, 64, 64, 3)))[0])
  assert logits.shape == (2, 3, 3)
  x = sngan_nets.instance_norm(3 + 2 * jax.random.normal(KEY, (2, 16, 8, 3)))
  np.testing.assert_allclose(x.mean((1, 2)), 0.0, atol=1e-5)
  np.testing.assert_allclose(x.std((1, 2)), 1.0, atol=1e-4)


def core_paths(tree):
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    yield "/".join(k.key for k in path), leaf


@pytest.mark.parametrize("variant, changes", [("test_cnn", {}), ("instance", TINY)])
def test_kernels_start_at_a_deviation_of_two_hundredths(variant, changes):
  wide = {"model.g_widths": (32, 16), "model.d_widths": (16, 32), "model.z_dim": 16}
  made = job.prepare(config_of(variant, **{**changes, **wide}))
  batch = {"image": jnp.zeros((8, 8, 8, 1))}
  params = jax.jit(lambda: made.stages[0].init(KEY, batch, None).params, compiler_options=QUICK)()
  for path, w in core_paths(params):
    if path.endswith("kernel"):
      tolerance = 4 / (2 * w.size) ** 0.5  # standard errors of a standard deviation
      np.testing.assert_allclose(w.std(), 0.02, rtol=tolerance, err_msg=path)
      np.testing.assert_allclose(w.mean(), 0.0, atol=0.02 * 4 / w.size**0.5, err_msg=path)
    elif path.endswith("bias"):
      assert not w.any(), path


def test_one_step_of_g_with_128_samples_then_five_of_d(monkeypatch):
  """The paper's iteration, traced; and the updates counted where it is small enough to run."""
  seen, true_g, true_d = [], losses.hinge_g, losses.hinge_d
  record = lambda *a: seen.append(tuple(x.shape[0] for x in a))
  monkeypatch.setattr(losses, "hinge_g", lambda fake: record(fake) or true_g(fake))
  monkeypatch.setattr(
    losses, "hinge_d", lambda real, fake: record(real, fake) or true_d(real, fake)
  )
  made = job.prepare(config_of("paper"))
  batch = core.batch_shapes(made.infos[0], made.sizes[0])
  assert batch["image"].shape[0] == 5 * 64
  jaxpr = jax.make_jaxpr(lambda *a: made.stages[0].step(*a))(made.templates[0], batch, KEY)
  assert seen[0] == (128,) and set(seen[1:]) == {(64, 64)}
  assert [e.params["length"] for e in jaxpr.eqns if e.primitive.name == "scan"] == [5]
  monkeypatch.undo()
  _, _, _, (after, _) = first()
  counts = {n: int(after.opt[n][0].count) for n in ("g", "d")}
  assert counts == {"g": 1, "d": 2}  # the test variant has d_steps=2


@pytest.mark.parametrize(
  "variant, points",
  [
    ("paper", {0: 2e-4, 25_000: 1e-4, 50_000: 0.0}),
    ("imagenet", {0: 2e-4, 400_000: 2e-4, 425_000: 1e-4}),
    ("paper_cnn", {0: 2e-4, 99_999: 2e-4}),
  ],
)
def test_learning_rate(variant, points, monkeypatch):
  """In iterations, for both players: D makes d_steps updates in each."""
  rates, true = [], optim.adam

  def spy(lr, **options):
    rates.append(lr if callable(lr) else lambda count: lr)
    b1, b2 = (0.5, 0.999) if variant == "paper_cnn" else (0.0, 0.9)
    assert options == {"b1": b1, "b2": b2, "eps": 1e-8}
    return true(lr, **options)

  config = config_of(variant)
  monkeypatch.setattr(optim, "adam", spy)
  job.prepare(config)
  for iteration, rate in points.items():
    for of_player, updates in zip(rates, (1, config.model.d_steps), strict=True):
      np.testing.assert_allclose(of_player(iteration * updates), rate, rtol=1e-5, atol=1e-12)


def test_losses_at_known_outputs():
  zero, real, fake = jnp.zeros(4), jnp.full(4, 2.0), jnp.full(4, -2.0)
  assert losses.hinge_d(zero, zero) == 2 and losses.hinge_g(zero) == 0
  assert losses.hinge_d(real, fake) == 0
  np.testing.assert_allclose(losses.bce_d(zero, zero), 2 * np.log(2), rtol=1e-6)


@pytest.mark.parametrize(
  "variant, changes, silent, sure",
  [
    ("test", {}, (2.0, 0.0), (0.0, -2.0)),
    ("test_cnn", {}, (2 * np.log(2), np.log(2)), (2 * SOFTPLUS, SOFTPLUS)),
    ("instance", TINY, (np.log(2), np.log(2)), (SOFTPLUS, SOFTPLUS)),
  ],
)
def test_losses_of_the_variants(variant, changes, silent, sure, monkeypatch):
  """For a D that says 0, and one that says 2 of what comes first and -2 of the samples after it."""
  made, true = job.prepare(config_of(variant, **changes)), core.apply
  batch = {"image": jnp.zeros((made.sizes[0], 8, 8, 1)), "label": jnp.zeros(made.sizes[0], int)}
  size = made.config.batch_size

  def found(scale):
    def apply(net, params, stats, x, *args, train):
      out, new = true(net, params, stats, x, *args, train=train)
      if x.ndim == 4:  # images, so it is D
        out = scale * jnp.ones_like(out).at[size:].set(-1.0)
      return out, new

    monkeypatch.setattr(core, "apply", apply)
    losses_of = lambda s: [made.stages[0].step(s, batch, KEY)[1][f"loss_{n}"] for n in ("d", "g")]
    state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), made.templates[0])
    return jax.jit(losses_of, compiler_options=QUICK)(state)

  np.testing.assert_allclose(found(0.0), silent, rtol=1e-6)
  np.testing.assert_allclose(found(2.0), sure, rtol=1e-6)


def test_all_are_judged_under_the_labels_that_they_are_of(monkeypatch):
  """By a G that paints its label and a D that looks for the one that it is told: all outputs are 0.

  The data's labels are of no other use, and not those of the samples.
  """

  def apply(net, params, stats, x, y, train=True):
    if x.ndim == 4:
      return -jnp.abs(x.mean((1, 2, 3)) - y), stats
    seen.append(y)
    return y[:, None, None, None] * jnp.ones((8, 8, 1)), stats

  made, seen = job.prepare(config_of("test", batch_size=1_000)), []
  y = jnp.arange(2_000, dtype=jnp.int32) % 10
  batch = {"image": y[:, None, None, None] * jnp.ones((8, 8, 1)), "label": y}
  state = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), made.templates[0])
  monkeypatch.setattr(core, "apply", apply)

  def losses_and_labels(batch):
    seen.clear()
    found = made.stages[0].step(state, batch, KEY)[1]
    return found["loss_d"], found["margin"], found["loss_g"], seen[0]

  run = jax.jit(losses_and_labels, compiler_options=QUICK)
  *found, drawn = run(batch)
  assert [float(v) for v in found] == [2.0, 0.0, 0.0]  # hinge, at outputs of 0
  np.testing.assert_allclose(np.bincount(drawn, minlength=10), 100, atol=40)  # four deviations
  wrong = run({**batch, "label": (y + 1) % 10})
  assert wrong[0] > 2.5 and wrong[2] == 0  # of the data alone


@pytest.mark.parametrize("variant, changes", [("test_cnn", {}), ("instance", TINY)])
def test_each_player_moves(variant, changes):
  """Of the variants that the contract does not run."""
  made = job.prepare(config_of(variant, **changes))
  stage, batch = made.stages[0], {"image": jax.random.normal(KEY, (made.sizes[0], 8, 8, 1))}

  def run():
    state = stage.init(KEY, batch, None)
    return state.params, *stage.step(state, batch, KEY)

  before, after, found = jax.jit(run, compiler_options=QUICK)()
  for n in ("g", "d"):
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before[n], after.params[n])
    assert max(jax.tree.leaves(moved)) > 1e-5 and np.isfinite(found[f"loss_{n}"]), n


def test_the_class_reaches_both_networks():
  stage, _, batch, (state, _) = first()
  for i in range(2):  # tables of G start at zero
    state, _ = stepper()(state, batch, jax.random.key(i))
  other = {**batch, "label": (batch["label"] + 1) % 10}
  look = jax.jit(lambda b: (stage.sample(state, b, KEY), stage.evaluate(state, b, KEY)["margin"]))
  (out, margin), (out_other, margin_other) = look(batch), look(other)
  np.testing.assert_array_equal(out["label"], batch["label"])
  assert np.abs(out["image"] - out_other["image"]).max() > 1e-4
  assert abs(margin - margin_other) > 1e-4


def test_data_are_dequantised_where_asked(monkeypatch):
  """Pixels k / 127.5 - 1 become k / 128 - 1 + U(0, 1 / 128), anew in each step of D."""
  k = jnp.arange(256.0).repeat(100)
  x = 128 * (sngan.dequantise(k / 127.5 - 1, KEY) + 1) - k
  assert -1e-3 < x.min() < 0.01 and 0.99 < x.max() < 1 + 1e-3
  np.testing.assert_allclose(x.mean(), 0.5, atol=0.01)
  seen, true = [], sngan.dequantise
  monkeypatch.setattr(sngan, "dequantise", lambda x, key: seen.append(x.shape) or true(x, key))
  for asked in (True, False):
    made = job.prepare(config_of("test", **{"model.dequantise": asked}))
    batch = core.batch_shapes(made.infos[0], made.sizes[0])
    seen.clear()
    jax.eval_shape(lambda *a: made.stages[0].step(*a), made.templates[0], batch, KEY)
    assert bool(seen) == asked and set(seen) <= {(8, 8, 8, 1)}
    seen.clear()
    held_out = lambda *a: made.stages[0].evaluate(*a)
    jax.eval_shape(held_out, made.templates[0], core.batch_shapes(made.infos[0], 4), KEY)
    assert seen == ([(4, 8, 8, 1)] if asked else [])  # D is asked about what it was trained on


def test_errors_say_what_is_allowed():
  for changes, match in (
    ({"model.nets": "unet"}, "model.nets='unet'.*resnet, cnn, instance, mlp"),
    ({"model.loss": "wasserstein"}, "model.loss='wasserstein'.*hinge, bce, half_bce"),
    ({"model.noise": "gaussian"}, "model.noise='gaussian'.*normal, uniform"),
    ({"model.d_steps": 0}, "model.d_steps=0"),
    ({"model.d_down": 2}, "model.d_down to 0 ... 1"),
    ({"model.nets": "cnn", "model.loss": "bce"}, "know no classes"),
    ({"data.image_size": 31}, "data.image_size"),
    (
      {"model.nets": "instance", "model.conditional": False, "data.image_size": 2},
      "data.image_size to a multiple of 2, at least 4",
    ),
    ({"data.source": "folder", "data.channels": 1}, "no labels"),
  ):
    with pytest.raises((ValueError, errors.UserError), match=match):
      job.prepare(config_of("test", **changes))


def covers(workdir):
  """All 8 modes with at least 5 % of 4,096 samples each, at least half of them near a centre."""
  evaluator, state = evaluation.from_workdir(str(workdir), None)
  x = evaluator.draw(state, 4096)["point"]
  gaps = np.linalg.norm(x[:, None] - np.asarray(evaluator.info.modes), axis=-1)
  near = gaps.min(1) <= 0.2
  shares = np.bincount(gaps.argmin(1)[near], minlength=8) / len(x)
  return shares.min() >= 0.05 and near.mean() >= 0.5


@pytest.mark.learning
def test_ring_is_covered_for_four_of_five_seeds(tmp_path):
  quick = {"log_every": 1000, "sample_every": 0, "checkpoint_every": 0}
  found = []
  for seed in range(5):
    train(config_of("ring", seed=seed, **quick), tmp_path / str(seed))
    found.append(covers(tmp_path / str(seed)))
  assert sum(found) >= 4, found


@pytest.mark.learning
def test_ring_with_a_wrong_sign_is_not_covered(tmp_path, monkeypatch):
  true = losses.hinge_g
  monkeypatch.setattr(losses, "hinge_g", lambda fake: -true(fake))
  quick = {"log_every": 1000, "sample_every": 0, "checkpoint_every": 0}
  train(config_of("ring", **quick), tmp_path / "sign")
  assert not covers(tmp_path / "sign")


@pytest.mark.learning
def test_small_puts_the_label_that_was_asked_for(tmp_path):
  assert train(config_of("small"), tmp_path / "run")["label_agreement"] >= 0.9


@pytest.mark.learning
def test_small_with_a_wrong_sign_puts_any_label(tmp_path, monkeypatch):
  true = losses.hinge_g
  monkeypatch.setattr(losses, "hinge_g", lambda fake: -true(fake))
  assert train(config_of("small"), tmp_path / "run")["label_agreement"] < 0.2


@pytest.mark.learning
def test_ring_without_normalisation_is_not_covered(tmp_path):
  """In no seed of three."""
  quick = {"log_every": 1000, "sample_every": 0, "checkpoint_every": 0}
  for seed in range(3):
    config = config_of("ring", seed=seed, **{"model.spectral": False, **quick})
    train(config, tmp_path / str(seed))
    assert not covers(tmp_path / str(seed)), seed
