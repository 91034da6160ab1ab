"""Ladder VAE. Sonderby et al., Ladder Variational Autoencoders, NIPS 2016, arXiv:1602.02282.

Idea: a VAE with several layers of latents, p(x, z) = p(x|z1) p(z1|z2) .. N(zL; 0, I). Upper layers
tend to stay unused, since the encoder must tell z2 from a noisy z1. The ladder tells every layer
from x, and joins what x says of z_i with what the layers above expect of it.
Objective: lower D + w(t) sum over layers of R_i, distortion D = -E log p(x|z1) of binary pixels,
means over the batch, w(t) from 0 to 1 over model.warmup steps (0: is 1). With model.free_bits > 0
it is max(free_bits, R_i) of each layer in the mean over the batch. model.inference:
  ladder     h_i = net(h_i-1), h_0 = x, gives each layer's normal (m_i, v_i); from the top down
             q(z_i|z_i+1, x) is its product with p(z_i|z_i+1): precisions add. R_i = KL(q || p) in
             closed form, z_i+1 as drawn
  bottom_up  q(z1|x) q(z2|z1) ..; R_i = log q(z_i|z_i-1) - log p(z_i|z_i+1) as drawn, since z_i+1
             depends on z_i, and in closed form at the top alone
With one layer both are the VAE. nll is the importance-weighted estimate by model.eval_k draws.
Departures: no batch normalisation, so rates differ from the paper's; their code clips gradients at
0.9, each element, as does `paper` (model.clip), and takes softplus for variances, here exp.
Binarisation is drawn anew for each batch; the output bias starts at the log-odds of the first
batch's pixels. A layer is active where its mean varies along means of the layers before it.
Run: python main.py --config=configs/ladder_vae.py --workdir=/tmp/ladder_vae
  half a minute on 2 cores; 22.2 nats, the top layer tells 3.6
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from gm import core, diagnostics, flags, optim, pictures
from gm.nets import mlp
from gm.nn import init as inits
from gm.probability import aggregate, hierarchy, likelihood, pixels


class Ladder(nn.Module):
  """What x tells of every layer: x [B, P] -> [(mean, log_var), ...], [B, Z_i] each, float32."""

  z_dims: Sequence[int]
  widths: Sequence[int]
  depth: int
  activation: str
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> list[hierarchy.Law]:
    """Encodes x."""
    init, act, h, found = nn.initializers.glorot_uniform(), mlp.ACTIVATIONS[self.activation], x, []
    for num, width in zip(self.z_dims, self.widths, strict=True):
      for _ in range(self.depth):
        h = act(nn.Dense(width, kernel_init=init, dtype=self.dtype)(h))
      out = nn.Dense(2 * num, kernel_init=init, dtype=self.dtype)(h).astype(jnp.float32)
      found.append(tuple(jnp.split(out, 2, axis=-1)))
    return found


def stages(config, info: core.Info) -> list[core.Stage]:
  """Returns the one stage of a VAE of several layers, of fully connected networks.

  Raises:
    ValueError: for a name or a number that is not possible, or data that are not images.
  """
  m = config.model
  flags.leaf(info, "image")
  flags.within(m, "z_dims", "widths", "eval_k", "eval_chunk", least=1)
  flags.within(m, "depth", least=0, most=64)
  flags.within(m, "warmup", least=0, most=flags.MOST_STEPS)
  flags.within(m, "free_bits", "clip", least=0.0)
  flags.within(m, "adam_eps", above=0.0)
  flags.choice(m, "inference", ("ladder", "bottom_up"))
  flags.choice(m, "activation", tuple(mlp.ACTIVATIONS))
  flags.choice(m, "schedule", ("cosine", "constant"))
  flags.matching(m, "widths", "z_dims")
  shape = info.shape["image"]
  sizes, num_layers = (math.prod(shape), *m.z_dims), len(m.z_dims)
  options = {"activation": m.activation, "dtype": config.compute_dtype}

  def net(out, i):  # [..., N] -> [..., *out]; both nets between two layers have the same widths
    return mlp.Decoder(out, (m.widths[i],) * m.depth, **options)

  if m.inference == "ladder":
    up = [Ladder(m.z_dims, m.widths, m.depth, **options)]
  else:
    up = [net((2, sizes[i + 1]), i) for i in range(num_layers)]
  down = [net((2, sizes[i]) if i else sizes[:1], i) for i in range(num_layers)]
  tx = optim.adam(optim.by_name(m.schedule, config.lr, config.num_steps), eps=m.adam_eps)
  if m.clip:
    tx = optax.chain(optax.clip(m.clip), tx)
  players, warm = ["enc", "dec"], optim.ramp(m.warmup)

  def prior(p, i, z):  # law of z_i given z_i+1
    return tuple(jnp.moveaxis(down[i].apply({"params": p["dec"][f"down{i}"]}, z), -2, 0))

  def posterior(p, i, h):  # bottom_up: law of z_i+1 given z_i
    return tuple(jnp.moveaxis(up[i].apply({"params": p["enc"][f"up{i}"]}, h), -2, 0))

  def decode(p, z):  # [..., Z1] -> logits [..., P]
    return down[0].apply({"params": p["dec"]["down0"]}, z)

  def log_likelihood(p, x, z):  # log p(x|z1), [..., B]
    return likelihood.bernoulli_log_prob(x, decode(p, z), event_ndim=1)

  def kl(q, p):
    return likelihood.kl_gaussians(*q, *p, event_ndim=1)

  top = (jnp.zeros(m.z_dims[-1]),) * 2  # N(0, I)

  def infer_ladder(p, x, eps):
    said = up[0].apply({"params": p["enc"]["up0"]}, x)
    z, drawn, rates = [], [], []
    for i in range(num_layers - 1, -1, -1):
      expected = prior(p, i + 1, z[0]) if z else top
      q = hierarchy.merge(said[i], expected) if z else said[i]
      z.insert(0, hierarchy.draw(q, eps[i]))
      drawn.insert(0, hierarchy.log_prob(q, z[0]) - hierarchy.log_prob(expected, z[0]))
      rates.insert(0, kl(q, expected))
    return z, drawn, rates

  def infer_bottom_up(p, x, eps):
    z, log_q = hierarchy.climb(partial(posterior, p), x, eps)
    log_p = hierarchy.log_prior(partial(prior, p), z)
    drawn = [a - b for a, b in zip(log_q, log_p, strict=True)]
    below = [x, *z][num_layers - 1]
    return z, drawn, [*drawn[:-1], kl(posterior(p, num_layers - 1, below), top)]

  # (p, x [B, P], eps [..., B, Z_i]) -> of each layer: z, log q - log p as drawn, and its rate
  infer = infer_ladder if m.inference == "ladder" else infer_bottom_up

  def observe(batch, key):
    return pixels.binarise(key, pixels.unit(batch["image"]))

  def noise(key, *lead):
    return hierarchy.noise(key, lead, m.z_dims)

  def init(key, batch, prev):
    keys = jax.random.split(key, 2 * num_layers)
    first = down[0].clone(output_bias_init=inits.constant(pixels.log_odds(batch["image"])))
    rows = [jnp.zeros((2, n)) for n in sizes]
    build = lambda nets, name, inputs, keys: {
      f"{name}{i}": core.build(*args)[0] for i, args in enumerate(zip(nets, keys, inputs))
    }
    params = {
      "enc": build(up, "up", rows, keys[::2]),
      "dec": build([first, *down[1:]], "down", rows[1:], keys[1::2]),
    }
    opt = {"enc+dec": core.init_slot(tx, params, players)}
    return core.State(step=jnp.zeros((), jnp.int32), params=params, opt=opt)

  def step(state, batch, key):
    k = core.keys(key, "pixels", "eps")
    x = observe(batch, k.pixels)

    def loss(p, b):
      z, _, rates = infer(p, b["x"], b["eps"])
      distortion, rates = -log_likelihood(p, b["x"], z[0]).mean(), jnp.stack(rates, axis=1)
      penalty = aggregate.free_bits(rates, m.free_bits) if m.free_bits else rates.mean(0).sum()
      found = {f"rate_{i + 1}": r for i, r in enumerate(rates.mean(0))}
      found |= {"distortion": distortion, "rate": rates.mean(0).sum()}
      return distortion + warm(state.step) * penalty, ({}, found)

    state, found = core.minimize(
      state, tx, loss, players, {"x": x, "eps": noise(k.eps, len(x))}, accumulate=config.accumulate
    )
    return state.replace(step=state.step + 1), found

  def picture(p, z):  # the decoder's mean, [N, H, W, C] in [-1, 1]
    return pixels.image(jax.nn.sigmoid(decode(p, z)), shape)

  def latent(batch, key):
    return noise(key, len(batch["image"]))

  def render(state, eps, batch):
    return {"image": picture(state.params, hierarchy.descend(partial(prior, state.params), eps))}

  def sample(state, batch, key):
    return render(state, latent(batch, key), batch)

  def means(p, x):  # z_1 .. z_L without noise
    return infer(p, x, [jnp.zeros((len(x), n)) for n in m.z_dims])[0]

  def evaluate(state, batch, key):
    k = core.keys(key, "pixels", "weights")
    x, p = observe(batch, k.pixels), state.params

    def part(key):  # [size, 1 + layers, B]
      z, drawn, rates = infer(p, x, noise(key, m.eval_chunk, len(x)))
      of_x, drawn = log_likelihood(p, x, z[0]), sum(drawn)
      rates = [jnp.broadcast_to(r, of_x.shape) for r in rates]
      return jnp.stack([of_x, of_x - drawn, *rates], axis=1)

    found = likelihood.in_parts(part, k.weights, m.eval_k, m.eval_chunk)
    log_x, _, *rates = found.mean((0, 2))
    return {
      "elbo": log_x - sum(rates),
      "nll": -likelihood.importance_weighted_bound(found[:, 1]).mean(),
      "distortion": -log_x,
      "rate": sum(rates),
      **{f"rate_{i + 1}": r for i, r in enumerate(rates)},
      **{f"mean_{i + 1}": z for i, z in enumerate(means(p, x))},  # for `conclude`
    }

  def conclude(found, key):
    return {f"active_units_{n[5:]}": diagnostics.active_units(z) for n, z in found.items()}

  def show(state, batch, key):
    """Reconstructions; and with the same noise below, one draw of the top layer in each row."""
    k, p, x = core.keys(key, "pixels", "eps"), state.params, batch["image"][:32]
    eps = noise(k.eps, 64)
    of_top = [*(jnp.tile(e[:8], (8, 1)) for e in eps[:-1]), jnp.repeat(eps[-1][:8], 8, axis=0)]
    z = hierarchy.descend(partial(prior, p), of_top)
    paint = lambda z: picture(p, z)
    return {
      "reconstruction": pictures.pairs(x, paint(means(p, observe({"image": x}, k.pixels))[0])),
      "top_layer": paint(z).reshape(8, 8, *shape),
    }

  train = core.Stage("train", config.num_steps, init, step, sample, evaluate, show)
  return [train._replace(conclude=conclude, latent=latent, generate=render)]
