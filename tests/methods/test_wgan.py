"""WGAN: penalty and clipping against closed forms, directions, sizes, and that it learns."""

import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gm import core, errors, evaluation, inspection, job, loop, losses, optim, regularizers
from gm.methods import wgan
from gm.nets import mlp
from gm.probability import fit


def config_of(variant, **changes):
  config = importlib.import_module("configs.wgan").get_config(variant)
  config.update_from_flattened_dict({"num_devices": 1, **changes})
  return config


def train(config, workdir):
  loop.train(config, str(workdir))
  return json.loads((workdir / "eval.json").read_text())["metrics"]


@pytest.mark.parametrize("variant", ["paper", "paper_clip"])
def test_paper_has_the_published_sizes(variant):
  for channels, g, d in ((3, 12_141_827, 10_519_809), (1, 12_133_633, 10_511_617)):
    config = config_of(variant, **{"data.channels": channels})
    (stage,) = inspection.describe(job.prepare(config))["stages"]
    assert stage["params"] == {"g": g, "d": d}
    assert stage["outputs"]["image"][1:] == [32, 32, channels]


def test_the_authors_mnist_networks_have_their_sizes():
  config = config_of("small", **{"model.base": 64, "model.kernel": 5})
  (stage,) = inspection.describe(job.prepare(config))["stages"]
  assert stage["params"] == {"g": 1_554_177, "d": 1_030_145}


def fit_critic(critic, params, loss, steps, lr, clip=None):
  """Moves a critic alone, by Adam; with RMSProp and clipping where there is a clip."""
  tx = optim.rmsprop(lr) if clip else optim.adam(lr)

  @jax.jit
  def run(params):
    def body(i, carry):
      params, opt = carry
      key = jax.random.fold_in(jax.random.key(9), i)
      updates, opt = tx.update(jax.grad(loss)(params, key), opt)
      params = optax.apply_updates(params, updates)
      return regularizers.clip_weights(params, clip) if clip else params, opt

    return jax.lax.fori_loop(0, steps, body, (params, tx.init(params)))[0]

  return run(params)


def test_penalty_on_two_points_has_the_closed_form():
  """Real at distance d from fake: W = d + d^2 / (2 weight), and -L_C = d + d^2 / (4 weight)."""
  distance, weight = 2.0, 10.0
  critic = mlp.Discriminator(widths=(64, 64), activation="tanh")
  real = jnp.zeros((64, 2)).at[:, 0].set(distance)
  fake = jnp.zeros((64, 2))
  params, _ = core.build(critic, jax.random.key(0), real)
  f = lambda p, x: critic.apply({"params": p}, x)

  def loss(p, key):
    between = regularizers.interpolate(key, real, fake)
    penalty = regularizers.gradient_penalty(lambda x: f(p, x), between)
    return losses.wasserstein_d(f(p, real), f(p, fake)) + weight * penalty

  params = fit_critic(critic, params, loss, 1500, 3e-3)
  estimate = -losses.wasserstein_d(f(params, real), f(params, fake))
  assert 2.05 < estimate < 2.35  # 2.20
  np.testing.assert_allclose(-loss(params, jax.random.key(3)), 2.10, atol=0.1)


def test_clipping_on_a_linear_critic_has_the_closed_form():
  """With f = w.x and data shifted by v: w_i = c sign(v_i), and the estimate is c |v|_1."""
  v, c = jnp.array([1.0, -2.0, 0.5]), 0.01
  tx, w = optim.rmsprop(5e-4), jnp.zeros(3)
  opt = tx.init(w)
  for i in range(200):
    x = jax.random.normal(jax.random.key(i), (64, 3))
    loss = lambda w: losses.wasserstein_d((x + v) @ w, x @ w)
    updates, opt = tx.update(jax.grad(loss)(w), opt)
    w = regularizers.clip_weights(optax.apply_updates(w, updates), c)
  np.testing.assert_allclose(w, c * jnp.sign(v), rtol=1e-6)
  np.testing.assert_allclose(-loss(w), c * 3.5, rtol=1e-5)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_critic_estimates_the_distance_of_two_gaussians_on_a_line(shift):
  """W1 of N(0, 1) and N(shift, 1) is shift; with a large penalty the estimate is within 10 %."""
  critic = mlp.Discriminator(widths=(64, 64), activation="tanh")
  params, _ = core.build(critic, jax.random.key(0), jnp.zeros((2, 1)))
  f = lambda p, x: critic.apply({"params": p}, x)

  def draw(key):
    x = jax.random.normal(key, (2, 512, 1))
    return x[0] + shift, x[1]

  def loss(p, key):
    k_data, k_between = jax.random.split(key)
    real, fake = draw(k_data)
    between = regularizers.interpolate(k_between, real, fake)
    penalty = regularizers.gradient_penalty(lambda x: f(p, x), between, one_sided=True)
    return losses.wasserstein_d(f(p, real), f(p, fake)) + 50.0 * penalty

  params = fit_critic(critic, params, loss, 2000, 2e-3)
  real, fake = (jnp.concatenate(x) for x in zip(*(draw(jax.random.key(i)) for i in range(40))))
  estimate = -losses.wasserstein_d(f(params, real), f(params, fake))
  np.testing.assert_allclose(fit.wasserstein_1d(real[:, 0], fake[:, 0]), shift, rtol=0.02)
  np.testing.assert_allclose(estimate, shift, rtol=0.10)


