"""StyleGAN2. Karras et al., Analyzing and Improving the Image Quality of StyleGAN, CVPR 2020,
arXiv:1912.04958; ADA: Training GANs with Limited Data, NeurIPS 2020, arXiv:2006.06676.

Idea: a mapping network turns z into w, and w scales the channels of every convolution of G, coarse
layers and fine ones alike, so images can be mixed by layers; noise adds what is left to chance.
Scaled kernels are brought back to unit norm, and G is made smooth: a step in w of fixed length
changes the image by a fixed amount (path length regularisation).
Objective, in logits s, each regulariser in optimizer steps of its own every k steps, times k:
  D: E softplus(-s(x)) + E softplus(s(G(z)));   every 16: gamma / 2 E |grad_x s(x)|^2
  G: E softplus(-s(G(z)));   every 4: weight E (|J_w^T y|_2 - a)^2, y ~ N(0, I) / sqrt(H W)
a is the running mean of these lengths. Style mixing: in 9 of 10 batches the later layers take the w
of another z. ADA (model.ada_kinds): D sees images only through augmentations of probability p,
which rises while D is surer of its data than ada_target.
Departures: follows the authors' code of ADA (stylegan2-ada-pytorch), whose numbers of parameters
`paper` has; gradients that are not finite stop the run, there they are replaced; ADA measures r on
D's main batches, there on those of R1 too; a coin mirrors each image, there the set is doubled. Not
here: labels, truncation of some layers only, ADA's filters, noise and cutout, clamped activations
and float16. Samples draw new noise, pictures of a walk keep it.
Run: python main.py --config=configs/stylegan2.py --workdir=/tmp/stylegan2
  5 to 6 minutes on 2 cores; the rarest digit is 3.6 to 6.1 % of samples, Frechet distance 17 to 22
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gm import ada, augment, core, diagnostics, flags, losses, optim, pictures, regularizers
from gm.nets import stylegan2
from gm.nn import minibatch

NOISES = ("random", "const", "none")  # of samples: of each its own, of all the same, none
ADA_EVERY = 4  # steps between moves of p
PATH_DECAY, W_DECAY = 0.99, 0.995  # of the running means of path lengths and of w


def path_lengths(generate: Callable, ws: jax.Array, key: jax.Array) -> jax.Array:
  """How far an image moves with its latents, in a random direction y ~ N(0, I) / sqrt(H W).

  |J^T y| with J^T y = grad_w sum(G(w) y): the root of the mean over layers of the squared norm.

  Args:
    generate: G, [B, L, D] -> [B, H, W, C].
    ws: [B, L, D].
    key: PRNG key of y.

  Returns:
    [B], differentiable in all that G holds.

  Source: Karras et al., 2020, arXiv:1912.04958, section 3.2, and its code.

  >>> path_lengths(lambda ws: 0 * ws[..., None], jnp.ones((2, 1, 1)), jax.random.key(0)).shape
  (2,)
  """

  def along(ws):
    image = generate(ws)
    y = core.normal(key, image.shape) / (image.shape[1] * image.shape[2]) ** 0.5
    return jnp.sum(image * y)

  squares = jnp.sum(jax.grad(along)(ws) ** 2, 2)
  return jnp.sqrt(squares.mean(1) + 1e-12)  # the root alone has an infinite slope at 0


def ema_decay(step: jax.Array, *, batch: int, images: float, ramp: float) -> jax.Array:
  """Decay of G's average with a half-life in images: 0.5^(batch / min(images, ramp * images seen)).

  >>> float(ema_decay(jnp.array(10), batch=32, images=16.0, ramp=0.05))  # 10 * 32 * 0.05 = 16
  0.25
  """
  if ramp:
    images = jnp.minimum(images, jnp.maximum(step * batch * ramp, 1e-8))
  return 0.5 ** (batch / images)


def stages(config, info: core.Info) -> list[core.Stage]:
  """Returns the one stage of a StyleGAN2 for square images.

  Raises:
    ValueError: if the images are not square, their side is no power of two, the batch does not
      split into the parts that are accumulated or the groups that D compares, or for a name or a
      number that is not possible.
  """
  m = config.model
  flags.within(m, "z_dim", "w_dim", "base", "most", least=1)
  flags.within(m, "mapping_layers", least=1, most=64)
  flags.within(m, "stddev_group", least=0)
  flags.within(
    m, "r1_every", "path_every", "ada_images", "ema_images", least=1, most=flags.MOST_STEPS
  )
  flags.within(m, "ema_ramp", "r1_gamma", "path_weight", "psi", least=0.0)
  flags.within(m, "mixing", least=0.0, most=1.0)
  flags.within(m, "ada_target", least=-1.0, most=1.0)  # a mean of signs
  flags.within(m, "b1", "b2", least=0.0, below=1.0)
  height, size, channels = info.shape[flags.leaf(info, "image")]
  augment.require(m.augment, info.shape["image"])
  ada.require(m.ada_kinds, channels)
  if height != size:
    raise ValueError(
      f"images of {height}x{size} pixels are not square: set --config.data.image_size to one number"
    )
  noise = flags.choice(m, "noise", NOISES)
  path_every, r1_every = m.path_every * bool(m.path_weight), m.r1_every * bool(m.r1_gamma)
  half = max(1, config.batch_size // 2)  # of which path lengths are taken
  if config.batch_size % config.accumulate or (path_every and half % config.accumulate):
    raise ValueError(
      f"a batch of {config.batch_size} and the {half} of it whose path lengths are taken do not"
      f" split into {config.accumulate} parts: change --config.batch_size or --config.accumulate"
    )
  per_part = config.batch_size // config.accumulate
  if m.stddev_group and per_part % min(m.stddev_group, per_part):
    raise ValueError(
      f"{per_part} images (batch_size over accumulate) do not split into groups of"
      f" {m.stddev_group}: change --config.batch_size or --config.model.stddev_group"
    )
  options = {"base": m.base, "most": m.most, "dtype": config.compute_dtype}
  f = stylegan2.Mapping(m.w_dim, m.mapping_layers, dtype=config.compute_dtype)
  g = stylegan2.Synthesis(size, channels, **options)
  d = stylegan2.Discriminator(size, stddev_group=m.stddev_group, **options)
  num_ws, num_noise = stylegan2.num_latents(size), stylegan2.num_noise(size)
  adam = lambda every: (
    optim.lazy_adam(config.lr, m.b1, m.b2, every) if every else optim.adam(config.lr, m.b1, m.b2)
  )
  tx = {"g": adam(path_every), "d": adam(r1_every)}

  # jitted, so that networks that a step uses again and again are traced once
  F = jax.jit(lambda p, z: f.apply({"params": p["mapping"]}, z))  # [B, Z] -> [B, D]
  G = jax.jit(lambda p, ws, maps: g.apply({"params": p["synthesis"]}, ws, maps))  # -> [B, H, W, C]
  D = jax.jit(lambda p, x, sets=1: d.apply({"params": p}, x, sets), static_argnums=2)  # -> [B]

  def draw(key, n):  # z, a second z for mixing, and G's noise, in one call
    numbers = core.normal(key, (n, 2 * m.z_dim + num_noise))
    parts = jnp.split(numbers, (m.z_dim, 2 * m.z_dim), 1)
    return dict(zip(("z", "second", "maps"), parts, strict=True))

  def fixed():  # the same noise for ever
    return None if noise == "none" else jax.random.normal(jax.random.key(0), (1, num_noise))

  def latents(p, b, stats):  # -> ws [B, num_ws, D], and the average of the w of z alone
    w, second = F(p, b["z"]), F(p, b["second"])
    w_avg = core.ema(stats["w_avg"], w.mean(0), W_DECAY)
    return stylegan2.mix(b["mix"], w, second, num_ws, prob=m.mixing), {"w_avg": w_avg}

  def seen(key, x, extra):  # what D sees of images
    if m.ada_kinds:
      k = core.keys(key, "augment", "ada")
      key, x = k.augment, ada.augment(k.ada, x, extra["ada_p"], m.ada_kinds)
    return augment.augment(key, x, m.augment) if m.augment else x

  def init(key, batch, prev):
    k = core.keys(key, "mapping", "synthesis", "d")
    ws = jnp.zeros((2, num_ws, m.w_dim))
    params = {
      "g": {
        "mapping": core.build(f, k.mapping, jnp.zeros((2, m.z_dim)))[0],
        "synthesis": core.build(g, k.synthesis, ws, jnp.zeros((2, num_noise)))[0],
      },
      "d": core.build(d, k.d, batch["image"][:2])[0],
    }
    zero = jnp.zeros(())
    return core.State(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt={n: core.init_slot(tx[n], params, [n]) for n in ("g", "d")},
      stats={"w_avg": jnp.zeros(m.w_dim)},
      ema={"g": params["g"]},
      extra=dict.fromkeys(("path_mean", "r1", *(("ada_p", "ada_r") if m.ada_kinds else ())), zero),
    )

  def smooth(state, key):
    """G's regulariser: an optimizer step on the path lengths of half a batch."""
    k = core.keys(key, "draw", "mix", "path")

    def loss(p, b):  # moves g only
      ws, stats = latents(p["g"], b, state.stats)
      lengths = path_lengths(lambda ws: G(p["g"], ws, b["maps"]), ws, b["path"])
      mean = core.ema(state.extra["path_mean"], lengths.mean(), PATH_DECAY)
      penalty = jnp.mean((lengths - mean) ** 2)
      return path_every * m.path_weight * penalty, (stats, {"path_mean": mean})

    batch = {**draw(k.draw, half), "mix": k.mix, "path": k.path}
    state, found = core.minimize(state, tx["g"], loss, ["g"], batch, accumulate=config.accumulate)
    return state.replace(extra={**state.extra, "path_mean": found["path_mean"]})

  def flatten(state, x, key):
    """D's regulariser: an optimizer step on R1 at the images before their augmentation."""

    def loss(p, b):  # moves d only
      r1 = regularizers.r1(lambda x: D(p["d"], seen(b["seen"], x, state.extra)), b["x"])
      return r1_every * m.r1_gamma / 2 * r1, ({}, {"r1": r1})

    batch = {"x": x, "seen": key}
    state, found = core.minimize(state, tx["d"], loss, ["d"], batch, accumulate=config.accumulate)
    return state.replace(extra={**state.extra, "r1": found["r1"]})

  def step(state, batch, key):
    k = core.keys(key, "g", "mix_g", "seen_g", "smooth", "d", "mix_d", "seen_d", "flatten", "flip")
    x = augment.flip(k.flip, batch["image"]) if m.mirror else batch["image"]
    n, start = len(x), state.step

    def g_loss(p, b):  # moves g only
      ws, stats = latents(p["g"], b, state.stats)
      logits = D(p["d"], seen(b["seen"], G(p["g"], ws, b["maps"]), state.extra))
      return losses.nonsaturating_g(logits), (stats, {})

    def d_loss(p, b):  # moves d only; G is a constant here
      ws, stats = latents(p["g"], b, state.stats)
      fake = G(p["g"], ws, b["maps"])
      both = jnp.stack([b["x"], fake], 1).reshape(-1, *fake.shape[1:])  # in turns
      real, fake = D(p["d"], seen(b["seen"], both, state.extra), 2).reshape(-1, 2).T
      found = diagnostics.discriminator_stats(real, fake)
      # of the images as they are, as `evaluate` shows others
      plain = D(p["d"], b["x"]) if m.ada_kinds or m.augment else real
      found |= {"logit_real": plain.mean(), "sign_real": jnp.sign(real).mean()}
      return losses.bce_d(real, fake), (stats, found)

    parts = {**draw(k.g, n), "mix": k.mix_g, "seen": k.seen_g}
    state, found = core.minimize(state, tx["g"], g_loss, ["g"], parts, accumulate=config.accumulate)
    if path_every:
      state = core.every(path_every, start, lambda s: smooth(s, k.smooth), state)
      found |= {"path_length": state.extra["path_mean"]}
    parts = {"x": x, **draw(k.d, n), "mix": k.mix_d, "seen": k.seen_d}
    state, more = core.minimize(state, tx["d"], d_loss, ["d"], parts, accumulate=config.accumulate)
    if r1_every:
      state = core.every(r1_every, start, lambda s: flatten(s, x, k.flatten), state)
      found |= {"r1": state.extra["r1"]}
    found |= more
    if m.ada_kinds:
      p, r = state.extra["ada_p"], state.extra["ada_r"] + more["sign_real"] / ADA_EVERY
      moved = ada.adapt(p, r, target=m.ada_target, step=ADA_EVERY * n / m.ada_images)
      due = (start + 1) % ADA_EVERY == 0
      p, r = jnp.where(due, moved, p), jnp.where(due, 0.0, r)
      state = state.replace(extra={**state.extra, "ada_p": p, "ada_r": r})
      found |= {"ada_p": p}
    decay = ema_decay(start, batch=n, images=m.ema_images, ramp=m.ema_ramp)
    ema = {"g": core.ema(state.ema["g"], state.params["g"], decay)}
    return state.replace(step=start + 1, ema=ema), found

  def spread(state, w, psi=m.psi):  # [B, D] -> [B, num_ws, D], truncated
    w = stylegan2.truncate(w, state.stats["w_avg"], psi)
    return jnp.broadcast_to(w[:, None], (len(w), num_ws, m.w_dim))

  def latent(batch, key):
    return draw(key, len(batch["image"]))

  def render(state, b, batch):
    maps = b["maps"] if noise == "random" else fixed()
    return {"image": G(state.ema["g"], spread(state, F(state.ema["g"], b["z"])), maps)}

  def sample(state, batch, key):
    return render(state, latent(batch, key), batch)

  def evaluate(state, batch, key):
    """D on held-out images as they are; on training images it is logit_real, as they go by.

    D's level moves by 1 or more from step to step, so a gap is that of one state only.
    """
    x = batch["image"]
    logits = D(state.params["d"], minibatch.complete(x, m.stddev_group))
    return {"logit_held_out": logits[: len(x)].mean()}

  def show(state, batch, key):
    w = F(state.ema["g"], jax.random.normal(key, (16, m.z_dim))).reshape(2, 8, m.w_dim)
    still = lambda ws: G(state.ema["g"], ws, fixed())
    decode = lambda w: still(spread(state, w))
    # a row has the early layers of the image at its left, a column the late ones of that above
    pairs = (jnp.repeat(w[0], 8, 0), jnp.tile(w[1], (8, 1)))
    early = (jnp.arange(num_ws) < num_ws // 2)[:, None]
    mixed = still(jnp.where(early, *(spread(state, w) for w in pairs)))
    left, above = (decode(side)[:, None] for side in w)  # [8, 1, H, W, C]
    above = jnp.concatenate([jnp.full_like(above[:1], -1.0), above]).swapaxes(0, 1)
    rows = jnp.concatenate([left, mixed.reshape(8, 8, *mixed.shape[1:])], 1)
    truncated = [still(spread(state, w[0], psi)) for psi in (1.0, 0.75, 0.5, 0.25, 0.0)]
    return {
      "interpolation": pictures.lines(decode, *w),
      "mixing": jnp.concatenate([above, rows]),
      "truncation": jnp.stack(truncated, 1),
    }

  train = core.Stage("train", config.num_steps, init, step, sample, evaluate, show)
  return [train._replace(latent=latent, generate=render)]
