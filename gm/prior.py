"""The second stage of a model with a codebook: a transformer that tells which codes follow which.

VQ-VAE and VQGAN first make a few symbols of an image. Here a transformer learns p(k) = prod_i
p(k_i | k_<i) over the L codes of an image, row by row, from -1/L E log p(k), and draws new ones,
or goes on where an image ends. The first stage's networks stay in the state as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gm import core, flags, optim, pictures
from gm.nets import transformer

SHOWN = 32  # images in pictures


class Codes(NamedTuple):
  """What the first stage gives to the second."""

  grid: tuple[int, int]  # rows and columns of codes
  num: int  # K
  tokens: Callable  # (state, batch, key) -> i32 [B, L]
  picture: Callable  # (state, tokens) -> images [B, H, W, C]
  # (state, batch, key) -> metrics of images that are put together from their codes, and the codes
  measure: Callable


def check(config: Any, info: core.Info) -> None:
  """Checks the keys of config.model that begin with prior_, and those of samples.

  Raises:
    ValueError: if one is not possible, or labels are asked for that the data do not have.
  """
  m = config.model
  flags.within(m, "prior_layers", "prior_heads", "prior_width", least=1)
  flags.within(m, "prior_warmup", least=0, most=flags.MOST_STEPS)
  flags.within(m, "prior_lr", above=0.0)
  flags.within(m, "prior_decay", "temperature", least=0.0)
  flags.within(m, "top_k", least=0)
  flags.within(m, "top_p", above=0.0, most=1.0)
  if m.prior_width % m.prior_heads:
    raise ValueError(
      f"--config.model.prior_heads={m.prior_heads} do not divide --config.model.prior_width="
      f"{m.prior_width}"
    )
  if m.conditional and not (info.num_classes and "label" in info.shape):
    raise ValueError(flags.unlabelled("--config.model.conditional=True", config.data))


def latent(codes: Codes) -> Callable:
  """Returns (batch, key) -> u [B, L]: a uniform number for each code, of which samples are made."""
  length = codes.grid[0] * codes.grid[1]
  return lambda batch, key: jax.random.uniform(key, (len(batch["image"]), length))


def evenly(codes: Codes) -> Callable:
  """Returns (state, u) -> images of codes that are all alike likely: what u makes with no prior."""

  def render(state, u):
    tokens = jnp.minimum((u * codes.num).astype(jnp.int32), codes.num - 1)
    return codes.picture(state, tokens)

  return render


def stage(
  config: Any,
  info: core.Info,
  codes: Codes,
  *,
  frozen: Sequence[str],
  given: Callable = lambda tokens, key: tokens,
  **more: Any,
) -> core.Stage:
  """Returns the stage `prior`.

  Args:
    config: of the run; config.model as `check` wants it.
    info: facts of the data.
    codes: the first stage.
    frozen: networks of the first stage that codes and images are made of.
    given: (tokens, key) -> tokens that the transformer reads in training, in place of the true
      ones, which it has to tell all the same.
    **more: of the stage, such as `conclude`.
  """
  m, (height, width) = config.model, codes.grid
  length = height * width
  net = transformer.Transformer(
    codes.num + (info.num_classes if m.conditional else 1),  # what comes first is no code
    length,
    m.prior_layers,
    m.prior_heads,
    m.prior_width,
    outputs=codes.num,
    dtype=config.compute_dtype,
  )
  rate = optim.warmup(optim.cosine(m.prior_lr, config.num_steps), m.prior_warmup)
  tx = optim.adamw(rate, b2=0.95, weight_decay=m.prior_decay, mask=transformer.decayed)

  def first(batch):  # the token before all codes, i32 [B, 1]
    told = batch["label"] if m.conditional else jnp.zeros(len(batch["image"]), jnp.int32)
    return codes.num + told[:, None]

  def log_prob(p, start, seen, tokens):  # log p(k), [B]; `seen` are the tokens that it reads
    logits = net.apply({"params": p["prior"]}, jnp.concatenate([start, seen[:, :-1]], axis=1))
    return -optax.softmax_cross_entropy_with_integer_labels(logits, tokens).sum(1)

  def draw(state, start, u):  # -> tokens, as many as there are numbers
    how = {"temperature": m.temperature, "top_k": m.top_k, "top_p": m.top_p}
    return transformer.sample(net, state.params["prior"], start, u, **how)

  def init(key, batch, prev):
    params = {n: prev.params[n] for n in frozen}
    params["prior"] = core.build(net, key, first(batch)[:2])[0]
    opt = {"prior": core.init_slot(tx, params, ["prior"])}
    return core.State(step=jnp.zeros((), jnp.int32), params=params, opt=opt, extra=prev.extra)

  def step(state, batch, key):
    tokens = codes.tokens(state, batch, key)
    batch = {"first": first(batch), "seen": given(tokens, key), "tokens": tokens}

    def loss(p, b):
      return -log_prob(p, b["first"], b["seen"], b["tokens"]).mean() / length, ({}, {})

    state, found = core.minimize(state, tx, loss, ["prior"], batch, accumulate=config.accumulate)
    return state.replace(step=state.step + 1), found

  def generate(state, u, batch):
    label = {"label": batch["label"]} if m.conditional else {}
    return {"image": codes.picture(state, draw(state, first(batch), u)), **label}

  def sample(state, batch, key):
    return generate(state, latent(codes)(batch, key), batch)

  def evaluate(state, batch, key):
    found, tokens = codes.measure(state, batch, key)
    rate = -log_prob(state.params, first(batch), tokens, tokens).mean()
    return {**found, "rate": rate, "nats_per_code": rate / length}

  def finished(state, batch, key):  # the images as their codes have them, and how they go on
    k = core.keys(key, "codes", "rest")
    tokens = codes.tokens(state, batch, k.codes)
    kept = tokens[:, : height // 2 * width]
    u = jax.random.uniform(k.rest, (len(tokens), length - kept.shape[1]))
    rest = draw(state, jnp.concatenate([first(batch), kept], axis=1), u)
    whole = codes.picture(state, jnp.concatenate([kept, rest], axis=1))
    return codes.picture(state, tokens), whole

  def complete(state, batch, key):
    """Images of which the upper half of the codes is given and the prior draws the rest."""
    label = {"label": batch["label"]} if m.conditional else {}
    return {"image": finished(state, batch, key)[1], **label}

  def show(state, batch, key):
    """Images of which the upper half is given, below how they went on."""
    few = {name: x[:SHOWN] for name, x in batch.items()}
    return {"completion": pictures.pairs(*finished(state, few, key))}

  return core.Stage(
    "prior",
    config.num_steps,
    *(init, step, sample, evaluate, show),
    latent=latent(codes),
    generate=generate,
    straight=True,
    complete=complete,
    **more,
  )
