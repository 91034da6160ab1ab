"""SRGAN: sizes, losses, who is moved by what, pictures of any size in tiles, and that it learns.

Its networks: tests/parity/test_parity_srgan.py; PSNR, SSIM and shuffled pixels:
tests/unit/test_fidelity.py; its data: tests/unit/test_data_tiles.py.
"""

import functools
import importlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import OPTIMISED, blindfold, train
from PIL import Image

from gm import core, enlarging, errors, fidelity, job, loop, perceptual, sampling
from gm.data import tiles
from gm.methods import srgan as method
from gm.nets import srgan, vgg
from gm.nn import resample
from gm.weights import vgg as vgg_weights
from gm.workdir import log

QUICK = {"xla_backend_optimization_level": 0}
jit = functools.partial(jax.jit, compiler_options=QUICK)
PASSES = [("test", {"model.last": "tanh"}, {"sr": 1, "d": 2})]  # those of D for G leave no trace
WHOLE = {"model.crop": 0, "model.flip": 0.0}  # tiles as they are


def config_of(variant, **changes):
  config = importlib.import_module("configs.srgan").get_config(variant)
  config.update_from_flattened_dict({"num_devices": 1, **changes})
  return config


def started(index=1, **changes):
  """The job, a state of a stage with random numbers, and a batch."""
  made, rng = job.prepare(config_of("test", **changes)), np.random.default_rng(0)
  number = lambda s: jnp.asarray(0.3 * rng.normal(size=s.shape), jnp.float32)
  state = jax.tree.map(jnp.zeros_like, made.templates[index])
  stats = jax.tree.map(lambda s: jnp.abs(number(s)) + 0.5, state.stats)
  state = state.replace(
    params=jax.tree.map(number, state.params),
    stats=stats,
    extra={"features": perceptual.load(made.config.model.features)},
  )
  x = jnp.tanh(2 * number(jnp.zeros((8, *made.infos[0].shape["image"]))))
  return made, state, {"image": x}


def moves(made, state, batch, index=1):
  """The gradients of a step by network, all at the parameters before it, its metrics, and after."""

  def step(*args):
    grads = {}
    with pytest.MonkeyPatch.context() as patched:
      patched.setattr(core, "move", lambda s, tx, g, *, slot=None: grads.update(g) or (s, {}))
      after, found = made.stages[index].step(*args)
    return grads, found, after

  return jit(step)(state, batch, jax.random.key(2))


def near(a, b, rtol=1e-3):
  """Every array within rtol of its largest entry."""

  def one(x, y):
    np.testing.assert_allclose(x, y, rtol=0, atol=rtol * float(jnp.abs(y).max()) + 1e-6)

  jax.tree.map(one, a, b)


# ------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
  "changes, g, d",
  [
    ({}, 1_548_547, 23_563_649),
    ({"model.slopes": "layer", "model.bias": True}, 1_549_462, 23_565_505),
  ],
)
def test_sizes(changes, g, d):
  _, state = job.prepare(config_of("paper", **changes), on_paper=True).templates
  assert {n: core.count(p) for n, p in state.params.items()} == {"sr": g, "d": d}
  assert core.count(state.extra["features"]) == 20_024_384  # VGG-19's convolutions


@pytest.mark.parametrize("size", [(24, 24), (13, 40)])
def test_an_image_of_any_size_becomes_four_times_as_large(size):
  net = srgan.Generator()
  shape = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
  made, _ = jax.eval_shape(lambda x: net.init_with_output(jax.random.key(0), x, True), shape)
  assert made.shape == (2, 4 * size[0], 4 * size[1], 3)


def test_each_pixel_sees_as_far_as_is_said():
  """And no farther; a change at one pixel of the small image is seen 4 times reach + 1 wide."""
  net, reach = srgan.Generator(1, 4, 1), srgan.reach(1)
  x = jnp.zeros((1, 2 * reach + 7, 2 * reach + 7, 1))
  params, stats = core.build(net, jax.random.key(0), x, True)
  run = jit(lambda x: core.apply(net, params, stats, x, train=False)[0])
  changed = np.asarray(run(x.at[0, reach + 3, reach + 3, 0].set(9.0)) != run(x))[0, :, :, 0]
  rows = np.flatnonzero(changed.any(1))
  assert rows[0] >= 4 * 3 and rows[-1] < 4 * (2 * reach + 4)
  assert rows[-1] - rows[0] > 4 * (2 * reach - 1)  # the bound is not far off


