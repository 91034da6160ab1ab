"""DM-GAN's networks and DAMSM's against the authors' (MinfengZhu/DM-GAN, commit d515995)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from formula import agrees, case, inputs, kernel, nchw, nhwc, real, run, state

from gm import matching
from gm.nets import dm_gan
from gm.nets import matching as encoders
from gm.nn import attention, spectral

slow = pytest.mark.learning  # trains nothing, but takes longer than quick tests may
QUICK = {"xla_backend_optimization_level": 0}


def put(tree, path, w):
  tree[tuple(path.split("/"))] = w


def put_norm(params, stats, path, t, name, order=lambda x: x):
  for tree, leaf, theirs in (
    (params, "scale", "weight"),
    (params, "bias", "bias"),
    (stats, "mean", "running_mean"),
    (stats, "var", "running_var"),
  ):
    put(tree, f"{path}/{leaf}", order(t[f"{name}.{theirs}"]))


def generator_variables(t, num_blocks):
  """Their generator's tensors as ours."""
  params, stats = {}, {}
  first = t["h_net1.fc.0.weight"]

  def to_maps(x):  # features of both halves from (C, 4, 4) to (4, 4, C)
    parts = x.reshape(2, -1, 4, 4, *x.shape[1:])
    return np.moveaxis(parts, 1, 3).reshape(x.shape)

  put(params, "augmentation/dense/kernel", kernel(t["ca_net.fc.weight"]))
  put(params, "augmentation/dense/bias", t["ca_net.fc.bias"])
  put(params, "first/kernel", kernel(to_maps(first)))
  put_norm(params, stats, "norm", t, "h_net1.fc.1", to_maps)

  def block(path, name, i):
    put(params, f"{path}/conv/kernel", kernel(t[f"{name}.{i}.weight"]))
    put_norm(params, stats, f"{path}/norm", t, f"{name}.{i + 1}")

  for i in range(4):
    block(f"up{i}", f"h_net1.upsample{i + 1}", 1)
  for i in range(3):
    put(params, f"image{i}/kernel", kernel(t[f"img_net{i + 1}.img.0.weight"]))
  for i in (1, 2):
    theirs = f"h_net{i + 1}"
    dense = {"A": "gate_word", "B": "gate_image", "M_r.0": "write_image", "M_w.0": "write_word"}
    dense |= {"key.0": "key", "value.0": "value", "response_gate.0": "respond"}
    for name, ours in dense.items():
      put(params, f"refine{i}/memory/{ours}/kernel", kernel(t[f"{theirs}.{name}.weight"]))
      if name not in "AB":
        put(params, f"refine{i}/memory/{ours}/bias", t[f"{theirs}.{name}.bias"])
    for j in range(num_blocks):
      block(f"refine{i}/in{j}", f"{theirs}.residual.{j}.block", 0)
      block(f"refine{i}/out{j}", f"{theirs}.residual.{j}.block", 3)
    block(f"refine{i}/up", f"{theirs}.upsample", 1)
  nested = traverse_util.unflatten_dict
  return {"params": nested(params), "batch_stats": nested(stats)}


def same_tree(module, variables, *args):
  """Ours has just these tensors, in these shapes."""
  init = functools.partial(module.init, train=False)
  shapes = jax.eval_shape(init, jax.random.key(0), *args)
  assert jax.tree.map(jnp.shape, dict(shapes)) == jax.tree.map(jnp.shape, variables)


def theirs_mixed(true):
  """Their attention, which gives pixel q of sample b the mask of sample (b Q + q) mod B."""

  def attend(q, k, v, *, scale, mask):
    rows = np.arange(q.shape[0] * q.shape[1]).reshape(q.shape[:2]) % len(q)
    return true(q, k, v, scale=scale, mask=mask[:, 0][rows])

  return attend


@pytest.fixture(scope="module")
def generator():
  found, rules = case("dmgan", "G")
  g = dm_gan.Generator((256, 256, 3), base=8, condition=6, num_blocks=2)
  x = inputs(found)
  args = (x["z"], x["eps"], x["sent"], x["words"].swapaxes(1, 2), ~x["mask"])
  variables = generator_variables(state(found, rules), 2)
  same_tree(g, variables, *args)
  return found, g, variables, args


