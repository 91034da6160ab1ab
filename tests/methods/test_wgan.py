"""WGAN: penalty and clipping against closed forms, directions, sizes, and that it learns."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import OPTIMISED, quickly, train
from flax import linen as nn

from gm import core, errors, evaluation, inspection, job, losses
from gm.methods import wgan
from gm.nets import mlp


def config_of(variant, **changes):
  config = importlib.import_module("configs.wgan").get_config(variant)
  config.update_from_flattened_dict({"num_devices": 1, **changes})
  return config


# 2 steps of the critic, on data and samples; see test_promises.py
NORMS = {"model.g_norm": "batch", "model.d_norm": "batch"}
PASSES = [("test_clip", NORMS, {"g": 3, "d": 4})]


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


class Constant(nn.Module):
  """G(z) = c on a line."""

  @nn.compact
  def __call__(self, z, train=True):
    return jnp.broadcast_to(self.param("c", nn.initializers.constant(1.5), (1,)), (len(z), 1))


class Parabola(nn.Module):
  """f(x) = a x^2 / 2, of slope a |x|."""

  @nn.compact
  def __call__(self, x, train=True):
    return self.param("a", nn.initializers.constant(1.0), ()) * jnp.sum(x**2, 1) / 2


def test_a_step_by_hand_with_the_penalty_between_data_and_samples(monkeypatch):
  """Data at 3, samples at 1.5: points u between are uniform, so the penalty is an integral. Adam's
  averages have the gradients. G plays against the critic that has moved.
  """
  monkeypatch.setattr(wgan, "networks", lambda *args: (Constant(), Parabola()))
  n, weight, lr = 65_536, 2.0, 1e-2
  changes = {"batch_size": n, "lr": lr, "model.num_critic": 1, "model.gp_weight": weight}
  (stage,) = job.prepare(config_of("line", **changes, **{"model.b1": 0.3})).stages
  batch = {"point": jnp.full((n, 1), 3.0)}
  state = quickly(stage.init, jax.random.key(0), batch, None)
  after, found = jax.jit(stage.step)(state, batch, jax.random.key(1))
  u = np.linspace(1.5, 3, 1_001)
  mean = lambda y: np.trapezoid(y, u) / 1.5
  near = functools.partial(np.testing.assert_allclose, rtol=0.01)  # four errors
  near(found["penalty"], mean((u - 1) ** 2))
  distance = (1.5**2 - 3**2) / 2
  np.testing.assert_allclose(found["w_estimate"], -distance, rtol=1e-5)
  np.testing.assert_allclose(found["loss_d"], distance + weight * found["penalty"], rtol=1e-5)
  adam = after.opt["d"][0]
  grad = adam.mu["d"]["a"] / 0.7
  near(grad, distance + weight * mean(2 * (u - 1) * u))
  np.testing.assert_allclose(adam.nu["d"]["a"], 0.1 * grad**2, rtol=1e-4)
  a = 1 - lr * np.sign(grad)
  np.testing.assert_allclose(after.params["d"]["a"], a, rtol=1e-5)
  np.testing.assert_allclose(found["loss_g"], -a * 1.5**2 / 2, rtol=1e-5)
  np.testing.assert_allclose(after.opt["g"][0].mu["g"]["c"] / 0.7, [-a * 1.5], rtol=1e-4)


def test_each_step_of_the_critic_has_data_of_its_own_and_g_moves_once(monkeypatch):
  """Of five steps, told by what f says of the data: together they are the batch."""
  monkeypatch.setattr(wgan, "networks", lambda *args: (Constant(), Parabola()))
  (stage,) = job.prepare(config_of("line", batch_size=4, lr=1e-30)).stages
  x, seen, true = jnp.arange(20.0)[:, None], [], losses.wasserstein_d

  def spy(real, fake):
    jax.debug.callback(lambda real: seen.append(np.asarray(real)), real)
    return true(real, fake)

  state = quickly(stage.init, jax.random.key(0), {"point": x}, None)
  monkeypatch.setattr(losses, "wasserstein_d", spy)
  after, _ = jax.jit(stage.step)(state, {"point": x}, jax.random.key(1))
  jax.effects_barrier()
  assert len(seen) == 5
  np.testing.assert_allclose(np.sort(np.concatenate(seen)), x[:, 0] ** 2 / 2, rtol=1e-6)
  assert [int(after.opt[n][0].count) for n in ("d", "g")] == [5, 1]


def fit_critic(monkeypatch, mean, num_steps, *, std=1.0, widths=(64, 64), **changes):
  """The critic alone, moved by the method's own steps: data N(mean, std^2 I) against a G that
  stands still and draws N(0, std^2 I).

  Returns the state after, what the last step says, and the evaluation of 20,000 held-out points.
  """
  size = len(mean)
  g, d = mlp.Generator((size,), (), output="none"), mlp.Discriminator(widths, activation="tanh")
  monkeypatch.setattr(wgan, "networks", lambda *args: (g, d))
  config = config_of("ring", **{"model.num_critic": 1, "model.z_dim": size, **changes})
  (stage,) = wgan.stages(config, core.Info({"point": (size,)}))
  true = core.move
  of_d = lambda state, tx, grads, **slot: (
    true(state, tx, grads, **slot) if "d" in grads else (state, {})
  )
  monkeypatch.setattr(core, "move", of_d)

  def draw(key, n=config.batch_size):
    return {"point": jnp.asarray(mean) + std * jax.random.normal(key, (n, size))}

  @functools.partial(jax.jit, compiler_options=OPTIMISED)
  def run(key):
    k_data, k_step, k_test = jax.random.split(key, 3)
    state = stage.init(key, draw(k_test), None)
    still = {"Dense_0": {"kernel": std * jnp.eye(size), "bias": jnp.zeros(size)}}
    state = state.replace(params={**state.params, "g": still})

    def body(state, i):
      return stage.step(state, draw(jax.random.fold_in(k_data, i)), jax.random.fold_in(k_step, i))

    state, found = jax.lax.scan(body, state, jnp.arange(num_steps))
    last = {k: v[-1] for k, v in found.items()}
    found = stage.evaluate(state, draw(k_test, 20_000), k_step)
    return state, last, {**found, **(stage.conclude(found, k_step) if size == 1 else {})}

  return run(jax.random.key(0))


def test_penalty_on_two_points_has_the_closed_form(monkeypatch):
  """Real at distance d from fake: W = d + d^2 / (2 weight), and -L_C = d + d^2 / (4 weight)."""
  changes = {"batch_size": 64, "lr": 3e-3, "model.gp_weight": 10.0}
  _, found, _ = fit_critic(monkeypatch, (2.0, 0.0), 1_500, std=0.0, **changes)
  assert 2.05 < found["w_estimate"] < 2.35  # 2.20
  np.testing.assert_allclose(-found["loss_d"], 2.10, atol=0.1)


def test_clipping_on_a_linear_critic_has_the_closed_form(monkeypatch):
  """With f = w.x and data shifted by v: w_i = c sign(v_i), and the estimate is c |v|_1."""
  v, c = (1.0, -2.0, 0.5), 0.01
  changes = {"batch_size": 64, "lr": 5e-4, "model.lipschitz": "clip", "model.clip": c}
  state, _, found = fit_critic(monkeypatch, v, 200, widths=(), **changes)
  w = state.params["d"]["Dense_0"]["kernel"][:, 0]
  np.testing.assert_allclose(w, c * np.sign(v), rtol=1e-6)
  np.testing.assert_allclose(found["w_estimate"], c * 3.5, rtol=0.02)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_critic_estimates_the_distance_of_two_gaussians_on_a_line(monkeypatch, shift):
  """W1 of N(0, 1) and N(shift, 1) is shift; with a large penalty the estimate is within 10 %.

  It has to be one-sided: a slope of -1 costs nothing either, and a large penalty would hold it.
  """
  changes = {"batch_size": 256, "lr": 2e-3, "model.gp_weight": 50.0, "model.penalty": "one_sided"}
  _, _, found = fit_critic(monkeypatch, (shift,), 600, **changes)
  np.testing.assert_allclose(found["w_exact"], shift, rtol=0.02)
  np.testing.assert_allclose(found["w_estimate"], shift, rtol=0.10)


def test_slope_is_near_one_with_the_penalty_and_not_with_clipping(monkeypatch):
  """On lines between held-out pairs of two Gaussians in the plane."""
  changes = {"batch_size": 128, "lr": 2e-3, "model.gp_weight": 10.0}
  penalised = fit_critic(monkeypatch, (2.0, 2.0), 500, **changes)[2]
  assert 0.8 < penalised["slope"] < 1.3
  clipped = fit_critic(monkeypatch, (2.0, 2.0), 500, **changes, **{"model.lipschitz": "clip"})[2]
  assert clipped["slope"] < 0.2


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
  state = quickly(stage.init, jax.random.key(1), batch, None)
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


def test_the_exact_distance_on_a_line_is_that_of_all_held_out_points():
  """They are gathered from all batches and sorted together, not compared row by row."""
  made = job.prepare(config_of("line"))
  (stage,), (template,) = made.stages, made.templates
  batch = {"point": jnp.zeros((6, 1)), "label": jnp.zeros(6, jnp.int32)}
  found = jax.eval_shape(stage.evaluate, template, batch, made.keys[0]["evaluate"])
  assert found["real"].shape == found["fake"].shape == (6, 1)
  whole = {"real": jnp.array([[0.0], [6.0]]), "fake": jnp.array([[7.0], [3.0]])}
  assert float(stage.conclude(whole, None)["w_exact"]) == (3 + 1) / 2  # row by row 7 and 3


def test_clipping_bounds_every_weight_and_the_penalty_none():
  for variant, bounded in (("test_clip", True), ("test", False)):
    made = job.prepare(config_of(variant))
    batch = {"image": jnp.ones((16, 28, 28, 1)), "label": jnp.zeros(16, jnp.int32)}
    state = quickly(made.stages[0].init, jax.random.key(0), batch, None)
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
  quick |= {"batch_size": 64, "num_steps": 1_000, "lr": 2e-3}  # instead of 2,000 of 128 at 1e-4
  train(config_of("ring", **quick), tmp_path / "ok")
  assert covers(tmp_path / "ok")
  true = losses.wasserstein_g
  monkeypatch.setattr(losses, "wasserstein_g", lambda f: -true(f))
  train(config_of("ring", **quick), tmp_path / "sign", draw=False)
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
