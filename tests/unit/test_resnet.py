"""Residual networks: published sizes, and who depends on what."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from gm import core
from gm.nets import resnet
from gm.nn import conv, norm, resample, spectral

KEY, Y = jax.random.key(0), jnp.array([0, 2], jnp.int32)


def normal(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def count(net, *args):
  return core.count(jax.eval_shape(lambda: core.build(net, KEY, *args))[0])


def big(ch, *blocks):
  return [ch * b for b in blocks]


SHARED = {"embed_features": 128, "hierarchical": True, "attention": (64,)}
TINY = {"embed_features": 16, "hierarchical": True, "attention": (16,)}
G, D = resnet.Generator, resnet.Discriminator
SIZES = [
  (G((32, 32, 3)), 128, 4_276_739),
  (G((128, 128, 3), (1024, 512, 256, 128, 64), 1000), 128, 41_996_931),
  (G((128, 128, 3), big(96, 16, 8, 4, 2, 1), 1000, **SHARED), 120, 70_433_988),
  (G((128, 128, 3), big(64, 16, 8, 4, 2, 1), 1000, **SHARED), 120, 31_978_628),
  (G((32, 32, 3), (256,) * 3, 10), 128, 4_304_387),
  (G((32, 32, 3), (64,) * 3, 10, **TINY), 40, 272_420),
  (D(head_bias=False), 32, 1_053_824),
  (D(head_bias=False, num_classes=10), 32, 1_055_104),
  (D((64, 128, 256, 512, 1024, 1024), 5, num_classes=1000), 128, 30_041_857),
  (D(big(96, 1, 2, 4, 8, 16, 16), 5, True, 1000, (64,)), 128, 87_982_370),
  (D(big(64, 1, 2, 4, 8, 16, 16), 5, True, 1000, (64,)), 128, 39_448_258),
  (D((256,) * 4, 2, True, 10), 32, 4_207_361),
  (D((64,) * 4, 2, True, 10, (16,)), 32, 270_530),
]


@pytest.mark.parametrize("net, size, want", SIZES)
def test_parameter_counts(net, size, want):
  """SN-GAN's and BigGAN's; the last one has one attention layer where theirs has three more."""
  first = jnp.zeros((2, size) if isinstance(net, G) else (2, size, size, 3))
  assert count(net, first, Y) == want


def test_chunks_and_embedding_make_a_condition_of_148():
  net = G((128, 128, 3), big(96, 16, 8, 4, 2, 1), 1000, **SHARED)
  params, _ = jax.eval_shape(lambda: core.build(net, KEY, jnp.zeros((2, 120)), Y))
  assert params["first"]["kernel"].shape[0] == 20
  for i in range(5):
    for name in ("norm0", "norm1"):
      assert params[f"block{i}"][name]["scale"].shape[0] == 148
  assert "attention64" in params and sum(n.startswith("attention") for n in params) == 1


@functools.partial(jax.jit, static_argnums=0)
def maps(net, variables, *args):
  out, found = net.apply(variables, *args, capture_intermediates=True, mutable=["intermediates"])
  return out, {k: v["__call__"][0] for k, v in found["intermediates"].items() if k != "__call__"}


@pytest.fixture(scope="module")
def generator():
  net = G((16, 16, 1), (8, 8), 3, embed_features=4, hierarchical=True, attention=(8,))
  net = net.clone(scheme="orthogonal")
  z = normal(0, 2, 6)
  return net, jax.jit(net.init)(KEY, z, Y), z


def test_each_chunk_of_z_enters_its_block(generator):
  net, variables, z = generator
  out, before = maps(net, variables, z, Y)
  assert out.shape == (2, 16, 16, 1) and before["block0"].shape == (2, 8, 8, 8)
  for chunk, unchanged in ((1, ["first"]), (2, ["first", "block0", "attention8"])):
    other = z.at[:, 2 * chunk : 2 * chunk + 2].multiply(-1.0)
    _, after = maps(net, variables, other, Y)
    for name in ("first", "block0", "attention8", "block1"):
      same = (np.asarray(before[name]) == np.asarray(after[name])).all()
      assert same == (name in unchanged), (chunk, name)


def test_the_class_enters_every_block(generator):
  net, variables, z = generator
  _, before = maps(net, variables, z, Y)
  _, after = maps(net, variables, z, Y[::-1])
  np.testing.assert_array_equal(before["first"], after["first"])
  assert np.abs(before["block0"] - after["block0"]).max() > 1e-3
  norms = [
    f"params/{block}/{name}/" for block in ("block0", "block1") for name in ("norm0", "norm1")
  ]
  flat = traverse_util.flatten_dict(variables, sep="/")
  for chosen in norms:  # the only one that reads the class; its embedding is rows 0 to 3
    blind = {
      path: w.at[:4].set(0.0) if path.startswith(tuple({*norms} - {chosen})) else w
      for path, w in flat.items()
    }
    blind = traverse_util.unflatten_dict(blind, sep="/")
    (_, before), (_, after) = (maps(net, blind, z, y) for y in (Y, Y[::-1]))
    block = chosen.split("/")[1]
    assert np.abs(before[block] - after[block]).max() > 1e-3, chosen
    if block == "block1":
      np.testing.assert_array_equal(before["block0"], after["block0"])


def test_without_its_maps_the_conditional_norm_of_vectors_is_the_plain_one():
  x, vectors, net = normal(0, 2, 4, 4, 3), normal(1, 2, 6), resnet.UpBlock(5)
  plain, conditional = (
    jax.jit(net.init, static_argnums=3)(KEY, x, c, True) for c in (None, vectors)
  )
  kernels = {n: p for n, p in plain["params"].items() if not n.startswith("norm")}
  zeros = {n: jax.tree.map(jnp.zeros_like, conditional["params"][n]) for n in ("norm0", "norm1")}
  assert zeros["norm0"]["scale"].shape == (6, 3)

  @jax.jit
  def run(params, condition):
    variables = {"params": params, "batch_stats": plain["batch_stats"]}
    return net.apply(variables, x, condition, True, mutable=["batch_stats"])

  (want, stats), (got, found) = run(plain["params"], None), run({**kernels, **zeros}, vectors)
  np.testing.assert_allclose(got, want, atol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, stats)


@pytest.fixture(scope="module")
def discriminator():
  net = D((8, 16, 16), 2, num_classes=3)
  x = normal(1, 2, 8, 8, 1)
  return net, jax.jit(net.init)(KEY, x, Y), x


def test_projection_is_linear_in_the_features(discriminator):
  net, variables, x = discriminator
  logits, found = maps(net, variables, x, Y)
  other, _ = maps(net, variables, x, Y[::-1])
  table = np.asarray(variables["params"]["head"]["embed"]["embedding"])
  h = np.asarray(found["trunk"])
  want = np.sum((table[Y] - table[Y[::-1]]) * h, 1)
  np.testing.assert_allclose(logits - other, want, rtol=1e-4)
  head = {**variables["params"]["head"], "embed": {"embedding": jnp.zeros_like(table)}}
  zero = {"params": {**variables["params"], "head": head}}
  plain = {n: p for n, p in head.items() if n != "embed"}
  plain = {"params": {**variables["params"], "head": plain}}
  np.testing.assert_allclose(
    maps(net, zero, x, Y)[0], maps(net.clone(num_classes=0), plain, x)[0], atol=1e-6
  )


def test_the_features_are_sums_over_the_map():
  """Of a constant image: a n^2 + b n + c, where a is what a pixel far from the border gives."""
  trunk = resnet.Trunk((4,), down=0)
  x = jnp.ones((1, 8, 8, 1))
  variables = trunk.init(KEY, x)
  f = lambda n: trunk.apply(variables, jnp.ones((1, n, n, 1)))
  np.testing.assert_allclose(f(10) - 2 * f(8) + f(6), 8 * _inside(variables), rtol=1e-4, atol=1e-4)


def _inside(variables):
  """The features of one pixel of a constant image, far from the borders."""
  p = variables["params"]["block0"]
  h = np.maximum(p["conv0"]["kernel"].sum((0, 1, 2)) + p["conv0"]["bias"], 0)
  h = h @ p["conv1"]["kernel"].sum((0, 1)) + p["conv1"]["bias"]
  return np.maximum(h + p["shortcut"]["kernel"][0, 0, 0] + p["shortcut"]["bias"], 0)[None]


def test_widths_between_the_convolutions():
  def hidden(wide):
    net = D((8, 16), 1, wide=wide)
    params, _ = jax.eval_shape(lambda: core.build(net, KEY, jnp.zeros((2, 8, 8, 1))))
    return [params["trunk"][f"block{i}"]["conv0"]["kernel"].shape[-1] for i in range(2)]

  assert hidden(wide=False) == [8, 8] and hidden(wide=True) == [8, 16]


def test_down_block_by_hand():
  """Pooled after its 1 x 1 convolution: ReLU, conv, ReLU, conv, pool + conv, pool."""
  x, net = normal(0, 2, 4, 4, 3), resnet.DownBlock(5, first=True, scheme="normal")

  def both(first):
    block = net.clone(first=first)
    variables = block.init(KEY, x)
    p = jax.tree.map(lambda p: 50 * p, variables["params"])  # of order 1
    h = x if first else jnp.maximum(x, 0)
    h = jnp.maximum(conv.conv(h, p["conv0"]["kernel"]) + p["conv0"]["bias"], 0)
    h = conv.conv(h, p["conv1"]["kernel"]) + p["conv1"]["bias"]
    h = h + conv.conv(x, p["shortcut"]["kernel"]) + p["shortcut"]["bias"]
    return block.apply({"params": p}, x), resample.mean_pool(h)

  for first in (True, False):
    got, want = jax.jit(both, static_argnums=0)(first)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


def test_up_block_by_hand():
  x, net = normal(0, 2, 4, 4, 3), resnet.UpBlock(5, 3, eps=1e-3, scheme="normal")

  @jax.jit
  def both():
    p = jax.tree.map(lambda p: 50 * p, net.init(KEY, x, Y, True)["params"])

    def normalised(x, q):
      z, _, _ = norm.normalize(x, 1 + q["scale"][Y], q["bias"][Y], kind="batch", eps=1e-3)
      return jnp.maximum(z, 0)

    up = resample.nearest
    h = conv.conv(up(normalised(x, p["norm0"])), p["conv0"]["kernel"]) + p["conv0"]["bias"]
    h = conv.conv(normalised(h, p["norm1"]), p["conv1"]["kernel"]) + p["conv1"]["bias"]
    want = h + conv.conv(up(x), p["shortcut"]["kernel"]) + p["shortcut"]["bias"]
    return net.apply({"params": p}, x, Y, True, mutable=["batch_stats"])[0], want

  got, want = both()
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


def test_initial_scales():
  def kernels(scheme):
    net = D((8, 64), 1, num_classes=3, scheme=scheme)
    params = jax.jit(lambda: core.build(net, KEY, jnp.zeros((2, 4, 4, 3)), Y)[0])()
    return traverse_util.flatten_dict(params, sep="/")

  found = kernels("glorot")
  for name, gain, fans in (
    ("trunk/block1/conv1/kernel", 2**0.5, 9 * (8 + 64)),
    ("trunk/block1/shortcut/kernel", 1.0, 8 + 64),
  ):
    np.testing.assert_allclose(found[name].std(), gain * (2 / fans) ** 0.5, rtol=0.06)
  assert not any(p.any() for n, p in found.items() if n.endswith("bias"))
  found = kernels("orthogonal")
  for name, w in found.items():
    if w.ndim > 1:  # all singular values are 1
      values = np.linalg.svd(np.asarray(w).reshape(-1, w.shape[-1]), compute_uv=False)
      np.testing.assert_allclose(values, 1.0, atol=1e-5, err_msg=name)
      assert abs(spectral.sigma(w, jnp.ones(w.shape[-1]))[0] - 1) < 1e-5
  assert 0.9 / 8**0.5 < np.abs(found["trunk/block1/shortcut/bias"]).max() <= 1 / 8**0.5


def test_errors_say_what_is_allowed():
  for net, match in (
    (G((30, 32, 1)), "image_size"),
    (G((32, 32, 1), num_classes=3, hierarchical=True, embed_features=2), "z_dim"),
    (G((32, 32, 1), (8,), 3, hierarchical=True), "embed_features"),
    (G((32, 32, 1), scheme="uniform"), "glorot, orthogonal, normal"),
  ):
    with pytest.raises(ValueError, match=match):
      jax.eval_shape(lambda: core.build(net, KEY, jnp.zeros((2, 10)), Y))
  for down in (-1, 3):
    with pytest.raises(ValueError, match=r"d_down to 0 \.\.\. 2"):
      jax.eval_shape(lambda: core.build(D((8, 8), down), KEY, jnp.zeros((2, 32, 32, 1))))


def test_attention_is_at_heights_that_there_are():
  """In G, in D or in both; what is in neither is refused. Images here are not square."""
  g, d = G((16, 24, 1), (8, 8)), D((8, 8, 8), 2)
  x = jnp.zeros((2, 16, 24, 1))
  for net, given, of in ((g, jnp.zeros((2, 4)), g.heights), (d, x, d.heights(16))):
    net = net.clone(attention=tuple(range(32)))
    params, _ = jax.eval_shape(lambda net=net, given=given: core.build(net, KEY, given))
    found = {n for n in params.get("trunk", params) if n.startswith("attention")}
    assert found == {f"attention{height}" for height in of}
  assert g.heights == [8, 16] and d.heights(16) == [8, 4, 4]
  for size in (4, 8, 16):
    resnet.check_attention(g.clone(attention=(size,)), d.clone(attention=(size,)))
  for size in (7, 12, 24):
    with pytest.raises(
      ValueError, match=rf"height {size} .*\[8, 16\].*\[8, 4, 4\].*model.attention"
    ):
      resnet.check_attention(g.clone(attention=(8, size)), d)
