"""The convolution triple against the plain XLA form, in values, first and second derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from gm.nn import bilinear, conv


def normal(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def assert_close(got, want, tolerance=2e-5):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance * float(jnp.abs(b).max() + 1e-9)),
    got,
    want,
  )


# kernel, strides, padding, image size, input channels; the first takes the sub-pixel form
CASES = [
  (4, 2, "SAME", (16, 18), 6),
  (4, 2, ((1, 1), (1, 1)), (7, 9), 2),
  (5, 2, "SAME", (7, 8), 6),
  (3, 1, "SAME", (6, 5), 6),
  (3, 2, "VALID", (8, 8), 2),
  (4, 1, "VALID", (4, 4), 6),
  (5, 1, ((2, 1), (0, 3)), (5, 7), 3),
  ((3, 5), (2, 1), "VALID", (9, 8), 6),
  (7, 1, "VALID", (9, 8), 3),
]


@pytest.mark.parametrize("kernel, strides, padding, size, channels", CASES)
@pytest.mark.parametrize("name", ["conv", "conv_transpose"])
def test_equals_plain_form_to_second_order(name, kernel, strides, padding, size, channels):
  function = getattr(conv, name)
  x, w = normal(0, 2, *size, channels), normal(1, *conv._pair(kernel), channels, 5)

  def everything(form):
    def loss(x, w):
      with conv.form(form):
        y = function(x, w, strides=strides, padding=padding)
      return jnp.mean(jnp.sin(y)), y

    def penalty(x, w):  # its gradient holds every second derivative: xx, xw, wx, ww
      (gx, gw), y = jax.grad(loss, (0, 1), has_aux=True)(x, w)
      return jnp.sum(gx**2) + jnp.sum(jnp.tanh(gw)), (gx, gw, y)

    return jax.jit(jax.grad(penalty, (0, 1), has_aux=True))(x, w)

  assert_close(everything("cpu"), everything("plain"))


@pytest.mark.parametrize("kernel, strides, padding, size, channels", CASES)
def test_adjoints(kernel, strides, padding, size, channels):
  """<C(x, w), y> = <x, T(y, w)> = <w, W(x, y)>: the definition."""
  strides, kernel = conv._pair(strides), conv._pair(kernel)
  pads = padding if not isinstance(padding, str) else ()
  pads = pads or tuple(lax.padtype_to_pads(size, kernel, strides, padding))
  g = bilinear.Geometry(size, kernel, strides, pads)
  x, w, y = normal(0, 2, *size, channels), normal(1, *kernel, channels, 5), normal(2, 2, *g.out, 5)
  inner = jnp.vdot(bilinear.conv(g, x, w), y)
  np.testing.assert_allclose(
    jnp.vdot(x, bilinear.adjoint_in_x(g, y, w)), inner, rtol=1e-3, atol=1e-3
  )
  np.testing.assert_allclose(
    jnp.vdot(w, bilinear.adjoint_in_w(g, x, y)), inner, rtol=1e-3, atol=1e-3
  )


def test_third_order():
  x, w = normal(0, 1, 6, 6, 2), normal(1, 4, 4, 2, 3)

  def third(form):
    def f(x):
      with conv.form(form):
        return jnp.sum(jnp.sin(conv.conv(x, w, strides=2)))

    for _ in range(2):
      f = lambda x, f=f: jnp.sum(jax.grad(f)(x) ** 2)
    return jax.jit(jax.grad(f))(x)

  assert_close(third("cpu"), third("plain"), 1e-4)


def test_value_by_hand():
  x = jnp.arange(9.0).reshape(1, 3, 3, 1)
  w = jnp.array([[1.0, 2.0], [3.0, 4.0]])[:, :, None, None]
  y = conv.conv(x, w, padding="VALID")[0, :, :, 0]
  assert y.tolist() == [[27.0, 37.0], [57.0, 67.0]]  # 0*1 + 1*2 + 3*3 + 4*4 = 27
  up = conv.conv_transpose(jnp.ones((1, 1, 1, 1)), w, padding="VALID")[0, :, :, 0]
  assert up.tolist() == [[4.0, 3.0], [2.0, 1.0]]  # the kernel, turned


@pytest.mark.parametrize("kernel, strides, padding, size, channels", CASES)
def test_layers_equal_flax(kernel, strides, padding, size, channels):
  x, pair = normal(0, 3, *size, channels), conv._pair
  for ours, theirs in ((conv.Conv, nn.Conv), (conv.ConvTranspose, nn.ConvTranspose)):
    a = ours(5, kernel, strides, padding, bias_init=nn.initializers.normal(1.0))
    b = theirs(5, pair(kernel), strides=pair(strides), padding=padding)
    variables = a.init(jax.random.key(0), x)
    assert_close(a.apply(variables, x), b.apply(variables, x))


def test_leading_axes_and_dtype():
  layer = conv.Conv(4, 4, 2, dtype=jnp.bfloat16)
  x = normal(0, 2, 3, 8, 8, 2)
  variables = layer.init(jax.random.key(0), x)
  assert variables["params"]["kernel"].dtype == jnp.float32
  y = layer.apply(variables, x)
  assert y.shape == (2, 3, 4, 4, 4) and y.dtype == jnp.bfloat16
  want = conv.Conv(4, 4, 2).apply(variables, x)
  assert_close(y.astype(jnp.float32), want, 0.03)
  g = jax.grad(lambda v: jnp.sum(layer.apply(v, x).astype(jnp.float32)))(variables)
  assert g["params"]["kernel"].dtype == jnp.float32


def test_only_fast_convolutions_inside_a_loop():
  """In a loop's body XLA on a CPU leaves permuted convolutions on its naive path."""

  def step(i, w):
    x = normal(0, 4, 8, 8, 6)
    f = lambda x, w: jnp.sum(
      jnp.sin(conv.conv_transpose(conv.conv(x, w, strides=2), w.swapaxes(2, 3)))
    )
    gp = lambda w: jnp.sum(jax.grad(f)(x, w) ** 2)
    return w - 0.1 * jax.grad(gp)(w)

  loop = jax.jit(lambda w, n: lax.fori_loop(0, n, step, w))
  text = loop.lower(normal(1, 4, 4, 6, 6), 3).compile().as_text()
  lines = [line for line in text.splitlines() if " convolution(" in line]
  assert lines
  for line in lines:
    assert "b01f_01io->b01f" in line and "hs_dilate=" not in line and "reversal" not in line, line


def test_errors_say_what_is_allowed():
  x = jnp.zeros((1, 4, 4, 2))
  with pytest.raises(ValueError, match="SAME, VALID"):
    conv.conv(x, jnp.zeros((3, 3, 2, 1)), padding="same")
  with pytest.raises(ValueError, match="kernel"):
    conv.conv(x, jnp.zeros((3, 3, 3, 1)))
  with pytest.raises(ValueError, match="does not fit"):
    conv.conv(x, jnp.zeros((5, 5, 2, 1)), padding="VALID")
  with pytest.raises(ValueError, match="auto, cpu or plain"), conv.form("fast"):
    pass
