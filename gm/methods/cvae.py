"""CVAE. Sohn, Lee and Yan, Learning Structured Output Representation using Deep Conditional
Generative Models, NIPS 2015.

Idea: a VAE of p(x|y). Encoder and decoder are told the label y, so the latent need not hold it: z
is what else there is to say, such as slant and stroke, and can be joined with any other label.
Objective: maximise E_q log p(x|z, y) - KL(q(z|x, y) || p(z|y)), a bound of log p(x|y), binary
pixels; sums over pixels and latents, means over examples. model.prior is p(z|y):
  plain    N(0, I) for every label
  learned  a normal whose mean and log-variance a network gives for y; it moves with the others
nll is the importance-weighted estimate of -log p(x|y); it is no -log p(x), which is up to log 10 =
2.3 nats higher for ten labels, the information that x and y share. wrong_label_loss is what nll
gains where every image is given the next label.
Departures: the paper predicts images from images; here y is a label, joined one-hot to the input of
each network. Its recurrent guess, hybrid objective and noise are left out. Binarisation is drawn
anew for each batch; the output bias starts at the log-odds of the first batch's pixels. `paper` is
the one-layer network of nbip/IWAE, which has numbers of log p(x|y) (82.32 nats for k = 1), on the
schedule of Burda et al., 2016.
Run: python main.py --config=configs/cvae.py --workdir=/tmp/cvae
  half a minute on 2 cores; 20.1 nats given the label, 12.6 more for a wrong one
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from gm import core, diagnostics, flags, optim
from gm.nets import mlp
from gm.nn import embed
from gm.nn import init as inits
from gm.probability import likelihood, pixels


def join(a: jax.Array, y: jax.Array) -> jax.Array:
  """Joins one-hot labels to what a network is given: [..., B, N] and [B, K] -> [..., B, N + K].

  >>> join(jnp.zeros((2, 1, 1)), jnp.array([[0.0, 1.0]]))[1].tolist()
  [[0.0, 0.0, 1.0]]
  """
  return jnp.concatenate([a, jnp.broadcast_to(y, (*a.shape[:-1], y.shape[-1]))], axis=-1)


def stages(config, info: core.Info) -> list[core.Stage]:
  """Returns the one stage of a conditional VAE of fully connected networks.

  Raises:
    ValueError: for data without labels or images, or a name or a number that is not possible.
  """
  m, num_classes = config.model, info.num_classes
  flags.leaf(info, "image")
  flags.within(m, "z_dim", "eval_k", "eval_chunk", least=1)
  flags.within(m, "enc_widths", "dec_widths", "prior_widths", least=1, empty=True)
  flags.within(m, "steps_per_epoch", least=1, most=optim.BURDA_EPOCH)
  flags.within(m, "adam_eps", above=0.0)
  flags.choice(m, "prior", ("plain", "learned"))
  flags.choice(m, "activation", tuple(mlp.ACTIVATIONS))
  flags.choice(m, "schedule", ("cosine", "burda"))
  if "label" not in info.shape or not num_classes:
    raise ValueError(flags.unlabelled("cvae", config.data))
  num_pixels = math.prod(info.shape["image"])
  options = {"activation": m.activation, "dtype": config.compute_dtype}
  nets = {
    "enc": mlp.Encoder(m.z_dim, m.enc_widths, **options),
    "dec": mlp.Decoder((num_pixels,), m.dec_widths, **options),
  }
  if m.prior == "learned":
    nets["prior"] = mlp.Encoder(m.z_dim, m.prior_widths, **options)
  players = list(nets)
  slot = "+".join(players)
  rate = optim.by_name(m.schedule, config.lr, config.num_steps, m.steps_per_epoch)
  tx = optim.adam(rate, eps=m.adam_eps)

  def encode(p, x, y):  # -> mean, log_var of q(z|x, y), [B, Z]
    return nets["enc"].apply({"params": p["enc"]}, join(x, y))

  def decode(p, z, y):  # [..., B, Z] -> logits [..., B, P]
    return nets["dec"].apply({"params": p["dec"]}, join(z, y))

  def prior(p, y):  # -> mean, log_var of p(z|y), [B, Z]
    if m.prior == "learned":
      return nets["prior"].apply({"params": p["prior"]}, y)
    return (jnp.zeros((len(y), m.z_dim)),) * 2

  def log_likelihood(p, x, z, y):  # log p(x|z, y), [..., B]
    return likelihood.bernoulli_log_prob(x, decode(p, z, y), event_ndim=1)

  def one_hot(y):
    return embed.one_hot(y, num_classes)

  def observe(batch, key):
    return pixels.binarise(key, pixels.unit(batch["image"]))

  def init(key, batch, prev):
    k = core.keys(key, "enc", "dec", "prior")
    bias = inits.constant(pixels.log_odds(batch["image"]))
    first = {**nets, "dec": nets["dec"].clone(output_bias_init=bias)}
    sizes = {"enc": num_pixels + num_classes, "dec": m.z_dim + num_classes, "prior": num_classes}
    params = {n: core.build(first[n], getattr(k, n), jnp.zeros((2, sizes[n])))[0] for n in players}
    opt = {slot: core.init_slot(tx, params, players)}
    return core.State(step=jnp.zeros((), jnp.int32), params=params, opt=opt)

  def terms(p, x, y, eps):  # -> distortion, rate [B]
    mean, log_var = encode(p, x, y)
    z = mean + jnp.exp(0.5 * log_var) * eps
    return -log_likelihood(p, x, z, y), likelihood.kl_gaussians(mean, log_var, *prior(p, y))

  def step(state, batch, key):
    k = core.keys(key, "pixels", "eps")
    x = observe(batch, k.pixels)

    def loss(p, b):
      distortion, rate = (t.mean() for t in terms(p, b["x"], b["y"], b["eps"]))
      return distortion + rate, ({}, {"distortion": distortion, "rate": rate})

    noise = jax.random.normal(k.eps, (len(x), m.z_dim))
    parts = {"x": x, "y": one_hot(batch["label"]), "eps": noise}
    state, found = core.minimize(state, tx, loss, players, parts, accumulate=config.accumulate)
    return state.replace(step=state.step + 1), found

  def picture(p, z, y):  # the decoder's mean, [N, H, W, C] in [-1, 1]
    return pixels.image(jax.nn.sigmoid(decode(p, z, y)), info.shape["image"])

  def latent(batch, key):
    return jax.random.normal(key, (len(batch["image"]), m.z_dim))

  def of_prior(p, eps, y):
    mean, log_var = prior(p, y)
    return picture(p, mean + jnp.exp(0.5 * log_var) * eps, y)

  def render(state, eps, batch):
    image = of_prior(state.params, eps, one_hot(batch["label"]))
    return {"image": image, "label": batch["label"]}

  def sample(state, batch, key):
    """Draws for the labels of the batch, and gives them back."""
    return render(state, latent(batch, key), batch)

  def evaluate(state, batch, key):
    k = core.keys(key, "pixels", "elbo", "weights")
    x, p = observe(batch, k.pixels), state.params
    keys = jax.random.split(k.weights)

    def nll(key, y):
      mean, log_var = encode(p, x, y)

      def part(key):
        z = mean + jnp.exp(0.5 * log_var) * jax.random.normal(key, (m.eval_chunk, *mean.shape))
        of = lambda mean, log_var: likelihood.gaussian_log_prob(
          z, mean, 0.5 * log_var, event_ndim=1
        )
        return log_likelihood(p, x, z, y) + of(*prior(p, y)) - of(mean, log_var)

      log_w = likelihood.in_parts(part, key, m.eval_k, m.eval_chunk)
      return -likelihood.importance_weighted_bound(log_w).mean()

    y = one_hot(batch["label"])
    eps = jax.random.normal(k.elbo, (len(x), m.z_dim))
    distortion, rate = (t.mean() for t in terms(p, x, y, eps))
    right, wrong = nll(keys[0], y), nll(keys[1], jnp.roll(y, 1, axis=1))
    (mean, _), (centre, log_var) = encode(p, x, y), prior(p, y)
    return {
      "elbo": -(distortion + rate),
      "distortion": distortion,
      "rate": rate,
      "nll": right,
      "wrong_label_loss": wrong - right,
      "told": (mean - centre) * jnp.exp(-0.5 * log_var),  # by x beyond y, for `conclude`
    }

  def conclude(found, key):
    return {"active_units": diagnostics.active_units(found["told"])}

  def show(state, batch, key):
    """A row for each class, the same noise in a column; and images told to be another class."""
    k, p = core.keys(key, "noise", "pixels"), state.params
    rows, cols = min(num_classes, 20), 10
    y = one_hot(jnp.repeat(jnp.arange(rows), cols))
    eps = jnp.tile(jax.random.normal(k.noise, (cols, m.z_dim)), (rows, 1))
    x = {name: a[:cols] for name, a in batch.items()}
    z, _ = encode(p, observe(x, k.pixels), one_hot(x["label"]))
    told = picture(p, jnp.tile(z, (rows, 1)), y)
    grid = lambda image: image.reshape(rows, cols, *info.shape["image"])
    return {
      "classes": grid(of_prior(p, eps, y)),
      "other_labels": jnp.concatenate([x["image"][None], grid(told)]),  # the first row is data
    }

  train = core.Stage("train", config.num_steps, init, step, sample, evaluate, show)
  return [train._replace(conclude=conclude, latent=latent, generate=render)]
