"""InfoGAN: sizes, the bound, who moves on what, pictures, and that categories become classes."""

import functools
import importlib
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import OPTIMISED, described, on_paper, train
from flax import linen as nn

from gm import core, errors, job, losses, optim
from gm.methods import infogan
from gm.metrics import codes
from gm.nets import infogan as infogan_nets


def config_of(variant, **changes):
  config = importlib.import_module("configs.infogan").get_config(variant)
  config.update_from_flattened_dict({"num_devices": 1, **changes})
  return config


PASSES = [("test", {}, {"g": 1, "trunk": 2, "q": 1})]  # Q sees no data; see test_promises.py


QUICK = {"xla_backend_optimization_level": 0}  # what runs once


def first_state(variant="test", n=8, **changes):
  made = job.prepare(config_of(variant, **changes))
  kind, shape = next((k, v) for k, v in made.infos[0].shape.items() if k != "label")
  batch = {kind: jnp.tanh(jax.random.normal(jax.random.key(3), (n, *shape)))}
  init = jax.jit(made.stages[0].init, compiler_options=QUICK)
  return made.stages[0], init(jax.random.key(0), batch, None), batch


def moves_of(stage, state, batch):
  """The two moves of a step, in order: slot and players of each; then state before, batch, metrics,
  and the gradient of its loss in all networks.
  """
  players, true = [], core.minimize

  def traced(state, batch):
    seen = []

    def spy(state, tx, loss_fn, names, batch, *, slot=None, accumulate=1):
      players.append((slot, set(names)))
      after, found = true(state, tx, loss_fn, names, batch, slot=slot, accumulate=accumulate)
      grads = jax.grad(lambda p: loss_fn(p, batch)[0])(state.params)
      seen.append((state, batch, found, grads))
      return after, found

    core.minimize = spy
    try:
      stage.step(state, batch, jax.random.key(1))
    finally:
      core.minimize = true
    return seen

  return players, jax.jit(traced, compiler_options=QUICK)(state, batch)


@functools.cache
def moves_on_points(*changes):
  """The same for points, with two numbers beside the category: quick to compile."""
  few = {"model.noise_dim": 4, "model.num_numbers": 2, "model.widths": (8,)}
  return moves_of(*first_state("ring", 2_000, **few, **dict(changes)))


DEAF = (("model.category_weight", 0.0), ("model.number_weight", 0.0))


def moving(tree):
  return any(np.any(g != 0) for g in jax.tree.leaves(tree))


# ------------------------------------------------------------------------------------------- parity


def test_paper_has_the_published_sizes():
  made = on_paper("infogan", "paper")
  (facts,) = described("infogan", "paper")
  assert facts["params"] == {"g": 6_652_481, "trunk": 6_558_144, "d": 1_025, "q": 133_262}
  params = made.templates[0].params
  assert params["g"]["Dense_0"]["kernel"].shape == (74, 1024)
  assert params["q"]["Dense_1"]["kernel"].shape == (128, 14)
  assert params["trunk"]["Conv_0"]["kernel"].shape == (4, 4, 1, 64)
  assert params["trunk"]["Dense_0"]["kernel"].shape == (7 * 7 * 128, 1024)
  norms = [n for n in params["trunk"] if "Norm" in n]
  assert len(norms) == 2  # after the second convolution and the dense layer, not after the first


def test_paper_recipe(monkeypatch):
  """G's rate is 5 times D's."""
  rates, true = [], optim.adam
  spy = lambda lr, **options: rates.append((lr, options)) or true(lr, **options)
  monkeypatch.setattr(optim, "adam", spy)
  config = config_of("paper")
  job.prepare(config)
  assert rates == [(2e-4, {"b1": 0.5}), (pytest.approx(1e-3), {"b1": 0.5})]
  assert (config.batch_size, config.num_steps) == (128, 50 * 100)
  assert config.model.category_weight == config.model.number_weight == 1


@pytest.mark.parametrize(
  ("size", "start", "depth", "last"), [(64, 4, 4, 4 * 4 * 32), ((28, 56), 7, 2, 7 * 14 * 8)]
)
def test_trunk_halves_images_as_often_as_g_doubles_them(size, start, depth, last):
  made = job.prepare(config_of("test", **{"data.image_size": size, "model.start": start}))
  params, shapes = made.templates[0].params, core.batch_shapes(made.infos[0], 2)
  assert sum(n.startswith("Conv") for n in params["trunk"]) == depth
  assert sum(n.startswith("up") for n in params["g"]["Generator_0"]) == depth
  assert params["trunk"]["Dense_0"]["kernel"].shape[0] == last
  step, sample = made.stages[0].step, made.stages[0].sample
  after, _ = jax.eval_shape(step, made.templates[0], shapes, jax.random.key(0))
  assert jax.tree.map(jnp.shape, after.params) == jax.tree.map(jnp.shape, params)
  out = jax.eval_shape(sample, made.templates[0], shapes, jax.random.key(0))
  assert out["image"].shape == shapes["image"].shape


