"""GAN. Goodfellow et al., Generative Adversarial Nets, NIPS 2014, arXiv:1406.2661.

Idea: G maps noise z to data; D tells data from G(z); each improves against the other. With D at its
best the game's value is -log 4 + 2 JSD(p_data || p_g), least where p_g = p_data.
Objective, in logits s = logit D, softplus(s) = log(1 + e^s):
  D:                 E softplus(-s(x)) + E softplus(s(G(z)))
  G, nonsaturating:  E softplus(-s(G(z)))      = -E log D(G(z))
  G, minimax:        -E softplus(s(G(z)))      =  E log(1 - D(G(z)))
Failures and remedies: `vanishing` holds G still while D wins, and the minimax gradient dies;
`collapse` loses modes. pack: D sees m samples as one, Lin et al., PacGAN, 2018, arXiv:1712.04086.
unroll: G's loss is that after k more steps of D, differentiated through them, Metz et al., Unrolled
GAN, 2017, arXiv:1611.02163.
Departures: `paper` sets G's output bias from the pixel means of the first batch, the authors from
those of the training set; its momentum rises at every update, theirs once an epoch. `small` is a
smaller network with batch normalisation in G, Adam, normal noise and averaged weights. The authors
of unrolling look ahead from the D before its own step; here D has moved, as for the plain G.
Run: python main.py --config=configs/gan.py --workdir=/tmp/gan
  about 3 minutes on 2 cores; the rarest digit is 8 % of the samples, Frechet distance 20 to 23
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gm import augment, core, diagnostics, flags, losses, optim, pictures
from gm.nets import mlp
from gm.nn import init as inits
from gm.probability import latents, likelihood


def unroll(
  tx: optax.GradientTransformation, loss: Callable, params: Any, opt: optax.OptState, num_steps: int
) -> Any:
  """A player's parameters after more steps on its loss, differentiable in all that the loss holds.

  Args:
    tx: its optimizer.
    loss: (params, i) -> scalar; i counts the steps, for what it draws.
    params: where it stands.
    opt: state of the optimizer there; the caller's stays as it is.
    num_steps: steps to look ahead; 0 returns `params`.

  Source: Metz et al., 2017, arXiv:1611.02163, equations 4 to 6.

  >>> tx = optax.sgd(0.5)
  >>> ahead = lambda g: unroll(tx, lambda d, i: -g * d, 1.0, tx.init(1.0), 2)
  >>> float(ahead(3.0)), float(jax.grad(ahead)(3.0))  # d + 2 * 0.5 * g, and its slope in g
  (4.0, 1.0)
  """

  def move(carry, i):
    params, opt = carry
    updates, opt = tx.update(jax.grad(loss)(params, i), opt, params)
    return (optax.apply_updates(params, updates), opt), None

  (params, _), _ = jax.lax.scan(move, (params, opt), jnp.arange(num_steps))
  return params


def stages(config, info: core.Info) -> list[core.Stage]:
  """Returns the one stage of a GAN of fully connected networks, for images or points.

  Raises:
    ValueError: for a name or a number that is not possible, or if packs do not divide the batch.
  """
  m, data = config.model, flags.leaf(info, "image", "point")
  flags.within(m, "z_dim", "d_pieces", "pack", least=1)
  flags.within(m, "g_widths", "d_widths", least=1, empty=True)
  flags.within(m, "g_from", least=0, most=flags.MOST_STEPS)
  flags.within(m, "unroll", least=0)
  flags.within(m, "d_lr", least=0.0)  # 0: D stands still
  flags.within(m, "g_init_scale", "d_init_scale", above=0.0)
  flags.within(m, "b1", "ema", least=0.0, below=1.0)
  flags.within(m, "d_dropout", least=0.0, below=1.0, length=2)
  flags.within(m, "g_bias")
  flags.choice(m, "optimizer", ("adam", "sgd"))
  flags.choice(m, "noise", ("normal", "uniform"))
  for key in ("g_activation", "d_activation"):
    flags.choice(m, key, tuple(mlp.ACTIVATIONS))
  for key in ("g_init", "d_init"):
    flags.choice(m, key, tuple(inits.DENSE))
  flags.choice(m, "g_norm", mlp.NORMS)
  flags.choice(m, "g_output", tuple(mlp.OUTPUTS))
  augment.require(m.augment, info.shape[data])
  if m.g_bias_from_data and m.g_output != "sigmoid":
    raise ValueError(
      "log-odds of pixels are a bias for outputs in [0, 1]: set --config.model.g_bias_from_data="
      "False or --config.model.g_output=sigmoid"
    )
  if config.batch_size % (m.pack * config.accumulate):
    raise ValueError(
      f"packs of {m.pack} do not divide a batch of {config.batch_size} in {config.accumulate}"
      " parts: change --config.model.pack or --config.batch_size"
    )
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
    # the slope of Adam's root is infinite for a weight that never had a gradient
    ahead = optax.adam(config.lr * m.d_lr, b1=m.b1, eps_root=1e-15)
  else:  # the paper's: momentum rises for 250 epochs of 500 updates, the rate falls for ever
    momentum = optim.momentum_ramp(0.5, 0.7, num_steps=125_000)
    tx = {n: optim.sgd(optim.inverse_decay(config.lr), momentum) for n in ("g", "d")}
    ahead = tx["d"]
  criteria = {"nonsaturating": losses.nonsaturating_g, "minimax": losses.minimax_g}
  g_criterion = criteria[flags.choice(m, "loss", tuple(criteria))]

  unit = m.g_output == "sigmoid"  # the paper's pixels lie in [0, 1], the data's in [-1, 1]

  def G(params, stats, z, train=True):  # [B, Z] -> [B, H, W, C] or [B, D]
    x, stats = core.apply(g, params, stats, z, train=train)
    return (2 * x - 1 if unit else x), stats

  def D(params, x, key):  # -> logits of packs [B / pack]
    x = (x + 1) / 2 if unit else x
    packs = x.reshape(len(x) // m.pack, -1)
    return core.apply(d, params, {}, packs, rngs={"dropout": key})[0]

  def play(params, x, fake, key):  # -> logits of data and of samples
    both = D(params, jnp.concatenate([x, fake]), key)
    return jnp.split(both, 2)  # D has no batch statistics, so one pass is two

  def noise(key, n):
    return latents.draw(m.noise, key, (n, m.z_dim))

  def init(key, batch, prev):
    k = core.keys(key, "g", "d")
    x = batch[data]
    first = g.clone(output_bias_init=inits.constant(m.g_bias))
    if m.g_bias_from_data:  # then G starts at the mean picture
      mean = jnp.clip((x.mean(0).ravel() + 1) / 2, 0.01, 0.99)
      first = g.clone(output_bias_init=inits.constant(jnp.log(mean / (1 - mean))))
    g_params, g_stats = core.build(first, k.g, jnp.zeros((2, m.z_dim)))
    d_params, _ = core.build(d, k.d, jnp.zeros((2, m.pack * x[0].size)), train=False)
    params = {"g": g_params, "d": d_params}
    return core.State(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt={n: core.init_slot(tx[n], params, [n]) for n in ("g", "d")},
      stats={"g": g_stats},
      ema={"g": g_params, "g_stats": g_stats},
    )

  def step(state, batch, key):
    k = core.keys(key, "d", "g", "drop", "see")

    def d_loss(p, b):  # moves d only; G is a constant here
      see = augment.views(b["see"], m.augment)  # what D sees of images
      fake, _ = G(p["g"], state.stats["g"], b["z"])
      real, fake = play(p["d"], see(0, b["x"]), see(1, fake), jax.random.fold_in(b["drop"], 0))
      return losses.bce_d(real, fake), ({}, diagnostics.discriminator_stats(real, fake))

    def g_loss(p, b):  # moves g only, against the D that has just moved
      see = augment.views(b["see"], m.augment)
      fake, stats = G(p["g"], state.stats["g"], b["z"])
      players = {"d": p["d"]}
      if m.unroll:  # or against the one that it would become; the fakes are no constants to it
        pairs, k_look = (see(3, b["x"]), see(4, fake)), jax.random.fold_in(b["drop"], 2)
        look = lambda q, i: losses.bce_d(*play(q["d"], *pairs, jax.random.fold_in(k_look, i)))
        players = unroll(ahead, look, players, state.opt["d"], m.unroll)
      logits = D(players["d"], see(2, fake), jax.random.fold_in(b["drop"], 1))
      return g_criterion(logits), ({"g": stats}, {})

    parts, n = {"x": batch[data], "drop": k.drop, "see": k.see}, config.accumulate
    z = noise(k.d, len(batch[data]))
    state, found = core.minimize(state, tx["d"], d_loss, ["d"], {**parts, "z": z}, accumulate=n)
    z = noise(k.g, len(batch[data]))
    moved, more = core.minimize(state, tx["g"], g_loss, ["g"], {**parts, "z": z}, accumulate=n)
    if m.g_from:  # until then D trains alone; what G would do is logged
      starts = state.step >= m.g_from
      moved = jax.tree.map(lambda new, old: jnp.where(starts, new, old), moved, state)
    state = moved
    ema = core.ema(state.ema, {"g": state.params["g"], "g_stats": state.stats["g"]}, m.ema)
    return state.replace(step=state.step + 1, ema=ema), {**found, **more}

  def generate(state, z):
    return G(state.ema["g"], state.ema["g_stats"], z, train=False)[0]

  def latent(batch, key):
    return noise(key, len(batch[data]))

  def render(state, z, batch):
    return {data: generate(state, z)}

  def sample(state, batch, key):
    return render(state, latent(batch, key), batch)

  # both laws are known where the data are normal and G(z) = a z + b on a line
  line = info.shape[data] == (1,) and m.pack == 1
  affine = not m.g_widths and m.g_output == "none" and m.noise == "normal" and m.z_dim == 1
  exact = line and affine and len(info.modes) == 1

  def best(g_params, x):  # logits of D* = p_data / (p_data + p_g), [B, 1] -> [B]
    (b,), (a_and_b,) = G(g_params, {}, jnp.array([[0.0], [1.0]]))[0]

    def log_prob(mean, std):
      return likelihood.gaussian_log_prob(x, jnp.full_like(x, mean), jnp.log(std))

    return log_prob(info.modes[0][0], info.mode_std) - log_prob(b, jnp.abs(a_and_b - b))

  def evaluate(state, batch, key):
    k = core.keys(key, "noise", "drop", "value")
    x = batch[data]
    z = noise(k.noise, -(-len(x) // m.pack) * m.pack)  # whole packs

    def logits(params):
      return D(state.params["d"], G(params, state.stats["g"], z)[0], k.drop)

    found = diagnostics.generator_gradients(logits, state.params["g"])
    if exact:  # the game's value under D and under the best D, on the same points
      fake = G(state.params["g"], {}, z)[0]
      value = -losses.bce_d(*play(state.params["d"], x, fake, k.value))
      top = -losses.bce_d(best(state.params["g"], x), best(state.params["g"], fake))
      found |= {"value": value, "value_best": top}
    return found

  def show(state, batch, key):
    if data == "image":
      start, end = noise(key, 16).reshape(2, 8, m.z_dim)
      return {"interpolation": pictures.lines(lambda z: generate(state, z), start, end)}
    if not line:
      return {}
    k = core.keys(key, "noise", "drop")
    real, fake = batch[data], generate(state, noise(k.noise, len(batch[data])))
    both = jnp.concatenate([real, fake])
    x = jnp.linspace(both.min() - 1, both.max() + 1, 400)
    curves = {"D": jax.nn.sigmoid(D(state.params["d"], x[:, None], k.drop))}
    if exact:
      curves["best D"] = jax.nn.sigmoid(best(state.ema["g"], x[:, None]))
    return {"discriminator": {"x": x, **curves, "draws": fake[:, 0]}}

  train = core.Stage("train", config.num_steps, init, step, sample, evaluate, show)
  return [train._replace(latent=latent, generate=render, straight=m.noise == "uniform")]
