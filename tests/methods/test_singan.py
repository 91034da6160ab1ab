"""SinGAN: sizes, the penalty, who is moved by what, the frozen levels, and that it learns.

Its networks: tests/parity/test_parity_singan.py.
"""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import blindfold, train
from PIL import Image

from gm import core, errors, job, loop, regularizers, sampling
from gm.data import picture
from gm.methods import singan as method
from gm.metrics import patches
from gm.nets import singan

QUICK = {"xla_backend_optimization_level": 0}
jit = functools.partial(jax.jit, compiler_options=QUICK)
# of G the passes that draw fakes for D, and those that give the picture; D's norms keep nothing
PASSES = [("test", {}, {"g0": 0, "g1": 2})]
WIDTH = 24  # of its networks


def config_of(variant, **changes):
  config = importlib.import_module("configs.singan").get_config(variant)
  config.update_from_flattened_dict({"num_devices": 1, **changes})
  return config


def started(index=-1, **changes):
  """The job, a state of a level with random numbers, and a batch."""
  made, rng = job.prepare(config_of("test", **changes)), np.random.default_rng(0)
  number = lambda s: jnp.asarray(0.3 * rng.normal(size=s.shape), jnp.float32)
  template = made.templates[index]
  state = jax.tree.map(jnp.zeros_like, template)
  state = state.replace(
    params=jax.tree.map(number, state.params),
    stats=jax.tree.map(lambda s: jnp.abs(number(s)) + 0.5, state.stats),
    extra={
      **{n: jnp.tanh(number(template.extra[n])) for n in ("real", "rec", "z")},
      "sigma": jnp.linspace(1.0, 0.3, template.extra["sigma"].size),
    },
  )
  x = jnp.tanh(3 * number(jnp.zeros((1, *made.infos[0].shape["image"]))))
  return made, state, {"image": jnp.repeat(x, made.sizes[index], axis=0)}


def unrolled(body, carry, xs=None, length=None):
  """jax.lax.scan as a loop of Python's, so that each turn can be looked at."""
  outs = []
  for i in range(len(xs) if length is None else length):
    carry, out = body(carry, None if xs is None else xs[i])
    outs.append(out)
  return carry, jax.tree.map(lambda *x: jnp.stack(x), *outs)


# ------------------------------------------------------------------------------------------- sizes


def test_pyramids_are_the_authors():
  assert singan.pyramid((188, 250))[0] == (26, 34) and singan.pyramid((188, 250))[-1] == (188, 250)
  assert len(singan.pyramid((188, 250))) == 10
  assert [h for h, _ in singan.pyramid((64, 64))] == [25, 31, 37, 44, 54, 64]
  nine = singan.pyramid((384, 512))
  assert len(nine) == 9 and nine[-1] == (188, 250)
  small = singan.pyramid((64, 64), least=18, most=64)
  assert [h for h, _ in small] == [18, 23, 28, 34, 42, 52, 64]


def test_sizes():
  """Of every level of the paper's pyramid: the width doubles every four, at most twice."""
  made = job.prepare(config_of("paper"), on_paper=True)
  g, d = [], []
  for i, template in enumerate(made.templates):
    g.append(core.count(template.params[f"g{i}"]))
    d.append(core.count(template.params["d"]))
  assert [made.stages[0].name, made.stages[-1].name] == ["level0", f"level{len(g) - 1}"]
  assert g == [29_763] * 4 + [114_819] * 4 and d == [29_185] * 4 + [113_665] * 4
  shapes = [jnp.zeros((1, 31, 31, 3)), jnp.zeros((1, 21, 21, 3))]
  key = jax.random.key(0)
  build = lambda net, *x: jax.eval_shape(lambda *x: core.build(net, key, *x, train=True)[0], *x)
  widest = method.levels_of(config_of("paper").model, (188, 250))[-1].width
  assert core.count(build(singan.Generator(widest), *shapes)) == 450_819
  assert core.count(build(singan.Discriminator(widest), shapes[0])) == 448_513