def test_a_network_that_begins_at_bicubic():
  """With model.skip, before anything is learned; its gradient reaches the last layer."""
  made, _, batch = started(index=0, **{"model.skip": True})
  state = jit(made.stages[0].init)(jax.random.key(0), batch, None)
  state = state.replace(extra={"features": perceptual.load("digits")})
  found = jit(made.stages[0].evaluate)(state, batch, jax.random.key(0))
  np.testing.assert_allclose(found["psnr_rgb"], found["psnr_rgb_bicubic"], rtol=1e-5)
  np.testing.assert_allclose(found["distance"], found["distance_bicubic"], rtol=1e-4)


# ------------------------------------------------------------------------------------------ losses


def explicit(made, state, x):
  """The losses of both players as the paper has them, written out, on whole tiles."""
  m = made.config.model
  g = srgan.Generator(x.shape[3], m.base, m.num_blocks)
  d = srgan.Discriminator(m.d_widths, m.d_hidden)
  small = jax.image.resize((x + 1) / 2, (8, 4, 4, x.shape[3]), "cubic")
  small = jnp.clip(jnp.round(255 * small), 0, 255) / 255
  make = lambda p: core.apply(g, p, state.stats["sr"], small)[0]
  judge = lambda p, x: jax.nn.sigmoid(core.apply(d, p, state.stats["d"], x)[0])
  fake = make(state.params["sr"])
  apart = lambda y: perceptual.distance(m.features, state.extra["features"], x, y).mean()

  def of_d(p):
    return -jnp.mean(jnp.log(judge(p, x))) - jnp.mean(jnp.log(1 - judge(p, fake)))

  def of_g(p):
    y = make(p)
    fool = -jnp.mean(jnp.log(judge(state.params["d"], y)))
    return m.content_weight * apart(y) + m.pixel_weight * jnp.mean((y - x) ** 2) + m.d_weight * fool

  def of_pixels(p):
    return jnp.mean((make(p) - x) ** 2)

  d_value, d_grad = jax.value_and_grad(of_d)(state.params["d"])
  g_value, g_grad = jax.value_and_grad(of_g)(state.params["sr"])
  p_value, p_grad = jax.value_and_grad(of_pixels)(state.params["sr"])
  return (d_value, d_grad), (g_value, g_grad), (p_value, p_grad)


def test_each_player_moves_down_the_gradient_of_the_paper():
  """And G's own is not zero anywhere: the discriminator and the features reach its first layer."""
  weights = {"model.content_weight": 0.7, "model.pixel_weight": 0.4, "model.d_weight": 0.3}
  made, state, batch = started(**WHOLE, **weights)
  of_d, of_g, of_pixels = jit(lambda s, x: explicit(made, s, x))(state, batch["image"])
  grads, found, _ = moves(made, state, batch)
  assert set(grads) == {"sr", "d"}
  near(grads["d"], of_d[1])
  near(grads["sr"], of_g[1])
  np.testing.assert_allclose([found["loss_d"], found["loss_sr"]], [of_d[0], of_g[0]], rtol=1e-4)
  assert all(jnp.abs(x).max() > 1e-7 for x in jax.tree.leaves(grads["sr"]))
  first = state.replace(
    params={"sr": state.params["sr"]}, opt={"sr": state.opt["sr"]}, stats={"sr": state.stats["sr"]}
  )
  grads, found, after = moves(made, first, batch, index=0)
  assert set(grads) == {"sr"}
  near(grads["sr"], of_pixels[1])
  np.testing.assert_allclose(found["loss_sr"], of_pixels[0], rtol=1e-4)
  near(after.extra, first.extra, 0.0)


