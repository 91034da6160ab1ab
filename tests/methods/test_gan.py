"""The first GAN: its optimum, its gradients, its failures, its sizes, and that it learns."""

import functools
import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import OPTIMISED, Kept, described, quickly, train

from gm import core, diagnostics, errors, job, losses, optim
from gm.methods import gan
from gm.metrics import coverage
from gm.nets import mlp


def config_of(variant, **changes):
  config = importlib.import_module("configs.gan").get_config(variant)
  config.update_from_flattened_dict({"num_devices": 1, **changes})
  return config


QUICKLY = {"xla_backend_optimization_level": 0}  # compiles faster, runs slower
PASSES = [("test", {}, {"g": 1})]  # of G in its own step; see test_promises.py


# ------------------------------------------------------------------------------------------ sizes


def test_paper_has_the_published_sizes():
  (stage,) = described("gan", "paper")
  assert stage["params"] == {"g": 2_503_984, "d": 1_231_441}


def test_paper_starts_as_published():
  made = job.prepare(config_of("paper"))
  x = np.random.default_rng(0).uniform(-1, 1, (100, 28, 28, 1)).astype(np.float32)
  state = quickly(made.stages[0].init, jax.random.key(0), {"image": jnp.asarray(x)}, None)
  kernels = {n: [p for p in jax.tree.leaves(state.params[n]) if p.ndim == 2] for n in state.params}
  for name, limit in (("g", 0.05), ("d", 0.005)):
    for kernel in kernels[name]:
      assert 0.95 * limit < np.abs(kernel).max() <= limit
      np.testing.assert_allclose(kernel.std(), limit / np.sqrt(3), rtol=0.1)
  bias = next(p for p in jax.tree.leaves(state.params["g"]) if p.shape == (784,))
  np.testing.assert_allclose(jax.nn.sigmoid(bias), (x.mean(0).ravel() + 1) / 2, atol=1e-5)


# ---------------------------------------------------------------------------------------- optimum


def test_optimal_discriminator_on_a_finite_support():
  """Gradient descent on L_D finds D* = p/(p+q), and there the value is -log 4 + 2 JSD."""
  p, q = jnp.array([0.4, 0.3, 0.2, 0.1]), jnp.array([0.1, 0.2, 0.3, 0.4])

  def loss(s):  # expectations written out as sums over the support
    return jnp.sum(p * jax.vmap(lambda s: losses.nonsaturating_g(s[None]))(s)) + jnp.sum(
      q * jax.vmap(lambda s: -losses.minimax_g(s[None]))(s)
    )

  s, tx = jnp.zeros(4), optax.adam(0.05)
  opt = tx.init(s)

  @jax.jit
  def move(s, opt):
    updates, opt = tx.update(jax.grad(loss)(s), opt)
    return optax.apply_updates(s, updates), opt

  for _ in range(1500):
    s, opt = move(s, opt)
  np.testing.assert_allclose(jax.nn.sigmoid(s), p / (p + q), atol=1e-3)
  mix = (p + q) / 2
  jsd = 0.5 * jnp.sum(p * jnp.log(p / mix)) + 0.5 * jnp.sum(q * jnp.log(q / mix))
  np.testing.assert_allclose(-loss(s), -np.log(4) + 2 * jsd, atol=1e-4)


def test_value_at_equality_is_log_4():
  zero = jnp.zeros(7)
  np.testing.assert_allclose(losses.bce_d(zero, zero), np.log(4), atol=1e-6)


@pytest.mark.parametrize(
  "m, value", [(1.0, -1.1634513968), (2.0, -0.7126327204), (4.0, -0.1208539736)]
)
def test_value_of_two_gaussians_at_the_closed_form_discriminator(m, value):
  """D* of N(0, 1) against N(m, 1) has the logit m^2/2 - m x."""
  kx, ky = jax.random.split(jax.random.key(0))
  x, y = jax.random.normal(kx, (400_000,)), m + jax.random.normal(ky, (400_000,))
  logit = lambda x: m**2 / 2 - m * x
  np.testing.assert_allclose(-losses.bce_d(logit(x), logit(y)), value, atol=0.01)


