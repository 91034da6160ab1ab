"""ProGAN: networks by hand, growth, fading, schedule, the loss in closed form, learning."""

import functools
import importlib
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import quickly, train

from gm import core, errors, evaluation, job, losses
from gm.methods import progan as method
from gm.nets import progan
from gm.nn import resample

# compiles fast: most is run once
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def config_of(variant, **changes):
  config = importlib.import_module("configs.progan").get_config(variant)
  config.update_from_flattened_dict({"num_devices": 1, **changes})
  return config


def normal(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def counts(size, image_channels, **options):
  z_dim = progan.channels(2, **options)
  g, d = progan.Generator(size, image_channels, **options), progan.Discriminator(size, **options)
  build = lambda net, *shape: jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros(shape)))
  return core.count(build(g, 2, z_dim)), core.count(build(d, 2, size, size, image_channels))


def test_published_sizes():
  full = {"base": 8192, "most": 512}
  assert counts(1024, 3, **full) == (23_079_115, 23_087_249)
  assert counts(32, 3, **full) == (20_719_628, 20_726_785)
  assert counts(16, 1, base=256, most=64) == (204_259, 205_089)
  widths = lambda size, **options: [progan.channels(s, **options) for s in progan.sizes(size)]
  assert widths(1024, **full) == [512, 512, 512, 512, 256, 128, 64, 32, 16]
  assert widths(16, base=256, most=64) == [64, 64, 32]


def test_paper_grows_to_the_published_network():
  """800,000 images in every fade and between them, 19 million in all."""
  config = config_of("paper")
  found, m = method.phases(config, 1024), config.model
  assert [p.size for p in found] == [4, 8, 16, 32, 64, 128, 256, 512, 1024]
  assert [p.batch_size for p in found] == [16] * 6 + [14, 6, 3]
  for p in found:
    np.testing.assert_allclose(p.num_fade * p.batch_size, 800_000 * (p.size > 4), atol=8)
    num_stable = (p.num_steps - p.num_fade) * p.batch_size
    np.testing.assert_allclose(num_stable, 6_200_000 if p.size == 1024 else 800_000, atol=8)
  np.testing.assert_allclose(sum(p.num_steps * p.batch_size for p in found), 19e6, atol=100)
  assert (m.base, m.most, m.z_dim) == (8192, 512, 512)


def test_schedule():
  """The level of detail, log2(32 / size) + t: 3 at image 0 and at T, 2.5 at T + S/2, 2 at T + S."""
  changes = {"batch_size": 32, "model.stable_images": 3200, "model.fade_images": 6400}
  config = config_of("small", **changes, num_steps=1000)
  found = method.phases(config, 32)
  assert [p.size for p in found] == [4, 8, 16, 32]
  assert [p.num_steps for p in found] == [100, 300, 300, 1200]

  def lod(images):
    step = images // 32
    for p in found:
      if step < p.num_steps:
        t = p.old_share(jnp.array(step))
        return np.log2(32 / p.size) + (0 if t is None else float(t))
      step -= p.num_steps

  assert [lod(n) for n in (0, 3199, 3200, 6400, 9600)] == [3, 3, 3, 2.5, 2]
  assert [lod(n) for n in (12_799, 12_800, 16_000, 19_200)] == [2, 2, 1.5, 1]
  config = config_of("small", **{**changes, "model.batch_sizes": (64, 32, 16)}, num_steps=1000)
  steps = [(p.batch_size, p.num_fade, p.num_steps) for p in method.phases(config, 16)]
  assert steps == [(64, 0, 50), (32, 200, 300), (16, 400, 1400)]
  assert job.prepare(config).sizes == [64, 32, 16]  # what the loop reads


def test_the_control_sees_as_many_images():
  images = lambda p: p.num_steps * p.batch_size
  small, fixed = (method.phases(config_of(v), 16) for v in ("small", "fixed"))
  assert sum(map(images, small)) == images(*fixed) and fixed[0].num_fade == 0


def test_errors_name_the_flags():
  for changes, match in (
    ({"data.image_size": (8, 16)}, "not square.*image_size"),
    ({"data.image_size": 28}, "28 pixels.*image_size"),
    ({"model.start": 6}, "model.start"),
    ({"model.batch_sizes": (8,)}, "model.batch_sizes"),
  ):
    config = config_of("test")
    with config.ignore_type():
      config.update_from_flattened_dict(changes)
    with pytest.raises(errors.UserError, match=match):
      job.prepare(config)