def test_losses_where_they_are_known():
  """D that says nothing: log 4, and log 2 for G; G that makes the image itself: no distance."""
  made, state, batch = started(**WHOLE, **{"model.last": "tanh"})
  silent = jax.tree.map(jnp.zeros_like, state.params)
  grey = {"image": jnp.zeros_like(batch["image"])}
  _, found, after = moves(made, state.replace(params=silent), grey)
  np.testing.assert_allclose(found["loss_d"], math.log(4), rtol=1e-6)
  np.testing.assert_allclose(found["adversarial"], math.log(2), rtol=1e-6)
  np.testing.assert_allclose([found["content"], found["mse"]], 0.0, atol=1e-9)
  np.testing.assert_allclose(found["loss_sr"], 6.931e-4, rtol=1e-3)
  jax.tree.map(np.testing.assert_array_equal, after.extra, state.extra)


def test_the_second_stage_goes_on_with_the_first_ones_network():
  made, state, batch = started(index=0)
  after = jit(made.stages[1].init)(jax.random.key(0), batch, state)
  for name in ("params", "stats"):
    same = (getattr(after, name)["sr"], getattr(state, name)["sr"])
    jax.tree.map(np.testing.assert_array_equal, *same)
  jax.tree.map(np.testing.assert_array_equal, after.extra, state.extra)


def test_crops_are_taken_and_mirrored_each_for_itself_and_shrunk_like_files():
  made, state, batch = started(**{"model.flip": 0.5})
  same = {"image": jnp.broadcast_to(batch["image"][:1], batch["image"].shape)}
  seen = []

  class Seen(Exception):
    pass

  def look(state, tx, loss, names, b, **how):
    seen.append(b)
    raise Seen

  with pytest.MonkeyPatch.context() as patched:
    patched.setattr(core, "minimize", look)
    with pytest.raises(Seen):
      made.stages[0].step(state, same, jax.random.key(3))
  (b,) = seen
  whole = np.asarray(same["image"][0])
  tiles_of = [whole[y : y + 8, x : x + 8] for y in range(9) for x in range(9)]
  found = [[i for i, t in enumerate(tiles_of) if np.array_equal(x, t)] for x in b["x"]]
  mirrored = [[i for i, t in enumerate(tiles_of) if np.array_equal(x[:, ::-1], t)] for x in b["x"]]
  assert all(len(i) + len(j) == 1 for i, j in zip(found, mirrored))
  assert any(found) and any(mirrored) and len({str(i + j) for i, j in zip(found, mirrored)}) > 3
  for x, small in zip(np.asarray(b["x"]), np.asarray(b["small"])):
    image = Image.fromarray(x[..., 0]).resize((2, 2), Image.Resampling.BICUBIC)
    want = np.clip(np.round(127.5 * (np.asarray(image) + 1)), 0, 255)
    np.testing.assert_allclose(255 * small[..., 0], want, atol=1e-3)


def test_the_rate_falls_to_a_tenth(monkeypatch):
  from gm import optim

  seen, true = [], optim.piecewise
  monkeypatch.setattr(optim, "piecewise", lambda *a: seen.append(true(*a)) or seen[-1])
  job.prepare(config_of("test", num_steps=200, lr=1e-4, **{"model.decay_at": (1.0, 0.5)}))
  np.testing.assert_allclose([seen[-1](t) for t in (0, 99, 100, 199)], [1e-4, 1e-4, 1e-5, 1e-5])


# ---------------------------------------------------------------------------------------- measures


def test_measures_are_those_of_the_protocol():
  """Of luma and of colours, without a border of four, on bytes; bicubic is measured beside."""
  made, state, batch = started(index=0)
  x = batch["image"]
  found = jit(made.stages[0].evaluate)(state, batch, jax.random.key(0))
  up = np.stack(
    [
      np.asarray(Image.fromarray(np.asarray(s[..., 0])).resize((16, 16), Image.Resampling.BICUBIC))
      for s in method.shrink(x)
    ]
  )
  true, made_of = (np.clip(np.round(127.5 * (y + 1)), 0, 255) for y in (x[..., 0], 2 * up - 1))
  mse = ((true - made_of)[:, 4:-4, 4:-4] ** 2).mean((1, 2))
  want = (20 * np.log10(255) - 10 * np.log10(mse)).mean()
  np.testing.assert_allclose(found["psnr_y_bicubic"], want, atol=1e-2)
  np.testing.assert_allclose(found["psnr_rgb_bicubic"], want, atol=1e-2)
  y = jit(made.stages[0].sample)(state, batch, None)["image"]
  assert jnp.abs(y).max() <= 1
  psnr = fidelity.psnr(fidelity.bytes_of(y), fidelity.bytes_of(x), border=4).mean()
  np.testing.assert_allclose(found["psnr_rgb"], psnr, rtol=1e-5)
  assert found["detail_true"] > found["detail_bicubic"] > 0


