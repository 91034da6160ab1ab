"""DALL-E's transformer: one sequence of a caption's tokens and an image's, and what each sees.

The ids of a sequence are of one vocabulary, num_text + text_length + num_codes:

  0 ... num_text - 1                  tokens of text; 0, which is padding there, begins a sequence
  num_text ... + text_length - 1      padding, of each position its own
  then num_codes                      codes of the image, row by row

Position p of [begin, t_1 ... t_T, i_1 ... i_(N-1)] predicts what follows it, so the first T predict
text and the others codes, and only those have a probability.

Source: Ramesh et al., 2021, arXiv:2102.12092; github.com/lucidrains/DALLE-pytorch at 58c1e1a, whose
parameters these are: 27,479,568 of width 512 and 2 layers, 239,653,904 of width 1024 and 12.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from gm.nets import transformer
from gm.nn import attention, embed, init

PATTERNS = ("full", "row", "column", "local")
REACH = 4  # rows and columns back that `local` sees
FORBIDDEN = float(np.finfo(np.float32).min)  # finite: two of them may be subtracted in guidance


def pattern(kind: str, text_length: int, grid: tuple[int, int]) -> np.ndarray:
  """Which positions see which: text sees what comes before it; codes see all text, and of the codes
  before them and themselves

    full     all
    row      those of the same row
    column   those of the same column
    local    those at most REACH rows up and REACH columns to the left

  The row and the column are those of the code at a position, not of the one that it predicts.

  Args:
    kind: one of PATTERNS.
    text_length: T.
    grid: (h, w) of the map of codes.

  Returns:
    bool [P, P], P = T + h w; entry (q, k): whether q sees k.

  >>> pattern("column", 1, (2, 2))[3].tolist()  # of begin, text, codes (0, 0), (0, 1), (1, 0)
  [True, True, False, True, False]
  """
  num = text_length + grid[0] * grid[1]
  place = np.arange(num) - (text_length + 1)  # of codes 0 ... h w - 2, of text below 0
  row, column = place // grid[1], place % grid[1]
  up, left = row[:, None] - row, column[:, None] - column
  near = {
    "full": np.full((num, num), True),
    "row": up == 0,
    "column": left == 0,
    "local": (up <= REACH) & (left >= 0) & (left <= REACH),
  }[kind]
  text = place < 0
  return np.tri(num, dtype=bool) & (text[:, None] | text | near)


def fill(tokens: jax.Array, num_text: int) -> jax.Array:
  """Gives the padding of a text, id 0, an id for each position: i32 [B, T] -> the same.

  >>> fill(jnp.array([[5, 0, 0]]), 10).tolist()
  [[5, 11, 12]]
  """
  return jnp.where(tokens == 0, num_text + jnp.arange(tokens.shape[1]), tokens)


class Layer(nn.Module):
  """x + s attention(norm(x)), then x + s down(a gelu(b)), [a, b] = up(norm(x)), s small at first.

  Not `gated`, it is down(gelu(up(norm(x)))); inside it is four times as wide in either case.

  Attributes:
    num_heads: of the attention.
    inner: features of all heads together.
    scale: what each s, one for every feature, begins with.
    gated: see above.
  """

  num_heads: int
  inner: int
  scale: float
  gated: bool = True
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: jax.Array, mask: jax.Array, cache: tuple | None = None, position: int | jax.Array = 0
  ) -> Any:
    """[B, T, C] -> the same; with a cache, that and the cache, as in `MultiHeadAttention`."""
    c, kernel = x.shape[-1], init.torch()
    attend = attention.MultiHeadAttention(
      self.num_heads,
      inner=self.inner,
      first_bias=False,
      kernel_init=kernel,
      out_init=kernel,
      dtype=self.dtype,
      name="attention",
    )
    scale = lambda i: self.param(f"scale{i}", init.constant(self.scale), (c,)).astype(self.dtype)
    dense = lambda features, name: nn.Dense(
      features, kernel_init=kernel, dtype=self.dtype, name=name
    )
    y = attend(transformer.norm("norm0", self.dtype)(x), mask=mask, cache=cache, position=position)
    y, cache = (y, None) if cache is None else y
    x = x + scale(0) * y
    y = dense((8 if self.gated else 4) * c, "up")(transformer.norm("norm1", self.dtype)(x))
    gate, y = jnp.split(y, 2, axis=-1) if self.gated else (1.0, y)
    x = x + scale(1) * dense(c, "down")(gate * nn.gelu(y, approximate=False))
    return x if cache is None else (x, cache)


class Dalle(nn.Module):
  """Tokens i32 [B, T'] -> logits of each one's successor, f32 [B, T', vocabulary].

  It is called, and sampled from, as `transformer.Transformer`; ids are those of this file. Places
  are learned: of text a table, of codes one of rows and one of columns.

  Attributes:
    num_text: ids of text.
    text_length: T.
    num_codes: of an image.
    grid: (h, w) of the map of codes.
    head_dim: features of a head.
    patterns: of the layers, from the first on, over and over.
    gated: see `Layer`.

  >>> net = Dalle(9, 3, 8, (2, 2), num_layers=1, num_heads=2, head_dim=4, width=8)
  >>> make = lambda key: net.init_with_output(key, jnp.zeros((1, 7), jnp.int32))
  >>> jax.eval_shape(make, jax.random.key(0))[0].shape
  (1, 7, 20)
  """

  num_text: int
  text_length: int
  num_codes: int
  grid: tuple[int, int]
  num_layers: int = 2
  num_heads: int = 8
  head_dim: int = 64
  width: int = 512
  patterns: Sequence[str] = ("full",)
  gated: bool = True
  dtype: Any = jnp.float32
  num_open = 0  # positions that see what comes after them, see `transformer.sample`

  @property
  def context(self) -> int:
    """Positions."""
    return self.text_length + self.grid[0] * self.grid[1]

  @nn.compact
  def __call__(
    self,
    tokens: jax.Array,
    *,
    cache: transformer.Cache | None = None,
    position: int | jax.Array = 0,
  ) -> jax.Array | tuple[jax.Array, transformer.Cache]:
    """Predicts.

    Args:
      tokens: i32 [B, T'], T' at most T + h w.
      cache: from `empty_cache`, and then from the call before.
      position: of the first token.

    Returns:
      f32 [B, T', vocabulary]; with a cache, that and the cache with these positions in it.
    """
    ids, num = self.num_text + self.text_length, tokens.shape[1]
    table = lambda name, n: self.param(name, init.normal(1.0), (n, self.width))
    rows, columns = table("rows", self.grid[0]), table("columns", self.grid[1])
    of_codes = (rows[:, None] + columns).reshape(-1, self.width)
    places = jnp.concatenate([table("text_positions", self.text_length + 1), of_codes[:-1]])
    part = lambda x: jax.lax.dynamic_slice_in_dim(jnp.asarray(x), position, num)
    look_up = embed.Embed(ids + self.num_codes, self.width, dtype=self.dtype, name="tokens")
    x, done = look_up(tokens) + part(places).astype(self.dtype), []
    grids = (self.text_length, self.grid)
    seen = {kind: part(pattern(kind, *grids)) for kind in dict.fromkeys(self.patterns)}
    scale = 0.1 if self.num_layers <= 18 else 1e-5 if self.num_layers <= 24 else 1e-6
    for i in range(self.num_layers):
      inner = self.num_heads * self.head_dim
      layer = Layer(self.num_heads, inner, scale, self.gated, self.dtype, name=f"layer{i}")
      mask = seen[self.patterns[i % len(self.patterns)]]
      if cache is None:
        x = layer(x, mask[:, :num])
      else:
        x, kept = layer(x, mask, cache[i], position)
        done.append(kept)
    head = nn.Dense(ids + self.num_codes, kernel_init=init.torch(), dtype=self.dtype, name="head")
    logits = head(transformer.norm("norm", self.dtype)(x)).astype(jnp.float32)
    of_text = jnp.arange(ids + self.num_codes) < ids
    predicts_text = part(np.arange(self.context) < self.text_length)
    logits = jnp.where(of_text == predicts_text[:, None], logits, FORBIDDEN)
    return logits if cache is None else (logits, done)

  def empty_cache(self, batch_size: int) -> transformer.Cache:
    """The cache of sequences of which nothing is known yet."""
    shape = (batch_size, self.num_heads, self.context, self.head_dim)
    return [(jnp.zeros(shape, self.dtype),) * 2 for _ in range(self.num_layers)]
