"""BigGAN: sizes, first state, orthogonality, averaging, accumulation, truncation, and learning."""

import functools
import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import on_paper, train

from gm import core, errors, evaluation, job, losses, optim, regularizers
from gm.methods import biggan
from gm.nets import resnet
from gm.nn import spectral

KEY = jax.random.key(2)
QUICK = {"xla_backend_optimization_level": 0}  # compiles faster, runs slower


def config_of(variant, **changes):
  config = importlib.import_module("configs.biggan").get_config(variant)
  config.update_from_flattened_dict({"num_devices": 1, **changes})
  return config


PASSES = [("test", {}, {"g": 3, "d": 3})]  # 2 steps of D and one of G; see test_promises.py


@functools.cache
def first(variant="test"):
  """The job, its stage, first state, a batch, and state and metrics after a step."""
  made = job.prepare(config_of(variant))
  stage = made.stages[0]
  image = jnp.tanh(jax.random.normal(jax.random.key(3), (16, 8, 8, 1)))
  batch = {"image": image, "label": jnp.arange(16, dtype=jnp.int32) % 10}
  state = jax.jit(stage.init, compiler_options=QUICK)(jax.random.key(0), batch, None)
  return made, stage, state, batch, step_of()(state, batch, jax.random.key(1))


@functools.cache
def step_of():
  return jax.jit(job.prepare(config_of("test")).stages[0].step)  # as the contract test compiles it


@pytest.mark.parametrize(
  "variant, g, d",
  [
    ("paper", 70_433_988, 87_982_370),
    ("narrow", 31_978_628, 39_448_258),
    ("cifar10", 4_304_387, 4_207_361),
  ],
)
def test_paper_has_the_published_sizes(variant, g, d):
  config = config_of(variant)
  made = on_paper("biggan", variant)
  assert config.data.test_split == ("test" if variant == "cifar10" else "validation")
  params = made.templates[0].params
  assert {n: core.count(p) for n, p in params.items()} == {"g": g, "d": d}
  if variant != "cifar10":  # z of 120 in 6 chunks of 20, beside 128 of the class
    assert params["g"]["net"]["first"]["kernel"].shape[0] == 20
    assert params["g"]["net"]["block4"]["norm1"]["scale"].shape[0] == 148


def test_images_need_not_be_square():
  made = job.prepare(config_of("test", **{"data.image_size": (16, 24), "model.attention": (8, 16)}))
  batch = core.batch_shapes(made.infos[0], made.sizes[0])
  out = jax.eval_shape(made.stages[0].sample, made.templates[0], batch, KEY)
  assert out["image"].shape == (made.sizes[0], 16, 24, 1)
  jax.eval_shape(lambda *a: made.stages[0].step(*a), made.templates[0], batch, KEY)


def test_what_is_normalised():
  """All kernels of G and D and D's class vectors; not G's, whether it has one table or many."""
  for variant, inside, outside in (
    ("test", "block0/norm0/scale", "embed/embedding"),
    ("test_tables", "block0/conv0/kernel", "block0/norm0/scale"),
  ):
    made = on_paper("biggan", variant)
    of = {n: made.templates[0].stats[n]["spectral"]["u"] for n in ("g", "d")}
    assert inside in of["g"] and outside not in of["g"] and "last/kernel" in of["g"]
    assert "head/embed/embedding" in of["d"]


def test_the_first_state():
  """Attention is the identity, and every sigma is 1 after one step from a random u."""
  _, _, state, _, _ = first()
  for n in ("g", "d"):
    net, u = state.params[n]["net"], state.stats[n]["spectral"]["u"]
    weights = dict(core_paths(net))
    one_step = lambda w, u: {p: spectral.sigma(w[p], u[p])[0] for p in u}
    sigmas = jax.jit(one_step, compiler_options=QUICK)(weights, u)
    np.testing.assert_allclose(list(sigmas.values()), 1.0, atol=1e-5)
    gammas = [w for path, w in weights.items() if path.endswith("gamma")]
    assert len(gammas) == 1 and gammas[0] == 0


def core_paths(tree):
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    yield "/".join(k.key for k in path), leaf