def test_vgg_is_read_from_a_file_of_ones_own(tmp_path):
  """Its layers, maxima between, after the ReLU, and the squared distance of the paper."""
  rng, channels, tensors = np.random.default_rng(0), 3, {}
  for layer, width in zip(vgg_weights.LAYERS, [w for widths in vgg.WIDTHS for w in widths]):
    kernel = rng.normal(size=(width, channels, 3, 3)) * math.sqrt(2 / (9 * channels))
    tensors[f"features.{layer}.weight"] = kernel.astype(np.float32)
    tensors[f"features.{layer}.bias"] = 0.1 * rng.normal(size=width).astype(np.float32)
    channels = width
  variables = vgg_weights.convert(tensors)
  assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, perceptual.shapes("vgg54"))
  x, y = jnp.tanh(jnp.asarray(rng.normal(size=(2, 1, 16, 16, 3)), jnp.float32))
  maps = vgg.VGG19().apply(variables, jnp.concatenate([x, y]))
  assert maps["2_2"].shape == (2, 8, 8, 128) and maps["5_4"].shape == (2, 1, 1, 512)
  assert all((m >= 0).all() for m in maps.values())
  for name in ("22", "54"):
    a, b = maps[f"{name[0]}_{name[1]}"]
    want = (((a - b) / 12.75) ** 2).sum(-1).mean()
    found = perceptual.distance(f"vgg{name}", variables, x, y)
    np.testing.assert_allclose(found, [want], rtol=1e-4)
  with pytest.raises(RuntimeError, match=r"file of your own: set --config\.model\.features_file"):
    perceptual.load("vgg54")
  (tmp_path / "no.pth").write_bytes(b"nothing")
  with pytest.raises(RuntimeError, match=r"no\.pth holds no weights of VGG-19"):
    perceptual.load("vgg54", str(tmp_path / "no.pth"))


# --------------------------------------------------------------------------- pictures of one's own


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  work = tmp_path_factory.mktemp("run")
  with pytest.MonkeyPatch.context() as patched:
    blindfold(patched)
    config = config_of("test", metrics=(), num_steps=0, **{"model.pretrain_steps": 0})
    loop.train(config, str(work))
  return work


def coloured():
  """A job for colours, and a state of random numbers."""
  made, state, _ = started(**{"data.channels": 3})
  return made, state


@pytest.fixture(scope="module")
def whole_and_tiled(tmp_path_factory):
  """An image that the network is given at once, and in tiles of several sizes."""
  made, state = coloured()
  path = tmp_path_factory.mktemp("own") / "own.png"
  image = np.random.default_rng(0).integers(0, 256, (45, 61, 3), np.uint8)
  Image.fromarray(image).save(path)
  larger = enlarging.Enlargement(made, 1, state, [str(path)])
  return {tile: larger.apply(image, tile).astype(int) for tile in (10, 17, 128)}


def test_tiles_leave_no_seam(whole_and_tiled):
  whole = whole_and_tiled[128]
  assert whole.shape == (180, 244, 3) and whole.std() > 10
  for tile in (10, 17):
    apart = np.abs(whole_and_tiled[tile] - whole)
    assert apart.max() <= 1 and (apart > 0).mean() < 1e-3, tile  # one in 255, by rounding


