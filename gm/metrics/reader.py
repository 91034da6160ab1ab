"""A small network that learns to read what is said of real images, and then reads samples.

It is trained anew for each set: a thousand images or more, a minute of processor time at 32 pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from gm.nn import conv

NUM_STEPS, BATCH = 1_500, 64


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


def train(x: np.ndarray, y: np.ndarray, sizes: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
  """Teaches a network to name A things of an image.

  Args:
    x: images f32 [N, H, W, C].
    y: i32 [N, A], a number of each thing; -1: not known.
    sizes: [A], how many numbers each has.

  Returns:
    name(images [M, H, W, C]) -> [M, A].
  """
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
