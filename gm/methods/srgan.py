"""SRGAN. Ledig et al., CVPR 2017, arXiv:1609.04802.

Idea: an image is made 4 times as large. Trained on pixels alone, a network answers with the mean of
all that could have been there, which is smooth. A discriminator, and the features of a trained
network in place of pixels, ask for one of them, with its texture, though it be off the truth.
Objective, with the image x, l = x by 1/4 (bicubic, rounded to 8 bits) and y = G(l):
  srresnet:  mean (y - x)^2
  srgan, D:  -mean log D(x) - mean log(1 - D(y))
         G:  content_weight d(x, y) + pixel_weight mean (y - x)^2 + d_weight (-mean log D(y))
  d by model.features (gm/perceptual.py); the paper's is vgg54, the squared difference of VGG-19's
  features over 12.75, summed over channels; weights 1, 0 and 1e-3. R has pixel_weight 1.
The first stage gives G its start; D begins in the second, on the fakes that G moves on.
Departures: the paper's nets and recipe, not those of the much used TensorLayer code (R), with ReLU
and a 1 x 1 tanh output in G and another D. VGG-19 needs a file of the user's own
(model.features_file); it is torchvision's, with features of another scale than the paper's, whose
factor is kept. Without one, `small` takes EfficientNet-Lite0 and weighs its distance anew, and G
adds to what bicubic gives (model.skip). The data are tiles of which crops are taken; there is no
total variation.
Run: python main.py --config=configs/srgan.py --workdir=/tmp/srgan
Then: python main.py --workdir=/tmp/srgan --mode=sample --input=FILE_OR_FOLDER
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gm import augment, core, diagnostics, fidelity, flags, losses, optim, perceptual
from gm.nets import srgan

SHOWN = 12  # examples in the picture of rows
BORDER = srgan.FACTOR  # pixels that measures leave out


def _check(m, info: core.Info) -> tuple[int, int, int]:
  """Returns the shape of the crops that are trained on."""
  height, width, channels = info.shape[flags.leaf(info, "image")]
  flags.within(m, "base", "d_widths", "d_hidden", least=1)
  flags.within(m, "num_blocks", least=0)
  flags.within(m, "pretrain_steps", least=0, most=flags.MOST_STEPS)
  flags.within(m, "crop", least=0, most=min(height, width))
  flags.within(m, "content_weight", "pixel_weight", "d_weight", least=0.0)
  flags.within(m, "b1", least=0.0, below=1.0)
  flags.within(m, "flip", least=0.0, most=1.0)
  flags.within(m, "decay_at", least=0.0, most=1.0, length=2)
  flags.choice(m, "slopes", srgan.SLOPES)
  flags.choice(m, "last", srgan.LASTS)
  flags.choice(m, "d_head", srgan.HEADS)
  flags.choice(m, "features", tuple(perceptual.NETS))
  if m.features_file and m.features in perceptual.TO_BE_HAD:
    raise ValueError(
      f"--config.model.features_file={m.features_file!r} is not read for"
      f" --config.model.features={m.features}: leave it empty"
    )
  if channels not in (1, 3):
    raise ValueError(f"images of {channels} channels are not seen: set --config.data.channels to 3")
  crop = (m.crop, m.crop) if m.crop else (height, width)
  for key, size in (("data.image_size", (height, width)), ("model.crop", crop)):
    if any(n % srgan.FACTOR for n in size):
      raise ValueError(
        f"images of {size[0]}x{size[1]} pixels are no 4 times as large as smaller ones: set"
        f" --config.{key} to multiples of {srgan.FACTOR}"
      )
  return (*crop, channels)


def shrink(x: jax.Array) -> jax.Array:
  """The image as it is given to G: by 1/4, bicubic with antialiasing, as a file of 8 bits holds it.

  Args:
    x: [B, H, W, C] in [-1, 1], sides multiples of 4.

  Returns:
    [B, H / 4, W / 4, C] in [0, 1].

  >>> shrink(jnp.ones((1, 8, 4, 3))).shape
  (1, 2, 1, 3)
  """
  b, h, w, c = x.shape
  small = jax.image.resize(x, (b, h // srgan.FACTOR, w // srgan.FACTOR, c), "cubic")
  return fidelity.bytes_of(small) / 255


def bicubic(small: jax.Array) -> jax.Array:
  """What everybody has without a network: [B, h, w, C] in [0, 1] -> [B, 4 h, 4 w, C] in [-1, 1]."""
  return jnp.clip(2 * srgan.enlarged(small) - 1, -1, 1)


def stages(config, info: core.Info) -> list[core.Stage]:
  """Returns the stages `srresnet` and `srgan`.

  Raises:
    ValueError: for a name or a number that is not possible, or sides that 4 does not divide.
  """
  m, dtype = config.model, config.compute_dtype
  crop = _check(m, info)
  how = {"slopes": m.slopes, "bias": m.bias, "last": m.last, "skip": m.skip, "dtype": dtype}
  g = srgan.Generator(crop[2], m.base, m.num_blocks, **how)
  d = srgan.Discriminator(m.d_widths, m.d_hidden, m.bias, m.d_head, dtype=dtype)
  features = perceptual.shapes(m.features)
  # jitted, so that each is traced once, and so are its derivatives
  G = jax.jit(lambda p, s, x, train: core.apply(g, p, s, x, train=train), static_argnums=3)
  D = jax.jit(lambda p, s, x: core.apply(d, p, s, x))
  to_features = jax.jit(lambda v, x, y: perceptual.distance(m.features, v, x, y))

  def rate(num_steps, decay_at):  # a tenth of it from that part of the steps on
    return optim.piecewise([config.lr, config.lr / 10], [int(decay_at * num_steps)])

  tx, tx_gan = (
    optim.adam(rate(*stage), b1=m.b1)
    for stage in zip((m.pretrain_steps, config.num_steps), m.decay_at)
  )

  def enlarge(state, small):  # by running averages, in [-1, 1]
    large, _ = G(state.params["sr"], state.stats["sr"], small, False)
    return jnp.clip(large, -1, 1)

  def draw(batch, key):  # what is learned from: pairs of a small and a large image
    k = core.keys(key, "crop", "flip")
    x = augment.random_crop(k.crop, batch["image"], crop[:2])
    x = augment.flip(k.flip, x, p=m.flip)
    return {"x": x, "small": shrink(x)}

  def generate(state, p, b):
    y, stats = G(p["sr"], state.stats["sr"], b["small"], True)
    return y, {"sr": stats}

  def distance(state, x, y):  # [B], to the feature net
    return to_features(state.extra["features"], x, y)

  def start(params, stats, opt, extra):
    return core.State(jnp.zeros((), jnp.int32), params, opt, stats, extra=extra)

  # --------------------------------------------------------------------------------------- srresnet

  def init(key, batch, prev):
    params, stats = core.build(g, key, jnp.zeros((2, 6, 6, crop[2])), True)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), features)
    opt = {"sr": core.init_slot(tx, {"sr": params}, ["sr"])}
    return start({"sr": params}, {"sr": stats}, opt, {"features": zeros})

  def furnish(state):
    return state.replace(extra={"features": perceptual.load(m.features, m.features_file)})

  def step(state, batch, key):
    def loss(p, b):
      y, stats = generate(state, p, b)
      return jnp.mean((y - b["x"]) ** 2), (stats, {})

    pairs = draw(batch, key)
    state, found = core.minimize(state, tx, loss, ["sr"], pairs, accumulate=config.accumulate)
    return state.replace(step=state.step + 1), found

  # ------------------------------------------------------------------------------------------ srgan

  def init_gan(key, batch, prev):
    params, stats = core.build(d, key, jnp.zeros((2, *crop)))
    params, stats = {**prev.params, "d": params}, {**prev.stats, "d": stats}
    opt = {n: core.init_slot(tx_gan, params, [n]) for n in ("sr", "d")}
    return start(params, stats, opt, prev.extra)

  def step_gan(state, batch, key):
    def d_loss(p, b, fake):  # moves d only
      real_logits, stats = D(p["d"], state.stats["d"], b["x"])
      fake_logits, stats = D(p["d"], stats, fake)
      found = diagnostics.discriminator_stats(real_logits, fake_logits)
      return losses.bce_d(real_logits, fake_logits), ({"d": stats}, found)

    def g_loss(p, b, fake):  # moves sr only, through fake
      logits, _ = D(p["d"], state.stats["d"], fake)
      found = {"mse": jnp.mean((fake - b["x"]) ** 2), "adversarial": losses.nonsaturating_g(logits)}
      loss = m.pixel_weight * found["mse"] + m.d_weight * found["adversarial"]
      if m.content_weight:
        found["content"] = distance(state, b["x"], fake).mean()
        loss += m.content_weight * found["content"]
      return loss, ({}, found)

    state, found = core.alternate(
      *(state, {"sr": tx_gan, "d": tx_gan}, lambda p, b: generate(state, p, b), d_loss, g_loss),
      *(draw(batch, key),),
      g="sr",
      accumulate=config.accumulate,
    )
    return state.replace(step=state.step + 1), found

  # ----------------------------------------------------------------------------- what both do alike

  def sample(state, batch, key):
    return {"image": enlarge(state, shrink(batch["image"]))}

  def evaluate(state, batch, key):
    """Of G and of bicubic beside it: PSNR and SSIM without the border, distance and detail."""
    x, small = batch["image"], shrink(batch["image"])
    found = {"detail_true": fidelity.detail(x)}
    true = fidelity.bytes_of(x)
    for name, y in (("", enlarge(state, small)), ("_bicubic", bicubic(small))):
      made = fidelity.bytes_of(y)
      of_luma = fidelity.luma(made), fidelity.luma(true)
      found |= {
        f"psnr_y{name}": fidelity.psnr(*of_luma, border=BORDER),
        f"psnr_rgb{name}": fidelity.psnr(made, true, border=BORDER),
        f"distance{name}": distance(state, x, y),
        f"detail{name}": fidelity.detail(y),
      }
      if min(x.shape[1:3]) >= fidelity.WINDOW + 2 * BORDER:
        found[f"ssim_y{name}"] = fidelity.ssim(*of_luma, border=BORDER)
    return {name: v.mean() for name, v in found.items()}

  def show(state, batch, key):
    """Rows of what is given, repeated, of bicubic, of G's image and the true one."""
    x = batch["image"][:SHOWN]
    small = shrink(x)
    blocks = (2 * small - 1).repeat(srgan.FACTOR, 1).repeat(srgan.FACTOR, 2)
    rows = jnp.stack([blocks, bicubic(small), enlarge(state, small), x], axis=1)
    return {"enlarged": rows}

  enlarger = core.Enlarger(
    lambda state, x: enlarge(state, (x + 1) / 2), srgan.FACTOR, srgan.reach(m.num_blocks)
  )
  same = {"sample": sample, "evaluate": evaluate, "show": show, "enlarger": enlarger}
  return [
    core.Stage("srresnet", m.pretrain_steps, init, step, furnish=furnish, **same),
    core.Stage("srgan", config.num_steps, init_gan, step_gan, **same),
  ]
