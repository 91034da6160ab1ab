"""python main.py --config=configs/vqgan.py --workdir=/tmp/vqgan

Variants: small (default; embedded digits, 7 x 7 codes), paper (256 x 256 images of a folder of the
user's own, 16 x 16 codes; its lengths are guesses, the paper tells none), test.

Measured, small, seed 0: squared error 0.032 in [-1, 1], l1 0.075, distance 0.093, perplexity 54 of
64 codes; the prior tells a code by 1.89 nats (the codes alone: at most 3.99); Frechet 49 by the
digit classifier, 7 to 14 % of each digit. 12 minutes of processor time. D's loss is 0.44 after its
steps alone, and soon after it is heard 1.00, which is chance: it says little from then on. Without
steps alone, with width 32, batch norm in D and d_weight 0.8 it never learned, and reconstructions
became worse (l1 0.08 before, 0.20 after): a D that knows nothing is made as loud as any.
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
    m.tokenizer_steps, m.disc_start, m.d_alone = 2, 0, 1
    c.data.image_size = 8
    m.width, m.multipliers, m.attention, m.z_width, m.groups = 4, (1, 2), (), 4, 2
    m.num_codes, m.code_dim, m.d_widths = 8, 4, (4, 4)
    m.d_norm, m.d_weight = "batch", 0.8
    m.prior_layers, m.prior_heads, m.prior_width, m.prior_warmup = 1, 2, 8, 1
  return c
