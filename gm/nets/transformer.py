"""A transformer that predicts the next token, in minGPT's form, and samples from it.

In sampling, keys and values of the positions that are done are kept, so that a token costs one
position, and all tokens are one scan. A token is the inverse of its cumulative distribution at a
uniform number: a sequence is a function of as many numbers, which can be drawn beforehand.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from gm.nn import attention, embed, init

_normal = init.normal(0.02)
Cache = list[tuple[jax.Array, jax.Array]]  # of every layer: keys and values [B, heads, context, D]


def norm(name: str, dtype: Any) -> nn.Module:
  """A LayerNorm as torch computes it."""
  # torch's eps; flax's quick variance is wrong where the mean is large
  return nn.LayerNorm(1e-5, dtype, use_fast_variance=False, name=name)


class Block(nn.Module):
  """x + attention(norm(x)), then x + down(gelu(up(norm(x)))), four times as wide inside."""

  num_heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: jax.Array, mask: jax.Array, cache: tuple | None = None, position: int | jax.Array = 0
  ) -> Any:
    """[B, T, C] -> the same; with a cache, that and the cache, as in `MultiHeadAttention`."""
    attend = attention.MultiHeadAttention(
      self.num_heads, kernel_init=_normal, out_init=_normal, dtype=self.dtype, name="attention"
    )
    dense = lambda features, name: nn.Dense(
      features, kernel_init=_normal, dtype=self.dtype, name=name
    )
    y = attend(norm("norm0", self.dtype)(x), mask=mask, cache=cache, position=position)
    y, cache = (y, None) if cache is None else y
    x = x + y
    h = dense(4 * x.shape[-1], "up")(norm("norm1", self.dtype)(x))
    x = x + dense(x.shape[-1], "down")(nn.gelu(h, approximate=False))
    return x if cache is None else (x, cache)


class Transformer(nn.Module):
  """Tokens i32 [B, T] -> logits of each one's successor, f32 [B, T, outputs].

  Conditions are tokens of their own at the front, ids of the vocabulary that need not be among the
  outputs, or vectors. Positions are learned, the last layer has no bias.

  Attributes:
    vocab_size: ids that can be given.
    context: positions, vectors included.
    num_heads: divides the width.
    outputs: ids that can be predicted, 0 ... outputs - 1; 0: all.
    num_open: as many positions at the front see one another, such as those of a condition; the
      others see what comes before them and themselves.

  Source: the code of Esser et al., 2021, arXiv:2012.09841, after Karpathy's minGPT.

  >>> net = Transformer(5, 8, num_layers=1, num_heads=2, width=4)
  >>> make = lambda key: net.init_with_output(key, jnp.zeros((1, 3), jnp.int32))
  >>> jax.eval_shape(make, jax.random.key(0))[0].shape
  (1, 3, 5)
  """

  vocab_size: int
  context: int
  num_layers: int = 24
  num_heads: int = 16
  width: int = 1024
  outputs: int = 0
  num_open: int = 0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    tokens: jax.Array,
    vectors: jax.Array | None = None,
    *,
    cache: Cache | None = None,
    position: int | jax.Array = 0,
  ) -> jax.Array | tuple[jax.Array, Cache]:
    """Predicts.

    Args:
      tokens: i32 [B, T].
      vectors: [B, P, width], before the tokens.
      cache: from `empty_cache`, and then from the call before.
      position: of the first token, or of the first vector. The open positions come in one call.

    Returns:
      f32 [B, P + T, outputs]; with a cache, that and the cache with these positions in it.

    Raises:
      ValueError: for more positions than the context has.
    """
    table = embed.Embed(
      self.vocab_size, self.width, embedding_init=_normal, dtype=self.dtype, name="tokens"
    )
    x = table(tokens)
    if vectors is not None:
      x = jnp.concatenate([vectors.astype(x.dtype), x], axis=1)
    num = x.shape[1]
    if num > self.context:
      raise ValueError(f"{num} tokens do not fit into a context of {self.context}: give fewer")
    places = self.param("positions", nn.initializers.zeros, (self.context, self.width))
    x = x + jax.lax.dynamic_slice_in_dim(places, position, num).astype(x.dtype)
    query = position + jnp.arange(num)[:, None]
    key = jnp.arange(num if cache is None else self.context)
    seen = (key <= query) | (jnp.maximum(key, query) < self.num_open)
    done = []
    for i in range(self.num_layers):
      block = Block(self.num_heads, self.dtype, name=f"block{i}")
      if cache is None:
        x = block(x, seen)
      else:
        x, kept = block(x, seen, cache[i], position)
        done.append(kept)
    head = nn.Dense(
      self.outputs or self.vocab_size,
      use_bias=False,
      kernel_init=_normal,
      dtype=self.dtype,
      name="head",
    )
    logits = head(norm("norm", self.dtype)(x)).astype(jnp.float32)
    return logits if cache is None else (logits, done)

  def empty_cache(self, batch_size: int) -> Cache:
    """The cache of sequences of which nothing is known yet."""
    shape = (batch_size, self.num_heads, self.context, self.width // self.num_heads)
    return [(jnp.zeros(shape, self.dtype),) * 2 for _ in range(self.num_layers)]


def decayed(params: Any) -> Any:
  """Which parameters weight decay is for: kernels; not biases, norms, embeddings and positions.

  >>> decayed({"head": {"bias": 2.0, "kernel": 1.0}, "positions": 3.0})
  {'head': {'bias': False, 'kernel': True}, 'positions': False}
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, _: jax.tree_util.keystr(path).endswith("['kernel']"), params
  )


