"""GAN. Goodfellow et al., Generative Adversarial Nets, NIPS 2014, arXiv:1406.2661.

Idea: G maps noise z to data; D tells data from G(z); each improves against the other. With D at its
best the game's value is -log 4 + 2 JSD(p_data || p_g), least where p_g = p_data.
Objective, in logits s = logit D, softplus(s) = log(1 + e^s):
  D:                 E softplus(-s(x)) + E softplus(s(G(z)))
  G, nonsaturating:  E softplus(-s(G(z)))      = -E log D(G(z))
  G, minimax:        -E softplus(s(G(z)))      =  E log(1 - D(G(z)))
Departures: `paper` sets G's output bias from the pixel means of the first batch, the authors from
those of the training set; its momentum rises at every update, theirs once an epoch. `small` is a
smaller network with batch normalisation in G, Adam, normal noise and averaged weights.
Run: python main.py --config=configs/gan.py --workdir=/tmp/gan
  about 3 minutes on 2 cores; the rarest digit is 8 % of the samples, Frechet distance 20 to 23
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gm import core, diagnostics, losses, optim, pictures
from gm.nets import mlp
from gm.nn import init as inits


def stages(config, info: core.Info) -> list[core.Stage]:
  """Returns the one stage of a GAN of fully connected networks, for images or points."""
  m = config.model
  data = "image" if "image" in info.shape else "point"
  g = mlp.Generator(
    info.shape[data],
    widths=m.g_widths,
    activation=m.g_activation,
    norm=m.g_norm,
    output=m.g_output,
    kernel_init=inits.named(m.g_init, m.g_init_scale),
    dtype=config.compute_dtype,
  )
  d = mlp.Discriminator(
    widths=m.d_widths,
    activation=m.d_activation,
    pieces=m.d_pieces,
    dropout=m.d_dropout,
    kernel_init=inits.named(m.d_init, m.d_init_scale),
    dtype=config.compute_dtype,
  )
  if m.optimizer == "adam":
    tx = {n: optim.adam(lr, b1=m.b1) for n, lr in (("g", config.lr), ("d", config.lr * m.d_lr))}
  else:  # the paper's: momentum rises for 250 epochs of 500 updates, the rate falls for ever
    momentum = optim.momentum_ramp(0.5, 0.7, num_steps=125_000)
    tx = {n: optim.sgd(optim.inverse_decay(config.lr), momentum) for n in ("g", "d")}
  g_criterion = {"nonsaturating": losses.nonsaturating_g, "minimax": losses.minimax_g}[m.loss]

  unit = m.g_output == "sigmoid"  # the paper's pixels lie in [0, 1], the data's in [-1, 1]

  def G(params, stats, z, train=True):  # [B, Z] -> [B, H, W, C] or [B, D]
    x, stats = core.apply(g, params, stats, z, train=train)
    return (2 * x - 1 if unit else x), stats

  def D(params, x, key):  # -> logits [B]
    x = (x + 1) / 2 if unit else x
    return core.apply(d, params, {}, x, rngs={"dropout": key})[0]

  def noise(key, n):
    if m.noise == "uniform":
      return jax.random.uniform(key, (n, m.z_dim), minval=-1.0)
    return jax.random.normal(key, (n, m.z_dim))

  def init(key, batch, prev):
    kg, kd = jax.random.split(key)
    x = batch[data]
    first = g
    if m.g_bias_from_data:  # then G starts at the mean picture
      mean = jnp.clip((x.mean(0).ravel() + 1) / 2, 0.01, 0.99)
      first = g.clone(output_bias_init=inits.constant(jnp.log(mean / (1 - mean))))
    g_params, g_stats = core.build(first, kg, jnp.zeros((2, m.z_dim)))
    d_params, _ = core.build(d, kd, x[:2], train=False)
    params = {"g": g_params, "d": d_params}
    return core.State(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt={n: core.init_slot(tx[n], params, [n]) for n in ("g", "d")},
      stats={"g": g_stats},
      ema={"g": g_params, "g_stats": g_stats},
    )

  def step(state, batch, key):
    kd, kg, k_drop = jax.random.split(key, 3)
    x, n = batch[data], len(batch[data])

    def d_loss(p, b):  # moves d only; G is a constant here
      fake, _ = G(p["g"], state.stats["g"], b["z"])
      both = D(p["d"], jnp.concatenate([b["x"], fake]), jax.random.fold_in(k_drop, 0))
      real, fake = jnp.split(both, 2)  # D has no batch statistics, so one pass is two
      return losses.bce_d(real, fake), ({}, diagnostics.discriminator_stats(real, fake))

    def g_loss(p, b):  # moves g only, against the D that has just moved
      fake, stats = G(p["g"], state.stats["g"], b["z"])
      return g_criterion(D(p["d"], fake, jax.random.fold_in(k_drop, 1))), ({"g": stats}, {})

    k = config.accumulate
    state, found = core.minimize(
      state, tx["d"], d_loss, ["d"], {"x": x, "z": noise(kd, n)}, accumulate=k
    )
    state, more = core.minimize(state, tx["g"], g_loss, ["g"], {"z": noise(kg, n)}, accumulate=k)
    ema = core.ema(state.ema, {"g": state.params["g"], "g_stats": state.stats["g"]}, m.ema)
    return state.replace(step=state.step + 1, ema=ema), {**found, **more}

  def generate(state, z):
    return G(state.ema["g"], state.ema["g_stats"], z, train=False)[0]

  def sample(state, batch, key):
    return {data: generate(state, noise(key, len(batch[data])))}

  def evaluate(state, batch, key):
    k_noise, k_drop = jax.random.split(key)
    z = noise(k_noise, len(batch[data]))

    def logits(params):
      return D(state.params["d"], G(params, state.stats["g"], z)[0], k_drop)

    return diagnostics.generator_gradients(logits, state.params["g"])

  def show(state, batch, key):
    if data != "image":
      return {}
    start, end = noise(key, 16).reshape(2, 8, m.z_dim)
    return {"interpolation": pictures.lines(lambda z: generate(state, z), start, end)}

  return [core.Stage("train", config.num_steps, init, step, sample, evaluate, show)]
