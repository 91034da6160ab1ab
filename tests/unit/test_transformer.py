"""The transformer: the authors' numbers, who sees whom, sequences in parts, and what is drawn."""

import functools
import math
import time
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import OPTIMISED

from gm import core, optim
from gm.nets import transformer

QUICK = {"xla_backend_optimization_level": 0}
jit = functools.partial(jax.jit, compiler_options=QUICK)
SMALL = {"num_layers": 2, "num_heads": 4, "width": 32}


# ----------------------------------------------------------------------------- the authors' numbers


def words(name, n):
  """Integers of 24 bits that belong to a name: a counter, hashed."""
  mask = np.uint64(0xFFFFFFFF)
  x = (
    np.arange(n, dtype=np.uint64) * np.uint64(0x9E3779B9) + np.uint64(zlib.crc32(name.encode()))
  ) & mask
  for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
    x = ((x ^ (x >> np.uint64(shift))) * np.uint64(factor)) & mask
  return ((x ^ (x >> np.uint64(16))) >> np.uint64(8)).astype(np.int64)


def real(name, shape, mean=0.0, scale=1.0):
  u = (words(name, math.prod(shape)) + 0.5) / 2.0**23 - 1.0
  return (mean + scale * u).astype(np.float32).reshape(shape)


def theirs(num_layers=2, width=32, vocab=40, context=24):
  """The weights of minGPT as the formula fills them, under our names."""
  weight = lambda name, *shape: real(name, shape, 0, 2 / math.sqrt(math.prod(shape[1:])))
  bias = lambda name, n: real(name, (n,), 0, 0.1)
  norm = lambda name: {
    "scale": real(f"{name}.weight", (width,), 1, 0.1),
    "bias": bias(f"{name}.bias", width),
  }
  dense = lambda name, i, o: {
    "kernel": weight(f"{name}.weight", o, i).T,
    "bias": bias(f"{name}.bias", o),
  }

  def block(b):
    parts = [dense(f"{b}.attn.{n}", width, width) for n in ("query", "key", "value")]
    qkv = {k: np.concatenate([part[k] for part in parts], -1) for k in ("kernel", "bias")}
    return {
      "norm0": norm(f"{b}.ln1"),
      "norm1": norm(f"{b}.ln2"),
      "attention": {"qkv": qkv, "out": dense(f"{b}.attn.proj", width, width)},
      "up": dense(f"{b}.mlp.0", width, 4 * width),
      "down": dense(f"{b}.mlp.2", 4 * width, width),
    }

  return {
    "tokens": {"embedding": weight("tok_emb.weight", vocab, width)},
    "positions": weight("pos_emb", 1, context, width)[0],
    **{f"block{i}": block(f"blocks.{i}") for i in range(num_layers)},
    "norm": norm("ln_f"),
    "head": {"kernel": weight("head.weight", vocab, width).T},
  }


def ids(name, *shape):
  return jnp.asarray((words(name, math.prod(shape)) * 40 >> 24).reshape(shape), jnp.int32)


def test_logits_are_the_authors():
  """Of their code (taming-transformers, 3ba01b2) with these weights, in float64."""
  net, params = transformer.Transformer(40, 24, **SMALL), jax.tree.map(jnp.asarray, theirs())
  shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
  logits = jit(net.apply)({"params": params}, ids("input:idx", 2, 20))
  values = [1.83539, -1.553931, -1.981258, -1.388065, -0.08300958, -0.5249101]
  np.testing.assert_allclose(np.ravel(logits)[: 25 * 6 : 25], values, atol=2e-5)
  np.testing.assert_allclose(np.sum(np.float64(logits)), 73.6085993307, atol=1e-3)
  np.testing.assert_allclose(np.sum(np.float64(logits) ** 2), 2665.09346991, rtol=1e-5)
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, ids("input:targets", 2, 20)).mean()
  np.testing.assert_allclose(loss, 4.52891879648, rtol=1e-5)
  run = jit(lambda *a: net.apply({"params": params}, a[0], cache=a[1], position=a[2]))
  past, cache = run(ids("input:idx", 2, 9), net.empty_cache(2), 0)
  np.testing.assert_allclose(np.ravel(past)[::11][:3], [1.83539, -0.1838831, 0.3155607], atol=2e-5)
  logits, _ = run(ids("input:nxt", 2, 1), cache, 9)
  np.testing.assert_allclose(np.ravel(logits)[0], 0.1147575, atol=2e-5)
  np.testing.assert_allclose(np.sum(np.float64(logits) ** 2), 125.342820417, rtol=1e-5)


