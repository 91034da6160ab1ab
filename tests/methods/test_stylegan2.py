"""StyleGAN2: sizes, variances at the start, mixing, the lazy regularisers, ADA, and learning."""

import functools
import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import on_paper, quickly, train

from gm import core, errors, evaluation, job, losses, optim, regularizers
from gm.methods import stylegan2 as method
from gm.nets import stylegan2
from gm.nn import equalized, norm, resample


def config_of(variant, **changes):
  config = importlib.import_module("configs.stylegan2").get_config(variant)
  config.update_from_flattened_dict({"num_devices": 1, **changes})
  return config


def normal(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_published_sizes():
  counts = lambda made: tuple(core.count(made.templates[0].params[n]) for n in ("g", "d"))
  assert counts(on_paper("stylegan2", "paper")) == (30_370_060, 29_012_513)
  assert counts(on_paper("stylegan2", "paper256")) == (30_034_338, 28_864_129)
  assert counts(on_paper("stylegan2", "ada256")) == (24_767_458, 24_001_089)
  digits = {"data.image_size": 32, "model.base": 1024, "model.most": 64}
  assert counts(job.prepare(config_of("small", **digits))) == (271_851, 288_929)


@pytest.mark.parametrize(
  "variant, want",
  [
    ("paper", (0.002, 32, 4, 10.0, 10_000, "")),
    ("paper256", (0.002, 32, 4, 10.0, 10_000, "")),
    ("ada256", (0.0025, 64, 8, 1.0, 20_000, "bgc")),
  ],
)
def test_published_recipes(variant, want):
  c = config_of(variant)
  m = c.model
  assert (c.lr, c.batch_size, m.stddev_group, m.r1_gamma, m.ema_images, m.ada_kinds) == want
  assert c.num_steps * c.batch_size == 25_000_000
  assert (m.b1, m.b2, m.mixing, m.path_weight, m.path_every, m.r1_every) == (0, 0.99, 0.9, 2, 4, 16)
  assert (m.mapping_layers, m.ada_target, m.ada_images, m.ema_ramp) == (8, 0.6, 500_000, 0)


def test_the_control_of_ada_differs_in_nothing_else():
  ada, plain = config_of("ada"), config_of("no_ada")
  assert ada.model.ada_kinds and not plain.model.ada_kinds and ada.data.num_train == 200
  ada.model.ada_kinds = ""
  assert ada.to_dict() == plain.to_dict()


def test_errors_name_the_flags():
  for changes, match in (
    ({"data.image_size": (8, 16)}, "not square.*image_size"),
    ({"data.image_size": 28}, "28 pixels.*image_size"),
    ({"model.noise": "constant"}, "model.noise.*random, const, none"),
    ({"batch_size": 6}, "6 images.*groups of 4.*stddev_group"),
    ({"batch_size": 2, "accumulate": 4}, "batch of 2 .*4 parts.*batch_size.*accumulate"),
    ({"batch_size": 12, "accumulate": 4}, "the 6 of it .*4 parts.*batch_size.*accumulate"),
  ):
    config = config_of("test")
    with config.ignore_type():
      config.update_from_flattened_dict(changes)
    with pytest.raises(errors.UserError, match=match):
      job.prepare(config)


def quick(function):
  """Jitted, hardly optimised: compiled in a fifth of the time, for what runs a few times only."""
  options = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
  return jax.jit(function, compiler_options=options)


class Nets:
  """Networks for 8 pixels with their parameters, wide enough for variances to be measured."""

  size, width, options = 8, 64, {"base": 512, "most": 64}

  def __init__(self):
    self.f = stylegan2.Mapping(64, 8)
    self.g = stylegan2.Synthesis(self.size, 3, **self.options)
    self.d = stylegan2.Discriminator(self.size, **self.options)
    self.num_ws = stylegan2.num_latents(self.size)
    key = jax.random.key(0)

    @quick
    def build():
      ws = jnp.zeros((2, self.num_ws, 64))
      return (
        self.f.init(key, jnp.zeros((2, 64))),
        self.g.init(key, ws),
        self.d.init(key, jnp.zeros((2, self.size, self.size, 3))),
      )

    self.vf, self.vg, self.vd = build()


@pytest.fixture(scope="module")
def nets():
  return Nets()


def test_scales_are_kept_through_the_networks(nets):
  """Of what a layer gets, its square on average; a layer alone is measured in tests/unit."""
  z, ws = normal(2, 64, 64), jnp.repeat(normal(0, 64, 1, 64), nets.num_ws, 1)

  @quick
  def run(z, ws, x):
    capture = {"capture_intermediates": True}
    _, f = nets.f.apply(nets.vf, z, **capture)
    _, g = nets.g.apply(nets.vg, ws, **capture)
    _, d = nets.d.apply(nets.vd, x, **capture)
    return f["intermediates"], g["intermediates"], d["intermediates"]

  image = normal(1, 64, nets.size, nets.size, 3)
  f, g, d = run(z, ws, image)
  power = lambda x: np.mean(np.square(x), (0, 3))  # of each pixel
  out = lambda layer: layer["__call__"][0]
  unit = lambda found: np.testing.assert_allclose(found, 1.0, atol=0.15)

  def gain(layer, x, stride=1):  # of a layer of 3 x 3 weights, away from the border
    windows = np.lib.stride_tricks.sliding_window_view(power(x), (3, 3))[::stride, ::stride]
    inner = slice(1, -1) if stride == 1 else slice(None)
    return power(out(layer))[inner, inner].mean() / windows.mean()

  const = nets.vg["params"]["const"][None]
  for size, x in ((4, const), (8, out(g["up_8"]))):
    np.testing.assert_allclose(gain(g[f"conv_{size}"]["conv"], x), 1.0, atol=0.15)
    style = out(g[f"conv_{size}"]["conv"]["affine"])
    np.testing.assert_allclose([style.mean(), style.var()], 1.0, rtol=0.15)
    # styles of mean 1 and variance 1, not demodulated
    rgb = power(out(g[f"to_rgb_{size}"])).mean() / power(out(g[f"conv_{size}"])).mean()
    np.testing.assert_allclose(rgb, 2.0, atol=0.6)
  # a filter may stand before the weights or behind them
  unit(gain(g["up_8"]["conv"], resample.upsample(out(g["conv_4"]))))
  x = equalized.lrelu(out(d["from_rgb"]))
  unit(power(out(d["from_rgb"])).mean() / power(image).mean())
  unit(power(out(d["skip_8"])).mean() / power(resample.downsample(x)).mean())
  unit(gain(d["conv_8"], x))
  x = resample.upfirdn(
    equalized.lrelu(out(d["conv_8"])), (1 / 8, 3 / 8, 3 / 8, 1 / 8), padding=(2, 2)
  )
  unit(gain(d["down_8"], x, 2))
  unit(np.mean(out(d["dense"]) ** 2) / np.mean(equalized.lrelu(out(d["conv_4"])) ** 2))
  x = [norm.pixel_norm(z), *(equalized.lrelu(out(f[f"dense_{i}"])) for i in range(7))]
  unit(np.mean([np.mean(out(f[f"dense_{i}"]) ** 2) / np.mean(x[i] ** 2) for i in range(8)]))


def correlate(x, w, pad, stride=1):
  """[N, H, W, I] with [k, l, I, O]; `pad` zeros (before, after) on both axes."""
  wide = np.pad(x, ((0, 0), pad, pad, (0, 0)))
  windows = np.lib.stride_tricks.sliding_window_view(wide, w.shape[:2], (1, 2))
  return np.einsum("nyxikl,klio->nyxo", windows[:, ::stride, ::stride], w)


def fir(x, pad, gain=1.0, stride=1):
  taps = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) * gain / 64
  return correlate(x, taps[..., None, None] * np.eye(x.shape[3]), pad, stride)


