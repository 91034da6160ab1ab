"""Can a discriminator that took no part in the game tell samples from data?"""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gm.core import Info
from gm.nets import mlp

NUM_LEGS, STEPS = 20, 25  # legs of training, steps of each
BATCH = 256  # of data and as many of samples
_NET = mlp.Discriminator(widths=(64, 64))


def held_out(
  fake: Mapping[str, np.ndarray], real: Mapping[str, np.ndarray], info: Info
) -> dict[str, float]:
  """Trains a new discriminator on half of the samples and data, and asks it about the other half.

  Any D gives a bound, log 4 - L_D <= 2 JSD(p_data || p_g), with L_D its expected loss; equality at
  D* = p_data / (p_data + p_g). A loss near log 4 in the game itself proves nothing: that D may be
  weak, or lag behind G. This one was trained against the same generator as it is asked about. It is
  small and blind to fine structure: it passes a ring whose modes are five times too wide.

  Args:
    fake: "point" [N, D] or "image" [N, H, W, C].
    real: the same kind, [M, ...].
    info: not used.

  Returns:
    fresh_accuracy: share that it gets right on the held-out half, 1/2 for an exact sampler.
    fresh_jsd: (log 4 - L_D) / 2 there, in nats: an estimate of a lower bound of the Jensen-Shannon
      divergence, which is at most log 2; about 0, or below by the noise, for an exact sampler.

  Raises:
    ValueError: if there is neither, the kinds differ, there are fewer than 4 of either, or a value
      is not finite.

  Source: Goodfellow et al., 2014, arXiv:1406.2661, theorem 1; Lopez-Paz and Oquab, 2017,
  arXiv:1610.06545, classifier two-sample tests.

  >>> x = np.random.default_rng(0).standard_normal((400, 1))
  >>> held_out({"point": x + 9}, {"point": x}, Info({}))["fresh_accuracy"]
  1.0
  """
  kind = next((k for k in ("point", "image") if k in fake), None)
  if kind is None or kind not in real:
    raise ValueError(
      f"fresh.held_out takes points or images, the samples hold {_names(fake)} and the real data"
      f" {_names(real)}: take it out of --config.metrics"
    )
  x, y = (np.asarray(b[kind], np.float32).reshape(len(b[kind]), -1) for b in (real, fake))
  if min(len(x), len(y)) < 4 or not (np.isfinite(x).all() and np.isfinite(y).all()):
    raise ValueError(
      f"fresh.held_out takes at least 4 finite examples of both, given {len(y)} samples and"
      f" {len(x)} real ones: raise --config.num_eval_samples, or see why they are not finite"
    )
  mean, std = x.mean(0), x.std(0)
  # in a random order, so that the parts are alike however the rows are sorted
  x, y = (
    np.random.default_rng(0).permutation((a - mean) / np.where(std > 0, std, 1.0)) for a in (x, y)
  )
  params = _fit(jax.random.key(0), *(a[i::4] for i in (0, 2) for a in (x, y)))
  s, t = (np.asarray(_NET.apply({"params": params}, a[1::2]), np.float64) for a in (x, y))
  loss = np.logaddexp(0, -s).mean() + np.logaddexp(0, t).mean()
  return {
    "fresh_accuracy": float(0.5 * ((s > 0).mean() + (t <= 0).mean())),
    "fresh_jsd": float(0.5 * (math.log(4) - loss)),
  }


held_out.least = 4


def _names(batch: Mapping) -> str:
  return ", ".join(sorted(batch)) or "nothing"


@jax.jit
def _fit(key: jax.Array, x: jax.Array, y: jax.Array, x_val: jax.Array, y_val: jax.Array) -> dict:
  """Trains on data x [N, D] and samples y [M, D]; returns what did best on the other two."""
  k_init, k_rows = jax.random.split(key)
  params = _NET.init(k_init, x[:2])["params"]
  tx = optax.adam(optax.cosine_decay_schedule(5e-3, NUM_LEGS * STEPS))

  def loss(p, real, fake):
    s, t = (_NET.apply({"params": p}, a) for a in (real, fake))
    return jnp.mean(jax.nn.softplus(-s)) + jnp.mean(jax.nn.softplus(t))

  def step(i, carry):
    params, opt = carry
    kx, ky = jax.random.split(jax.random.fold_in(k_rows, i))
    real = x[jax.random.randint(kx, (BATCH,), 0, len(x))]
    fake = y[jax.random.randint(ky, (BATCH,), 0, len(y))]
    updates, opt = tx.update(jax.grad(loss)(params, real, fake), opt)
    return optax.apply_updates(params, updates), opt

  def leg(i, carry):  # many pixels are soon learned by heart, so the best leg counts
    now, best, least = carry
    now = jax.lax.fori_loop(i * STEPS, (i + 1) * STEPS, step, now)
    found = loss(now[0], x_val, y_val)
    better = lambda new, old: jnp.where(found < least, new, old)
    return now, jax.tree.map(better, now[0], best), better(found, least)

  start = ((params, tx.init(params)), params, loss(params, x_val, y_val))
  return jax.lax.fori_loop(0, NUM_LEGS, leg, start)[1]