def test_slope_is_near_one_with_the_penalty_and_not_with_clipping():
  """On lines between held-out pairs of two Gaussians in the plane."""
  critic = mlp.Discriminator(widths=(64, 64), activation="tanh")
  params, _ = core.build(critic, jax.random.key(0), jnp.zeros((2, 2)))
  f = lambda p, x: critic.apply({"params": p}, x)

  def draw(key):
    real, fake = jax.random.normal(key, (2, 256, 2))
    return real + 2.0, fake

  def distance(p, key):
    real, fake = draw(key)
    return losses.wasserstein_d(f(p, real), f(p, fake))

  def penalised(p, key):
    between = regularizers.interpolate(key, *draw(key))
    return distance(p, key) + 10.0 * regularizers.gradient_penalty(lambda x: f(p, x), between)

  def slope(p):
    between = regularizers.interpolate(jax.random.key(1), *draw(jax.random.key(2)))
    return regularizers.gradient_norm(lambda x: f(p, x), between).mean()

  assert 0.8 < slope(fit_critic(critic, params, penalised, 1000, 2e-3)) < 1.3
  assert slope(fit_critic(critic, params, distance, 1000, 2e-3, clip=0.01)) < 0.2


@pytest.mark.parametrize("kind, gentle, steep", [("two_sided", 0.25, 4), ("one_sided", 0, 4)])
def test_one_side_of_the_penalty_spares_gentle_slopes(kind, gentle, steep):
  """The step's own penalty, of a linear critic on the line whose slope is 1/2 or 3."""
  changes = {"model.penalty": kind, "model.widths": (), "model.num_critic": 1, "batch_size": 8}
  (stage,) = job.plan(config_of("line", **changes))[1]
  batch = {"point": jnp.zeros((8, 1))}
  quick = {"xla_backend_optimization_level": 0}
  state = jax.jit(stage.init, compiler_options=quick)(jax.random.key(0), batch, None)
  step = jax.jit(stage.step, compiler_options=quick)
  for slope, want in ((0.5, gentle), (3.0, steep)):
    d = jax.tree.map(lambda w: jnp.full_like(w, slope), state.params["d"])
    found = step(state.replace(params={**state.params, "d": d}), batch, jax.random.key(1))[1]
    np.testing.assert_allclose(found["penalty"], want, rtol=1e-5)


@pytest.mark.parametrize("variant", ["test", "test_clip"])
def test_directions_and_routing(variant):
  """Against a frozen G the estimate grows, one small G step lowers it; each moves its own."""
  made = job.prepare(config_of(variant, **{"model.num_critic": 1, "lr": 1e-3}))
  stage, true = made.stages[0], core.move
  images = jax.random.normal(jax.random.key(0), (8, 28, 28, 1))
  batch = {"image": jnp.tanh(images), "label": jnp.zeros(8, jnp.int32)}
  state = stage.init(jax.random.key(1), batch, None)
  only = "d"

  def one(state, tx, grads, *, slot=None):
    return true(state, tx, grads, slot=slot) if only in grads else (state, {})

  core.move = one
  try:
    anew = lambda: jax.jit(lambda *args: stage.step(*args))  # `only` is read when it is traced
    step, found = anew(), []
    for i in range(30):
      after, metrics = step(state, batch, jax.random.key(i))
      jax.tree.map(np.testing.assert_array_equal, after.params["g"], state.params["g"])
      state = after
      found.append(float(metrics["w_estimate"]))
    assert found[-1] > 0 and found[-1] > found[0]
    only = "g"
    step = anew()
    after, before_g = step(state, batch, jax.random.key(50))
    jax.tree.map(np.testing.assert_array_equal, after.params["d"], state.params["d"])
    _, after_g = step(after, batch, jax.random.key(50))
    assert after_g["w_estimate"] < before_g["w_estimate"]
  finally:
    core.move = true


