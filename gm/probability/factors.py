"""How codes that a model chose relate to factors that are known: scores of disentanglement."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gm.probability import information

NUM_BINS = 20  # of a code, of equal width
MOST_VALUES = 64  # of a factor
PAIRS = 32  # for one point of the classifier
ROUNDS = 40  # pairings of all rows, for each factor
RIDGE = 1e-3  # of unit variances


def mutual_information_gap(codes: jax.Array, factors: jax.Array) -> jax.Array:
  """MIG: how much more the best code tells of a factor than the second best, mean over factors.

  mean_k (I(z_a; v_k) - I(z_b; v_k)) / H(v_k), a and b the two codes that tell most; codes are cut
  into 20 bins of equal width.

  Args:
    codes: posterior means, [N, Z].
    factors: whole numbers from 0 to 63, [N, F].

  Returns:
    Scalar from 0 to 1; with one code b tells nothing, and a factor that never varies counts as 0.
    Of few rows bins tell by chance, so compare equal N.

  Source: Chen et al., 2018, arXiv:1802.04942.

  >>> v = jnp.array([[i // 4, i % 4] for i in range(16)])
  >>> alone, mixed = v * 1.0, jnp.stack([v.sum(1), v.sum(1)], 1) * 1.0
  >>> [round(float(mutual_information_gap(z, v)), 4) for z in (alone, mixed)]
  [1.0, 0.0]
  """
  low, high = codes.min(0), codes.max(0)
  bins = jnp.floor((codes - low) / jnp.maximum(high - low, 1e-12) * NUM_BINS)
  of_code = jax.nn.one_hot(jnp.minimum(bins, NUM_BINS - 1), NUM_BINS)  # [N, Z, bins]
  of_factor = jax.nn.one_hot(factors, MOST_VALUES)  # [N, F, values]
  joint = jnp.einsum("nzb,nfv->zfbv", of_code, of_factor)
  told = jax.vmap(jax.vmap(information.mutual_information))(joint)  # [Z, F]
  told = jnp.concatenate([told, jnp.zeros_like(told[:1])])
  entropy = jax.vmap(information.entropy)(of_factor.sum(0))
  second, best = jnp.sort(told, axis=0)[-2:]
  return jnp.where(entropy > 1e-6, (best - second) / jnp.maximum(entropy, 1e-6), 0.0).mean()


def difference_score(key: jax.Array, codes: jax.Array, factors: jax.Array) -> jax.Array:
  """Higgins' score: can a linear classifier tell which factor two images share?

  A point is the mean of |z - z'| over 32 pairs of rows that share the value of one factor, others
  at random: small in the code that holds that factor. A linear classifier, least squares on one-hot
  factors, learns from one half of the points and is scored on the other.

  Args:
    key: PRNG key, which rows are paired.
    codes: posterior means, [N, Z]; pairs are of these rows, the paper draws new images.
    factors: [N, F].

  Returns:
    Scalar, the share that is right, 1 / F by chance. It is no proof: also 1 where codes mix
    factors, as long as they mix each in its own way.

  Source: Higgins et al., 2017, beta-VAE.

  >>> v = jax.random.randint(jax.random.key(0), (512, 3), 0, 4)
  >>> alone, none = v * 1.0, jax.random.normal(jax.random.key(1), (512, 3))
  >>> float(difference_score(jax.random.key(2), alone, v))
  1.0
  >>> 0.2 < float(difference_score(jax.random.key(2), none, v)) < 0.5
  True
  """
  num, num_factors = factors.shape
  pairs = min(PAIRS, max(1, num // 8))
  points = num // 2 // pairs

  def gaps(key, factor):  # rows sorted by the factor, at random within a value, two by two
    k_order, k_group = jax.random.split(key)
    order = jnp.lexsort((jax.random.uniform(k_order, (num,)), factor))[: num // 2 * 2]
    a, b = order[::2], order[1::2]
    same = (factor[a] == factor[b]).astype(jnp.float32)  # not across a border between two values
    rows = jax.random.permutation(k_group, num // 2)[: points * pairs].reshape(points, pairs)
    gap = abs(codes[a] - codes[b]) * same[:, None]
    return gap[rows].sum(1) / jnp.maximum(same[rows].sum(1), 1.0)[:, None]

  def of_factor(key, factor):
    return jax.vmap(gaps, (0, None))(jax.random.split(key, ROUNDS), factor)

  found = jax.vmap(of_factor, (0, 1))(jax.random.split(key, num_factors), factors)
  found = found.swapaxes(0, 1)  # [rounds, F, points, Z]
  x = found.reshape(2, -1, codes.shape[1])
  x = (x - x[0].mean(0)) / jnp.maximum(x[0].std(0), 1e-12)
  x = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)
  truth = jnp.arange(num_factors)[None, :, None].repeat(ROUNDS // 2, 0).repeat(points, 2).ravel()
  gram = x[0].T @ x[0] / x.shape[1] + RIDGE * jnp.eye(x.shape[2])
  weight = jnp.linalg.solve(gram, x[0].T @ jax.nn.one_hot(truth, num_factors))
  return jnp.mean((x[1] @ weight).argmax(1) == truth)