def test_a_map_loses_five_pixels_on_every_side():
  d, x = singan.Discriminator(4), jnp.zeros((1, 34, 26, 3))
  scores, _ = jax.eval_shape(lambda x: d.init_with_output(jax.random.key(0), x), x)
  assert scores.shape == (1, 24, 16)
  g, padded = singan.Generator(4), jnp.zeros((1, 44, 36, 3))
  y, _ = jax.eval_shape(lambda *a: g.init_with_output(jax.random.key(0), *a, True), padded, x)
  assert y.shape == x.shape


# ------------------------------------------------------------------------------------------ losses


@pytest.mark.parametrize("size", [(6, 5), (12, 9)])
def test_the_penalty_has_a_norm_for_every_pixel(size):
  """Of a D that is linear, with weights of length c, it is (c - 1)^2, whatever the size."""
  w = jnp.array([1.0, 2.0, 2.0])
  x = jnp.ones((2, *size, 3))
  penalty = functools.partial(regularizers.gradient_penalty, lambda u: u @ w, x)
  np.testing.assert_allclose(penalty(axes=(3,)), 4.0, rtol=1e-5)
  assert penalty() > 20  # a norm for each image


def explicit(made, state, drawn, u_of):
  """The losses of the finest level as the paper has them, written out."""
  z, z0 = drawn["z"], drawn["below"]["z0"]
  m, real = made.config.model, state.extra["real"]
  g, d = singan.Generator(m.width), singan.Discriminator(m.width)
  sigma = state.extra["sigma"][-1]
  wide = lambda x: jnp.pad(x, ((0, 0), (5, 5), (5, 5), (0, 0)))
  nothing = jnp.zeros((8, 12, 12, 3))
  low = wide(nothing + z0)  # the noise of the coarsest level is the same for all colours
  up, _ = core.apply(g, state.params["g0"], state.stats["g0"], low, nothing, train=False)
  up = singan.resize(up, (14, 14))
  judge = lambda p, x: d.apply({"params": p}, x, mutable=["batch_stats"])[0]

  def make(p, z, up):
    return core.apply(g, p, state.stats["g1"], wide(sigma * z + up), up)[0]

  def of_d(p):
    y = make(state.params["g1"], z, up)
    slope = jax.grad(lambda u: judge(p, u).sum())(u_of(real, y))
    penalty = jnp.mean((jnp.sqrt((slope**2).sum(-1) + 1e-12) - 1) ** 2)
    return -judge(p, real).mean() + judge(p, y).mean() + m.gp_weight * penalty

  def of_g(p):
    r = make(p, jnp.zeros_like(real), state.extra["rec"])
    fool = -judge(state.params["d"], make(p, z, up)).mean()
    return fool + m.rec_weight * jnp.mean((r - real) ** 2)

  return jax.value_and_grad(of_d)(state.params["d"]), jax.value_and_grad(of_g)(state.params["g1"])


