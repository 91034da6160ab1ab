"""BigGAN. Brock, Donahue, Simonyan, ICLR 2019, arXiv:1809.11096.

Idea: class-conditional images at scale: residual networks with spectral normalisation in G and D,
self-attention, large batches, averaged weights; every block of G sees its own part of z beside one
shared embedding of the class; samples trade variety for fidelity by truncating z.
Objective (hinge, y' uniform):
  D:  E max(0, 1 - D(x, y)) + E max(0, 1 + D(G(z, y'), y')),   D(x, y) = w.h(x) + <e_y, h(x)>
  G:  -E D(G(z, y'), y') + s/2 sum_W |W W^T o (1 - I)|_F^2,     s = ortho_weight
W is a weight before its normalisation, as [out, rest]; the class embedding is left out. The half is
in the authors' code, which adds 2 s ((W W^T) o (1 - I)) W to the gradient.
Batch norm in a block: (1 + L_s(c)) normalised + L_b(c), c = [embed(y), chunk of z], L linear.
Samples come from the averaged G, with standing statistics in its batch norms: means over 16 batches
of z truncated as it is for the samples. Training takes them every standing_every steps; of a state
in between, or for another truncation, they are taken where samples are drawn, with a fixed key.
Departures: batch statistics are over all devices, as in the paper; the authors' PyTorch code
(BigGAN-PyTorch) has them per device. Where the batch is split to save memory they are of its parts,
as in that code: in `paper` of 256 of 2,048 examples, in the steps of both players and in standing
statistics. Layers and first values are that code's, which draws biases from torch's uniform law.
`paper` has the paper's learning rates, steps of D and batch, and that code's epsilons and start of
averaging; `cifar10` is its CIFAR script, but for the samples' standing statistics, where that has
those of the batch drawn.
Run: python main.py --config=configs/biggan.py --workdir=/tmp/biggan
  5 minutes on 2 cores; 99.0 to 99.5 % of the samples are the digit that was asked for
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gm import augment, core, diagnostics, flags, losses, optim, pictures, regularizers
from gm.nets import resnet
from gm.nn import spectral

# Embeddings of G are left out of the normalisation, which was found to break G.
SHARED, TABLES = ("embed",), ("norm0", "norm1")  # one for all blocks, or one in each batch norm
CUTS = (2.0, 1.0, 0.5, 0.04)  # thresholds of z in the picture of truncation


def stages(config, info: core.Info) -> list[core.Stage]:
  """Returns the one stage of a BigGAN for labelled images.

  Raises:
    ValueError: if the data are not labelled images, a number is out of its range, or attention is
      asked for at a size that no map has.
  """
  m, classes = config.model, info.num_classes
  flags.within(m, "d_steps", "standing_passes", least=1, most=2**10)
  flags.within(m, "z_dim", "base", "g_widths", "d_widths", least=1)
  flags.within(m, "embed_features", "d_down", least=0)
  flags.within(m, "attention", least=1, empty=True)
  flags.within(m, "ema_from", "standing_every", least=0, most=flags.MOST_STEPS)
  flags.within(m, "d_lr", "adam_eps", "sn_eps", above=0.0)
  flags.within(m, "ortho_weight", "truncation", least=0.0)
  flags.within(m, "ema", least=0.0, below=1.0)
  if not classes or "image" not in info.shape:
    raise ValueError(
      "BigGAN makes images by class, and the data are not images or have no labels: set"
      " --config.data.num_classes to the number of classes, or use another method"
      " (--config=configs/sngan.py:unconditional)"
    )
  augment.require(m.augment, info.shape["image"])
  common = {
    "scheme": flags.choice(m, "scheme", resnet.SCHEMES),
    "dtype": config.compute_dtype,
    "num_classes": classes,
  }
  net = resnet.Generator(
    info.shape["image"],
    [m.base * k for k in m.g_widths],
    embed_features=m.embed_features,
    hierarchical=m.hierarchical,
    attention=m.attention,
    **common,
  )
  skip = SHARED if m.embed_features else TABLES
  wrap = lambda net: spectral.SpectralNorm(net, skip=skip, eps=m.sn_eps)
  g, measured = wrap(net), wrap(net.clone(momentum=0.0))  # whose running averages are the batch's
  critic = resnet.Discriminator(
    [m.base * k for k in m.d_widths], m.d_down, wide=True, attention=m.attention, **common
  )
  resnet.check_attention(net, critic)
  d = spectral.SpectralNorm(critic, eps=m.sn_eps)
  rates = {"g": config.lr, "d": config.lr * m.d_lr}
  tx = {n: optim.adam(rates[n], b1=0.0, b2=0.999, eps=m.adam_eps) for n in ("g", "d")}

  def G(p, stats, z, y, train=True, net=g):  # -> [B, H, W, C]
    return core.apply(net, p, stats, z, y, train=train)

  def D(p, stats, x, y, train=True):  # -> logits [B]
    return core.apply(d, p, stats, x, y, train=train)

  truncation = m.truncation or None

  def noise(key, n, threshold=None):  # beyond the threshold numbers are drawn again
    if threshold is None:
      return jax.random.normal(key, (n, m.z_dim))
    return jax.random.truncated_normal(key, -threshold, threshold, (n, m.z_dim))

  def draw(k, n, threshold=None):  # -> noise, labels, from the keys z and y of k
    return noise(k.z, n, threshold), jax.random.randint(k.y, (n,), 0, classes)

  def init(key, batch, prev):
    k = core.keys(key, "g", "d")
    params, stats, y = {}, {}, jnp.zeros(2, jnp.int32)
    params["g"], stats["g"] = core.build(g, k.g, jnp.zeros((2, m.z_dim)), y)
    params["d"], stats["d"] = core.build(d, k.d, batch["image"][:2], y)
    return core.State(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt={n: core.init_slot(tx[n], params, [n]) for n in ("g", "d")},
      stats=stats,
      ema={"g": params["g"], "g_stats": stats["g"]},
      extra={"standing": taken(-1, stats["g"]["batch_stats"])},
    )

  def d_step(state, x, y, key):
    k = core.keys(key, "z", "y", "see")
    z, y_fake = draw(k, len(x))

    def loss(p, b):  # moves d only, G is a constant; data and samples in one pass: u moves once
      see = augment.views(b["see"], m.augment)  # what D sees of images
      fake, g_stats = G(state.params["g"], state.stats["g"], b["z"], b["y_fake"])
      both = jnp.concatenate([see(0, b["x"]), see(1, fake)])
      labels = jnp.concatenate([b["y"], b["y_fake"]])
      logits, stats = D(p["d"], state.stats["d"], both, labels)
      real, fake = jnp.split(logits, 2)
      found = diagnostics.margin_stats(real, fake)
      return losses.hinge_d(real, fake), ({"d": stats, "g": g_stats}, found)

    batch = {"x": x, "y": y, "z": z, "y_fake": y_fake, "see": k.see}
    return core.minimize(state, tx["d"], loss, ["d"], batch, accumulate=config.accumulate)

  def g_step(state, key):
    k = core.keys(key, "z", "y", "see")

    def loss(p, b):  # moves g only
      see = augment.views(b["see"], m.augment)
      fake, g_stats = G(p["g"], state.stats["g"], b["z"], b["y"])
      logits, d_stats = D(p["d"], state.stats["d"], see(0, fake), b["y"])
      total = losses.hinge_g(logits)
      if m.ortho_weight:
        total += 0.5 * m.ortho_weight * regularizers.orthogonal(p["g"])
      return total, ({"g": g_stats, "d": d_stats}, {})

    z, y = draw(k, config.batch_size)
    batch = {"z": z, "y": y, "see": k.see}
    return core.minimize(state, tx["g"], loss, ["g"], batch, accumulate=config.accumulate)

  def standing(state, key, threshold):
    """Batch norm's statistics in the averaged G, for samples from z cut at the threshold."""
    if not m.standing_every:
      return state.ema["g_stats"]["batch_stats"]

    def one(key):  # of as many examples as are normalised together in training
      k, n = core.keys(key, "z", "y"), config.batch_size // config.accumulate
      z, y = core.shard(draw(k, n, threshold))
      return G(state.ema["g"], state.ema["g_stats"], z, y, net=measured)[1]["batch_stats"]

    found = jax.lax.map(one, jax.random.split(key, m.standing_passes))
    return jax.tree.map(lambda x: x.mean(0), found)

  def taken(step, statistics):  # what is kept of them, and of which state and samples they are
    at = {"step": jnp.asarray(step, jnp.int32), "threshold": jnp.asarray(m.truncation, jnp.float32)}
    return {**at, "statistics": statistics}

  def stand(state, key):
    kept = taken(state.step, standing(state, key, truncation))
    return state.replace(extra={"standing": kept})

  def statistics(state, key):
    """For samples: the state's, or new ones where those are of another step or threshold."""
    kept = state.extra["standing"]
    return jax.lax.cond(
      (kept["step"] == state.step) & (kept["threshold"] == m.truncation),
      lambda: kept["statistics"],
      lambda: standing(state, key, truncation),
    )

  def step(state, batch, key):
    k = core.keys(key, "d", "g", "standing")
    parts = core.split_batch((batch["image"], batch["label"], k.d), m.d_steps)  # [d_steps, B, ...]

    def body(state, part):
      return d_step(state, *part)

    state, found = jax.lax.scan(body, state, parts)
    state, more = g_step(state, k.g)
    # parameters, batch norm's averages and u alike; a copy until ema_from
    decay = jnp.where(state.step < m.ema_from, 0.0, m.ema)
    ema = core.ema(state.ema, {"g": state.params["g"], "g_stats": state.stats["g"]}, decay)
    state = state.replace(step=state.step + 1, ema=ema)
    if m.standing_every:
      state = core.every(m.standing_every, state.step, lambda s: stand(s, k.standing), state)
    found = {name: v[-1] for name, v in found.items()}  # of the last step of D
    return state, {**found, **more}

  def generate(state, norms, z, y):
    stats = {**state.ema["g_stats"], "batch_stats": norms}
    return G(state.ema["g"], stats, z, y, train=False)[0]

  def latent(batch, key):
    return noise(key, len(batch["image"]), truncation)

  def render(state, z, batch):
    y, norms = batch["label"], statistics(state, jax.random.key(0))  # the same for every sample
    return {"image": generate(state, norms, z, y), "label": y}

  def ready(state):  # with the statistics that its samples need
    norms = statistics(state, jax.random.key(0))
    return state.replace(extra={"standing": taken(state.step, norms)})

  def sample(state, batch, key):
    return render(state, latent(batch, key), batch)

  def evaluate(state, batch, key):
    """What D says of held-out data and of samples of the same labels."""
    x, y = batch["image"], batch["label"]
    real, _ = D(state.params["d"], state.stats["d"], x, y, train=False)
    fake, _ = D(state.params["d"], state.stats["d"], sample(state, batch, key)["image"], y, False)
    return {"margin": real.mean() - fake.mean()}

  def show(state, batch, key):
    k = core.keys(key, "line", "classes", "even", "norms", "cuts")
    num, size = min(classes, 10), info.shape["image"]
    start, end = noise(k.line, 16, truncation).reshape(2, 8, m.z_dim)
    norms = statistics(state, k.norms)

    def along(z):  # [8 * frames, Z], a label for each line
      return generate(state, norms, z, jnp.repeat(jnp.arange(8) % num, len(z) // 8))

    def grid(norms, z):  # [R, num, Z] -> [R, num, H, W, C], a class in each column
      y = jnp.tile(jnp.arange(num), len(z))
      return generate(state, norms, z.reshape(-1, m.z_dim), y).reshape(*z.shape[:2], *size)

    def at(cut):  # [2, num, H, W, C]
      threshold, key = cut
      erf, erfinv = jax.scipy.special.erf, jax.scipy.special.erfinv
      return grid(standing(state, key, threshold), 2**0.5 * erfinv(even * erf(threshold / 2**0.5)))

    of_rows = jnp.broadcast_to(noise(k.classes, 8, truncation)[:, None], (8, num, m.z_dim))
    even = jax.random.uniform(k.even, (2, num, m.z_dim), minval=-1.0)  # the same at every threshold
    cuts = jax.lax.map(at, (jnp.array(CUTS), jax.random.split(k.cuts, len(CUTS))))
    return {
      "interpolation": pictures.lines(along, start, end),
      "classes": grid(norms, of_rows),  # a noise for each row
      "truncation": cuts.reshape(-1, num, *size),  # two rows for each threshold
    }

  one_step = {"batch_size": config.batch_size * m.d_steps}
  train = core.Stage("train", config.num_steps, init, step, sample, evaluate, show, one_step)
  return [train._replace(latent=latent, generate=render, straight=m.truncation > 0, ready=ready)]
