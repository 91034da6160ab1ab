"""Attention: dot-product in any number of heads, and SAGAN's over the pixels of a map.

The scores, [.., queries, keys], are the large arrays, and on a CPU the time goes into passes over
them. So the exponentials are divided by their sum after the product with the values, not before,
and the derivative is written out: one exponential and one further pass, 2 to 3 times faster there
than autodiff of a softmax between two products (measured on 2 cores). It is made of ordinary
operations and can itself be differentiated in reverse mode; there is no forward mode (`jax.jvp`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from gm.nn import conv

MASKED = -1e30  # a score that is not attended to


def _exponentials(q, k, bias):
  """Returns e = exp(scores - max) and 1 / sum(e), both float32."""
  scores = jnp.matmul(q, k.swapaxes(-1, -2), preferred_element_type=jnp.float32)
  if bias is not None:
    scores = scores + bias
  e = jnp.exp(scores - lax.stop_gradient(scores.max(-1, keepdims=True)))
  return e, 1 / e.sum(-1, keepdims=True)


def _weighted(e, inv, v):
  return (jnp.matmul(e.astype(v.dtype), v, preferred_element_type=jnp.float32) * inv).astype(
    v.dtype
  )


@jax.custom_vjp
def _attend(q, k, v, bias):
  """softmax(q k^T + bias) v; bias is a constant to autodiff."""
  return _weighted(*_exponentials(q, k, bias), v)


def _attend_fwd(q, k, v, bias):
  e, inv = _exponentials(q, k, bias)
  out = _weighted(e, inv, v)
  return out, (q, k, v, e, inv, out)


def _attend_bwd(residuals, dy):
  q, k, v, e, inv, out = residuals
  # with p = e inv:  dv = p^T dy,  d scores = p (dy v^T - dy.out)
  dy = dy * inv.astype(dy.dtype)
  dv = jnp.matmul(e.astype(v.dtype).swapaxes(-1, -2), dy)
  shift = jnp.sum(dy * out, -1, keepdims=True, dtype=jnp.float32)
  dp = jnp.matmul(dy, v.swapaxes(-1, -2), preferred_element_type=jnp.float32)
  ds = (e * (dp - shift)).astype(q.dtype)
  return jnp.matmul(ds, k), jnp.matmul(ds.swapaxes(-1, -2), q), dv, None


_attend.defvjp(_attend_fwd, _attend_bwd)


def attend(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  *,
  scale: float | None = None,
  causal: bool = False,
  mask: jax.Array | None = None,
) -> jax.Array:
  """Dot-product attention: softmax_k(scale q.k) v.

  Args:
    q: queries [..., T, D].
    k: keys [..., S, D], with the same leading axes, e.g. batch and heads.
    v: values [..., S, E].
    scale: of the scores; None is 1 / sqrt(D).
    causal: query t sees keys s <= t; where S > T the last queries are meant, so that query t is
      position S - T + t.
    mask: bool, broadcasts to [..., T, S]; False is not seen. A query that sees no key gets the mean
      of the values.

  Returns:
    [..., T, E]; sums of scores are float32.

  Source: Vaswani et al., 2017, arXiv:1706.03762, equation 1.

  >>> x = jnp.array([[1.0], [3.0]])
  >>> attend(jnp.zeros((2, 1)), x, x).ravel().tolist()
  [2.0, 2.0]
  >>> attend(jnp.zeros((2, 1)), x, x, causal=True).ravel().tolist()
  [1.0, 2.0]
  """
  seen = mask
  if causal:
    t, s = q.shape[-2], k.shape[-2]
    earlier = jnp.tril(jnp.ones((t, s), bool), s - t)
    seen = earlier if mask is None else mask & earlier
  bias = None if seen is None else jnp.where(seen, 0.0, MASKED)
  return _attend(q * (q.shape[-1] ** -0.5 if scale is None else scale), k, v, bias)


class MultiHeadAttention(nn.Module):
  """Attention in `num_heads` parallel heads: x [B, T, C], context [B, S, F] -> [B, T, C].

  Queries, keys and values of C features each are dense maps of x, or keys and values of the
  context; heads are consecutive features. Without context one kernel gives all three, in this
  order.

  With a cache x is a part of a sequence that is visited in parts. The cache is (keys, values) of
  all S positions, each [B, heads, S, C / heads]; those of x are written, and all are attended to.

  Attributes:
    num_heads: divides C, or `inner`.
    causal: see `attend`; with a cache, position p sees keys s <= p.
    use_bias: in all maps.
    inner: features of all heads together; 0: C.
    first_bias: in the maps to queries, keys and values; None: as `use_bias`.
    out_init: of the last map's kernel, which residual networks often start small.

  Source: Vaswani et al., 2017, arXiv:1706.03762, section 3.2.2.
  """

  num_heads: int
  causal: bool = False
  use_bias: bool = True
  inner: int = 0
  first_bias: bool | None = None
  kernel_init: Callable = nn.initializers.lecun_normal()
  out_init: Callable = nn.initializers.lecun_normal()
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    context: jax.Array | None = None,
    *,
    mask: jax.Array | None = None,
    cache: tuple[jax.Array, jax.Array] | None = None,
    position: int | jax.Array = 0,
  ) -> jax.Array | tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Attends from x to itself, to the context, or to a cache that x becomes part of.

    Args:
      x: [B, T, C].
      context: [B, S, F].
      mask: broadcasts to [B, heads, T, S].
      cache: keys and values of a sequence; those of positions that are still to come must be hidden
        by `causal` or `mask`.
      position: where in the cache x begins.

    Returns:
      [B, T, C]; with a cache, that and the cache with x in it.

    Raises:
      ValueError: if the heads do not divide the features.
    """
    c = self.inner or x.shape[-1]
    if c % self.num_heads:
      raise ValueError(
        f"{self.num_heads} heads do not divide {c} features: change --config.model.num_heads or"
        " the width"
      )
    first_bias = self.use_bias if self.first_bias is None else self.first_bias
    dense = lambda features, name: nn.Dense(
      features,
      use_bias=self.use_bias if name == "out" else first_bias,
      kernel_init=self.kernel_init if name != "out" else self.out_init,
      dtype=self.dtype,
      name=name,
    )
    if context is None:
      q, k, v = jnp.split(dense(3 * c, "qkv")(x), 3, axis=-1)
    else:
      q, (k, v) = dense(c, "q")(x), jnp.split(dense(2 * c, "kv")(context), 2, axis=-1)
    heads = lambda a: a.reshape(*a.shape[:2], self.num_heads, -1).swapaxes(1, 2)
    q, k, v = heads(q), heads(k), heads(v)
    causal = self.causal
    if cache is not None:
      write = lambda old, new: lax.dynamic_update_slice_in_dim(old, new, position, axis=2)
      k, v = cache = tuple(map(write, cache, (k, v)))
      if causal:  # x is not the end of what is stored
        earlier = jnp.arange(k.shape[2]) <= position + jnp.arange(x.shape[1])[:, None]
        mask, causal = (earlier if mask is None else mask & earlier), False
    y = attend(q, k, v, causal=causal, mask=mask)  # [B, heads, T, D]
    y = dense(x.shape[-1], "out")(y.swapaxes(1, 2).reshape(*x.shape[:2], c))
    return y if cache is None else (y, cache)