def test_mlp_discriminator_finds_the_optimum_in_one_dimension():
  """N(1, 1) against N(-1, 1): sigmoid(D) = sigmoid(2 x)."""
  d = mlp.Discriminator(widths=(64, 64), activation="tanh")
  params, _ = core.build(d, jax.random.key(0), jnp.zeros((2, 1)))
  tx = optim.adam(optim.cosine(3e-3, 3000))

  @functools.partial(jax.jit, compiler_options=OPTIMISED)
  def train(params):
    def body(i, carry):
      params, opt = carry
      noise = jax.random.normal(jax.random.fold_in(jax.random.key(1), i), (2, 512, 1))
      f = lambda p: losses.bce_d(
        d.apply({"params": p}, 1 + noise[0]), d.apply({"params": p}, noise[1] - 1)
      )
      updates, opt = tx.update(jax.grad(f)(params), opt)
      return optax.apply_updates(params, updates), opt

    return jax.lax.fori_loop(0, 3000, body, (params, tx.init(params)))[0]

  x = jnp.linspace(-3, 3, 61)[:, None]
  found = jax.nn.sigmoid(d.apply({"params": train(params)}, x))
  np.testing.assert_allclose(found, jax.nn.sigmoid(2 * x[:, 0]), atol=0.05)


# -------------------------------------------------------------------------------------- gradients


def test_each_loss_reaches_its_own_network_only():
  """The D loss has no gradient in G's parameters, nor the G step any effect on D."""
  made = job.prepare(config_of("test"))
  seen = []
  true = core.minimize

  def spy(state, tx, loss_fn, names, batch, **kwargs):
    full = jax.grad(lambda p: loss_fn(p, batch)[0])(state.params)
    seen.append((tuple(names), full))
    before = state.params
    state, found = true(state, tx, loss_fn, names, batch, **kwargs)
    for n in before:
      if n not in names:
        jax.tree.map(np.testing.assert_array_equal, before[n], state.params[n])
    return state, found

  x = {"image": jnp.ones((8, 28, 28, 1)), "label": jnp.zeros(8, jnp.int32)}
  state = quickly(made.stages[0].init, jax.random.key(0), x, None)
  core.minimize, step = spy, made.stages[0].step
  try:
    step(state, x, jax.random.key(1))
  finally:
    core.minimize = true
  assert [names for names, _ in seen] == [("d",), ("g",)]
  assert optax.global_norm(seen[0][1]["d"]) > 0 and optax.global_norm(seen[1][1]["g"]) > 0


