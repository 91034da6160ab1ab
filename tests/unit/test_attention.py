"""Attention against a loop in NumPy, and its derivatives against plain autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm.nn import attention


def normal(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def by_loop(q, k, v, scale, seen):
  q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
  out = np.zeros((*q.shape[:-1], v.shape[-1]))
  for index in np.ndindex(*q.shape[:-1]):
    lead, t = index[:-1], index[-1]
    keys = [s for s in range(k.shape[-2]) if seen[(*lead, t, s)]]
    score = np.array([scale * q[index] @ k[(*lead, s)] for s in keys])
    weight = np.exp(score) / np.exp(score).sum()
    out[index] = sum(w * v[(*lead, s)] for w, s in zip(weight, keys))
  return out


Q, K, V = normal(0, 2, 3, 4, 5), normal(1, 2, 3, 6, 5), normal(2, 2, 3, 6, 2)
SOME = np.random.default_rng(3).random((2, 1, 4, 6)) < 0.7
SOME[..., 0] = True
LATER = np.arange(6) <= np.arange(4)[:, None] + 2  # the queries are the last 4 positions


@pytest.mark.parametrize(
  "options, scale, seen",
  [
    ({}, 5**-0.5, np.ones((4, 6), bool)),
    ({"scale": 2.0}, 2.0, np.ones((4, 6), bool)),
    ({"causal": True}, 5**-0.5, LATER),
    ({"mask": SOME}, 5**-0.5, SOME),
    ({"mask": SOME, "causal": True}, 5**-0.5, SOME & LATER),
  ],
)
def test_equals_a_loop(options, scale, seen):
  want = by_loop(Q, K, V, scale, np.broadcast_to(seen, (2, 3, 4, 6)))
  np.testing.assert_allclose(attention.attend(Q, K, V, **options), want, atol=1e-5)


def test_derivatives_equal_autodiff_to_second_order():
  def plain(q, k, v):
    scores = q @ k.swapaxes(-1, -2) * 5**-0.5
    return jax.nn.softmax(jnp.where(LATER, scores, -jnp.inf)) @ v

  def everything(f):
    loss = lambda *a: jnp.sum(jnp.sin(f(*a)))
    first = jax.grad(loss, (0, 1, 2))
    penalty = lambda *a: sum(jnp.sum(jnp.tanh(g)) for g in first(*a))
    return jax.jit(lambda *a: (first(*a), jax.grad(penalty, (0, 1, 2))(*a)))(Q, K, V)

  ours = everything(lambda *a: attention.attend(*a, causal=True))
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(everything(plain)), strict=True):
    assert np.abs(b).max() > 0.1
    np.testing.assert_allclose(a, b, atol=2e-5)


def test_large_scores_do_not_overflow_and_half_precision_stays():
  out = attention.attend(1e3 * Q, 1e3 * K, V)
  best = np.argmax(np.asarray(Q) @ np.asarray(K).swapaxes(-1, -2), -1)
  np.testing.assert_allclose(out, np.take_along_axis(np.asarray(V), best[..., None], -2), atol=1e-4)
  half = [a.astype(jnp.bfloat16) for a in (Q, K, V)]
  out = attention.attend(*half)
  assert out.dtype == jnp.bfloat16
  np.testing.assert_allclose(out.astype(jnp.float32), attention.attend(Q, K, V), atol=0.05)


def start(net, *args):
  """Variables with biases that are not zero."""
  variables = jax.jit(net.init)(jax.random.key(0), *args)
  return jax.tree.map(lambda p: p + 0.1, variables)


def test_heads_are_consecutive_features():
  """Against one head at a time, its features cut out by hand."""
  x, net = normal(0, 2, 5, 8), attention.MultiHeadAttention(2, causal=True)
  variables = start(net, x)
  p = variables["params"]
  qkv = x @ p["qkv"]["kernel"] + p["qkv"]["bias"]
  heads = [
    attention.attend(*(qkv[..., 8 * i + 4 * h : 8 * i + 4 * h + 4] for i in range(3)), causal=True)
    for h in range(2)
  ]
  want = jnp.concatenate(heads, -1) @ p["out"]["kernel"] + p["out"]["bias"]
  np.testing.assert_allclose(jax.jit(net.apply)(variables, x), want, atol=1e-5)
  assert sum(a.size for a in jax.tree.leaves(p)) == 4 * 8 * 8 + 4 * 8


def test_who_sees_whom():
  x, net = normal(0, 1, 5, 8), attention.MultiHeadAttention(2, causal=True)
  variables, run = start(net, x), jax.jit(net.apply)
  changed = np.abs(run(variables, x.at[:, 3].add(1.0)) - run(variables, x)).max((0, 2))
  assert (changed[:3] == 0).all() and (changed[3:] > 1e-4).all()


def test_context_and_mask():
  x, context = normal(0, 2, 3, 8), normal(1, 2, 6, 4)
  net = attention.MultiHeadAttention(4)
  variables = start(net, x, context)
  assert variables["params"]["kv"]["kernel"].shape == (4, 16)
  short = jnp.arange(6) < 4
  got = net.apply(variables, x, context, mask=short)
  assert got.shape == x.shape
  np.testing.assert_allclose(got, net.apply(variables, x, context[:, :4]), atol=1e-6)


@pytest.mark.parametrize("causal", [True, False])
def test_a_sequence_in_parts_is_the_sequence(causal):
  """By keys and values that are kept, in parts of 2, 1 and 3 positions of 6, the rest to come."""
  x, net = normal(0, 2, 6, 8), attention.MultiHeadAttention(2, causal=causal)
  variables = start(net, x)

  @jax.jit
  def both(variables, x):
    cache = (jnp.full((2, 2, 7, 4), 1e3),) * 2  # what is not written yet must not be seen
    found = []
    for first, last in ((0, 2), (2, 3), (3, 6)):
      earlier = jnp.arange(7) <= jnp.arange(first, last)[:, None]
      part, cache = net.apply(
        variables, x[:, first:last], mask=None if causal else earlier, cache=cache, position=first
      )
      found.append(part)
    whole = attention.MultiHeadAttention(2, causal=True).apply(variables, x)
    return jnp.concatenate(found, 1), whole

  np.testing.assert_allclose(*both(variables, x), atol=1e-5)


def test_self_attention_by_hand():
  """Against NumPy, with gamma set; the identity where it is 0."""
  x, net = normal(0, 2, 4, 6, 24), attention.SelfAttention()  # of 3 features, so a scale shows
  variables = jax.jit(net.init)(jax.random.key(0), x)
  np.testing.assert_array_equal(net.apply(variables, x), x)
  p = variables["params"]
  kernels = {n: np.asarray(p[n]["kernel"][0, 0], np.float64) for n in ("theta", "phi", "g", "o")}
  assert {n: k.shape for n, k in kernels.items()} == {
    "theta": (24, 3),
    "phi": (24, 3),
    "g": (24, 12),
    "o": (12, 24),
  }
  pool = lambda a: a.reshape(2, 2, 2, 3, 2, -1).max((2, 4)).reshape(2, 6, -1)
  theta = (x @ kernels["theta"]).reshape(2, 24, -1)
  scores = theta @ pool(x @ kernels["phi"]).swapaxes(1, 2)
  weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
  y = (weights @ pool(x @ kernels["g"])).reshape(2, 4, 6, -1) @ kernels["o"]
  p = {**p, "gamma": jnp.array(0.5)}
  np.testing.assert_allclose(net.apply({"params": p}, x), x + 0.5 * y, atol=1e-5)


def test_only_gamma_moves_at_first():
  x, net = normal(0, 2, 4, 4, 8), attention.SelfAttention()
  variables = jax.jit(net.init)(jax.random.key(0), x)
  grads = jax.jit(jax.grad(lambda v: jnp.sum(jnp.sin(net.apply(v, x)))))(variables)["params"]
  assert abs(grads.pop("gamma")) > 1e-2
  assert not any(g.any() for g in jax.tree.leaves(grads))


def test_errors_say_what_is_allowed():
  with pytest.raises(ValueError, match="num_heads"):
    attention.MultiHeadAttention(3).init(jax.random.key(0), jnp.ones((1, 2, 8)))
  with pytest.raises(ValueError, match="attention"):
    attention.SelfAttention().init(jax.random.key(0), jnp.ones((1, 7, 7, 8)))
