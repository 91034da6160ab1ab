"""Whether images show what their captions say, by a network that learns it of real ones.

Of data whose captions have a known truth (Info.said), the network learns from real images which
word a caption has for each attribute, and names those of the samples. A caption's word counts where
it was said; so does a beard or glasses that are not there, which captions say by silence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from gm.core import Info
from gm.nn import conv

NUM_STEPS, BATCH = 1_500, 64
HELD_OUT = 6  # one real image in so many measures the network


class Reader(nn.Module):
  """Images [B, H, W, C] -> logits [B, sum of the attributes' words]."""

  outputs: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Names what is there."""
    he = nn.initializers.he_normal()
    for width in (24, 48, 64):
      x = nn.relu(conv.Conv(width, 5 if x.shape[-1] < 24 else 3, 2, kernel_init=he)(x))
    x = nn.relu(nn.Dense(128, kernel_init=he)(x.reshape(len(x), -1)))
    return nn.Dense(self.outputs)(x)


def carried(fake: Mapping, real: Mapping, info: Info) -> dict[str, float]:
  """How often samples show what their captions say, and how often they would by chance.

  Args:
    fake: "image" [N, H, W, C] and "data_said" [N, A], the numbers of what captions say of each
      attribute (-1: nothing).
    real: "image" and "said" of at least 600 images; one in 6 is not learned from.
    info: `said` has the names of the attributes.

  Returns:
    For each attribute and for "all", their mean: carried_NAME, the share of samples where the
    network names what the caption says; real_NAME, the same of real images that it has not seen;
    chance_NAME, that of samples beside the captions of other samples.

  Raises:
    ValueError: if it is not known what captions say, or there are too few real images.
  """
  if "data_said" not in fake or "said" not in real:
    raise ValueError(
      "captions.carried needs captions of which is known what they say, and a method that is told"
      " them: set --config.data.name=avatars and --config.data.text_key=caption, or take it out of"
      " --config.metrics"
    )
  x, y = np.asarray(real["image"], np.float32), np.asarray(real["said"])
  if len(x) < carried.least:
    raise ValueError(f"captions.carried needs {carried.least} real images, given {len(x)}")
  samples, asked = np.asarray(fake["image"], np.float32), np.asarray(fake["data_said"])
  name = reader(x[len(x) // HELD_OUT :], y[len(x) // HELD_OUT :])
  found, seen = {}, name(samples)
  parts = {
    "carried": _agreement(seen, asked),
    "real": _agreement(name(x[: len(x) // HELD_OUT]), y[: len(x) // HELD_OUT]),
    "chance": _agreement(seen, np.random.default_rng(0).permutation(asked)),
  }
  for what, shares in parts.items():
    found |= {f"{what}_{n}": share for (n, _), share in zip(info.said, shares, strict=True)}
    found[f"{what}_all"] = float(np.mean(shares))
  return found


carried.least = 600


def _agreement(seen: np.ndarray, said: np.ndarray) -> list[float]:
  """The share of rows that agree, of those where something is said, for each attribute."""
  return [float((seen[:, i] == s)[s >= 0].mean()) for i, s in enumerate(said.T)]


def reader(x: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
  """Trains a network to name what images show.

  Args:
    x: images [N, H, W, C].
    y: what is said of each attribute, i32 [N, A]; -1: nothing.

  Returns:
    A function of images [M, H, W, C]: the numbers of words, [M, A].
  """
  sizes = y.max(0) + 1
  net, ends = Reader(int(sizes.sum())), np.cumsum(sizes)[:-1]
  rate = optax.cosine_decay_schedule(2e-3, NUM_STEPS)
  tx = optax.adamw(rate, weight_decay=1e-2)
  params = net.init(jax.random.key(0), jnp.zeros((1, *x.shape[1:])))

  def loss(params, x, y):
    total = 0.0
    for i, logits in enumerate(jnp.split(net.apply(params, x), ends, axis=1)):
      told = y[:, i] >= 0
      nats = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(y[:, i], 0))
      total += jnp.where(told, nats, 0.0).sum() / jnp.maximum(told.sum(), 1)
    return total

  @jax.jit
  def run(params, opt, x, y, rows):
    def one(carry, rows):
      params, opt = carry
      updates, opt = tx.update(jax.grad(loss)(params, x[rows], y[rows]), opt, params)
      return (optax.apply_updates(params, updates), opt), None

    return jax.lax.scan(one, (params, opt), rows)[0][0]

  rng = np.random.default_rng(0)
  rows = np.concatenate([rng.permutation(len(x)) for _ in range(-(-NUM_STEPS * BATCH // len(x)))])
  rows = rows[: NUM_STEPS * BATCH].reshape(NUM_STEPS, BATCH)
  params = run(params, tx.init(params), x, y, rows)
  apply = jax.jit(net.apply)

  def name(images):
    parts = [apply(params, images[i : i + 500]) for i in range(0, len(images), 500)]
    logits = np.concatenate([np.asarray(p) for p in parts])
    return np.stack([part.argmax(1) for part in np.split(logits, ends, axis=1)], axis=1)

  return name