OPTIONS = {"base": 32, "most": 8}


@pytest.fixture(scope="module")
def nets():
  """Networks for 4 and 8 pixels, the larger with all that the smaller has; no bias is 0."""
  found = {}
  for size in (4, 8):
    g, d = progan.Generator(size, 1, **OPTIONS), progan.Discriminator(size, **OPTIONS)
    build = jit(
      lambda key, g=g, d=d, s=size: (
        g.init(key, jnp.zeros((2, 8)))["params"],
        d.init(key, jnp.zeros((2, s, s, 1)))["params"],
      )
    )
    shake = lambda p: np.array(p + 0.3 * np.random.default_rng(1).normal(size=p.shape), np.float32)
    shaken = jax.tree.map(shake, jax.device_get(build(jax.random.key(size))))
    found[size] = (g, d, *shaken)
  g, d, pg, pd = found[8]
  found[8] = (g, d, method.inherit(pg, found[4][2]), method.inherit(pd, found[4][3]))
  return found


def test_growth_keeps_what_was_learned(nets):
  small, large = nets[4][2], nets[8][2]
  assert set(small) < set(large) and set(nets[4][3]) < set(nets[8][3])
  jax.tree.map(np.testing.assert_array_equal, small, {k: large[k] for k in small})
  grown = method.inherit({"a": jnp.zeros(2), "b": {"c": jnp.zeros(3)}}, {"b": {"c": jnp.ones(2)}})
  assert not grown["b"]["c"].any()  # another shape: its own start


def test_fade_is_continuous_and_ends_without_the_old_path(nets):
  small_g, small_d, pg4, pd4 = nets[4]
  g, d, pg, pd = nets[8]
  z, x = normal(0, 4, 8), normal(1, 4, 8, 8, 1)

  def both(p, t):
    return g.apply({"params": p[0]}, z, t), d.apply({"params": p[1]}, x, t)

  @jit
  def alone(p, p4):  # the smaller networks, and the larger
    old_image = resample.nearest(small_g.apply({"params": p4[0]}, z))
    old_score = small_d.apply({"params": p4[1]}, resample.mean_pool(x))
    return (old_image, old_score), both(p, None)

  @jit
  def faded(p, t):
    found, pullback = jax.vjp(lambda p: both(p, t), p)
    return found, pullback(jax.tree.map(jnp.cos, found))[0]

  for t, want in zip((1.0, 0.0), alone((pg, pd), (pg4, pd4))):
    for a, b in zip(faded((pg, pd), jnp.array(t))[0], want):
      np.testing.assert_allclose(a, b, atol=1e-5)
  for t, old_moves in ((0.0, False), (0.5, True)):
    dg, dd = faded((pg, pd), jnp.array(t))[1]
    assert bool(optax.global_norm(dg["to_rgb_4"])) == old_moves
    assert bool(optax.global_norm(dd["from_rgb_4"])) == old_moves
    assert optax.global_norm(dg["to_rgb_8"]) > 0 and optax.global_norm(dd["from_rgb_8"]) > 0