def test_each_player_moves_down_the_gradient_of_the_paper(monkeypatch):
  """Twice each here, G on the noise and the image below that D saw last."""
  made, state, batch = started(**{"model.d_steps": 2, "model.g_steps": 2})
  seen = []

  def between(key, real, fake):  # in the middle, and what it was asked for is kept
    return (real + fake) / 2

  monkeypatch.setattr(regularizers, "interpolate", between)
  true = core.minimize

  def minimize(state, tx, loss, names, parts, **how):
    seen.append((names, {k: parts[k] for k in ("z", "below")}))
    return true(state, tx, loss, names, parts, **how)

  monkeypatch.setattr(core, "minimize", minimize)

  def step(state, batch):
    seen.clear()
    found = []

    def move(state, tx, grads, *, slot=None):
      found.append(grads)
      return state, {}

    with pytest.MonkeyPatch.context() as patched:
      patched.setattr(core, "move", move)
      patched.setattr(jax.lax, "scan", unrolled)
      _, metrics = made.stages[-1].step(state, batch, jax.random.key(2))
    last = {"names": [n for n, _ in seen], "parts": [p for _, p in seen]}
    middle = lambda real, y: (real + y) / 2
    want = explicit(made, state, last["parts"][1], middle)
    names.append(last["names"])
    return found, metrics, last["parts"], want

  names = []
  found, metrics, parts, (of_d, of_g) = jit(step)(state, batch)
  assert names[0] == [["d"]] * 2 + [["g1"]] * 2
  near(found[1]["d"], of_d[1])
  for i in (2, 3):  # nothing has moved here, so both are the same
    near(found[i]["g1"], of_g[1])
  np.testing.assert_allclose(metrics["loss_d"], of_d[0], rtol=1e-4)
  np.testing.assert_allclose(metrics["loss_g1"], of_g[0], rtol=1e-4)
  for i in range(4):  # one z for all; below it is drawn anew for each move of D
    np.testing.assert_array_equal(parts[i]["z"], parts[0]["z"])
  ups = [np.asarray(p["below"]["z0"]) for p in parts]
  assert np.abs(ups[0] - ups[1]).max() > 0.01
  for i in (2, 3):
    np.testing.assert_array_equal(ups[i], ups[1])
  assert len({x.tobytes() for x in np.asarray(parts[0]["z"])}) == 8


def near(a, b, rtol=1e-3):
  """Every array within rtol of its largest entry."""

  def one(x, y):
    np.testing.assert_allclose(x, y, rtol=0, atol=rtol * float(jnp.abs(y).max()) + 1e-6)

  jax.tree.map(one, a, b)


def silent(params):
  """A generator that adds nothing."""
  last = jax.tree.map(jnp.zeros_like, params["layers"]["last"])
  return {"layers": {**params["layers"], "last": last}}


def test_a_generator_that_adds_nothing_gives_what_is_below():
  """So the noise of the next level is a tenth of the reconstruction's distance from the picture."""
  made, state, batch = started(index=0)
  state = state.replace(params={**state.params, "g0": silent(state.params["g0"])})
  x = jax.random.normal(jax.random.key(1), (2, 12, 14, 3))
  net = singan.Generator(made.config.model.width)
  padded = jnp.pad(x, ((0, 0), (5, 5), (5, 5), (0, 0)))
  y, _ = core.apply(net, state.params["g0"], state.stats["g0"], padded, x, train=False)
  np.testing.assert_array_equal(y, x)  # bit by bit
  after = jit(made.stages[1].init)(jax.random.key(0), batch, state)
  below = singan.resize(jnp.zeros((1, 2, 2, 3)), (14, 14))
  np.testing.assert_allclose(after.extra["rec"], below, atol=1e-6)
  real = singan.resize(batch["image"][:1], (14, 14))
  np.testing.assert_allclose(after.extra["real"], real, atol=1e-6)
  want = 0.1 * np.sqrt(((after.extra["rec"] - real) ** 2).mean())
  np.testing.assert_allclose(after.extra["sigma"], [1.0, want], rtol=1e-4)


def test_a_level_starts_from_the_one_below():
  """Both networks and the averages, where they are as wide, and its reconstruction is enlarged."""
  made, state, batch = started(index=0)
  after = jit(made.stages[1].init)(jax.random.key(0), batch, state)
  same = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)
  same(after.params["g1"], state.params["g0"])
  same(after.stats["g1"], state.stats["g0"])
  same(after.params["d"], state.params["d"])
  same(after.params["g0"], state.params["g0"])
  assert all((x == 0).all() for x in jax.tree.leaves(after.opt))
  z = jnp.broadcast_to(state.extra["z"], (1, 12, 12, 3))
  net, padded = singan.Generator(WIDTH), jnp.pad(z, ((0, 0), (5, 5), (5, 5), (0, 0)))
  y, _ = core.apply(net, state.params["g0"], state.stats["g0"], padded, 0 * z, train=False)
  far = np.abs(after.extra["rec"] - singan.resize(y, (14, 14)))
  assert np.median(far) < 1e-5 and far.max() < 0.02  # a level of grey, by rounding
  levels = method.levels_of(config_of("paper").model, (188, 250))
  assert [level.width for level in levels] == [32] * 4 + [64] * 4 + [128] * 2