def test_dense_networks_take_images_too():
  stage, state, batch = first_state(**{"model.nets": "mlp", "model.widths": (8,)})
  assert state.params["trunk"]["Dense_0"]["kernel"].shape == (28 * 28, 8)
  sample = jax.jit(stage.sample, compiler_options=QUICK)
  image = sample(state, batch, jax.random.key(1))["image"]
  assert image.shape == batch["image"].shape and -1 < image.min() < -0.1 and 0.1 < image.max() < 1
  after, _ = jax.eval_shape(stage.step, state, batch, jax.random.key(0))
  assert jax.tree.map(jnp.shape, after.params) == jax.tree.map(jnp.shape, state.params)


def test_networks_start_as_published():
  """Kernels of D's convolutions are cut at 2 deviations, which leaves 0.88 of 0.02."""
  _, state, _ = first_state("small")
  for path, p in jax.tree_util.tree_leaves_with_path(state.params):
    name = jax.tree_util.keystr(path)
    if name.endswith("['scale']"):
      np.testing.assert_allclose([p.mean(), p.std()], [1.0, 0.02], atol=0.01, err_msg=name)
    elif name.endswith("['bias']"):
      assert not p.any(), name
    elif "['trunk']['Conv" in name:
      assert np.abs(p).max() <= 0.04, name
      assert p.size < 10_000 or 0.0171 < p.std() < 0.0181, name
    elif p.size >= 10_000:
      assert 0.0195 < p.std() < 0.0205, name


# ---------------------------------------------------------------------------------------- the bound


def draw(key, n, num_categories=10, num_numbers=2):
  k_category, k_numbers = jax.random.split(key)
  category = jax.random.randint(k_category, (n,), 0, num_categories)
  numbers = jax.random.uniform(k_numbers, (n, num_numbers), minval=-1.0)
  return jnp.concatenate([jax.nn.one_hot(category, num_categories), numbers], axis=1)


def test_bound_of_an_ignorant_and_of_a_perfect_q():
  code = draw(jax.random.key(0), 100_000)
  category, numbers = infogan.bound(jnp.zeros((100_000, 14)), code, 10)
  assert abs(category.mean()) < 0.02 and abs(numbers.mean()) < 0.02
  zero = jnp.zeros(100_000)
  perfect = jnp.stack([code[:, 10], zero, code[:, 11], zero], axis=1)
  category, numbers = infogan.bound(jnp.concatenate([50 * code[:, :10], perfect], 1), code, 10)
  np.testing.assert_allclose(category.mean(), 2.3026, atol=1e-4)
  np.testing.assert_allclose(numbers.mean(), 0.3333, atol=3e-3)


def test_bound_by_hand():
  """Logits come first, then a mean and a log-variance of every number in turn."""
  out = jnp.array([[1.0, -1.0, 0.0, 0.3, 0.4, -0.2, -0.6]])  # 3 categories, 2 numbers
  code = jnp.array([[0.0, 1.0, 0.0, 0.5, -0.9]])
  log_q = -1 - math.log(math.e + 1 / math.e + 1)
  category, fixed = infogan.bound(out, code, 3)
  np.testing.assert_allclose(category, [math.log(3) + log_q], rtol=1e-5)
  squares = lambda a, b: 0.5 * (0.5**2 - a * 0.2**2 + 0.9**2 - b * 0.7**2)
  np.testing.assert_allclose(fixed, [squares(1, 1)], rtol=1e-5)
  _, free = infogan.bound(out, code, 3, fix_std=False)
  expected = squares(math.exp(-0.4), math.exp(0.6)) - 0.5 * (0.4 - 0.6)
  np.testing.assert_allclose(free, [expected], rtol=1e-5)
  # what is not read does not matter: log-variances that are fixed, numbers for the category
  _, again = infogan.bound(out.at[:, 4::2].set(9.0), code, 3)
  np.testing.assert_allclose(again, fixed)


# ------------------------------------------------------------------------------------------ routing


