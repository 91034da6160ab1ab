"""CycleGAN. Zhu, Park, Isola, Efros, ICCV 2017, arXiv:1703.10593.

Idea: two networks translate images, one from domain a to b and one back, and are trained on some
images of each that belong to no pairs. A discriminator for each domain asks that translations look
like images of it; that they come back as they were when translated back keeps them the same scene.
Objective, with fake_b = G_ab(a), fake_a = G_ba(b); means over batch, space and channels:
  D: 1/2 mean (D_b(b) - 1)^2 + 1/2 mean D_b(old_b)^2, and the mirror for D_a; old_b: half of the
    time an earlier fake_b (gm/pool.py)
  G: mean (D_b(fake_b) - 1)^2 + mean (D_a(fake_a) - 1)^2
    + cycle (mean |G_ba(fake_b) - a| + mean |G_ab(fake_a) - b|)
    + cycle same (mean |G_ab(b) - b| + mean |G_ba(a) - a|)
  loss=logistic: cross entropies in place of the squares, D's halved.
Both G move together, then both D, on the fakes of the G before that move.
Departures: from the PyTorch code, whose sizes are the default: the rate falls after every step, not
every epoch; images are enlarged by model.jitter and cut at random from their stored size, wide ones
cropped and not squeezed. From the Lua code: its padding of 2 and its affine norms are options
(d_padding, affine); it has no biases in effect, moves G_ab, D_b, G_ba, D_a in turn, and does not
halve D's gradient, which Adam does not notice. `small` has layer norms, for instance norms take the
colours of an image away; translators that begin near the image (skip), for D tells bright from dark
before it tells sea from land, and out of grey whatever is dark becomes bright; and a cycle of 1.5
and no `same`, which keep images as they are if they weigh more.
Run: python main.py --config=configs/cyclegan.py --workdir=/tmp/cyclegan
Then: python main.py --workdir=/tmp/cyclegan --mode=sample --input=FILE_OR_FOLDER --target=b
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gm import augment, core, flags, losses, optim, pool
from gm.nets import patch, translator

LOSSES = {  # of D (real, fake) and of G (fake)
  "least_squares": (losses.least_squares_d, lambda fake: 2 * losses.least_squares_g(fake)),
  "logistic": (lambda real, fake: losses.bce_d(real, fake) / 2, losses.nonsaturating_g),
}
# of the terms of G's loss: which domain they are of, on the way from a to b and from b to a
ORDER = {"adversarial": "ba", "cycle": "ab", "same": "ba"}
TRANSLATORS, JUDGES = ("g_ab", "g_ba"), ("d_a", "d_b")


def _check(m, info: core.Info) -> tuple[int, int, int]:
  """Returns the shape of an image of either domain."""
  if set(info.shape) != {"a", "b"}:
    raise ValueError(
      f"cyclegan is for images of two domains a and b, these have {', '.join(info.shape)}: set"
      " --config.data.source=domains"
    )
  flags.within(m, "g_base", "d_widths", least=1)
  flags.within(m, "num_blocks", "num_halvings", "pool_size", least=0)
  flags.within(m, "jitter", least=0, most=max(info.shape["a"][:2]))
  flags.within(m, "cycle", "same", least=0.0)
  flags.within(m, "flip", "b1", least=0.0, below=1.0)
  flags.within(m, "constant", least=0.0, most=1.0)
  flags.within(m, "d_padding", least=1, most=2)
  flags.choice(m, "loss", tuple(LOSSES))
  flags.choice(m, "pad", translator.PADS)
  flags.choice(m, "norm", translator.NORMS)
  translator.check(info.shape["a"], m.num_halvings)
  for side in info.shape["a"][:2]:
    patch.grid(side, len(m.d_widths), m.d_padding)
  return info.shape["a"]


def stages(config, info: core.Info) -> list[core.Stage]:
  """Returns the one stage of a CycleGAN for two domains of images of one shape.

  Raises:
    ValueError: for a name or a number that is not possible, or data of another kind.
  """
  m, dtype = config.model, config.compute_dtype
  shape = _check(m, info)
  g = translator.Translator(
    *(shape[2], m.g_base, m.num_blocks, m.num_halvings, m.pad, m.norm, m.affine, m.skip),
    dtype=dtype,
  )
  d = patch.PatchDiscriminator(m.d_widths, m.norm, m.affine, m.d_padding, dtype=dtype)
  rate = optim.linear(config.lr, config.num_steps, start=int(m.constant * config.num_steps))
  tx = optim.adam(rate, b1=m.b1)
  loss_d, loss_g = LOSSES[m.loss]

  def together(net, params, x):
    """What a network makes of each of several batches, in one pass: no image sees another."""
    rows = jnp.stack(x, axis=1)  # interleaved: the batch may be sharded
    out = net.apply({"params": params}, rows.reshape(-1, *rows.shape[2:]))
    out = jnp.moveaxis(out.reshape(*rows.shape[:2], *out.shape[1:]), 1, 0)
    return out if len(x) > 1 else out[0]

  def G(params, *x):
    return together(g, params, x)

  def D(params, *x):
    return together(d, params, x)

  def distance(x, y):
    return jnp.mean(jnp.abs(x - y))

  def translate(p, batch):  # what `sample` gives: each domain made of the other
    return {"a": G(p["g_ba"], batch["b"]), "b": G(p["g_ab"], batch["a"])}

  def each_way(function, p, x):
    """What function(to, back, judge, x, y) gives from a to b and from b to a, stacked."""
    there = function(p["g_ab"], p["g_ba"], p["d_b"], x["a"], x["b"])
    back = function(p["g_ba"], p["g_ab"], p["d_a"], x["b"], x["a"])
    return jax.tree.map(lambda *x: jnp.stack(x), there, back)

  def init(key, batch, prev):
    k = core.keys(key, *TRANSLATORS, *JUDGES)
    nets = dict.fromkeys(TRANSLATORS, g) | dict.fromkeys(JUDGES, d)
    params = {n: core.build(net, getattr(k, n), batch["a"][:1])[0] for n, net in nets.items()}
    return core.State(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt={"+".join(names): core.init_slot(tx, params, names) for names in (TRANSLATORS, JUDGES)},
      extra={"pool": {n: pool.start(m.pool_size, shape) for n in "ab"}} if m.pool_size else {},
    )

  def seen(x, key):
    k = core.keys(key, "jitter", "flip")
    return augment.flip(k.flip, augment.jitter(k.jitter, x, m.jitter), p=m.flip)

  def g_loss(p, x):
    def way(to, back, judge, x, y):
      fake, same = G(to, x, y) if m.same else (G(to, x), None)
      found = {
        "adversarial": loss_g(D(judge, fake)),
        "cycle": distance(G(back, fake), x),
        "same": distance(same, y) if m.same else jnp.zeros(()),
      }
      return found, fake if config.accumulate == 1 else None  # else of a part of the batch alone

    terms, fake = each_way(way, p, x)
    loss = terms["adversarial"] + m.cycle * (terms["cycle"] + m.same * terms["same"])
    found = {f"{n}_{of}": terms[n][i] for n, order in ORDER.items() for i, of in enumerate(order)}
    return loss.sum(), ({}, {**found, "fake": fake})

  def d_loss(p, x):
    def way(to, back, judge, _, real):
      y, old = real
      return loss_d(*D(judge, y, old))

    real = {n: (x[n], x[f"old_{n}"]) for n in "ab"}
    losses_of = each_way(way, p, real)
    return losses_of.sum(), ({}, {"d_b": losses_of[0], "d_a": losses_of[1]})

  def step(state, batch, key):
    k = core.keys(key, "a", "b", "pool_a", "pool_b")
    x = {"a": seen(batch["a"], k.a), "b": seen(batch["b"], k.b)}
    before, how = state.params, {"accumulate": config.accumulate}
    state, found = core.minimize(state, tx, g_loss, TRANSLATORS, x, **how)
    made = found.pop("fake")
    fake = {"b": made[0], "a": made[1]} if config.accumulate == 1 else translate(before, x)
    if m.pool_size:
      pools, old = state.extra["pool"], {}
      for n, key in (("a", k.pool_a), ("b", k.pool_b)):
        kept, old[n] = pool.query(pools[n], fake[n], key)
        pools = {**pools, n: kept}
      state, fake = state.replace(extra={"pool": pools}), old
    x |= {f"old_{n}": fake[n] for n in "ab"}
    state, found_d = core.minimize(state, tx, d_loss, JUDGES, x, **how)
    return state.replace(step=state.step + 1), {**found, **found_d}

  def sample(state, batch, key):
    return translate(state.params, batch)

  def evaluate(state, batch, key):
    cycle = each_way(
      lambda to, back, judge, x, y: distance(G(back, G(to, x)), x), state.params, batch
    )
    return {"cycle_a": cycle[0], "cycle_b": cycle[1]}

  def show(state, batch, key):
    """Rows of an image, its translation, that translated back and, if known, the true one."""

    def way(to, back, judge, x, y):
      fake = G(to, x)
      return jnp.stack([x, fake, G(back, fake), y][: 4 if info.aligned else 3], axis=1)

    rows = each_way(way, state.params, {n: batch[n][:12] for n in "ab"})
    return {"a_to_b": rows[0], "b_to_a": rows[1]}

  train = core.Stage("train", config.num_steps, init, step, sample, evaluate, show)
  return [train._replace(multiple=2**m.num_halvings)]
