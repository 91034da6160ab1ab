"""InfoGAN. Chen et al., NIPS 2016, arXiv:1606.03657.

Idea: part of G's input is a code c: a category and numbers. A head Q on D's trunk reads c back from
G(z, c), and G helps it to. So c must show in the image, and without a label it comes to mean what
images differ in most: which digit, how slanted, how wide.
Objective, in logits s = logit D, softplus(s) = log(1 + e^s), I = sum over codes of weight * I_c:
  D and Q:  E softplus(-s(x)) + E softplus(s(G(z, c))) - I      moves trunk, head d and head q
  G:        E softplus(-s(G(z, c))) - I                         moves g alone, on new z and c
  I_c = E log Q(c | G(z, c)) - E log p(c), a lower bound of the mutual information of c and G(z, c)
Q(c|x) is a softmax for the category, N(mean(x), 1) for a number (model.fix_std). info_category is
at most the log of the number of categories. info_numbers puts N(0, 1) for p(c) as the authors' code
does, though c is uniform on [-1, 1]: 0 where Q says N(0, 1) and, with fix_std, at most 1/6 for each
number.
`plain` is the control: Q learns from a trunk that it does not move, and G does not hear of it.
Departures: the authors' code puts 1e-8 inside its logarithms and normalises samples by the batch
that it draws (model.bn_mode), its leaky units have slope 0.01, the paper's 0.1 (model.slope). The
paper lets Q move with G as well (model.q_player). They train on 55,000 images of MNIST, here on all
60,000. `small` is a narrower network with averaged weights, other rates and a tenth of the weight:
with all of it G tells the categories apart within a few hundred steps, by blobs, which then become
digits as they may. What its D sees is noisy at first (model.d_noise, after Sonderby et al., 2016,
arXiv:1610.04490): else D tells samples from data before G has learnt anything, and in some seeds G
never recovers.
Run: python main.py --config=configs/infogan.py --workdir=/tmp/infogan
  4 minutes on 2 cores; a category is one digit for 78 to 88 % of its samples
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from gm import augment, core, diagnostics, flags, losses, optim
from gm.nets import infogan, mlp
from gm.probability import likelihood

SWEEP = 2.0  # the paper draws a number from -2 to 2, where training stops at 1


def bound(
  out: jax.Array, code: jax.Array, num_categories: int, *, fix_std: bool = True
) -> tuple[jax.Array, jax.Array]:
  """The bound of every example, I_c = log Q(c|x) - log p(c), for the category and for the numbers.

  Args:
    out: Q's outputs [B, K + 2 N]: logits of K categories, then mean and log-variance of each of N
      numbers.
    code: [B, K + N]: the category as a one-hot, then the numbers.
    num_categories: K.
    fix_std: Q's deviation of the numbers is 1 and its log-variances are not read.

  Returns:
    log K + log Q(category), and the sum over numbers of log N(c; mean, std) - log N(c; 0, 1); both
    [B], nats.

  Source: Chen et al., 2016, arXiv:1606.03657, section 5, and their code for the constants.

  >>> category, numbers = bound(jnp.zeros((1, 4)), jnp.array([[1.0, 0.0, 0.5]]), 2)
  >>> float(category[0]), float(numbers[0])  # Q knows nothing
  (0.0, 0.0)
  """
  one_hot, numbers = code[:, :num_categories], code[:, num_categories:]
  log_q = jnp.sum(one_hot * jax.nn.log_softmax(out[:, :num_categories]), axis=1)
  mean, log_var = out[:, num_categories::2], out[:, num_categories + 1 :: 2]
  log_std = jnp.zeros_like(log_var) if fix_std else 0.5 * log_var
  density = likelihood.gaussian_log_prob(numbers, mean, log_std, event_ndim=1)
  return (
    math.log(num_categories) + log_q,
    density - likelihood.standard_normal_log_prob(numbers, event_ndim=1),
  )


def networks(m, shape: tuple[int, ...], dtype: str) -> dict[str, nn.Module]:
  """Returns G, the trunk and the heads d and q of a variant, for images (H, W, C) or points (D,).

  Raises:
    ValueError: for unknown model.nets, or convolutions of what is no image or one too small.
  """
  num_outputs, image = m.num_categories + 2 * m.num_numbers, len(shape) == 3
  if flags.choice(m, "nets", ("conv", "mlp")) == "mlp":
    plain = {"kernel_init": nn.initializers.lecun_normal(), "dtype": dtype}
    output = "sigmoid" if image else "none"
    return {
      "g": mlp.Generator(shape, m.widths, activation="leaky_relu", output=output, **plain),
      "trunk": infogan.FlatTrunk(m.widths, slope=m.slope, dtype=dtype),
      "d": infogan.Head(**plain),
      "q": infogan.Head(num_outputs, **plain),
    }
  if not image:
    raise ValueError("convolutions take images, the data are points: set --config.model.nets=mlp")
  if not infogan.depth(shape[:2], m.start):
    raise ValueError(
      f"images of {shape[0]}x{shape[1]} pixels are no larger than the first map: set"
      f" --config.model.start={m.start} to half their short side or less"
    )
  return {
    "g": infogan.Generator(shape, base=m.g_base, hidden=m.g_hidden, start=m.start, dtype=dtype),
    "trunk": infogan.Trunk(m.d_base, m.d_hidden, m.start, slope=m.slope, dtype=dtype),
    "d": infogan.Head(dtype=dtype),
    "q": infogan.Head(num_outputs, hidden=m.q_hidden, slope=m.slope, dtype=dtype),
  }


def stages(config, info: core.Info) -> list[core.Stage]:
  """Returns the one stage of an InfoGAN for images or points.

  Raises:
    ValueError: for a name or a number that is not possible, or networks that do not fit the data.
  """
  m, data = config.model, flags.leaf(info, "image", "point")
  flags.within(m, "num_categories", least=2)  # one tells nothing
  flags.within(m, "noise_dim", "num_numbers", "q_hidden", least=0)
  flags.within(m, "g_hidden", "g_base", "d_hidden", "d_base", "start", least=1)
  flags.within(m, "widths", least=1, empty=True)
  flags.within(m, "d_noise_steps", least=1, most=flags.MOST_STEPS)
  flags.within(m, "d_noise", "category_weight", "number_weight", "slope", least=0.0)
  flags.within(m, "g_lr", above=0.0)
  flags.within(m, "b1", "ema", least=0.0, below=1.0)
  augment.require(m.augment, info.shape[data])
  nets = networks(m, info.shape[data], config.compute_dtype)
  batch_statistics = flags.choice(m, "bn_mode", ("running", "batch")) == "batch"
  q_with_d = flags.choice(m, "q_player", ("d", "g")) == "d"
  d_names = ["trunk", "d", "q"] if q_with_d else ["trunk", "d"]
  g_names = ["g"] if q_with_d else ["g", "q"]
  tx = {
    "d": optim.adam(config.lr, b1=m.b1),
    "g": optim.adam(config.lr * m.g_lr, b1=m.b1),
  }
  num_codes = m.num_categories + m.num_numbers
  unit = data == "image"  # G's pixels and D's lie in [0, 1], the data's in [-1, 1]

  def latent(key, n):  # -> [noise | one-hot | numbers], [n, Z]
    k = core.keys(key, "noise", "category", "numbers")
    noise = jax.random.uniform(k.noise, (n, m.noise_dim), minval=-1.0)
    category = jax.random.randint(k.category, (n,), 0, m.num_categories)
    numbers = jax.random.uniform(k.numbers, (n, m.num_numbers), minval=-1.0)
    return jnp.concatenate([noise, jax.nn.one_hot(category, m.num_categories), numbers], axis=1)

  def G(params, stats, z, train=True):  # -> what the trunk sees, and G's statistics
    return core.apply(nets["g"], params["g"], stats["g"], z, train=train)

  def read(params, stats, x, *, with_q=True, train=True):
    """Logits of D [B], Q's outputs or None, and the statistics after this pass."""
    h, trunk = core.apply(nets["trunk"], params["trunk"], stats["trunk"], x, train=train)
    logits, _ = core.apply(nets["d"], params["d"], stats["d"], h, train=train)
    stats = {**stats, "trunk": trunk}
    if not with_q:
      return logits[:, 0], None, stats
    seen = jax.lax.stop_gradient(h) if m.plain else h
    out, q = core.apply(nets["q"], params["q"], stats["q"], seen, train=train)
    return logits[:, 0], out, {**stats, "q": q}

  def information(out, z):  # the weighted sum that the players raise, and its parts
    code = z[:, -num_codes:]
    category, numbers = bound(out, code, m.num_categories, fix_std=m.fix_std)
    found = {"info_category": category.mean(), "info_numbers": numbers.mean()}
    weighted = m.category_weight * found["info_category"]
    return weighted + m.number_weight * found["info_numbers"], found

  def init(key, batch, prev):
    k = core.keys(key, "g", "trunk", "d", "q")
    params, stats = {}, {}
    z = jnp.zeros((2, m.noise_dim + num_codes))
    params["g"], stats["g"] = core.build(nets["g"], k.g, z)
    params["trunk"], stats["trunk"] = core.build(nets["trunk"], k.trunk, batch[data][:2])
    h, _ = core.apply(nets["trunk"], params["trunk"], stats["trunk"], batch[data][:2])
    params["d"], stats["d"] = core.build(nets["d"], k.d, h)
    params["q"], stats["q"] = core.build(nets["q"], k.q, h)
    return core.State(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt={
        "d": core.init_slot(tx["d"], params, d_names),
        "g": core.init_slot(tx["g"], params, g_names),
      },
      stats=stats,
      ema={"g": params["g"], "g_stats": stats["g"]},
    )

  def step(state, batch, key):
    k = core.keys(key, "d", "g", "noise", "see")
    d_noise = m.d_noise * jnp.maximum(0.0, 1 - state.step / m.d_noise_steps)
    x = (batch[data] + 1) / 2 if unit else batch[data]

    def view(b, i, x):  # what D and Q see; augmentations are of images in [-1, 1]
      if m.d_noise:
        x = x + d_noise * jax.random.normal(jax.random.fold_in(b["noise"], i), x.shape)
      see = augment.views(b["see"], m.augment)
      return (see(i, 2 * x - 1) + 1) / 2 if m.augment and unit else x

    def d_loss(p, b):  # moves trunk, d and q; G is a constant, and Q reads only the fakes
      fake, _ = G(state.params, state.stats, b["z"])
      real_logits, _, stats = read(p, state.stats, view(b, 0, b["x"]), with_q=False)
      fake_logits, out, stats = read(p, stats, view(b, 1, fake))
      gain, found = information(out, b["z"])
      loss = losses.bce_d(real_logits, fake_logits) - (gain if q_with_d else 0.0)
      return loss, (stats, {**diagnostics.discriminator_stats(real_logits, fake_logits), **found})

    def g_loss(p, b):  # moves g on other fakes, through the trunk and q that have just moved
      fake, stats = G(p, state.stats, b["z"])
      logits, out, _ = read(p, state.stats, view(b, 2, fake))
      gain, _ = information(out, b["z"])
      return losses.nonsaturating_g(logits) - gain, ({"g": stats}, {})

    n, chance = config.accumulate, {"noise": k.noise, "see": k.see}
    parts = {"x": x, "z": latent(k.d, len(x)), **chance}
    state, found = core.minimize(state, tx["d"], d_loss, d_names, parts, slot="d", accumulate=n)
    parts = {"z": latent(k.g, len(x)), **chance}
    state, more = core.minimize(state, tx["g"], g_loss, g_names, parts, slot="g", accumulate=n)
    ema = core.ema(state.ema, {"g": state.params["g"], "g_stats": state.stats["g"]}, m.ema)
    return state.replace(step=state.step + 1, ema=ema), {**found, **more}

  def generate(state, z):
    x = G(state.ema, {"g": state.ema["g_stats"]}, z, train=batch_statistics)[0]
    return 2 * x - 1 if unit else x

  def ask(state, x):  # Q's outputs on data or samples
    x = (x + 1) / 2 if unit else x
    return read(state.params, state.stats, x, train=False)[1]

  def with_category(z, category):  # [n, Z], [n]: another one in the place of z's
    one_hot = jax.nn.one_hot(category, m.num_categories)
    return z.at[:, m.noise_dim : m.noise_dim + m.num_categories].set(one_hot)

  def asked(batch, key):
    """The z of samples: 8 in a row share a category, a row of the picture."""
    k, n = core.keys(key, "z", "first"), len(batch[data])
    first = jax.random.randint(k.first, (), 0, m.num_categories)  # drawn, so all are as likely
    category = (first + jnp.arange(n) // 8) % m.num_categories
    return with_category(latent(k.z, n), category)

  def render(state, z, batch):
    one_hot = z[:, m.noise_dim : m.noise_dim + m.num_categories]
    found = {data: generate(state, z), "category": one_hot.argmax(1).astype(jnp.int32)}
    if "label" in batch:  # what Q, which never saw a label, makes of the data
      seen = ask(state, batch[data])[:, : m.num_categories].argmax(1).astype(jnp.int32)
      found |= {"data_category": seen, "data_label": batch["label"]}
    return found

  def sample(state, batch, key):
    return render(state, asked(batch, key), batch)

  def evaluate(state, batch, key):
    z = latent(key, len(batch[data]))
    return information(ask(state, generate(state, z)), z)[1]

  def show(state, batch, key):
    if data != "image":
      found = sample(state, batch, key)
      plane = info.shape[data] == (2,)
      return {"codes": {"points": found[data], "label": found["category"]}} if plane else {}

    def paint(z):  # of 10 columns
      return generate(state, z).reshape(-1, 10, *info.shape[data])

    num = m.num_categories
    z = latent(key, 10)  # of the columns; down the rows one code changes
    every = jnp.repeat(jnp.arange(num), 10)
    found = {"categories": paint(with_category(jnp.tile(z, (num, 1)), every))}
    z = jnp.tile(with_category(z, jnp.arange(10) % num), (10, 1))  # another digit in each column
    sweep = jnp.repeat(jnp.linspace(-SWEEP, SWEEP, 10), 10)
    for i in range(m.num_numbers):
      found[f"number_{i}"] = paint(z.at[:, m.noise_dim + num + i].set(sweep))
    return found

  train = core.Stage("train", config.num_steps, init, step, sample, evaluate, show)
  return [train._replace(latent=asked, generate=render, straight=True)]