@pytest.mark.parametrize("loss, output", [("nonsaturating", "none"), ("minimax", "sigmoid")])
def test_losses_gradients_and_rates_by_hand(loss, output, monkeypatch):
  """On the noise that a step drew; Adam's averages have the gradients, its first step the rate.

  A sigmoid makes pixels in [0, 1], and D sees the data there too.
  """
  x = jnp.tanh(jax.random.normal(jax.random.key(3), (12, 2)))
  small = {"model.z_dim": 2, "model.g_widths": (8,), "model.d_widths": (8,), "batch_size": 12}
  changes = {"model.loss": loss, "model.g_output": output, "model.d_lr": 0.5, "model.b1": 0.3}
  changes["model.noise"] = "normal" if output == "none" else "uniform"
  config = config_of("collapse", **small, **changes)
  (stage,) = job.prepare(config).stages
  true = core.minimize

  @functools.partial(jax.jit, compiler_options=QUICKLY)
  def run(state):
    seen = []

    def spy(state, tx, loss_fn, names, batch, **options):
      seen.append(batch["z"])
      return true(state, tx, loss_fn, names, batch, **options)

    monkeypatch.setattr(core, "minimize", spy)
    return *stage.step(state, {"point": x}, jax.random.key(1)), seen

  init = jax.jit(lambda: stage.init(jax.random.key(0), {"point": x}, None))
  state = init()
  after, found, (z_d, z_g) = run(state)
  assert abs(z_d - z_g).max() > 0.1 and -z_d.min() > 0.5  # each player has noise of its own
  assert (max(abs(z_d).max(), abs(z_g).max()) < 1) == (output == "sigmoid")
  net, softplus = {"widths": (8,), "activation": "relu"}, jax.nn.softplus
  g = lambda p, z: mlp.Generator((2,), output=output, **net).apply({"params": p}, z)
  d = lambda p, x: mlp.Discriminator(**net).apply({"params": p}, x)
  real = (x + 1) / 2 if output == "sigmoid" else x

  def d_loss(p):
    return softplus(-d(p, real)).mean() + softplus(d(p, g(state.params["g"], z_d))).mean()

  def g_loss(p):  # against the D that has moved
    s = d(after.params["d"], g(p, z_g))
    return softplus(-s).mean() if loss == "nonsaturating" else -softplus(s).mean()

  for n, by_hand, rate in (("d", d_loss, config.lr / 2), ("g", g_loss, config.lr)):
    value_and_grad = jax.jit(jax.value_and_grad(by_hand), compiler_options=QUICKLY)
    value, grad = value_and_grad(state.params[n])
    np.testing.assert_allclose(found[f"loss_{n}"], value, rtol=1e-5)
    adam = after.opt[n][0]
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-7)
    jax.tree.map(lambda mu, g: close(mu, 0.7 * g), adam.mu[n], grad)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), after.params[n], state.params[n])
    np.testing.assert_allclose(max(jax.tree.leaves(moved)), rate, rtol=1e-3)


def test_minimax_gradient_vanishes_where_the_other_does_not():
  """`vanishing`: N(2, 1/16) against a G that stays N(-2, 1/16); gradients of both losses in G."""
  (stage,) = job.prepare(config_of("vanishing")).stages
  draw = lambda key, n: {"point": 2 + 0.25 * jax.random.normal(key, (n, 1))}

  @functools.partial(jax.jit, compiler_options=OPTIMISED)
  def train(state, stop):
    def body(state):
      k_data, key = jax.random.split(jax.random.fold_in(jax.random.key(1), state.step))
      return stage.step(state, draw(k_data, 256), key)[0]

    state = jax.lax.while_loop(lambda state: state.step < stop, body, state)
    return state, stage.evaluate(state, draw(jax.random.key(2), 4096), jax.random.key(3))

  start = quickly(stage.init, jax.random.key(0), draw(jax.random.key(1), 256), None)
  np.testing.assert_allclose(abs(start.params["g"]["Dense_0"]["kernel"]), 0.25, rtol=1e-6)
  np.testing.assert_allclose(start.params["g"]["Dense_0"]["bias"], -2)
  early, at_100 = train(start, 100)
  late, at_500 = train(early, 500)
  jax.tree.map(np.testing.assert_array_equal, late.params["g"], start.params["g"])
  # the reference run: 4.8e-3 and 4.2e-4
  assert 4.8e-3 / 2 < at_100["grad_ratio"] < 4.8e-3 * 2
  assert 4.2e-4 / 2 < at_500["grad_ratio"] < 4.2e-4 * 2
  assert at_500["gradnorm_minimax"] < 1e-2 and at_500["gradnorm_nonsaturating"] > 1
  # the value climbs to its least upper bound, here -log 4 + 2 log 2
  assert at_100["value"] < at_500["value"] < at_500["value_best"] < 1e-6
  moved, _ = train(late.replace(step=jnp.asarray(2_000)), 2_001)  # from then on G plays
  assert (moved.params["g"]["Dense_0"]["bias"] != -2).all()


