"""AAE, adversarial autoencoders. Makhzani et al., 2016, arXiv:1511.05644.

Idea: an autoencoder whose codes, over the whole data set, are pushed to a law p(z) of our choice by
a small GAN in code space: the encoder is the generator, a discriminator tells codes from draws of
p(z). Decoded draws of p(z) then look like data. A category y that the encoder infers can be pushed
to the uniform law in the same way, and a few labels give it a meaning.
Objective: moves, in this order, each with an Adam of its own; model.moves names those of a variant.
z = mean(x) + std(x) eps with eps ~ N(0, I) drawn anew in every move, y = softmax(logits(x)), p ~
p(z), k a one-hot; s_z and s_y the logits of D_z and D_y, softplus(s) = log(1 + e^s):
  rec  1/2 E sum over pixels of (x - dec(z, y))^2                  moves enc, z_head, y_head, dec
  d_z  z_weight (E softplus(-s_z(p)) + E softplus(s_z(z)))         d_z
  g_z  z_weight E softplus(-s_z(z))                                enc, z_head
  d_y  y_weight (E softplus(-s_y(k)) + E softplus(s_y(y)))         d_y
  g_y  y_weight E softplus(-s_y(y))                                enc, y_head
  cls  -E log y_label(x), labelled images, every label_every steps enc, y_head
p(z) is N(0, I), or `spokes`: as many narrow normals around 0 as there are classes. Where D_z sees
the label of an image, and that of the spoke that p is from, each class goes to its own spoke.
With decoder_label the decoder is told the label, so z keeps what the label does not say: the style.
Departures: sizes, rates and Adam are those of a TensorFlow port (conan7882), the paper has SGD with
momentum. Under Adam the scale of a loss does not matter, so neither do the weights, as long as they
are not 0. The port reads a label for its spokes and never shows it to D_z; d_label=False does that.
It knows which images of a batch have a label: where only num_labels have one, here the whole batch
counts as unlabelled and labelled_batch others join it, in `paper_spokes` a sixth of all that D_z
sees, as 10,000 are of 60,000. Labelled images are the first of each class in the order of the
seed, in the port in that of the file. Its README has 1e-4 and 2e-4 for the semi-supervised rate,
here 2e-4, and no epochs for the supervised variant, here 400. It paints the plane of codes evenly
over [-3, 3]^2 and each spoke as a rectangle, here at quantiles of N(0, I) and as a ray. Its
dropout, off by default, is left out. `small` has narrower networks and a higher rate,
`semisupervised` also noise of 0.3 on what the encoder sees, and 100 labels that play in every step.
Run: python main.py --config=configs/aae.py --workdir=/tmp/aae
  3 minutes on 2 cores; the squared MMD of the codes from the prior is below 0.001
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from gm import core, diagnostics, flags, labelled, losses, optim, pictures
from gm.nets import mlp
from gm.nn import embed
from gm.probability import spokes

MOVES = ("rec", "d_z", "g_z", "d_y", "g_y", "cls")
_he = nn.initializers.he_normal()


def _check(m, info: core.Info) -> None:
  flags.leaf(info, "image")
  flags.within(m, "z_dim", "widths", "labelled_batch", "label_every", least=1)
  flags.within(m, "d_widths", least=1, empty=True)
  flags.within(m, "num_categories", "num_labels", least=0)
  flags.within(m, "rate_ends", least=1, most=flags.MOST_STEPS, empty=True)
  flags.within(m, "b1", least=0.0, below=1.0)
  flags.within(m, "z_weight", "y_weight", above=0.0)  # which Adam would not feel but at 0
  flags.within(m, "input_noise", least=0.0)
  unknown = [move for move in m.moves if move not in MOVES]
  if unknown or not m.moves:
    raise ValueError(
      f"moves {unknown or '()'}: choose some of {', '.join(MOVES)} (--config.model.moves)"
    )
  for move, d in (("g_z", "d_z"), ("g_y", "d_y")):
    if move in m.moves and d not in m.moves:
      raise ValueError(f"{move} plays against {d}: --config.model.moves needs both or neither")
  if list(m.rate_ends) != sorted(set(m.rate_ends)):
    raise ValueError(f"--config.model.rate_ends={m.rate_ends} do not rise: give them in order")
  flags.choice(m, "prior", ("normal", "spokes"))
  if m.prior == "spokes" and m.z_dim % 2:
    raise ValueError(f"spokes lie in pairs of axes: make --config.model.z_dim={m.z_dim} even")
  uses = m.num_labels or m.decoder_label or m.d_label or m.prior == "spokes"
  if uses and not (info.num_classes and "label" in info.shape):
    raise ValueError(
      "labels are asked for, the data have none: use other --config.data.name, or set"
      " --config.model.num_labels=0, decoder_label, d_label to False and prior to normal"
    )
  if m.decoder_label and {"d_y", "g_y", "cls"} & set(m.moves):
    raise ValueError(
      "the decoder is told either the label or the y that the encoder infers: set"
      " --config.model.decoder_label=False, or take d_y, g_y and cls out of --config.model.moves"
    )
  if "cls" in m.moves and not m.num_labels:
    raise ValueError("cls learns from labels: set --config.model.num_labels above 0")
  if m.num_labels and m.num_labels % info.num_classes:
    raise ValueError(
      f"{m.num_labels} labels do not split into {info.num_classes} classes: change"
      " --config.model.num_labels"
    )
  num_categories = m.num_categories or info.num_classes
  if {"d_y", "g_y"} & set(m.moves) and num_categories < 2:
    raise ValueError(
      f"{num_categories} categories tell nothing: set --config.model.num_categories to 2 or more"
    )
  if "cls" in m.moves and m.num_categories not in (0, info.num_classes):
    raise ValueError(
      f"{m.num_categories} categories cannot have the names of {info.num_classes} classes: set"
      " --config.model.num_categories=0, or take cls out of --config.model.moves"
    )


def stages(config, info: core.Info) -> list[core.Stage]:
  """Returns the stage of an adversarial autoencoder, after one that picks labelled images if any.

  Raises:
    ValueError: for an unknown name, a size out of range, a player without its opponent, or labels
      that do not fit the data.
  """
  m, dtype = config.model, config.compute_dtype
  _check(m, info)
  shape, num_classes = info.shape["image"], info.num_classes
  num_categories = m.num_categories or num_classes
  moves = [move for move in MOVES if move in m.moves]
  inferred, has_code = {"d_y", "g_y", "cls"} & set(moves), {"rec", "d_z", "g_z"} & set(moves)
  code, category = ["enc", "z_head"], ["enc", "y_head"]
  players = {
    "rec": [*code, *(["y_head"] if inferred else []), "dec"],
    "d_z": ["d_z"],
    "g_z": code,
    "d_y": ["d_y"],
    "g_y": category,
    "cls": category,
  }
  tells_labels = m.d_label or m.decoder_label or m.prior == "spokes"
  y_dim = num_categories if inferred else num_classes if m.decoder_label else 0
  d = mlp.Discriminator(m.d_widths, kernel_init=_he, dtype=dtype)
  width = m.widths[-1]
  # the last layer of enc is rectified where it is read
  enc = mlp.Decoder((width,), m.widths[:-1], "relu", kernel_init=_he, dtype=dtype)
  nets = {"enc": (enc, math.prod(shape))}  # with the length of what each takes in
  if has_code:
    glorot = nn.initializers.glorot_uniform()
    dec = mlp.Generator(shape, m.widths[::-1], kernel_init=_he, output_init=glorot, dtype=dtype)
    nets["z_head"] = nn.Dense(2 * m.z_dim, kernel_init=_he, dtype=dtype), width
    nets["dec"] = dec, m.z_dim + y_dim
  if {"d_z", "g_z"} & set(moves):
    nets["d_z"] = d, m.z_dim + (num_classes + 1 if m.d_label else 0)
  if inferred:
    nets["y_head"] = nn.Dense(num_categories, kernel_init=_he, dtype=dtype), width
  if {"d_y", "g_y"} & set(moves):
    nets["d_y"] = d, num_categories

  def optimizer(move):
    ends = [end // (m.label_every if move == "cls" else 1) for end in m.rate_ends]
    return optim.adam(
      optim.piecewise([config.lr / 10**i for i in range(len(ends) + 1)], ends), m.b1
    )

  tx = {move: optimizer(move) for move in moves}

  def run(p, name, x):
    return nets[name][0].apply({"params": p[name]}, x).astype(jnp.float32)

  def hidden(p, x):  # [B, H, W, C] -> [B, F]
    return nn.relu(run(p, "enc", x.reshape(len(x), -1)))

  def posterior(p, h):  # -> mean and std of z, [B, Z]
    mean, raw = jnp.split(run(p, "z_head", h), 2, axis=1)
    return mean, nn.softplus(raw)

  def encode(p, b):  # -> z [B, Z] and hidden units
    h = hidden(p, b["x"])
    mean, std = posterior(p, h)
    return mean + std * b["eps"], h

  def decode(p, z, y=None):  # [N, Z], [N, Y] -> [N, H, W, C]
    return run(p, "dec", z if y is None else jnp.concatenate([z, y], axis=1))

  def D(p, z, label):  # -> logits [B]
    if m.d_label:  # one more class stands for no label
      z = jnp.concatenate([z, embed.one_hot(label, num_classes + 1)], axis=1)
    return run(p, "d_z", z)

  def logits_of(p, b):  # of y, [B, Y]
    return run(p, "y_head", hidden(p, b["x"]))

  def one_hot(category):
    return jax.nn.one_hot(category, y_dim)  # zeros where there is no label

  def told(p, h, b):  # what the decoder is told beside z, [B, Y]
    if inferred:
      return nn.softmax(run(p, "y_head", h))
    return one_hot(b["label"]) if y_dim else None

  def prior(key, label):  # label: num_classes where there is none
    if m.prior == "spokes":
      return spokes.draw(key, label, m.z_dim, num_classes)
    return jax.random.normal(key, (len(label), m.z_dim))

  def observe(key, x):
    """What the encoder sees and how its code is drawn: anew for every move."""
    k = core.keys(key, "x", "eps")
    seen = x + m.input_noise * jax.random.normal(k.x, x.shape) if m.input_noise else x
    return {"x": seen, "eps": jax.random.normal(k.eps, (len(x), m.z_dim))}

  def init(key, batch, prev):
    keys = core.keys(key, *nets)
    params = {
      name: core.build(net, k, jnp.zeros((2, size)))[0]
      for k, (name, (net, size)) in zip(keys, nets.items(), strict=True)
    }
    return core.State(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt={move: core.init_slot(tx[move], params, players[move]) for move in moves},
      extra=prev.extra if m.num_labels else {},
    )

  # ------------------------------------------------------- losses: (p, b) -> loss, (stats, metrics)

  def rec(p, b):
    z, h = encode(p, b)
    return 0.5 * jnp.sum((b["clean"] - decode(p, z, told(p, h, b))) ** 2) / len(z), ({}, {})

  def d_z(p, b):
    real, fake = D(p, b["prior"], b["label"]), D(p, encode(p, b)[0], b["label"])
    found = diagnostics.discriminator_stats(real, fake)
    return m.z_weight * losses.bce_d(real, fake), ({}, found)

  def g_z(p, b):
    fake = D(p, encode(p, b)[0], b["label"])
    return m.z_weight * losses.nonsaturating_g(fake), ({}, {})

  def d_y(p, b):
    real, fake = run(p, "d_y", b["one_hot"]), run(p, "d_y", nn.softmax(logits_of(p, b)))
    return m.y_weight * losses.bce_d(real, fake), ({}, {})

  def g_y(p, b):
    fake = run(p, "d_y", nn.softmax(logits_of(p, b)))
    return m.y_weight * losses.nonsaturating_g(fake), ({}, {})

  def cls(p, b):
    logits = logits_of(p, b)
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, b["label"]).mean()
    return nll, ({}, {})

  loss_of = {"rec": rec, "d_z": d_z, "g_z": g_z, "d_y": d_y, "g_y": g_y, "cls": cls}

  def play(state, move, b):
    return core.minimize(
      state, tx[move], loss_of[move], players[move], b, slot=move, accumulate=config.accumulate
    )

  # --------------------------------------------------------------------------------------- the game

  def known(state):  # the labelled images whose turn it is
    return labelled.turn(state.extra, state.step // m.label_every, m.labelled_batch)

  def step(state, batch, key):
    k = core.keys(key, "prior", "category", *MOVES)
    x, found = batch["image"], {}
    label = jnp.full(len(x), num_classes)  # none
    if tells_labels and not m.num_labels:
      label = batch["label"]
    elif tells_labels:  # a few labelled images join the others
      more = known(state)
      x, label = jnp.concatenate([x, more["image"]]), jnp.concatenate([label, more["label"]])
    one_hots = one_hot(jax.random.randint(k.category, label.shape, 0, max(1, y_dim)))
    drawn = {"prior": prior(k.prior, label), "one_hot": one_hots}
    for move in MOVES[:-1]:
      if move in moves:
        b = {"clean": x, "label": label, **drawn, **observe(getattr(k, move), x)}
        state, more = play(state, move, b)
        found |= more
    if "cls" in moves:
      some = known(state)
      b = {"label": some["label"], **observe(k.cls, some["image"])}
      moved, more = play(state, "cls", b)  # measured in every step, kept where it is due
      state = core.every(m.label_every, state.step, lambda _: moved, state)
      found |= more
    return state.replace(step=state.step + 1), found

  on_spoke, told_label = m.d_label and m.prior == "spokes", m.decoder_label or "cls" in moves

  def latent(batch, key):
    k, n = core.keys(key, "z", "y", "eps"), len(batch["image"])
    found = {"z": prior(k.z, batch["label"] if on_spoke else jnp.full(n, num_classes))}
    if inferred and not told_label:
      found["category"] = jax.random.randint(k.y, (n,), 0, y_dim)
    return {**found, "eps": jax.random.normal(k.eps, (n, m.z_dim))}

  def render(state, drawn, batch):
    x, p, found, y = batch["image"], state.params, {}, None
    z, h = encode(p, {"x": x, "eps": drawn["eps"]})
    if on_spoke or told_label:  # a digit can be asked for
      found["label"] = batch["label"]
    if told_label:
      y = one_hot(batch["label"])
    elif inferred:  # clusters without names
      found["category"] = drawn["category"]
      y = one_hot(found["category"])
      if "label" in batch:
        found["data_category"] = run(p, "y_head", h).argmax(1).astype(jnp.int32)
        found["data_label"] = batch["label"]
    return {"image": decode(p, drawn["z"], y), "latent": drawn["z"], "code": z, **found}

  def sample(state, batch, key):
    if has_code:
      return render(state, latent(batch, key), batch)
    x, p = batch["image"], state.params  # a classifier alone: images with the labels that they get
    return {"image": x, "label": run(p, "y_head", hidden(p, x)).argmax(1).astype(jnp.int32)}

  def evaluate(state, batch, key):
    x, p, found = batch["image"], state.params, {}
    h = hidden(p, x)
    if has_code:
      mean, std = posterior(p, h)
      error = x - decode(p, mean, told(p, h, batch))
      found["mse"] = jnp.mean(error**2) / 4  # of pixels in [0, 1]
    if "cls" in moves:
      right = run(p, "y_head", h).argmax(1) == batch["label"]
      found["accuracy"] = jnp.mean(right, dtype=jnp.float32)
    if has_code and m.prior == "spokes":  # does the nearest spoke have the number of the class?
      z = mean + std * jax.random.normal(key, mean.shape)
      right = spokes.nearest(z, num_classes) == batch["label"]
      found["spoke_accuracy"] = jnp.mean(right, dtype=jnp.float32)
    return found

  def show(state, batch, key):
    p, x, found = state.params, batch["image"], {}
    if not has_code:
      return found
    k = core.keys(key, "eps", "z")
    z, h = encode(p, {"x": x, "eps": jax.random.normal(k.eps, (len(x), m.z_dim))})
    rec = decode(p, z, told(p, h, batch))
    found["reconstruction"] = pictures.pairs(x[:32], rec[:32])
    if m.z_dim == 2:
      found["codes"] = {"points": z, **({"label": batch["label"]} if "label" in batch else {})}
    if y_dim:  # a style in each row, the classes from left to right
      styles = jnp.repeat(prior(k.z, jnp.full(10, num_classes)), y_dim, axis=0)
      painted = decode(p, styles, one_hot(jnp.tile(jnp.arange(y_dim), 10)))
      found["styles"] = painted.reshape(10, y_dim, *shape)
    elif m.prior == "spokes":  # a spoke in each row, outwards from left to right
      places = spokes.along(m.z_dim, num_classes, 10).reshape(-1, m.z_dim)
      found["spokes"] = decode(p, places).reshape(num_classes, 10, *shape)
    elif m.z_dim == 2:
      found["manifold"] = pictures.plane(lambda z: decode(p, z))
    return found

  train = core.Stage("train", config.num_steps, init, step, sample, evaluate, show)
  if has_code:
    train = train._replace(latent=latent, generate=render, straight=m.prior == "spokes")
  few = [labelled.stage(m.num_labels, num_classes)] if m.num_labels else []
  return [*few, train]
