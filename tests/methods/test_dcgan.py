"""DCGAN: sizes, initialisation, batch statistics, the shared forward pass, and that it learns."""

import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import OPTIMISED, described, quickly, train

from gm import core, errors, job, losses, optim
from gm.core import Info
from gm.metrics import probe
from gm.nets import dcgan, mlp


def config_of(variant, **changes):
  config = importlib.import_module("configs.dcgan").get_config(variant)
  config.update_from_flattened_dict({"num_devices": 1, **changes})
  return config


PASSES = [("test", {}, {"g": 1, "d": 2})]  # D of data and of samples; see test_promises.py


def first_state(variant="test", n=8, **changes):
  made = job.prepare(config_of(variant, **changes))
  shape = made.infos[0].shape["image"]
  batch = {"image": jnp.tanh(jax.random.normal(jax.random.key(3), (n, *shape)))}
  return made.stages[0], quickly(made.stages[0].init, jax.random.key(0), batch, None), batch


def test_paper_has_the_published_sizes():
  (stage,) = described("dcgan", "paper")
  assert stage["params"] == {"g": 3_576_704, "d": 2_765_568}
  assert stage["outputs"] == {"image": [128, 64, 64, 3]}


def test_paper_starts_as_published():
  made = job.prepare(config_of("paper"))
  batch = {"image": jnp.zeros((2, 64, 64, 3))}
  state = quickly(made.stages[0].init, jax.random.key(0), batch, None)
  for path, p in jax.tree_util.tree_leaves_with_path(state.params):
    name = jax.tree_util.keystr(path)
    if p.ndim == 4:
      assert p.size < 10_000 or 0.0195 < p.std() < 0.0205, name
      assert abs(p.mean()) < 3 * 0.02 / np.sqrt(p.size), name
    elif name.endswith("['scale']"):
      np.testing.assert_allclose([p.mean(), p.std()], [1.0, 0.02], atol=0.01, err_msg=name)
    else:  # the only other parameters are batch norm's biases
      assert "Norm" in name and not p.any(), name


def test_loss_at_the_start_is_log_4():
  stage, state, batch = first_state("small", n=64)
  _, found = jax.jit(stage.step)(state, batch, jax.random.key(1))
  np.testing.assert_allclose(found["loss_d"], np.log(4), atol=0.15)


def test_d_alone_separates_data_from_a_frozen_generator():
  """100 steps of D against an untrained G bring its loss below 0.1."""
  config = config_of("small", num_steps=100)
  made = job.prepare(config)
  source, true = job.load(made, 0, "train"), core.move
  batch = lambda i: jax.tree.map(jnp.asarray, source.decode(source.batch(i, 64)))
  state = made.stages[0].init(jax.random.key(0), batch(0), None)
  frozen = lambda s, tx, grads, *, slot=None: true(s, tx, grads) if "d" in grads else (s, {})
  core.move = frozen
  try:
    step = jax.jit(made.stages[0].step, compiler_options=OPTIMISED)
    for i in range(100):
      state, found = step(state, batch(i), jax.random.key(i))
  finally:
    core.move = true
  assert found["loss_d"] < 0.1, found


def test_one_forward_pass_gives_the_step_of_two():
  """core.alternate against the same game written with two minimize calls."""
  stage, state, batch = first_state()
  shared, found = quickly(stage.step, state, batch, jax.random.key(1))
  z = jax.random.normal(jax.random.key(1), (8, 4))  # as the step draws it
  made = job.prepare(config_of("test"))
  nets = _networks(made)

  def d_loss(p, b):
    fake, _ = core.apply(nets["g"], p["g"], state.stats["g"], b["z"])
    real, stats = core.apply(nets["d"], p["d"], state.stats["d"], b["x"])
    logits, stats = core.apply(nets["d"], p["d"], stats, jax.lax.stop_gradient(fake))
    return losses.bce_d(real, logits), ({"d": stats}, {})

  tx = {n: optim.adam(config_of("test").lr, b1=0.5) for n in ("g", "d")}
  plain, found_d = core.minimize(state, tx["d"], d_loss, ["d"], {"x": batch["image"], "z": z})
  g_state = plain

  def g_loss(p, b):
    fake, stats = core.apply(nets["g"], p["g"], g_state.stats["g"], b["z"])
    logits, _ = core.apply(nets["d"], p["d"], g_state.stats["d"], fake)
    return losses.nonsaturating_g(logits), ({"g": stats}, {})

  plain, found_g = core.minimize(plain, tx["g"], g_loss, ["g"], {"z": z})
  for k, v in {**found_d, **found_g}.items():
    np.testing.assert_allclose(found[k], v, rtol=1e-4, err_msg=k)
  for n in ("g", "d"):
    mean = lambda s, n=n: jax.tree.leaves(s.opt[n][0].mu)
    for a, b in zip(mean(shared), mean(plain), strict=True):
      np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-3)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), shared.stats, plain.stats
  )


def _networks(made):
  m = made.config.model
  shape = made.infos[0].shape["image"]
  options = {"start": m.start, "kernel": m.kernel}
  return {
    "g": dcgan.Generator(shape, base=m.g_base, first=m.first, **options),
    "d": dcgan.Discriminator(base=m.d_base, last=m.first, **options),
  }


