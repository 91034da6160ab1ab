"""VQGAN. Esser, Rombach, Ommer, Taming Transformers for High-Resolution Image Synthesis, CVPR 2021.

arXiv:2012.09841.
Idea: a codebook as in VQ-VAE, but what counts as a good reconstruction is said by a discriminator
of patches and by the features of a trained network, not by pixels alone. So few codes are enough
for sharp pictures, and a transformer over them draws new ones, or goes on where one ends.
Objective, with z = E(x), e the nearest codes, r = G(z + sg(e - z)):
  L_rec = mean |x - r| + perceptual_weight d(x, r), d as in gm/perceptual.py
  L_vq  = mean (sg(z) - e)^2 + beta mean (z - sg(e))^2
  E, G, codes: L_rec + L_vq + f w g, g = -mean D(r)
    w = d_weight |dL_rec/dW| / (|dg/dW| + 1e-4), a constant, the ratio at most 1e4; W: the kernel of
    G's last layer
  D: f' / 2 (mean max(0, 1 - D(x)) + mean max(0, 1 + D(sg r)))
  f' = 0 before disc_start, then 1; f is so too, but d_alone steps later
  prior: -1/L sum_i log p(k_i | k_<i), the first stage held fixed (gm/prior.py)
Departures: beta is on the encoder's term, as in the paper; the authors' code has it on the codes'.
d_alone is 0 there, but w makes the first words of a D that has learned nothing as loud as any, and
on digits they undo what the autoencoder has learned. D's move and the others' come from one forward
pass; the authors' code runs the moved autoencoder again for D. The perceptual net is one whose
weights are to be had, not VGG-16, and its channels count alike. The token before all codes is one
of its own, theirs is code 0, and the transformer has as many positions as codes, theirs has 512.
Images are encoded anew in every step of the prior.
Run: python main.py --config=configs/vqgan.py --workdir=/tmp/vqgan
Then: python main.py --workdir=/tmp/vqgan --mode=sample --complete=IMAGE --num_samples=8
  12 minutes of processor time; squared error 0.032, Frechet distance 49 by the digit classifier
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gm import core, flags, losses, optim, perceptual, pictures
from gm import prior as second
from gm.nets import patch, vqgan, vqvae
from gm.nn import quantize

PLAYERS = ("enc", "dec", "last", "book")  # of the autoencoder's loss; "d" is the discriminator
MOST_WEIGHT = 1e4  # of the discriminator's voice


def adaptive_weight(of_rec: jax.Array, of_gan: jax.Array, *, scale: float) -> jax.Array:
  """What g is multiplied by so that its gradient in W is `scale` times as long as L_rec's.

  Args:
    of_rec: gradient of L_rec in W.
    of_gan: gradient of g in W.
    scale: 0.8 in the authors' code, 1 in the paper.

  Returns:
    f32 (), a constant to autodiff.

  >>> adaptive_weight(jnp.array([3.0, 4.0]), jnp.array([0.0, 2.0]), scale=0.8).round(3).item()
  2.0
  """
  length = lambda g: jnp.sqrt(jnp.sum(g * g))
  ratio = length(of_rec) / (length(of_gan) + 1e-4)
  return jax.lax.stop_gradient(scale * jnp.minimum(ratio, MOST_WEIGHT))


def with_slope(y: jax.Array, value: jax.Array, slope: jax.Array) -> jax.Array:
  """A number whose gradient in y is `slope`; neither is differentiated itself."""
  value, slope = jax.lax.stop_gradient((value, slope))
  return value + jnp.sum((y - jax.lax.stop_gradient(y)) * slope)


def _check(config, info: core.Info) -> None:
  m = config.model
  flags.within(m, "width", "z_width", "groups", "num_blocks", "code_dim", least=1)
  flags.within(m, "multipliers", "d_widths", least=1)
  flags.within(m, "attention", least=0, most=len(m.multipliers) - 1, empty=True)
  flags.within(m, "num_codes", least=2)
  flags.within(m, "beta", "perceptual_weight", "d_weight", least=0.0)
  flags.within(m, "tokenizer_steps", "disc_start", "d_alone", least=0, most=flags.MOST_STEPS)
  flags.within(m, "p_keep", least=0.0, most=1.0)
  flags.choice(m, "code_init", tuple(quantize.STARTS))
  flags.choice(m, "d_norm", patch.NORMS)
  flags.choice(m, "perceptual", perceptual.TO_BE_HAD)
  second.check(config, info)


def stages(config, info: core.Info) -> list[core.Stage]:
  """Returns the stages `tokenizer` and `prior`.

  Raises:
    ValueError: for a name or a number that is not possible, or images that do not halve as often as
      there are levels.
  """
  m, dtype = config.model, config.compute_dtype
  shape = info.shape[flags.leaf(info, "image")]
  _check(config, info)
  grid = vqvae.grid(shape, len(m.multipliers) - 1, key="multipliers")
  for size in shape[:2]:
    patch.grid(size, len(m.d_widths))
  sizes = vqgan.Sizes(
    m.width, tuple(m.multipliers), m.num_blocks, tuple(m.attention), m.z_width, m.groups
  )
  enc, dec = vqgan.Encoder(m.code_dim, sizes, dtype), vqgan.Decoder(sizes, dtype)
  last = vqgan.Last(shape[2], dtype=dtype)
  d = patch.PatchDiscriminator(m.d_widths, m.d_norm, dtype)
  tx = optim.adam(config.lr, b1=0.5, b2=0.9)
  features = perceptual.shapes(m.perceptual)

  # ------------------------------------------------------------------------- images and their codes

  def encode(p, x):  # -> z [B, h, w, D]
    return enc.apply({"params": p["enc"]}, x)

  def paint(p, z_q):  # -> the map before the last layer
    return dec.apply({"params": p["dec"]}, z_q)

  def D(p, x):  # -> logits [B, h, w]; its norms know this batch alone, and nothing of it is kept
    return d.apply({"params": p}, x, train=True, mutable=["batch_stats"])[0]

  def apart(state, x, r):  # L_rec's two terms
    d = perceptual.distance(m.perceptual, state.extra["features"], x, r).mean()
    return jnp.abs(x - r).mean(), d

  def tokens_of(state, batch, key):  # i32 [B, L], row by row
    z = encode(state.params, batch["image"])
    return quantize.nearest(z, state.params["book"]["codes"]).reshape(len(z), -1)

  def picture(state, tokens):
    p = state.params
    z_q = p["book"]["codes"][tokens.reshape(-1, *grid)]
    return last.apply({"params": p["last"]}, paint(p, z_q))

  def measure(state, batch, key):
    x, tokens = batch["image"], tokens_of(state, batch, key)
    r = picture(state, tokens)
    l1, d = apart(state, x, r)
    return {"l1": l1, "mse": jnp.mean((x - r) ** 2), "distance": d, "code": tokens}, tokens

  def conclude(found, key):
    return quantize.use(jnp.bincount(found["code"].ravel(), length=m.num_codes))

  coder = second.Codes(grid, m.num_codes, tokens_of, picture, measure)

  # -------------------------------------------------------------------------------------- tokenizer

  def init(key, batch, prev):
    k, x = core.keys(key, "enc", "dec", "last", "d", "codes"), batch["image"]
    params = {"enc": core.build(enc, k.enc, x[:2])[0]}
    z = encode(params, x)
    params["dec"] = core.build(dec, k.dec, z[:2])[0]
    params["last"] = core.build(last, k.last, paint(params, z[:2]))[0]
    params["d"] = core.build(d, k.d, x[:2])[0]
    params["book"] = {"codes": quantize.first_codes(k.codes, z, m.num_codes, how=m.code_init)}
    opt = {"ae": core.init_slot(tx, params, PLAYERS), "d": core.init_slot(tx, params, ["d"])}
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), features)
    return core.State(
      step=jnp.zeros((), jnp.int32), params=params, opt=opt, extra={"features": zeros}
    )

  def furnish(state):
    return state.replace(extra={"features": perceptual.load(m.perceptual)})

  def step(state, batch, key):
    on = state.step >= m.disc_start
    heard = on & (state.step - m.disc_start >= m.d_alone)

    def loss(p, b):
      x, codes = b["image"], p["book"]["codes"]
      z = encode(p, x)
      index = quantize.nearest(z, codes)
      e = codes[index]
      h = paint(p, quantize.straight_through(z, e))
      r = last.apply({"params": p["last"]}, h)
      # the slopes of both losses in r, once; W's gradients follow from them, and so does the move
      seen, fixed_h, fixed_last = jax.lax.stop_gradient((r, h, p["last"]))

      def rec(r):
        l1, d = apart(state, x, r)
        return l1 + m.perceptual_weight * d, (l1, d)

      def gan(r):
        return jax.lax.cond(
          heard, lambda r: losses.hinge_g(D(state.params["d"], r)), lambda r: jnp.zeros(()), r
        )

      (rec_loss, (l1, d)), rec_slope = jax.value_and_grad(rec, has_aux=True)(seen)
      g, g_slope = jax.value_and_grad(gan)(seen)
      _, in_w = jax.vjp(lambda w: last.apply({"params": w}, fixed_h), fixed_last)
      kernel = lambda slope: in_w(slope)[0]["conv"]["kernel"]
      w = heard * adaptive_weight(kernel(rec_slope), kernel(g_slope), scale=m.d_weight)
      vq = quantize.objective(z, e, beta=m.beta)
      ae = with_slope(r, rec_loss + w * g, rec_slope + w * g_slope) + vq
      of_d = jax.lax.cond(
        on, lambda d: losses.hinge_d(D(d, x), D(d, seen)) / 2, lambda d: jnp.zeros(()), p["d"]
      )
      found = {"loss_ae": ae, "l1": l1, "distance": d, "loss_vq": vq, "loss_g": g, "loss_d": of_d}
      found |= {"d_weight": w, "counts": quantize.totals(z, index, m.num_codes)[0]}
      return ae + of_d, ({}, found)  # two losses: neither has a gradient where the other has

    (_, (_, found)), grads = core.gradients(
      loss, state.params, [*PLAYERS, "d"], batch, accumulate=config.accumulate
    )
    found |= quantize.use(found.pop("counts"))
    of_d = {"d": grads.pop("d")}
    state, moved = core.move(state, tx, grads, slot="ae")
    still = lambda state: (state, {"gradnorm_d": jnp.zeros(())})
    state, d_moved = jax.lax.cond(on, lambda state: core.move(state, tx, of_d), still, state)
    return state.replace(step=state.step + 1), {**found, **moved, **d_moved}

  def generate(state, u, batch):
    return {"image": second.evenly(coder)(state, u)}

  def sample(state, batch, key):
    return generate(state, second.latent(coder)(batch, key), batch)

  def evaluate(state, batch, key):
    return measure(state, batch, key)[0]

  def show(state, batch, key):
    few = {"image": batch["image"][: second.SHOWN]}
    rec = picture(state, tokens_of(state, few, key))
    return {"reconstruction": pictures.pairs(few["image"], rec)}

  # ------------------------------------------------------------------------------------------ prior

  def given(tokens, key):  # what the prior reads in training: some codes are random ones
    k = core.keys(key, "keep", "random")
    random = jax.random.randint(k.random, tokens.shape, 0, m.num_codes)
    return jnp.where(jax.random.bernoulli(k.keep, m.p_keep, tokens.shape), tokens, random)

  return [
    core.Stage(
      "tokenizer",
      m.tokenizer_steps,
      *(init, step, sample, evaluate, show),
      latent=second.latent(coder),
      generate=generate,
      straight=True,
      conclude=conclude,
      furnish=furnish,
    ),
    second.stage(config, info, coder, frozen=PLAYERS, given=given, conclude=conclude),
  ]
