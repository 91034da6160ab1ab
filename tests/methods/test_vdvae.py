"""VDVAE: the published networks, the bound by hand, steps that are skipped, and that it learns."""

import functools
import hashlib
import re
import zlib

import conftest
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import jit, on_paper, train

from gm import core, errors, job
from gm.nets import vdvae, vdvae_plan
from gm.probability import likelihood, logistic_mixture

config_of = functools.partial(conftest.config_of, "vdvae")
prepared = functools.partial(conftest.prepared, "vdvae")
compiled = functools.partial(conftest.compiled, "vdvae", 0)
KEY = jax.random.key(2)
LOGISTIC = {
  "data.channels": 3,
  "model.likelihood": "logistic_mixture",
  "model.mixtures": 2,
  "model.bits": 2,
}
PLAIN = {"model.skip": 0.0, "model.schedule": "constant", "model.weight_decay": 0.0}


def begin(**changes):
  """The stage of a tiny model, a batch of 8 and a state of random parameters."""
  made = prepared(**changes)
  image = np.random.default_rng(1).integers(0, 256, (8, *made.infos[0].shape["image"])) / 127.5 - 1
  rng = np.random.default_rng(0)
  random = lambda s: jnp.asarray(rng.normal(0, 0.3, s.shape), s.dtype)
  state = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), made.templates[0])
  params, ema = (jax.tree.map(random, t) for t in (state.params, state.ema))
  return made.stages[0], {"image": jnp.float32(image)}, state.replace(params=params, ema=ema)


# ------------------------------------------------------------------------------ the published nets

# The authors' networks (openai/vdvae, commit ea35b49) on weights, inputs and noise by a formula, in
# float64: sum, sum of squares, first values at equal distances, of their output by these names.
CASES = {
  "small": (
    {
      "enc": "16x2,16d2,8x1,8d2,4x1,4d4,1x1",
      "dec": "1x1,4m1,4x1,8m4,8x1,16m8,16x2",
      "widths": "",
      "bits": 8,
    },
    {
      "act1": (2.30398239016, 0.839273356174, [0.03676441, -0.006880629, 0.2096738, 0.04689935]),
      "act4": (25.9379552006, 22.2765787132, [-0.04591006, -0.09643079, 0.03257563, -0.1269031]),
      "kl": (131.089709372, 4886.37029744, [0.1306311, 1.753047, 1.175012, 1.401602, 7.647787]),
      "distortion": (6.95541136035, 48.3777471917, [6.955411]),
      "rate": (0.0853448628727, 0.00728374561876, [0.08534486]),
      "drawn": (-1197.67306962, 16578.3019378, [1.96344, -0.02475038, 2.567178, 0.02155338]),
    },
  ),
  "widths": (
    {
      "enc": "16x1,16d2,8x1,8d2,4x1,4d4,1x1",
      "dec": "1x1,4m1,8m4,16m8",
      "widths": "8:24,4:32,1:32",
      "bits": 5,
    },
    {
      "act1": (2.05270030511, 1.05328736222, [0.0330142, 0.01003656, 0.1043473, 0.1095729]),
      "act4": (2.85759332697, 24.6907895517, [-0.09011169, 0.06988675, 0.01952787, 0.1268662]),
      "kl": (13.8970181325, 75.8798930168, [0.1741416, 1.6226, 6.114913, 5.985363]),
      "distortion": (4.56493242493, 20.8386080442, [4.564932]),
      "rate": (0.00904753784671, 8.18579410876e-05, [0.009047538]),
      "drawn": (-822.623683967, 10958.7388172, [1.805041, -0.4145399, 2.216939, -0.6542782]),
    },
  ),
}
RULES = {  # of kinds of tensors: mean, half width, and whether that is divided by sqrt(fan)
  "w": (0.0, 2.0, True),
  "wl": (0.0, 0.5, True),
  "wz": (0.0, 0.05, True),
  "b": (0.0, 0.1, False),
  "bx": (0.0, 0.5, False),
  "gn": (1.0, 0.1, False),
}


