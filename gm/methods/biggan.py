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
of z truncated as it will be for the samples, taken anew every standing_every steps.
Departures: batch statistics are of the whole batch over all devices, as in the paper; the authors'
PyTorch code (BigGAN-PyTorch) has them per device. Layers and first values are that code's, which
draws biases from torch's uniform law. `paper` has the paper's learning rates, steps of D and batch,
and that code's epsilons and start of averaging; `cifar10` is its CIFAR script.
Run: python main.py --config=configs/biggan.py --workdir=/tmp/biggan
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gm import augment, core, losses, optim, pictures, regularizers
from gm.nets import resnet
from gm.nn import spectral

# Embeddings of G are left out of the normalisation, which was found to break G.
SHARED, TABLES = ("embed",), ("norm0", "norm1")  # one for all blocks, or one in each batch norm


def stages(config, info: core.Info) -> list[core.Stage]:
  """Returns the one stage of a BigGAN for labelled images.

  Raises:
    ValueError: if the data are not labelled images, or the truncation is negative.
  """
  m, classes = config.model, info.num_classes
  if not classes or "image" not in info.shape:
    raise ValueError(
      "BigGAN makes images by class, and the data are not images or have no labels: set"
      " --config.data.num_classes to the number of classes, or use another method"
      " (--config=configs/sngan.py:unconditional)"
    )
  if m.truncation < 0:
    raise ValueError(
      f"z cannot be truncated at {m.truncation}: set --config.model.truncation to a positive"
      " threshold, or to 0 for none"
    )
  common = {"scheme": m.scheme, "dtype": config.compute_dtype, "num_classes": classes}
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
  d = spectral.SpectralNorm(
    resnet.Discriminator(
      [m.base * k for k in m.d_widths], m.d_down, wide=True, attention=m.attention, **common
    ),
    eps=m.sn_eps,
  )
  rates = {"g": config.lr, "d": config.lr * m.d_lr}
  tx = {n: optim.adam(rates[n], b1=0.0, b2=0.999, eps=m.adam_eps) for n in ("g", "d")}

  def G(p, stats, z, y, train=True, net=g):  # -> [B, H, W, C]
    return core.apply(net, p, stats, z, y, train=train)

  def D(p, stats, x, y, train=True):  # -> logits [B]
    return core.apply(d, p, stats, x, y, train=train)

  def noise(key, n, threshold=0.0):  # beyond the threshold numbers are drawn again
    if threshold:
      return jax.random.truncated_normal(key, -threshold, threshold, (n, m.z_dim))
    return jax.random.normal(key, (n, m.z_dim))

  def draw(key, n, threshold=0.0):  # -> noise, labels
    kz, ky = jax.random.split(key)
    return noise(kz, n, threshold), jax.random.randint(ky, (n,), 0, classes)

  def init(key, batch, prev):
    kg, kd = jax.random.split(key)
    params, stats, y = {}, {}, jnp.zeros(2, jnp.int32)
    params["g"], stats["g"] = core.build(g, kg, jnp.zeros((2, m.z_dim)), y)
    params["d"], stats["d"] = core.build(d, kd, batch["image"][:2], y)
    return core.State(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt={n: core.init_slot(tx[n], params, [n]) for n in ("g", "d")},
      stats=stats,
      ema={"g": params["g"], "g_stats": stats["g"]},
      extra={"standing": stats["g"]["batch_stats"]},
    )

  def d_step(state, x, y, key):
    see = augment.views(jax.random.fold_in(key, 1), m.augment)  # what D sees of images
    z, y_fake = draw(key, len(x))
    fake, g_stats = G(state.params["g"], state.stats["g"], z, y_fake)

    def loss(p, b):  # moves d only; data and samples in one pass, so u moves once
      both = jnp.concatenate([see(0, b["x"]), see(1, b["fake"])])
      labels = jnp.concatenate([b["y"], b["y_fake"]])
      logits, stats = D(p["d"], state.stats["d"], both, labels)
      real, fake = jnp.split(logits, 2)
      found = {
        "margin": real.mean() - fake.mean(),
        "d_accuracy": 0.5 * (jnp.mean(real > 0) + jnp.mean(fake <= 0)),
      }
      return losses.hinge_d(real, fake), ({"d": stats}, found)

    batch = {"x": x, "y": y, "fake": fake, "y_fake": y_fake}
    state, found = core.minimize(state, tx["d"], loss, ["d"], batch, accumulate=config.accumulate)
    return state.replace(stats={**state.stats, "g": g_stats}), found

  def g_step(state, key):
    see = augment.views(jax.random.fold_in(key, 1), m.augment)  # what D sees of images

    def loss(p, b):  # moves g only
      fake, g_stats = G(p["g"], state.stats["g"], b["z"], b["y"])
      logits, d_stats = D(p["d"], state.stats["d"], see(0, fake), b["y"])
      total = losses.hinge_g(logits)
      if m.ortho_weight:
        total += 0.5 * m.ortho_weight * regularizers.orthogonal(p["g"])
      return total, ({"g": g_stats, "d": d_stats}, {})

    z, y = draw(key, config.batch_size)
    return core.minimize(
      state, tx["g"], loss, ["g"], {"z": z, "y": y}, accumulate=config.accumulate
    )

  def stand(state, key):
    """Standing statistics of the averaged G, which is what samples are drawn from."""

    def one(key):
      z, y = draw(key, config.batch_size, m.truncation)
      return G(state.ema["g"], state.ema["g_stats"], z, y, net=measured)[1]["batch_stats"]

    found = jax.lax.map(one, jax.random.split(key, m.standing_passes))
    return state.replace(extra={"standing": jax.tree.map(lambda x: x.mean(0), found)})

  def step(state, batch, key):
    kd, kg, ks = jax.random.split(key, 3)
    parts = core.split_batch((batch["image"], batch["label"]), m.d_steps)  # [d_steps, B, ...]

    def body(state, part):
      return d_step(state, *part)

    state, found = jax.lax.scan(body, state, (*parts, jax.random.split(kd, m.d_steps)))
    state, more = g_step(state, kg)
    # parameters, batch norm's averages and u alike; a copy until ema_from
    decay = jnp.where(state.step < m.ema_from, 0.0, m.ema)
    ema = core.ema(state.ema, {"g": state.params["g"], "g_stats": state.stats["g"]}, decay)
    state = state.replace(step=state.step + 1, ema=ema)
    if m.standing_every:
      state = core.every(m.standing_every, state.step, lambda s: stand(s, ks), state)
    found = {k: v[-1] for k, v in found.items()}  # of the last step of D
    return state, {**found, **more}

  def generate(state, z, y):
    stats = state.ema["g_stats"]
    if m.standing_every:
      stats = {**stats, "batch_stats": state.extra["standing"]}
    return G(state.ema["g"], stats, z, y, train=False)[0]

  def sample(state, batch, key):
    y = batch["label"]
    return {"image": generate(state, noise(key, len(y), m.truncation), y), "label": y}

  def evaluate(state, batch, key):
    """What D says of held-out data and of samples of the same labels."""
    x, y = batch["image"], batch["label"]
    real, _ = D(state.params["d"], state.stats["d"], x, y, train=False)
    fake, _ = D(state.params["d"], state.stats["d"], sample(state, batch, key)["image"], y, False)
    return {"margin": real.mean() - fake.mean()}

  def show(state, batch, key):
    k_line, k_class, k_cut = jax.random.split(key, 3)
    num, size = min(classes, 10), info.shape["image"]
    start, end = noise(k_line, 16, m.truncation).reshape(2, 8, m.z_dim)

    def along(z):  # [8 * frames, Z], a label for each line
      return generate(state, z, jnp.repeat(jnp.arange(8) % num, len(z) // 8))

    def grid(z, y):  # [R, num, Z] -> [R, num, H, W, C]
      return generate(state, z.reshape(-1, m.z_dim), y.ravel()).reshape(*y.shape, *size)

    y = jnp.tile(jnp.arange(num), (8, 1))
    of_rows = jnp.broadcast_to(noise(k_class, 8, m.truncation)[:, None], (8, num, m.z_dim))
    even = jax.random.uniform(k_cut, (2, num, m.z_dim), minval=-1.0)  # the same at every threshold
    cut = lambda t: 2**0.5 * jax.scipy.special.erfinv(even * jax.scipy.special.erf(t / 2**0.5))
    cuts = [cut(t) for t in (2.0, 1.0, 0.5, 0.04)]
    return {
      "interpolation": pictures.lines(along, start, end),
      "classes": grid(of_rows, y),  # a noise for each row
      "truncation": grid(jnp.concatenate(cuts), y),  # thresholds of 2, 1, 0.5, 0.04, two rows each
    }

  one_step = {"batch_size": config.batch_size * m.d_steps}
  return [core.Stage("train", config.num_steps, init, step, sample, evaluate, show, one_step)]