def test_the_best_discriminator_of_two_normal_laws():
  """N(0, 1) against G(z) = z + 1: logit 1/2 - x, value -log 4 + 2 JSD = -1.16345."""
  (stage,) = job.prepare(config_of("vanishing", **{"data.mean": 0.0, "data.std": 1.0})).stages
  batch = {"point": jax.random.normal(jax.random.key(0), (100_000, 1))}
  state = quickly(stage.init, jax.random.key(1), batch, None)
  g = {"Dense_0": {"kernel": jnp.array([[-1.0]]), "bias": jnp.array([1.0])}}
  state = state.replace(params={**state.params, "g": g}, ema={**state.ema, "g": g})
  found = quickly(stage.evaluate, state, batch, jax.random.key(2))
  np.testing.assert_allclose(found["value_best"], -1.1634513968, atol=0.01)
  assert found["value"] < found["value_best"]
  curves = quickly(stage.show, state, batch, jax.random.key(3))["discriminator"]
  np.testing.assert_allclose(curves["best D"], jax.nn.sigmoid(0.5 - curves["x"]), atol=1e-5)
  np.testing.assert_allclose(curves["draws"].mean(), 1, atol=0.02)


# ------------------------------------------------------------------------------------- remedies


SMALL = {"model.z_dim": 2, "model.g_widths": (8,), "model.d_widths": (8,)}


def collapse_step(x, **changes):
  """The first state of a small `collapse` on points [B, 2], and its compiled step."""
  config = config_of("collapse", batch_size=len(x), **SMALL, **changes)
  (stage,) = job.prepare(config).stages
  step = jax.jit(stage.step, compiler_options={"xla_backend_optimization_level": 0})
  state = stage.init(jax.random.key(0), {"point": x}, None)
  return state, lambda state: step(state, {"point": x}, jax.random.key(1))


def test_packs_are_judged_as_one():
  """L_D over packs of 3, by hand from the first state; D's first layer takes 6 numbers."""
  x = jax.random.normal(jax.random.key(3), (12, 2))
  state, step = collapse_step(x, **{"model.pack": 3})
  _, found = step(state)
  shapes = [p.shape for p in jax.tree.leaves(state.params["d"]) if p.ndim == 2]
  assert sorted(shapes) == [(6, 8), (8, 1)]
  z = jax.random.normal(jax.random.split(jax.random.key(1), 3)[0], (12, 2))
  net = {"widths": (8,), "activation": "relu"}
  fake = mlp.Generator((2,), output="none", **net).apply({"params": state.params["g"]}, z)
  score = lambda pack: mlp.Discriminator(**net).apply(
    {"params": state.params["d"]}, jnp.concatenate(pack)[None]
  )[0]
  real, fake = (jnp.stack([score(v[i : i + 3]) for i in (0, 3, 6, 9)]) for v in (x, fake))
  np.testing.assert_allclose(found["loss_d"], losses.bce_d(real, fake), rtol=1e-5)
  config = config_of("collapse", batch_size=12, **SMALL, **{"model.pack": 3})
  (stage,) = job.prepare(config).stages
  evaluate = jax.jit(stage.evaluate, compiler_options={"xla_backend_optimization_level": 0})
  found = evaluate(state, {"point": x[:1]}, jax.random.key(1))  # any number of held-out points
  assert all(np.isfinite(value) for value in found.values())
  with pytest.raises(
    errors.UserError, match=r"packs of 5 do not divide a batch of 256.*model.pack"
  ):
    job.prepare(config_of("collapse", **{"model.pack": 5}))


def test_unrolling_a_bilinear_game():
  """D raises g d by k steps of rate r: d_k = d + k r g, so d/dg of g d_k is d + 2 k r g."""

  tx = optax.sgd(0.1)

  def value(g, d, k):
    return g * gan.unroll(tx, lambda d, i: -g * d, d, tx.init(d), k)

  for k in (0, 1, 4):
    np.testing.assert_allclose(jax.grad(value)(3.0, 2.0, k), 2.0 + 2 * k * 0.1 * 3.0, rtol=1e-6)
  counted = gan.unroll(tx, lambda d, i: -i * d, 0.0, tx.init(0.0), 4)
  np.testing.assert_allclose(counted, 0.1 * (0 + 1 + 2 + 3), rtol=1e-6)


