"""LSGAN. Mao et al., Least Squares Generative Adversarial Networks, ICCV 2017, arXiv:1611.04076.

Idea: D regresses targets on its raw output instead of classifying. A fake that D takes for real,
but that lies far from its targets, is still pulled, where the log loss has no slope left.
Objective, a and b what D is to say of fakes and of data, c what G wants it to say:
  D: 1/2 E (D(x) - b)^2 + 1/2 E (D(G(z)) - a)^2;   G: 1/2 E (D(G(z)) - c)^2
scheme `01`: a, b, c = 0, 1, 1; `pearson`: -1, 1, 0, with which G lowers the Pearson chi^2 between
p_data + p_g and 2 p_g. The best D is (b p_data + a p_g) / (p_data + p_g); there
  divergence = 2 - 8 L_D / (b - a)^2 = int (p_data - p_g)^2 / (p_data + p_g), from 0 to 2,
in both schemes, and any other D gives less: so it is a lower bound, and evaluated as one. D then
normalises with its running averages; with batch statistics it would judge whole batches, which are
easier to tell apart than single examples.
With `embed` G and D see the label too, each through a linear map of its own (the paper's second
model, for 3,740 Chinese characters). G moves on the fakes that D has just seen; real and fake
batches are normalised each by itself.
Departures: the losses are means over the batch, the authors' code sums the squares, which Adam
hardly feels. D's running averages do not move in G's step. Images are cropped to the square, theirs
are squeezed. The nets of `stability` start as the others here. The modes of `toy` are equal, their
code has one twice. `small` has the second model's networks at a quarter of the width, with an
eighth of its noise and of its map of the label, kernels of 4 (theirs 5), a learning rate of 1e-3
(2e-4) and averaged weights.
Run: python main.py --config=configs/lsgan.py --workdir=/tmp/lsgan
  4 minutes on 2 cores; 97.6 to 98.8 % of the samples are the digit that was asked for
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from gm import augment, core, flags, losses, optim, pictures
from gm.nets import lsgan, mlp
from gm.nn import embed
from gm.nn import init as inits
from gm.probability import latents

SCHEMES = {"01": losses.ZERO_ONE, "pearson": losses.PEARSON}


def divergence(real: jax.Array, fake: jax.Array, target: losses.Targets) -> jax.Array:
  """A lower bound of int (p_data - p_g)^2 / (p_data + p_g), exact where D is at its best.

  2 - 8 L_D / (b - a)^2.

  Args:
    real: D on data, [B]; a function of each example alone, else the bound does not hold.
    fake: D on samples, [B].
    target: that D was trained for.

  Returns:
    scalar, at most 2, and 0 for the best D of two equal laws.

  >>> float(divergence(jnp.ones(3), jnp.zeros(3), losses.ZERO_ONE))  # told apart without error
  2.0
  """
  loss = losses.least_squares_d(real, fake, a=target.a, b=target.b)
  return 2 - 8 * loss / (target.b - target.a) ** 2


def networks(m, shape: tuple, dtype: str) -> tuple[nn.Module, nn.Module]:
  """Returns G and D of a variant.

  Raises:
    ValueError: for names that do not exist, or numbers of layers that do not agree.
  """
  flags.choice(m, "output", tuple(mlp.OUTPUTS))
  flags.choice(m, "g_norm", mlp.NORMS)
  flags.choice(m, "d_norm", mlp.NORMS)
  flags.choice(m, "activation", tuple(mlp.ACTIVATIONS))
  flags.choice(m, "init", ("lecun", "orthogonal"))
  flags.choice(m, "nets", ("conv", "mlp") if len(shape) == 3 else ("mlp",))
  if m.nets == "mlp":
    if m.embed:
      raise ValueError(f"embed {m.embed} needs nets=conv: set --config.model.embed to 0")
    options = {"activation": m.activation, "dtype": dtype}
    options["kernel_init"] = inits.named(m.init, m.init_scale)
    g = mlp.Generator(shape, m.g_widths, output=m.output, norm=m.g_norm, **options)
    return g, mlp.Discriminator(m.d_widths, **options)
  if len(m.g_strides) != len(m.g_widths) + 1:
    raise ValueError(
      f"{len(m.g_strides)} strides do not lead through {len(m.g_widths)} maps to an image: give one"
      " more in --config.model.g_strides than in --config.model.g_widths"
    )
  flags.kernel(m, "g_kernel", "d_kernel", shape=shape)
  lsgan.first_size(shape, m.g_strides)  # complains here, before anything is built
  g = lsgan.Generator(
    shape,
    m.g_first,
    m.g_widths,
    m.g_strides,
    m.g_kernel,
    m.per_feature,
    m.g_norm,
    m.output,
    m.embed,
    dtype,
  )
  d = lsgan.Discriminator(m.d_widths, m.d_dense, m.d_kernel, m.d_norm, m.embed, dtype)
  return g, d


def stages(config, info: core.Info) -> list[core.Stage]:
  """Returns the one stage of an LSGAN for images, with labels or without, or for points.

  Raises:
    ValueError: for a label projection without labels, a label that the data do not have, a name or
      a number that is not possible, or what the networks refuse.
  """
  m, num_classes, data = config.model, info.num_classes, flags.leaf(info, "image", "point")
  flags.within(m, "z_dim", "g_first", "g_kernel", "d_kernel", "g_strides", least=1)
  flags.within(m, "g_widths", "d_widths", "d_dense", least=1, empty=True)
  flags.within(m, "embed", least=0)
  flags.within(m, "sample_label", least=-1)
  flags.within(m, "d_lr", "init_scale", above=0.0)
  flags.within(m, "b1", "ema", least=0.0, below=1.0)
  augment.require(m.augment, info.shape[data])
  if m.embed and "label" not in info.shape:
    text = flags.unlabelled(f"embed {m.embed}", config.data)
    raise ValueError(f"{text}, or --config.model.embed to 0")
  if m.embed and not -1 <= m.sample_label < num_classes:
    raise ValueError(
      f"sample_label {m.sample_label} is no class: set --config.model.sample_label to 0 ..."
      f" {num_classes - 1}, or to -1 for the labels of the test split"
    )
  flags.choice(m, "scheme", tuple(SCHEMES))
  flags.choice(m, "optimizer", ("adam", "rmsprop"))
  flags.choice(m, "noise", ("uniform", "normal"))
  target = SCHEMES[m.scheme]
  g, d = networks(m, info.shape[data], config.compute_dtype)
  rates = {"g": config.lr, "d": config.lr * m.d_lr}
  if m.optimizer == "adam":
    tx = {n: optim.adam(lr, b1=m.b1) for n, lr in rates.items()}
  else:  # TensorFlow's, in which the average of squares starts at 1
    tx = {n: optax.rmsprop(lr, 0.9, 1e-10, initial_scale=1.0) for n, lr in rates.items()}

  unit = m.output == "sigmoid"  # pixels in [0, 1], the data's lie in [-1, 1]

  def labels(y):  # what the networks are told; y [B]
    return {"y": embed.one_hot(y, num_classes)} if m.embed else {}

  def G(params, stats, z, y, train=True):  # [B, Z] -> [B, H, W, C] or [B, D]
    x, stats = core.apply(g, params, stats, z, train=train, **labels(y))
    return (2 * x - 1 if unit else x), stats

  def D(params, stats, x, y, train=True):  # -> outputs [B]
    return core.apply(d, params, stats, (x + 1) / 2 if unit else x, train=train, **labels(y))

  def noise(key, n):
    return latents.draw(m.noise, key, (n, m.z_dim))

  def asked(batch):  # labels [B] that samples are made for; zeros where nobody asks
    y = batch["label"] if m.embed else jnp.zeros(len(batch[data]), jnp.int32)
    return y if m.sample_label < 0 else jnp.full_like(y, m.sample_label)

  def init(key, batch, prev):
    k = core.keys(key, "g", "d")
    y = labels(jnp.zeros(2, jnp.int32))
    params, stats = {}, {}
    params["g"], stats["g"] = core.build(g, k.g, jnp.zeros((2, m.z_dim)), **y)
    params["d"], stats["d"] = core.build(d, k.d, batch[data][:2], **y)
    return core.State(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt={n: core.init_slot(tx[n], params, [n]) for n in ("g", "d")},
      stats=stats,
      ema={"g": params["g"], "g_stats": stats["g"]},
    )

  def step(state, batch, key):
    # noise keeps its key where nothing else is drawn
    k_z, k_see = core.keys(key, "z", "see") if m.augment else (key, None)

    def generate(p, b):
      fake, stats = G(p["g"], state.stats["g"], b["z"], b["y"])
      return fake, {"g": stats}

    def d_loss(p, b, fake):  # moves d only; fakes have the labels of the batch
      see = augment.views(b["see"], m.augment)  # what D sees of images
      real_out, stats = D(p["d"], state.stats["d"], see(0, b["x"]), b["y"])
      fake_out, stats = D(p["d"], stats, see(1, fake), b["y"])
      largest = jnp.maximum(jnp.abs(real_out).max(), jnp.abs(fake_out).max())
      found = {"out_real": real_out.mean(), "out_fake": fake_out.mean(), "out_largest": largest}
      loss = losses.least_squares_d(real_out, fake_out, a=target.a, b=target.b)
      return loss, ({"d": stats}, found)

    def g_loss(p, b, fake):  # moves g only, through fake
      see = augment.views(b["see"], m.augment)
      out, _ = D(p["d"], state.stats["d"], see(2, fake), b["y"])
      return losses.least_squares_g(out, c=target.c), ({}, {})

    x = batch[data]
    y = batch["label"] if m.embed else jnp.zeros(len(x), jnp.int32)
    parts = {"x": x, "y": y, "z": noise(k_z, len(x)), "see": k_see}
    state, found = core.alternate(
      state, tx, generate, d_loss, g_loss, parts, accumulate=config.accumulate
    )
    ema = core.ema(state.ema, {"g": state.params["g"], "g_stats": state.stats["g"]}, m.ema)
    return state.replace(step=state.step + 1, ema=ema), found

  def generate(state, z, y):
    return G(state.ema["g"], state.ema["g_stats"], z, y, train=False)[0]

  def latent(batch, key):
    return noise(key, len(batch[data]))

  def render(state, z, batch):
    y = asked(batch)
    found = {data: generate(state, z, y)}
    return {**found, "label": y} if m.embed else found

  def sample(state, batch, key):
    """Draws; with labels for those of the batch, which it gives back."""
    return render(state, latent(batch, key), batch)

  def evaluate(state, batch, key):
    """The lower bound of the divergence from samples of the averaged weights, on held-out data.

    With D's running averages, so that it scores each example by itself, as a bound demands.
    """
    x = batch[data]
    y = batch["label"] if m.embed else jnp.zeros(len(x), jnp.int32)
    out = lambda x: D(state.params["d"], state.stats["d"], x, y, train=False)[0]
    fake = generate(state, noise(key, len(x)), y)
    return {"divergence": divergence(out(x), out(fake), target)}

  def show(state, batch, key):
    """A row for each class, the same noise in a column; without labels lines between noises."""
    if data == "point":
      return {}
    if not m.embed:
      start, end = noise(key, 16).reshape(2, 8, m.z_dim)
      of = lambda z: generate(state, z, jnp.zeros(len(z), jnp.int32))
      return {"interpolation": pictures.lines(of, start, end)}
    rows, cols = min(num_classes, 20), 10
    z, y = jnp.tile(noise(key, cols), (rows, 1)), jnp.repeat(jnp.arange(rows), cols)
    x = generate(state, z, y)
    return {"classes": x.reshape(rows, cols, *x.shape[1:])}

  train = core.Stage("train", config.num_steps, init, step, sample, evaluate, show)
  return [train._replace(latent=latent, generate=render, straight=m.noise == "uniform")]