def compiled(function, *args):
  return jax.jit(function).lower(*args).compile(compiler_options=QUICK)(*args)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_generator(generator, mode, monkeypatch):
  """All pictures and the law of the condition, with their mask as it is mixed."""
  found, g, variables, args = generator
  monkeypatch.setattr(attention, "attend", theirs_mixed(attention.attend))
  forward = functools.partial(g.apply, train=mode == "train", mutable=["batch_stats"])
  out, _ = compiled(forward, variables, *args)
  want = run(found, mode)["outputs"]
  agrees(out.mean, want["mu"], atol=1e-6)
  agrees(out.log_var, want["logvar"], atol=1e-6)
  for x, name in zip(out.images, ("img64", "img128", "img256"), strict=True):
    agrees(nchw(x), want[name], atol=max(20 * want[name]["err32"], 2e-6))


def test_gradient_of_the_first_picture(generator):
  found, g, variables, args = generator
  grad = run(found)["grad"]
  shape = run(found)["outputs"][grad["of"]]["shape"]
  weight = nhwc(real("cot:" + grad["of"], shape, 0, 1))

  def total(z):
    return jnp.sum(g.apply(variables, z, *args[1:], train=False).images[0] * weight)

  agrees(compiled(jax.grad(total), args[0]), grad, atol=1e-4)


def discriminator_variables(t):
  params, u = {}, {}
  trunk = [f"img_code_s16.{i}" for i in (0, 2, 4, 6)] + ["img_code_s32.0", "img_code_s64.0"]
  ours = {name: f"down{i}" for i, name in enumerate(trunk)}
  for name in ("img_code_s32_1.0", "img_code_s64_1.0", "img_code_s64_2.0", "COND_DNET.jointConv.0"):
    if f"{name}.module.bias" in t:
      narrow = f"narrow{len(t[f'{name}.module.bias'])}"
      ours[name] = "joint" if "joint" in name else narrow
  for name, path in ours.items():
    if f"{name}.module.bias" in t:
      put(params, f"net/{path}/kernel", kernel(t[f"{name}.module.weight_bar"]))
      put(params, f"net/{path}/bias", t[f"{name}.module.bias"])
      u[f"{path}/kernel"] = t[f"{name}.module.weight_u"]
  for name, path in (("UNCOND_DNET", "logits_image"), ("COND_DNET", "logits_pair")):
    put(params, f"net/{path}/kernel", kernel(t[f"{name}.outlogits.0.weight"]))
    put(params, f"net/{path}/bias", t[f"{name}.outlogits.0.bias"])
  return {"params": traverse_util.unflatten_dict(params), "spectral": {"u": u}}


@pytest.mark.parametrize("name", ["D64", "D128", "D256"])
def test_discriminator(name):
  found, rules = case("dmgan", name)
  d = spectral.SpectralNorm(dm_gan.Discriminator(32, base=4), skip=dm_gan.LOGITS)
  x = inputs(found)
  variables, args = discriminator_variables(state(found, rules)), (nhwc(x["x"]), x["sent"])
  shapes = jax.eval_shape(d.init, jax.random.key(0), *args)
  assert jax.tree.map(jnp.shape, dict(shapes)) == jax.tree.map(jnp.shape, variables)
  out = compiled(d.apply, variables, *args)
  want = run(found)["outputs"]
  agrees(jax.nn.sigmoid(out.image), want["uncond"], atol=1e-6)
  agrees(jax.nn.sigmoid(out.pair), want["cond"], atol=1e-6)


def test_text_encoder():
  """Ids are one more here, so that none of the words is the padding's."""
  found, rules = case("dmgan", "text-encoder")
  t, x = state(found, rules), inputs(found)
  table = t["encoder.weight"]
  params = {"embed": {"embedding": np.concatenate([np.zeros_like(table[:1]), table])}}
  for ours, end in (("forward", ""), ("backward", "_reverse")):
    w, b = (
      [t[f"rnn.{kind}_{part}_l0{end}"] for part in ("ih", "hh")] for kind in ("weight", "bias")
    )
    params[ours] = {"kernel": np.concatenate([w[0].T, w[1].T]), "bias": b[0] + b[1]}
  net = encoders.TextEncoder(31, features=12, embed=8)
  tokens = np.where(np.arange(7) < x["lens"][:, None], x["captions"] + 1, 0)
  same_tree(net, {"params": params}, tokens)
  text = compiled(functools.partial(net.apply, train=False), {"params": params}, tokens)
  want = run(found)["outputs"]
  agrees(text.words.swapaxes(1, 2), want["words"], atol=1e-6)
  agrees(text.sentence, want["sent"], atol=1e-6)