def test_unrolling_through_adam_against_finite_differences():
  with jax.enable_x64(True):
    tx = optax.adam(0.1, b1=0.5, eps_root=1e-15)

    def value(g):
      d = jnp.array([0.3, -0.2])
      loss = lambda d, i: jnp.sum((d - g) ** 2 + jnp.sin(g * d))
      return jnp.sum(g * gan.unroll(tx, loss, d, tx.init(d), 3) ** 2)

    h = 1e-5
    np.testing.assert_allclose(
      jax.grad(value)(0.7), (value(0.7 + h) - value(0.7 - h)) / (2 * h), rtol=1e-6
    )


def test_unrolling_changes_what_g_feels_and_nothing_else():
  x = jax.random.normal(jax.random.key(3), (16, 2))
  flat = lambda tree: np.concatenate([np.ravel(v) for v in jax.tree.leaves(tree)])
  grads, ds = {}, {}
  for k in (0, 3):
    state, step = collapse_step(x, **{"model.unroll": k})
    bias = state.params["d"]["Dense_0"]["bias"]
    bias = bias.at[0].set(-100)  # a dead unit, whose weights never had a gradient
    state.params["d"]["Dense_0"]["bias"] = bias
    adam, rest = state.opt["d"]
    huge = adam._replace(nu=jax.tree.map(lambda v: v + 1e30, adam.nu))  # then D cannot move
    stuck = state.replace(opt={**state.opt, "d": (huge, rest)})
    for name, before in (("moving", state), ("stuck", stuck)):
      after, _ = step(before)
      grads[name, k] = flat(after.opt["g"][0].mu)  # half of the gradient: b1 is 1/2
      ds[name, k] = flat(after.params["d"])
  # a D that cannot move is the same D three steps ahead
  np.testing.assert_allclose(grads["stuck", 3], grads["stuck", 0], rtol=1e-4, atol=1e-7)
  far = np.linalg.norm(grads["moving", 3] - grads["moving", 0])
  assert np.isfinite(far) and far > 1e-2 * np.linalg.norm(grads["moving", 0])
  np.testing.assert_allclose(ds["moving", 3], ds["moving", 0], atol=1e-7)


def test_gradient_accumulation_is_exact():
  """Without batch norm, 4 parts of the batch give the step of the whole one."""
  batch = {
    "image": jax.random.normal(jax.random.key(5), (8, 28, 28, 1)),
    "label": jnp.zeros(8, jnp.int32),
  }
  states = []
  for parts in (1, 4):
    config = config_of(
      "test", **{"model.g_norm": "none", "model.d_dropout": (0.0, 0.0), "accumulate": parts}
    )
    stage = job.prepare(config).stages[0]
    state = quickly(stage.init, jax.random.key(0), batch, None)
    states.append(stage.step(state, batch, jax.random.key(1)))
  (a, found_a), (b, found_b) = states
  for k in ("loss_d", "loss_g", "gradnorm_d", "gradnorm_g"):
    np.testing.assert_allclose(found_a[k], found_b[k], rtol=1e-4)
  np.testing.assert_allclose(
    a.opt["d"][0].mu["d"]["Dense_0"]["kernel"],
    b.opt["d"][0].mu["d"]["Dense_0"]["kernel"],
    atol=1e-6,
  )


def test_bfloat16_computes_and_keeps_float32_parameters():
  made = job.prepare(config_of("test", compute_dtype="bfloat16"))
  x = {"image": jnp.ones((8, 28, 28, 1)), "label": jnp.zeros(8, jnp.int32)}
  state = quickly(made.stages[0].init, jax.random.key(0), x, None)
  text = str(jax.make_jaxpr(made.stages[0].step)(state, x, jax.random.key(1)))
  assert "bf16" in text
  assert {p.dtype for p in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}


