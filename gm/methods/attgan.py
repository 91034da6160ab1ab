"""AttGAN. He et al., IEEE Transactions on Image Processing 2019, arXiv:1711.10678.

Idea: an encoder and a decoder that is told attributes edit faces, changing only what is wanted. No
law is laid on the code: the attributes are asked of the image that comes out. A classifier C reads
them there; where the decoder is told the true ones the image must come back; a critic D keeps all
looking real. C and D are one network with two heads.
Objective, with a the attributes of x as -1 and 1, b those of another image of the batch,
x_a = Dec(Enc(x), a), x_b = Dec(Enc(x), b), BCE a mean over attributes, all means over the batch:
  D, C:     mean D(x_b) - mean D(x) + gp mean (|grad D(u)|_2 - 1)^2 + d_cls BCE(C(x), a)
  Enc, Dec: -mean D(x_b) + g_cls BCE(C(x_b), b) + rec mean |x - x_a|
u = x + t (x_b - x), t ~ U(0, 1) for each image. C learns of real images alone. In turn Enc and Dec
move once and D and C num_critic times, each on images of their own.
An attribute that is changed is told as strength times -1 or 1, beyond what training has shown.
Departures: num_steps counts the moves of Enc and Dec, the authors' count is num_critic + 1 times
it; the rate falls after every move, not every epoch. Images are not moved within a margin but
mirrored alone. Attributes of an image of one's own are those that C reads in it.
Run: python main.py --config=configs/attgan.py --workdir=/tmp/attgan
  6.0 minutes of processor time; changes 87 % of what is asked for, see configs/attgan.py
Then: python main.py --workdir=/tmp/attgan --mode=sample --input=FILE_OR_FOLDER
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gm import augment, columns, core, flags, losses, optim, regularizers
from gm.nets import attgan

EDITORS, NUM_STRENGTHS = ("enc", "dec"), 9  # the slider's


def _check(m, info: core.Info) -> tuple[int, int, int]:
  """Returns the shape of an image."""
  flags.leaf(info, "image")
  columns.require(info.columns, "attgan")
  flags.within(m, "widths", "d_widths", "d_features", "num_critic", least=1)
  flags.within(m, "shortcuts", "injections", least=0, most=len(m.widths) - 1)
  flags.within(m, "gp", "d_cls", "g_cls", "rec", least=0.0)
  flags.within(m, "b1", "b2", "momentum", least=0.0, below=1.0)
  flags.within(m, "flip", "constant", least=0.0, most=1.0)
  flags.within(m, "strength", above=0.0, most=10.0)
  shape = info.shape["image"]
  attgan.check(shape, m.widths)
  attgan.check(shape, m.d_widths, "d_widths")
  return shape


def stages(config, info: core.Info) -> list[core.Stage]:
  """Returns the one stage of an AttGAN for images with attributes.

  Raises:
    ValueError: for a name or a number that is not possible, or data without attributes.
  """
  m, dtype = config.model, config.compute_dtype
  shape, names = _check(m, info), info.columns
  norm = {"momentum": m.momentum, "dtype": dtype}
  enc = attgan.Encoder(m.widths, **norm)
  dec = attgan.Decoder(shape[2], m.widths, m.shortcuts, m.injections, **norm)
  d = attgan.Discriminator(m.d_widths, m.d_features, len(names), dtype=dtype)

  def adam(moves):  # in each step
    num = config.num_steps * moves
    rate = optim.linear(config.lr, num, start=int(m.constant * num))
    return optim.adam(rate, b1=m.b1, b2=m.b2)

  tx = {"d": adam(m.num_critic), "enc+dec": adam(1)}

  def encode(p, stats, x, train=True):  # -> maps of all layers, statistics
    z, of_enc = core.apply(enc, p["enc"], stats["enc"], x, train=train)
    return z, {**stats, "enc": of_enc}

  def decode(p, stats, z, told, train=True):  # -> images, statistics
    x, of_dec = core.apply(dec, p["dec"], stats["dec"], z, told, train=train)
    return x, {**stats, "dec": of_dec}

  def D(params, x):  # -> scores [B], logits [B, A]
    return d.apply({"params": params}, x)

  def made(state, x, told):  # by running averages
    z, _ = encode(state.params, state.stats, x, train=False)
    return decode(state.params, state.stats, z, told, train=False)[0]

  def bce(logits, labels):
    return optax.sigmoid_binary_cross_entropy(logits, labels).mean()

  def read(state, x):  # labels of 0 and 1
    return (D(state.params["d"], x)[1] > 0).astype(jnp.float32)

  def signed(labels):
    return 2 * labels - 1

  def told_of(labels, column):  # what tells the decoder to change one attribute
    picked = jax.nn.one_hot(column, len(names))
    after = signed(columns.change(labels, column, names))
    return after * jnp.where(picked > 0, m.strength, 1.0)

  def init(key, batch, prev):
    k = core.keys(key, *EDITORS, "d")
    x, a = batch["image"][:2], batch["attributes"][:2]
    params, stats = {}, {}
    params["enc"], stats["enc"] = core.build(enc, k.enc, x)
    z, _ = encode(params, stats, x)
    params["dec"], stats["dec"] = core.build(dec, k.dec, z, a)
    params["d"] = core.build(d, k.d, x)[0]
    return core.State(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt={n: core.init_slot(tx[n], params, n.split("+")) for n in tx},
      stats=stats,
    )

  def d_loss(stats):  # moves d only; the editors are constants here, but their statistics move
    def loss(p, b):
      z, after = encode(p, stats, b["image"])
      fake, after = decode(p, after, z, signed(b["target"]))
      real_scores, logits = D(p["d"], b["image"])
      between = regularizers.interpolate(b["between"], fake, b["image"])
      found = {
        "w_estimate": -losses.wasserstein_d(real_scores, D(p["d"], fake)[0]),
        "cls_real": bce(logits, b["labels"]),
        "penalty": regularizers.gradient_penalty(lambda x: D(p["d"], x)[0], between),
      }
      loss = -found["w_estimate"] + m.gp * found["penalty"] + m.d_cls * found["cls_real"]
      return loss, (after, found)

    return loss

  def g_loss(stats):  # moves enc and dec
    def loss(p, b):
      z, after = encode(p, stats, b["image"])
      rec, after = decode(p, after, z, signed(b["labels"]))
      fake, after = decode(p, after, z, signed(b["target"]))
      scores, logits = D(p["d"], fake)
      found = {
        "adversarial": losses.wasserstein_g(scores),
        "cls_fake": bce(logits, b["target"]),
        "rec": jnp.mean(jnp.abs(b["image"] - rec)),
      }
      loss = found["adversarial"] + m.g_cls * found["cls_fake"] + m.rec * found["rec"]
      return loss, (after, found)

    return loss

  def step(state, batch, key):
    k = core.keys(key, "flip", "target", "between")
    x, how = augment.flip(k.flip, batch["image"], p=m.flip), {"accumulate": config.accumulate}
    given = {"image": x, "labels": batch["attributes"]}
    given |= {"target": k.target, "between": k.between}
    parts = core.split_batch(given, 1 + m.num_critic)  # [1 + num_critic, B, ...], each with a key
    parts["target"] = jax.vmap(jax.random.permutation)(parts["target"], parts["labels"])
    first, rest = ({n: x[rows] for n, x in parts.items()} for rows in (0, slice(1, None)))
    first.pop("between")
    state, found = core.minimize(state, tx["enc+dec"], g_loss(state.stats), EDITORS, first, **how)

    def critic(state, part):
      return core.minimize(state, tx["d"], d_loss(state.stats), ["d"], part, **how)

    state, more = jax.lax.scan(critic, state, rest)
    more = {n: x[-1] for n, x in more.items()}  # of the last move
    return state.replace(step=state.step + 1), {**found, **more}

  def sample(state, batch, key):
    """One attribute of each image changed: the one that is drawn, or `target`."""
    x, a = batch["image"], batch["attributes"]
    column = batch.get("target", jax.random.randint(key, (len(x),), 0, len(names)))
    edits = made(state, x, told_of(a, column))
    known = {f"data_{n}": batch[n] for n in ("attributes", "drawn") if n in batch}
    return {"image": edits, "original": x, "column": column, **known}

  def edit(state, x, wanted):
    a = signed(read(state, x))
    return made(state, x, jnp.where(jnp.isnan(wanted), a, wanted))

  def evaluate(state, batch, key):
    x, a, b = batch["image"], batch["attributes"], jax.random.permutation(key, batch["attributes"])
    right = lambda x, labels: jnp.mean(read(state, x) == labels)
    fake = made(state, x, signed(b))
    rec = jnp.mean(jnp.abs(x - made(state, x, signed(a))))
    return {"rec": rec, "reads_real": right(x, a), "reads_fake": right(fake, b)}

  def show(state, batch, key):
    """Rows of an image, itself decoded and each attribute changed; then one of them, by degrees."""
    x, a = batch["image"][:12], batch["attributes"][:12]
    each = [told_of(a, jnp.full(len(x), i)) for i in range(len(names))]
    changed = [made(state, x, told) for told in (signed(a), *each)]
    one = jnp.repeat(signed(a[:1]), len(names) * NUM_STRENGTHS, axis=0)
    column, t = jnp.repeat(jnp.arange(len(names)), NUM_STRENGTHS), jnp.tile(strengths, len(names))
    others = jnp.asarray(columns.rivals(names))[column] & (t > 0)[:, None]
    told = jnp.where(jax.nn.one_hot(column, len(names)) > 0, t[:, None], one)
    slides = made(state, jnp.repeat(x[:1], len(told), axis=0), jnp.where(others, -1.0, told))
    slides = slides.reshape(len(names), NUM_STRENGTHS, *shape)
    return {"changes": jnp.stack([x, *changed], axis=1), "degrees": slides}

  strengths = np.linspace(-m.strength, m.strength, NUM_STRENGTHS, dtype=np.float32)
  one_step = {"batch_size": config.batch_size * (1 + m.num_critic)}
  train = core.Stage("train", config.num_steps, init, step, sample, evaluate, show, one_step)
  return [train._replace(edit=edit, strengths=tuple(strengths.tolist()))]
