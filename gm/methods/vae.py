"""VAE. Kingma and Welling, Auto-Encoding Variational Bayes, ICLR 2014, arXiv:1312.6114.

Idea: a decoder p(x|z) with prior z ~ N(0, I), and an encoder q(z|x) = N(mean(x), diag var(x)) that
makes the likelihood tractable: gradients pass through the draw z = mean + std * eps.
Objective: maximise ELBO = E_q log p(x|z) - KL(q(z|x) || p(z)), summed over pixels and latents, mean
over examples. distortion = -E log p(x|z), rate = KL, loss = distortion + rate = -ELBO.
nll is the importance-weighted estimate -log (1/k) sum_i p(x, z_i) / q(z_i|x), Burda et al., 2016,
arXiv:1509.00519, an upper bound of -log p(x) that is tight for large k.
Departures: binarisation is drawn anew for each batch; the decoder's output bias starts at the
log-odds of the first batch's pixels, in Burda's code of the training set's. `paper` is their
one-layer network and schedule; their code's Adam had other beta1 and second moment than the paper.
Run: python main.py --config=configs/vae.py --workdir=/tmp/vae
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gm import core, diagnostics, losses, optim, pictures
from gm.nets import mlp
from gm.nn import init as inits


def stages(config, info: core.Info) -> list[core.Stage]:
  """Returns the one stage of a VAE of fully connected networks."""
  m, dtype = config.model, config.compute_dtype
  enc = mlp.Encoder(m.z_dim, widths=m.enc_widths, activation=m.activation, dtype=dtype)
  dec = mlp.Decoder(info.shape["image"], widths=m.dec_widths, activation=m.activation, dtype=dtype)
  players = ["enc", "dec"]
  if m.schedule == "cosine":
    rate = optim.cosine(config.lr, config.num_steps)
  else:  # Burda et al.: 8 legs of 3^i epochs, from lr down to lr / 10
    ends = [m.steps_per_epoch * (3 ** (i + 1) - 1) // 2 for i in range(7)]
    rate = optim.piecewise([config.lr * round(10 ** (1 - i / 7), 1) / 10 for i in range(8)], ends)
  tx = optim.adam(rate, eps=m.adam_eps)

  def binarise(x, key):  # pixels in [-1, 1] -> {0, 1}; 16 random bits suffice for 8-bit pixels
    bits = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.float32)
    return (bits < (x + 1) / 2 * 65_536).astype(jnp.float32)

  def encode(p, x):  # -> mean, log_var [B, Z]
    return enc.apply({"params": p["enc"]}, x)

  def decode(p, z):  # [..., Z] -> logits, or means in [0, 1] units, [..., H, W, C]
    return dec.apply({"params": p["dec"]}, z)

  def log_likelihood(p, x, z):  # log p(x|z), [..., B]
    out = decode(p, z)
    if m.likelihood == "bernoulli":
      return losses.bernoulli_log_prob(x, out, event_ndim=3)
    return losses.gaussian_log_prob(x, out, jnp.log(m.std), event_ndim=3)

  def terms(p, x, eps):  # -> distortion, rate [B]
    mean, log_var = encode(p, x)
    z = mean + jnp.exp(0.5 * log_var) * eps
    return -log_likelihood(p, x, z), losses.kl_gaussian(mean, log_var)

  def log_weights(p, x, eps):  # eps [k, B, Z] -> log p(x, z) / q(z|x), [k, B]
    mean, log_var = encode(p, x)
    z = mean + jnp.exp(0.5 * log_var) * eps
    log_q = losses.gaussian_log_prob(z, mean, 0.5 * log_var, event_ndim=1)
    return log_likelihood(p, x, z) + losses.standard_normal_log_prob(z, event_ndim=1) - log_q

  def observe(batch, key):  # what the likelihood is of
    x = batch["image"]
    return binarise(x, key) if m.likelihood == "bernoulli" else (x + 1) / 2

  def init(key, batch, prev):
    ke, kd = jax.random.split(key)
    first = dec
    if m.likelihood == "bernoulli":  # then the decoder starts at the pixels' marginals
      mean = jnp.clip((batch["image"].mean(0).ravel() + 1) / 2, 0.01, 0.99)
      first = dec.clone(output_bias_init=inits.constant(jnp.log(mean / (1 - mean))))
    params = {
      "enc": core.build(enc, ke, batch["image"][:2])[0],
      "dec": core.build(first, kd, jnp.zeros((2, m.z_dim)))[0],
    }
    return core.State(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt={"enc+dec": core.init_slot(tx, params, players)},
    )

  def step(state, batch, key):
    k_pixels, k_eps = jax.random.split(key)
    x = observe(batch, k_pixels)

    def loss(p, b):
      distortion, rate = (t.mean() for t in terms(p, b["x"], b["eps"]))
      return distortion + rate, ({}, {"distortion": distortion, "rate": rate})

    noise = jax.random.normal(k_eps, (len(x), m.z_dim))
    state, found = core.minimize(
      state, tx, loss, players, {"x": x, "eps": noise}, accumulate=config.accumulate
    )
    return state.replace(step=state.step + 1), found

  def picture(p, z):  # the decoder's mean, in [-1, 1]
    out = decode(p, z)
    return 2 * (jax.nn.sigmoid(out) if m.likelihood == "bernoulli" else out) - 1

  def sample(state, batch, key):
    z = jax.random.normal(key, (len(batch["image"]), m.z_dim))
    return {"image": picture(state.params, z)}

  def evaluate(state, batch, key):
    k_pixels, k_elbo, k_weights = jax.random.split(key, 3)
    x, p = observe(batch, k_pixels), state.params
    distortion, rate = (t.mean() for t in terms(p, x, jax.random.normal(k_elbo, latents(x))))

    def part(key):  # k is visited in parts, to bound the memory
      return log_weights(p, x, jax.random.normal(key, (m.eval_chunk, *latents(x))))

    log_w = jax.lax.map(part, jax.random.split(k_weights, -(-m.eval_k // m.eval_chunk)))
    log_w = log_w.reshape(-1, len(x))[: m.eval_k]
    return {
      "elbo": -(distortion + rate),
      "distortion": distortion,
      "rate": rate,
      "nll": -losses.importance_weighted_bound(log_w).mean(),
      "active_units": diagnostics.active_units(encode(p, x)[0]),
    }

  def latents(x):
    return (len(x), m.z_dim)

  def show(state, batch, key):
    p, x = state.params, batch["image"][:32]
    mean, _ = encode(p, observe({"image": x}, key))
    paint = lambda z: picture(p, z)
    found = {
      "reconstruction": pictures.pairs(x, paint(mean)),
      "interpolation": pictures.lines(paint, mean[:8], mean[8:16]),
    }
    return {**found, "manifold": pictures.plane(paint)} if m.z_dim == 2 else found

  return [core.Stage("train", config.num_steps, init, step, sample, evaluate, show)]
