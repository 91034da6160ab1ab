"""VQ-VAE. van den Oord et al., Neural Discrete Representation Learning, 2017, arXiv:1711.00937.

Idea: an encoder gives a map of vectors, each is exchanged for the nearest of K codes, and a decoder
makes the image of these. What was an image is now a few symbols; a second model learns in which
order they come, and draws new ones.
Objective, with z = enc(x), k = argmin_j |z - e_j| and z_q = e_k at every one of L positions:
  tokenizer: D / pixels + beta mean (z - sg(e))^2, D = -log p(x|z_q); gradients pass from z_q to z
    codebook=ema: e_j is the moving average of the z that chose it; codes that die begin again
    codebook=gradient: + mean (sg(z) - e)^2
  prior: -1/L sum_i log p(k_i | k_<i), the tokenizer's networks held fixed
log p(x) >= log p(x|z_q) + log p(k) is reported as elbo: after the first stage with p(k) = K^-L, the
prior that its loss assumes, then with the learned one; both count one k of the K^L that p(x) sums
over. D by model.likelihood, x in [0, 1]: bernoulli, x binarised, or gaussian with model.std.
Departures: the prior is a transformer, as in VQGAN; the paper's was a PixelCNN. The first codes are
rows of the first batch's z, by k-means++. D of `gaussian` is the squared error over 2 std^2, which
with std^2 half of the data's variance is the loss of the authors' notebook; so is the convolution
before the residual blocks. Images are encoded anew in every step of the prior.
Run: python main.py --config=configs/vqvae.py --workdir=/tmp/vqvae
  8 minutes of processor time; log p(x) >= -164 to -170 nats, 6 to 8 % of the rarest digit
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from gm import core, flags, optim, pictures
from gm import prior as second
from gm.nets import vqvae
from gm.nn import quantize
from gm.probability import likelihood


def _check(config, info: core.Info) -> None:
  m, steps = config.model, {"least": 0, "most": flags.MOST_STEPS}
  flags.within(m, "num_codes", least=2)
  flags.within(m, "code_dim", "block_width", "widths", least=1)
  flags.within(m, "num_blocks", least=0)
  flags.within(m, "beta", least=0.0)
  flags.within(m, "decay", least=0.0, below=1.0)
  flags.within(m, "tokenizer_steps", "restart_every", **steps)
  flags.within(m, "restart_below", least=0.0)
  flags.within(m, "std", above=0.0)
  flags.choice(m, "likelihood", ("bernoulli", "gaussian"))
  flags.choice(m, "codebook", ("ema", "gradient"))
  flags.choice(m, "code_init", tuple(quantize.STARTS))
  if m.codebook == "gradient" and m.restart_every:
    raise ValueError(
      "codes that an optimizer moves are not restarted: set --config.model.restart_every=0, or"
      " --config.model.codebook=ema"
    )
  second.check(config, info)


def stages(config, info: core.Info) -> list[core.Stage]:
  """Returns the stages `tokenizer` and `prior`.

  Raises:
    ValueError: for a name or a number that is not possible, or images that do not halve as often as
      there are widths.
  """
  m, dtype = config.model, config.compute_dtype
  shape = info.shape[flags.leaf(info, "image")]
  _check(config, info)
  height, width = vqvae.grid(shape, len(m.widths))
  length, num_pixels = height * width, math.prod(shape)
  bernoulli, learned = m.likelihood == "bernoulli", m.codebook == "gradient"
  nets = {"widths": m.widths, "num_blocks": m.num_blocks, "block_width": m.block_width}
  enc = vqvae.Encoder(m.code_dim, **nets, dtype=dtype)
  dec = vqvae.Decoder(shape[2], **nets, dtype=dtype)
  players = ["enc", "dec", *(["book"] if learned else [])]
  tx = optim.adam(config.lr)
  averages = {"decay": m.decay, "threshold": m.restart_below}

  # ------------------------------------------------------------------------- images and their codes

  def observe(batch, key):  # what the likelihood is of, [B, H, W, C] in [0, 1]
    x = (batch["image"] + 1) / 2
    return jax.random.bernoulli(key, x).astype(jnp.float32) if bernoulli else x

  def encode(p, x):  # -> z [B, h, w, D]
    return enc.apply({"params": p["enc"]}, x - 0.5)

  def decode(p, z_q):  # -> logits, or means less 1/2, [B, H, W, C]
    return dec.apply({"params": p["dec"]}, z_q)

  def codes_of(state):  # [K, D]
    return state.params["book"]["codes"] if learned else state.extra["book"].codes

  def log_likelihood(x, out):  # [B]
    if bernoulli:
      return likelihood.bernoulli_log_prob(x, out)
    return likelihood.gaussian_log_prob(x, out + 0.5, math.log(m.std))

  def unit(out):  # the decoder's mean, in [0, 1]
    return jax.nn.sigmoid(out) if bernoulli else out + 0.5

  def tokens_of(state, x):  # -> i32 [B, L], row by row
    return quantize.nearest(encode(state.params, x), codes_of(state)).reshape(-1, length)

  def read(state, batch, key):
    return tokens_of(state, observe(batch, key))

  def render(state, tokens):  # -> the decoder's output
    return decode(state.params, codes_of(state)[tokens.reshape(-1, height, width)])

  def picture(state, tokens):  # in [-1, 1]
    return 2 * unit(render(state, tokens)) - 1

  def measured(state, batch, key):
    """-log p(x|z_q) and squared error as means over the batch, and the codes."""
    x = observe(batch, key)
    tokens = tokens_of(state, x)
    out = render(state, tokens)
    found = {
      "distortion": -log_likelihood(x, out).mean(),
      "mse": jnp.mean((unit(out) - (batch["image"] + 1) / 2) ** 2),
      "code": tokens,
    }
    return found, tokens

  def conclude(found, key):
    return quantize.use(jnp.bincount(found["code"].ravel(), length=m.num_codes))

  coder = second.Codes((height, width), m.num_codes, read, picture, measured)

  # -------------------------------------------------------------------------------------- tokenizer

  def init(key, batch, prev):
    k = core.keys(key, "enc", "dec", "pixels", "codes")
    x = observe(batch, k.pixels)
    params = {
      "enc": core.build(enc, k.enc, x[:2])[0],
      "dec": core.build(dec, k.dec, jnp.zeros((2, height, width, m.code_dim)))[0],
    }
    codes = quantize.first_codes(k.codes, encode(params, x), m.num_codes, how=m.code_init)
    if learned:
      params["book"] = {"codes": codes}
    return core.State(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt={"+".join(players): core.init_slot(tx, params, players)},
      extra={} if learned else {"book": quantize.start(codes)},
    )

  def step(state, batch, key):
    k = core.keys(key, "pixels", "restart")
    x = observe(batch, k.pixels)

    def loss(p, b):
      codes = codes_of(state.replace(params=p))
      z = encode(p, b["x"])
      index = quantize.nearest(z, codes)
      e = codes[index]
      out = decode(p, quantize.straight_through(z, e))
      distortion, pull = -log_likelihood(b["x"], out).mean(), quantize.commitment(z, e)
      vq = quantize.objective(z, e, beta=m.beta) if learned else m.beta * pull
      counts, sums = quantize.totals(z, index, m.num_codes)
      found = {"distortion": distortion, "commitment": pull, "counts": counts, "sums": sums}
      return distortion / num_pixels + vq, ({}, found)

    state, found = core.minimize(state, tx, loss, players, {"x": x}, accumulate=config.accumulate)
    counts, sums = (config.accumulate * found.pop(n) for n in ("counts", "sums"))  # were means
    found |= quantize.use(counts)
    if not learned:
      book = quantize.update(state.extra["book"], counts, sums, decay=m.decay)
      found["num_dead"] = quantize.dead(book, **averages).sum(dtype=jnp.float32)
      if m.restart_every:
        again = lambda book: quantize.restart(book, k.restart, encode(state.params, x), **averages)
        book = core.every(m.restart_every, state.step + 1, again, book)
      state = state.replace(extra={"book": book})
    return state.replace(step=state.step + 1), found

  def generate(state, u, batch):  # by the prior that the loss of the tokenizer assumes
    return {"image": second.evenly(coder)(state, u)}

  def sample(state, batch, key):
    return generate(state, second.latent(coder)(batch, key), batch)

  def evaluate(state, batch, key):
    found, _ = measured(state, batch, key)
    return {**found, "elbo": -found["distortion"] - length * math.log(m.num_codes)}

  def show(state, batch, key):
    x = observe({"image": batch["image"][:32]}, key)
    rec = picture(state, tokens_of(state, x))
    return {"reconstruction": pictures.pairs(batch["image"][:32], rec)}

  # ------------------------------------------------------------------------------------------ prior

  prior = second.stage(config, info, coder, frozen=players, conclude=conclude)

  def evaluate_prior(state, batch, key):
    found = prior.evaluate(state, batch, key)
    bounds = {"elbo": found["rate"], "elbo_uniform": length * math.log(m.num_codes)}
    return found | {name: -found["distortion"] - rate for name, rate in bounds.items()}

  tokenizer = core.Stage(
    "tokenizer",
    m.tokenizer_steps,
    *(init, step, sample, evaluate, show),
    latent=second.latent(coder),
    generate=generate,
    straight=True,
    conclude=conclude,
  )
  return [tokenizer, prior._replace(evaluate=evaluate_prior)]
