"""WGAN and WGAN-GP. Arjovsky et al., ICML 2017, arXiv:1701.07875; Gulrajani et al., NeurIPS 2017,
arXiv:1704.00028.

Idea: instead of telling data from samples, a 1-Lipschitz critic f measures how far apart they lie,
W1(p_data, p_g) = max_f E f(x) - E f(G(z)); G lowers it. Several critic steps per G step.
Objective:
  critic: E f(G(z)) - E f(x)  [+ weight E (|grad f(x^)|_2 - 1)^2, x^ = eps x + (1 - eps) G(z)]
  G:      -E f(G(z))
f is kept Lipschitz by clipping every weight to [-c, c] after each step (clip), or by the penalty
(gp); with model.penalty=one_sided it is max(0, |grad f(x^)|_2 - 1)^2, on slopes above 1 alone.
-loss without the penalty is the estimate of W1, logged as w_estimate.
Departures: `paper` has the layers of a PyTorch port (pytorch-wgan, 32 px, biases, norm after every
hidden layer); `small` those of the authors' MNIST code, narrower and with kernels of 4. The port's
clipping file has a wrong sign in G's loss since 2025; the equations above are the paper's. The
authors' warm-up of 100 critic steps is left out.
Run: python main.py --config=configs/wgan.py --workdir=/tmp/wgan
  4 to 5 minutes on 2 cores; the rarest digit is 7 to 8 % of the samples, Frechet distance 54 to 64
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gm import augment, core, flags, losses, optim, pictures, regularizers
from gm.nets import dcgan, mlp
from gm.nn import init as inits
from gm.nn import norm
from gm.probability import fit


def networks(m, shape: tuple, dtype: str) -> tuple:
  """Returns G and the critic of a variant.

  Raises:
    ValueError: for a name or a number that is not possible, or batch norm under the penalty.
  """
  flags.within(m, "z_dim", "base", "kernel", least=1)
  flags.within(m, "widths", least=1, empty=True)
  flags.choice(m, "nets", ("conv", "mlp") if len(shape) == 3 else ("mlp",))
  flags.choice(m, "first", ("conv", "dense"))
  flags.choice(m, "output", tuple(dcgan.OUTPUTS))
  flags.choice(m, "g_norm", ("none", *norm.LAYERS))
  flags.choice(m, "d_norm", ("none", *norm.LAYERS))
  if m.nets == "mlp":
    flags.choice(m, "scheme", ("lecun", "glorot", "he", "he_uniform", "orthogonal", "torch"))
    kernel_init = inits.named(m.scheme)
    return (
      mlp.Generator(shape, m.widths, output="none", kernel_init=kernel_init, dtype=dtype),
      mlp.Discriminator(m.widths, activation="relu", kernel_init=kernel_init, dtype=dtype),
    )
  flags.kernel(m, "kernel", shape=shape)
  flags.choice(m, "scheme", tuple(inits.SCHEMES))
  if m.lipschitz == "gp" and m.d_norm == "batch":
    raise ValueError(
      "the penalty is on the slope at each point, and batch norm mixes the points of a batch: set"
      " --config.model.d_norm to none, instance or layer, or --config.model.lipschitz=clip"
    )
  options = {"kernel": m.kernel, "use_bias": True, "crop": m.crop, "scheme": m.scheme}
  g = dcgan.Generator(
    shape, base=m.base, norm=m.g_norm, first=m.first, output=m.output, dtype=dtype, **options
  )
  d = dcgan.Discriminator(
    base=m.base, norm=m.d_norm, norm_first=True, last=m.first, dtype=dtype, **options
  )
  return g, d


def stages(config, info: core.Info) -> list[core.Stage]:
  """Returns the one stage of a WGAN for images or points, clipped or with gradient penalty.

  Raises:
    ValueError: for a name or a number that is not possible.
  """
  m, data = config.model, flags.leaf(info, "image", "point")
  flags.within(m, "num_critic", least=1, most=2**10)
  flags.within(m, "gp_weight", least=0.0)
  flags.within(m, "clip", above=0.0)
  flags.within(m, "b1", "b2", "ema", least=0.0, below=1.0)
  flags.choice(m, "lipschitz", ("gp", "clip"))
  one_sided = flags.choice(m, "penalty", ("two_sided", "one_sided")) == "one_sided"
  augment.require(m.augment, info.shape[data])
  g, d = networks(m, info.shape[data], config.compute_dtype)
  if m.lipschitz == "clip":
    tx = {n: optim.rmsprop(config.lr) for n in ("g", "d")}
  else:
    tx = {n: optim.adam(config.lr, b1=m.b1, b2=m.b2) for n in ("g", "d")}

  def noise(key, n):
    return jax.random.normal(key, (n, m.z_dim))

  def init(key, batch, prev):
    k = core.keys(key, "g", "d")
    params, stats = {}, {}
    params["g"], stats["g"] = core.build(g, k.g, jnp.zeros((2, m.z_dim)))
    params["d"], stats["d"] = core.build(d, k.d, batch[data][:2])
    return core.State(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt={n: core.init_slot(tx[n], params, [n]) for n in ("g", "d")},
      stats=stats,
      ema={"g": params["g"], "g_stats": stats["g"]},
    )

  def critic_step(state, x, key):
    k = core.keys(key, "noise", "between", "see")

    def loss(p, b):  # moves d only; G is a constant here
      see = augment.views(b["see"], m.augment)  # what D sees of images
      fake, g_stats = core.apply(g, state.params["g"], state.stats["g"], b["z"])
      f = lambda x, stats=state.stats["d"]: core.apply(d, p["d"], stats, x)
      real_f, stats = f(see(0, b["x"]))
      fake_f, stats = f(see(1, fake), stats)
      stats = {"d": stats, "g": g_stats}
      distance = losses.wasserstein_d(real_f, fake_f)
      found = {"w_estimate": -distance}
      if m.lipschitz == "clip":
        return distance, (stats, found)
      between = regularizers.interpolate(b["between"], b["x"], fake)
      penalty = regularizers.gradient_penalty(
        lambda x: f(see(2, x))[0], between, one_sided=one_sided
      )
      return distance + m.gp_weight * penalty, (stats, {**found, "penalty": penalty})

    batch = {"x": x, "z": noise(k.noise, len(x)), "between": k.between, "see": k.see}
    state, found = core.minimize(state, tx["d"], loss, ["d"], batch, accumulate=config.accumulate)
    if m.lipschitz == "clip":
      clipped = regularizers.clip_weights(state.params["d"], m.clip)
      state = state.replace(params={**state.params, "d": clipped})
    return state, found

  def step(state, batch, key):
    k = core.keys(key, "critic", "g", "see")
    parts = core.split_batch((batch[data], k.critic), m.num_critic)  # [num_critic, B, ...]

    def body(state, part):
      return critic_step(state, *part)

    state, found = jax.lax.scan(body, state, parts)

    def g_loss(p, b):  # moves g only, against the last critic
      see = augment.views(b["see"], m.augment)
      fake, stats = core.apply(g, p["g"], state.stats["g"], b["z"])
      f, _ = core.apply(d, p["d"], state.stats["d"], see(0, fake))
      return losses.wasserstein_g(f), ({"g": stats}, {})

    batch = {"z": noise(k.g, config.batch_size), "see": k.see}
    state, more = core.minimize(state, tx["g"], g_loss, ["g"], batch, accumulate=config.accumulate)
    ema = core.ema(state.ema, {"g": state.params["g"], "g_stats": state.stats["g"]}, m.ema)
    found = {k: v[-1] for k, v in found.items()}  # of the last critic step
    return state.replace(step=state.step + 1, ema=ema), {**found, **more}

  def generate(state, z):
    return core.apply(g, state.ema["g"], state.ema["g_stats"], z, train=False)[0]

  def latent(batch, key):
    return noise(key, len(batch[data]))

  def render(state, z, batch):
    return {data: generate(state, z)}

  def sample(state, batch, key):
    return render(state, latent(batch, key), batch)

  def evaluate(state, batch, key):
    """The critic's estimate on held-out data; on a line beside the exact distance."""
    k, x = core.keys(key, "noise", "between"), batch[data]
    z = noise(k.noise, len(x))
    fake = core.apply(g, state.params["g"], state.stats["g"], z, train=False)[0]
    f = lambda x: core.apply(d, state.params["d"], state.stats["d"], x, train=False)[0]
    between = regularizers.interpolate(k.between, x, fake)
    slope = regularizers.gradient_norm(f, between)
    found = {"w_estimate": -losses.wasserstein_d(f(x), f(fake)), "slope": slope.mean()}
    return {**found, "real": x, "fake": fake} if x.shape[1:] == (1,) else found

  def conclude(found, key):
    return {"w_exact": fit.wasserstein_1d(found["real"][:, 0], found["fake"][:, 0])}

  def show(state, batch, key):
    if data != "image":
      return {}
    start, end = noise(key, 16).reshape(2, 8, m.z_dim)
    return {"interpolation": pictures.lines(lambda z: generate(state, z), start, end)}

  one_step = {"batch_size": config.batch_size * m.num_critic}
  train = core.Stage("train", config.num_steps, init, step, sample, evaluate, show, one_step)
  return [train._replace(conclude=conclude, latent=latent, generate=render)]