@pytest.mark.parametrize(
  ("changes", "d_moves", "g_moves"),
  [
    ((), {"trunk", "d", "q"}, {"g"}),
    (DEAF, {"trunk", "d"}, {"g"}),
    ((("model.q_player", "g"),), {"trunk", "d"}, {"g", "q"}),
  ],
)
def test_who_moves(changes, d_moves, g_moves):
  """Without weights Q gets no gradient; the fakes of D's move are constants, so G gets none."""
  players, moves = moves_on_points(*changes)
  ((d_slot, d_names), (g_slot, g_names)) = players
  (before, d_batch, _, of_d), (then, g_batch, _, of_g) = moves
  assert (d_slot, g_slot) == ("d", "g")
  assert not moving(of_d["g"])
  assert {n for n in d_names if moving(of_d[n])} == d_moves
  assert {n for n in g_names if moving(of_g[n])} == g_moves
  assert d_names <= {"trunk", "d", "q"}
  assert g_names <= {"g", "q"}  # the trunk hands the gradient on and stays
  # G plays against the trunk and Q that have just moved, on a draw of its own
  changed = lambda n: moving(jax.tree.map(jnp.subtract, before.params[n], then.params[n]))
  assert {n for n in before.params if changed(n)} == d_moves
  furthest = lambda n: jax.tree.map(
    lambda a, b: np.abs(a - b).max(), before.params[n], then.params[n]
  )
  np.testing.assert_allclose(max(jax.tree.leaves(furthest("trunk"))), 5e-4, rtol=1e-2)  # D's rate
  assert np.all(d_batch["z"][:, :4] != g_batch["z"][:, :4])


def test_in_the_control_nobody_hears_of_the_code():
  """All but Q get the gradients of a game whose codes have no weight; Q still learns."""
  players, found = moves_on_points(("model.plain", True))
  _, without = moves_on_points(*DEAF)
  for (_, names), (*_, ours), (*_, theirs) in zip(players, found, without, strict=True):
    for n in names - {"q"}:
      jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), ours[n], theirs[n])
  assert moving(found[0][3]["q"])


def test_losses_are_the_equations():
  """Both losses written out from three passes of the trunk: data, D's fakes, G's other fakes."""
  stage, state, batch = first_state(**{"model.category_weight": 0.7, "model.number_weight": 0.3})
  _, ((before, d_batch, found_d, _), (then, g_batch, found_g, _)) = moves_of(stage, state, batch)
  made = job.prepare(config_of("test"))
  nets = infogan.networks(made.config.model, (28, 28, 1), "float32")
  apply = jax.jit(core.apply, static_argnums=0, compiler_options=QUICK)
  run = lambda n, p, s, x: apply(nets[n], p[n], s[n], x)[0]

  def passes(s, x):
    h = run("trunk", s.params, s.stats, x)
    return run("d", s.params, s.stats, h)[:, 0], run("q", s.params, s.stats, h)

  def gain(out, z):
    category, numbers = infogan.bound(out, z[:, 2:], 3)
    return 0.7 * category.mean() + 0.3 * numbers.mean()

  fake = run("g", before.params, before.stats, d_batch["z"])
  assert fake.min() > 0 and fake.max() < 1
  real, _ = passes(before, (batch["image"] + 1) / 2)
  logits, out = passes(before, fake)
  expected = losses.bce_d(real, logits) - gain(out, d_batch["z"])
  np.testing.assert_allclose(found_d["loss_d"], expected, rtol=1e-5)
  category, numbers = infogan.bound(out, d_batch["z"][:, 2:], 3)
  np.testing.assert_allclose(found_d["info_category"], category.mean(), atol=1e-6)
  np.testing.assert_allclose(found_d["info_numbers"], numbers.mean(), atol=1e-6)
  logits, out = passes(then, run("g", then.params, then.stats, g_batch["z"]))
  expected = losses.nonsaturating_g(logits) - gain(out, g_batch["z"])
  np.testing.assert_allclose(found_g["loss_g"], expected, rtol=1e-5)
  assert found_d["gradnorm_d"] > 0 and found_g["gradnorm_g"] > 0


