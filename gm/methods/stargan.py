"""StarGAN. Choi et al., CVPR 2018, arXiv:1711.09020.

Idea: one network G turns an image into any of several domains: it is given the image and the labels
that the result shall have. D tells real patches from made ones, and reads the labels. What is made
must read as it was asked for, and given the true labels again become the image that it was.
Objective, with a the labels of x, c those of another image of the batch, x' = G(x, c):
  D: mean D(x') - mean D(x) + cls CLS(D(x), a) + gp mean (|grad sum D(x^)|_2 - 1)^2
  G: -mean D(x') + cls CLS(D(x'), c) + rec mean |x - G(x', a)| [+ same mean |x - G(x, a)|]
x^ = t x + (1 - t) x', t ~ U(0, 1) for each image; D's scores are means over patches but for the
penalty, where they are summed. CLS: the cross-entropies of all labels, summed (labels=binary), or
the one of a choice (one_hot); means over the batch. D reads labels of real images alone. G moves
once in num_critic iterations, on the last images that D has moved on.
The labels are joined with every pixel. A constant is what instance norms take away, so they reach G
by what lies beyond the borders: zeros. Borders that are reflected would hide them from it.
Departures: num_steps counts the moves of G, the paper's iterations are num_critic times as many;
the rate falls in every iteration, to 0 at the end; that of the authors' code nearly stays, by what
looks like an oversight (decay=literal). One data set, so no mask vector. `small` asks too that an
image stays that is given its own labels (same), as CycleGAN does: the way back alone brings that
about late. Labels of an image of one's own are those that D reads.
Run: python main.py --config=configs/stargan.py --workdir=/tmp/stargan
  7.9 minutes of processor time; changes 78 % of what is asked for, see configs/stargan.py
Then: python main.py --workdir=/tmp/stargan --mode=sample --input=FILE_OR_FOLDER
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from gm import augment, columns, core, flags, losses, optim, regularizers
from gm.nets import stargan, translator
from gm.nn import embed

EVERY = 1_000  # iterations after which the authors' code lowers the rate


def literal(lr: float, num_iterations: int, *, start: int) -> optax.Schedule:
  """The rate of the authors' code, which nearly stays.

  From `start` on it falls by lr / (num_iterations - start), which is right for each iteration, but
  does so once in a thousand.

  >>> [round(float(literal(1e-4, 200_000, start=100_000)(t)) * 1e4, 5) for t in (0, 150_000)]
  [1.0, 0.9995]
  """

  def rate(count):
    times = jnp.maximum(count - start, 0) // EVERY
    return lr * (1 - times / max(num_iterations - start, 1))

  return rate


RATES = {"linear": optim.linear, "literal": literal}


def _check(m, info: core.Info) -> tuple[int, int, int]:
  """Returns the shape of an image."""
  flags.leaf(info, "image")
  columns.require(info.columns, "stargan")
  flags.within(m, "g_base", "num_halvings", "d_widths", "num_critic", least=1)
  flags.within(m, "num_blocks", least=0)
  flags.within(m, "cls", "rec", "same", "gp", least=0.0)
  flags.within(m, "b1", "b2", least=0.0, below=1.0)
  flags.within(m, "flip", "constant", least=0.0, most=1.0)
  flags.choice(m, "norm", translator.NORMS)
  flags.choice(m, "labels", ("binary", "one_hot"))
  flags.choice(m, "decay", tuple(RATES))
  shape = info.shape["image"]
  translator.check(shape, m.num_halvings)
  stargan.check(shape, m.d_widths)
  num = len(info.columns)
  if m.labels == "one_hot" and columns.alternatives(info.columns).sum() < num * (num - 1):
    raise ValueError(
      f"--config.model.labels='one_hot' is for one attribute of several values, the columns are"
      f" {', '.join(info.columns)}: set --config.data.attributes to one name, or labels to 'binary'"
    )
  return shape


def stages(config, info: core.Info) -> list[core.Stage]:
  """Returns the one stage of a StarGAN for images with attributes.

  Raises:
    ValueError: for a name or a number that is not possible, or data without attributes.
  """
  m, dtype = config.model, config.compute_dtype
  shape, names = _check(m, info), info.columns
  g = translator.Translator(
    *(shape[2], m.g_base, m.num_blocks, m.num_halvings),
    norm=m.norm,
    dtype=dtype,
    **translator.STARGAN,
  )
  d = stargan.Discriminator(m.d_widths, len(names), dtype=dtype)
  iterations = config.num_steps * m.num_critic
  rate = RATES[m.decay](config.lr, iterations, start=int(m.constant * iterations))
  tx = {
    "d": optim.adam(rate, b1=m.b1, b2=m.b2),
    "g": optim.adam(lambda i: rate(m.num_critic * (i + 1) - 1), b1=m.b1, b2=m.b2),
  }

  def G(params, x, c):  # images, labels of 0 and 1 [B, A] -> images
    return g.apply({"params": params}, embed.tiled(x, c))

  def D(params, x):  # -> scores of patches [B, h, w], logits of labels [B, A]
    return d.apply({"params": params}, x)

  def cls(logits, labels):
    if m.labels == "one_hot":
      return optax.softmax_cross_entropy(logits, labels).mean()
    return optax.sigmoid_binary_cross_entropy(logits, labels).sum(-1).mean()

  def read(logits):  # -> labels of 0 and 1
    if m.labels == "one_hot":
      return jax.nn.one_hot(logits.argmax(-1), len(names))
    return (logits > 0).astype(jnp.float32)

  def distance(x, y):
    return jnp.mean(jnp.abs(x - y))

  def init(key, batch, prev):
    k = core.keys(key, "g", "d")
    x, a = batch["image"][:1], batch["attributes"][:1]
    params = {"g": core.build(g, k.g, embed.tiled(x, a))[0], "d": core.build(d, k.d, x)[0]}
    return core.State(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt={n: core.init_slot(tx[n], params, [n]) for n in ("g", "d")},
    )

  def d_loss(p, b):  # moves d only; G is a constant here
    fake = G(p["g"], b["image"], b["target"])
    (real_scores, logits), (fake_scores, _) = D(p["d"], b["image"]), D(p["d"], fake)
    between = regularizers.interpolate(b["between"], b["image"], fake)
    found = {
      "w_estimate": -losses.wasserstein_d(real_scores, fake_scores),
      "cls_real": cls(logits, b["labels"]),
      "penalty": regularizers.gradient_penalty(lambda x: D(p["d"], x)[0], between),
    }
    loss = -found["w_estimate"] + m.cls * found["cls_real"] + m.gp * found["penalty"]
    return loss, ({}, found)

  def g_loss(p, b):  # moves g only, which both makes the image and takes it back
    fake = G(p["g"], b["image"], b["target"])
    scores, logits = D(p["d"], fake)
    found = {
      "adversarial": losses.wasserstein_g(scores),
      "cls_fake": cls(logits, b["target"]),
      "rec": distance(b["image"], G(p["g"], fake, b["labels"])),
    }
    loss = found["adversarial"] + m.cls * found["cls_fake"] + m.rec * found["rec"]
    if m.same:
      found["same"] = distance(b["image"], G(p["g"], b["image"], b["labels"]))
      loss += m.same * found["same"]
    return loss, ({}, found)

  def step(state, batch, key):
    k = core.keys(key, "flip", "target", "between")
    x, how = augment.flip(k.flip, batch["image"], p=m.flip), {"accumulate": config.accumulate}
    given = {"image": x, "labels": batch["attributes"]}
    given |= {"target": k.target, "between": k.between}
    parts = core.split_batch(given, m.num_critic)  # [num_critic, B, ...], a key for each
    parts["target"] = jax.vmap(jax.random.permutation)(parts["target"], parts["labels"])

    def iteration(state, part):
      return core.minimize(state, tx["d"], d_loss, ["d"], part, **how)

    state, found = jax.lax.scan(iteration, state, parts)
    last = {n: parts[n][-1] for n in ("image", "labels", "target")}
    state, more = core.minimize(state, tx["g"], g_loss, ["g"], last, **how)
    found = {k: v[-1] for k, v in found.items()}  # of the last iteration
    return state.replace(step=state.step + 1), {**found, **more}

  def sample(state, batch, key):
    """One attribute of each image changed: the one that is drawn, or `target`."""
    x, a = batch["image"], batch["attributes"]
    column = batch.get("target", jax.random.randint(key, (len(x),), 0, len(names)))
    made = G(state.params["g"], x, columns.change(a, column, names))
    known = {f"data_{n}": batch[n] for n in ("attributes", "drawn") if n in batch}
    return {"image": made, "original": x, "column": column, **known}

  def edit(state, x, wanted):
    a = read(D(state.params["d"], x)[1])
    return G(state.params["g"], x, jnp.where(jnp.isnan(wanted), a, (wanted + 1) / 2))

  def evaluate(state, batch, key):
    x, a, c = batch["image"], batch["attributes"], jax.random.permutation(key, batch["attributes"])
    fake = G(state.params["g"], x, c)
    right = lambda x, labels: jnp.mean(read(D(state.params["d"], x)[1]) == labels)
    back = G(state.params["g"], fake, a)
    return {"rec": distance(x, back), "reads_real": right(x, a), "reads_fake": right(fake, c)}

  def show(state, batch, key):
    """Rows of an image and what it becomes in each domain."""
    x, a = batch["image"][:12], batch["attributes"][:12]

    def domain(i):
      c = columns.change(a, jnp.full(len(x), i), names)
      return G(state.params["g"], x, c)

    return {"domains": jnp.stack([x, *map(domain, range(len(names)))], axis=1)}

  one_step = {"batch_size": config.batch_size * m.num_critic}
  train = core.Stage("train", config.num_steps, init, step, sample, evaluate, show, one_step)
  return [train._replace(edit=edit)]
