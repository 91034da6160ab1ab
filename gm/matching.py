"""Captions and images: how well they fit, and the losses of games that ask it.

Words and regions are compared as in DAMSM (Xu et al., 2018, arXiv:1711.10485): every word looks for
its regions, and an image fits a caption as far as its words find what they say. In a batch an
image's own caption must fit it better than the others, and the other way round.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from gm import losses

MASKED = -1e30  # the logit of a pair that is not counted
EPS = 1e-8  # the least product of two norms that is divided by


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
  """<a, b> / max(|a| |b|, 1e-8) along the last axis; 0 where one of them is 0.

  >>> cosine(jnp.array([3.0, 0.0]), jnp.array([2.0, 0.0])).item()
  1.0
  """
  norms = jnp.sqrt(jnp.maximum(jnp.sum(a * a, -1) * jnp.sum(b * b, -1), EPS**2))
  return jnp.sum(a * b, -1) / norms


def attended(
  regions: jax.Array, words: jax.Array, mask: jax.Array, *, gamma: float = 4.0
) -> jax.Array:
  """For every word of every caption, the regions of every image that it speaks of, averaged.

  With <v_r, e_t> for region r and word t: a softmax over the words of the caption, so that words
  share a region out; gamma times that through a softmax over the regions gives the weights.

  Args:
    regions: [I, R, F].
    words: [C, T, F].
    mask: bool [C, T], False at padding, which no region is shared with.
    gamma: sharpness over regions.

  Returns:
    [I, C, T, F].

  Source: Xu et al., 2018, arXiv:1711.10485, equations 7 to 9.
  """
  scores = jnp.einsum("irf,ctf->icrt", regions, words)
  shares = jax.nn.softmax(jnp.where(mask[:, None], scores, MASKED), axis=-1)
  weights = jax.nn.softmax(gamma * shares, axis=2)
  return jnp.einsum("icrt,irf->ictf", weights, regions)


def relevance(
  regions: jax.Array,
  words: jax.Array,
  mask: jax.Array,
  *,
  gamma: float = 4.0,
  sharpness: float = 5.0,
) -> jax.Array:
  """How well every image fits the words of every caption: log sum_t exp(sharpness cos(c_t, e_t)).

  Args:
    regions: [I, R, F].
    words: [C, T, F].
    mask: bool [C, T], False at padding, which is left out of the sum.
    gamma: see `attended`, which gives c_t.
    sharpness: how far the best word counts for all.

  Returns:
    [I, C].

  Source: Xu et al., 2018, arXiv:1711.10485, equation 10, without its outer power, as in its code.
  """
  fit = cosine(attended(regions, words, mask, gamma=gamma), words)  # [I, C, T]
  return jax.nn.logsumexp(jnp.where(mask, sharpness * fit, MASKED), axis=-1)


def contrast(scores: jax.Array, same: jax.Array) -> jax.Array:
  """Cross-entropy of picking a row's own column among all, and a column's own row; their sum.

  Args:
    scores: logits [B, B], own pairs on the diagonal.
    same: bool [B, B], pairs that fit as well as own ones and are not counted; the diagonal always
      is.

  Returns:
    scalar, nats: 2 log B where all scores are alike and no other pair fits.

  Source: Xu et al., 2018, arXiv:1711.10485, equations 11 and 12.

  >>> round(float(contrast(jnp.zeros((4, 4)), jnp.eye(4, dtype=bool))), 4)  # 2 log 4
  2.7726
  """
  own = jnp.eye(len(scores), dtype=bool)
  scores, labels = jnp.where(same & ~own, MASKED, scores), jnp.arange(len(scores))
  entropy = optax.softmax_cross_entropy_with_integer_labels
  return entropy(scores, labels).mean() + entropy(scores.T, labels).mean()


def matching(
  regions: jax.Array,
  whole: jax.Array,
  sentence: jax.Array,
  words: jax.Array,
  mask: jax.Array,
  same: jax.Array,
  *,
  gammas: tuple[float, float, float] = (4.0, 5.0, 10.0),
) -> jax.Array:
  """DAMSM's loss: `contrast` of words with regions, and of sentences with whole images.

  Args:
    regions: [B, R, F].
    whole: [B, F].
    sentence: [B, F].
    words: [B, T, F].
    mask: bool [B, T], False at padding.
    same: bool [B, B], see `contrast`.
    gammas: of `attended`, the sharpness of `relevance`, and what multiplies all scores.

  Returns:
    scalar, nats: L_w0 + L_w1 + L_s0 + L_s1.

  Source: Xu et al., 2018, arXiv:1711.10485, equation 13.
  """
  by_words = relevance(regions, words, mask, gamma=gammas[0], sharpness=gammas[1])
  by_sentence = cosine(whole[:, None], sentence)
  return contrast(gammas[2] * by_words, same) + contrast(gammas[2] * by_sentence, same)


def same_text(tokens: jax.Array) -> jax.Array:
  """Which captions of a batch are the same, word by word: [B, T] -> bool [B, B].

  >>> same_text(jnp.array([[1, 2], [1, 2], [1, 3]])).astype(int).tolist()
  [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
  """
  return (tokens[:, None] == tokens).all(-1)


def r_precision(
  whole: jax.Array, sentence: jax.Array, tokens: jax.Array, key: jax.Array, *, num: int = 100
) -> jax.Array:
  """Share of images whose own caption is the nearest of `num`, the others drawn from the set.

  Args:
    whole: codes of images, [N, F].
    sentence: codes of their captions, [N, F].
    tokens: [N, T]: captions of the same words are not drawn as others; where all are the same
      there are none.
    key: PRNG key of the draws, with replacement.
    num: captions for each image; chance is 1 / num.

  Returns:
    scalar in [0, 1]. A caption that is as near as the own one counts as nearer.

  Source: Xu et al., 2018, arXiv:1711.10485, section 4.
  """
  unit = lambda x: x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), EPS)
  whole, sentence = unit(whole), unit(sentence)

  def one(args):  # an image at a time: all pairs are too many
    key, i = args
    other = (tokens != tokens[i]).any(-1)
    place = jnp.cumsum(other)  # of the n-th other caption: where this is n
    nth = jnp.floor(jax.random.uniform(key, (num - 1,)) * place[-1]) + 1
    drawn = jnp.minimum(jnp.searchsorted(place, nth), len(whole) - 1)
    fit = sentence @ whole[i]
    return jnp.all(fit[i] > jnp.where(other[drawn], fit[drawn], -jnp.inf))

  keys = jax.random.split(key, len(whole))
  return jax.lax.map(one, (keys, jnp.arange(len(whole)))).mean()


# ------------------------------------------------------------- a discriminator of pairs of the two


def aware_d(
  real_image: jax.Array,
  real_pair: jax.Array,
  wrong_pair: jax.Array,
  fake_image: jax.Array,
  fake_pair: jax.Array,
) -> jax.Array:
  """Loss of a D that judges images, and images with captions, of which some are wrong.

  [-log D(x) - log D(x, s)] / 2 + [-log(1 - D(x')) - log(1 - D(x', s)) - log(1 - D(x, s'))] / 3,
  D = sigmoid(logit), each a mean, x' a sample for s and s' a caption of another image.

  Args:
    real_image: logits of data, [B], as all.
    real_pair: of data with their captions.
    wrong_pair: of data with others.
    fake_image: of samples.
    fake_pair: of samples with the captions they are made for.

  Returns:
    scalar, nats: 2 log 2 where all logits are 0.

  Source: the code of Xu et al., 2018, arXiv:1711.10485; wrong captions: Reed et al., 2016,
  arXiv:1605.05396.

  >>> zero = jnp.zeros(4)
  >>> round(float(aware_d(zero, zero, zero, zero, zero)), 4)
  1.3863
  """
  true = losses.nonsaturating_g  # E softplus(-logit)
  false = lambda logits: true(-logits)
  real = true(real_image) + true(real_pair)
  return real / 2 + (false(fake_image) + false(fake_pair) + false(wrong_pair)) / 3


def aware_g(fake_image: jax.Array, fake_pair: jax.Array) -> jax.Array:
  """Loss of G against it: -log D(x') - log D(x', s), each a mean.

  Args:
    fake_image: logits of samples, [B].
    fake_pair: of samples with the captions they are made for, [B].

  Returns:
    scalar, nats: 2 log 2 where all logits are 0.

  Source: the code of Xu et al., 2018, arXiv:1711.10485.

  >>> round(float(aware_g(jnp.zeros(4), jnp.zeros(4))), 4)
  1.3863
  """
  return losses.nonsaturating_g(fake_image) + losses.nonsaturating_g(fake_pair)
