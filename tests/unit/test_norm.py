"""Normalisations against NumPy, and batch norm's running averages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from gm.nn import norm

AXES = {"batch": (0, 1, 2), "instance": (1, 2), "layer": (1, 2, 3)}
AXES["group"] = AXES["layer"]  # where there is one


def data(*shape, seed=0):
  return np.random.default_rng(seed).normal(1.5, 2.0, size=shape).astype(np.float32)


def reference(x, scale, bias, axes, eps=1e-5):
  x = x.astype(np.float64)
  z = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + eps)
  return z * scale + bias


@pytest.mark.parametrize("kind", norm.KINDS)
def test_equals_numpy(kind):
  x, scale, bias = data(4, 3, 5, 6), data(6, seed=1), data(6, seed=2)
  y, _, _ = norm.normalize(jnp.array(x), scale, bias, kind=kind)
  np.testing.assert_allclose(y, reference(x, scale, bias, AXES[kind]), atol=2e-5)


@pytest.mark.parametrize("kind", norm.KINDS)
def test_derivatives_equal_autodiff_to_second_order(kind):
  x, scale, bias = (
    jnp.array(data(4, 3, 2, 3)),
    jnp.array(data(3, seed=1)),
    jnp.array(data(3, seed=2)),
  )

  def plain(x, scale, bias):
    z = x - x.mean(AXES[kind], keepdims=True)
    z = z / jnp.sqrt((z * z).mean(AXES[kind], keepdims=True) + 1e-5)
    return z * scale + bias

  ours = lambda x, s, b: norm.normalize(x, s, b, kind=kind)[0]

  def both(f):
    loss = lambda *a: jnp.sum(jnp.sin(f(*a)))
    first = jax.grad(loss, (0, 1, 2))
    penalty = lambda *a: sum(jnp.sum(jnp.tanh(g)) for g in first(*a))
    return first(x, scale, bias), jax.grad(penalty, (0, 1, 2))(x, scale, bias)

  for a, b in zip(jax.tree.leaves(both(ours)), jax.tree.leaves(both(plain))):
    np.testing.assert_allclose(a, b, atol=3e-5 * float(jnp.abs(b).max() + 1))
  check_grads(ours, (x, scale, bias), order=1, modes=["rev"], atol=2e-2, rtol=2e-2)


def test_groups_are_separate_batches():
  x = data(6, 2, 2, 3)
  one = jnp.ones(3)
  y, mean, _ = norm.normalize(jnp.array(x), one, 0 * one, kind="batch", groups=2)
  want = [reference(part, 1.0, 0.0, (0, 1, 2)) for part in (x[:3], x[3:])]
  np.testing.assert_allclose(y, np.concatenate(want), atol=2e-5)
  np.testing.assert_allclose(mean[0], x[:3].mean((0, 1, 2)), atol=1e-5)
  np.testing.assert_allclose(mean[-1], x[3:].mean((0, 1, 2)), atol=1e-5)
  with pytest.raises(ValueError, match="batch_size"):
    norm.normalize(jnp.array(x), one, one, kind="batch", groups=4)


def test_group_gradient_is_that_of_the_parts():
  x, one = jnp.array(data(6, 2, 2, 3)), jnp.ones(3)
  loss = lambda x, g: jnp.sum(jnp.sin(norm.normalize(x, one, one, kind="batch", groups=g)[0]))
  parts = [jax.grad(loss)(p, 1) for p in (x[:3], x[3:])]
  np.testing.assert_allclose(jax.grad(loss)(x, 2), jnp.concatenate(parts), atol=1e-5)


def test_groups_of_channels_are_separate_layers():
  x, scale, bias = data(3, 4, 2, 6), data(6, seed=1), data(6, seed=2)
  y, _, _ = norm.normalize(jnp.array(x), scale, bias, kind="group", groups=2)
  want = [reference(p, scale[s], bias[s], (1, 2, 3)) for p, s in halves(x)]
  np.testing.assert_allclose(y, np.concatenate(want, -1), atol=2e-5)
  loss = lambda x, g, kind="group": jnp.sum(
    jnp.sin(
      norm.normalize(x, jnp.ones(x.shape[-1]), jnp.zeros(x.shape[-1]), kind=kind, groups=g)[0]
    )
  )
  parts = [jax.grad(loss)(jnp.array(p), 1, "layer") for p, _ in halves(x)]
  np.testing.assert_allclose(jax.grad(loss)(jnp.array(x), 2), jnp.concatenate(parts, -1), atol=1e-5)
  layer = norm.GroupNorm(groups=2, eps=1e-5)
  variables = {"params": {"scale": jnp.array(scale), "bias": jnp.array(bias)}}
  np.testing.assert_allclose(layer.apply(variables, x), np.concatenate(want, -1), atol=2e-5)
  with pytest.raises(ValueError, match="6 channels do not split into 4 groups"):
    norm.normalize(jnp.array(x), scale, bias, kind="group", groups=4)


def halves(x):
  return [(x[..., s], s) for s in (slice(3), slice(3, 6))]


def test_running_averages_are_torchs():
  x = data(4, 3, 3, 2)
  layer = norm.BatchNorm()
  variables = layer.init(jax.random.key(0), x, train=True)
  stats = variables["batch_stats"]
  assert stats["mean"].tolist() == [0, 0] and stats["var"].tolist() == [1, 1]
  _, new = layer.apply(variables, x, train=True, mutable=["batch_stats"])
  np.testing.assert_allclose(new["batch_stats"]["mean"], 0.1 * x.mean((0, 1, 2)), rtol=1e-4)
  want = 0.9 + 0.1 * x.var((0, 1, 2), ddof=1)
  np.testing.assert_allclose(new["batch_stats"]["var"], want, rtol=1e-5)
  assert layer.apply(variables, x, train=True).shape == x.shape  # without mutable: no trace


def test_who_depends_on_whom():
  x = data(4, 3, 3, 2)
  other = x.copy()
  other[1:] += 3
  layer = norm.BatchNorm()
  v = layer.init(jax.random.key(0), x, train=True)
  v = {**v, "batch_stats": {"mean": jnp.array([1.0, 2.0]), "var": jnp.array([4.0, 9.0])}}
  run = lambda x, train: np.asarray(layer.apply(v, x, train=train))
  np.testing.assert_array_equal(run(x, False)[0], run(other, False)[0])
  assert np.abs(run(x, True)[0] - run(other, True)[0]).max() > 0.1
  np.testing.assert_allclose(run(x, False), (x - [1, 2]) / np.array([2, 3]), atol=1e-4)


@pytest.mark.parametrize("kind", norm.KINDS)
def test_a_scale_of_its_own_for_each_sample(kind):
  """Against one sample at a time where samples do not share statistics, and to second order."""
  x, scale, bias = (
    jnp.array(data(3, 2, 2, 4)),
    jnp.array(data(3, 4)),
    jnp.array(data(3, 4, seed=1)),
  )

  def plain(x, scale, bias):
    z = norm.normalize(x, jnp.ones(4), jnp.zeros(4), kind=kind)[0]
    return z * scale[:, None, None] + bias[:, None, None]

  def both(f):
    first = jax.grad(lambda *a: jnp.sum(jnp.sin(f(*a))), (0, 1, 2))
    penalty = lambda *a: sum(jnp.sum(jnp.tanh(g)) for g in first(*a))
    a = (x, scale, bias)
    return jax.jit(lambda *a: (f(*a), first(*a), jax.grad(penalty, (0, 1, 2))(*a)))(*a)

  ours = both(lambda *a: norm.normalize(*a, kind=kind)[0])
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(both(plain)), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4 * float(jnp.abs(b).max() + 1))


def conditional(condition, **options):
  layer = norm.ConditionalBatchNorm(**options, kernel_init=jax.nn.initializers.normal(0.5))
  x = jnp.array(data(4, 2, 2, 3))
  return layer, x, layer.init(jax.random.key(0), x, condition, True)


@pytest.mark.parametrize("train", [True, False])
def test_conditional_scale_and_bias_are_those_of_the_condition(train):
  labels, vectors = jnp.array([0, 2, 2, 1]), jnp.array(data(4, 5))
  for condition, options in ((labels, {"num_classes": 3}), (vectors, {})):
    layer, x, v = conditional(condition, **options)
    stats = {"mean": jnp.array([1.0, 2.0, 3.0]), "var": jnp.array([4.0, 1.0, 9.0])}
    v = {**v, "batch_stats": stats}
    y, new = layer.apply(v, x, condition, train, mutable=["batch_stats"])
    tables = [np.asarray(v["params"][n]) for n in ("scale", "bias")]
    maps = [t[condition] if options else condition @ t for t in tables]
    if train:
      z = reference(np.asarray(x), 1.0, 0.0, (0, 1, 2))
    else:
      z = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
    want = z * (1 + maps[0][:, None, None]) + maps[1][:, None, None]
    np.testing.assert_allclose(y, want, atol=5e-5)
    moved = 0.9 * stats["mean"] + 0.1 * x.mean((0, 1, 2)) if train else stats["mean"]
    np.testing.assert_allclose(new["batch_stats"]["mean"], moved, rtol=1e-4)


def test_conditional_is_plain_at_zero():
  labels = jnp.array([0, 1, 1, 0])
  layer, x, _ = conditional(labels, num_classes=2)
  zero = norm.ConditionalBatchNorm(2)
  plain = norm.BatchNorm()
  want = plain.apply(plain.init(jax.random.key(0), x, True), x, True)
  got = zero.apply(zero.init(jax.random.key(0), x, labels, True), x, labels, True)
  np.testing.assert_allclose(got, want, atol=1e-6)
  v = layer.init(jax.random.key(0), x, labels, True)
  for train in (True, False):
    y = layer.apply(v, x, jnp.array([0, 2, -1, 1]), train)  # two classes: neither 2 nor -1 is one
    assert np.isnan(y).all((1, 2, 3)).tolist() == [False, True, True, False]


def test_rows():
  x = data(8, 5)
  layer = norm.BatchNorm()
  y = layer.apply(layer.init(jax.random.key(0), x, train=True), x, train=True)
  np.testing.assert_allclose(y, reference(x, 1.0, 0.0, (0,)), atol=2e-5)


def test_names():
  assert set(norm.LAYERS) == set(norm.KINDS) - {"group"}  # which has to be told how many
  assert norm.layer("none", scale_init=None, dtype=None)("x", True) == "x"
  with pytest.raises(ValueError, match="none, batch, instance, layer"):
    norm.layer("group", scale_init=None, dtype=None)
