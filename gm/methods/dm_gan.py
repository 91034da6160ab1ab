"""DM-GAN. Zhu, Pan, Chen, Yang, Dynamic Memory GAN, CVPR 2019, arXiv:1904.01310.

Idea: a caption becomes a rough small picture, then twice a finer one. Before each refinement the
words are written into a memory, more or less of each as the picture so far needs it, and every
pixel reads there what concerns it. Two encoders, trained before on the same set, say how well a
picture fits its words and its sentence (DAMSM, of AttnGAN).
Objective, for images x, captions s, samples x' = G(z, s), pictures x_i at each size, D = sigmoid:
  matching: L_m = L_w0 + L_w1 + L_s0 + L_s1: in a batch, which caption is whose image and the other
    way round, by words and regions and by sentence and whole image; `matching.matching`
  D: sum_i [-log D_i(x_i) - log D_i(x_i, s)] / 2
           + [-log(1 - D_i(x'_i)) - log(1 - D_i(x'_i, s)) - log(1 - D_i(x_i, other s))] / 3
  G: sum_i [-log D_i(x'_i) - log D_i(x'_i, s)] + matching_weight L_m(x', s) + KL / condition
KL is that of the condition c ~ N(mean(s), exp(log_var(s))) from N(0, I). G moves on the fakes that
D has just seen, against the D that has just moved; the encoders are held fixed and pass gradients.
Departures: words of padding are masked for their own sample (the authors' code mixes the masks of a
batch); the wrong caption is that of the next image, the last one's the first (there the last has
none); captions of the same words are no negatives (there images of one class are none); u of
spectral normalisation moves once in D's step, in no other; biases start at 0; Adam goes on over the
epochs of matching (there it begins anew with each); smaller pictures of data are means of blocks.
Averages of batch norms are averaged as G's weights are. `inception` has no weights from ImageNet
here: all of it is trained in the first stage. `small` has an encoder of three convolutions.
Run: python main.py --config=configs/dm_gan.py --workdir=/tmp/dm_gan
  about 7 minutes of processor time; 67 to 71 % of what captions say is seen in samples, chance 32 %
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from gm import augment, core, diagnostics, flags, matching, optim
from gm.nets import dm_gan
from gm.nets import matching as encoders
from gm.nn import resample, spectral
from gm.probability import likelihood


def _check(config, info: core.Info) -> None:
  m, steps = config.model, {"least": 0, "most": flags.MOST_STEPS}
  flags.within(m, "embed", "widths", "g_base", "d_base", "z_dim", "condition", least=1)
  flags.within(m, "features", "num_captions", least=2)
  flags.within(m, "num_refine", "num_blocks", least=0, most=2**8)
  flags.within(m, "matching_steps", "matching_batch_size", **steps)
  flags.within(m, "matching_decay_every", least=1, most=flags.MOST_STEPS)
  flags.within(m, "matching_lr", "text_clip", above=0.0)
  flags.within(m, "gammas", above=0.0, length=3)
  flags.within(m, "matching_weight", least=0.0)
  flags.within(m, "dropout", "b1", "ema", least=0.0, below=1.0)
  augment.require(m.augment, info.shape["image"])
  if m.features % 2:
    raise ValueError(
      f"--config.model.features={m.features} must be even: half are of either direction"
    )
  if config.batch_size < 2 * config.accumulate:
    raise ValueError(
      f"--config.batch_size={config.batch_size} in --config.accumulate={config.accumulate} parts"
      " leaves an image alone, without a wrong caption: give each part two or more"
    )


def stages(config, info: core.Info) -> list[core.Stage]:
  """Returns the stages `matching` and `train`.

  Raises:
    ValueError: for data without captions, a name or a number that is not possible, or images of a
      size that doublings do not lead to.
  """
  m, dtype = config.model, config.compute_dtype
  shape = info.shape[flags.leaf(info, "image")]
  if "tokens" not in info.shape:
    raise ValueError("dm_gan needs captions: set --config.data.text_key, and data that have them")
  _check(config, info)
  dm_gan.halvings(shape, m.num_refine)
  t = encoders.TextEncoder(info.vocab_size, m.features, m.embed, m.dropout, dtype)
  if flags.choice(m, "image_encoder", ("convolutions", "inception")) == "inception":
    c: nn.Module = encoders.InceptionEncoder(m.features, dtype)
  else:
    c = encoders.ImageEncoder(m.features, m.widths, dtype)
  g = dm_gan.Generator(shape, m.g_base, m.condition, m.num_refine, m.num_blocks, dtype)
  d = spectral.SpectralNorm(dm_gan.Discriminators(m.d_base, dtype), skip=dm_gan.LOGITS)
  rate = optim.staircase(m.matching_lr, 0.98, m.matching_decay_every, floor=m.matching_lr / 10)
  encoder = optim.adam(rate, b1=m.b1)
  clipped = optax.chain(optax.clip_by_global_norm(m.text_clip), encoder)
  tx_matching = optax.multi_transform({"t": clipped, "c": encoder}, {"t": "t", "c": "c"})
  tx = {n: optim.adam(config.lr, b1=m.b1) for n in ("g", "d")}

  def fit(regions, whole, text, tokens):  # L_m
    args = (regions, whole, *text, matching.same_text(tokens))
    return matching.matching(*args, gammas=m.gammas)

  def conclude(found, key):
    codes = (found[n] for n in ("whole", "sentence", "tokens"))
    return {"r_precision": matching.r_precision(*codes, key, num=m.num_captions)}

  # ------------------------------------------------------------------------------------- matching

  def init_matching(key, batch, prev):
    k = core.keys(key, "t", "c")
    params, stats = {}, {}
    params["t"], _ = core.build(t, k.t, batch["tokens"][:2], train=False)
    params["c"], stats["c"] = core.build(c, k.c, batch["image"][:2])
    opt = {"t+c": core.init_slot(tx_matching, params, ["t", "c"])}
    return core.State(step=jnp.zeros((), jnp.int32), params=params, opt=opt, stats=stats)

  def step_matching(state, batch, key):
    def loss(p, b):  # moves t and c
      drop = {"dropout": b["drop"]}
      text, _ = core.apply(t, p["t"], {}, b["tokens"], rngs=drop)
      (regions, whole), stats = core.apply(c, p["c"], state.stats["c"], b["image"])
      return fit(regions, whole, text, b["tokens"]), ({"c": stats}, {})

    batch = {"image": batch["image"], "tokens": batch["tokens"], "drop": key}
    state, found = core.minimize(
      state, tx_matching, loss, ["t", "c"], batch, accumulate=config.accumulate
    )
    return state.replace(step=state.step + 1), found

  def read(params, tokens):  # -> encoders.Text
    return t.apply({"params": params["t"]}, tokens, train=False)

  def codes(params, stats, batch, image):
    text = read(params, batch["tokens"])
    (_, whole), _ = core.apply(c, params["c"], stats, image, train=False)
    return {"whole": whole, "sentence": text.sentence, "tokens": batch["tokens"]}

  def evaluate_matching(state, batch, key):
    return codes(state.params, state.stats["c"], batch, batch["image"])

  def retrieve(state, batch, key):
    """For each caption of the batch, the image of it that fits best."""
    found = evaluate_matching(state, batch, key)
    best = matching.cosine(found["sentence"][:, None], found["whole"]).argmax(1)
    return {"image": batch["image"][best]}

  # -------------------------------------------------------------------------------------- the game

  def latent(batch, key):
    k, n = core.keys(key, "z", "eps"), len(batch["tokens"])
    return {
      "z": jax.random.normal(k.z, (n, m.z_dim)),
      "eps": jax.random.normal(k.eps, (n, m.condition)),
    }

  def init(key, batch, prev):
    k = core.keys(key, "g", "d", "latent")
    extra = {"t": prev.params["t"], "c": prev.params["c"], "c_stats": prev.stats["c"]}
    some = {name: x[:2] for name, x in batch.items()}
    text = read(extra, some["tokens"])
    noise, params, stats = latent(some, k.latent), {}, {}
    params["g"], stats["g"] = core.build(g, k.g, noise["z"], noise["eps"], *text)
    pictures = dm_gan.scales(some["image"], m.num_refine)
    params["d"], stats["d"] = core.build(d, k.d, pictures, text.sentence)
    return core.State(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt={n: core.init_slot(tx[n], params, [n]) for n in ("g", "d")},
      stats=stats,
      ema={"g": params["g"], "g_stats": stats["g"]},
      extra=extra,
    )

  def step(state, batch, key):
    k = core.keys(key, "latent", "see")

    def generate(p, b):
      noise, text = b["noise"], b["text"]
      drawn, stats = core.apply(g, p["g"], state.stats["g"], noise["z"], noise["eps"], *text)
      return drawn, {"g": stats}

    def d_loss(p, b, fake):  # moves d only
      see = augment.views(b["see"], m.augment)  # what D sees of images
      sentence = b["text"].sentence
      real = dm_gan.scales(b["image"], m.num_refine)
      both = [
        jnp.concatenate([see(3 * i, x), see(3 * i + 1, y)])
        for i, (x, y) in enumerate(zip(real, fake.images))
      ]
      twice, wrong = jnp.concatenate([sentence, sentence]), jnp.roll(sentence, -1, axis=0)
      said, stats = core.apply(d, p["d"], state.stats["d"], both, twice, wrong)
      loss = 0.0
      for logits in said:
        real_image, fake_image = jnp.split(logits.image, 2)
        real_pair, fake_pair = jnp.split(logits.pair, 2)
        loss += matching.aware_d(real_image, real_pair, logits.wrong, fake_image, fake_pair)
      found = diagnostics.discriminator_stats(real_pair, fake_pair)  # at the largest size
      return loss, ({"d": stats}, {**found, "d_wrong": jax.nn.sigmoid(logits.wrong).mean()})

    def g_loss(p, b, fake):  # moves g only, through fake
      see = augment.views(b["see"], m.augment)
      seen = [see(3 * i + 2, x) for i, x in enumerate(fake.images)]
      said, _ = core.apply(d, p["d"], state.stats["d"], seen, b["text"].sentence)
      game = sum(matching.aware_g(logits.image, logits.pair) for logits in said)
      (regions, whole), _ = core.apply(
        c, state.extra["c"], state.extra["c_stats"], fake.images[-1], train=False
      )
      match = fit(regions, whole, b["text"], b["tokens"])
      kl = likelihood.kl_gaussian(fake.mean, fake.log_var).mean() / m.condition  # of a feature
      loss = game + m.matching_weight * match + kl
      return loss, ({}, {"game": game, "match": match, "kl": kl})

    state, found = core.alternate(
      state,
      tx,
      generate,
      d_loss,
      g_loss,
      {
        "image": batch["image"],
        "tokens": batch["tokens"],
        "text": read(state.extra, batch["tokens"]),
        "noise": latent(batch, k.latent),
        "see": k.see,
      },
      accumulate=config.accumulate,
    )
    ema = core.ema(state.ema, {"g": state.params["g"], "g_stats": state.stats["g"]}, m.ema)
    return state.replace(step=state.step + 1, ema=ema), found

  def draw(state, noise, tokens):  # -> dm_gan.Drawn, by the average
    args = (noise["z"], noise["eps"], *read(state.extra, tokens))
    return core.apply(g, state.ema["g"], state.ema["g_stats"], *args, train=False)[0]

  def render(state, noise, batch):
    *smaller, image = draw(state, noise, batch["tokens"]).images
    found = {"image": image, **{f"image_{x.shape[1]}": x for x in smaller}}
    found["tokens"] = batch["tokens"]
    return {**found, "data_said": batch["said"]} if "said" in batch else found

  def sample(state, batch, key):
    return render(state, latent(batch, key), batch)

  def evaluate(state, batch, key):
    """Codes of samples; mean squared distances of two of one caption, and of two captions."""
    k = core.keys(key, "one", "other")
    x, y = (sample(state, batch, key)["image"] for key in k)
    return {
      **codes(state.extra, state.extra["c_stats"], batch, x),
      "spread_noise": jnp.mean((x - y) ** 2),
      "spread_captions": jnp.mean((x - jnp.roll(y, 1, axis=0)) ** 2),
    }

  def show(state, batch, key):
    """Captions at all sizes beside the data; eight captions in columns, a noise in each row."""
    k = core.keys(key, "sizes", "captions")
    some = {name: x[:8] for name, x in batch.items()}
    drawn = draw(state, latent(some, k.sizes), some["tokens"]).images
    as_large = [resample.nearest(x, factor=shape[0] // x.shape[1]) for x in drawn]
    noise = jax.tree.map(lambda x: jnp.repeat(x, 8, axis=0), latent(some, k.captions))
    grid = draw(state, noise, jnp.tile(some["tokens"], (8, 1))).images[-1]
    return {
      "sizes": jnp.stack([*as_large, some["image"]], axis=1),
      "captions": grid.reshape(8, 8, *shape),
    }

  return [
    core.Stage(
      "matching",
      m.matching_steps,
      *(init_matching, step_matching, retrieve, evaluate_matching),
      data={"batch_size": m.matching_batch_size or config.batch_size},
      conclude=conclude,
    ),
    core.Stage(
      "train",
      config.num_steps,
      *(init, step, sample, evaluate, show),
      conclude=conclude,
      latent=latent,
      generate=render,
    ),
  ]
