"""CGAN. Mirza and Osindero, Conditional Generative Adversarial Nets, 2014, arXiv:1411.1784.

Idea: the GAN's game for p(x|y). G and D both see the label y: G draws x for it, and D judges the
pair (x, y), so that a good x of another class is as false as a bad one.
Objective, in logits s(x, y) = logit D, fakes x' = G(z, y') for labels y' drawn evenly:
  D, log:      E softplus(-s(x, y)) + E softplus(s(x', y'))
  G, log:      E softplus(-s(x', y'))
  D, squared:  E (sigmoid s(x, y) - 1)^2 + E (sigmoid s(x', y'))^2
  G, squared:  E (sigmoid s(x', y') - 1)^2
Real examples come with their own labels, a fake with the one that it was made for; G moves on the
fakes that D has just seen, against the D that has just moved.
nets: `paths` are the paper's, where x or z and y each pass a hidden layer before they are joined;
`embedding` are those of a PyTorch port (CGAN-PyTorch), which joins a trainable row for each class
to z or x. The port trains the squared loss, which dies where D is sure.
Departures: G's log loss is the non-saturating one, the paper's G lowers E log(1 - D). The paper
gives no initialisation, and no slope for its momentum; `paper` takes those of the first GAN, and
does not stop early. `small` is the port's recipe on 9,000 digits (the port: 60,000) with the log
loss, a learning rate of 1e-3 (2e-4), fewer steps and averaged weights.
Run: python main.py --config=configs/cgan.py --workdir=/tmp/cgan
  5 minutes on 2 cores; 98.4 to 99.1 % of the samples are the digit that was asked for
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from gm import augment, core, diagnostics, flags, losses, optim
from gm.nets import cgan, mlp
from gm.nn import embed
from gm.nn import init as inits
from gm.probability import latents


def networks(m, shape: tuple, dtype: str) -> tuple[nn.Module, nn.Module]:
  """Returns G and D of a variant.

  Raises:
    ValueError: for names that do not exist.
  """
  flags.choice(m, "nets", ("embedding", "paths"))
  flags.choice(m, "g_activation", tuple(mlp.ACTIVATIONS))
  flags.choice(m, "g_norm", mlp.NORMS)
  flags.choice(m, "g_output", tuple(mlp.OUTPUTS))
  paths = m.nets == "paths"
  if paths:
    g_init, d_init = inits.uniform(m.g_init_scale), inits.uniform(m.d_init_scale)
  else:
    he = lambda scale: nn.initializers.variance_scaling(2.0 * scale**2, "fan_in", "normal")
    g_init, d_init = he(m.g_init_scale), he(m.d_init_scale)
  g = mlp.Generator(
    shape,
    m.g_widths,
    m.g_activation,
    m.g_output,
    m.g_norm,
    norm_first=False,
    use_bias=True,
    dropout=(m.dropout, m.dropout),
    kernel_init=g_init,
    dtype=dtype,
  )
  d = mlp.Discriminator(
    m.d_widths,
    pieces=m.d_pieces,
    dropout=(m.dropout, m.dropout),
    kernel_init=d_init,
    dtype=dtype,
  )
  if not paths:
    return cgan.Embedding(g, m.embed, dtype), cgan.Embedding(d, m.embed, dtype)
  return (
    cgan.Paths(g, m.g_paths, kernel_init=g_init, dtype=dtype),
    cgan.Paths(d, m.d_paths, m.d_path_pieces, kernel_init=d_init, dtype=dtype),
  )


def squared_d(real_logits: jax.Array, fake_logits: jax.Array) -> jax.Array:
  """E (sigmoid s(x) - 1)^2 + E (sigmoid s(x'))^2, the port's loss of D.

  >>> float(squared_d(jnp.zeros(2), jnp.zeros(2)))
  0.5
  """
  return 2 * losses.least_squares_d(jax.nn.sigmoid(real_logits), jax.nn.sigmoid(fake_logits))


def squared_g(fake_logits: jax.Array) -> jax.Array:
  """E (sigmoid s(x') - 1)^2, the port's loss of G.

  >>> float(squared_g(jnp.zeros(2)))
  0.25
  """
  return 2 * losses.least_squares_g(jax.nn.sigmoid(fake_logits))


LOSSES = {
  "log": (losses.bce_d, losses.nonsaturating_g),
  "squared": (squared_d, squared_g),
}


def stages(config, info: core.Info) -> list[core.Stage]:
  """Returns the one stage of a conditional GAN for labelled images or points.

  Raises:
    ValueError: for data without labels, a label that they do not have, or a name or a number that
      is not possible.
  """
  m, num_classes, data = config.model, info.num_classes, flags.leaf(info, "image", "point")
  flags.within(m, "z_dim", "embed", "d_pieces", "d_path_pieces", least=1)
  flags.within(m, "g_widths", "d_widths", least=1, empty=True)
  flags.within(m, "g_paths", "d_paths", least=1, length=2)
  flags.within(m, "g_init_scale", "d_init_scale", above=0.0)
  flags.within(m, "b1", "ema", "dropout", least=0.0, below=1.0)
  augment.require(m.augment, info.shape[data])
  if "label" not in info.shape or not num_classes:
    raise ValueError(flags.unlabelled("cgan", config.data))
  if not -1 <= m.sample_label < num_classes:
    raise ValueError(
      f"sample_label {m.sample_label} is no class: set --config.model.sample_label to 0 ..."
      f" {num_classes - 1}, or to -1 for the labels of the test split"
    )
  flags.choice(m, "loss", tuple(LOSSES))
  flags.choice(m, "optimizer", ("adam", "sgd"))
  flags.choice(m, "noise", ("normal", "unit"))  # unit: the paper's hypercube
  d_criterion, g_criterion = LOSSES[m.loss]
  g, d = networks(m, info.shape[data], config.compute_dtype)
  if m.optimizer == "adam":
    tx = {n: optim.adam(config.lr, b1=m.b1) for n in ("g", "d")}
  else:  # the paper's rate falls to 1e-6; the first GAN's momentum
    momentum = optim.momentum_ramp(0.5, 0.7, num_steps=125_000)
    rate = optim.inverse_decay(config.lr, 1.00004, floor=1e-6)
    tx = {n: optim.sgd(rate, momentum) for n in ("g", "d")}

  unit = m.g_output == "sigmoid"  # the paper's pixels lie in [0, 1], the data's in [-1, 1]

  def G(params, stats, z, y, key=None):  # [B, Z], [B, K] -> [B, H, W, C] or [B, D]
    rngs = {} if key is None else {"dropout": key}  # without a key it samples
    x, stats = core.apply(g, params, stats, z, y, train=key is not None, rngs=rngs)
    return (2 * x - 1 if unit else x), stats

  def D(params, x, y, key):  # -> logits [B]
    x = (x + 1) / 2 if unit else x
    return core.apply(d, params, {}, x, y, rngs={"dropout": key})[0]

  def noise(key, n):
    return latents.draw(m.noise, key, (n, m.z_dim))

  def one_hot(y):
    return embed.one_hot(y, num_classes)

  def init(key, batch, prev):
    k = core.keys(key, "g", "d")
    y = jnp.zeros((2, num_classes))
    params, stats = {}, {}
    params["g"], stats["g"] = core.build(g, k.g, jnp.zeros((2, m.z_dim)), y, train=False)
    params["d"], _ = core.build(d, k.d, batch[data][:2], y, train=False)
    return core.State(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt={n: core.init_slot(tx[n], params, [n]) for n in ("g", "d")},
      stats=stats,
      ema={"g": params["g"], "g_stats": stats["g"]},
    )

  def step(state, batch, key):
    k = core.keys(key, "noise", "label", "g", "d", "see")
    x, n = batch[data], len(batch[data])
    wanted = one_hot(jax.random.randint(k.label, (n,), 0, num_classes))

    def generate(p, b):
      fake, stats = G(p["g"], state.stats["g"], b["z"], b["wanted"], b["drop_g"])
      return fake, {"g": stats}

    def d_loss(p, b, fake):  # moves d only; no batch statistics in it, so one pass is two
      see = augment.views(b["see"], m.augment)  # what D sees of images
      both = jnp.concatenate([see(0, b["x"]), see(1, fake)])
      labels = jnp.concatenate([b["y"], b["wanted"]])
      logits = D(p["d"], both, labels, jax.random.fold_in(b["drop_d"], 0))
      real_logits, fake_logits = jnp.split(logits, 2)
      found = diagnostics.discriminator_stats(real_logits, fake_logits)
      return d_criterion(real_logits, fake_logits), ({}, found)

    def g_loss(p, b, fake):  # moves g only, through fake
      seen = augment.views(b["see"], m.augment)(2, fake)
      logits = D(p["d"], seen, b["wanted"], jax.random.fold_in(b["drop_d"], 1))
      return g_criterion(logits), ({}, {})

    parts = {"x": x, "y": one_hot(batch["label"]), "z": noise(k.noise, n), "wanted": wanted}
    parts |= {"drop_g": k.g, "drop_d": k.d, "see": k.see}
    state, found = core.alternate(
      state, tx, generate, d_loss, g_loss, parts, accumulate=config.accumulate
    )
    ema = core.ema(state.ema, {"g": state.params["g"], "g_stats": state.stats["g"]}, m.ema)
    return state.replace(step=state.step + 1, ema=ema), found

  def generate(state, z, y):
    return G(state.ema["g"], state.ema["g_stats"], z, one_hot(y))[0]

  def asked(batch):  # the labels that samples are made for
    y = batch["label"]
    return y if m.sample_label < 0 else jnp.full_like(y, m.sample_label)

  def latent(batch, key):
    return noise(key, len(batch[data]))

  def render(state, z, batch):
    y = asked(batch)
    return {data: generate(state, z, y), "label": y}

  def sample(state, batch, key):
    """Draws for the labels of the batch, and gives them back."""
    return render(state, latent(batch, key), batch)

  def evaluate(state, batch, key):
    k = core.keys(key, "noise", "g", "d")
    y, z = batch["label"], noise(k.noise, len(batch["label"]))

    def logits(params):
      fake = G(params, state.stats["g"], z, one_hot(y), k.g)[0]
      return D(state.params["d"], fake, one_hot(y), k.d)

    found = diagnostics.generator_gradients(logits, state.params["g"])
    if info.modes:  # of a mixture the label is the mode
      gaps = jnp.linalg.norm(generate(state, z, y)[:, None] - jnp.asarray(info.modes), axis=-1)
      found["label_agreement"] = jnp.mean(gaps.argmin(1) == y)
    return found

  def show(state, batch, key):
    """A row for each class, the same noise in a column; points in the colour of their label."""
    if data == "point":
      if info.shape["point"] != (2,):
        return {}
      x = generate(state, noise(key, len(batch["label"])), batch["label"])
      return {"labels": {"points": x, "label": batch["label"]}}
    rows, cols = min(num_classes, 20), 10
    z, y = jnp.tile(noise(key, cols), (rows, 1)), jnp.repeat(jnp.arange(rows), cols)
    x = generate(state, z, y)
    return {"classes": x.reshape(rows, cols, *x.shape[1:])}

  train = core.Stage("train", config.num_steps, init, step, sample, evaluate, show)
  return [train._replace(latent=latent, generate=render, straight=m.noise == "unit")]