def zeros_between(x):
  y = np.zeros((len(x), 2 * x.shape[1], 2 * x.shape[2], x.shape[3]))
  y[:, ::2, ::2] = x
  return y


def test_networks_by_hand():
  """In NumPy, a kernel for each sample, by the authors' order of filters, gains, biases, skips."""
  sizes = {"base": 32, "most": 8}
  f, g, d = (
    stylegan2.Mapping(6, 2),
    stylegan2.Synthesis(8, 2, **sizes),
    stylegan2.Discriminator(8, **sizes),
  )
  z, ws, image = (np.array(normal(*shape)) for shape in ((0, 8, 5), (1, 8, 4, 6), (2, 8, 8, 8, 2)))
  noise, key = np.array(normal(3, 8, 144)), jax.random.key(0)
  build = quick(lambda: (f.init(key, z), g.init(key, ws, noise), d.init(key, image)))
  rng = np.random.default_rng(4)
  shake = lambda p: np.array(p + 0.3 * rng.normal(size=p.shape), np.float32)  # no bias is 0
  pf, pg, pd = (v["params"] for v in jax.tree.map(shake, jax.device_get(build())))

  lrelu = lambda x: 2**0.5 * np.maximum(x, 0.2 * x)
  used = lambda p: p["kernel"] / np.sqrt(np.prod(p["kernel"].shape[:-1]))
  same = lambda x, w: correlate(x, w, (len(w) // 2,) * 2)
  up = lambda x, w: fir(correlate(zeros_between(x), w[::-1, ::-1], (2, 2)), (1, 0), 4.0)

  x = z / np.sqrt((z**2).mean(1, keepdims=True) + 1e-8)
  for i in range(2):
    x = lrelu(x @ (0.01 * used(pf[f"dense_{i}"])) + 0.01 * pf[f"dense_{i}"]["bias"])
  want_w = x

  def modulated(p, x, w, conv, rgb=False):
    style = w @ used(p["affine"]) + p["affine"]["bias"]
    kernels = p["kernel"] * style[:, None, None, :, None]  # [N, k, k, I, O]
    squares = (kernels**2).sum((1, 2, 3), keepdims=True)
    kernels *= style.shape[1] ** -0.5 if rgb else (squares + 1e-8) ** -0.5
    return np.concatenate([conv(x[None], w) for x, w in zip(x, kernels)])

  def styled(name, x, w, noise, conv=same):
    x = modulated(pg[name]["conv"], x, w, conv)
    x = x + pg[name]["noise_strength"] * noise.reshape(8, *x.shape[1:3], 1)
    return lrelu(x + pg[name]["bias"])

  rgb = lambda n, x, w: modulated(pg[f"to_rgb_{n}"], x, w, same, rgb=True) + pg[f"rgb_bias_{n}"]
  w = ws.swapaxes(0, 1)
  x = styled("conv_4", np.tile(pg["const"], (8, 1, 1, 1)), w[0], noise[:, :16])
  want_image = fir(zeros_between(rgb(4, x, w[1])), (2, 1), 4.0)
  x = styled("up_8", x, w[1], noise[:, 16:80], up)
  x = styled("conv_8", x, w[2], noise[:, 80:])
  want_image += rgb(8, x, w[3])

  conv = lambda name, x: same(x, used(pd[name])) + pd[name]["bias"]
  x = lrelu(conv("from_rgb", image))
  skip = same(fir(x, (1, 1), stride=2), used(pd["skip_8"]))
  x = fir(lrelu(conv("conv_8", x)), (2, 2))
  x = lrelu(correlate(x, used(pd["down_8"]), (0, 0), 2) + pd["down_8"]["bias"])
  x = (x + skip) / 2**0.5
  std = np.sqrt(x.reshape(4, 2, -1).var(0) + 1e-8).mean(-1)  # of 0, 2, 4, 6 and of 1, 3, 5, 7
  std = np.broadcast_to(np.tile(std, 4)[:, None, None, None], (8, 4, 4, 1))
  x = lrelu(conv("conv_4", np.concatenate([x, std], -1))).reshape(8, -1)
  x = lrelu(x @ used(pd["dense"]) + pd["dense"]["bias"])
  want_logits = x @ used(pd["last"]) + pd["last"]["bias"]

  found = quick(
    lambda: (
      f.apply({"params": pf}, z),
      g.apply({"params": pg}, ws, noise),
      d.apply({"params": pd}, image),
    )
  )()
  for a, b in zip(found, (want_w, want_image, want_logits[:, 0])):
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_mapping_normalises_and_slows_its_layers(nets):
  z, f = normal(2, 8, 64), quick(lambda z: nets.f.apply(nets.vf, z))
  w = f(z)
  np.testing.assert_allclose(f(3 * z), w, atol=1e-4)
  np.testing.assert_allclose(w, f(norm.pixel_norm(z)), atol=1e-4)
  for i in range(8):
    kernel = nets.vf["params"][f"dense_{i}"]["kernel"]
    np.testing.assert_allclose(kernel.std(), 100.0, rtol=0.05)


def test_each_layer_takes_its_own_latent_and_noise_has_a_strength(nets):
  run = quick(nets.g.apply)
  ws, noise = normal(3, 2, nets.num_ws, 64), normal(5, 2, stylegan2.num_noise(nets.size))
  image = run(nets.vg, ws, noise)
  np.testing.assert_allclose(quick(nets.g.apply)(nets.vg, ws), image, atol=1e-5)  # strength 0
  for i in range(nets.num_ws):
    assert np.abs(run(nets.vg, ws.at[:, i].add(1.0), noise) - image).max() > 1e-3, i
  loud = jax.tree_util.tree_map_with_path(
    lambda path, p: p + 1.0 if "noise_strength" in jax.tree_util.keystr(path) else p, nets.vg
  )
  same = jnp.repeat(ws[:1], 2, 0)
  a, b = run(loud, same, noise)
  assert np.abs(a - b).max() > 0.1
  for first, last in ((0, 16), (16, 80), (80, 144)):  # each of three layers has a part of it
    other = noise.at[:, first:last].set(0.0)
    assert np.abs(run(loud, same, other) - run(loud, same, noise)).max() > 0.1
  c, d = quick(nets.g.apply)(loud, same, noise[:1])  # the same for all
  np.testing.assert_allclose(c, d, atol=1e-5)
  np.testing.assert_allclose(c, a, atol=1e-4)


def test_discriminator_compares_samples_of_one_set(nets):
  x, y = normal(4, 2, 8, nets.size, nets.size, 3)
  run = quick(lambda x: nets.d.apply(nets.vd, x))
  change = np.abs(run(x) - run(x.at[2].set(0.0)))  # of the group of 0, 2, 4, 6
  assert (change[::2] > 1e-5).all() and (change[1::2] < 1e-5).all()
  both = jnp.stack([x, y], 1).reshape(16, *x.shape[1:])
  together = quick(lambda x: nets.d.apply(nets.vd, x, 2))(both)
  np.testing.assert_allclose(together.reshape(8, 2).T, [run(x), run(y)], atol=1e-5)


def test_mixing():
  first, second, num = jnp.zeros((3, 1)), jnp.ones((3, 1)), 8

  @quick
  @jax.vmap
  def draw(key):
    return stylegan2.mix(key, first, second, num, prob=0.9)[..., 0]

  ws = np.asarray(draw(jax.random.split(jax.random.key(0), 8_000)))
  assert (ws == ws[:, :1]).all()  # one cut for the batch
  cuts = num - ws[:, 0].sum(1)  # a prefix of the first latent
  assert (ws[:, 0] == (np.arange(num) >= cuts[:, None])).all()
  np.testing.assert_allclose((cuts < num).mean(), 0.9, atol=0.02)
  share = np.bincount(cuts.astype(int), minlength=num + 1)[1:num] / (cuts < num).sum()
  assert cuts.min() == 1
  np.testing.assert_allclose(share, 1 / (num - 1), atol=0.02)


def test_path_lengths_of_a_linear_generator():
  """G(w) = A w: E |J^T y|^2 = tr(A A^T) / (H W); the penalty's gradient is that of differences."""
  a = normal(0, 4 * 4 * 2, 6)
  generate = lambda a: lambda ws: (ws[:, 0] @ a.T).reshape(-1, 4, 4, 2)
  lengths = lambda a, key: method.path_lengths(generate(a), jnp.ones((2000, 1, 6)), key)
  found = quick(lengths)(a, jax.random.key(0))
  np.testing.assert_allclose(jnp.mean(found**2), jnp.trace(a @ a.T) / 16, rtol=0.03)
  # several layers: the mean over them, not the sum
  twice = lambda ws: generate(a)(ws[:, :1]) + generate(a)(ws[:, 1:])
  both = method.path_lengths(twice, jnp.ones((2000, 2, 6)), jax.random.key(0))
  np.testing.assert_allclose(both, found, rtol=1e-4)

  @quick
  @jax.value_and_grad
  def penalty(scale):
    return jnp.mean((lengths(scale * a, jax.random.key(1)) - 0.7) ** 2)

  slope = (penalty(1.01)[0] - penalty(0.99)[0]) / 0.02
  np.testing.assert_allclose(penalty(1.0)[1], slope, rtol=1e-3)


def test_average_of_weights_has_its_half_life():
  decay = functools.partial(method.ema_decay, batch=32, images=320.0)
  np.testing.assert_allclose(decay(jnp.array(10_000), ramp=0.0) ** 10, 0.5, rtol=1e-5)
  assert decay(jnp.array(0), ramp=0.05) == 0  # the start is forgotten at once
  np.testing.assert_allclose(decay(jnp.array(20), ramp=0.05), 0.5, rtol=1e-5)
  np.testing.assert_allclose(decay(jnp.array(10_000), ramp=0.05) ** 10, 0.5, rtol=1e-5)


class Game:
  """The test variant with changes, its first state, and a batch of no particular images."""

  def __init__(self, **changes):
    self.made = job.prepare(config_of("test", **changes))
    self.stage = self.made.stages[0]
    image = jnp.tanh(normal(9, 8, *self.made.infos[0].shape["image"]))
    self.batch = {"image": image, "label": jnp.zeros(8, jnp.int32)}

  @functools.cached_property
  def state(self):
    return quick(self.stage.init)(jax.random.key(1), self.batch, None)


@pytest.fixture
def moves_of(monkeypatch):
  """Runs a step without updates: the players, and (batch, loss, stats, metrics) of each move."""

  def run(game, step=0, shapes=False):
    names = []

    def moves(state, batch):
      names.clear()
      found = []

      def spy(state, tx, loss_fn, players, batch, **options):  # what would be minimised
        loss, (stats, metrics) = loss_fn(state.params, batch)
        names.extend(players)
        found.append((batch, loss, stats, metrics))
        return state.replace(stats={**state.stats, **stats}), metrics

      monkeypatch.setattr(core, "minimize", spy)
      game.stage.step(state, batch, jax.random.key(2))
      return found

    due = lambda k, at, fn, state: fn(state) if step % k == 0 else state
    monkeypatch.setattr(core, "every", due)
    if shapes:
      found = jax.eval_shape(moves, game.made.templates[0], game.batch)
    else:
      found = quick(moves)(game.state, game.batch)
    return "".join(names), found

  return run


@pytest.mark.parametrize(
  "step, changes, want",
  [
    (0, {}, "ggdd"),
    (1, {}, "gd"),
    (4, {}, "ggd"),
    (16, {"model.path_weight": 0.0}, "gdd"),
    (16, {"model.r1_gamma": 0.0}, "ggd"),
  ],
)
def test_order_of_moves(step, changes, want, moves_of):
  game = Game(**{"model.ada_kinds": "", **changes})
  assert moves_of(game, step, shapes=True)[0] == want


def test_rates_of_the_lazy_optimizers(monkeypatch):
  """Adam's rate and decays where `paper` asks for 0.002 and (0, 0.99), lazily and not."""
  seen, true = [], optim.optax.adam

  def spy(lr, b1, b2, *args):
    seen.append((lr, b1, b2))
    return true(lr, b1, b2, *args)

  monkeypatch.setattr(optim.optax, "adam", spy)
  config, info = config_of("paper"), core.Info({"image": (1024, 1024, 3)})
  method.stages(config, info)
  config.model.path_weight = config.model.r1_gamma = 0.0
  method.stages(config, info)
  g, d = (0.0016, 0.0, 0.99**0.8), (0.002 * 16 / 17, 0.0, 0.99 ** (16 / 17))
  np.testing.assert_allclose(seen, [g, d, *[(0.002, 0.0, 0.99)] * 2], rtol=1e-6)


def linear(self, v, x, sets=1):
  """A discriminator D(x) = a.x."""
  return jnp.einsum("nhwc,hwc->n", x, A)


A = normal(1, 4, 4, 1)


def test_regularisers_are_multiplied_by_their_intervals(moves_of, monkeypatch):
  """R1 of a.x is |a|^2: the loss is 16 gamma / 2 |a|^2; the path's is 4 * 2 (len - mean)^2."""
  game = Game(**{"model.r1_gamma": 0.5, "model.ada_kinds": ""})
  monkeypatch.setattr(stylegan2.Discriminator, "apply", linear)
  monkeypatch.setattr(method, "path_lengths", lambda generate, ws, key: jnp.full(len(ws), 3.0))
  g, path, d, r1 = moves_of(game)[1]
  np.testing.assert_allclose(r1[1], 16 * 0.25 * np.sum(A**2), rtol=1e-5)
  np.testing.assert_allclose(r1[3]["r1"], np.sum(A**2), rtol=1e-5)
  np.testing.assert_allclose(path[3]["path_mean"], 0.03, rtol=1e-4)  # 1 % of the way from 0
  np.testing.assert_allclose(path[1], 4 * 2 * (3 - 0.03) ** 2, rtol=1e-4)
  assert len(path[0]["z"]) == 4  # half of the batch
  for name in ("z", "second", "maps"):  # fresh for each move
    assert (g[0][name][:4] != path[0][name]).all() and (g[0][name] != d[0][name]).all()
  # the mean latent follows those of z, not of the second z
  want, params = 0.0, game.state.params["g"]["mapping"]
  f = quick(lambda z: stylegan2.Mapping(4, 1).apply({"params": params}, z).mean(0))
  for batch, _, stats, _ in (g, path, d):
    want = 0.995 * want + 0.005 * f(batch["z"])
    np.testing.assert_allclose(stats["w_avg"], want, rtol=1e-4)


def test_styles_are_mixed_in_every_move(moves_of, monkeypatch):
  """By the configured chance, with the w of the second z: of G, of path lengths, and of D."""
  calls, of_path = [], []

  def mix(key, first, second, num, *, prob):
    calls.append((num, prob))
    return jnp.stack([first] + [second] * (num - 1), 1)

  def lengths(generate, ws, key):
    of_path.append(ws.shape)
    return generate(ws)[:, 0, 0, 0]

  paint = lambda self, v, ws, maps: jnp.ones((len(ws), 4, 4, 1)) * look(ws[:, 0], ws[:, 1])
  look = lambda first, later: (first + 2 * later).mean(1)[:, None, None, None]
  monkeypatch.setattr(stylegan2, "mix", mix)
  monkeypatch.setattr(method, "path_lengths", lengths)
  monkeypatch.setattr(stylegan2.Synthesis, "apply", paint)
  monkeypatch.setattr(stylegan2.Discriminator, "apply", linear)
  game = Game(**{"model.ada_kinds": "", "model.mixing": 0.7})
  g, path, d, _ = moves_of(game)[1]
  assert calls == [(2, 0.7)] * 3 and of_path == [(4, 2, 4)]
  of = {"params": game.state.params["g"]["mapping"]}
  f = quick(lambda z: stylegan2.Mapping(4, 1).apply(of, z))
  image = lambda batch: np.ones((1, 4, 4, 1)) * look(f(batch["z"]), f(batch["second"]))
  score = lambda x: np.reshape(x, (-1, 16)) @ np.reshape(A, 16)
  np.testing.assert_allclose(g[1], losses.nonsaturating_g(score(image(g[0]))), rtol=1e-4)
  want = losses.bce_d(score(game.batch["image"]), score(image(d[0])))
  np.testing.assert_allclose(d[1], want, rtol=1e-4)
  drawn = image(path[0])[:, 0, 0, 0]
  mean = 0.01 * drawn.mean()
  np.testing.assert_allclose(path[1], 4 * 2 * np.mean((drawn - mean) ** 2), rtol=1e-4)


def test_d_sees_augmented_images_only_and_r1_is_taken_before(moves_of, monkeypatch):
  """With images doubled, logits double and R1 of a.x is |2 a|^2."""
  monkeypatch.setattr(stylegan2.Discriminator, "apply", linear)
  monkeypatch.setattr(method, "path_lengths", lambda generate, ws, key: jnp.ones(len(ws)))
  monkeypatch.setattr(
    stylegan2, "mix", lambda key, first, second, num, prob: first[:, None] + 0 * A[0]
  )
  monkeypatch.setattr(
    stylegan2.Synthesis, "apply", lambda self, v, ws, maps: maps.reshape(-1, 4, 4, 1)
  )
  game, counts = Game(**{"model.r1_gamma": 0.5}), []

  def double(key, x, p, kinds):
    counts.append(len(x))
    return 2 * x

  monkeypatch.setattr(method.ada, "augment", double)
  g, _, d, r1 = moves_of(game)[1]
  score = lambda x: 2 * np.reshape(x, (-1, 16)) @ np.reshape(A, 16)
  real = score(game.batch["image"])
  np.testing.assert_allclose(g[1], losses.nonsaturating_g(score(g[0]["maps"])), rtol=1e-5)
  np.testing.assert_allclose(d[1], losses.bce_d(real, score(d[0]["maps"])), rtol=1e-5)
  np.testing.assert_allclose(d[3]["logit_real"], real.mean() / 2, rtol=1e-5)  # as they are
  for n in (8, 7):  # the second is no multiple of the groups that D compares
    found = quickly(
      game.stage.evaluate, game.state, {"image": game.batch["image"][:n]}, jax.random.key(4)
    )
    np.testing.assert_allclose(found["logit_held_out"], real[:n].mean() / 2, rtol=1e-5)
  np.testing.assert_allclose(r1[3]["r1"], 4 * np.sum(A**2), rtol=1e-5)
  assert counts == [8, 16, 8]  # of G's move; real and fake of D's; R1


@pytest.mark.parametrize("mirror", [False, True])
def test_half_of_the_images_are_mirrored_if_asked(monkeypatch, mirror):
  """In both moves of D."""
  game, seen = Game(**{"model.mirror": mirror, "model.ada_kinds": ""}), []

  def spy(state, tx, loss_fn, players, batch, **options):
    seen.extend([batch["x"]] if players == ["d"] else [])
    return state, dict.fromkeys(("r1", "path_mean"), jnp.zeros(()))

  monkeypatch.setattr(core, "minimize", spy)
  monkeypatch.setattr(core, "every", lambda k, at, fn, state: fn(state))
  game.stage.step(game.state, game.batch, jax.random.key(2))
  x = game.batch["image"]
  main, r1 = seen
  same, turned = ((main == y).all((1, 2, 3)) for y in (x, x[:, :, ::-1]))
  assert (same | turned).all() and bool(turned.any()) == mirror
  np.testing.assert_array_equal(main, r1)


def test_r1_of_a_linear_discriminator():
  a = normal(2, 4, 4, 1)
  critic = lambda x: jnp.einsum("nhwc,hwc->n", x, a)
  np.testing.assert_allclose(
    regularizers.r1(critic, normal(3, 5, 4, 4, 1)), jnp.sum(a**2), rtol=1e-5
  )


class Played(Game):
  """The test variant with blocks between 4 and 8 pixels, after single steps from chosen states."""

  def __init__(self):
    super().__init__(**{"data.image_size": 8})
    self.step = quick(self.stage.step)

  def after(self, step, **extra):
    extra = {name: jnp.float32(value) for name, value in extra.items()}
    state = self.state.replace(step=jnp.array(step), extra={**self.state.extra, **extra})
    return self.step(state, self.batch, jax.random.key(3))

  def generate(self, early, late=None):
    """The averaged generator's image of a latent, or of one for each half of the layers."""
    m, size = self.made.config.model, self.batch["image"].shape[1]
    g = stylegan2.Synthesis(size, 1, base=m.base, most=m.most)
    half = stylegan2.num_latents(size) // 2
    ws = jnp.stack([early] * half + [early if late is None else late] * half)
    return quick(g.apply)({"params": self.state.ema["g"]["synthesis"]}, ws[None])


@pytest.fixture(scope="module")
def played():
  return Played()


def test_a_step_moves_every_parameter(played):
  state, found = played.after(1)
  assert np.isfinite(list(found.values())).all()
  assert {"up_8", "conv_8"} < set(state.params["g"]["synthesis"])
  assert {"down_8", "skip_8"} < set(state.params["d"])
  moved = jax.tree.map(lambda a, b: (a != b).any(), played.state.params, state.params)
  for path, one in jax.tree_util.tree_leaves_with_path(moved):
    assert one, jax.tree_util.keystr(path)


def test_ada_moves_every_fourth_step(played):
  """By 4 * 8 images over 100, up where D is surer than 0.6; never below 0."""
  for p, r, want in ((0.5, 5.0, 0.82), (0.5, -5.0, 0.18), (0.0, -5.0, 0.0)):
    extra = played.after(3, ada_p=p, ada_r=r)[0].extra
    np.testing.assert_allclose(extra["ada_p"], want, rtol=1e-5)
    assert extra["ada_r"] == 0
  state, found = played.after(1, ada_p=0.3, ada_r=-5.0)
  np.testing.assert_allclose(state.extra["ada_r"], -5 + found["sign_real"] / 4, rtol=1e-5)
  np.testing.assert_allclose(state.extra["ada_p"], 0.3, rtol=1e-6)


def test_regularisers_have_their_steps(played):
  for step, path, r1 in ((1, False, False), (4, True, False), (15, False, False), (16, True, True)):
    extra = played.after(step)[0].extra
    assert ((extra["path_mean"] > 0), (extra["r1"] > 0)) == (path, r1)


def test_average_follows_the_generator(played):
  """With a half-life of 2,000 images, late in training; a step shows 8."""
  state, _ = played.after(10_001)
  decay = 0.5 ** (8 / 2_000)
  follow = lambda old, new: decay * old + (1 - decay) * new
  want = jax.tree.map(follow, played.state.ema["g"], state.params["g"])
  close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=2e-6)
  jax.tree.map(close, state.ema["g"], want)


def test_samples_are_those_of_the_averaged_generator_truncated(played):
  mean, w = jnp.array([1.0, 2.0]), normal(0, 5, 2)
  np.testing.assert_allclose(stylegan2.truncate(w, mean, 1.0), w, atol=1e-6)
  np.testing.assert_allclose(stylegan2.truncate(w, mean, 0.0), jnp.broadcast_to(mean, w.shape))
  state = played.state.replace(stats={"w_avg": normal(1, 4)})
  for psi, alike in ((0.0, True), (1.0, False)):
    still = Game(**{"data.image_size": 8, "model.psi": psi, "model.noise": "const"})
    run = quick(lambda state: still.stage.sample(state, still.batch, jax.random.key(0))["image"])
    x = run(state)
    assert (np.abs(x - x[:1]).max() < 1e-5) == alike
    if alike:  # they are the image of the mean latent; noise has no strength yet
      np.testing.assert_allclose(x[:1], played.generate(state.stats["w_avg"]), atol=1e-5)
  x = run(played.state)
  louder = lambda tree: jax.tree.map(lambda p: 2 * p + 1, tree)
  np.testing.assert_array_equal(run(played.state.replace(params=louder(played.state.params))), x)
  assert np.abs(run(played.state.replace(ema=louder(played.state.ema))) - x).max() > 0.1


def test_pictures(played):
  shown = quick(played.stage.show)(played.state, played.batch, jax.random.key(0))
  mixing, lines = (np.asarray(shown[name]) for name in ("mixing", "interpolation"))
  assert mixing.shape[:2] == (9, 9) and shown["truncation"].shape[:2] == (8, 5)
  assert lines.shape[:2] == (8, 10)
  # the sources stand at the left and above: of early layers and of late ones
  assert (mixing[0, 0] == -1).all()
  np.testing.assert_allclose(mixing[1:, 0], lines[:, 0], atol=1e-5)
  np.testing.assert_allclose(mixing[0, 1:], lines[:, -1], atol=1e-5)
  z, ema = jax.random.normal(jax.random.key(0), (16, 4)), played.state.ema["g"]
  w = stylegan2.Mapping(4, 1).apply({"params": ema["mapping"]}, z)
  np.testing.assert_allclose(mixing[3, 6], played.generate(w[2], w[8 + 5])[0], atol=1e-5)
  at_mean = np.asarray(shown["truncation"][:, -1])
  np.testing.assert_allclose(at_mean, np.broadcast_to(at_mean[:1], at_mean.shape), atol=1e-5)
  np.testing.assert_allclose(shown["truncation"][:, 0], shown["interpolation"][:, 0], atol=1e-5)
  assert (np.ptp(mixing[1:, 1:], 0) > 1e-3).any()  # rows differ
  assert (np.ptp(mixing[1:, 1:], 1) > 1e-3).any()  # and columns


def evaluation_of(config, folder):
  train(config, str(folder))
  return json.loads((folder / "eval.json").read_text())["metrics"]


@pytest.mark.learning
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_small_learns_all_digits(tmp_path, seed):
  untrained = evaluation_of(config_of("small", seed=seed, num_steps=1), tmp_path / "start")
  found = evaluation_of(config_of("small", seed=seed), tmp_path / "run")
  assert found["frechet"] < 0.4 * untrained["frechet"], (found, untrained)
  assert found["class_min_share"] >= 0.03, found


@pytest.mark.learning
def test_small_with_a_wrong_sign_does_not_learn(tmp_path, monkeypatch):
  true = losses.nonsaturating_g
  monkeypatch.setattr(losses, "nonsaturating_g", lambda s: -true(s))
  assert evaluation_of(config_of("small"), tmp_path / "run")["class_min_share"] < 0.03


def gap_on_200_images(variant, folder):
  """D's mean logit of its training images less that of held-out ones; ADA's p at the end."""
  train(config_of(variant, metrics=()), str(folder))
  evaluator, state = evaluation.from_workdir(str(folder), None)
  unseen = evaluator.evaluate(state)["logit_held_out"]
  evaluator.source = job.load(evaluator.job, 0, "train", shuffle=False)
  seen = evaluator.evaluate(state)["logit_held_out"]
  return seen - unseen, float(state.extra.get("ada_p", 0.0))


@pytest.mark.learning
def test_ada_on_200_images_overfits_less(tmp_path):
  """D's scores of its training images and of held-out ones lie closer, and p leaves 0."""
  plain, _ = gap_on_200_images("no_ada", tmp_path / "plain")
  adaptive, p = gap_on_200_images("ada", tmp_path / "ada")
  assert p > 0.02
  assert adaptive < plain, (adaptive, plain)