def test_regions_of_words():
  found, _ = case("dmgan", "func_attention")
  x = inputs(found)
  regions = x["context"].reshape(2, 6, 16).swapaxes(1, 2)
  mask = np.ones((2, 5), bool)
  every = matching.attended(regions, x["query"].swapaxes(1, 2), mask, gamma=4.0)
  own = every[np.arange(2), np.arange(2)]
  agrees(own.swapaxes(1, 2), run(found)["outputs"]["weighted"], atol=2e-6)


@slow
def test_generator_of_birds():
  """As published, and one sample, whose mask cannot be mixed."""
  found, rules = case("dmgan_full", "G-bird")
  g, x = dm_gan.Generator((256, 256, 3)), inputs(found)
  args = (x["z"], x["eps"], x["sent"], x["words"].swapaxes(1, 2), ~x["mask"])
  variables = generator_variables(state(found, rules), 2)
  same_tree(g, variables, *args)
  out = compiled(functools.partial(g.apply, train=False), variables, *args)
  want = run(found)["outputs"]
  agrees(out.mean, want["mu"], atol=5e-6)
  for image, name in zip(out.images, ("img64", "img128", "img256"), strict=True):
    agrees(nchw(image), want[name], atol=20 * want[name]["err32"])


def inception_variables(t):
  stem = ["1a_3x3", "2a_3x3", "2b_3x3", "", "3b_1x1", "4a_3x3"]
  double, sevens = ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"), "branch7x7dbl_"
  early = [["branch1x1"], ["branch5x5_1", "branch5x5_2"], double, ["", "branch_pool"]]
  middle = [["branch1x1"], [f"branch7x7_{i}" for i in (1, 2, 3)]]
  middle += [[f"{sevens}{i}" for i in (1, 2, 3, 4, 5)], ["", "branch_pool"]]
  late = [["branch1x1"], ["branch3x3_1", ("branch3x3_2a", "branch3x3_2b")]]
  late += [[*double[:2], ("branch3x3dbl_3a", "branch3x3dbl_3b")], ["", "branch_pool"]]
  down = [["branch3x3_1", "branch3x3_2"], [f"branch7x7x3_{i}" for i in (1, 2, 3, 4)]]
  layers = dict.fromkeys(("5b", "5c", "5d"), early) | dict.fromkeys(("7b", "7c"), late)
  layers |= dict.fromkeys(("6b", "6c", "6d", "6e"), middle)
  layers |= {"6a": [["branch3x3"], double], "7a": down}
  params, stats = {}, {}

  def unit(path, name):
    put(params, f"trunk/{path}/conv/kernel", t[f"{name}.conv.weight"].transpose(2, 3, 1, 0))
    put_norm(params, stats, f"trunk/{path}/norm", t, f"{name}.bn")

  for i, name in enumerate(stem):
    if name:
      unit(f"stem/conv{i}", f"Conv2d_{name}")
  for mixed, branches in layers.items():
    for i, chain in enumerate(branches):
      for j, name in enumerate(chain):
        path = f"mixed{mixed}_{i}/conv{j}"
        if isinstance(name, tuple):
          for side, one in zip("ab", name, strict=True):
            unit(path + side, f"Mixed_{mixed}.{one}")
        elif name:
          unit(path, f"Mixed_{mixed}.{name}")
  put(params, "local/kernel", kernel(t["emb_features.weight"]))
  put(params, "whole/kernel", kernel(t["emb_cnn_code.weight"]))
  put(params, "whole/bias", t["emb_cnn_code.bias"])
  nested = traverse_util.unflatten_dict
  return {"params": nested(params), "batch_stats": nested(stats)}


@slow
def test_image_encoder():
  found, rules = case("dmgan_image_encoder", "image-encoder")
  net, x = encoders.InceptionEncoder(256), nhwc(inputs(found)["x"])
  variables = inception_variables(state(found, rules))
  same_tree(net, variables, x)
  regions, whole = compiled(functools.partial(net.apply, train=False), variables, x)
  want = run(found)["outputs"]
  agrees(regions.swapaxes(1, 2).reshape(1, 256, 17, 17), want["features"], atol=5e-4)
  agrees(whole, want["code"], atol=2e-4)
