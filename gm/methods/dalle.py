"""DALL-E. Ramesh et al., Zero-Shot Text-to-Image Generation, 2021, arXiv:2102.12092.

Idea: a discrete VAE makes a map of codes of an image. One transformer then learns which sequences
of a caption's tokens and an image's codes there are, and continues a caption by an image.
Objective:
  tokenizer, with q(z|x) = softmax(enc(x)) at each of L positions, e_k the codes, g Gumbel noise:
    mean over pixels R(x, dec(sum_k y_k e_k)) + beta (L / pixels) mean over positions KL(q | U),
    y = softmax((enc(x) + g) / tau), U uniform over K codes; tau falls, beta rises from 0 and then,
    while tau falls, goes to beta_final
    model.likelihood: mse, R = (x - dec)^2 in [-1, 1]; laplace, R = -log p(x), logit-Laplace
  prior: (CE of the T tokens of text + w CE of the L codes) / (1 + w), each a mean; the codes are
    arg max enc(x) without noise, and the tokenizer is held fixed
Samples are drawn code by code from logits l(nothing) + s (l(caption) - l(nothing)), s = guidance;
for it a share of the captions is left out in training: a text of nothing but padding.
Departures: sparse attention is dense attention under a mask (the same result, not as quick). tau
falls evenly in its logarithm, the paper's by a cosine, DALLE-pytorch's by a factor every 100 steps.
beta_final is the paper's beta; `small` ends lower: codes are spread first and then chosen sharply.
The KL is a mean over positions; in DALLE-pytorch it is a sum over the batch beside a mean of
errors. top_k counts codes; there it counts text ids too. Places are learned, as by its training
script; rotary ones and shifted tokens are not built, nor a CLIP that ranks samples, nor the paper's
averages of weights, dropout of BPE's merges and, of the tokenizer, weight decay. Layers begin small
(`dalle.Layer`) in `paper` too. `local` sees up and to the left, as there. Images are encoded anew
in every step of the prior.
Run: python main.py --config=configs/dalle.py --workdir=/tmp/dalle
  more than 20 minutes of processor time; what it reaches is told in the config
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import optax

from gm import core, flags, optim, pictures
from gm.nets import dalle, dvae, transformer, vqvae
from gm.nn import quantize
from gm.probability import likelihood

NETS = {
  "plain": (dvae.Encoder, dvae.Decoder),
  "published": (dvae.PublishedEncoder, dvae.PublishedDecoder),
}


def _check(m, info: core.Info, data) -> None:
  steps = {"least": 0, "most": flags.MOST_STEPS}
  flags.within(m, "num_codes", least=2)
  flags.within(m, "code_dim", "width", "num_halvings", least=1)
  flags.within(m, "num_blocks", least=1 if m.tokenizer == "published" else 0)
  flags.within(m, "tau_start", "tau_final", "prior_lr", "clip", above=0.0)
  flags.within(m, "tokenizer_steps", "tau_steps", "beta_steps", "prior_warmup", **steps)
  flags.within(
    m, "beta", "beta_final", "prior_decay", "image_weight", "temperature", "guidance", least=0.0
  )
  flags.within(m, "caption_dropout", least=0.0, most=1.0)
  flags.within(m, "prior_layers", "prior_heads", "prior_head_dim", "prior_width", least=1)
  flags.within(m, "top_k", least=0)
  flags.within(m, "top_p", above=0.0, most=1.0)
  flags.choice(m, "tokenizer", tuple(NETS))
  flags.choice(m, "likelihood", ("mse", "laplace"))
  for name in m.patterns or ("",):
    flags.choice({"patterns": name}, "patterns", dalle.PATTERNS)
  if m.guidance != 1 and not m.caption_dropout:
    raise ValueError(
      f"--config.model.guidance={m.guidance} compares with what follows no caption, and that is"
      " never learned at --config.model.caption_dropout=0: raise it, or set the guidance to 1"
    )
  if "tokens" not in info.shape:
    raise ValueError(
      f"dalle needs text, and {data['source']}:{data['name']} comes without: set"
      " --config.data.text_key (gm/data/text.py says of which sources)"
    )


def stages(config, info: core.Info) -> list[core.Stage]:
  """Returns the stages `tokenizer` and `prior`.

  Raises:
    ValueError: for a name or a number that is not possible, data without text, or images that do
      not halve as often as they shall.
  """
  m, dtype = config.model, config.compute_dtype
  shape = info.shape[flags.leaf(info, "image")]
  _check(m, info, config.data)
  height, width = vqvae.grid(shape, m.num_halvings)
  length, num_pixels, text_length = height * width, math.prod(shape), info.shape["tokens"][0]
  laplace = m.likelihood == "laplace"
  nets = {"width": m.width, "num_halvings": m.num_halvings, "num_blocks": m.num_blocks}
  encoder, decoder = NETS[m.tokenizer]
  enc = encoder(m.num_codes, **nets, dtype=dtype)
  dec = decoder(shape[2] * (2 if laplace else 1), m.num_codes, m.code_dim, **nets, dtype=dtype)
  prior = dalle.Dalle(
    info.vocab_size,
    text_length,
    m.num_codes,
    (height, width),
    m.prior_layers,
    m.prior_heads,
    m.prior_head_dim,
    m.prior_width,
    tuple(m.patterns),
    m.gated,
    dtype,
  )
  first_code = info.vocab_size + text_length  # the id of code 0 in sequences
  tx = optim.adam(optim.cosine(config.lr, m.tokenizer_steps, final=config.lr / 80))
  rate = optim.warmup(optim.cosine(m.prior_lr, config.num_steps), m.prior_warmup)
  adam = optim.adamw(rate, b2=0.96, weight_decay=m.prior_decay, mask=transformer.decayed)
  tx_prior = optax.chain(optax.clip_by_global_norm(m.clip), adam)

  # ------------------------------------------------------------------------- images and their codes

  def encode(p, x):  # -> logits [B, h, w, K]
    return enc.apply({"params": p["enc"]}, x)

  def decode(p, y):  # codes, or weights of them -> what the likelihood is told
    return dec.apply({"params": p["dec"]}, y)

  def error(x, out):  # R, a mean over pixels and the batch
    if not laplace:
      return jnp.mean((out - x) ** 2)
    mean, log_scale = jnp.split(out, 2, axis=-1)
    inside = dvae.inside((x + 1) / 2)
    return -likelihood.logit_laplace_log_prob(inside, mean, log_scale).mean() / num_pixels

  def picture(state, codes):  # i32 [B, L] -> images in [-1, 1]
    out = decode(state.params, codes.reshape(-1, height, width))
    if not laplace:
      return out.clip(-1, 1)
    return 2 * dvae.outside(jax.nn.sigmoid(jnp.split(out, 2, axis=-1)[0])) - 1

  def codes_of(state, x):  # -> i32 [B, L], row by row
    return jnp.argmax(encode(state.params, x), -1).reshape(-1, length).astype(jnp.int32)

  def measured(state, batch):
    """Errors of the codes themselves, KL in nats a position, and the codes."""
    x = batch["image"]
    logits, codes = encode(state.params, x), codes_of(state, x)
    found = {
      "mse": jnp.mean((picture(state, codes) - x) ** 2),  # of hard choices
      "kl": likelihood.kl_uniform(logits).mean(),
      "code": codes,
    }
    return found, codes

  def conclude(found, key):
    return quantize.use(jnp.bincount(found["code"].ravel(), length=m.num_codes))

  def latent(batch, key):  # a uniform number for each code
    return jax.random.uniform(key, (len(batch["image"]), length))

  def said(batch):  # what was asked for, beside an image of it
    return {"tokens": batch["tokens"]} | ({"data_said": batch["said"]} if "said" in batch else {})

  # -------------------------------------------------------------------------------------- tokenizer

  def init(key, batch, prev):
    k = core.keys(key, "enc", "dec")
    params = {
      "enc": core.build(enc, k.enc, batch["image"][:2])[0],
      "dec": core.build(dec, k.dec, jnp.zeros((2, height, width), jnp.int32))[0],
    }
    opt = {"enc+dec": core.init_slot(tx, params, ["enc", "dec"])}
    return core.State(step=jnp.zeros((), jnp.int32), params=params, opt=opt)

  def step(state, batch, key):
    how = {"start": m.tau_start, "final": m.tau_final, "num_steps": max(m.tau_steps, 1)}
    tau = quantize.temperature(state.step, **how)
    towards = jnp.minimum(state.step / how["num_steps"], 1.0)
    beta = m.beta + (m.beta_final - m.beta) * towards
    beta = beta * optim.ramp(m.beta_steps)(state.step)

    def loss(p, b):
      logits = encode(p, b["image"])
      out = decode(p, quantize.gumbel_softmax(b["key"], logits, tau))
      wrong, kl = error(b["image"], out), likelihood.kl_uniform(logits).mean()
      return wrong + beta * length / num_pixels * kl, ({}, {"error": wrong, "kl": kl})

    told = {"image": batch["image"], "key": key}
    state, found = core.minimize(
      state, tx, loss, ["enc", "dec"], told, accumulate=config.accumulate
    )
    return state.replace(step=state.step + 1), {**found, "tau": tau, "beta": beta}

  def render_evenly(state, u, batch):  # all codes alike
    codes = jnp.minimum((u * m.num_codes).astype(jnp.int32), m.num_codes - 1)
    return {"image": picture(state, codes)}

  def sample(state, batch, key):
    return render_evenly(state, latent(batch, key), batch)

  def evaluate(state, batch, key):
    return measured(state, batch)[0]

  def show(state, batch, key):
    x = batch["image"][:32]
    return {"reconstruction": pictures.pairs(x, picture(state, codes_of(state, x)))}

  # ------------------------------------------------------------------------------------------ prior

  def begin(tokens):  # a caption as a sequence begins with it, i32 [B, 1 + T]
    return jnp.pad(dalle.fill(tokens, info.vocab_size), ((0, 0), (1, 0)))

  def entropies(p, tokens, codes):  # cross-entropy a token of text and of the image, each [B]
    ids = jnp.concatenate([begin(tokens), first_code + codes], axis=1)
    logits = prior.apply({"params": p["prior"]}, ids[:, :-1])
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:])
    return nats[:, :text_length].mean(1), nats[:, text_length:].mean(1)

  def draw(state, tokens, u, given=None):  # -> codes, the given ones not among them
    start = begin(tokens)
    if guided := m.guidance != 1:
      start = jnp.concatenate([start, begin(jnp.zeros_like(tokens))])
    if given is not None:
      given = first_code + given
      start = jnp.concatenate([start, jnp.tile(given, (2, 1)) if guided else given], axis=1)
    how = {"temperature": m.temperature, "top_k": m.top_k, "top_p": m.top_p}
    how |= {"guidance": m.guidance} if guided else {}
    return transformer.sample(prior, state.params["prior"], start, u, **how) - first_code

  def init_prior(key, batch, prev):
    ids = jnp.zeros((2, prior.context), jnp.int32)
    params = {**prev.params, "prior": core.build(prior, key, ids)[0]}
    opt = {"prior": core.init_slot(tx_prior, params, ["prior"])}
    return core.State(step=jnp.zeros((), jnp.int32), params=params, opt=opt)

  def step_prior(state, batch, key):
    codes = codes_of(state, batch["image"])
    out = jax.random.bernoulli(key, m.caption_dropout, (len(codes), 1))
    told = {"tokens": jnp.where(out, 0, batch["tokens"]), "codes": codes}

    def loss(p, b):
      text, image = (nats.mean() for nats in entropies(p, b["tokens"], b["codes"]))
      total = (text + m.image_weight * image) / (1 + m.image_weight)
      return total, ({}, {"text_nats": text, "image_nats": image})

    state, found = core.minimize(
      state, tx_prior, loss, ["prior"], told, accumulate=config.accumulate
    )
    return state.replace(step=state.step + 1), found

  def generate(state, u, batch):
    return {"image": picture(state, draw(state, batch["tokens"], u)), **said(batch)}

  def sample_prior(state, batch, key):
    return generate(state, latent(batch, key), batch)

  def evaluate_prior(state, batch, key):
    found, codes = measured(state, batch)
    text, image = entropies(state.params, batch["tokens"], codes)
    _, other = entropies(state.params, jnp.roll(batch["tokens"], 1, axis=0), codes)
    told = {"text_nats": text.mean(), "image_nats": image.mean()}
    return {**found, **told, "image_nats_other_caption": other.mean()}

  def complete(state, batch, key):
    """Images whose upper half is that of the batch's, and the lower one made to go with it."""
    codes = codes_of(state, batch["image"])
    given = codes[:, : height // 2 * width]
    u = jax.random.uniform(key, (len(codes), length - given.shape[1]))
    rest = draw(state, batch["tokens"], u, given)
    return {"image": picture(state, jnp.concatenate([given, rest], axis=1))}

  def show_prior(state, batch, key):
    some = {name: x[:32] for name, x in batch.items()}
    before = picture(state, codes_of(state, some["image"]))
    return {"completion": pictures.pairs(before, complete(state, some, key)["image"])}

  common = {"conclude": conclude, "latent": latent, "straight": True}
  return [
    core.Stage(
      "tokenizer",
      m.tokenizer_steps,
      *(init, step, sample, evaluate, show),
      generate=render_evenly,
      **common,
    ),
    core.Stage(
      "prior",
      config.num_steps,
      *(init_prior, step_prior, sample_prior, evaluate_prior, show_prior),
      generate=generate,
      complete=complete,
      **common,
    ),
  ]
