"""VDVAE. Child, Very Deep VAEs Generalize Autoregressive Models .., ICLR 2021, arXiv:2011.10650.

Idea: a VAE with so many layers of latents, on maps from one pixel up to the image's own size, that
it can draw an image part by part, each given all before: first what it is, last the texture.
p(z_1) p(z_2|z_1) .. p(x|z), and q(z_i | z_<i, x) has the same blocks: the decoder's map, as far as
it is drawn, and the encoder's map of the same resolution tell the law of the next latents.
Objective: lower (D + sum over blocks of R_i) / dims, in nats of each number of an image;
D = -log p(x|z), R_i = KL(q(z_i | z_<i, x) || p(z_i | z_<i)) in closed form. model.likelihood:
  logistic_mixture  8 bits (or model.bits), model.mixtures logistics for each pixel
  bernoulli         of pixels that are binarised, drawn anew for each batch
A step whose gradient is longer than model.skip moves nothing: not the networks, not their average,
not the optimizer; nor does one whose objective or gradient is not finite. Else the gradient is cut
to the length model.clip. Evaluation and
samples are of the average. elbo and nll are nats of an image, bits_per_dim is -elbo / dims / log 2;
nll is the importance-weighted estimate of model.eval_k draws. rate_S is the rate of all blocks on
maps of S x S; `rate` draws it block by block. `top` shows images of which only the blocks up to a
resolution were told, the others drawn from the prior: the first row is x, the last tells all.
model.temperature scales the prior's deviations in samples.
Departures: where colours are drawn, the next depends on the level of the one before, as in the
likelihood; in the authors' code on the number before it is rounded. Probabilities below 1e-5 are
exact, theirs are those of a density. With fewer bits than 8 the encoder too sees only these, and
levels go from -1 to 1. The rate of learning rises from lr / warmup, theirs from 0. In a step that
is not finite numbers that are not are logged as 0. `small` binarises, and its rate falls.
Run: python main.py --config=configs/vdvae.py --workdir=/tmp/vdvae
  7 minutes of processor time; 22.2 nats of 8x8 digits
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import optax

from gm import core, flags, optim, pictures
from gm.nets import vdvae, vdvae_plan
from gm.probability import likelihood, logistic_mixture, pixels

PLAYERS = ["enc", "q", "dec"]


def _check(m) -> None:
  flags.choice(m, "likelihood", ("logistic_mixture", "bernoulli"))
  flags.choice(m, "schedule", ("constant", "cosine"))
  flags.within(m, "width", "z_dim", "mixtures", "eval_k", least=1)
  flags.within(m, "bits", least=1, most=8)
  flags.within(m, "no_bias_above", least=0)
  flags.within(m, "warmup", least=0, most=flags.MOST_STEPS)
  flags.within(m, "bottleneck", above=0.0, most=1.0)
  flags.within(m, "mean", least=0.0, most=255.0)
  flags.within(m, "std", "clip", "temperature", above=0.0)
  flags.within(m, "skip", "weight_decay", least=0.0)
  flags.within(m, "ema", "b1", "b2", least=0.0, below=1.0)


def stages(config, info: core.Info) -> list[core.Stage]:
  """Returns the one stage of a very deep VAE.

  Raises:
    ValueError: for a name or a number that is not possible, blocks that do not fit together, or
      data that are not square images.
  """
  m = config.model
  shape = info.shape[flags.leaf(info, "image")]
  _check(m)
  side, _, channels = shape
  dims, bernoulli = math.prod(shape), m.likelihood == "bernoulli"
  encoder = vdvae_plan.parse(m.enc_blocks, "d")
  decoder = vdvae_plan.parse(m.dec_blocks, "m")
  vdvae_plan.check(encoder, decoder, shape)
  net = vdvae.VDVAE(
    encoder,
    decoder,
    m.z_dim,
    channels if bernoulli else logistic_mixture.num_outputs(channels, m.mixtures),
    vdvae_plan.Widths.parse(m.width, m.widths, m.bottleneck),
    m.no_bias_above,
    config.compute_dtype,
  )
  sides = sorted({s for s, _ in decoder})
  rate_of = optim.cosine(config.lr, config.num_steps) if m.schedule == "cosine" else config.lr
  tx = optax.chain(
    optax.clip_by_global_norm(m.clip),
    optim.adamw(optim.warmup(rate_of, m.warmup), m.b1, m.b2, weight_decay=m.weight_decay),
  )

  def observe(batch, key):  # what the likelihood is of, [B, H, W, C] in [-1, 1]
    if not bernoulli:
      levels = jnp.round((batch["image"] + 1) * 127.5) // 2 ** (8 - m.bits)
      return levels * (2 / (2**m.bits - 1)) - 1
    return pixels.image(pixels.binarise(key, pixels.unit(batch["image"])), shape)

  def encode(p, x):  # -> a map of each resolution
    return net.apply({"params": p}, ((x + 1) * 127.5 - m.mean) / m.std, method="encode")

  def decode(p, eps, told=None, **how):  # -> numbers for each pixel, what was drawn
    return net.apply({"params": p}, eps, told, method="decode", **how)

  def log_likelihood(x, out):  # [B]
    if bernoulli:
      return likelihood.bernoulli_log_prob((x + 1) / 2, out)
    return logistic_mixture.log_prob(x, out, bits=m.bits)

  def kl(law, prior):  # [B]
    (m1, s1), (m2, s2) = law, prior
    return likelihood.kl_gaussians(m1, 2 * s1, m2, 2 * s2)

  def log_prob(law, z):  # [B]
    return likelihood.gaussian_log_prob(z, *law)

  def noise(key, num):
    keys = jax.random.split(key, len(decoder))
    return [jax.random.normal(k, (num, s, s, m.z_dim)) for k, (s, _) in zip(keys, decoder)]

  def by_side(rates):  # [blocks, ...] -> {"rate_1": ..., "rate_4": ...}
    return {f"rate_{n}": sum(r for r, (s, _) in zip(rates, decoder) if s == n) for n in sides}

  def per_dim(nats):
    return nats / (dims * math.log(2))

  def init(key, batch, prev):
    k = core.keys(key, "net", "eps")
    params, _ = core.build(net, k.net, batch["image"][:2], noise(k.eps, 2))
    opt = {"+".join(PLAYERS): core.init_slot(tx, params, PLAYERS)}
    return core.State(step=jnp.zeros((), jnp.int32), params=params, opt=opt, ema=params)

  def step(state, batch, key):
    k = core.keys(key, "pixels", "eps")
    x = observe(batch, k.pixels)

    def loss(p, b):
      out, drawn = decode(p, b["eps"], encode(p, b["x"]))
      distortion = -log_likelihood(b["x"], out).mean()
      rates = [kl(d.posterior, d.prior).mean() for d in drawn]
      bound = distortion + sum(rates)
      found = {"distortion": distortion, "rate": sum(rates), **by_side(rates)}
      return bound / dims, ({}, {**found, "bits_per_dim": per_dim(bound)})

    moved, found = core.minimize(
      state,
      tx,
      loss,
      PLAYERS,
      {"x": x, "eps": noise(k.eps, len(x))},
      accumulate=config.accumulate,
    )
    moved = moved.replace(ema=core.ema(state.ema, moved.params, m.ema))
    length = found[f"gradnorm_{'+'.join(PLAYERS)}"]
    finite = jnp.isfinite(length) & jnp.isfinite(found["bits_per_dim"])
    good = finite & (length < (m.skip or jnp.inf))
    state = jax.tree.map(lambda new, old: jnp.where(good, new, old), moved, state)
    # numbers that are not finite end a run, but this step has done nothing
    found = {name: jnp.where(jnp.isfinite(v), v, 0.0) for name, v in found.items()}
    return state.replace(step=state.step + 1), {**found, "skipped": 1.0 - good}

  def picture(out, normals):  # Bernoulli: the mean; else levels drawn by [B, H, W, 1 + C]
    if bernoulli:
      return 2 * jax.nn.sigmoid(out) - 1
    return logistic_mixture.draw(out, jax.scipy.stats.norm.cdf(normals), bits=m.bits)

  def latent(batch, key):
    k, num = core.keys(key, "eps", "pixels"), len(batch["image"])
    found = {"eps": noise(k.eps, num)}
    if not bernoulli:
      found["pixels"] = jax.random.normal(k.pixels, (num, side, side, 1 + channels))
    return found

  def generate(state, z, batch):
    out, _ = decode(state.ema, z["eps"], temperature=m.temperature)
    return {"image": picture(out, z.get("pixels"))}

  def sample(state, batch, key):
    return generate(state, latent(batch, key), batch)

  def evaluate(state, batch, key):
    k = core.keys(key, "pixels", "eps")
    x, p = observe(batch, k.pixels), state.ema
    told = encode(p, x)

    def part(key):  # log p(x|z), log p(z) - log q(z), and rates: [1, 2 + blocks, B]
      out, drawn = decode(p, noise(key, len(x)), told)
      ratio = sum(log_prob(d.prior, d.z) - log_prob(d.posterior, d.z) for d in drawn)
      rates = [kl(d.posterior, d.prior) for d in drawn]
      return jnp.stack([log_likelihood(x, out), ratio, *rates])[None]

    found = likelihood.in_parts(part, k.eps, m.eval_k, 1)
    log_x, _, *rates = found.mean((0, 2))
    elbo = log_x - sum(rates)
    nll = -likelihood.importance_weighted_bound(found[:, 0] + found[:, 1]).mean()
    return {
      "elbo": elbo,
      "nll": nll,
      "bits_per_dim": per_dim(-elbo),
      "distortion": -log_x,
      "rate": sum(rates),
      **by_side(rates),
    }

  def show(state, batch, key):
    """Rates by block; reconstructions, by one draw; and images told from the top down to a side."""
    k, p = core.keys(key, "pixels", "eps", "levels"), state.ema
    x = observe({"image": batch["image"][:32]}, k.pixels)
    told, eps = encode(p, x), noise(k.eps, len(x))
    normals = None if bernoulli else jax.random.normal(k.levels, (*x.shape[:3], 1 + channels))
    out, drawn = decode(p, eps, told)
    rates = jnp.stack([kl(d.posterior, d.prior).mean() for d in drawn])
    few = lambda tree: jax.tree.map(lambda a: a[:8], tree)

    def upto(side):
      num = sum(s <= side for s, _ in decoder)
      return picture(decode(p, few(eps), few(told), num_told=num)[0], few(normals))

    return {
      "rate": {"x": jnp.arange(1, len(decoder) + 1), "nats of each block": rates},
      "reconstruction": pictures.pairs(x, picture(out, normals)),
      "top": jnp.stack([x[:8], *map(upto, sides)]),
    }

  train = core.Stage("train", config.num_steps, init, step, sample, evaluate, show)
  return [train._replace(latent=latent, generate=generate)]
