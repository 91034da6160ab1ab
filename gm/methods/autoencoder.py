"""Autoencoder. Hinton and Salakhutdinov, Science 313, 2006.

Idea: an encoder squeezes x to a few numbers z, a decoder makes x from z; both lower what is lost.
Linear nets end at the first principal components; others can follow a curved surface and lose less.
Nothing ties the codes to a law that one could draw from: decoded draws of N(0, I) need not look
like data. That is what a VAE adds.
Objective: sum over pixels of (x - dec(enc(x)))^2, x in [0, 1], mean over examples. mse is the mean
over pixels, for comparison.
Departures: `small` is a plain 784-512-256-2 network. `paper` has the published layers, rectified
and trained by Adam at once; the authors' logistic units were pre-trained as Boltzmann machines, and
their loss was the cross-entropy.
Run: python main.py --config=configs/autoencoder.py --workdir=/tmp/autoencoder
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gm import core, flags, optim, pictures
from gm.nets import mlp
from gm.nn import init as inits


def stages(config, info: core.Info) -> list[core.Stage]:
  """Returns the one stage of an autoencoder of fully connected networks.

  Raises:
    ValueError: for a name or a number that is not possible, or data that are not images.
  """
  m = config.model
  flags.leaf(info, "image")
  flags.within(m, "z_dim", least=1)
  flags.within(m, "widths", least=1, empty=True)
  flags.choice(m, "activation", tuple(mlp.ACTIVATIONS))
  options = {"activation": m.activation, "dtype": config.compute_dtype}
  # the same perceptron both ways: from flat pixels to z, and from z to pixels
  enc = mlp.Decoder((m.z_dim,), widths=m.widths, **options)
  dec = mlp.Decoder(info.shape["image"], widths=m.widths[::-1], **options)
  tx = optim.adam(optim.cosine(config.lr, config.num_steps))

  def unit(batch):  # pixels in [-1, 1] -> [0, 1]
    return (batch["image"] + 1) / 2

  def encode(p, x):  # [B, H, W, C] -> [B, Z]
    return enc.apply({"params": p["enc"]}, x.reshape(len(x), -1))

  def decode(p, z):  # [B, Z] -> [B, H, W, C], linear in its last layer
    return dec.apply({"params": p["dec"]}, z)

  def square_error(p, x):  # summed over pixels, [B]
    return jnp.sum((x - decode(p, encode(p, x))) ** 2, axis=(1, 2, 3))

  def init(key, batch, prev):
    k, x = core.keys(key, "enc", "dec"), unit(batch)
    first = dec.clone(output_bias_init=inits.constant(x.mean(0).ravel()))  # the mean image
    params = {
      "enc": core.build(enc, k.enc, x[:2].reshape(2, -1))[0],
      "dec": core.build(first, k.dec, jnp.zeros((2, m.z_dim)))[0],
    }
    return core.State(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt={"enc+dec": core.init_slot(tx, params, ["enc", "dec"])},
    )

  def step(state, batch, key):
    x = unit(batch)

    def loss(p, b):
      total = square_error(p, b["x"]).mean()
      return total, ({}, {"mse": total / x[0].size})

    state, found = core.minimize(
      state, tx, loss, ["enc", "dec"], {"x": x}, accumulate=config.accumulate
    )
    return state.replace(step=state.step + 1), found

  def picture(p, z):  # in [-1, 1]
    return 2 * decode(p, z) - 1

  def latent(batch, key):
    return jax.random.normal(key, (len(batch["image"]), m.z_dim))

  def render(state, z, batch):
    return {"image": picture(state.params, z), "latent": z}

  def sample(state, batch, key):
    return render(state, latent(batch, key), batch)

  def evaluate(state, batch, key):
    x, p = unit(batch), state.params
    found = {"mse": square_error(p, x).mean() / x[0].size}
    if "label" in batch:
      found |= {"code": encode(p, x), "label": batch["label"]}
    return found

  def conclude(found, key):  # is the nearest other code one of the same class?
    codes, label = found["code"].T, found["label"]  # sums over the first axis are quick

    def nearest(i):  # one row at a time: [Z, N] of the N x N x Z
      return jnp.sum((codes - codes[:, i, None]) ** 2, axis=0).at[i].set(jnp.inf).argmin()

    same = label[jax.lax.map(nearest, jnp.arange(len(label)))] == label
    return {"nearest_accuracy": jnp.mean(same, dtype=jnp.float32)}

  def show(state, batch, key):
    p, x = state.params, unit(batch)
    z = encode(p, x)
    paint = lambda z: picture(p, z)
    found = {
      "reconstruction": pictures.pairs(batch["image"][:32], paint(z[:32])),
      "interpolation": pictures.lines(paint, z[:8], z[8:16]),
    }
    if m.z_dim == 2:
      low, high = z.min(0), z.max(0)
      # evenly over the range of the codes: `plane` walks the quantiles of a prior, which is none
      spread = lambda q: low + (high - low) * jax.scipy.stats.norm.cdf(q)
      label = {"label": batch["label"]} if "label" in batch else {}
      found["codes"] = {"points": z, **label}
      found["plane"] = pictures.plane(lambda q: paint(spread(q)))
    return found

  train = core.Stage("train", config.num_steps, init, step, sample, evaluate, show)
  return [train._replace(conclude=conclude, latent=latent, generate=render)]
