"""SinGAN. Rott Shaham, Dekel, Michaeli, ICCV 2019, arXiv:1905.01164.

Idea: one picture is enough, for it has many patches. From coarse to fine, a small GAN at each size
learns which patches there are, and adds its detail to what the level below has drawn, enlarged. As
nothing knows where it is but by the borders, new pictures come out in any size. Every level also
has to give the picture itself for one fixed noise, so that the levels above find it below them.
Objective at level n, all below held fixed, with x the picture in that size, y = G(s z + up, up) of
noise z and `up`, a draw of the level below enlarged, and r of noise z* and up*, its reconstruction:
  D: -mean D(x) + mean D(y) + gp_weight mean (|dD/du| - 1)^2, a norm over the colours of each pixel
     of u, between x and y
  G: -mean D(y) + rec_weight mean (r - x)^2
  s = 1 and `up` = 0 at the coarsest level, then s = noise sqrt(mean (up* - x)^2); z* is one draw at
  the coarsest level and 0 at the others. Scores and their gradients are of the patches of 11 x 11.
A step is d_steps moves of D, then g_steps of G. G starts from that of the level below if it has as
many channels; when a level is trained its norms go over to their averages.
Departures: z* is drawn once, as the paper has it; the authors' code draws it anew in every step. G
is run anew for each of its moves; their code moves three times along one gradient, which newer
PyTorch refuses. Sizes are exact, where theirs are cut to fit, and borders are as Pillow resizes
them, not mirrored. A batch above 1 has as many draws, and the picture once.
Run: python main.py --config=configs/singan.py --workdir=/tmp/singan
Then: python main.py --config=configs/singan.py --workdir=/tmp/singan --mode=sample
  --config.model.out_size="(64, 96)" draws wider pictures, --config.model.start_level=1 keeps the
  layout, --walk=0,1,2 moves; --input=FILE --config.model.inject=4 lets an image of yours in at a
  level: a painting low, an object that was put into the picture higher; --config.model.extra=4
  goes on to enlarge by the finest level
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gm import core, flags, losses, optim, regularizers
from gm.nets import singan

DOUBLE_EVERY = 4  # levels after which there are twice the channels
MOST_TIMES = 4  # as many channels as the coarsest level has
NEAR, EDGE = 0.03, 0.02  # by which what was changed in an image is widened, and then softened;
# of its longer side, as about the authors' 7 and 5 pixels of 250
CHANGED = 0.04  # of 2: a pixel of an image that differs by more from the picture was changed


class Level(NamedTuple):
  """One size of the pyramid, and what is at work there."""

  size: tuple[int, int]
  width: int  # channels of its networks
  g: Any
  d: Any
  refine: Callable  # (params, stats, padded, up, train) -> (image, stats); traced once for all
  judge: Callable  # (params, image) -> scores


def levels_of(m: Any, size: tuple[int, int], dtype: Any = jnp.float32) -> list[Level]:
  """Returns the levels for a picture of this (height, width), coarsest first."""
  found = []
  sizes = singan.pyramid(size, least=m.min_size, most=m.max_size, factor=m.factor)
  for i, level in enumerate(sizes):
    width = m.width * min(2 ** (i // DOUBLE_EVERY), MOST_TIMES)
    g, d = singan.Generator(width, dtype), singan.Discriminator(width, dtype)

    def refine(params, stats, x, up, train, g=g):
      return core.apply(g, params, stats, x, up, train=train)

    def judge(params, x, d=d):  # its norms know this batch alone, and nothing of it is kept
      return d.apply({"params": params}, x, mutable=["batch_stats"])[0]

    functions = jax.jit(refine, static_argnums=4), jax.jit(judge)
    found.append(Level(level, width, g, d, *functions))
  return found


def changed(x: jax.Array, real: jax.Array) -> jax.Array:
  """How much of an image is to be drawn anew: 1 where it is not the picture, softly 0 elsewhere.

  Args:
    x: [N, H, W, C].
    real: the picture, [1, H, W, C].

  Returns:
    [N, H, W, 1].
  """
  mask = (jnp.abs(x - real).max(-1, keepdims=True) > CHANGED).astype(jnp.float32)
  near, edge = (max(1, round(share * max(x.shape[1:3]))) for share in (NEAR, EDGE))

  def window(x, reach, start, fold):
    side = (1, 2 * reach + 1, 2 * reach + 1, 1)
    return jax.lax.reduce_window(x, start, fold, side, (1, 1, 1, 1), "SAME")

  wide = window(mask, near + edge, -jnp.inf, jax.lax.max)
  around = jnp.ones_like(wide)
  return window(wide, edge, 0.0, jax.lax.add) / window(around, edge, 0.0, jax.lax.add)


def stages(config, info: core.Info) -> list[core.Stage]:
  """Returns a stage for each level, `level0` the coarsest.

  Raises:
    ValueError: for a number that is not possible, or a picture that is too small.
  """
  m = config.model
  flags.within(m, "width", "d_steps", "g_steps", least=1)
  flags.within(m, "min_size", least=2 * singan.BORDER + 1)
  flags.within(m, "max_size", least=2 * singan.BORDER + 2)
  flags.within(m, "factor", above=0.0, below=1.0)
  flags.within(m, "gp_weight", "rec_weight", "noise", least=0.0)
  flags.within(m, "b1", "b2", least=0.0, below=1.0)
  flags.within(m, "decay_at", least=0.0, most=1.0)
  height, width, channels = info.shape[flags.leaf(info, "image")]
  levels = levels_of(m, (height, width), config.compute_dtype)
  flags.within(m, "start_level", "inject", least=0, most=len(levels) - 1)
  flags.within(m, "extra", least=0, most=16)
  if m.out_size:
    flags.within(m, "out_size", least=2 * singan.BORDER + 1, most=2**14, length=2)
  if m.start_level and (m.out_size or m.inject):
    raise ValueError(
      "--config.model.start_level keeps the layout of the picture in its own size: set"
      " --config.model.out_size=() and --config.model.inject=0 with it"
    )
  return [_stage(config, channels, levels[: n + 1], levels[-1].size) for n in range(len(levels))]


def _stage(config, channels: int, levels: list[Level], whole: tuple[int, int]) -> core.Stage:
  m, n = config.model, len(levels) - 1
  me, names = f"g{n}", [f"z{i}" for i in range(n + 1)]

  def rate(moves):  # a tenth of it from decay_at of the steps on
    return optim.piecewise(
      [config.lr, config.lr / 10], [int(m.decay_at * config.num_steps) * moves]
    )

  moves = {me: m.g_steps, "d": m.d_steps}
  tx = {name: optim.adam(rate(k), b1=m.b1, b2=m.b2) for name, k in moves.items()}
  enlarge = lambda x, size: singan.resize(x, size, quantise=m.quantise)

  def refine(state, i, z, up, *, train=False, params=None):
    """One level: an image, enlarged, and what the generator of level i adds to it."""
    sigma = state.extra["sigma"][i]
    x = jnp.pad(sigma * z + up, ((0, 0), *[(singan.BORDER,) * 2] * 2, (0, 0)))
    params = state.params[f"g{i}"] if params is None else params
    return levels[i].refine(params, state.stats[f"g{i}"], x, up, train)

  def at_level(x):  # the picture, or an image, in the size of this level
    x = enlarge(x, whole)
    return x if levels[n].size == whole else enlarge(x, levels[n].size)

  def blank(num, size):
    return jnp.zeros((num, *size, channels))

  def noise(key, num, i, size):  # one map for all colours at the coarsest level
    return jax.random.normal(key, (num, *size, channels if i else 1))

  def climb(state, z, up, sizes, start=0):
    """Runs the levels from `start` on, on `up`, which is of that one's size."""
    for i in range(start, len(sizes)):
      level = min(i, n)  # beyond the finest it is applied again
      y, _ = refine(state, level, z[f"z{i}"], up)
      if i + 1 < len(sizes):
        up = enlarge(y, sizes[i + 1])
    return y

  def below(state, z, num):
    """What level n is given: the levels under it on noise z, enlarged; nothing at the coarsest."""
    if n == 0:
      return blank(num, levels[0].size)
    sizes = [level.size for level in levels[:n]]
    return enlarge(climb(state, z, blank(num, sizes[0]), sizes), levels[n].size)

  def fixed(state):  # z*, with which the levels give the picture
    zeros = {f"z{i}": blank(1, level.size) for i, level in enumerate(levels)}
    return {**zeros, "z0": state.extra["z"]}

  def fake(state, p, b):  # of noise for this level and for those below; and the averages after
    up = below(state, b["below"], len(b["z"]))
    return refine(state, n, b["z"], up, train=True, params=p[me])

  def init(key, batch, prev):
    k = core.keys(key, "g", "d", "z")
    x = at_level(batch["image"][:1])
    y, seen = blank(1, levels[n].size), blank(1, [s + 2 * singan.BORDER for s in levels[n].size])
    params, stats = core.build(levels[n].g, k.g, seen, y, True)
    judge, _ = core.build(levels[n].d, k.d, x)
    if prev is None:
      extra = {"sigma": jnp.ones(1), "z": noise(k.z, 1, 0, levels[0].size), "rec": y}
      all_params, all_stats = {me: params, "d": judge}, {me: stats}
    else:
      all_params, all_stats = {**prev.params, me: params, "d": judge}, {**prev.stats, me: stats}
      if levels[n].width == levels[n - 1].width:
        all_params |= {me: prev.params[f"g{n - 1}"], "d": prev.params["d"]}
        all_stats |= {me: prev.stats[f"g{n - 1}"]}
      rec = below(prev, fixed(prev), 1)
      sigma = m.noise * jnp.sqrt(jnp.mean((rec - x) ** 2))
      extra = {**prev.extra, "sigma": jnp.append(prev.extra["sigma"], sigma), "rec": rec}
    opt = {name: core.init_slot(tx[name], all_params, [name]) for name in (me, "d")}
    extra["real"] = x
    return core.State(jnp.zeros((), jnp.int32), all_params, opt, all_stats, extra=extra)

  def D(p, x):
    return levels[n].judge(p["d"], x)

  def d_move(state, z, key):
    x, (between, *keys) = state.extra["real"], core.keys(key, "between", *names[:n])
    lower = {names[i]: noise(k, len(z), i, levels[i].size) for i, k in enumerate(keys)}

    def loss(p, b):  # moves d only
      y, stats = fake(state, p, b)
      between = regularizers.interpolate(b["between"], jnp.broadcast_to(x, y.shape), y)
      penalty = regularizers.gradient_penalty(lambda u: D(p, u), between, axes=(3,))
      distance = losses.wasserstein_d(D(p, x), D(p, y))
      found = {"w_estimate": -distance, "penalty": penalty}
      return distance + m.gp_weight * penalty, ({me: stats}, found)

    parts = {"z": z, "below": lower, "between": between}
    state, found = core.minimize(state, tx["d"], loss, ["d"], parts, accumulate=config.accumulate)
    return state, found, lower

  def g_move(state, z, lower):
    z_fixed = fixed(state)[names[n]]

    def loss(p, b):  # moves g only
      y, _ = fake(state, p, b)
      r, stats = refine(state, n, z_fixed, state.extra["rec"], train=True, params=p[me])
      rec = jnp.mean((r - state.extra["real"]) ** 2)
      fool = losses.wasserstein_g(D(p, y))
      return fool + m.rec_weight * rec, ({me: stats}, {"rec": rec, "fool": fool})

    parts = {"z": z, "below": lower}
    return core.minimize(state, tx[me], loss, [me], parts, accumulate=config.accumulate)

  def step(state, batch, key):
    k = core.keys(key, "z", "d")
    z = noise(k.z, len(batch["image"]), n, levels[n].size)

    def of_d(state, key):
      state, found, lower = d_move(state, z, key)
      return state, (found, lower)

    state, (found, lower) = jax.lax.scan(of_d, state, jax.random.split(k.d, m.d_steps))
    lower = {name: v[-1] for name, v in lower.items()}  # what D has seen last
    state, more = jax.lax.scan(lambda s, _: g_move(s, z, lower), state, None, length=m.g_steps)
    found = {name: v[-1] for name, v in {**found, **more}.items()}  # of the last moves
    return state.replace(step=state.step + 1), found

  # ----------------------------------------------------------------------------------- new pictures

  def out_sizes():
    """Of all levels in what is drawn, and of those beyond the finest."""
    size = levels[n].size
    times = [b / a for a, b in zip(whole, m.out_size or whole)]
    found = [tuple(round(t * s) for t, s in zip(times, level.size)) for level in levels]
    if m.out_size and size == whole:
      found[n] = tuple(m.out_size)
    ratio = min(whole) / min(levels[n - 1].size) if size == whole and n else 1 / m.factor
    for _ in range(m.extra if size == whole else 0):
      found.append(tuple(round(ratio * s) for s in found[-1]))
    return found

  sizes, entry = out_sizes(), min(m.inject, n)

  def latent(batch, key):
    num, keys = len(batch["image"]), core.keys(key, *(f"z{i}" for i in range(len(sizes))))
    return {f"z{i}": noise(keys[i], num, i, size) for i, size in enumerate(sizes)}

  def generate(state, z, batch):
    if entry:  # an image enters, and what it has in common with the picture stays
      x = at_level(batch["image"])
      up = enlarge(enlarge(x, levels[entry - 1].size), sizes[entry])
      y = climb(state, z, up, sizes, entry)
      if y.shape == x.shape:
        mask = changed(x, state.extra["real"])
        y = x + mask * (y - x)
    else:
      kept = {name: fixed(state)[name] for name in names[: min(m.start_level, n)]}
      z = z | {name: jnp.broadcast_to(v, z[name].shape) for name, v in kept.items()}
      y = climb(state, z, blank(len(z["z0"]), sizes[0]), sizes)
    return {"image": jnp.clip(y, -1, 1)}

  def sample(state, batch, key):
    return generate(state, latent(batch, key), batch)

  def reconstruct(state):
    return refine(state, n, fixed(state)[names[n]], state.extra["rec"])[0]

  def evaluate(state, batch, key):
    return {"rmse": jnp.sqrt(jnp.mean((reconstruct(state) - state.extra["real"]) ** 2))}

  def show(state, batch, key):
    """The picture, and what comes out for the fixed noise."""
    pair = jnp.concatenate([state.extra["real"], jnp.clip(reconstruct(state), -1, 1)])
    return {"picture": pair[None]}

  stage = core.Stage(f"level{n}", config.num_steps, init, step, sample, evaluate, show)
  return stage._replace(latent=latent, generate=generate)