def test_networks_by_hand(nets):
  """In NumPy: the places of norms, gains and biases; D pools before bias and activation."""
  g, d, pg, pd = nets[8]
  z, image = np.array(normal(0, 8, 8)), np.array(normal(1, 8, 8, 8, 1))
  lrelu = lambda x: np.maximum(x, 0.2 * x)
  pixel_norm = lambda x: x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-8)
  used = lambda p, gain: gain * np.array(p["kernel"]) / np.sqrt(np.prod(p["kernel"].shape[:-1]))

  def conv(p, x, gain=2**0.5, then=lambda y: y):
    w, half = used(p, gain), p["kernel"].shape[0] // 2
    wide = np.pad(x, ((0, 0), (half, half), (half, half), (0, 0)))
    h, w_ = x.shape[1:3]
    places = np.ndindex(w.shape[:2])
    y = sum(wide[:, i : i + h, j : j + w_] @ w[i, j] for i, j in places)
    return then(y) + np.array(p["bias"])

  x = (pixel_norm(z) @ used(pg["first"], np.sqrt(2) / 4)).reshape(8, 4, 4, 8)
  x = pixel_norm(lrelu(x + np.array(pg["bias"])))
  x = pixel_norm(lrelu(conv(pg["conv_4"], x)))
  x = pixel_norm(lrelu(conv(pg["up_8"], x.repeat(2, 1).repeat(2, 2))))
  x = pixel_norm(lrelu(conv(pg["conv_8"], x)))
  want_image = conv(pg["to_rgb_8"], x, gain=1.0)

  pool = lambda x: x.reshape(8, 4, 2, 4, 2, -1).mean((2, 4))
  x = lrelu(conv(pd["from_rgb_8"], image))
  x = lrelu(conv(pd["conv_8"], x))
  x = lrelu(conv(pd["down_8"], x, then=pool))
  std = np.sqrt(x.reshape(4, 2, -1).var(0) + 1e-8).mean(-1)  # of 0, 2, 4, 6 and of 1, 3, 5, 7
  std = np.broadcast_to(np.tile(std, 4)[:, None, None, None], (8, 4, 4, 1))
  x = lrelu(conv(pd["conv_4"], np.concatenate([x, std], -1)))
  x = lrelu(x.reshape(8, -1) @ used(pd["dense"], np.sqrt(2)) + np.array(pd["dense"]["bias"]))
  want_score = x @ used(pd["last"], 1.0) + np.array(pd["last"]["bias"])

  apply = jit(lambda: (g.apply({"params": pg}, z), d.apply({"params": pd}, image)))
  found_image, found_score = apply()
  np.testing.assert_allclose(found_image, want_image, atol=1e-4)
  np.testing.assert_allclose(found_score, want_score[:, 0], atol=1e-4)


def test_layers_start_as_published():
  """Stored N(0, 1); behind pixel norm the mean square of a 3x3 layer's output is 2."""
  g = progan.Generator(8, 3, base=512, most=64)
  z = normal(0, 32, 64)

  def first_look(key):
    v = g.init(key, z)
    return v, g.apply(v, z, capture_intermediates=True)[1]["intermediates"]

  v, seen = jit(first_look)(jax.random.key(0))
  for path, p in jax.tree_util.tree_leaves_with_path(v["params"]):
    if p.size > 10_000:
      assert 0.95 < p.std() < 1.05, path
  conv = seen["conv_8"]["__call__"][0]  # biases are 0
  assert conv.shape == (32, 8, 8, 64)
  np.testing.assert_allclose(jnp.mean(conv[:, 1:-1, 1:-1] ** 2), 2.0, atol=0.4)
  first = seen["first"]["__call__"][0]  # gain sqrt(2) / 4 on an input of mean square 1
  np.testing.assert_allclose(jnp.mean(first**2), 2 / 16, rtol=0.2)


class Fade(NamedTuple):
  """The growth to 8 pixels: before it, at its start, after one step, where still t = 1, and after
  the next, the first that is not faded.
  """

  made: job.Job
  before: core.State
  start: core.State
  after: core.State
  faded: core.State
  batches: list  # of each stage


@pytest.fixture(scope="module")
def fade():
  made, batches = job.prepare(config_of("test")), []
  init = lambda i, *args: jit(made.stages[i].init)(jax.random.key(i), *args)
  for i, size in enumerate((4, 8)):
    image = jnp.tanh(normal(i, 8, size, size, 1))
    batches.append({"image": image, "label": jnp.zeros(8, jnp.int32)})
  before = init(0, batches[0], None)
  # as after some steps: the average is not what it averages, and the optimizers have moments
  average = jax.tree.map(lambda p: p / 2, before.ema)
  moments = jax.tree.map(jnp.ones_like, before.opt)
  before = before.replace(step=jnp.array(2), ema=average, opt=moments)
  start = init(1, batches[1], before)
  step = jit(made.stages[1].step)
  after, _ = step(start, batches[1], jax.random.key(5))
  faded, _ = step(after, batches[1], jax.random.key(6))
  return Fade(made, before, start, after, faded, batches)


def test_a_stage_inherits_parameters_and_averages(fade):
  assert [s.name for s in fade.made.stages] == ["4px", "8px"]
  assert [i.shape["image"][0] for i in fade.made.infos] == [4, 8]
  for grown, old in (
    (fade.start.params, fade.before.params),
    (fade.start.ema, fade.before.ema),
  ):
    for n in old:
      jax.tree.map(np.testing.assert_array_equal, old[n], {k: grown[n][k] for k in old[n]})
  added = {n: set(fade.start.params[n]) - set(fade.before.params[n]) for n in ("g", "d")}
  assert added["g"] == {"up_8", "conv_8", "to_rgb_8"}
  assert added["d"] == {"from_rgb_8", "conv_8", "down_8"}