def real(name, shape, mean=0.0, scale=1.0):
  """Numbers in mean -+ scale by a hash of their name and place."""
  mask, n = np.uint64(0xFFFFFFFF), int(np.prod(shape))
  x = (
    np.arange(n, dtype=np.uint64) * np.uint64(0x9E3779B9) + np.uint64(zlib.crc32(name.encode()))
  ) & mask
  for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
    x ^= x >> np.uint64(shift)
    x = (x * np.uint64(factor)) & mask
  u = (((x ^ (x >> np.uint64(16))) >> np.uint64(8)).astype(np.int64) + 0.5) / 2.0**23 - 1
  return (mean + scale * u).astype(np.float32).reshape(shape)


def theirs(path, shape, sides):
  """The authors' name and shape of a parameter of ours."""
  name = "/".join(p.key for p in path)
  name = re.sub(r"(block_?\d+|prior|resnet)/([a-z]+)(\d)$", r"\1/c\3/\2", name)
  for ours, their in (
    (r"enc/in", r"encoder.in_conv"),
    (r"enc/block(\d+)/(c\d)", r"encoder.enc_blocks.\1.\2"),
    (r"q/block_(\d+)/(c\d)", r"decoder.dec_blocks.\1.enc.\2"),
    (r"dec/group_(\d+)/(prior|resnet)/(c\d)", r"decoder.dec_blocks.\1.\2.\3"),
    (r"dec/group_(\d+)/z_proj", r"decoder.dec_blocks.\1.z_proj"),
    (r"dec/out", r"decoder.out_net.out_conv"),
  ):
    if match := re.fullmatch(ours + "/(kernel|bias)", name):
      kernel = match.groups()[-1] == "kernel"
      turned = (*shape[:-3:-1], *shape[:2]) if kernel else shape
      return f"{match.expand(their)}.{'weight' if kernel else 'bias'}", turned
  if match := re.fullmatch(r"dec/bias(\d+)", name):
    return f"decoder.bias_xs.{sides.index(int(match[1]))}", (1, shape[2], *shape[:2])
  return name.replace("dec/", "decoder."), (1, *shape, 1, 1)


def kind_of(name, published=False):
  if name == "decoder.gain" or "bias_xs" in name:
    return "gn" if name == "decoder.gain" else "bx"
  if name.endswith("bias"):
    return "b"
  if ".c4." not in name and "z_proj" not in name:
    return "w"
  return "wz" if published and name.startswith("decoder") else "wl"


def by_formula(shapes, sides):
  def fill(path, s):
    name, shape = theirs(path, s.shape, sides)
    mean, scale, fan = RULES[kind_of(name)]
    v = real(name, shape, mean, scale / np.sqrt(np.prod(shape) / shape[0]) if fan else scale)
    if len(s.shape) == 4:
      return v.transpose(2, 3, 1, 0)
    return v[0].transpose(1, 2, 0) if len(s.shape) == 3 else v.reshape(s.shape)

  return jax.tree_util.tree_map_with_path(fill, shapes)