def test_attention_starts_with_gamma_alone():
  """Adam moves what has a gradient by about lr; the kernels of attention have none."""
  _, _, state, _, (after, _) = first()
  before, moved = (dict(core_paths(s.params["g"]["net"])) for s in (state, after))
  assert moved["attention8/gamma"] != 0
  # only the regulariser could pull, and their outputs are orthogonal
  for n in ("theta", "phi", "g"):
    np.testing.assert_allclose(
      moved[f"attention8/{n}/kernel"], before[f"attention8/{n}/kernel"], atol=1e-5
    )
  assert np.abs(moved["first/kernel"] - before["first/kernel"]).max() > 1e-4


def test_the_orthogonal_term_is_the_authors():
  """Their gradient 2 s ((W W^T) o (1 - I)) W is that of s/2 times the penalty; 0 at orthogonal."""
  w, s = jax.random.normal(KEY, (3, 3, 4, 6)), 1e-2
  rows = np.asarray(w, np.float64).reshape(-1, 6).T
  theirs = 2 * s * ((rows @ rows.T) * (1 - np.eye(6))) @ rows
  ours = jax.grad(lambda w: 0.5 * s * regularizers.orthogonal({"kernel": w}))(w)
  np.testing.assert_allclose(ours.reshape(-1, 6).T, theirs, rtol=1e-4, atol=1e-5)
  q = jax.nn.initializers.orthogonal()(KEY, (8, 6))
  assert np.abs(jax.grad(regularizers.orthogonal)(q)).max() < 1e-5


def test_the_loss_of_g_has_that_term(monkeypatch):
  """Half the strength times the penalty on raw weights of G, its class vectors left out."""
  _, _, state, batch, _ = first()
  true = core.apply

  def silent(net, params, stats, *args, train):  # nets that say 0, so that all else is 0
    out, new = true(net, params, stats, *args, train=train)
    return jnp.zeros_like(out), new

  monkeypatch.setattr(core, "apply", silent)

  def loss(strength):
    stage = job.prepare(config_of("test", **{"model.ortho_weight": strength})).stages[0]
    found = lambda s: stage.step(s, batch, KEY)[1]["loss_g"]
    return jax.jit(found, compiler_options=QUICK)(moved)

  noise = lambda w: w + 0.1 * jax.random.normal(KEY, w.shape)  # the first weights are orthogonal
  moved = state.replace(params=jax.tree.map(noise, state.params))
  kernels = [w for path, w in core_paths(moved.params["g"]) if w.ndim > 1 and "embed/" not in path]
  penalty = sum(float(regularizers.orthogonal(w)) for w in kernels)
  assert loss(0.0) == 0 and penalty > 0.1
  for strength in (1.0, 3.0):
    np.testing.assert_allclose(loss(strength), 0.5 * strength * penalty, rtol=1e-4)


def test_averages_copy_until_their_start_and_then_decay():
  """Parameters, running averages and u; the test variant starts at step 1 with decay 0.99."""
  _, _, _, batch, (one, _) = first()
  for name, of in (("g", one.params["g"]), ("g_stats", one.stats["g"])):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), one.ema[name], of)
  two, _ = step_of()(one, batch, jax.random.key(5))
  want = core.ema(one.ema, {"g": two.params["g"], "g_stats": two.stats["g"]}, 0.99)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), two.ema, want)
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), two.ema["g_stats"], one.ema["g_stats"])
  assert all(max(jax.tree.leaves(moved[c])) > 1e-6 for c in ("batch_stats", "spectral"))


def test_k_averages_of_a_constant():
  average, a = {"w": jnp.array(3.0)}, {"w": jnp.array(1.0)}
  for _ in range(5):
    average = core.ema(average, a, 0.9999)
  np.testing.assert_allclose(average["w"], 1 + 2 * 0.9999**5, rtol=1e-6)


def test_two_steps_of_d_for_one_of_g():
  _, _, _, _, (after, _) = first()
  assert int(after.opt["d"][0].count) == 2 and int(after.opt["g"][0].count) == 1
  assert on_paper("biggan", "paper").sizes == [2 * 2048]