def test_a_tile_that_knows_too_little_is_seen(monkeypatch):
  made, state = coloured()
  image = np.random.default_rng(0).integers(0, 256, (45, 61, 3), np.uint8)
  larger = enlarging.Enlargement.__new__(enlarging.Enlargement)
  larger.state, larger.channels, larger.factor = state, 3, 4
  larger._enlarge, larger.reach = jit(made.stages[1].enlarger.enlarge), srgan.reach(1)
  whole = larger.apply(image).astype(int)
  larger.reach = 3
  assert np.abs(larger.apply(image, 17) - whole).max() > 5


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
  """A folder of pictures of several sizes and kinds, and what they show, upright and in bytes."""
  top, rng = tmp_path_factory.mktemp("own"), np.random.default_rng(0)
  number = lambda *size: rng.integers(0, 256, size, np.uint8)
  shown = {
    "deep": number(13, 10),
    "turned": number(10, 13, 3),
    "clear": number(8, 8, 3),
    "colours": number(9, 8, 3),
  }
  Image.fromarray(shown["deep"].astype(np.uint16) * 257).save(top / "deep.png")
  exif = Image.Exif()
  exif[tiles.ORIENTATION] = 6  # to be turned by 90 degrees
  Image.fromarray(np.rot90(shown["turned"])).save(top / "turned.png", exif=exif)
  alpha = np.where(np.arange(64).reshape(8, 8) % 3, 255, 0).astype(np.uint8)
  Image.fromarray(np.dstack([shown["clear"], alpha])).save(top / "clear.webp", lossless=True)
  shown["clear"] = np.where(alpha[..., None] == 255, shown["clear"], 255)
  Image.fromarray(shown["colours"]).quantize(16).save(top / "colours.png")
  with Image.open(top / "colours.png") as few:
    shown["colours"] = np.asarray(few.convert("RGB"))
  (top / "notes.txt").write_text("no picture")
  return top, shown


def test_pictures_become_larger_under_their_own_names(trained, pictures, tmp_path):
  """Grey ones stay grey; of colours a network of grey images makes each by itself."""
  top, shown = pictures
  sampling.run(str(trained), None, sampling.Request(range(1), inputs=[str(top)], out=str(tmp_path)))
  assert sorted(p.name for p in tmp_path.iterdir()) == [f"{n}_x4.png" for n in sorted(shown)]
  made, index, state = job.newest(str(trained))
  net = jit(made.stages[index].enlarger.enlarge)
  for name, x in shown.items():
    with Image.open(tmp_path / f"{name}_x4.png") as image:
      assert image.mode == ("L" if name == "deep" else "RGB")
      found = np.asarray(image).reshape(4 * x.shape[0], 4 * x.shape[1], -1)
    for i in range(found.shape[2]):
      plane = x.reshape(*x.shape[:2], -1)[:, :, i : i + 1]
      want = net(state, jnp.asarray(plane / 127.5 - 1, jnp.float32)[None])[0, ..., 0]
      np.testing.assert_allclose(found[..., i], np.asarray((want + 1) * 127.5), atol=1)
  (clear,) = (top / "clear.webp",)
  found = sampling.draw(str(trained), [0], inputs=str(clear))["image"]
  with Image.open(tmp_path / "clear_x4.png") as image:
    np.testing.assert_allclose(found[0], np.asarray(image) / 127.5 - 1, atol=1e-5)
  found = sampling.draw(str(trained), range(3))  # of tiles of the test split
  assert found["image"].shape == (3, 16, 16, 1)


def test_a_grey_picture_stays_grey_in_a_network_of_colours(tmp_path):
  made, state = coloured()
  x = np.random.default_rng(0).integers(0, 256, (9, 8), np.uint8)
  Image.fromarray(x).save(tmp_path / "grey.png")
  (found,) = enlarging.Enlargement(made, 1, state, [str(tmp_path)]).stream()
  three = jnp.asarray(np.dstack([x] * 3) / 127.5 - 1, jnp.float32)[None]
  want = jit(made.stages[1].enlarger.enlarge)(state, three)[0].mean(2)
  assert found.shape == (36, 32, 1)
  np.testing.assert_allclose(found[..., 0], np.asarray((want + 1) * 127.5), atol=1)