@pytest.mark.parametrize("case", CASES)
def test_networks_and_bound_are_those_of_the_authors(case):
  about, want = CASES[case]
  decoder = vdvae_plan.parse(about["dec"], "m")
  net = vdvae.VDVAE(
    *(vdvae_plan.parse(about["enc"], "d"), decoder, 4, 30),
    vdvae_plan.Widths.parse(16, about["widths"]),
  )
  eps = [
    real(f"eps:{i}", (2, 4, s, s), 0, 1.75).transpose(0, 2, 3, 1)
    for i, (s, _) in enumerate(decoder)
  ]
  x, target = (real(f"input:{n}", (2, 16, 16, 3)) for n in ("x", "target"))
  shapes = jax.eval_shape(net.init, KEY, x, eps)["params"]
  params = {"params": by_formula(shapes, sorted({s for s, _ in decoder}))}

  def run(x):
    told = net.apply(params, x, method="encode")
    out, drawn = net.apply(params, eps, told, method="decode")
    kl = [
      likelihood.kl_gaussians(*(v for law in (q, p) for v in (law[0], 2 * law[1])))
      for _, q, p in drawn
    ]
    distortion = -logistic_mixture.log_prob(jnp.asarray(target), out, bits=about["bits"])
    free = net.apply(params, eps, method="decode", temperature=0.8)[0]
    maps = {f"act{s}": told[s].transpose(0, 3, 1, 2) for s in (1, 4)}
    per_dim = lambda v: v.mean() / 768
    return {
      **maps,
      "kl": jnp.stack([v.sum() for v in kl]),
      "distortion": per_dim(distortion),
      "rate": per_dim(sum(kl)),
      "drawn": free,
    }

  for name, got in jit(run)(x).items():
    total, squares, values = want[name]
    flat = np.asarray(got, np.float64).ravel()
    first = flat[np.arange(len(values)) * flat.size // min(64, flat.size)]
    np.testing.assert_allclose(first, values, rtol=1e-5, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(flat.sum(), total, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose((flat**2).sum(), squares, rtol=1e-5, err_msg=name)


def test_paper_has_the_published_networks():
  """43 blocks and 39,145,700 parameters; all 1,393 names and shapes by their checksum."""
  made = on_paper("vdvae", "paper")
  config = made.config
  sides = [s for s, _ in vdvae_plan.parse(config.model.dec_blocks, "m")]
  assert len(sides) == 43 and [sides.count(s) for s in (1, 4, 8, 16, 32)] == [1, 3, 6, 11, 22]
  params = made.templates[0].params
  assert core.count(params) == 39_145_700 and set(params) == {"enc", "q", "dec"}
  rows = []
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    rows.append(theirs(path, leaf.shape, [1, 4, 8, 16, 32]))
  order = (  # as their modules were made
    *("encoder", "decoder", "in_conv", "enc_blocks", "gain", "weight", "bias", "dec_blocks"),
    *("bias_xs", "out_net", "out_conv", "enc", "prior", "z_proj", "resnet", "c1", "c2", "c3", "c4"),
  )
  place = lambda row: [int(p) if p.isdigit() else order.index(p) for p in row[0].split(".")]
  text = "\n".join(
    f"{n} {'x'.join(map(str, s))} {kind_of(n, True)}" for n, s in sorted(rows, key=place)
  )
  assert len(rows) == 1_393
  digest = "62cda03c1271ebff3f4a58b947020e94c43fc07cfd175dd4cdfcac8aff1e9dd4"
  assert hashlib.sha256(text.encode()).hexdigest() == digest
  m = config.model
  assert (m.b1, m.b2, m.weight_decay, m.warmup, config.lr) == (0.9, 0.9, 0.01, 100, 2e-4)
  assert (m.clip, m.skip, m.ema) == (200.0, 400.0, 0.9999)


def size_of(encoder, decoder, width, z=16):
  """Parameters of a published network by its strings."""
  inside, size = width // 4, lambda side: 9 if side > 2 else 1
  layer = lambda i, o, k=1: i * o * k + o
  block = lambda side, i, o: (
    layer(i, inside) + 2 * layer(inside, inside, size(side)) + layer(inside, o)
  )
  steps = vdvae_plan.parse(decoder, "m")
  total = layer(3, width, 9) + layer(width, 100) + 2 * width
  total += sum(block(s, width, width) for s, _ in vdvae_plan.parse(encoder, "d"))
  total += sum(s * s * width for s in {s for s, _ in steps} if s <= 64)
  for s, _ in steps:
    total += block(s, 2 * width, 2 * z) + block(s, width, 2 * z + width) + block(s, width, width)
    total += layer(z, width)
  return total


def test_other_published_sizes():
  """Of the paper's table, in millions: CIFAR-10 39, ImageNet 119 and 125, FFHQ 115."""
  strings = lambda variant: (lambda m: (m.enc_blocks, m.dec_blocks))(config_of(variant).model)
  assert size_of(*strings("paper"), 384) == 39_145_700
  assert round(size_of(*strings("imagenet64"), 512) / 1e6) == 125
  imagenet32 = (
    "32x15,32d2,16x9,16d2,8x8,8d2,4x6,4d4,1x6",
    "1x2,4m1,4x4,8m4,8x9,16m8,16x19,32m16,32x40",
  )
  assert round(size_of(*imagenet32, 512) / 1e6) == 119
  ffhq = (
    "256x3,256d2,128x8,128d2,64x12,64d2,32x17,32d2,16x7,16d2,8x5,8d2,4x5,4d4,1x4",
    "1x2,4m1,4x3,8m4,8x4,16m8,16x9,32m16,32x21,64m32,64x13,128m64,128x7,256m128",
  )
  assert round(size_of(*ffhq, 512) / 1e6) == 115


def test_first_networks():
  """Priors are N(0, I), and what blocks add starts small, by the root of their number."""
  stage, batch, _ = begin()
  state = jit(stage.init)(KEY, batch, None)
  dec = state.params["dec"]
  for i in range(2):
    assert not np.any(dec[f"group_{i}"]["prior"]["kernel4"])
    group = dec[f"group_{i}"]
    for kernel, fan in ((group["z_proj"]["kernel"], 2), (group["resnet"]["kernel4"], 2 - i)):
      largest = abs(np.asarray(kernel)).max()
      assert 0.3 * (2 * fan) ** -0.5 < largest < (2 * fan) ** -0.5, i
  jax.tree.map(np.testing.assert_array_equal, state.params, state.ema)


# ---------------------------------------------------------------------------------------- the bound


def test_kl_of_the_residual_form():
  """KL of q = N(m + d s, (s r)^2) from p = N(m, s^2): 1/2 sum d^2 + r^2 - log r^2 - 1."""
  rng = np.random.default_rng(0)
  m, log_s, d, log_r = rng.normal(size=(4, 5, 7))
  want = 0.5 * (d**2 + np.exp(2 * log_r) - 2 * log_r - 1).sum(1)
  with jax.enable_x64(True):
    got = likelihood.kl_gaussians(
      *map(jnp.asarray, (m + d * np.exp(log_s), 2 * (log_s + log_r), m, 2 * log_s))
    )
    np.testing.assert_allclose(got, want, rtol=1e-6)


def drawn(changes, batch, params, x):
  """What a step with KEY draws and computes, once more, through the networks alone."""
  made = prepared(**changes)
  m, channels = made.config.model, x.shape[-1]
  decoder = vdvae_plan.parse(m.dec_blocks, "m")
  features = channels if m.likelihood == "bernoulli" else logistic_mixture.num_outputs(channels, 2)
  net = vdvae.VDVAE(
    *(vdvae_plan.parse(m.enc_blocks, "d"), decoder, m.z_dim, features),
    vdvae_plan.Widths.parse(m.width, m.widths),
  )
  keys = jax.random.split(jax.random.split(KEY)[1], 2)
  eps = [jax.random.normal(k, (8, s, s, 2)) for k, (s, _) in zip(keys, decoder)]
  return jit(net.apply)({"params": params}, (127.5 * (x + 1) - m.mean) / m.std, eps)


def binarised(image):
  words = np.asarray(jax.random.bits(jax.random.split(KEY)[0], (8, 8)))
  bits = np.concatenate([words >> 16, words & 0xFFFF], axis=1)
  return (bits < (np.asarray(image).reshape(8, 16) + 1) / 2 * 65_536).reshape(image.shape)


@pytest.mark.parametrize("changes", [{}, LOGISTIC], ids=["bernoulli", "logistic"])
def test_the_bound_by_hand(changes):
  _, batch, state = begin(**changes)
  found = compiled("step", **changes)(state, batch, KEY)[1]
  if changes:
    x = 2 * (np.round((np.asarray(batch["image"]) + 1) * 127.5) // 64) / 3 - 1
    assert len(np.unique(x.round(4))) == 4
  else:
    x = 2.0 * binarised(batch["image"]) - 1
  out, told = drawn(changes, batch, state.params, jnp.float32(x))
  if changes:
    distortion = -logistic_mixture.log_prob(jnp.float32(x), out, bits=2).mean()
  else:
    out = np.asarray(out, np.float64)
    distortion = (np.logaddexp(0, out) - (x + 1) / 2 * out).sum((1, 2, 3)).mean()
  rates = []
  for d in told:
    (m1, s1), (m2, s2) = (np.asarray(law, np.float64) for law in (d.posterior, d.prior))
    kl = s2 - s1 + (np.exp(2 * s1) + (m1 - m2) ** 2) / (2 * np.exp(2 * s2)) - 0.5
    rates.append(kl.sum((1, 2, 3)).mean())
  dims = x[0].size
  np.testing.assert_allclose([found["rate_1"], found["rate_4"]], rates, rtol=1e-4)
  np.testing.assert_allclose(found["distortion"], distortion, rtol=1e-4)
  total = (distortion + sum(rates)) / dims
  np.testing.assert_allclose(found["loss_enc+q+dec"], total, rtol=1e-4)
  np.testing.assert_allclose(found["bits_per_dim"], total / np.log(2), rtol=1e-4)
  assert found["skipped"] == 0


def test_the_likelihood_is_that_of_the_generator():
  """By importance weights of q, against a mean over draws from the top down."""
  how = {"model.eval_k": 20_000}
  stage, batch, state = begin(**how)
  batch = {"image": jnp.sign(batch["image"][:4] + 1e-3)}
  scaled = lambda by, tree: jax.tree.map(lambda w: by * w, tree)  # q near p, so weights are alike
  ema = {name: scaled(0.2 if name == "q" else 0.5, w) for name, w in state.ema.items()}
  state = state.replace(ema=ema)
  found = compiled("evaluate", **how)(state, batch, KEY)
  rows = {"image": jnp.zeros((50_000, 4, 4, 1))}
  draws = jit(lambda key: stage.sample(state, rows, key))(jax.random.key(5))["image"]
  share = np.asarray((draws.reshape(-1, 16) + 1) / 2, np.float64)
  x = np.asarray(batch["image"]).reshape(4, 16) > 0
  log_x = np.log(share) @ x.T + np.log1p(-share) @ ~x.T
  exact = np.log(np.exp(log_x).mean(0))
  np.testing.assert_allclose(found["nll"], -exact.mean(), atol=0.02)
  assert found["elbo"] < -found["nll"] - 1e-3
  np.testing.assert_allclose(found["elbo"], -found["distortion"] - found["rate"], rtol=1e-5)
  np.testing.assert_allclose(found["rate"], found["rate_1"] + found["rate_4"], rtol=1e-5)


def test_temperature_and_told_blocks():
  """Draws z = m + T s eps of the prior; of the first block, told, also the posterior's own."""
  decoder = vdvae_plan.parse("1,4m1", "m")
  net = vdvae.VDVAE(vdvae_plan.parse("4d4,1", "d"), decoder, 2, 1, vdvae_plan.Widths(8))
  eps = [jax.random.normal(KEY, (3, s, s, 2)) for s, _ in decoder]
  x = jax.random.normal(KEY, (3, 4, 4, 1))
  shapes = jax.eval_shape(net.init, KEY, x, eps)["params"]
  rng = np.random.default_rng(0)
  p = {"params": jax.tree.map(lambda s: jnp.float32(rng.normal(0, 0.4, s.shape)), shapes)}
  decode = functools.partial(net.apply, p, eps, method="decode")
  told = net.apply(p, x, method="encode")
  _, cold = decode(temperature=0.5)
  for d, e in zip(cold, eps):
    np.testing.assert_allclose(d.z, d.prior[0] + 0.5 * np.exp(d.prior[1]) * e, rtol=1e-5, atol=1e-6)
    assert d.posterior is None
  _, part = decode(told, num_told=1, temperature=0.5)
  _, whole = decode(told)
  q = part[0].posterior
  np.testing.assert_allclose(part[0].z, q[0] + np.exp(q[1]) * eps[0], rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(part[0].z, whole[0].z)
  assert part[1].posterior is None and whole[1].posterior is not None
  assert abs(whole[1].z - part[1].z).max() > 0.01


# -------------------------------------------------------------------------------------------- steps


def same(a, b):
  equal = jax.tree.map(lambda x, y: bool(np.array_equal(x, y)), a, b)
  return all(jax.tree.leaves(equal))


def loud(state, gain):
  """The same with a last layer whose gradient is as long as its input, so as `gain`."""
  dec = {**state.params["dec"], "gain": jnp.full_like(state.params["dec"]["gain"], gain)}
  return state.replace(params={**state.params, "dec": dec})


@pytest.mark.parametrize("gain", [1e6, jnp.inf], ids=["long", "not finite"])
def test_steps_are_skipped(gain):
  _, batch, state = begin()
  state = loud(state, gain)
  after, found = compiled("step")(state, batch, KEY)
  assert found["skipped"] == 1 and after.step == state.step + 1
  for part in ("params", "opt", "ema"):
    assert same(getattr(after, part), getattr(state, part)), part
  assert all(np.isfinite(v) for v in found.values())


def test_other_steps_move_by_adam_and_the_average_follows():
  _, batch, state = begin(**PLAIN)
  step = compiled("step", **PLAIN)
  assert step(loud(state, 1e6), batch, KEY)[1]["skipped"] == 0  # however long
  after, found = step(state, batch, KEY)
  assert found["skipped"] == 0
  moved = jax.tree.map(lambda a, b: np.asarray(a - b).ravel(), after.params, state.params)
  moved = np.concatenate(jax.tree.leaves(moved))
  lr = 2e-3  # of the first update, in the direction of the sign
  assert abs(np.median(abs(moved)) / lr - 1) < 0.01
  expected = core.ema(state.ema, after.params, 0.995)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), after.ema, expected
  )


def test_levels_of_colours_are_drawn():
  stage, batch, state = begin(**LOGISTIC)
  z = stage.latent(batch, KEY)
  draw = compiled("generate", **LOGISTIC)
  image = draw(state, z, batch)["image"]
  assert image.shape == batch["image"].shape
  assert set(np.asarray((image + 1) * 1.5).round(3).ravel()) <= {0.0, 1.0, 2.0, 3.0}
  other = {**z, "pixels": -z["pixels"]}
  assert abs(draw(state, other, batch)["image"] - image).max() > 0.5
  shown = jit(stage.show)(state, {"image": jnp.tile(batch["image"], (8, 1, 1, 1))}, KEY)
  assert shown["top"].shape == (3, 8, 4, 4, 3)  # x; the first block told; both
  np.testing.assert_allclose(shown["reconstruction"][1], shown["top"][2], atol=1e-6)


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"model.enc_blocks": "4q2,1"}, r"model\.enc_blocks='4q2,1': '4q2' is no block"),
    ({"model.dec_blocks": "1,4d1"}, r"model\.dec_blocks='1,4d1': '4d1' is no block"),
    ({"model.dec_blocks": ""}, r"model\.dec_blocks='': '' is no block"),
    ({"model.dec_blocks": "1x99999,4m1"}, r"100,?\d* ?blocks|blocks are too many"),
    ({"model.enc_blocks": "4d3,1"}, r"enc_blocks: a block 4d3 where maps .* are 4 x 4"),
    ({"model.enc_blocks": "8d2,4"}, r"enc_blocks: a block 8d2 .* images of 4 pixels are 4 x 4"),
    ({"model.dec_blocks": "1,2m1,4m2"}, r"dec_blocks: a block of 2 x 2, where .* of 1, 4"),
    ({"model.dec_blocks": "4m1,1"}, r"dec_blocks: 4m1 needs a map of 1 x 1 before it"),
    ({"model.dec_blocks": "1"}, r"dec_blocks ends at 1, images have 4 pixels"),
    ({"model.widths": "4"}, r"model\.widths='4' is not possible: write side:channels"),
    ({"data.image_size": (4, 8)}, r"4 x 8, not square: set --config\.data\.image_size"),
    ({"model.temperature": 0.0}, r"model\.temperature=0\.0 is not possible"),
    ({"model.bits": 9}, r"model\.bits=9 is not possible"),
    ({"model.likelihood": "x"}, r"model\.likelihood='x' is not known"),
  ],
)
def test_what_is_wrong_is_said(changes, message):
  with pytest.raises(errors.UserError, match=message):
    job.prepare(config_of("test", **changes))


# ----------------------------------------------------------------------------------- that it learns


def is_learned(found):
  """Below the VAE of one layer, 22.5 to 22.8 nats of the same images, and the maps say what."""
  return 20.0 < found["nll"] < 22.4 and found["rate"] > 3.0


@pytest.mark.learning
def test_it_is_better_than_one_layer(tmp_path):
  assert is_learned(train(config_of("small"), tmp_path))


@pytest.mark.learning
def test_posteriors_that_are_not_told_learn_less(tmp_path, monkeypatch):
  encode = vdvae.VDVAE.encode
  monkeypatch.setattr(
    vdvae.VDVAE, "encode", lambda self, x: jax.tree.map(jnp.zeros_like, encode(self, x))
  )
  assert not is_learned(train(config_of("small", num_steps=1_000), tmp_path))
