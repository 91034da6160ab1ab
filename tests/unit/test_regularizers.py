"""Penalties on critics whose gradients are known by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm import regularizers


def images(shape=(5, 4, 3, 2), seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


W = images((4, 3, 2), seed=1)
NORM = float(np.sqrt((np.asarray(W, np.float64) ** 2).sum()))


def linear(x, w=W):
  return jnp.einsum("bhwc,hwc->b", x, w) + 0.3


def close(got, want, rtol=1e-5, atol=1e-6):
  np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)


def test_penalty_of_a_linear_critic_is_its_norm_minus_one_squared():
  for x in (images(), 10 * images(seed=3)):  # the gradient does not depend on the point
    close(regularizers.gradient_penalty(linear, x), (NORM - 1) ** 2)
  close(regularizers.gradient_penalty(linear, images(), target=0.0), NORM**2)
  close(regularizers.gradient_penalty(linear, images((11, 4, 3, 2))), (NORM - 1) ** 2)


def test_norm_is_over_the_whole_example_unless_axes_say_otherwise():
  channels = np.sqrt((np.asarray(W) ** 2).sum(-1))  # what the norm over channels would be
  assert abs(((channels - 1) ** 2).mean() - (NORM - 1) ** 2) > 1
  close(regularizers.gradient_penalty(linear, images(), axes=(3,)), ((channels - 1) ** 2).mean())
  close(regularizers.gradient_penalty(linear, images(), axes=(1, 2, 3)), (NORM - 1) ** 2)


def test_penalty_averages_over_examples_of_different_slope():
  scale = jnp.array([0.0, 1.0, 2.0, 5.0])[:, None]
  x = jnp.ones((4, 3))
  critic = lambda x: 0.5 * jnp.sum(scale * x**2, axis=1) / jnp.sqrt(3.0)  # norm = scale at x = 1
  close(regularizers.gradient_penalty(critic, x), np.mean([1, 0, 1, 16]))


def test_one_sided_penalty_is_free_below_the_target():
  half, double = (lambda x, s=s: linear(x, s * W / NORM) for s in (0.5, 2.0))
  close(regularizers.gradient_penalty(half, images()), 0.25)
  close(regularizers.gradient_penalty(half, images(), one_sided=True), 0.0, atol=0)
  close(regularizers.gradient_penalty(double, images()), 1.0)
  close(regularizers.gradient_penalty(double, images(), one_sided=True), 1.0)
  close(regularizers.gradient_penalty(double, images(), target=3.0, one_sided=True), 0.0, atol=0)


def test_penalty_differentiates_through_a_critic_of_zero_slope():
  penalty = lambda w: regularizers.gradient_penalty(lambda x: linear(x, w), images())
  value, grad = jax.value_and_grad(penalty)(jnp.zeros_like(W))
  close(value, 1.0, rtol=1e-4)
  assert np.isfinite(np.asarray(grad)).all()  # the root alone gives NaN here


def mlp(params, x):
  h = jnp.tanh(x.reshape(len(x), -1) @ params["w1"] + params["b1"])
  return h @ params["w2"]


def mlp_params():
  rng = np.random.default_rng(2)
  shapes = {"w1": (24, 6), "b1": (6,), "w2": (6,)}
  return {k: jnp.asarray(rng.normal(size=s) * 0.7) for k, s in shapes.items()}


@pytest.mark.parametrize("penalty", ["two-sided", "one-sided", "r1"])
def test_gradient_in_the_weights_of_the_critic_equals_finite_differences(penalty):
  with jax.enable_x64(True):
    x, params = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4, 3, 2))), mlp_params()

    def loss(p):
      critic = lambda x: mlp(p, x)
      if penalty == "r1":
        return regularizers.r1(critic, x)
      return regularizers.gradient_penalty(critic, x, one_sided=penalty == "one-sided")

    loss, grads = jax.jit(loss), jax.jit(jax.grad(loss))(params)
    assert float(loss(params)) > 1e-2
    for name, at in (("w1", (3, 2)), ("w1", (20, 5)), ("b1", (1,)), ("w2", (4,))):
      step = lambda e: {**params, name: params[name].at[at].add(e)}
      slope = (loss(step(1e-5)) - loss(step(-1e-5))) / 2e-5
      assert abs(slope) > 1e-4
      close(grads[name][at], slope, rtol=1e-5)


def test_linear_critic_gradient_by_hand():
  # d/dw (||w|| - 1)^2 = 2 (||w|| - 1) w / ||w||;  d/dw ||w||^2 = 2 w
  gp = jax.grad(lambda w: regularizers.gradient_penalty(lambda x: linear(x, w), images()))(W)
  close(gp, 2 * (NORM - 1) * W / NORM, rtol=1e-4)
  close(jax.grad(lambda w: regularizers.r1(lambda x: linear(x, w), images()))(W), 2 * W)


def test_r1_and_r2_of_a_linear_critic_are_the_squared_norm():
  for size in (1, 5):  # a mean over examples, a sum over pixels
    close(regularizers.r1(linear, images((size, 4, 3, 2))), NORM**2)
    close(regularizers.r2(linear, images((size, 4, 3, 2))), NORM**2)


def test_r1_averages_squared_norms_of_a_quadratic_critic():
  x = images()
  critic = lambda x: 0.5 * jnp.sum(x**2, axis=(1, 2, 3))  # gradient x
  close(regularizers.r1(critic, x), (np.asarray(x) ** 2).sum(axis=(1, 2, 3)).mean())


def test_no_gradient_reaches_the_points():
  critic = lambda x: jnp.sum(x**3, axis=(1, 2, 3))
  for penalty in (regularizers.gradient_penalty, regularizers.r1, regularizers.r2):
    close(jax.grad(lambda x: penalty(critic, x))(images()), np.zeros((5, 4, 3, 2)), atol=0)


def test_half_precision_critic_gives_a_float32_penalty():
  critic = lambda x: linear(x.astype(jnp.bfloat16), W.astype(jnp.bfloat16))
  value = regularizers.r1(critic, images().astype(jnp.bfloat16))
  assert value.dtype == jnp.float32
  close(value, NORM**2, rtol=1e-2)


def test_interpolation_draws_one_position_for_each_example():
  real, fake = jnp.ones((2000, 3, 2, 1)), jnp.zeros((2000, 3, 2, 1))
  eps = np.asarray(regularizers.interpolate(jax.random.key(0), real, fake))
  assert np.ptp(eps.reshape(2000, -1), axis=1).max() == 0  # one number within an example
  eps = np.sort(eps[:, 0, 0, 0])
  assert len(np.unique(eps)) > 1990  # and another for each
  gap = np.abs(eps - (np.arange(2000) + 0.5) / 2000).max()
  assert gap < 1.63 / np.sqrt(2000)  # Kolmogorov-Smirnov against U(0, 1), 1% level


def test_interpolation_lies_on_the_line_between_the_pair():
  real, fake = images(), images(seed=4)
  x = regularizers.interpolate(jax.random.key(1), real, fake)
  eps = ((x - fake) / (real - fake)).reshape(5, -1)
  close(eps, np.tile(eps[:, :1], (1, 24)), rtol=1e-3, atol=1e-3)
  assert (np.asarray(eps) > -1e-3).all() and (np.asarray(eps) < 1 + 1e-3).all()


def test_interpolation_refuses_to_broadcast():
  with pytest.raises(ValueError, match="batch_size"):
    regularizers.interpolate(jax.random.key(0), jnp.ones((4, 3)), jnp.ones((1, 3)))


def test_clipping_bounds_every_leaf_and_keeps_what_is_inside():
  params = {"conv": {"kernel": jnp.array([[-3.0, 0.004]]), "bias": jnp.array([5.0])}}
  clipped = regularizers.clip_weights({**params, "scale": jnp.ones(2)}, 0.01)
  close(clipped["conv"]["kernel"], [[-0.01, 0.004]], atol=0)
  close(clipped["conv"]["bias"], [0.01], atol=0)
  close(clipped["scale"], [0.01, 0.01], atol=0)
  with pytest.raises(ValueError, match="clip"):
    regularizers.clip_weights(params, 0.0)


def rows(kernel):
  """W as [out, rest] from a kernel with the outputs last."""
  return np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1]).T


def test_orthogonal_penalty_is_zero_on_orthogonal_matrices():
  q = jnp.asarray(np.linalg.qr(np.random.default_rng(5).normal(size=(6, 6)))[0], jnp.float32)
  for kernel in (q, q[:, :4], q.reshape(3, 2, 6)[..., :5]):  # square, tall, a convolution's
    for off_diagonal in (True, False):
      close(regularizers.orthogonal(kernel, off_diagonal=off_diagonal), 0.0, atol=1e-10)
  # scaled rows stay orthogonal: free in BigGAN's form, (9 - 1)^2 for each row in the plain one
  close(regularizers.orthogonal(3 * q), 0.0, atol=1e-8)
  close(regularizers.orthogonal(3 * q, off_diagonal=False), 6 * 64.0)


def test_orthogonal_penalty_against_numpy_on_a_convolution():
  kernel = images((3, 3, 2, 4))
  gram = rows(kernel) @ rows(kernel).T
  off = gram * (1 - np.eye(4))
  close(regularizers.orthogonal(kernel), (off**2).sum())
  close(regularizers.orthogonal(kernel, off_diagonal=False), ((gram - np.eye(4)) ** 2).sum())
  # the reference code adds 2 s (W W^T o (1 - I)) W to the gradient, half of the penalty's
  grad = jax.grad(regularizers.orthogonal)(kernel)
  close(0.5 * rows(grad), 2 * off @ rows(kernel), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(5, 12), (12, 5), (3, 3, 2, 18), (3, 3, 2, 40)])
@pytest.mark.parametrize("off_diagonal", [True, False])
def test_orthogonal_penalty_and_gradient_by_either_product(shape, off_diagonal):
  kernel = images(shape)
  w, out = rows(kernel), shape[-1]
  excess = w @ w.T - np.eye(out)
  if off_diagonal:
    np.fill_diagonal(excess, 0.0)
  penalty = lambda w: regularizers.orthogonal(w, off_diagonal=off_diagonal)
  value, grad = jax.value_and_grad(penalty)(kernel)
  close(value, (excess**2).sum())
  close(rows(grad), 4 * excess @ w, rtol=1e-4, atol=1e-3)
  products = str(jax.make_jaxpr(penalty)(kernel))
  assert (f"f32[{out},{out}]" in products) == (out <= w.shape[1])


def test_orthogonal_penalty_sums_kernels_and_skips_vectors_and_embeddings():
  params = {
    "conv": {"kernel": images((3, 3, 2, 4)), "bias": jnp.ones(4)},
    "dense": {"kernel": images((5, 3))},
    "norm": {"scale": jnp.ones(7)},
    "label": {"embedding": images((10, 8))},
  }
  parts = [regularizers.orthogonal(params[k]["kernel"]) for k in ("conv", "dense")]
  close(regularizers.orthogonal(params), sum(parts))
  close(regularizers.orthogonal(params, skip=("label", "dense")), parts[0])
  more = regularizers.orthogonal(params, skip=())
  close(more, sum(parts) + regularizers.orthogonal(params["label"]["embedding"]))
  with pytest.raises(ValueError, match="orthogonal_weight"):
    regularizers.orthogonal({"norm": params["norm"]})