def test_logits_after_vectors_that_see_one_another_are_the_authors():
  net = transformer.Transformer(40, 24, num_open=5, **SMALL)
  vectors = jnp.asarray(real("input:emb", (2, 6, 32)))
  logits = jit(net.apply)({"params": theirs()}, ids("input:idx", 2, 12), vectors)
  np.testing.assert_allclose(np.sum(np.float64(logits)), 46.1905879021, atol=1e-3)
  np.testing.assert_allclose(np.sum(np.float64(logits) ** 2), 2091.37689308, rtol=1e-5)
  assert logits.shape == (2, 18, 40)


@pytest.mark.parametrize(
  "vocab, context, layers, heads, width, count",
  [(1024, 512, 24, 16, 1024, 304_932_864), (65, 65, 4, 4, 128, 818_304)],
)
def test_sizes(vocab, context, layers, heads, width, count):
  net = transformer.Transformer(vocab, context, layers, heads, width)
  shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
  assert core.count(shapes) == count
  decayed = transformer.decayed(shapes["params"])
  of = lambda tree: sum(
    math.prod(s.shape) for s, d in zip(jax.tree.leaves(shapes), jax.tree.leaves(tree)) if d
  )
  assert of(decayed) == layers * 12 * width**2 + vocab * width  # all kernels, the head's too


# --------------------------------------------------------------------------- order, parts and draws


@functools.cache
def made(**options):
  """A transformer of 12 positions with weights that are not small, and its parameters."""
  net = transformer.Transformer(9, 12, **{**SMALL, "width": 16, **options})
  shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
  rng = np.random.default_rng(1)
  number = lambda s: jnp.asarray(0.3 * rng.normal(size=s.shape) + (s.ndim == 1), jnp.float32)
  return net, jax.tree.map(number, shapes)


def test_a_token_changes_what_follows_it_alone():
  net, params = made()
  run = jit(lambda tokens: net.apply({"params": params}, tokens))
  tokens = jax.random.randint(jax.random.key(2), (3, 12), 0, 9)
  for j in (0, 5, 11):
    change = run(tokens.at[:, j].set((tokens[:, j] + 1) % 9)) - run(tokens)
    assert not change[:, :j].any() and np.abs(change[:, j:]).max((0, 2)).min() > 1e-3


def test_open_positions_see_one_another():
  net, params = made(num_open=3)
  run = jit(lambda tokens: net.apply({"params": params}, tokens))
  tokens = jax.random.randint(jax.random.key(2), (3, 12), 0, 9)
  seen = lambda j: np.abs(run(tokens.at[:, j].add(-tokens[:, j])) - run(tokens)).max((0, 2)) > 0
  assert seen(2).all()
  assert seen(4).tolist() == [False] * 4 + [True] * 8


def by_parts(net, params, tokens, sizes):
  run = jit(lambda *a: net.apply({"params": params}, a[0], cache=a[1], position=a[2]))
  cache, at, found = net.empty_cache(len(tokens)), 0, []
  for n in sizes:
    logits, cache = run(tokens[:, at : at + n], cache, at)
    found.append(logits)
    at += n
  return jnp.concatenate(found, 1)


@pytest.mark.parametrize("num_open, sizes", [(0, [1] * 12), (0, [5, 1, 6]), (3, [4, *[1] * 8])])
def test_logits_with_and_without_the_cache_are_the_same_at_every_position(num_open, sizes):
  net, params = made(num_open=num_open)
  tokens = jax.random.randint(jax.random.key(2), (3, 12), 0, 9)
  want = jit(net.apply)({"params": params}, tokens)
  np.testing.assert_allclose(by_parts(net, params, tokens, sizes), want, atol=1e-5, rtol=1e-5)
  assert np.abs(want).max() > 1