def test_noise_on_what_d_sees_falls_evenly_to_nothing():
  """Measured on black images, which without it are 0 everywhere; the samples carry it too."""
  stage, state, batch = first_state(**{"model.d_noise": 0.4, "model.d_noise_steps": 100})
  black, seen = {"image": jnp.full_like(batch["image"], -1.0)}, []

  def watch(call, args, kwargs, context):
    if isinstance(context.module, infogan_nets.Trunk) and context.method_name == "__call__":
      x = args[0]
      rough = jnp.std(x - jnp.roll(x, 1, axis=0)) / math.sqrt(2)  # of independent noise: its std
      jax.debug.callback(lambda *found: seen.append(found), x.mean(), rough)
    return call(*args, **kwargs)

  with nn.intercept_methods(watch):
    run = jax.jit(stage.step, compiler_options=QUICK)
    for step, std in ((0, 0.4), (50, 0.2), (100, 0.0), (300, 0.0)):
      seen.clear()
      jax.block_until_ready(run(state.replace(step=jnp.asarray(step)), black, jax.random.key(1)))
      jax.effects_barrier()
      data, *fakes = sorted(seen)  # samples start grey
      assert abs(data[0]) < 0.02 and all(mean > 0.3 for mean, _ in fakes) and len(fakes) == 2, seen
      np.testing.assert_allclose(data[1], std, rtol=0.03)
      assert all(std * 0.97 <= rough < std + 0.1 for _, rough in fakes), seen


def test_latents_are_noise_then_one_hot_then_numbers():
  _, (move, _) = moves_on_points()
  z = np.asarray(move[1]["z"])
  assert z.shape == (2_000, 4 + 4 + 2)
  one_hot, others = z[:, 4:8], z[:, [0, 1, 2, 3, 8, 9]]
  assert ((one_hot == 0) | (one_hot == 1)).all() and (one_hot.sum(1) == 1).all()
  np.testing.assert_allclose(one_hot.mean(0), 1 / 4, atol=0.04)
  assert np.abs(others).max() <= 1
  np.testing.assert_allclose(others.mean(0), 0, atol=0.05)
  np.testing.assert_allclose(others.var(0), 1 / 3, atol=0.03)
  assert np.abs(np.corrcoef(np.c_[others, one_hot[:, 0]].T) - np.eye(7)).max() < 0.1


# ----------------------------------------------------------------------------------------- pictures