def test_optimizers_start_anew_at_both_ends_of_a_fade(fade):
  """At the end the second moment is that of one gradient: (1 - b2) g^2, and one step is counted."""
  assert int(fade.start.step) == 0
  assert any(np.any(m) for m in jax.tree.leaves(fade.before.opt))
  assert not any(np.any(m) for m in jax.tree.leaves(fade.start.opt))
  for n in ("g", "d"):
    (adam,) = [s for s in jax.tree.leaves(fade.faded.opt[n], is_leaf=is_adam) if is_adam(s)]
    assert int(adam.count) == 1
    # b1 is 0: the first moment is the gradient
    jax.tree.map(
      lambda mu, nu: np.testing.assert_allclose(nu, 0.01 * mu**2, rtol=1e-4, atol=1e-12),
      adam.mu,
      adam.nu,
    )


def is_adam(node):
  return isinstance(node, optax.ScaleByAdamState)


def test_adam_moves_stored_weights_by_its_rate_and_layers_without_gradient_not_at_all(fade):
  """So used ones, sqrt(2 / fan_in) of the stored, by lr sqrt(2 / fan_in), whatever the gradient.
  At t = 1 the new layers have none.
  """
  for n in ("g", "d"):
    before, now = fade.start.params[n], fade.after.params[n]
    for layer in before:
      moved = max(
        np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (before[layer], now[layer])))
      )
      if layer in fade.before.params[n]:
        assert 0.9 < moved / fade.made.config.lr < 1.001, (n, layer)
      else:
        assert moved == 0, (n, layer)


def test_average_follows_the_generator_and_makes_the_samples(fade):
  kernel = lambda tree: tree["g"]["conv_4"]["kernel"]
  want = 0.999 * kernel(fade.start.ema) + 0.001 * kernel(fade.after.params)
  np.testing.assert_allclose(kernel(fade.after.ema), want, rtol=1e-6)
  draw = lambda state: fade.made.stages[1].sample(state, fade.batches[1], jax.random.key(0))
  without = fade.after.replace(params={})
  np.testing.assert_array_equal(draw(without)["image"], draw(fade.after)["image"])


@pytest.mark.parametrize("scale, gamma", [(1.0, 1.0), (0.0, 1.0), (2.0, 3.0)])
def test_loss_of_a_linear_critic(fade, monkeypatch, scale, gamma):
  """D(x) = <w, x>: the penalty is 10 (|w| / gamma - 1)^2 wherever it is taken; D = 0 costs 10."""
  made = job.prepare(config_of("test", **{"model.gamma": gamma}))
  w = scale * normal(5, 4, 4, 1)
  f = lambda x: jnp.einsum("nhwc,hwc->n", x, w)
  seen = {}

  def spy(state, tx, generate, d_loss, g_loss, batch, **options):
    fake = generate(state.params, batch)[0]
    loss, _ = d_loss(state.params, batch, fake)
    seen.update(d=loss, g=g_loss(state.params, batch, fake)[0], x=batch["x"], fake=fake)
    return state, {}

  monkeypatch.setattr(core, "alternate", spy)
  monkeypatch.setattr(progan.Discriminator, "apply", lambda self, v, x, t: f(x))
  made.stages[0].step(fade.before, fade.batches[0], jax.random.key(0))
  real, fake = f(seen["x"]), f(seen["fake"])
  penalty = 10 * (float(jnp.sqrt(jnp.sum(w**2))) / gamma - 1) ** 2
  want = fake.mean() - real.mean() + penalty + 0.001 * jnp.mean(real**2)
  np.testing.assert_allclose(seen["d"], want, rtol=1e-4)
  np.testing.assert_allclose(seen["g"], -fake.mean(), rtol=1e-5, atol=1e-7)
  assert scale or abs(seen["d"] - 10) < 1e-3
  m = made.config.model
  g = progan.Generator(4, 1, base=m.base, most=m.most)
  for n in (8, 7):  # the second is no multiple of the groups that D compares
    batch = {"image": fade.batches[0]["image"][:n]}
    found = quickly(made.stages[0].evaluate, fade.before, batch, jax.random.key(1))
    z = jax.random.normal(jax.random.key(1), (n, m.z_dim))
    fake, real = f(g.apply({"params": fade.before.params["g"]}, z)), f(batch["image"])
    np.testing.assert_allclose(found["w_estimate"], real.mean() - fake.mean(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("gamma", [1.0, 2.0])
def test_the_penalty_is_taken_between_data_and_samples(monkeypatch, gamma):
  """D(x) = |x|^2 / 2 has the slope |x|. Data of norm 3 and samples of norm 1.5 on one ray have
  points between them whose norms u are uniform: E (u - gamma)^2, an integral; 4,096 of them.
  """
  shape = (4_096, 4, 4, 1)
  made = job.prepare(config_of("test", **{"model.gamma": gamma, "batch_size": 4_096}))
  f = lambda x: jnp.sum(x**2, (1, 2, 3)) / 2
  monkeypatch.setattr(progan.Generator, "apply", lambda self, v, z, t: jnp.full(shape, 1.5 / 4))
  monkeypatch.setattr(progan.Discriminator, "apply", lambda self, v, x, t: f(x))
  state = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), made.templates[0])
  batch = {"image": jnp.full(shape, 3 / 4)}
  found = jit(lambda s: made.stages[0].step(s, batch, jax.random.key(0))[1])(state)
  integral = ((3 - gamma) ** 3 - (1.5 - gamma) ** 3) / (3 * 1.5)
  np.testing.assert_allclose(found["penalty"], integral / gamma**2, rtol=0.03)
  np.testing.assert_allclose(found["w_estimate"], (9 - 1.5**2) / 2, rtol=1e-5)
  want = 10 * found["penalty"] - found["w_estimate"] + 0.001 * 4.5**2
  np.testing.assert_allclose(found["loss_d"], want, rtol=1e-4)
  np.testing.assert_allclose(found["loss_g"], -(1.5**2) / 2, rtol=1e-5)


