"""DCGAN. Radford, Metz, Chintala, ICLR 2016, arXiv:1511.06434.

Idea: the GAN's game with networks made of strided convolutions alone, batch normalisation, ReLU in
G and LeakyReLU in D: a recipe that trains reliably.
Objective, in logits s = logit D:
  D: E softplus(-s(x)) + E softplus(s(G(z)));   G: E softplus(-s(G(z)))
D sees real and fake as two batches, each normalised by its own statistics; G moves on the fakes
that D has just seen, against the D that has just moved.
Departures: noise is normal, the paper's is uniform (model.noise); initialisation is the paper's
N(0, 0.02^2), which the PyTorch port that gives the sizes of `paper` means to apply but does not;
samples use running averages (model.bn_mode), the port normalises by the batch that it samples; D's
running averages do not move in G's step. `small` adds averaged weights.
Run: python main.py --config=configs/dcgan.py --workdir=/tmp/dcgan
  4 minutes on 2 cores; the rarest digit is 5 to 7 % of the samples, Frechet distance 56 to 71
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gm import augment, core, diagnostics, flags, losses, optim, pictures
from gm.nets import dcgan
from gm.probability import latents


def grid_max(x: jax.Array, size: int) -> jax.Array:
  """Maxima over a grid of size x size cells, as even as they can be: [B, H, W, C] -> [B, s, s, C].

  A side of fewer pixels than cells stays as it is.

  >>> grid_max(jnp.arange(25.0).reshape(1, 5, 5, 1), 2)[0, :, :, 0].tolist()
  [[12.0, 14.0], [22.0, 24.0]]
  """
  for axis in (1, 2):
    parts = jnp.array_split(x, min(size, x.shape[axis]), axis)
    x = jnp.stack([part.max(axis) for part in parts], axis)
  return x


def stages(config, info: core.Info) -> list[core.Stage]:
  """Returns the one stage of a DCGAN for images of any size that halving allows.

  Raises:
    ValueError: for a name or a number that is not possible, or data that are not images.
  """
  m, dtype = config.model, config.compute_dtype
  flags.within(m, "z_dim", "g_base", "d_base", "start", least=1)
  flags.within(m, "b1", "ema", least=0.0, below=1.0)
  flags.kernel(m, "kernel", shape=info.shape[flags.leaf(info, "image")])
  augment.require(m.augment, info.shape["image"])
  flags.choice(m, "first", ("conv", "dense"))
  flags.choice(m, "noise", ("normal", "uniform"))
  flags.choice(m, "bn_mode", ("running", "batch"))
  g = dcgan.Generator(
    info.shape["image"], base=m.g_base, start=m.start, kernel=m.kernel, first=m.first, dtype=dtype
  )
  d = dcgan.Discriminator(base=m.d_base, start=m.start, kernel=m.kernel, last=m.first, dtype=dtype)
  tx = {n: optim.adam(config.lr, b1=m.b1) for n in ("g", "d")}

  def noise(key, n):
    return latents.draw(m.noise, key, (n, m.z_dim))

  def init(key, batch, prev):
    k = core.keys(key, "g", "d")
    params, stats = {}, {}
    params["g"], stats["g"] = core.build(g, k.g, jnp.zeros((2, m.z_dim)))
    params["d"], stats["d"] = core.build(d, k.d, batch["image"][:2])
    return core.State(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt={n: core.init_slot(tx[n], params, [n]) for n in ("g", "d")},
      stats=stats,
      ema={"g": params["g"], "g_stats": stats["g"]},
    )

  def step(state, batch, key):
    # noise keeps its key where nothing else is drawn
    k_z, k_see = core.keys(key, "z", "see") if m.augment else (key, None)

    def generate(p, b):
      fake, stats = core.apply(g, p["g"], state.stats["g"], b["z"])
      return fake, {"g": stats}

    def d_loss(p, b, fake):  # moves d only
      see = augment.views(b["see"], m.augment)  # what D sees of images
      real_logits, stats = core.apply(d, p["d"], state.stats["d"], see(0, b["x"]))
      fake_logits, stats = core.apply(d, p["d"], stats, see(1, fake))
      found = diagnostics.discriminator_stats(real_logits, fake_logits)
      return losses.bce_d(real_logits, fake_logits), ({"d": stats}, found)

    def g_loss(p, b, fake):  # moves g only, through fake
      see = augment.views(b["see"], m.augment)
      logits, _ = core.apply(d, p["d"], state.stats["d"], see(2, fake))
      return losses.nonsaturating_g(logits), ({}, {})

    x = batch["image"]
    state, found = core.alternate(
      state,
      tx,
      generate,
      d_loss,
      g_loss,
      {"x": x, "z": noise(k_z, len(x)), "see": k_see},
      accumulate=config.accumulate,
    )
    ema = core.ema(state.ema, {"g": state.params["g"], "g_stats": state.stats["g"]}, m.ema)
    return state.replace(step=state.step + 1, ema=ema), found

  def generate(state, z):
    batch_statistics = m.bn_mode == "batch"
    return core.apply(g, state.ema["g"], state.ema["g_stats"], z, train=batch_statistics)[0]

  def features(state, x):
    """D's hidden maps, their maxima on a grid of at most 4 x 4, [B, F]: what a probe reads."""
    variables = {"params": state.params["d"], **state.stats["d"]}
    maps = d.apply(variables, x, method="features")
    return jnp.concatenate([grid_max(f, 4).reshape(len(x), -1) for f in maps], axis=1)

  def latent(batch, key):
    return noise(key, len(batch["image"]))

  def render(state, z, batch):
    found = {"image": generate(state, z)}
    if m.probe and "label" in batch:
      found |= {"feature": features(state, batch["image"]), "data_label": batch["label"]}
    return found

  def sample(state, batch, key):
    return render(state, latent(batch, key), batch)

  def evaluate(state, batch, key):
    z = noise(key, len(batch["image"]))

    def logits(params):
      fake, _ = core.apply(g, params, state.stats["g"], z)
      return core.apply(d, state.params["d"], state.stats["d"], fake)[0]

    return diagnostics.generator_gradients(logits, state.params["g"])

  def show(state, batch, key):
    start, end = noise(key, 16).reshape(2, 8, m.z_dim)
    return {"interpolation": pictures.lines(lambda z: generate(state, z), start, end)}

  train = core.Stage("train", config.num_steps, init, step, sample, evaluate, show)
  return [train._replace(latent=latent, generate=render, straight=m.noise == "uniform")]
