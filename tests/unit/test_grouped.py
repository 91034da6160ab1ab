"""Grouped convolution against XLA's own form, in values, first and second derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm.nn import conv, grouped


def normal(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


CASES = [  # groups, inputs and outputs of a group, kernel, stride, padding: every form once
  (6, 1, 1, 3, 2, "SAME"),  # depthwise
  (3, 1, 2, 3, 1, "SAME"),
  (4, 2, 3, 3, 2, ((1, 0), (0, 2))),
  (2, 8, 3, 4, 2, 1),
  (1, 3, 2, 3, 1, "VALID"),
]


@pytest.mark.parametrize("groups, inputs, outputs, kernel, strides, padding", CASES)
def test_equals_plain_form_to_second_order(groups, inputs, outputs, kernel, strides, padding):
  x, w = normal(0, 2, 5, 6, groups * inputs), normal(1, kernel, kernel, inputs, groups * outputs)

  def everything(form):
    def loss(x, w):
      with conv.form(form):
        y = grouped.grouped(x, w, groups=groups, strides=strides, padding=padding)
      return jnp.mean(jnp.sin(y)), y

    def penalty(x, w):
      (gx, gw), y = jax.grad(loss, (0, 1), has_aux=True)(x, w)
      return jnp.sum(gx**2) + jnp.sum(jnp.tanh(gw)), (gx, gw, y)

    return jax.jit(jax.grad(penalty, (0, 1), has_aux=True))(x, w)

  for a, b in zip(jax.tree.leaves(everything("cpu")), jax.tree.leaves(everything("plain"))):
    np.testing.assert_allclose(a, b, atol=2e-5 * float(jnp.abs(b).max() + 1e-9))


def test_groups_are_separate_convolutions():
  x, w = normal(0, 1, 4, 4, 4), normal(1, 3, 3, 2, 6)
  y = grouped.grouped(x, w, groups=2)
  np.testing.assert_allclose(y[..., :3], conv.conv(x[..., :2], w[..., :3]), atol=1e-5)
  np.testing.assert_allclose(y[..., 3:], conv.conv(x[..., 2:], w[..., 3:]), atol=1e-5)


def test_errors_say_what_must_divide():
  with pytest.raises(ValueError, match="2 groups"):
    grouped.grouped(jnp.ones((1, 4, 4, 4)), jnp.ones((3, 3, 3, 4)), groups=2)
  with pytest.raises(ValueError, match="2 groups"):
    grouped.grouped(jnp.ones((1, 4, 4, 4)), jnp.ones((3, 3, 2, 3)), groups=2)