def test_d_gradient_accumulated_is_that_of_one_batch():
  """No part of D mixes examples: 4 x 16 is 64; u starts from the same vector in each part."""
  d = spectral.SpectralNorm(resnet.Discriminator([8], 1, wide=True, num_classes=10))
  x = jax.random.normal(KEY, (128, 8, 8, 1))
  batch = {"x": x[:64], "fake": x[64:], "y": jnp.arange(64) % 10, "y_fake": jnp.arange(64) % 7}
  build = lambda: core.build(d, KEY, x[:2], batch["y"][:2])
  params, stats = jax.jit(build, compiler_options=QUICK)()

  def loss(p, b):
    both = jnp.concatenate([b["x"], b["fake"]]), jnp.concatenate([b["y"], b["y_fake"]])
    logits, new = core.apply(d, p["d"], stats, *both)
    return losses.hinge_d(*jnp.split(logits, 2)), (new, {})

  def run(k):
    step = lambda p: core.gradients(loss, {"d": p}, ["d"], batch, accumulate=k)
    (value, (new, _)), grads = jax.jit(step, compiler_options=QUICK)(params)
    return value, new, grads

  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), run(1), run(4))


ONES = jnp.ones((8, 8, 1))


def zeros(made):
  return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), made.templates[0])


def test_truncation_bounds_z(monkeypatch):
  """By a net that returns z."""
  monkeypatch.setattr(core, "apply", lambda net, params, stats, z, y, train: (z, stats))
  batch = {"image": jnp.zeros((400, 8, 8, 1)), "label": jnp.zeros(400, jnp.int32)}
  for threshold in (2.0, 1.0, 0.5, 0.0):
    made = job.prepare(config_of("test", **{"model.truncation": threshold}))
    largest = np.abs(made.stages[0].sample(zeros(made), batch, KEY)["image"]).max()
    assert 0.95 * threshold < largest <= threshold if threshold else largest > 2.5


def test_samples_are_less_various_at_a_lower_threshold():
  """Mean distance of pairs of a class, each threshold with statistics of its own."""
  _, _, _, batch, (one, _) = first()
  batch, spread = {**batch, "label": jnp.zeros(16, jnp.int32)}, []
  for threshold in (2.0, 0.5, 0.04):
    stage = job.prepare(config_of("test", **{"model.truncation": threshold})).stages[0]
    draw = jax.jit(lambda k: stage.sample(one, batch, k)["image"], compiler_options=QUICK)
    x = np.concatenate([draw(jax.random.key(i)) for i in range(8)]).reshape(8 * 16, -1)
    spread.append(np.linalg.norm(x[:, None] - x[None], axis=-1).sum() / (len(x) * (len(x) - 1)))
  assert spread[0] > 1.4 * spread[1] and spread[1] > 1.4 * spread[2], spread


def levels(monkeypatch):
  """Nets whose statistics are the largest |z| of the batch, and images those statistics."""

  def apply(net, params, stats, z, y, train):
    level = jnp.abs(z).max() if train else jax.tree.leaves(stats["batch_stats"])[0].max()
    norms = jax.tree.map(lambda s: jnp.full_like(s, level), stats["batch_stats"])
    return level * jnp.ones((len(z), 8, 8, 1)), {**stats, "batch_stats": norms}

  monkeypatch.setattr(core, "apply", apply)


def test_samples_use_statistics_of_their_state_and_truncation(monkeypatch):
  """The state's where they are that, else new ones."""
  levels(monkeypatch)
  made = job.prepare(config_of("test"))  # z is cut at 0.5
  start, batch = zeros(made), {"image": jnp.zeros((8, 8, 8, 1)), "label": jnp.zeros(8, jnp.int32)}
  draw = jax.jit(lambda s: made.stages[0].sample(s, batch, KEY)["image"].max())

  def at(step, threshold):
    statistics = jax.tree.map(lambda s: s + 7, start.extra["standing"]["statistics"])
    kept = {"step": jnp.int32(step), "threshold": jnp.float32(threshold), "statistics": statistics}
    return start.replace(step=jnp.int32(3), extra={"standing": kept})

  assert draw(at(3, 0.5)) == 7
  for stale in (at(-1, 0.5), at(2, 0.5), at(3, 0.0), at(3, 1.0)):
    assert 0.4 < draw(stale) <= 0.5