def test_clipping_bounds_every_weight_and_the_penalty_none():
  for variant, bounded in (("test_clip", True), ("test", False)):
    made = job.prepare(config_of(variant))
    batch = {"image": jnp.ones((16, 28, 28, 1)), "label": jnp.zeros(16, jnp.int32)}
    state = made.stages[0].init(jax.random.key(0), batch, None)
    state, _ = jax.jit(made.stages[0].step)(state, batch, jax.random.key(1))
    largest = max(float(np.abs(p).max()) for p in jax.tree.leaves(state.params["d"]))
    assert (largest <= 0.01 + 1e-9) == bounded


def test_the_critic_gives_one_unbounded_number_for_each_example():
  _, critic = wgan.networks(config_of("test").model, (28, 28, 1), "float32")
  x = 100 * jax.random.normal(jax.random.key(0), (16, 28, 28, 1))
  params, stats = core.build(critic, jax.random.key(1), x)
  f, _ = core.apply(critic, params, stats, x)
  assert f.shape == (16,) and np.abs(f).max() > 1


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"model.lipschitz": "cilp"}, r"--config\.model\.lipschitz='cilp' .* choose gp, clip"),
    ({"model.nets": "mpl"}, r"--config\.model\.nets='mpl' .* choose conv, mlp"),
    ({"data.source": "points", "data.name": "ring"}, r"--config\.model\.nets='conv' .* choose mlp"),
    ({"model.scheme": "he_uniform"}, r"--config\.model\.scheme='he_uniform' .* dcgan, torch"),
    (
      {"model.nets": "mlp", "model.scheme": "dcgan"},
      r"--config\.model\.scheme='dcgan' .* he_uniform",
    ),
    ({"model.first": "cnv"}, r"--config\.model\.first='cnv' .* choose conv, dense"),
    ({"model.output": "relu"}, r"--config\.model\.output='relu' .* tanh, sigmoid, none"),
    ({"model.g_norm": "bach"}, r"--config\.model\.g_norm='bach' .* none, batch, instance, layer"),
    ({"model.d_norm": "group"}, r"--config\.model\.d_norm='group' .* none, batch, instance, layer"),
  ],
)
def test_errors_name_the_flag(changes, message):
  with pytest.raises(errors.UserError, match=message):
    job.prepare(config_of("test", **changes))


def covers(workdir):
  """All 8 modes with >= 5 % each of 4,096 samples, and >= 65 % of them within 0.2 of a centre."""
  evaluator, state = evaluation.from_workdir(str(workdir), None)
  x = evaluator.draw(state, 4096)["point"]
  gaps = np.linalg.norm(x[:, None] - np.asarray(evaluator.info.modes), axis=-1)
  near = gaps.min(1) <= 0.2
  shares = np.bincount(gaps.argmin(1)[near], minlength=8) / len(x)
  return shares.min() >= 0.05 and near.mean() >= 0.65


def test_ring_is_covered_and_a_broken_game_does_not_cover_it(tmp_path, monkeypatch):
  quick = {"log_every": 1000, "sample_every": 0, "checkpoint_every": 0}
  train(config_of("ring", **quick), tmp_path / "ok")
  assert covers(tmp_path / "ok")
  true = losses.wasserstein_g
  monkeypatch.setattr(losses, "wasserstein_g", lambda f: -true(f))
  train(config_of("ring", **quick), tmp_path / "sign")
  assert not covers(tmp_path / "sign")


@pytest.mark.learning
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_small_learns_all_digits_with_slope_one(tmp_path, seed):
  found = train(config_of("small", seed=seed), tmp_path / "run")
  assert found["class_min_share"] >= 0.03, found
  assert 0.8 < found["slope"] < 1.3, found


@pytest.mark.learning
def test_small_with_a_wrong_sign_does_not_learn(tmp_path, monkeypatch):
  true = losses.wasserstein_g
  monkeypatch.setattr(losses, "wasserstein_g", lambda f: -true(f))
  assert train(config_of("small"), tmp_path / "run")["class_min_share"] < 0.03