def test_images_are_resized_as_files():
  """Cut to 8 bits, bicubic as Pillow's; a ramp stays one inside."""
  x = np.random.default_rng(0).uniform(-1.2, 1.2, (1, 20, 14, 1)).astype(np.float32)
  cut = np.floor(127.5 * (np.clip(x, -1, 1) + 1))
  for size in ((9, 8), (31, 22)):
    found = np.asarray(singan.resize(x, size))[0, :, :, 0]
    image = Image.fromarray(cut[0, :, :, 0]).resize(size[::-1], Image.Resampling.BICUBIC)
    np.testing.assert_allclose(found, np.asarray(image) / 127.5 - 1, atol=1e-5)
  ramp = jnp.linspace(-1, 1, 33)[None, :, None, None] * jnp.ones((1, 1, 8, 1))
  for size in (20, 50):
    found = np.asarray(singan.resize(ramp, (size, 8), quantise=False))[0, :, 4, 0]
    steps = np.diff(found)[size // 6 : -size // 6]
    np.testing.assert_allclose(steps, steps.mean(), rtol=1e-4 if size > 33 else 0.03)
  slope = jax.grad(lambda x: singan.resize(x, (9, 8), quantise=False).sum())(jnp.asarray(x))
  assert (slope == 0).all()


def test_levels_below_stay_bit_for_bit():
  """A step hands their parameters and averages on as they came, and all that is fixed."""
  made = job.prepare(config_of("test"))
  template, batch = made.templates[1], core.batch_shapes(made.infos[1], 8)
  traced = jax.make_jaxpr(lambda *args: made.stages[1].step(*args)[0])
  key = jax.eval_shape(lambda: jax.random.key(0))
  jaxpr = traced(template, batch, key).jaxpr
  given = dict(zip(paths_of(template), jaxpr.invars))
  same = [path for path, out in zip(paths_of(template), jaxpr.outvars) if out is given[path]]
  for part in (".params['g0']", ".stats['g0']", ".extra"):
    assert {path for path in given if path.startswith(part)} <= set(same)
  assert not [path for path in same if path.startswith((".params['g1']", ".params['d']"))]


def paths_of(tree):
  return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


# ------------------------------------------------------------------------------------ new pictures


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A run that has begun all levels, and the config that it was made with."""
  work, config = tmp_path_factory.mktemp("run"), config_of("test", metrics=(), num_steps=0)
  with pytest.MonkeyPatch.context() as patched:
    blindfold(patched)
    loop.train(config, str(work))
  return work, config


def test_samples_have_any_size_and_differ(trained):
  x = sampling.draw(str(trained[0]), range(3))["image"]
  assert x.shape == (3, 14, 14, 3) and np.abs(x).max() <= 1
  assert (x[0] != x[1]).mean() > 0.5
  for changes, size in (({"model.out_size": (14, 40)}, (14, 40)), ({"model.extra": 2}, (19, 19))):
    made = job.prepare(config_of("test", **changes))
    batch, key = core.batch_shapes(made.infos[1], 3), jax.eval_shape(lambda: jax.random.key(0))
    found = jax.eval_shape(made.stages[1].sample, made.templates[1], batch, key)
    assert found["image"].shape == (3, *size, 3)


def test_levels_that_are_kept_give_the_picture(trained):
  """All but the last: what is left to chance is its noise."""
  made, index, state = job.newest(str(trained[0]))
  stage = job.prepare(config_of("test", metrics=(), **{"model.start_level": 1})).stages[index]
  still = state.replace(extra={**state.extra, "sigma": state.extra["sigma"].at[1].set(0.0)})
  sizes = [level.size for level in method.levels_of(made.config.model, (20, 20))]
  net, nothing = singan.Generator(WIDTH), jnp.zeros((1, *sizes[0], 3))
  wide = lambda x: jnp.pad(x, ((0, 0), (5, 5), (5, 5), (0, 0)))

  @jit
  def both(state, key):
    up, z = nothing, state.extra["z"]
    for i in range(2):
      of = net, state.params[f"g{i}"], state.stats[f"g{i}"]
      y, _ = core.apply(*of, wide(z + up), up, train=False)
      up, z = singan.resize(y, sizes[1]), 0.0
    batch = {"image": jnp.zeros((2, 20, 20, 3))}
    return stage.sample(state, batch, key)["image"], jnp.clip(y, -1, 1)

  same, want = both(still, jax.random.key(0))
  np.testing.assert_allclose(same, jnp.broadcast_to(want, same.shape), atol=1e-5)
  kept, _ = both(state, jax.random.key(0))
  assert (kept[0] != kept[1]).any()


def test_an_image_enters_at_a_level_and_keeps_what_it_has_of_the_picture(trained, tmp_path):
  """What was put into the picture is drawn anew with a little around it, the rest stays."""
  work, config = trained
  _, _, state = job.newest(str(work))
  real = np.asarray(state.extra["real"][0])
  own = picture.load({"name": "china", "image_size": 20}, "test").arrays["image"][0].copy()
  own[3:7, 4:8] = (255, 0, 0)
  Image.fromarray(own).save(tmp_path / "edited.png")
  own = [str(tmp_path / "edited.png")]
  with pytest.raises(errors.UserError, match="--input"):  # where none is to enter
    sampling.draw(str(work), range(2), config=config, inputs=own)
  config = config.copy_and_resolve_references()
  config.model.inject = 1
  request = sampling.Request(range(2), inputs=own, out=str(tmp_path / "o"), form="files")
  sampling.run(str(work), config, request)
  files = sorted((tmp_path / "o").iterdir())
  assert [p.name for p in files] == ["edited_seed0000.png", "edited_seed0001.png"]
  for file in files:
    with Image.open(file) as image:
      apart = np.abs(np.asarray(image) / 127.5 - 1 - real)
    assert apart[10:, 10:].max() < 0.01 and apart[2:5, 3:6].max() > 0.05


def test_what_changed_is_widened_softly():
  x = jnp.zeros((1, 32, 32, 3)).at[0, 16, 16, 1].set(1.0)
  mask = np.asarray(method.changed(x, jnp.zeros((1, 32, 32, 3))))[0, ..., 0]
  assert mask[16, 16] == 1 and mask[16, 17] == 1 and mask[0, 0] == 0 and mask[16, 24] == 0
  assert ((mask > 0) & (mask < 1)).any()
  assert (method.changed(x, x) == 0).all()
  assert (method.changed(x + 1, jnp.zeros((1, 32, 32, 3))) == 1).all()  # a painting, all new


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"model.min_size": 14}, r"20x20 pixels.*--config\.model\.min_size"),
    ({"model.min_size": 8}, r"--config\.model\.min_size=8"),
    ({"model.factor": 1.0}, r"--config\.model\.factor=1"),
    ({"model.d_steps": 0}, r"--config\.model\.d_steps=0"),
    ({"model.inject": 2}, r"--config\.model\.inject=2"),
    ({"model.start_level": -1}, r"--config\.model\.start_level=-1"),
    ({"model.out_size": (4, 40)}, r"--config\.model\.out_size=\(4, 40\)"),
    ({"model.out_size": (40,)}, r"--config\.model\.out_size=\(40,\)"),
    ({"model.out_size": (14, 20), "model.start_level": 1}, r"start_level keeps the layout"),
    ({"data.name": "river"}, r"unknown picture 'river'"),
    ({"data.name": "file", "data.image_size": 0}, r"--config\.data\.image_size"),
    ({"data.channels": 2}, r"channels 2: set --config\.data\.channels"),
  ],
)
def test_what_cannot_be_is_said_in_a_line(changes, message):
  with pytest.raises(errors.UserError, match=message) as error:
    job.prepare(config_of("test", **changes))
  assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------- the picture, patches


def test_a_picture_of_ones_own(tmp_path):
  x = np.random.default_rng(0).integers(0, 256, (10, 12, 3), np.uint8)
  Image.fromarray(x).save(tmp_path / "own.png")
  cfg = {"name": "file", "dir": str(tmp_path / "own.png"), "image_size": (10, 12), "channels": 3}
  for split in ("train", "test"):
    source = picture.load(cfg, split)
    np.testing.assert_array_equal(source.arrays["image"], x[None])
    np.testing.assert_array_equal(source.batch(5, 3)["image"], np.stack([x] * 3))
  assert source.origin["name"] == str(tmp_path / "own.png")
  for changes, message in (
    ({"dir": ""}, r"needs its path: set --config\.data\.dir"),
    ({"dir": str(tmp_path / "none.png")}, r"none\.png is no file"),
  ):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
      picture.load(cfg | changes, "train")
  (tmp_path / "bad.png").write_bytes(b"no picture")
  with pytest.raises(ValueError, match=r"bad\.png: not readable"):
    picture.load(cfg | {"dir": str(tmp_path / "bad.png")}, "train")
  china = picture.load({"name": "china", "image_size": 0}, "train").arrays["image"]
  assert china.shape == (1, 427, 640, 3)


def images(num=4, size=32, seed=0):
  rng = np.random.default_rng(seed)
  x = np.cumsum(np.cumsum(rng.normal(size=(num, size, size, 3)), 1), 2)
  return np.tanh(x / x.std((1, 2, 3), keepdims=True)).astype(np.float32)


def test_patches_tell_copies_and_noise_from_new_pictures():
  field = images(1, 40)
  real = field[:, 4:36, 4:36]
  of = lambda fake: patches.of_one({"image": fake}, {"image": real}, None)
  copies = of(np.repeat(real, 4, axis=0))
  assert copies["swd"] < 1e-6 and copies["diversity"] == 0 and copies["apart"] == 0
  moved = of(np.concatenate([field[:, i : i + 32, j : j + 32] for i in (2, 6) for j in (2, 6)]))
  assert moved["swd"] < 0.5 * moved["swd_noise"] and moved["diversity"] > 0.1
  assert moved["coherence"] < 0.1 < moved["apart"]
  rng = np.random.default_rng(1)
  noise = real.mean((1, 2)) + rng.normal(size=(4, 32, 32, 3)) * real.std((1, 2))
  found = of(noise.astype(np.float32))
  np.testing.assert_allclose(found["swd"], found["swd_noise"], rtol=0.3)
  assert found["coherence"] > 3 * moved["coherence"] and found["coverage"] > 0.1
  flat = of(np.full((4, 32, 32, 3), real.mean(), np.float32))
  assert flat["diversity"] == 0 and flat["swd"] > 0.5 * flat["swd_noise"]
  wide = of(np.tile(real, (2, 1, 2, 1)))
  assert np.isfinite(list(wide.values())).all()
  with pytest.raises(ValueError, match=r"take it out of --config\.metrics"):
    patches.of_one({"point": real}, {"image": real}, None)


# ---------------------------------------------------------------------------------------- learning


def learns(found):
  """The thresholds are proposals, not measured."""
  return (
    found["rmse"] <= 0.10
    and found["swd"] <= 0.5 * found["swd_noise"]
    and 0.1 <= found["diversity"] <= 0.9
  )


@pytest.mark.learning
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_small_learns(tmp_path, seed):
  found = train(config_of("small", seed=seed), tmp_path / "run")
  assert learns(found), found
  config = config_of("small", seed=seed, **{"model.out_size": (64, 96)})
  wide = sampling.draw(str(tmp_path / "run"), range(2), config=config)["image"]
  assert wide.shape == (2, 64, 96, 3) and wide.std((1, 2)).min() > 0.1


@pytest.mark.learning
def test_without_the_reconstruction_the_picture_is_not_given_back(tmp_path):
  found = train(config_of("small", **{"model.rec_weight": 0.0}), tmp_path / "run")
  assert found["rmse"] > 0.10, found