def test_what_cannot_be_asked_for_is_said_in_a_line(trained, pictures, tmp_path, monkeypatch):
  own = [str(pictures[0])]
  for changes, said in (
    ({"inputs": [str(pictures[0] / "notes.txt")]}, r"--input: .*notes\.txt: not readable"),
    ({"seeds": range(3)}, "--seeds: of an image one larger one is made"),
    ({"target": "b"}, "--target: images that are made larger have none"),
    ({"labels": ["3"]}, "--labels: images that are made larger have none"),
    ({"form": "npz"}, "--format=npz: images that are made larger become a file each"),
  ):
    request = sampling.Request(range(1), inputs=own, out=str(tmp_path))._replace(**changes)
    with pytest.raises(errors.UserError, match=said) as error:
      sampling.run(str(trained), None, request)
    assert "\n" not in str(error.value)
  with pytest.raises(errors.UserError, match="one at a time"):
    sampling.draw(str(trained), [0], inputs=own)
  monkeypatch.setattr(enlarging, "MOST_PIXELS", 70)
  with pytest.raises(errors.UserError, match=r"13 x 10|10 x 13|8 x 9"):
    sampling.run(str(trained), None, sampling.Request(range(1), inputs=own, out=str(tmp_path)))


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"data.image_size": 18}, r"18x18 pixels.*--config\.data\.image_size to multiples of 4"),
    ({"model.crop": 6}, r"6x6 pixels.*--config\.model\.crop to multiples of 4"),
    ({"model.crop": 20}, r"--config\.model\.crop=20"),
    ({"model.num_blocks": -1}, r"--config\.model\.num_blocks=-1"),
    ({"model.d_weight": -1.0}, r"--config\.model\.d_weight=-1"),
    ({"model.slopes": "pixel"}, r"--config\.model\.slopes='pixel'"),
    ({"model.last": "relu"}, r"--config\.model\.last='relu'"),
    ({"model.d_head": "mean"}, r"--config\.model\.d_head='mean'"),
    ({"model.features": "alexnet"}, r"--config\.model\.features='alexnet'"),
    ({"model.decay_at": (0.5, 1.5)}, r"--config\.model\.decay_at=\(0\.5, 1\.5\)"),
    ({"data.source": "points", "data.name": "ring", "data.image_size": 0}, r"data with image"),
  ],
)
def test_what_cannot_be_is_said_in_a_line(changes, message):
  with pytest.raises(errors.UserError, match=message) as error:
    job.prepare(config_of("test", **changes))
  assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------- learning


def fitted(steps=500):
  """PSNR of the first stage on eight tiles that it has learned by heart."""
  config = config_of("small", batch_size=8, **{"model.crop": 0, "model.flip": 0.0})
  config.data.image_size = 48
  made = job.prepare(config)
  source = job.load(made, 0, "test", shuffle=False)
  batch, stage = source.decode(source.batch(0, 8)), made.stages[0]
  state = jit(stage.init)(jax.random.key(0), batch, None)
  step = jax.jit(stage.step, compiler_options=OPTIMISED)
  for i in range(steps):
    state, found = step(state, batch, jax.random.fold_in(jax.random.key(1), i))
  return float(10 * np.log10(4 / found["loss_sr"]))


@pytest.mark.learning
def test_eight_tiles_are_learned_by_heart(monkeypatch):
  """Not where channels become pixels in the wrong places. Not measured yet."""
  assert fitted() > 32

  def scattered(x, *, factor=2):
    n, h, w, c = x.shape
    return x.reshape(n, factor * h, factor * w, c // factor**2)

  monkeypatch.setattr(resample, "pixel_shuffle", scattered)
  assert fitted() < 32


def first_and_last(tmp_path, **changes):
  """What was measured on held-out pictures after each of both stages."""
  last = train(config_of("small", **changes), tmp_path / "run")
  records = log.read_metrics(tmp_path / "run")
  first = log.evaluations(records, "srresnet")
  return first[max(first)], last


@pytest.mark.learning
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_small_learns(tmp_path, seed):
  """Pixels first, nearer to the truth than bicubic; then texture, by the features it learns by.

  The thresholds are proposals, not measured: see configs/srgan.py for what a shorter run gave.
  """
  first, last = first_and_last(tmp_path, seed=seed)
  assert first["psnr_y"] >= first["psnr_y_bicubic"] + 0.5, first
  assert last["distance"] < min(last["distance_bicubic"], first["distance"]), (first, last)
  assert last["psnr_y"] > first["psnr_y"] - 3, (first, last)
  gap = lambda found: abs(found["detail"] - found["detail_true"])
  assert gap(last) <= 0.7 * gap(first), (first, last)


@pytest.mark.learning
def test_without_features_and_a_discriminator_there_is_no_texture(tmp_path):
  weights = {"model.content_weight": 0.0, "model.d_weight": 0.0}
  first, last = first_and_last(tmp_path, **weights)
  gap = lambda found: abs(found["detail"] - found["detail_true"])
  assert gap(last) > 0.7 * gap(first), (first, last)
