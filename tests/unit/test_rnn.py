"""LSTM against a loop in NumPy, and its derivatives against plain autodiff."""

import jax
import jax.numpy as jnp
import numpy as np

from gm.nn import rnn


def normal(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


X, SIZE = normal(0, 3, 6, 2), 4
MASK = np.arange(6) < np.array([6, 4, 1])[:, None]


def variables(net):
  made = jax.jit(net.init)(jax.random.key(0), X)
  return jax.tree.map(lambda p: 2 * p + 0.1, made)  # biases too


def by_loop(v, x, h, c, mask, forget_bias):
  sigmoid = lambda a: 1 / (1 + np.exp(-a))
  kernel, bias = (np.asarray(v["params"][n], np.float64) for n in ("kernel", "bias"))
  h, c, out = np.array(h, np.float64), np.array(c, np.float64), []
  for t in range(x.shape[1]):
    i, f, g, o = np.split(np.concatenate([x[:, t], h], 1) @ kernel + bias, 4, axis=1)
    new_c = sigmoid(f + forget_bias) * c + sigmoid(i) * np.tanh(g)
    keep = mask[:, t, None]
    h, c = np.where(keep, sigmoid(o) * np.tanh(new_c), h), np.where(keep, new_c, c)
    out.append(h)
  return np.stack(out, 1), (h, c)


def test_equals_a_loop():
  net = rnn.LSTM(SIZE, forget_bias=0.5)
  v, zero, everything = variables(net), np.zeros((3, SIZE)), np.ones((3, 6), bool)
  assert v["params"]["kernel"].shape == (6, 16) and v["params"]["bias"].shape == (16,)
  carry = (normal(1, 3, SIZE), normal(2, 3, SIZE))
  for options, start, mask in (
    ({}, (zero, zero), everything),
    ({"carry": carry, "mask": MASK}, carry, MASK),
  ):
    got = net.apply(v, X, **options)
    want = by_loop(v, X, *start, mask, 0.5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)


def test_reverse_reads_from_the_end_and_skips_padding():
  v = variables(rnn.LSTM(SIZE))
  got, (h, _) = rnn.LSTM(SIZE, reverse=True).apply(v, X, mask=MASK)
  np.testing.assert_array_equal(got[:, 0], h)
  for n, length in enumerate((6, 4, 1)):
    alone, _ = rnn.LSTM(SIZE).apply(v, X[n : n + 1, :length][:, ::-1])
    np.testing.assert_allclose(got[n, :length], alone[0, ::-1], atol=1e-6)


def test_derivatives_equal_autodiff_to_second_order():
  net = rnn.LSTM(SIZE)
  carry = (normal(1, 3, SIZE), normal(2, 3, SIZE))

  def everything(lstm):
    def loss(v, x, carry):
      kernel, size = v["params"]["kernel"], x.shape[-1]
      inputs = x.swapaxes(0, 1) @ kernel[:size] + v["params"]["bias"]
      hs, cs = lstm(inputs, MASK.T[..., None], kernel[size:], *carry)
      return jnp.sum(jnp.sin(hs)) + jnp.sum(cs[2:] ** 2)  # h and c of many steps

    first = jax.grad(loss, (0, 1, 2))
    penalty = lambda *a: sum(jnp.sum(jnp.tanh(g)) for g in jax.tree.leaves(first(*a)))
    both = jax.jit(lambda *a: (first(*a), jax.grad(penalty, (0, 1, 2))(*a)))
    return jax.tree.leaves(both(variables(net), X, carry))

  plain = lambda *a: rnn._run(*a)[:2]
  for a, b in zip(everything(rnn._lstm), everything(plain), strict=True):
    assert np.abs(b).max() > 1e-2
    np.testing.assert_allclose(a, b, atol=3e-5 * (1 + float(jnp.abs(b).max())))


def test_the_kernel_gradient_is_one_product_after_the_loop():
  net = rnn.LSTM(SIZE)
  loss = lambda v: jnp.sum(net.apply(v, X)[0])
  jaxpr = jax.make_jaxpr(jax.grad(loss))(variables(net)).jaxpr
  loops = [e for e in jaxpr.eqns if e.primitive.name == "scan"]
  assert len(loops) == 2 and all(e.params["unroll"] == 1 for e in loops)
  for loop in loops:  # h K forward, da K^T backward
    inside = [e.primitive.name for e in loop.params["jaxpr"].jaxpr.eqns]
    assert inside.count("dot_general") == 1


def test_half_precision_stays():
  net = rnn.LSTM(SIZE, dtype=jnp.bfloat16)
  v = variables(net)
  y, (h, _) = net.apply(v, X)
  assert v["params"]["kernel"].dtype == jnp.float32 and y.dtype == h.dtype == jnp.bfloat16
  np.testing.assert_allclose(y.astype(jnp.float32), rnn.LSTM(SIZE).apply(v, X)[0], atol=0.05)
