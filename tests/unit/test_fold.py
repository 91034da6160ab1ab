"""Folded convolutions against the plain forms, in values, first and second derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm import inspection
from gm.nn import conv, fold


def normal(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def up_conv_by_numpy(x, w):
  x = np.asarray(x, np.float64).repeat(2, 1).repeat(2, 2)
  half = w.shape[0] // 2
  h, width = x.shape[1:3]
  x = np.pad(x, ((0, 0), (half, half), (half, half), (0, 0)))
  parts = [
    x[:, i : i + h, j : j + width] @ np.asarray(w[i, j], np.float64)
    for i in range(w.shape[0])
    for j in range(w.shape[1])
  ]
  return sum(parts)


def conv_pool_by_numpy(x, w):
  x, half = np.asarray(x, np.float64), w.shape[0] // 2
  n, h, width, _ = x.shape
  x = np.pad(x, ((0, 0), (half, half), (half, half), (0, 0)))
  y = sum(
    x[:, i : i + h, j : j + width] @ np.asarray(w[i, j], np.float64)
    for i in range(w.shape[0])
    for j in range(w.shape[1])
  )
  return y.reshape(n, h // 2, 2, width // 2, 2, -1).mean((2, 4))


PAIRS = [(fold.up_conv, up_conv_by_numpy), (fold.conv_pool, conv_pool_by_numpy)]


@pytest.mark.parametrize("kernel, size", [(3, (6, 4)), (1, (4, 6)), (5, (8, 6))])
@pytest.mark.parametrize("folded, by_numpy", PAIRS)
@pytest.mark.parametrize("form", ["cpu", "plain"])
def test_equals_numpy(folded, by_numpy, kernel, size, form):
  x, w = normal(0, 2, *size, 3), normal(1, kernel, kernel, 3, 4)
  with conv.form(form):
    y = folded(x, w)
  np.testing.assert_allclose(y, by_numpy(x, w), atol=2e-5)


@pytest.mark.parametrize("folded", [fold.up_conv, fold.conv_pool])
def test_equals_the_plain_form_to_second_order(folded):
  x, w = normal(0, 2, 4, 6, 3), normal(1, 3, 3, 3, 4)

  def everything(form):
    def loss(x, w):
      with conv.form(form):
        return jnp.mean(jnp.sin(folded(x, w)))

    def penalty(x, w):  # its gradient holds every second derivative: xx, xw, wx, ww
      gx, gw = jax.grad(loss, (0, 1))(x, w)
      return 100 * jnp.sum(gx**2) + jnp.sum(jnp.tanh(gw)), (gx, gw)

    return jax.jit(jax.grad(penalty, (0, 1), has_aux=True))(x, w)

  for a, b in zip(jax.tree.leaves(everything("cpu")), jax.tree.leaves(everything("plain"))):
    assert jnp.abs(b).max() > 1e-3
    np.testing.assert_allclose(a, b, atol=2e-5 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("function", [fold.up_conv, fold.conv_pool])
def test_a_cpu_does_four_ninths_of_the_products(function):
  def products(form):
    with conv.form(form):
      jaxpr = jax.make_jaxpr(lambda *a: function(*a))(
        jnp.zeros((1, 64, 64, 8)), jnp.zeros((3, 3, 8, 8))
      )
    return inspection.flops(jaxpr.jaxpr)

  # the edges of the transposed one add a little
  np.testing.assert_allclose(products("cpu") / products("plain"), 4 / 9, rtol=0.05)


@pytest.mark.parametrize(
  "layer, function", [(fold.UpConv, fold.up_conv), (fold.ConvPool, fold.conv_pool)]
)
def test_layers(layer, function):
  x = normal(0, 2, 4, 4, 3)
  net = layer(5, bias_init=jax.nn.initializers.normal(1.0))
  variables = net.init(jax.random.key(0), x)
  params = variables["params"]
  assert params["kernel"].shape == (3, 3, 3, 5) and params["bias"].shape == (5,)
  np.testing.assert_allclose(
    net.apply(variables, x), function(x, params["kernel"]) + params["bias"], atol=1e-6
  )
  assert set(layer(5, use_bias=False).init(jax.random.key(0), x)["params"]) == {"kernel"}
  assert layer(5, dtype=jnp.bfloat16).apply(variables, x).dtype == jnp.bfloat16


def test_errors_say_what_is_allowed():
  with pytest.raises(ValueError, match="square and odd"):
    fold.up_conv(jnp.zeros((1, 4, 4, 1)), jnp.zeros((4, 4, 1, 1)))
  with pytest.raises(ValueError, match="image_size"):
    fold.conv_pool(jnp.zeros((1, 7, 7, 1)), jnp.zeros((3, 3, 1, 1)))
