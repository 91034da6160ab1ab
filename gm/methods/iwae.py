"""IWAE. Burda et al., Importance Weighted Autoencoders, ICLR 2016, arXiv:1509.00519.

Idea: the VAE's decoder and encoder, trained on a tighter bound. Of k draws z_i from q(z|x), only
those that explain x well need count, so q may be wrong elsewhere; the more draws, the less q's
family limits p.
Objective: maximise, with weights w_i = p(x, z_i) / q(z_i|x) and L(w_1 ... w_n) = log mean w, the
mean over examples of model.bound:
  iwae   L of all k, at most log p(x) on average; k = 1 is the VAE's bound
  miwae  the mean of L over model.groups = M groups of K = k / M each (MIWAE)
  piwae  iwae for the decoder, miwae for the encoder (PIWAE)
  ciwae  mix mean log w + (1 - mix) L of all k (CIWAE)
the last three by Rainforth et al., 2018, arXiv:1802.04537.
With one or more layers, of model.z_dims: q(z|x) = q(z1|x) q(z2|z1) .., p(x, z) = p(x|z1) p(z1|z2)
.. N(zL; 0, I), all diagonal normals but p(x|z1), which is of binary pixels.
model.gradient of the encoder: `total` is the bound's own, whose noise grows against its size with
k. `dreg` has the same mean: sum_i v_i d log w_i / dz_i dz_i / dphi, q's own parameters constant in
log w, where v = (w / sum w)^2 for L, 1 / M of each group's for miwae, 1 / k for mean log w; Tucker
et al., 2019, arXiv:1810.04152.
nll is L of model.eval_k draws, bound that of k, elbo the mean log w: of the same draws.
Departures: binarisation is drawn anew for each batch; the output bias starts at the log-odds of the
first batch's pixels, in Burda's code of the training set's. Mean and log-variance are one layer of
twice the width, and glorot's limits are of that. `paper` has Burda's networks and schedule; their
code's Adam had other beta1 and second moment than the paper. Layer 2 is active where the mean of
q(z2 | mean of q(z1|x)) varies; the paper averages over draws of z1.
Run: python main.py --config=configs/iwae.py --workdir=/tmp/iwae
  half a minute on 2 cores; 22.3 nats with k = 5, 22.7 with k = 1, the VAE
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp

from gm import core, diagnostics, flags, optim, pictures
from gm.nets import mlp
from gm.nn import init as inits
from gm.probability import hierarchy, likelihood, pixels

BOUNDS = ("iwae", "miwae", "piwae", "ciwae")


def combine(log_w: jax.Array, bound: str, *, groups: int = 1, mix: float = 0.0) -> jax.Array:
  """A bound of k weights.

  Args:
    log_w: [k, B], nats.
    bound: iwae, miwae or ciwae.
    groups: of miwae, divides k.
    mix: of ciwae, from 0 (iwae) to 1 (the ELBO).

  Returns:
    [B], nats.

  >>> log_w = jnp.log(jnp.array([[1.0], [3.0]]))
  >>> [round(float(combine(log_w, b, groups=2)[0]), 4) for b in ("iwae", "miwae")]  # log 2, log 3/2
  [0.6931, 0.5493]
  """
  if bound == "miwae":
    parts = log_w.reshape(groups, -1, log_w.shape[1])
    return likelihood.importance_weighted_bound(parts, axis=1).mean(0)
  whole = likelihood.importance_weighted_bound(log_w)
  return mix * log_w.mean(0) + (1 - mix) * whole if bound == "ciwae" else whole


def path_weights(log_w: jax.Array, bound: str, *, groups: int = 1, mix: float = 0.0) -> jax.Array:
  """What each draw's path counts in DReG's gradient of a bound.

  Args:
    log_w, bound, groups, mix: as of `combine`.

  Returns:
    [k, B].

  >>> log_w = jnp.log(jnp.array([[1.0], [3.0]]))
  >>> [round(float(v), 4) for v in path_weights(log_w, "iwae")[:, 0]]  # squares of 1/4 and 3/4
  [0.0625, 0.5625]
  """
  if bound == "miwae":
    parts = log_w.reshape(groups, -1, log_w.shape[1])
    return (jax.nn.softmax(parts, axis=1) ** 2 / groups).reshape(log_w.shape)
  squares = jax.nn.softmax(log_w, axis=0) ** 2
  return mix / len(log_w) + (1 - mix) * squares if bound == "ciwae" else squares


def check(m) -> None:
  """Refuses what these models cannot be.

  Raises:
    ValueError: with the flag to change.
  """
  flags.within(m, "z_dims", "widths", "k", "groups", "eval_k", "eval_chunk", least=1)
  flags.within(m, "depth", least=0, most=64)
  flags.within(m, "mix", least=0.0, most=1.0)
  flags.within(m, "adam_eps", above=0.0)
  flags.within(m, "steps_per_epoch", least=1, most=optim.BURDA_EPOCH)
  flags.choice(m, "bound", BOUNDS)
  flags.choice(m, "gradient", ("total", "dreg"))
  flags.choice(m, "activation", tuple(mlp.ACTIVATIONS))
  flags.choice(m, "schedule", ("cosine", "burda"))
  flags.matching(m, "widths", "z_dims")
  if m.groups > 1 and (m.bound not in ("miwae", "piwae") or m.k % m.groups):
    raise ValueError(
      f"--config.model.groups={m.groups} is not possible: give 1, or with"
      f" --config.model.bound=miwae or piwae a divisor of --config.model.k={m.k}"
    )


def stages(config, info: core.Info) -> list[core.Stage]:
  """Returns the one stage of an importance-weighted autoencoder of fully connected networks.

  Raises:
    ValueError: for a name or a number that is not possible, or data that are not images.
  """
  m = config.model
  flags.leaf(info, "image")
  check(m)
  sizes = (math.prod(info.shape["image"]), *m.z_dims)
  num_layers, how = len(m.z_dims), {"groups": m.groups, "mix": m.mix}

  def net(out, i):  # [..., N] -> [..., *out]; both nets between two layers have the same widths
    widths = (m.widths[i],) * m.depth
    return mlp.Decoder(out, widths, m.activation, dtype=config.compute_dtype)

  # z_i to mean and log-variance of z_i+1, where z_0 = x, and back, at last to logits
  up = [net((2, sizes[i + 1]), i) for i in range(num_layers)]
  down = [net((2, sizes[i]) if i else sizes[:1], i) for i in range(num_layers)]
  rate = optim.by_name(m.schedule, config.lr, config.num_steps, m.steps_per_epoch)
  tx = optim.adam(rate, eps=m.adam_eps)
  players = ["enc", "dec"]

  def posterior(p, i, h):  # law of z_i+1 given z_i: mean, log_var [..., Z]
    return tuple(jnp.moveaxis(up[i].apply({"params": p["enc"][f"up{i}"]}, h), -2, 0))

  def prior(p, i, z):  # law of z_i given z_i+1
    return tuple(jnp.moveaxis(down[i].apply({"params": p["dec"][f"down{i}"]}, z), -2, 0))

  def decode(p, z):  # [..., Z1] -> logits [..., P]
    return down[0].apply({"params": p["dec"]["down0"]}, z)

  def terms(p, x, eps, fixed=None):
    """Log p(x|z1), then log p(z_i|z_i+1) / q(z_i|z_i-1): [1 + layers, S, B], of draws by eps.

    `fixed` has the encoder of q's own density, where that is not to move.
    """
    density = partial(posterior, fixed) if fixed else None
    z, log_q = hierarchy.climb(partial(posterior, p), x, eps, density)
    log_p = hierarchy.log_prior(partial(prior, p), z)
    log_x = likelihood.bernoulli_log_prob(x, decode(p, z[0]), event_ndim=1)
    return jnp.stack([log_x, *(a - b for a, b in zip(log_p, log_q, strict=True))])

  def init(key, batch, prev):
    keys = jax.random.split(key, 2 * num_layers)
    first = down[0].clone(output_bias_init=inits.constant(pixels.log_odds(batch["image"])))
    params = {"enc": {}, "dec": {}}
    for i, (u, d) in enumerate(zip(up, [first, *down[1:]], strict=True)):
      rows = [jnp.zeros((2, n)) for n in sizes[i : i + 2]]
      params["enc"][f"up{i}"] = core.build(u, keys[2 * i], rows[0])[0]
      params["dec"][f"down{i}"] = core.build(d, keys[2 * i + 1], rows[1])[0]
    opt = {"enc+dec": core.init_slot(tx, params, players)}
    return core.State(step=jnp.zeros((), jnp.int32), params=params, opt=opt)

  def noise(key, *shape):
    return hierarchy.noise(key, shape, m.z_dims)

  def step(state, batch, key):
    k = core.keys(key, "pixels", "eps")
    x = pixels.binarise(k.pixels, pixels.unit(batch["image"]))
    still = jax.lax.stop_gradient

    def loss(p, b):
      eps = [jnp.moveaxis(e, 1, 0) for e in b["eps"]]  # [k, B, Z]
      weights = lambda p, fixed=None: terms(p, b["x"], eps, fixed).sum(0)
      if m.gradient == "total" and m.bound != "piwae":
        value = combine(weights(p), m.bound, **how)
        return -value.mean(), ({}, {})
      # each network's part, the other one held; what is computed twice the compiler joins
      d_bound, e_bound = ("iwae", "miwae") if m.bound == "piwae" else (m.bound, m.bound)
      value = combine(weights({**p, "enc": still(p["enc"])}), d_bound, **how)
      if m.gradient == "dreg":
        log_w = weights({**p, "dec": still(p["dec"])}, still(p))
        moves_enc = (still(path_weights(log_w, e_bound, **how)) * log_w).sum(0)
      else:
        moves_enc = combine(weights({**p, "dec": still(p["dec"])}), e_bound, **how)
      return -(value + moves_enc - still(moves_enc)).mean(), ({}, {})

    state, found = core.minimize(
      state,
      tx,
      loss,
      players,
      {"x": x, "eps": noise(k.eps, len(x), m.k)},
      accumulate=config.accumulate,
    )
    return state.replace(step=state.step + 1), found

  def picture(p, z):  # the decoder's mean, [N, H, W, C] in [-1, 1]
    return pixels.image(jax.nn.sigmoid(decode(p, z)), info.shape["image"])

  def latent(batch, key):
    return noise(key, len(batch["image"]))

  def render(state, eps, batch):
    z = hierarchy.descend(partial(prior, state.params), eps)
    return {"image": picture(state.params, z)}

  def sample(state, batch, key):
    return render(state, latent(batch, key), batch)

  def evaluate(state, batch, key):
    k = core.keys(key, "pixels", "weights")
    x = pixels.binarise(k.pixels, pixels.unit(batch["image"]))
    part = lambda key: terms(state.params, x, noise(key, m.eval_chunk, len(x))).swapaxes(0, 1)
    found = likelihood.in_parts(part, k.weights, m.eval_k, m.eval_chunk)  # [eval_k, 1 + layers, B]
    log_w, (log_x, *ratios) = found.sum(1), found.mean((0, 2))
    size = min(m.k, m.eval_k)
    groups = m.eval_k // size
    means, h = {}, x
    for i in range(num_layers):
      h = means[f"mean_{i + 1}"] = posterior(state.params, i, h)[0]
    return {
      "elbo": log_w.mean(),
      "bound": combine(log_w[: groups * size], "miwae", groups=groups).mean(),
      "nll": -likelihood.importance_weighted_bound(log_w).mean(),
      "distortion": -log_x,
      "rate": -sum(ratios),
      **{f"rate_{i + 1}": -r for i, r in enumerate(ratios)},
      **means,  # for `conclude`
    }

  def conclude(found, key):
    return {f"active_units_{n[5:]}": diagnostics.active_units(z) for n, z in found.items()}

  def show(state, batch, key):
    p, x = state.params, batch["image"][:32]
    mean, _ = posterior(p, 0, pixels.binarise(key, pixels.unit(x)))
    paint = lambda z: picture(p, z)
    return {
      "reconstruction": pictures.pairs(x, paint(mean)),
      "interpolation": pictures.lines(paint, mean[:8], mean[8:16]),
    }

  train = core.Stage("train", config.num_steps, init, step, sample, evaluate, show)
  return [train._replace(conclude=conclude, latent=latent, generate=render)]