# ----------------------------------------------------------------------------------------- sampling


def narrowed(
  logits: jax.Array, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> jax.Array:
  """Probabilities of tokens, the less likely ones left out.

  Args:
    logits: [..., K].
    temperature: by which they are divided first; 0: the likeliest token alone.
    top_k: only so many of the likeliest; 0: all.
    top_p: of these, only the fewest that together have this probability; 1: all. Tokens that are as
      likely as the last one that stays do so too.

  Returns:
    f32 [..., K], sums 1.

  Source: Holtzman et al., 2020, arXiv:1904.09751, for top_p.

  >>> narrowed(jnp.log(jnp.array([0.1, 0.3, 0.6])), top_p=0.5).tolist()
  [0.0, 0.0, 1.0]
  """
  logits = logits.astype(jnp.float32)
  if temperature == 0:
    return jax.nn.one_hot(logits.argmax(-1), logits.shape[-1])
  logits = logits / temperature
  if 0 < top_k < logits.shape[-1]:
    least = jax.lax.top_k(logits, top_k)[0][..., -1:]
    logits = jnp.where(logits < least, -jnp.inf, logits)
  probs = jax.nn.softmax(logits)
  if top_p < 1:
    falling = -jnp.sort(-probs)
    before = jnp.cumsum(falling, -1) - falling  # what likelier ones have together
    least = jnp.where(before < top_p, falling, jnp.inf).min(-1, keepdims=True)
    probs = jnp.where(probs < least, 0.0, probs)
    probs = probs / probs.sum(-1, keepdims=True)
  return probs


def pick(probs: jax.Array, u: jax.Array) -> jax.Array:
  """The token at which the cumulative probability exceeds u; never one of probability 0.

  Args:
    probs: [..., K].
    u: uniform on [0, 1), [...].

  Returns:
    i32 [...].

  >>> pick(jnp.array([0.0, 0.25, 0.75]), jnp.array([0.0])).item()
  1
  """
  total = jnp.where(probs > 0, jnp.cumsum(probs, -1), 0.0)  # its end may miss 1 by rounding
  return jnp.argmax(total > u[..., None] * total.max(-1, keepdims=True), -1).astype(jnp.int32)


def sample(
  net: Transformer,
  params: dict,
  first: jax.Array,
  u: jax.Array,
  *,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
  guidance: float | None = None,
) -> jax.Array:
  """Continues sequences token by token.

  Args:
    net: the transformer, or another network that is called as it is, with `context`, `num_open` and
      `empty_cache`.
    params: its parameters.
    first: i32 [B, P], P >= 1: a start token or a condition, and tokens that are given. Where the
      net has open positions, more than those.
    u: uniform on [0, 1), [B, L], one number for each new token; P + L - 1 positions are needed.
    temperature, top_k, top_p: see `narrowed`.
    guidance: scale s of classifier-free guidance: `first` has 2 B rows, B with their condition and
      the same without it, and what both are continued by is drawn from the logits without + s (with
      - without).

  Returns:
    The new tokens, i32 [B, L].

  Source: Ho and Salimans, 2022, arXiv:2207.12598, for guidance.

  Raises:
    ValueError: if they do not fit into the context, or are fewer than the open positions.
  """
  start, num = first.shape[1] - 1, u.shape[1]
  if start < net.num_open:
    raise ValueError(f"{net.num_open} open positions come before the last token given: give more")
  if start + num > net.context:
    raise ValueError(f"{start + num} tokens do not fit into a context of {net.context}: give fewer")
  run = lambda tokens, cache, position: net.apply(
    {"params": params}, tokens, cache=cache, position=position
  )
  cache = net.empty_cache(len(first))
  if start:
    _, cache = run(first[:, :-1], cache, 0)

  def one(carry, u):
    token, cache, position = carry
    logits, cache = run(token[:, None], cache, position)
    logits = logits[:, 0]
    if guidance is not None:
      told, untold = jnp.split(logits, 2)
      logits = untold + guidance * (told - untold)
    token = pick(narrowed(logits, temperature=temperature, top_k=top_k, top_p=top_p), u)
    fed = token if guidance is None else jnp.tile(token, 2)
    return (fed, cache, position + 1), token

  _, tokens = jax.lax.scan(one, (first[:, -1].astype(jnp.int32), cache, start), u.T)
  return tokens.T