def test_real_images_are_faded_like_fakes(fade, monkeypatch):
  made, seen = job.prepare(config_of("test", **{"model.fade_images": 16})), []

  def spy(state, tx, generate, d_loss, g_loss, batch, **options):
    seen.append(batch["x"])
    return state, {}

  monkeypatch.setattr(core, "alternate", spy)
  for step in (0, 1):  # of 2
    state = fade.start.replace(step=jnp.array(step))
    made.stages[1].step(state, fade.batches[1], jax.random.key(0))
  x = fade.batches[1]["image"]
  blurred = resample.nearest(resample.mean_pool(x))
  np.testing.assert_allclose(seen[0], blurred, atol=1e-6)
  np.testing.assert_allclose(seen[1], (x + blurred) / 2, atol=1e-6)


@pytest.mark.parametrize("mirror", [False, True])
def test_half_of_the_images_are_mirrored_if_asked(fade, monkeypatch, mirror):
  made, x, seen = job.prepare(config_of("test", **{"model.mirror": mirror})), fade.batches[0], []

  def spy(state, tx, generate, d_loss, g_loss, batch, **options):
    seen.append(batch["x"])
    return state, {}

  monkeypatch.setattr(core, "alternate", spy)
  made.stages[0].step(fade.before, x, jax.random.key(3))
  same = (seen[0] == x["image"]).all((1, 2, 3))
  turned = (seen[0] == x["image"][:, :, ::-1]).all((1, 2, 3))
  assert (same | turned).all() and bool(turned.any()) == mirror


def test_every_stage_is_scored_at_its_size(fade):
  assert config_of("small").eval_every  # then stages are evaluated as they end
  for i, state in enumerate((fade.before, fade.faded)):
    found = evaluation.Evaluator(fade.made, i).evaluate(state)
    assert {f"swd_{4 * 2**i}", "frechet", "w_estimate"} <= set(found)
    assert np.isfinite(list(found.values())).all()


def evaluation_of(config, folder):
  train(config, str(folder))
  return json.loads((folder / "eval.json").read_text())["metrics"]


@pytest.mark.learning
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_small_learns_all_digits(tmp_path, seed):
  assert evaluation_of(config_of("small", seed=seed), tmp_path / "run")["class_min_share"] >= 0.03


@pytest.mark.learning
def test_small_with_a_wrong_sign_does_not_learn(tmp_path, monkeypatch):
  true = losses.wasserstein_g
  monkeypatch.setattr(losses, "wasserstein_g", lambda f: -true(f))
  assert evaluation_of(config_of("small"), tmp_path / "run")["class_min_share"] < 0.03
