"""python main.py --config=configs/vqgan.py --workdir=/tmp/vqgan

Variants: small (default; embedded digits, 7 x 7 codes), paper (256 x 256 images of a folder of the
user's own, 16 x 16 codes; its lengths are guesses, the paper tells none), test.

Measured so far, small was not run to its end. Seed 0 with width 32, batch norm in D, d_weight 0.8
and no steps alone: after 400 steps of L_rec and L_vq l1 0.080, distance 0.146, perplexity 41 of 64;
in the 400 steps after it, with D at work, l1 0.19 to 0.20, distance 0.49 to 0.57 and D's loss 1.00
to 1.02, which is chance: a D that has learned nothing is made as loud as any, hence d_alone. small
as it is, seed 0, but D at work after 120 steps and alone for 80: before l1 0.145, distance 0.324;
alone D's loss falls to 0.54, l1 0.120, distance 0.238; 40 steps heard: D's loss 0.99, l1 0.121,
distance 0.224, perplexity 35. All are means of 40 to 100 steps of training.
"""

from configs import common

VARIANTS = ("small", "paper", "test")


def get_config(variant="small"):
  if variant not in VARIANTS:
    raise common.unknown(variant, VARIANTS)
  c = common.base("vqgan")
  c.lr = 1e-3
  c.num_steps, c.batch_size = 1_000, 32  # of the prior
  c.log_every, c.sample_every, c.checkpoint_every = 100, 1_000, 500
  c.metrics = ("digits.scores",)
  m = c.model
  m.tokenizer_steps, m.disc_start = 1_000, 300
  m.d_alone = 200  # steps that D learns for before it is heard
  m.width, m.multipliers, m.num_blocks = 16, (1, 2, 4), 1  # each but the last halves the map
  m.attention, m.z_width, m.groups = (2,), 32, 8  # attention: levels, 0 is the images' size
  m.num_codes, m.code_dim, m.beta = 64, 32, 0.25
  m.code_init = "kmeans"  # or batch, uniform
  m.perceptual, m.perceptual_weight = "digits", 0.2  # or efficientnet, for photographs
  m.d_widths, m.d_norm, m.d_weight = (16, 32, 64), "none", 0.2
  m.prior_layers, m.prior_heads, m.prior_width = 4, 4, 128
  m.prior_lr, m.prior_warmup, m.prior_decay = 2e-3, 100, 0.01
  m.p_keep = 1.0  # of codes that the prior reads in training; the others are random
  m.conditional = False  # the prior is told the label
  m.temperature, m.top_k, m.top_p = 1.0, 0, 1.0  # of samples; 0 and 1: all codes
  if variant == "paper":
    c.data.source, c.data.name = "folder", "imagenet"
    c.data.image_size, c.data.channels = 256, 3
    c.lr, c.batch_size, c.num_steps, c.metrics = 5.4e-5, 12, 500_000, ()
    c.checkpoint_every = c.sample_every = 10_000
    m.tokenizer_steps, m.disc_start, m.d_alone = 1_000_000, 250_001, 0
    m.width, m.multipliers, m.num_blocks = 128, (1, 1, 2, 2, 4), 2
    m.attention, m.z_width, m.groups = (4,), 256, 32
    m.num_codes, m.code_dim, m.code_init = 1_024, 256, "uniform"
    m.perceptual, m.perceptual_weight = "efficientnet", 1.0
    m.d_widths, m.d_norm, m.d_weight = (64, 128, 256, 512), "batch", 0.8
    m.prior_layers, m.prior_heads, m.prior_width = 24, 16, 1_024
    m.prior_lr, m.prior_warmup = 5.4e-5, 0
  if variant == "test":
    c.num_steps, c.batch_size, c.num_eval_samples = 2, 8, 16
    c.log_every = c.sample_every = c.checkpoint_every = 1
    m.tokenizer_steps, m.disc_start, m.d_alone = 2, 1, 0
    c.data.image_size = 8
    m.width, m.multipliers, m.attention, m.z_width, m.groups = 4, (1, 2), (), 4, 2
    m.num_codes, m.code_dim, m.d_widths = 8, 4, (4, 4)
    m.d_norm, m.d_weight = "batch", 0.8
    m.prior_layers, m.prior_heads, m.prior_width, m.prior_warmup = 1, 2, 8, 1
  return c