# --------------------------------------------------------------------------------------- learning


QUICK = {"log_every": 500, "sample_every": 0, "checkpoint_every": 0}


RING = {**QUICK, "batch_size": 128, "num_steps": 5_000}  # as healthy as `ring`, in half the time


def healthy(found: dict) -> bool:
  """All 8 modes with 20 of 2,500 points each, 80 % of high quality, even shares."""
  return found["modes_20"] == 8 and found["high_quality"] >= 0.8 and found["mode_kl"] < 0.15


def test_ring_is_covered_on_two_of_three_seeds(tmp_path):
  kept = Kept(**OPTIMISED)
  config = lambda seed: config_of("ring", seed=seed, **RING)
  found = [train(config(s), tmp_path / str(s), kept, draw=s == 0) for s in range(3)]
  assert sum(map(healthy, found)) >= 2, found


@pytest.mark.parametrize("broken", ["still", "sign"])
def test_broken_games_do_not_cover_the_ring(tmp_path, monkeypatch, broken):
  """Neither with a D that stands still nor with a wrong sign in G's loss."""
  true = losses.nonsaturating_g
  if broken == "sign":
    monkeypatch.setattr(losses, "nonsaturating_g", lambda s: -true(s))
  change = {"model.d_lr": 0.0} if broken == "still" else {}
  assert not healthy(train(config_of("ring", **RING, **change), tmp_path / "run", draw=False))


@pytest.mark.parametrize("broken", [False, True])
def test_value_on_a_line_ends_at_minus_log_4(tmp_path, monkeypatch, broken):
  """G reaches the law; D stays beside the best D all along. With a wrong sign G does not."""
  true = losses.nonsaturating_g
  if broken:
    monkeypatch.setattr(losses, "nonsaturating_g", lambda s: -true(s))
  quick = {**QUICK, "eval_every": 500, "num_steps": 1_000 if broken else 4_000}
  found = train(config_of("line", **quick), tmp_path / "run", draw=not broken)
  if broken:
    assert found["value_best"] > -0.5, found
    return
  assert abs(found["value"] + np.log(4)) < 0.005 and abs(found["value_best"] + np.log(4)) < 0.005
  lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
  rows = [r for r in map(json.loads, lines) if "value" in r]
  assert len(rows) == 7 and rows[0]["value"] > -1.0
  for r in rows:
    assert -0.03 < r["value"] - r["value_best"] < 0.005, r


def test_collapse_raises_the_alarm():
  """The detector and the alarm, on points drawn at one mode and on exact ones."""
  info = job.prepare(config_of("ring")).infos[0]
  rng = np.random.default_rng(0)
  centres = np.asarray(info.modes)
  draw = lambda modes: (centres[modes] + info.mode_std * rng.standard_normal((2500, 2))).astype(
    np.float32
  )
  found = {}
  for name, modes in (("one", np.zeros(2500, int)), ("all", rng.integers(0, 8, 2500))):
    found[name] = coverage.modes({"point": draw(modes)}, {}, info)
  assert found["one"]["modes_20"] == 1 and found["all"]["modes_20"] == 8
  np.testing.assert_allclose(found["one"]["mode_kl"], np.log(8), atol=1e-3)
  alarm = lambda metrics: diagnostics.alarms([{"stage": "train", "step": 1, **metrics}], info)
  assert [a.name for a in alarm(found["one"])] == ["mode_collapse"] and not alarm(found["all"])


@pytest.mark.learning
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_small_learns_all_digits(tmp_path, seed):
  found = train(config_of("small", seed=seed), tmp_path / "run")
  assert found["class_min_share"] >= 0.04, found


@pytest.mark.learning
def test_small_with_a_wrong_sign_does_not_learn(tmp_path, monkeypatch):
  true = losses.nonsaturating_g
  monkeypatch.setattr(losses, "nonsaturating_g", lambda s: -true(s))
  assert train(config_of("small"), tmp_path / "run")["class_min_share"] < 0.04
