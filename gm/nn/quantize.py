"""Vector quantisation: nearest codes, gradients past them, codebooks that follow the encoder.

Rows z are what an encoder gives, [..., D]; a codebook has K codes, [K, D]. Means, not sums, over
rows and features are taken in the losses: beta and the learning rate depend on that.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

_EXACT = lax.Precision.HIGHEST  # on TPU products of float32 are else those of bfloat16


def nearest(z: jax.Array, codes: jax.Array) -> jax.Array:
  """The code nearest to each row: argmin_k |z - e_k|^2, of equally near ones the first.

  Args:
    z: [..., D].
    codes: [K, D].

  Returns:
    i32 [...], 0 ... K - 1.

  >>> nearest(jnp.array([[0.9], [-3.0]]), jnp.array([[0.0], [1.0]])).tolist()
  [1, 0]
  """
  codes, centre = codes.astype(jnp.float32), codes.mean(0, dtype=jnp.float32)
  # |z|^2 is the same for all codes; away from the origin the rest would lose its last digits
  z, codes = z.astype(jnp.float32) - centre, codes - centre
  distance = jnp.sum(codes**2, -1) - 2 * jnp.matmul(z, codes.T, precision=_EXACT)
  return jnp.argmin(distance, -1).astype(jnp.int32)


def straight_through(z: jax.Array, e: jax.Array) -> jax.Array:
  """The codes e, through which the gradient passes to z as it is, and not to e.

  >>> value, grad = jax.value_and_grad(lambda z: straight_through(z, 5.0) ** 2)(4.75)
  >>> value.item(), grad.item()
  (25.0, 10.0)
  """
  return lax.stop_gradient(e) + (z - lax.stop_gradient(z))


def commitment(z: jax.Array, e: jax.Array) -> jax.Array:
  """What moves the encoder towards its codes: mean (z - sg(e))^2.

  >>> commitment(jnp.array([3.0]), jnp.array([1.0])).item()
  4.0
  """
  return jnp.mean((z - lax.stop_gradient(e)) ** 2)


def objective(z: jax.Array, e: jax.Array, *, beta: float) -> jax.Array:
  """The two terms of a codebook that is learned by its gradient.

  mean (sg(z) - e)^2 + beta mean (z - sg(e))^2. The first moves codes, the second the encoder. With
  beta on the first, as in the default of the VQGAN authors' code, codes would follow slowly.

  Args:
    z: [..., D].
    e: the codes of these rows, [..., D], not passed through `straight_through`.
    beta: weight of the commitment.

  Returns:
    f32 ().

  Source: van den Oord et al., 2017, arXiv:1711.00937, equation 3.

  >>> z, e = jnp.array([3.0]), jnp.array([1.0])
  >>> [g.item() for g in jax.grad(lambda *a: objective(*a, beta=0.25), (0, 1))(z, e)]
  [1.0, -4.0]
  """
  return commitment(e, z) + beta * commitment(z, e)


def totals(z: jax.Array, index: jax.Array, num_codes: int) -> tuple[jax.Array, jax.Array]:
  """How many rows chose each code, and their sum.

  Of a batch that is split over devices the numbers are those of all of it.

  Args:
    z: [..., D].
    index: i32 [...], from `nearest`.
    num_codes: K.

  Returns:
    f32 [K] and [K, D].

  >>> counts, sums = totals(jnp.array([[1.0], [2.0]]), jnp.array([1, 1]), 3)
  >>> counts.tolist(), sums.ravel().tolist()
  ([0.0, 2.0, 0.0], [0.0, 3.0, 0.0])
  """
  z = z.reshape(-1, z.shape[-1]).astype(jnp.float32)
  # a product, not a scatter, whose order of addition some devices leave open
  chosen = jax.nn.one_hot(index.ravel(), num_codes)  # [N, K]
  return chosen.sum(0), jnp.matmul(chosen.T, z, precision=_EXACT)


def perplexity(counts: jax.Array) -> jax.Array:
  """How many codes are in use, K at most: exp of the entropy of their shares.

  >>> round(perplexity(jnp.array([5.0, 5.0, 0.0])).item(), 4)
  2.0
  """
  share = counts / counts.sum()
  return jnp.exp(-jax.scipy.special.xlogy(share, share).sum())


def use(counts: jax.Array) -> dict[str, jax.Array]:
  """What is reported of a codebook: `perplexity`, and `usage`, the share of codes that is chosen.

  Args:
    counts: how often each code was chosen, [K].

  Returns:
    f32 (), each.

  >>> {n: round(x.item(), 4) for n, x in use(jnp.array([5, 5, 0, 0])).items()}
  {'perplexity': 2.0, 'usage': 0.5}
  """
  return {"perplexity": perplexity(counts), "usage": jnp.mean(counts > 0, dtype=jnp.float32)}


# -------------------------------------------------------------------- a codebook of moving averages


class Codebook(struct.PyTreeNode):
  """Codes that are moving averages of the rows that chose them; no gradient moves them."""

  codes: jax.Array  # f32 [K, D]
  counts: jax.Array  # f32 [K], average number of rows a batch, from 0, so biased towards it
  sums: jax.Array  # f32 [K, D], average sum of the rows, likewise
  steps: jax.Array  # i32 (), updates so far, which say by how much


def start(codes: jax.Array) -> Codebook:
  """Returns the codebook of codes [K, D] that no row has chosen yet."""
  codes = codes.astype(jnp.float32)
  none = jnp.zeros(len(codes))
  return Codebook(codes, none, jnp.zeros_like(codes), jnp.zeros((), jnp.int32))


def _mass(book: Codebook, decay: float) -> jax.Array:
  """1 - decay^t: what the averages, which begin at 0, are to be divided by."""
  return 1 - jnp.float32(decay) ** book.steps


def update(
  book: Codebook, counts: jax.Array, sums: jax.Array, *, decay: float, eps: float = 1e-5
) -> Codebook:
  """Moves the averages by one batch and makes the codes of them.

  N <- d N + (1 - d) n, m <- d m + (1 - d) s, both divided by 1 - d^t; then e_j = m_j / N~_j with
  N~_j = (N_j + eps) sum N / (sum N + K eps). A code that no row of the batch chose stays where it
  is; in the authors' code eps draws it to 0.

  Args:
    book: before.
    counts: n, [K], of the whole batch, from `totals`.
    sums: s, [K, D].
    decay: d.
    eps: rows that are added to each code.

  Returns:
    The codebook after.

  Source: van den Oord et al., 2017, arXiv:1711.00937, appendix A.1, and the code in Sonnet.

  >>> book = update(start(jnp.zeros((1, 1))), jnp.array([2.0]), jnp.array([[6.0]]), decay=0.99)
  >>> round(book.codes.item(), 4)
  3.0
  """
  mix = lambda average, new: decay * average + (1 - decay) * new
  book = book.replace(
    counts=mix(book.counts, counts), sums=mix(book.sums, sums), steps=book.steps + 1
  )
  mass = _mass(book, decay)
  average = book.counts / mass
  total = average.sum()
  smooth = (average + eps) * total / (total + len(average) * eps)
  moved = book.sums / mass / smooth[:, None]
  return book.replace(codes=jnp.where(counts[:, None] > 0, moved, book.codes))


def dead(book: Codebook, *, decay: float, threshold: float) -> jax.Array:
  """Which codes fewer than `threshold` rows a batch choose, on average: bool [K].

  >>> book = update(start(jnp.zeros((2, 1))), jnp.array([3.0, 1.0]), jnp.ones((2, 1)), decay=0.99)
  >>> dead(book, decay=0.99, threshold=2.0).tolist()
  [False, True]
  """
  return book.counts < threshold * _mass(book, decay)


def restart(
  book: Codebook, key: jax.Array, z: jax.Array, *, decay: float, threshold: float
) -> Codebook:
  """Puts dead codes on random rows, each with an average of `threshold` rows to begin with.

  Args:
    book: after one update at least.
    key: PRNG key.
    z: rows of the batch, [..., D].
    decay: of the averages.
    threshold: see `dead`.

  Returns:
    The codebook after.
  """
  z, gone = (
    z.reshape(-1, z.shape[-1]).astype(jnp.float32),
    dead(book, decay=decay, threshold=threshold),
  )
  rows, weight = z[jax.random.randint(key, gone.shape, 0, len(z))], threshold * _mass(book, decay)
  return book.replace(
    codes=jnp.where(gone[:, None], rows, book.codes),
    counts=jnp.where(gone, weight, book.counts),
    sums=jnp.where(gone[:, None], weight * rows, book.sums),
  )


# ---------------------------------------------------------------------------------- the first codes


def _uniform(key: jax.Array, z: jax.Array, num_codes: int) -> jax.Array:
  return jax.random.uniform(key, (num_codes, z.shape[-1]), minval=-1.0, maxval=1.0) / num_codes


def _rows(key: jax.Array, z: jax.Array, num_codes: int) -> jax.Array:
  return z[jax.random.permutation(key, len(z))[:num_codes]]


def _kmeans(key: jax.Array, z: jax.Array, num_codes: int, num_candidates: int = 4) -> jax.Array:
  """k-means++, greedy: a row is drawn by its squared distance from the codes so far, several times,
  and the one that leaves the least distance becomes a code.
  """

  def distances(rows):  # [M, D] -> to all of z, [M, N]; one at a time, [N, D] in memory
    return lax.map(lambda row: jnp.sum((z - row) ** 2, -1), rows)

  first, rest = jax.random.split(key)
  row = z[jax.random.randint(first, (), 0, len(z))]

  def add(left, key):  # left: of each row to its nearest code, [N]
    # where every row has a code of its own already, any row will do
    logits = jnp.where(left.max() > 0, jnp.log(left), 0.0)
    drawn = z[jax.random.categorical(key, logits, shape=(num_candidates,))]
    to_each = jnp.minimum(left, distances(drawn))
    best = to_each.sum(1).argmin()
    return to_each[best], drawn[best]

  _, more = lax.scan(add, distances(row[None])[0], jax.random.split(rest, num_codes - 1))
  return jnp.concatenate([row[None], more])


STARTS: dict[str, Callable] = {"kmeans": _kmeans, "batch": _rows, "uniform": _uniform}


def first_codes(key: jax.Array, z: jax.Array, num_codes: int, *, how: str) -> jax.Array:
  """Returns codes [K, D] to begin with.

  Args:
    key: PRNG key.
    z: what the encoder gives for the first batch, [..., D].
    num_codes: K.
    how: "kmeans": rows that lie apart, by greedy k-means++ with 4 candidates; "batch": random rows;
      "uniform": U(-1/K, 1/K), which an encoder of another scale uses hardly any of.

  Raises:
    ValueError: for another name, or if there are fewer rows than codes.

  Source: Arthur and Vassilvitskii, k-means++, 2007, with its section on greedy choice.

  >>> z = jnp.array([[0.0], [0.1], [9.0], [9.1]])
  >>> round(abs(jnp.diff(first_codes(jax.random.key(0), z, 2, how="kmeans"), axis=0).item()))
  9
  """
  if how not in STARTS:
    raise ValueError(f"--config.model.code_init={how!r} is not known: choose {', '.join(STARTS)}")
  z = z.reshape(-1, z.shape[-1]).astype(jnp.float32)
  if how != "uniform" and num_codes > len(z):
    raise ValueError(
      f"the first batch has {len(z):,} positions to begin {num_codes:,} codes with: lower"
      " --config.model.num_codes, raise --config.batch_size or set --config.model.code_init=uniform"
    )
  return STARTS[how](key, z, num_codes)


# ------------------------------------------------------------------------------------- soft choices


def gumbel_softmax(
  key: jax.Array, logits: jax.Array, temperature: float | jax.Array, *, hard: bool = False
) -> jax.Array:
  """A draw of a code that has a gradient: softmax((logits + g) / temperature), g Gumbel noise.

  The arg max is a draw from softmax(logits), whatever the temperature.

  Args:
    key: PRNG key.
    logits: [..., K].
    temperature: above 0; where it is low the weights are nearly one-hot.
    hard: the weights are exactly one-hot, with the gradient of the soft ones.

  Returns:
    f32 [..., K], sums 1.

  Source: Jang et al., 2017, arXiv:1611.01144; Maddison et al., 2017, arXiv:1611.00712.

  >>> gumbel_softmax(jax.random.key(0), jnp.array([0.0, 99.0]), 0.1, hard=True).tolist()
  [0.0, 1.0]
  """
  logits = logits.astype(jnp.float32)  # noise in bfloat16 has few values, and so few winners
  noisy = (logits + jax.random.gumbel(key, logits.shape)) / temperature
  soft = jax.nn.softmax(noisy)
  return (
    straight_through(soft, jax.nn.one_hot(noisy.argmax(-1), logits.shape[-1])) if hard else soft
  )


def temperature(step: jax.Array, *, start: float, final: float, num_steps: int) -> jax.Array:
  """A temperature that falls evenly in its logarithm: start (final / start)^(step / num_steps).

  >>> [round(temperature(t, start=1.0, final=0.01, num_steps=4).item(), 4) for t in (0, 2, 4, 9)]
  [1.0, 0.1, 0.01, 0.01]
  """
  share = jnp.minimum(jnp.asarray(step, jnp.float32) / num_steps, 1.0)
  return start * (final / start) ** share
