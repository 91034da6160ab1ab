"""VAE. Kingma and Welling, Auto-Encoding Variational Bayes, ICLR 2014, arXiv:1312.6114.

Idea: a decoder p(x|z) with prior z ~ N(0, I), and an encoder q(z|x) = N(mean(x), diag var(x)) that
makes the likelihood tractable: gradients pass through the draw z = mean + std * eps.
Objective: maximise ELBO = E_q log p(x|z) - KL(q(z|x) || p(z)), summed over pixels and latents, mean
over examples. distortion = -E log p(x|z), rate = KL, loss = distortion + rate = -ELBO.
log p(x|z) by model.likelihood, with x in [0, 1] and the decoder's output l, m, s:
  bernoulli        sum x l - softplus(l), x binarised
  gaussian         -1/2 sum (x - m)^2 / s^2 + log 2 pi s^2, s = model.std
  gaussian_shared  the same with one learned s; at its best s^2 is the mean squared error
  gaussian_pixel   the same with s(z) for every pixel; log s >= -5, else the density has no bound
nll is the importance-weighted estimate -log (1/k) sum_i p(x, z_i) / q(z_i|x), Burda et al., 2016,
arXiv:1509.00519, an upper bound of -log p(x) that is tight for large k.
rate = mutual_information + marginal_kl: what z tells about which of N test examples it came from
(at most log N), and KL of their mean q(z) from p(z), Hoffman and Johnson, 2016.
`evidence` estimates log p(x) of some test examples in three ways, from draws of the prior (prior),
of q (importance) and by annealed importance sampling, and draws their errors against the number of
draws, and of linear models, whose evidence is exact, against that of latents.
`linear` is probabilistic PCA, whose exact likelihood is reported as log_likelihood.
Departures: binarisation is drawn anew for each batch; the decoder's output bias starts at the
log-odds of the first batch's pixels, in Burda's code of the training set's. `paper` is their
one-layer network and schedule; their code's Adam had other beta1 and second moment than the paper.
Run: python main.py --config=configs/vae.py:mnist --workdir=/tmp/vae
  9 minutes on 2 cores; 89.5 nats on the MNIST test set
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from gm import core, diagnostics, flags, optim, pictures
from gm.nets import mlp
from gm.nn import init as inits
from gm.probability import (
  aggregate,
  evidence,
  evidence_study,
  likelihood,
  linear_gaussian,
  pixels,
)

LIKELIHOODS = ("bernoulli", "gaussian", "gaussian_shared", "gaussian_pixel")
MIN_LOG_STD = -5.0
PLAIN, WEIGHTED = 10_000, 500  # draws of the prior, and of q, in what `evidence` reports
LATENTS = (2, 5, 10, 20, 50)  # of the linear models


def stages(config, info: core.Info) -> list[core.Stage]:
  """Returns the one stage of a VAE of fully connected networks.

  Raises:
    ValueError: for a name or a number that is not possible, or data that are not images.
  """
  m, dtype = config.model, config.compute_dtype
  flags.leaf(info, "image")
  flags.within(m, "z_dim", "eval_k", "eval_chunk", least=1)
  flags.within(m, "enc_widths", "dec_widths", least=1, empty=True)
  flags.within(m, "steps_per_epoch", least=1, most=optim.BURDA_EPOCH)
  flags.within(m, "std", "adam_eps", above=0.0)
  flags.within(m, "evidence", "evidence_shown", least=0, most=64)  # examples
  flags.within(m, "chains", "temperatures", "leaps", least=1)
  flags.within(m, "prior_exponent", least=3, most=7)
  flags.choice(m, "likelihood", LIKELIHOODS)
  flags.choice(m, "activation", tuple(mlp.ACTIVATIONS))
  flags.choice(m, "schedule", ("cosine", "burda"))
  bernoulli, per_pixel = m.likelihood == "bernoulli", m.likelihood == "gaussian_pixel"
  linear = not m.dec_widths and m.likelihood in ("gaussian", "gaussian_shared")
  num_pixels = math.prod(info.shape["image"])
  enc = mlp.Encoder(
    m.z_dim, widths=m.enc_widths, activation=m.activation, one_var=m.one_var, dtype=dtype
  )
  num_out = num_pixels * (2 if per_pixel else 1)
  dec = mlp.Decoder((num_out,), widths=m.dec_widths, activation=m.activation, dtype=dtype)
  players = ["enc", "dec", *(["std"] if m.likelihood == "gaussian_shared" else [])]
  slot = "+".join(players)
  rate = optim.by_name(m.schedule, config.lr, config.num_steps, m.steps_per_epoch)
  tx = optim.adam(rate, eps=m.adam_eps)

  def encode(p, x):  # -> mean, log_var [B, Z]
    return enc.apply({"params": p["enc"]}, x)

  def decode(p, z):  # [..., Z] -> logits or means [..., P], log_std that broadcasts to it
    out = dec.apply({"params": p["dec"]}, z)
    if per_pixel:
      out, log_std = jnp.split(out, 2, axis=-1)
      return out, jnp.maximum(log_std, MIN_LOG_STD)
    return out, p["std"]["log_std"] if "std" in p else jnp.log(m.std)

  def log_likelihood(p, x, z):  # log p(x|z), [..., B]
    out, log_std = decode(p, z)
    if bernoulli:
      return likelihood.bernoulli_log_prob(x, out, event_ndim=1)
    return likelihood.gaussian_log_prob(x, out, log_std, event_ndim=1)

  def draw(p, x, eps):  # -> z ~ q(z|x) and its law
    mean, log_var = encode(p, x)
    return mean + jnp.exp(0.5 * log_var) * eps, mean, log_var

  def terms(p, x, eps):  # -> distortion, rate [B]
    z, mean, log_var = draw(p, x, eps)
    return -log_likelihood(p, x, z), likelihood.kl_gaussian(mean, log_var)

  def observe(batch, key):  # what the likelihood is of, [B, P]
    x = pixels.unit(batch["image"])
    return pixels.binarise(key, x) if bernoulli else x

  def init(key, batch, prev):
    k, first = core.keys(key, "enc", "dec"), dec
    if bernoulli:  # then the decoder starts at the pixels' marginals
      first = dec.clone(output_bias_init=inits.constant(pixels.log_odds(batch["image"])))
    params = {
      "enc": core.build(enc, k.enc, batch["image"][:2])[0],
      "dec": core.build(first, k.dec, jnp.zeros((2, m.z_dim)))[0],
    }
    if "std" in players:
      params["std"] = {"log_std": jnp.log(jnp.float32(m.std))}
    return core.State(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt={slot: core.init_slot(tx, params, players)},
    )

  def step(state, batch, key):
    k = core.keys(key, "pixels", "eps")
    x = observe(batch, k.pixels)

    def loss(p, b):
      distortion, rate = (t.mean() for t in terms(p, b["x"], b["eps"]))
      return distortion + rate, ({}, {"distortion": distortion, "rate": rate})

    noise = jax.random.normal(k.eps, (len(x), m.z_dim))
    state, found = core.minimize(
      state, tx, loss, players, {"x": x, "eps": noise}, accumulate=config.accumulate
    )
    return state.replace(step=state.step + 1), found

  def picture(p, z):  # the decoder's mean, [N, H, W, C] in [-1, 1]
    out, _ = decode(p, z)
    return pixels.image(jax.nn.sigmoid(out) if bernoulli else out, info.shape["image"])

  def latent(batch, key):
    return jax.random.normal(key, (len(batch["image"]), m.z_dim))

  def render(state, z, batch):
    return {"image": picture(state.params, z)}

  def sample(state, batch, key):
    return render(state, latent(batch, key), batch)

  def evaluate(state, batch, key):
    k = core.keys(key, "pixels", "elbo", "weights", "evidence")
    x, p = observe(batch, k.pixels), state.params
    z, mean, log_var = draw(p, x, jax.random.normal(k.elbo, (len(x), m.z_dim)))
    of_z = lambda z: log_likelihood(p, x, z)
    distortion, rate = -of_z(z).mean(), likelihood.kl_gaussian(mean, log_var).mean()
    log_w = evidence.importance_weights(
      k.weights, of_z, mean, log_var, m.eval_k, chunk=m.eval_chunk
    )
    found = {
      "elbo": -(distortion + rate),
      "distortion": distortion,
      "rate": rate,
      "nll": -likelihood.importance_weighted_bound(log_w).mean(),
      **{"z": z, "mean": mean, "log_var": log_var},  # for `conclude`
    }
    if m.evidence:
      found |= estimates(p, x[: m.evidence], k.evidence)
    if linear:
      found["log_likelihood"] = linear_gaussian.log_likelihood(as_linear_gaussian(p), x).mean()
    return found

  annealing = {"num_temperatures": m.temperatures, "num_leaps": m.leaps}

  def estimates(p, x, key):  # of log p(x), means over the examples x
    k = core.keys(key, "prior", "importance", "annealed")
    of_z = lambda z: log_likelihood(p, x, z)
    plain = evidence.prior_weights(k.prior, of_z, (len(x), m.z_dim), PLAIN)
    weighted = evidence.importance_weights(k.importance, of_z, *encode(p, x), WEIGHTED)
    shape = (m.chains, len(x), m.z_dim)
    chains, accepted = evidence.annealed_weights(k.annealed, of_z, shape, **annealing)
    return {
      "evidence_prior": evidence.log_mean(plain).mean(),
      "evidence_importance": evidence.log_mean(weighted).mean(),
      "evidence_elbo": weighted.mean(),
      "evidence_annealed": evidence.log_mean(chains).mean(),
      "annealed_spread": chains.std(0).mean(),
      "annealed_accepted": accepted,
    }

  def conclude(found, key):
    known = aggregate.information(found["z"], found["mean"], found["log_var"])
    return {
      "mutual_information": known,
      "marginal_kl": likelihood.kl_gaussian(found["mean"], found["log_var"]).mean() - known,
      "active_units": diagnostics.active_units(found["mean"]),
    }

  def as_linear_gaussian(p):  # x = W z + mean + s eps
    mean, log_std = decode(p, jnp.zeros(m.z_dim))
    weight = (decode(p, jnp.eye(m.z_dim))[0] - mean).T
    return linear_gaussian.LinearGaussian(weight, mean, jnp.exp(2 * log_std))

  def show(state, batch, key):
    p, x, k = state.params, batch["image"][:32], core.keys(key, "pixels", "evidence")
    mean, _ = encode(p, observe({"image": x}, k.pixels))
    paint = lambda z: picture(p, z)
    found = {
      "reconstruction": pictures.pairs(x, paint(mean)),
      "interpolation": pictures.lines(paint, mean[:8], mean[8:16]),
    }
    if m.z_dim == 2:
      found["manifold"] = pictures.plane(paint)
    if m.evidence_shown:
      found |= study(p, batch, k.evidence)
    return found

  def study(p, batch, key):  # plots of estimates against draws and, of linear models, latents
    k = core.keys(key, "pixels", "draws", "latents")
    every = observe(batch, k.pixels)
    x = every[: m.evidence_shown]
    options = {**annealing, "chains": m.chains}
    of_z = lambda z: log_likelihood(p, x, z)
    num = 10**m.prior_exponent
    found = evidence_study.over_draws(k.draws, of_z, *encode(p, x), num_prior=num, **options)
    latents = tuple(d for d in LATENTS if d < min(len(every), num_pixels))
    models = evidence_study.over_latents(k.latents, every, latents, **options)
    return {**{f"evidence_{n}": v for n, v in found.items()}, "evidence_latents": models}

  train = core.Stage("train", config.num_steps, init, step, sample, evaluate, show)
  return [train._replace(conclude=conclude, latent=latent, generate=render)]
