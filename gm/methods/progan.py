"""ProGAN. Karras et al., Progressive Growing of GANs, ICLR 2018, arXiv:1710.10196.

Idea: learn images at 4x4 pixels first, then double the resolution again and again. The layers of a
new resolution are faded in: the share t of the smaller network's output, upsampled, falls from 1 to
0, so what has been learned is never upset. A layer of batch statistics lets D see variety.
Objective (WGAN-GP, D's scores kept near 0; one step of each):
  D: E D(G(z)) - E D(x) + weight / gamma^2 E (|grad D(x^)|_2 - gamma)^2 + 0.001 E D(x)^2
  G: -E D(G(z)),   x^ = eps x + (1 - eps) G(z)
While t > 0 real images are mixed with their own halved and doubled copies, as G's are.
Departures: G moves on the fakes that D has just seen, one forward pass of G less; the authors draw
new ones, but for CIFAR-10. Optimizers start anew at both ends of a fade, as in both of their codes;
G's average follows G, as in the first, whose ramp-up of the rate in the first 40,000 images is left
out; D pools before bias and activation, as in the second (TensorFlow). Smaller images are made by
the data set's own resizing. No labels.
Run: python main.py --config=configs/progan.py --workdir=/tmp/progan
  8 minutes on 2 cores; the rarest digit is 4.9 to 5.6 % of the samples, Frechet distance 16 to 21
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import traverse_util

from gm import augment, core, flags, losses, optim, pictures, regularizers
from gm.nets import progan
from gm.nn import minibatch, resample


class Phase(NamedTuple):
  """One stage of growth: fading in a size, then training it."""

  size: int  # of the images
  num_fade: int  # steps in which it is faded in
  num_steps: int  # in all
  batch_size: int

  def old_share(self, step: jax.Array) -> jax.Array | None:
    """t: the share of the smaller network after `step` steps, 1 to 0; None where nothing fades.

    It is a number to the compiler, so a size is compiled once, and stays one when it is 0.

    >>> [Phase(8, 4, 6, 1).old_share(jnp.array(step)).item() for step in (0, 1, 4, 5)]
    [1.0, 0.75, 0.0, 0.0]
    """
    if not self.num_fade:
      return None
    return jnp.maximum(0.0, 1 - step.astype(jnp.float32) / self.num_fade)


def phases(config: Any, size: int) -> list[Phase]:
  """Returns the stages of growth, one for each size.

  Every size but the first is faded in while model.fade_images are shown, then model.stable_images
  are. The last has num_steps after its fade.

  Args:
    config: of a run.
    size: of the images in the end.

  Raises:
    ValueError: if size is not 4 times a power of two, model.start is no size on the way, or there
      are batch sizes for another number of resolutions.
  """
  m, sizes = config.model, progan.sizes(size)
  if m.start not in sizes:
    raise ValueError(
      f"growth cannot start at {m.start}: set --config.model.start to one of {sizes}"
    )
  grown = sizes[sizes.index(m.start) :]
  batches = m.batch_sizes or (config.batch_size,) * len(grown)
  if len(batches) != len(grown):
    raise ValueError(
      f"{len(batches)} batch sizes for the resolutions {grown}: set --config.model.batch_sizes to"
      f" {len(grown)} numbers, or to () for the same --config.batch_size"
    )
  found = []
  for s, batch in zip(grown, batches):
    num_fade = round(m.fade_images / batch) if s > grown[0] else 0
    num_stable = round(m.stable_images / batch) if s < size else config.num_steps
    found.append(Phase(s, num_fade, num_fade + num_stable, batch))
  return found


def inherit(new: dict, old: dict) -> dict:
  """Takes over from a smaller network: every array whose name and shape both have is the old one.

  >>> inherit({"a": jnp.zeros(1), "b": jnp.zeros(2)}, {"a": jnp.ones(1), "b": jnp.ones(3)})["a"]
  Array([1.], dtype=float32)
  """
  flat, before = (traverse_util.flatten_dict(tree) for tree in (new, old))
  keep = lambda path, x: path in before and before[path].shape == x.shape
  flat = {path: before[path] if keep(path, x) else x for path, x in flat.items()}
  return traverse_util.unflatten_dict(flat)


def anew_where(at: jax.Array, opt: dict) -> dict:
  """Optimizers as they start, all 0, where `at` is true."""
  return jax.tree.map(lambda x: jnp.where(at, jnp.zeros_like(x), x), opt)


def stages(config, info: core.Info) -> list[core.Stage]:
  """Returns the stages 4px, 8px, ... up to the size of the images.

  Raises:
    ValueError: if they are not square, or not 4 times a power of two wide, or for a number that is
      not possible.
  """
  m = config.model
  flags.within(m, "start", "z_dim", "base", "most", least=1)
  flags.within(m, "stddev_group", least=0)
  flags.within(m, "stable_images", "fade_images", least=0, most=flags.MOST_STEPS)
  flags.within(m, "batch_sizes", least=1, empty=True)
  flags.within(m, "gp_weight", "drift", least=0.0)
  flags.within(m, "gamma", above=0.0)
  flags.within(m, "b1", "b2", "ema", least=0.0, below=1.0)
  height, width, channels = info.shape[flags.leaf(info, "image")]
  augment.require(m.augment, info.shape["image"])
  if height != width:
    raise ValueError(
      f"images of {height}x{width} pixels are not square: set --config.data.image_size to one"
      " number"
    )
  return [_stage(config, phase, channels) for phase in phases(config, width)]


def _stage(config, phase: Phase, channels: int) -> core.Stage:
  m = config.model
  options = {"base": m.base, "most": m.most, "dtype": config.compute_dtype}
  g = progan.Generator(phase.size, channels, **options)
  d = progan.Discriminator(phase.size, stddev_group=m.stddev_group, **options)
  tx = {n: optim.adam(config.lr, b1=m.b1, b2=m.b2) for n in ("g", "d")}
  # jitted, so that a step that looks at D four times traces it and its derivatives once
  G = jax.jit(lambda p, z, t: g.apply({"params": p}, z, t))  # [B, Z] -> [B, H, W, C]
  D = jax.jit(lambda p, x, t: d.apply({"params": p}, x, t))  # [B, H, W, C] -> scores [B]

  def noise(key, n):
    return jax.random.normal(key, (n, m.z_dim))

  def reals(x, t):  # what is faded in at G is at the data too
    if t is None:
      return x
    return x + t * (resample.nearest(resample.mean_pool(x)) - x)

  def init(key, batch, prev):
    k = core.keys(key, "g", "d")
    params = {
      "g": core.build(g, k.g, jnp.zeros((2, m.z_dim)))[0],
      "d": core.build(d, k.d, batch["image"][:2])[0],
    }
    ema = {"g": params["g"]}
    if prev is not None:
      params, ema = inherit(params, prev.params), inherit(ema, prev.ema)
    return core.State(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt={n: core.init_slot(tx[n], params, [n]) for n in ("g", "d")},
      ema=ema,
    )

  def step(state, batch, key):
    k = core.keys(key, "noise", "between", "flip", "see")
    if phase.num_fade:
      state = state.replace(opt=anew_where(state.step == phase.num_fade, state.opt))
    t = phase.old_share(state.step)
    x = augment.flip(k.flip, batch["image"]) if m.mirror else batch["image"]

    def generate(p, b):
      return G(p["g"], b["z"], t), {}

    def d_loss(p, b, fake):  # moves d only
      see = augment.views(b["see"], m.augment)  # what D sees of images
      f = lambda i, x: D(p["d"], see(i, x), t)
      real_f, fake_f = f(0, b["x"]), f(1, fake)
      between = regularizers.interpolate(b["between"], b["x"], fake)
      penalty = regularizers.gradient_penalty(lambda x: f(2, x), between, target=m.gamma)
      distance = losses.wasserstein_d(real_f, fake_f)
      penalty /= m.gamma**2
      loss = distance + m.gp_weight * penalty + m.drift * jnp.mean(real_f**2)
      return loss, ({}, {"w_estimate": -distance, "penalty": penalty})

    def g_loss(p, b, fake):  # moves g only, through fake
      see = augment.views(b["see"], m.augment)
      return losses.wasserstein_g(D(p["d"], see(3, fake), t)), ({}, {})

    parts = {"x": reals(x, t), "z": noise(k.noise, len(x)), "between": k.between, "see": k.see}
    state, found = core.alternate(
      state, tx, generate, d_loss, g_loss, parts, accumulate=config.accumulate
    )
    ema = {"g": core.ema(state.ema["g"], state.params["g"], m.ema)}
    return state.replace(step=state.step + 1, ema=ema), found

  def generate(state, z):
    return G(state.ema["g"], z, phase.old_share(state.step))

  def latent(batch, key):
    return noise(key, len(batch["image"]))

  def render(state, z, batch):
    return {"image": generate(state, z)}

  def sample(state, batch, key):
    return render(state, latent(batch, key), batch)

  def evaluate(state, batch, key):
    """The critic's estimate on held-out images, of the G that it plays against."""
    t, x = phase.old_share(state.step), batch["image"]
    f = lambda x: D(state.params["d"], minibatch.complete(x, m.stddev_group), t)[: len(x)]
    fake = G(state.params["g"], noise(key, len(x)), t)
    return {"w_estimate": -losses.wasserstein_d(f(reals(x, t)), f(fake))}

  def show(state, batch, key):
    start, end = noise(key, 16).reshape(2, 8, m.z_dim)
    return {"interpolation": pictures.lines(lambda z: generate(state, z), start, end)}

  data = {"image_size": phase.size, "batch_size": phase.batch_size}
  stage = core.Stage(f"{phase.size}px", phase.num_steps, init, step, sample, evaluate, show, data)
  return stage._replace(latent=latent, generate=render)