def slowly(net, params, first, u, **options):
  """The same draws, all positions computed anew for every token."""
  tokens = jnp.zeros((len(first), net.context), jnp.int32)
  tokens = tokens.at[:, : first.shape[1]].set(first)

  def one(i, tokens):
    at = first.shape[1] + i
    logits = net.apply({"params": params}, tokens)
    last = jax.lax.dynamic_index_in_dim(logits, at - 1, 1, keepdims=False)
    u_i = jax.lax.dynamic_index_in_dim(u, i, 1, keepdims=False)
    token = transformer.pick(transformer.narrowed(last, **options), u_i)
    return jax.lax.dynamic_update_slice_in_dim(tokens, token[:, None], at, 1)

  tokens = jax.lax.fori_loop(0, u.shape[1], one, tokens)
  return tokens[:, first.shape[1] : first.shape[1] + u.shape[1]]


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_k": 5, "top_p": 0.9}])
def test_samples_with_and_without_the_cache_are_the_same_tokens(options):
  net, params = made()
  first = jax.random.randint(jax.random.key(3), (50, 3), 0, 9)
  u = jax.random.uniform(jax.random.key(4), (50, 9))
  fast = jit(functools.partial(transformer.sample, net, **options))
  found = fast(params, first, u)
  np.testing.assert_array_equal(
    found, jit(functools.partial(slowly, net, **options))(params, first, u)
  )
  np.testing.assert_array_equal(found, fast(params, first, u))
  assert (found != fast(params, first, 1 - u)).mean() > 0.2
  alone = fast(params, first[7:9], u[7:9])  # a sequence does not depend on its neighbours
  np.testing.assert_array_equal(alone, found[7:9])


def test_the_last_token_has_the_last_position():
  net, params = made()
  first = jnp.zeros((1, 4), jnp.int32)
  draw = lambda n, first=first: transformer.sample(net, params, first, jnp.full((1, n), 0.5))
  assert draw(9).shape == (1, 9)  # twelve positions are read, the thirteenth token is not
  with pytest.raises(ValueError, match="13 tokens do not fit into a context of 12"):
    draw(10)
  with pytest.raises(ValueError, match="13 tokens"):
    net.apply({"params": params}, jnp.zeros((1, 13), jnp.int32))
  opened, _ = made(num_open=3)
  with pytest.raises(ValueError, match="3 open positions"):
    transformer.sample(opened, params, first[:, :3], jnp.zeros((1, 2)))


def test_only_outputs_are_drawn():
  """Of nine ids the last three are conditions."""
  net, params = made(outputs=6)
  assert params["head"]["kernel"].shape == (16, 6)
  first = jnp.full((200, 1), 8)
  found = transformer.sample(net, params, first, jax.random.uniform(jax.random.key(0), (200, 8)))
  assert set(np.unique(found)) == set(range(6))


def test_draws_have_the_probabilities():
  probs = jnp.array([0.0, 0.5, 0.0, 0.2, 0.3, 0.0])
  u = jax.random.uniform(jax.random.key(0), (100_000,))
  found = transformer.pick(jnp.broadcast_to(probs, (100_000, 6)), u)
  np.testing.assert_allclose(np.bincount(found, minlength=6) / 1e5, probs, atol=0.006)
  edges = jnp.array([0.0, 0.4999, 0.5001, 0.9999999])
  assert transformer.pick(jnp.broadcast_to(probs, (4, 6)), edges).tolist() == [1, 1, 3, 4]
  many = jnp.zeros((64, 5_000)).at[:, 1_000:4_000].set(1 / 3_000)  # its sum is 1 by rounding only
  found = transformer.pick(many, jnp.linspace(0, 0.9999999, 64))
  assert found.min() == 1_000 and 3_990 <= found.max() < 4_000


