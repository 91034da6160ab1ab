"""python main.py --config=configs/vqvae.py --workdir=/tmp/vqvae

Variants: small (default; embedded digits, 7 x 7 codes), digits (8x8, 2 x 2 codes), paper (CIFAR-10,
8 x 8 codes), notebook (the same by the authors' code), test.

Measured, small, seeds 0, 1, 2, on the 1,000 test images and 10,000 samples: distortion 42.1, 42.3,
43.2 nats; rate of the 49 codes 121.9, 127.4, 126.4, 2.49, 2.60, 2.58 nats a code where all alike
are log 64 = 4.16; bound -164.0, -169.7, -169.6, before the prior -245.9, -246.1, -247.0; squared
error per pixel in [0, 1] 0.0107, 0.0103, 0.0115; perplexity of the codes 36.8, 38.5, 47.1, all of
64 in use; the rarest digit 6.7, 8.0, 6.1 % of the samples, the classifier's Frechet distance 65,
57, 56 (2.3 between halves of the data). Where every code is drawn as if it came first, seed 0, it
is 1,205 (of 2,000 samples). 6.7 to 7.7 minutes of processor time for both stages and evaluation;
the machine had much other work, so the time on two cores alone was not measured.
digits, seed 0: distortion 15.1, rate 12.9 of 4 log 32 = 13.9, bound -28.1 nats, squared error
0.035, perplexity 29.3 of 32; with the gradient led to the codes instead of the encoder 0.075 and
8.7. paper and notebook were not run.
"""

import math

from configs import common

VARIANTS = ("small", "digits", "paper", "notebook", "test")


def get_config(variant="small"):
  if variant not in VARIANTS:
    raise common.unknown(variant, VARIANTS)
  c = common.base("vqvae")
  c.lr = 1e-3
  c.num_steps, c.batch_size = 1_200, 64  # of the prior
  c.log_every, c.sample_every, c.checkpoint_every = 100, 1_000, 1_000
  c.metrics = ("digits.scores",)
  m = c.model
  m.tokenizer_steps = 800
  m.widths, m.num_blocks, m.block_width = (32, 64), 2, 32  # each width halves the map
  m.num_codes, m.code_dim, m.beta = 64, 16, 0.25
  m.codebook, m.decay, m.code_init = "ema", 0.99, "kmeans"  # or gradient; batch, uniform
  m.restart_every, m.restart_below = 20, 1.0  # steps; rows a batch that choose a code
  m.likelihood, m.std = "bernoulli", 0.1  # std: of a pixel where it is gaussian
  m.prior_layers, m.prior_heads, m.prior_width = 3, 4, 96
  m.prior_lr, m.prior_warmup, m.prior_decay = 2e-3, 100, 0.01
  m.conditional = False  # the prior is told the label
  m.temperature, m.top_k, m.top_p = 1.0, 0, 1.0  # of samples; 0 and 1: all codes
  if variant == "digits":
    c.data.source, c.data.name = "installed", "digits"
    c.metrics = ()
    m.num_codes, m.prior_layers, m.prior_width = 32, 2, 64
  if variant in ("paper", "notebook"):
    c.data.source, c.data.name = "tfds", "cifar10"
    c.data.image_size, c.data.channels = 32, 3
    c.num_steps, c.batch_size, c.metrics = 250_000, 128, ()
    c.checkpoint_every = c.sample_every = 10_000
    m.tokenizer_steps, c.lr = 250_000, 2e-4
    m.widths, m.block_width, m.num_codes, m.code_dim = (256, 256), 256, 512, 10
    m.codebook, m.code_init, m.restart_every = "gradient", "uniform", 0
    m.likelihood, m.std = "gaussian", round(math.sqrt(0.0632704 / 2), 4)  # half of the variance
    m.prior_layers, m.prior_heads, m.prior_width, m.prior_lr = 6, 8, 512, 3e-4
  if variant == "notebook":
    c.lr, c.batch_size, m.tokenizer_steps = 3e-4, 32, 100_000
    m.widths, m.block_width, m.code_dim, m.codebook = (64, 128), 32, 64, "ema"
  if variant == "test":
    c.num_steps, c.batch_size, c.num_eval_samples = 2, 8, 16
    c.log_every = c.sample_every = c.checkpoint_every = 1
    m.tokenizer_steps, m.restart_every = 2, 2
    m.widths, m.num_blocks, m.block_width, m.num_codes, m.code_dim = (4, 8), 1, 4, 8, 4
    m.prior_layers, m.prior_heads, m.prior_width, m.prior_warmup = 1, 2, 8, 1
  return c