def test_the_picture_of_truncation_has_statistics_of_each_threshold(monkeypatch):
  levels(monkeypatch)
  made = job.prepare(config_of("test", **{"model.standing_passes": 4}))
  found = jax.jit(made.stages[0].show)(zeros(made), {}, KEY)
  assert found["truncation"].shape == (8, 10, 8, 8, 1) == found["classes"].shape
  for rows, threshold in zip(found["truncation"].reshape(4, -1), biggan.CUTS, strict=True):
    assert 0.7 * threshold < rows.min() == rows.max() <= threshold
  assert 0.4 < found["classes"].max() <= 0.5 and 0.4 < found["interpolation"].max() <= 0.5


@pytest.mark.parametrize("accumulate", [1, 4])
def test_both_players_see_statistics_of_parts(accumulate, monkeypatch):
  """By nets that paint the label and look for it, and statistics that count examples."""

  def apply(net, params, stats, x, y, train):
    if x.ndim == 4:
      return -jnp.abs(x.mean((1, 2, 3)) - y), stats
    return y[:, None, None, None] * ONES, jax.tree.map(lambda s: s + len(y), stats)

  made = job.prepare(config_of("test", accumulate=accumulate, num_devices=1))
  y = jnp.arange(16, dtype=jnp.int32) % 10
  batch = {"image": y[:, None, None, None] * ONES, "label": y}
  monkeypatch.setattr(core, "apply", apply)
  step = jax.jit(lambda s: made.stages[0].step(s, batch, KEY))
  after, found = step(zeros(made))
  assert found["loss_d"] == 2 and found["margin"] == 0  # every sample is beside its own label
  for counted in jax.tree.leaves(after.stats["g"]):  # in two steps of D and one of G
    np.testing.assert_array_equal(counted, 3 * 8 / accumulate)
  after, _ = step(after)  # the second step takes standing statistics
  found = after.extra["standing"]
  assert found["step"] == 2 and found["threshold"] == 0.5
  for counted, average in zip(
    jax.tree.leaves(found["statistics"]), jax.tree.leaves(after.ema["g_stats"]["batch_stats"])
  ):
    np.testing.assert_allclose(counted - average, 8 / accumulate, rtol=1e-5)


def test_labels_of_samples_are_uniform(monkeypatch):
  """In two steps of D and one of G."""

  def minimize(state, tx, loss, names, b, **options):
    y = b["y_fake"] if "d" in names else b["y"]
    jax.debug.callback(lambda y: seen.append(np.bincount(y, minlength=10)), y)
    return state, {}

  made, seen = job.prepare(config_of("test", batch_size=1_000, **{"model.standing_every": 0})), []
  batch = {"image": jnp.zeros((2_000, 8, 8, 1)), "label": jnp.zeros(2_000, jnp.int32)}
  monkeypatch.setattr(core, "apply", lambda net, p, stats, z, y, train: (ONES[None], stats))
  monkeypatch.setattr(core, "minimize", minimize)
  jax.jit(made.stages[0].step, compiler_options=QUICK)(zeros(made), batch, KEY)
  jax.effects_barrier()
  np.testing.assert_allclose(seen, np.full((3, 10), 100), atol=40)  # four deviations


def test_standing_statistics_are_means_over_batches():
  """Every 2 steps in the test variant, over 2 batches, of the averaged G."""
  _, _, state, batch, (one, _) = first()
  unchanged = lambda a, b: all(
    (np.asarray(x) == np.asarray(y)).all() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b))
  )
  assert unchanged(state.extra, one.extra)
  two, _ = step_of()(one, batch, jax.random.key(5))
  assert not unchanged(one.extra, two.extra)
  standing = two.extra["standing"]["statistics"]
  first_norm = standing["net"]["block0"]["norm0"]
  # of one batch or two, not of an average that began at 0 and 1
  running = two.ema["g_stats"]["batch_stats"]["net"]["block0"]["norm0"]
  assert (first_norm["var"] < 0.5 * running["var"]).all()