def test_narrowing():
  logits = jnp.log(jnp.array([0.1, 0.4, 0.3, 0.2]))
  of = lambda **options: np.round(transformer.narrowed(logits, **options), 4).tolist()
  assert of() == pytest.approx([0.1, 0.4, 0.3, 0.2])
  assert of(top_k=2) == pytest.approx([0, 4 / 7, 3 / 7, 0], abs=1e-4)
  assert of(top_k=9) == of() == of(top_p=1.0)
  assert of(top_p=0.39) == [0, 1, 0, 0] == of(temperature=0)
  assert of(top_p=0.41) == pytest.approx([0, 4 / 7, 3 / 7, 0], abs=1e-4)
  assert of(top_k=3, top_p=0.75) == pytest.approx([0, 4 / 7, 3 / 7, 0], abs=1e-4)  # of 4, 3, 2 of 9
  square = np.array([1, 16, 9, 4]) / 30
  assert of(temperature=0.5) == pytest.approx(square, abs=1e-4)


def test_keeping_keys_and_values_saves_most_of_the_time():
  """At 256 tokens; the quickest of several calls each, in turns."""
  net = transformer.Transformer(64, 256, num_layers=1, num_heads=2, width=64)
  params = jit(net.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
  first, u = jnp.zeros((1, 1), jnp.int32), jax.random.uniform(jax.random.key(1), (1, 255))
  calls = [
    jax.jit(functools.partial(f, net), compiler_options=OPTIMISED).lower(params, first, u).compile()
    for f in (transformer.sample, slowly)
  ]
  np.testing.assert_array_equal(*(call(params, first, u) for call in calls))
  times = [[], []]
  for _ in range(3):
    for call, spent in zip(calls, times, strict=True):
      start = time.process_time()
      jax.block_until_ready(call(params, first, u))
      spent.append(time.process_time() - start)
  fast, slow = map(min, times)
  assert 5 * fast < slow, (fast, slow)


# --------------------------------------------------------------------------------------- learning


def chain():
  """A Markov chain on 6 states: its matrix, stationary law and entropy rate in nats."""
  p = np.random.default_rng(0).dirichlet([0.3] * 6, 6)
  law = np.linalg.matrix_power(p, 1_000)[0]
  return p, law, -np.sum(law[:, None] * p * np.log(p))


def walks(rng, num, length):
  """Rows of the chain, [num, length], from its stationary law."""
  p, law, _ = chain()
  found = [rng.choice(6, num, p=law)]
  for _ in range(length - 1):
    found.append((p[found[-1]].cumsum(1) < rng.uniform(size=(num, 1))).sum(1))
  return jnp.asarray(np.stack(found, 1), jnp.int32)


def test_a_markov_chain_is_learned_to_its_entropy_rate():
  """Within 0.05 nats in 500 steps; a model that sees no order stays at the entropy of the law."""
  _, law, rate = chain()
  net = transformer.Transformer(7, 16, 1, 2, 32, outputs=6)  # id 6 starts
  tx = optim.adamw(3e-3, b2=0.95, mask=transformer.decayed)
  rng = np.random.default_rng(1)
  rows, held_out = walks(rng, 500 * 32, 16).reshape(500, 32, 16), walks(rng, 1_000, 16)

  def nats(params, x):  # of each position, [16]
    given = jnp.concatenate([jnp.full((len(x), 1), 6), x[:, :-1]], 1)
    logits = net.apply({"params": params}, given)
    return optax.softmax_cross_entropy_with_integer_labels(logits, x).mean(0)

  def step(carry, x):
    params, opt = carry
    grads = jax.grad(lambda p: nats(p, x).mean())(params)
    updates, opt = tx.update(grads, opt, params)
    return (optax.apply_updates(params, updates), opt), None

  @functools.partial(jax.jit, compiler_options=OPTIMISED)
  def learn(params):
    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), rows)
    return nats(params, held_out)

  found = learn(jit(net.init)(jax.random.key(3), held_out[:1])["params"])
  entropy = -np.sum(law * np.log(law))
  assert entropy - rate > 0.3  # there is something to learn
  np.testing.assert_allclose(found[0], entropy, atol=0.1)
  assert rate - 0.05 < found[1:].mean() < rate + 0.05, (found, rate)
