"""Spectral normalisation against singular values, and who keeps what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

from gm import core
from gm.nets import mlp
from gm.nn import attention, conv, embed, norm, spectral


def normal(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def top(w):
  return np.linalg.svd(np.asarray(w, np.float64).reshape(-1, w.shape[-1]), compute_uv=False)[0]


def iterate(w, u, steps):
  return jax.jit(lambda u: jax.lax.fori_loop(0, steps, lambda i, u: spectral.sigma(w, u)[1], u))(u)


@pytest.mark.parametrize("shape", [(64, 128), (3, 3, 16, 32), (4, 4, 8, 3)])
def test_sigma_is_the_largest_singular_value(shape):
  w = normal(0, *shape)
  value, u = spectral.sigma(w, iterate(w, normal(1, shape[-1]), 1000))
  np.testing.assert_allclose(value, top(w), rtol=1e-3)
  np.testing.assert_allclose(top(w / value), 1.0, atol=1e-3)
  np.testing.assert_allclose(jnp.linalg.norm(u), 1.0, rtol=1e-5)


def test_one_step_is_that_of_the_algorithm():
  w, u = normal(0, 6, 4), normal(1, 4)
  matrix = np.asarray(w, np.float64).T  # [out, rest]
  v = matrix.T @ u / np.linalg.norm(matrix.T @ u)
  new_u = matrix @ v / np.linalg.norm(matrix @ v)
  value, got = spectral.sigma(w, u)
  np.testing.assert_allclose(got, new_u, atol=1e-6)
  np.testing.assert_allclose(value, new_u @ matrix @ v, rtol=1e-5)
  assert value < 0.99 * top(w)  # one step is not yet there


def test_one_step_each_tracks_a_moving_weight():
  start, end = normal(0, 32, 16), normal(1, 32, 16)
  u = iterate(start, normal(2, 16), 200)

  def step(u, t):
    value, u = spectral.sigma((1 - t) * start + t * end, u)
    return u, value

  value = jax.lax.scan(step, u, jnp.linspace(0, 1, 400))[1][-1]
  np.testing.assert_allclose(value, top(end), rtol=2e-2)


def test_gradient_is_the_outer_product_and_normalised_weights_feel_no_scale():
  w, u = normal(0, 5, 7), normal(1, 7)
  _, new_u = spectral.sigma(w, u)
  v = w @ u / jnp.linalg.norm(w @ u)
  gradient = jax.jit(jax.grad(lambda w: spectral.sigma(w, u)[0]))(w)
  np.testing.assert_allclose(gradient, jnp.outer(v, new_u), atol=1e-6)
  target = normal(2, 5, 7)
  loss = lambda w: jnp.sum(jnp.sin(w / spectral.sigma(w, u)[0]) * target)
  gradient = jax.jit(jax.grad(loss))(w)
  assert jnp.linalg.norm(gradient) > 0.1
  np.testing.assert_allclose(jnp.vdot(gradient, w), 0.0, atol=1e-4)


def test_second_derivative_holds_u_and_v_constant():
  """d^2 / dW^2 of f(W / sigma) is that of f with sigma the linear function u^T W v."""
  w, u = normal(0, 4, 3), normal(1, 3)
  _, new_u = spectral.sigma(w, u)
  outer = jnp.outer(w @ u / jnp.linalg.norm(w @ u), new_u)

  def second(scale):
    inner = jax.grad(lambda w: jnp.sum(jnp.sin(w / scale(w)) ** 2))
    return jax.jit(jax.grad(lambda w: jnp.sum(inner(w) ** 2)))(w)

  got = second(lambda w: spectral.sigma(w, u)[0])
  np.testing.assert_allclose(got, second(lambda w: jnp.vdot(outer, w)), rtol=1e-3, atol=1e-5)


class Mixed(nn.Module):
  """A weight of every kind, and parameters that are none."""

  @nn.compact
  def __call__(self, x, y, train=True):
    x = conv.Conv(8, 3, 1, name="conv")(x)
    x = norm.BatchNorm(name="norm")(x, train)
    x = attention.SelfAttention(name="attention")(x).mean((1, 2))
    return embed.ProjectionHead(3, name="head")(x, y)


X, Y = normal(0, 4, 4, 4, 2), jnp.array([0, 1, 2, 0])
NET = spectral.SpectralNorm(Mixed())


@pytest.fixture(scope="module")
def mixed():
  return jax.jit(lambda: core.build(NET, jax.random.key(0), X, Y))()


def run(net, params, stats, *args, train):
  return jax.jit(lambda p, s: core.apply(net, p, s, *args, train=train))(params, stats)


def test_every_weight_is_divided_and_nothing_else(mixed):
  params, stats = mixed
  weights = {p for p, w in traverse_util.flatten_dict(params["net"], sep="/").items() if w.ndim > 1}
  assert set(stats) == {"spectral", "batch_stats"} and set(stats["spectral"]["u"]) == weights
  assert {"conv/kernel", "head/dense/kernel", "head/embed/embedding"} < weights
  divided = jax.tree_util.tree_map_with_path(
    lambda path, w: (
      w
      if w.ndim < 2
      else w / spectral.sigma(w, stats["spectral"]["u"]["/".join(k.key for k in path)])[0]
    ),
    params["net"],
  )
  inner = {"batch_stats": stats["batch_stats"]["net"]}
  want, moved = run(Mixed(), divided, inner, X, Y, train=True)
  got, new = run(NET, params, stats, X, Y, train=True)
  np.testing.assert_allclose(got, want, atol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
    new["batch_stats"]["net"],
    moved["batch_stats"],
  )
  assert jnp.abs(got - run(Mixed(), params["net"], inner, X, Y, train=True)[0]).max() > 0.01


def test_u_moves_in_training_only(mixed):
  params, stats = mixed
  _, still = run(NET, params, stats, X, Y, train=False)
  jax.tree.map(np.testing.assert_array_equal, still, stats)
  _, new = run(NET, params, stats, X, Y, train=True)
  weights = traverse_util.flatten_dict(params["net"], sep="/")
  step = jax.jit(lambda w, u: {path: spectral.sigma(w[path], u[path])[1] for path in u})
  want = step(weights, stats["spectral"]["u"])
  for path, u in new["spectral"]["u"].items():
    np.testing.assert_allclose(u, want[path], atol=1e-6)
    assert np.abs(u - stats["spectral"]["u"][path]).max() > 1e-3, path


def test_skipped_weights_stay_and_nothing_left_is_an_error():
  def shapes(*skip):
    net = spectral.SpectralNorm(Mixed(), skip=skip)
    return jax.eval_shape(lambda: core.build(net, jax.random.key(0), X, Y))[1]["spectral"]["u"]

  assert set(shapes("embedding", "attention")) == {"conv/kernel", "head/dense/kernel"}
  with pytest.raises(ValueError, match="nothing to normalise"):
    shapes("kernel", "embedding")


def test_the_parameters_made_are_those_of_the_network_alone():
  """Not divided: an initialiser keeps its scale."""
  net = spectral.SpectralNorm(nn.Dense(16, kernel_init=nn.initializers.constant(3.0)))
  params, _ = core.build(net, jax.random.key(0), jnp.ones((1, 8)))
  np.testing.assert_array_equal(params["net"]["kernel"], 3.0)


def test_sigma_of_an_orthogonal_weight_is_one_at_once():
  for shape in ((16, 32), (3, 3, 4, 8)):  # more outputs than inputs, and fewer
    w = jax.jit(lambda shape=shape: nn.initializers.orthogonal()(jax.random.key(0), shape))()
    np.testing.assert_allclose(spectral.sigma(w, normal(1, shape[-1]))[0], 1.0, atol=1e-5)


def test_network_is_lipschitz_and_without_normalisation_it_is_not():
  plain = mlp.Discriminator((64, 64), activation="relu", kernel_init=nn.initializers.normal(1.0))
  net = spectral.SpectralNorm(plain)
  params, stats = core.build(net, jax.random.key(0), jnp.zeros((1, 8)), train=False)
  power = lambda i, s: core.apply(net, params, s, jnp.zeros((1, 8)))[1]
  stats = jax.jit(lambda s: jax.lax.fori_loop(0, 1000, power, s))(stats)
  x, y = normal(1, 10_000, 8), normal(2, 10_000, 8)
  y = y.at[5000:].set(x[5000:] + 0.01 * y[5000:])

  def ratio(net, params, stats):
    gap = run(net, params, stats, x, train=False)[0] - run(net, params, stats, y, train=False)[0]
    return np.max(np.abs(gap) / np.linalg.norm(x - y, axis=1))

  assert ratio(net, params, stats) <= 1 + 1e-3
  assert ratio(plain, params["net"], {}) > 10


def test_gradient_accumulation_keeps_u():
  """Every part of a batch starts from the same u, so their mean is that of the whole batch."""
  net, x = spectral.SpectralNorm(mlp.Discriminator((4,))), normal(0, 8, 3)
  params, stats = core.build(net, jax.random.key(0), x)

  def loss(p, b):
    out, new = core.apply(net, p["d"], stats, b["x"])
    return out.mean(), (new, {})

  def run(k):
    step = jax.jit(lambda p: core.gradients(loss, {"d": p}, ["d"], {"x": x}, accumulate=k))
    (_, (new, _)), grads = step(params)
    return new, grads

  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), run(1), run(4))