def test_learning_rates_and_epsilons(monkeypatch):
  found, true = [], optim.adam
  monkeypatch.setattr(optim, "adam", lambda lr, **k: found.append((lr, k)) or true(lr, **k))
  for variant, g, d, eps in (("paper", 5e-5, 2e-4, 1e-6), ("cifar10", 2e-4, 2e-4, 1e-8)):
    config = config_of(variant)
    found.clear()
    job.prepare(config)
    np.testing.assert_allclose([lr for lr, _ in found], [g, d], rtol=1e-9)
    assert all(k == {"b1": 0.0, "b2": 0.999, "eps": eps} for _, k in found)


def test_each_player_moves_at_its_own_rate(monkeypatch):
  """Traced, with the rate in the place of the optimizer."""
  rates = {}

  def move(state, tx, grads, *, slot=None):
    rates[tuple(grads)] = tx
    return state, {}

  monkeypatch.setattr(optim, "adam", lambda lr, **options: lr)
  monkeypatch.setattr(core, "init_slot", lambda tx, params, names: ())
  monkeypatch.setattr(core, "move", move)
  made = job.prepare(config_of("test", **{"model.d_lr": 4.0}))
  batch = core.batch_shapes(made.infos[0], made.sizes[0])
  jax.eval_shape(lambda *args: made.stages[0].step(*args), made.templates[0], batch, KEY)
  assert rates == {("d",): 2e-3, ("g",): 5e-4}


def test_errors_say_what_is_allowed():
  for changes, match in (
    ({"model.z_dim": 5}, "z_dim"),
    ({"model.truncation": -1.0}, "truncation"),
    ({"model.embed_features": 0}, "embed_features"),
    ({"model.d_steps": 0}, "model.d_steps=0"),
    ({"model.standing_passes": 0}, "model.standing_passes=0"),
    ({"model.scheme": "uniform"}, "model.scheme='uniform'.*glorot, orthogonal, normal"),
    ({"model.d_down": 2}, "model.d_down to 0 ... 1"),
    ({"model.attention": (7,)}, r"height 7 .*\[8\].*\[4\].*model.attention"),
    ({"data.image_size": 32}, r"\[32\].*\[16\].*model.attention, or --config.data.image_size"),
    ({"data.source": "folder", "data.channels": 1}, "no labels"),
  ):
    with pytest.raises((ValueError, errors.UserError), match=match):
      job.prepare(config_of("test", **changes))


def trained(workdir, **changes):
  train(config_of("small", **changes), str(workdir))
  metrics = json.loads((workdir / "eval.json").read_text())["metrics"]
  return metrics, evaluation.from_workdir(str(workdir), None)


def mmd(x, y):
  """Squared MMD with a Gaussian kernel of the median distance, biased."""
  x, y = (a.reshape(len(a), -1) for a in (x, y))
  squares = lambda a, b: (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
  width = np.median(squares(y, y))
  k = lambda a, b: np.exp(-squares(a, b) / width).mean()
  return k(x, x) + k(y, y) - 2 * k(x, y)


@pytest.mark.learning
def test_small_puts_the_label_that_was_asked_for_and_averaging_helps(tmp_path):
  metrics, (evaluator, state) = trained(tmp_path / "run")
  assert metrics["label_agreement"] >= 0.9, metrics
  real, averaged = evaluator.real(2_000)["image"], evaluator.draw(state, 2_000)["image"]
  standing = {**state.extra["standing"], "step": state.step - 1}  # old, so taken anew of the raw G
  raw_state = state.replace(
    ema={"g": state.params["g"], "g_stats": state.stats["g"]}, extra={"standing": standing}
  )
  raw = evaluator.draw(raw_state, 2_000)["image"]
  assert mmd(averaged, real) < mmd(raw, real)


@pytest.mark.learning
def test_small_with_a_wrong_sign_does_not_learn(tmp_path, monkeypatch):
  true = losses.hinge_g
  monkeypatch.setattr(losses, "hinge_g", lambda fake: -true(fake))
  assert trained(tmp_path / "run", num_steps=500)[0]["label_agreement"] < 0.5