def test_best_discriminator_of_two_gaussians_and_the_value_there():
  """N(1, 1) against N(-1, 1): D* = sigmoid(2 x), and L_D = 2 log 2 - 2 JSD."""
  d = mlp.Discriminator(widths=(64, 64), activation="tanh")
  params, _ = core.build(d, jax.random.key(0), jnp.zeros((2, 1)))
  tx = optim.adam(optim.cosine(3e-3, 1_000))

  def loss(params, key, n):
    x = jax.random.normal(key, (2, n, 1))
    return losses.bce_d(*(d.apply({"params": params}, x) for x in (1 + x[0], x[1] - 1)))

  @jax.jit
  def fit(params):
    def body(i, carry):
      params, opt = carry
      grads = jax.grad(loss)(params, jax.random.fold_in(jax.random.key(1), i), 512)
      updates, opt = tx.update(grads, opt)
      return optax.apply_updates(params, updates), opt

    return jax.lax.fori_loop(0, 1_000, body, (params, tx.init(params)))[0]

  params = fit(params)
  x = jnp.linspace(-3, 3, 61)
  got = jax.nn.sigmoid(d.apply({"params": params}, x[:, None]))
  np.testing.assert_allclose(got, jax.nn.sigmoid(2 * x), atol=0.05)
  x = np.linspace(-10, 10, 10_001)
  p, q = (np.exp(-((x - mean) ** 2) / 2) / np.sqrt(2 * np.pi) for mean in (1, -1))
  jsd = sum(np.trapezoid(a * np.log(2 * a / (p + q)), x) / 2 for a in (p, q))
  want = 2 * np.log(2) - 2 * jsd
  np.testing.assert_allclose(loss(params, jax.random.key(2), 200_000), want, atol=0.01)


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"model.noise": "unit"}, r"--config\.model\.noise='unit' .* choose normal, uniform"),
    ({"model.bn_mode": "bach"}, r"--config\.model\.bn_mode='bach' .* choose running, batch"),
    ({"model.first": "cnv"}, r"--config\.model\.first='cnv' .* choose conv, dense"),
  ],
)
def test_errors_name_the_flag(changes, message):
  with pytest.raises(errors.UserError, match=message):
    job.prepare(config_of("test", **changes))


def test_each_move_leaves_the_other_network_alone():
  """The D loss has no gradient in G, because fakes are constants to it."""
  stage, state, batch = first_state()
  true = core.move

  def watched(*args):
    seen = {}

    def spy(before, tx, grads, *, slot=None):
      after, found = true(before, tx, grads, slot=slot)
      (moved,) = grads
      seen[moved] = optax.global_norm(grads[moved]), before.params, after.params
      return after, found

    core.move = spy
    try:
      stage.step(*args)
    finally:
      core.move = true
    return seen

  seen = quickly(watched, state, batch, jax.random.key(1))
  assert set(seen) == {"g", "d"}
  for moved, (norm, before, after) in seen.items():
    assert norm > 0
    for n in before.keys() - {moved}:
      jax.tree.map(np.testing.assert_array_equal, before[n], after[n])


def test_samples_depend_on_each_other_only_with_batch_statistics():
  for mode, same in (("running", True), ("batch", False)):
    stage, state, batch = first_state(**{"model.bn_mode": mode})
    z_first = quickly(stage.sample, state, batch, jax.random.key(4))["image"]
    nets = _networks(job.prepare(config_of("test")))
    z = jax.random.normal(jax.random.key(4), (8, 4))
    both = lambda z: core.apply(
      nets["g"], state.ema["g"], state.ema["g_stats"], z, train=mode == "batch"
    )[0]
    np.testing.assert_allclose(both(z), z_first, atol=1e-5)
    gap = np.abs(both(z)[:4] - both(z[:4])).max()
    assert (gap < 1e-5) == same, (mode, gap)


@pytest.mark.learning
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_small_learns_all_digits(tmp_path, seed):
  config = config_of("small", seed=seed)
  train(config, str(tmp_path / "run"))
  found = json.loads((tmp_path / "run/eval.json").read_text())["metrics"]
  assert found["class_min_share"] >= 0.04, found


@pytest.mark.learning
def test_frechet_distance_falls_and_a_broken_game_does_not(tmp_path, monkeypatch):
  """Below a fifth of the untrained generator's; not with G's loss of the wrong sign."""

  def distance(name, steps):
    config = config_of("small", num_steps=steps)
    train(config, str(tmp_path / name))
    return json.loads((tmp_path / name / "eval.json").read_text())["metrics"]["frechet"]

  untrained = distance("start", 1)
  assert distance("trained", 2_000) < untrained / 5
  true = losses.nonsaturating_g
  monkeypatch.setattr(losses, "nonsaturating_g", lambda s: -true(s))
  assert distance("broken", 2_000) > untrained / 5


@pytest.mark.learning
def test_features_of_d_tell_digits_apart(tmp_path):
  """Better than pixels do. On digits the features of an untrained D do nearly as well."""
  config = config_of("small", num_steps=1_000)
  train(config, str(tmp_path / "run"))
  found = json.loads((tmp_path / "run/eval.json").read_text())["metrics"]
  test = job.load(job.prepare(config), 0, "test", shuffle=False, whole=True)
  batch = test.decode(test.batch(0, test.num_examples))
  pixels = np.asarray(batch["image"]).reshape(test.num_examples, -1)
  rows = {"feature": pixels, "data_label": np.asarray(batch["label"])}
  plain = probe.linear(rows, {}, Info({}))["probe_accuracy"]
  assert found["probe_accuracy"] > 0.89 > 0.84 > plain, (found, plain)