class SelfAttention(nn.Module):
  """SAGAN's attention over the pixels of a map, in BigGAN's form: [N, H, W, C] -> the same.

  x + gamma o(softmax(theta(x) phi(x)^T) g(x)), all four 1 x 1 convolutions without bias, theta and
  phi to C / 8 channels, g to C / 2; phi(x) and g(x) are max-pooled 2 x 2, the scores are not
  scaled. gamma starts at 0, so the layer starts as the identity.

  Source: Zhang et al., 2019, arXiv:1805.08318; the pooling is in the code of Brock et al., 2019.
  """

  kernel_init: Callable = nn.initializers.glorot_uniform()
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Lets every pixel attend to all.

    Raises:
      ValueError: if there are fewer than 8 channels, or an odd side.
    """
    n, h, w, c = x.shape
    if c < 8 or h % 2 or w % 2:
      raise ValueError(
        f"self-attention over a map of {h} x {w} pixels and {c} channels: it needs even sides and "
        "8 channels or more; change --config.model.attention or the width"
      )
    pointwise = lambda features, name: conv.Conv(
      features, 1, use_bias=False, kernel_init=self.kernel_init, dtype=self.dtype, name=name
    )
    rows = lambda a: a.reshape(n, -1, a.shape[-1])
    pool = lambda a: a.reshape(n, h // 2, 2, w // 2, 2, -1).max((2, 4))
    theta, phi = rows(pointwise(c // 8, "theta")(x)), rows(pool(pointwise(c // 8, "phi")(x)))
    g = rows(pool(pointwise(c // 2, "g")(x)))
    y = attend(theta, phi, g, scale=1.0).reshape(n, h, w, -1)
    gamma = self.param("gamma", nn.initializers.zeros, (), jnp.float32)
    return x + gamma.astype(self.dtype) * pointwise(c, "o")(y)
