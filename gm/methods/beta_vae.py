"""beta-VAE. Higgins et al., ICLR 2017, https://openreview.net/forum?id=Sy2fzU9gl.

Idea: a VAE whose latents cost more than their worth in nats, or are pushed to be independent, keeps
few of them, each for one thing that varies in the data. Also the other ways in which a VAE's rate
is set.
Objective: lower D + w(t) P, with distortion D = -E log p(x|z) of binary pixels, rate R = KL(q(z|x)
|| N(0, I)), both summed over pixels and latents, means over the batch, and P by model.objective:
  beta             beta R; beta = 1 is the VAE's bound, more a looser one, less is none
  capacity         gamma |R - C(t)|, C rises from 0 to model.capacity nats; Burgess et al., 2018,
                   arXiv:1804.03599
  free_bits_unit   sum over latents of max(free_bits, R of that latent in the mean over the batch)
  free_bits_group  max(free_bits, R): all latents are one group; Kingma et al., 2016,
                   arXiv:1606.04934
  tc               R + (beta - 1) TC, TC the total correlation of q(z) as a batch shows it (beta-
                   TC-VAE); Chen et al., 2018, arXiv:1802.04942
  factor           R + gamma E s(z), s the logit of a network d that learns to tell codes z from
                   codes whose latents are exchanged between examples (FactorVAE); Kim and Mnih,
                   2018, arXiv:1802.05983
  dip_i, dip_ii    R + dip_off sum of squared covariances of latents + dip_on sum (variance - 1)^2,
                   of the posteriors' means or of q(z) (DIP-VAE); Kumar et al., 2018,
                   arXiv:1711.00848
w(t) rises from 0 to 1 over model.warmup steps (0: is 1), and C(t) over model.capacity_steps.
elbo, distortion and rate that are reported are the plain ones, whatever was trained.
Where factors of the data are known, mig and difference_score say how well single latents tell them.
Departures: binarisation is drawn anew for each batch; the output bias of fully connected nets
starts at the log-odds of the first batch. d has one logit, published code two, moves after the VAE,
and its fakes are the same batch exchanged, in the paper a second one. `paper` is the library's
recipe (disentanglement_lib) on the shapes drawn here; the paper trained by Adagrad on dSprites.
Run: python main.py --config=configs/beta_vae.py --workdir=/tmp/beta_vae
  2 minutes on 2 cores; latents for x, y and scale each, difference_score 0.79
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from gm import core, diagnostics, flags, losses, optim, pictures
from gm.nets import beta_vae, mlp
from gm.nn import init as inits
from gm.probability import aggregate, evidence, factors, likelihood, pixels

OBJECTIVES = (
  *("beta", "capacity", "free_bits_unit", "free_bits_group"),
  *("tc", "factor", "dip_i", "dip_ii"),
)


def shuffle(key: jax.Array, z: jax.Array) -> jax.Array:
  """Exchanges every latent between the examples of a batch [B, Z], each in an order of its own.

  >>> shuffle(jax.random.key(0), jnp.arange(6.0).reshape(3, 2)).sum(0).tolist()
  [6.0, 9.0]
  """
  return jax.random.permutation(key, z, axis=0, independent=True)


def networks(m, shape: tuple, dtype: str):
  """Returns encoder and decoder of a variant."""
  if m.nets == "conv":
    beta_vae.grid(shape)
    return beta_vae.Encoder(m.z_dim, dtype), beta_vae.Decoder(shape, dtype)
  enc = mlp.Encoder(m.z_dim, m.enc_widths, m.enc_activation, dtype=dtype)
  return enc, mlp.Decoder((math.prod(shape),), m.dec_widths, m.dec_activation, dtype=dtype)


def stages(config, info: core.Info) -> list[core.Stage]:
  """Returns the one stage of a beta-VAE or of its relatives.

  Raises:
    ValueError: for a name or a number that is not possible, or data that are not images.
  """
  m, steps = config.model, {"least": 0, "most": flags.MOST_STEPS}
  flags.leaf(info, "image")
  flags.within(m, "z_dim", "eval_k", "eval_chunk", least=1)
  flags.within(m, "enc_widths", "dec_widths", "d_widths", least=1, empty=True)
  flags.within(m, "warmup", "capacity_steps", **steps)
  flags.within(m, "beta", "gamma", "capacity", "free_bits", "dip_off", "dip_on", least=0.0)
  flags.within(m, "d_lr", above=0.0)
  flags.choice(m, "objective", OBJECTIVES)
  flags.choice(m, "nets", ("mlp", "conv"))
  flags.choice(m, "enc_activation", tuple(mlp.ACTIVATIONS))
  flags.choice(m, "dec_activation", tuple(mlp.ACTIVATIONS))
  flags.choice(m, "schedule", ("cosine", "constant"))
  shape = info.shape["image"]
  enc, dec = networks(m, shape, config.compute_dtype)
  d = mlp.Discriminator(m.d_widths, dtype=config.compute_dtype)
  rate = optim.by_name(m.schedule, config.lr, config.num_steps)
  tx = {"vae": optim.adam(rate), "d": optim.adam(m.d_lr, b1=0.5, b2=0.9)}
  players, factor = ["enc", "dec"], m.objective == "factor"
  warm, rise = optim.ramp(m.warmup), optim.ramp(m.capacity_steps)

  def encode(p, x):  # [B, P] -> mean, log_var [B, Z]
    return enc.apply({"params": p["enc"]}, x.reshape(-1, *shape))

  def decode(p, z):  # [..., Z] -> logits [..., P]
    return dec.apply({"params": p["dec"]}, z)

  def log_likelihood(p, x, z):  # log p(x|z), [..., B]
    return likelihood.bernoulli_log_prob(x, decode(p, z), event_ndim=1)

  def draw(p, x, eps):  # -> z ~ q(z|x) and its law
    mean, log_var = encode(p, x)
    return mean + jnp.exp(0.5 * log_var) * eps, mean, log_var

  def judge(p, z):  # logits [B] of "these are codes as they come"
    return d.apply({"params": p["d"]}, z)

  def penalty(p, t, z, mean, log_var):
    """P of the docstring and the rate, means over the batch, at step t."""
    rate = likelihood.kl_gaussian(mean, log_var).mean()
    if m.objective == "beta":
      return m.beta * rate, rate
    if m.objective == "capacity":
      return m.gamma * abs(rate - m.capacity * rise(t)), rate
    if m.objective.startswith("free_bits"):
      if m.objective == "free_bits_unit":
        kl = likelihood.kl_gaussian(mean[..., None], log_var[..., None], event_ndim=1)  # [B, Z]
      else:
        kl = likelihood.kl_gaussian(mean, log_var)[:, None]
      return aggregate.free_bits(kl, m.free_bits), rate
    if m.objective == "tc":
      return rate + (m.beta - 1) * aggregate.total_correlation(z, mean, log_var), rate
    if m.objective == "factor":
      return rate + m.gamma * judge(p, z).mean(), rate
    of_q = log_var if m.objective == "dip_ii" else None
    return rate + aggregate.moments_penalty(mean, of_q, off=m.dip_off, on=m.dip_on), rate

  def observe(batch, key):  # what the likelihood is of, [B, P]
    return pixels.binarise(key, pixels.unit(batch["image"]))

  def init(key, batch, prev):
    k, first = core.keys(key, "enc", "dec", "d"), dec
    if m.nets == "mlp":  # then the decoder starts at the pixels' marginals
      first = dec.clone(output_bias_init=inits.constant(pixels.log_odds(batch["image"])))
    z = jnp.zeros((2, m.z_dim))
    params = {"enc": core.build(enc, k.enc, batch["image"][:2])[0]}
    params["dec"] = core.build(first, k.dec, z)[0]
    opt = {"enc+dec": core.init_slot(tx["vae"], params, players)}
    if factor:
      params["d"] = core.build(d, k.d, z)[0]
      opt["d"] = core.init_slot(tx["d"], params, ["d"])
    return core.State(step=jnp.zeros((), jnp.int32), params=params, opt=opt)

  def step(state, batch, key):
    k = core.keys(key, "pixels", "eps", "shuffle")
    x = observe(batch, k.pixels)

    def loss(p, b):
      z, mean, log_var = draw(p, b["x"], b["eps"])
      distortion = -log_likelihood(p, b["x"], z).mean()
      value, rate = penalty(p, state.step, z, mean, log_var)
      found = {"distortion": distortion, "rate": rate}
      return distortion + warm(state.step) * value, ({}, found)

    parts = {"x": x, "eps": jax.random.normal(k.eps, (len(x), m.z_dim))}
    state, found = core.minimize(
      state, tx["vae"], loss, players, parts, accumulate=config.accumulate
    )
    if factor:

      def d_loss(p, b):  # moves d only; the codes are the new encoder's
        z, _, _ = draw(p, b["x"], b["eps"])
        real, fake = judge(p, z), judge(p, shuffle(b["shuffle"], z))
        return losses.bce_d(real, fake), ({}, diagnostics.discriminator_stats(real, fake))

      parts["shuffle"] = k.shuffle
      state, more = core.minimize(
        state, tx["d"], d_loss, ["d"], parts, accumulate=config.accumulate
      )
      found |= more
    return state.replace(step=state.step + 1), found

  def picture(p, z):  # the decoder's mean, [N, H, W, C] in [-1, 1]
    return pixels.image(jax.nn.sigmoid(decode(p, z)), shape)

  def latent(batch, key):
    return jax.random.normal(key, (len(batch["image"]), m.z_dim))

  def render(state, z, batch):
    return {"image": picture(state.params, z)}

  def sample(state, batch, key):
    return render(state, latent(batch, key), batch)

  def evaluate(state, batch, key):
    k = core.keys(key, "pixels", "elbo", "weights")
    x, p = observe(batch, k.pixels), state.params
    z, mean, log_var = draw(p, x, jax.random.normal(k.elbo, (len(x), m.z_dim)))
    of_z = lambda z: log_likelihood(p, x, z)
    distortion, rate = -of_z(z).mean(), likelihood.kl_gaussian(mean, log_var).mean()
    log_w = evidence.importance_weights(
      k.weights, of_z, mean, log_var, m.eval_k, chunk=m.eval_chunk
    )
    known = {"factors": batch["factors"]} if "factors" in batch else {}
    return {
      "elbo": -(distortion + rate),
      "distortion": distortion,
      "rate": rate,
      "nll": -likelihood.importance_weighted_bound(log_w).mean(),
      **{"z": z, "mean": mean, "log_var": log_var, **known},  # for `conclude`
    }

  def conclude(found, key):
    z, mean, log_var = found["z"], found["mean"], found["log_var"]
    known = aggregate.information(z, mean, log_var)
    scores = {
      "mutual_information": known,
      "marginal_kl": likelihood.kl_gaussian(mean, log_var).mean() - known,
      "active_units": diagnostics.active_units(mean),
    }
    if "factors" in found:
      scores["mig"] = factors.mutual_information_gap(mean, found["factors"])
      scores["difference_score"] = factors.difference_score(key, mean, found["factors"])
    return scores

  def show(state, batch, key):
    """Reconstructions, and a row for each latent of the first image, most used latents first."""
    p, x = state.params, batch["image"]
    mean, log_var = encode(p, observe({"image": x}, key))
    paint = lambda z: picture(p, z)
    used = jnp.argsort(-likelihood.kl_gaussian(mean.T, log_var.T))[:20]
    rows = pictures.traversals(paint, mean[0])[used]
    return {"reconstruction": pictures.pairs(x[:32], paint(mean[:32])), "traversals": rows}

  train = core.Stage("train", config.num_steps, init, step, sample, evaluate, show)
  return [train._replace(conclude=conclude, latent=latent, generate=render)]