def test_a_row_of_samples_shares_its_category():
  stage, state, batch = first_state("test", n=64)
  batch["label"] = jnp.arange(64) % 10
  sample = jax.jit(stage.sample)
  rows = [np.asarray(sample(state, batch, jax.random.key(i))["category"]) for i in range(60)]
  for row in rows:
    np.testing.assert_array_equal(row, (row[0] + np.arange(64) // 8) % 3)
  assert np.abs(np.bincount([row[0] for row in rows], minlength=3) - 20).max() < 12
  found = sample(state, batch, jax.random.key(0))
  np.testing.assert_array_equal(found["data_label"], batch["label"])
  assert found["data_category"].shape == (64,)
  assert found["image"].shape == (64, 28, 28, 1)


@pytest.mark.parametrize("mode", ["running", "batch"])
def test_pictures_change_one_code_down_the_rows(mode):
  """All have the same noise in a column. G reads only some of its inputs, which are 2 numbers of
  noise, 3 of the category and 2 numbers of the code.
  """
  stage, state, batch = first_state("test", n=64, **{"model.bn_mode": mode})
  kernel = state.ema["g"]["Dense_0"]["kernel"]
  show = jax.jit(stage.show)

  def pictures(places):
    read = jnp.zeros_like(kernel).at[places].set(1e3 * kernel[places])
    g = {**state.ema["g"], "Dense_0": {**state.ema["g"]["Dense_0"], "kernel": read}}
    found = show(state.replace(ema={**state.ema, "g": g}), batch, jax.random.key(0))
    return jax.tree.map(np.asarray, found)

  same = lambda a, b: np.abs(a - b).max() < 1e-4
  for places, down in ((slice(2), ""), (slice(2, 5), "categories"), (slice(6, 7), "number_1")):
    found = pictures(places)
    rows = {"categories": 3, "number_0": 10, "number_1": 10}
    assert {k: p.shape for k, p in found.items()} == {
      k: (n, 10, 28, 28, 1) for k, n in rows.items()
    }
    for name, picture in found.items():
      assert same(picture, picture[:1]) == (name != down), (name, down)
      assert same(picture, picture[:, :1]) == (name == down), (name, down)
    if not down:
      assert same(found["number_0"][0], found["categories"][0])
    if down == "categories":  # the others have each in turn
      assert same(found["number_0"][:, 3:], found["number_0"][:, :-3])


def test_numbers_grow_from_minus_2_to_2(monkeypatch):
  made, seen = job.prepare(config_of("test")), []
  look = lambda net, params, stats, z, **_: (seen.append(z) or jnp.zeros((len(z), 28, 28, 1)), None)
  monkeypatch.setattr(core, "apply", look)
  made.stages[0].show(made.templates[0], core.batch_shapes(made.infos[0], 64), jax.random.key(0))
  for i, z in enumerate(seen[1:]):
    z = np.asarray(z).reshape(10, 10, 7)
    rows = np.linspace(-2, 2, 10)[:, None] + np.zeros(10)
    np.testing.assert_allclose(z[..., 5 + i], rows, atol=1e-6)
    others = np.delete(z, 5 + i, axis=-1)
    np.testing.assert_array_equal(others, others[:1].repeat(10, axis=0))


def test_samples_use_the_averages_that_the_switch_names():
  """Running averages matter to the samples in one mode and not in the other."""
  for mode in ("running", "batch"):
    stage, state, batch = first_state(**{"model.bn_mode": mode})
    sample = jax.jit(stage.sample)
    shifted = jax.tree.map(lambda s: s + 1, state.ema["g_stats"])
    moved = state.replace(ema={**state.ema, "g_stats": shifted})
    one, other = (sample(s, batch, jax.random.key(4))["image"] for s in (state, moved))
    assert np.allclose(one, other, atol=1e-6) == (mode == "batch")


def test_what_cannot_work_is_refused():
  for changes, flag in (
    ({"model.num_categories": 1}, "num_categories"),
    ({"model.q_player": "both"}, "q_player"),
    ({"model.bn_mode": "none"}, "bn_mode"),
    ({"model.nets": "unet"}, "nets"),
    ({"data.source": "points", "data.name": "ring"}, "nets"),
    ({"data.image_size": 7}, "start"),
    ({"data.image_size": 30}, "start"),
    ({"model.d_noise_steps": 0}, "d_noise_steps"),
  ):
    with pytest.raises(errors.UserError, match=rf"--config\.model\.{flag}"):
      job.prepare(config_of("test", **changes))


# ----------------------------------------------------------------------------------------- learning


def test_each_category_takes_a_mode():
  """4 modes, 4 categories, 3,000 steps."""
  made = job.prepare(config_of("ring"))
  source, (stage,) = job.load(made, 0, "train"), made.stages
  batch = lambda i: source.batch(i, 256)
  rows = jax.tree.map(lambda *x: np.stack(x), *(batch(i) for i in range(3_000)))

  @functools.partial(jax.jit, compiler_options=OPTIMISED)
  def run(state, rows):
    def body(i, state):
      now = source.decode(jax.tree.map(lambda x: x[i], rows))
      return stage.step(state, now, jax.random.fold_in(jax.random.key(1), i))[0]

    state = jax.lax.fori_loop(0, 3_000, body, state)
    some = source.decode(jax.tree.map(lambda x: x[:8].reshape(-1, *x.shape[2:]), rows))
    key = jax.random.key(2)
    return stage.sample(state, some, key), stage.evaluate(state, some, key)

  fake, info = run(stage.init(jax.random.key(0), source.decode(batch(0)), None), rows)
  found = codes.purity(jax.device_get(fake), {}, made.infos[0])
  assert found["code_purity"] >= 0.9 and found["code_classes"] == 4, found
  assert info["info_category"] > 0.9 * math.log(4), info


@pytest.mark.learning
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ring_and_its_control(tmp_path, seed):
  """Modes have categories of their own: purity alone rises where a plain GAN loses a mode."""
  found = train(config_of("ring", seed=seed), tmp_path / "run")
  assert found["code_matched"] >= 0.9, found
  control = train(config_of("ring_plain", seed=seed), tmp_path / "plain")
  assert control["code_matched"] < 0.4 and control["info_category"] < 0.1, control


@pytest.mark.learning
def test_small_finds_the_digits(tmp_path):
  """A category becomes a digit in every seed, best in one of three; in a plain GAN in none."""
  best = 0.0
  for seed in range(3):
    folder = tmp_path / str(seed)
    found = train(config_of("small", seed=seed), folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    info = [line["info_category"] for line in lines if "info_category" in line]
    assert info[-1] > 1.8 and info[-1] > info[0] + 1, info
    assert found["code_purity"] >= 0.7 and found["code_classes"] >= 8, found
    best = max(best, found["code_purity"])
    plain = train(config_of("plain", seed=seed), tmp_path / f"plain{seed}")
    assert plain["code_purity"] <= 0.3, plain
    assert plain["info_category"] < found["info_category"] - 1, plain
  assert best >= 0.8, best
