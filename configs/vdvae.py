"""python main.py --config=configs/vdvae.py --workdir=/tmp/vdvae

Variants: small (default; 8x8 digits), mnist10k (embedded digits, 28 px), avatars (cartoon faces in
colour, 32 px), paper (CIFAR-10), imagenet64 (as published), test.

Measured, small, seed 0, 297 test images: nll 22.22 nats by 500 draws, elbo -22.80, rate 6.17: 5.86
on the maps of 4 x 4, 0.31 on those of 8 x 8; those of one pixel say nothing (0.001). In training
-22.8 too. The VAE of one layer has 22.5 to 22.8 of the same images, the ladder 22.1 to 22.3. 7.3
minutes of processor time. With half of the bottleneck and of the channels at 8 x 8 it had 22.83,
-23.45 and 5.68, in 5.1 minutes: blocks of 4 channels inside were too narrow. The other variants
were not trained.
"""

from configs import common

VARIANTS = ("small", "mnist10k", "avatars", "paper", "imagenet64", "test")


def get_config(variant="small"):
  if variant not in VARIANTS:
    raise common.unknown(variant, VARIANTS)
  c = common.base("vdvae")
  c.data.source, c.data.name = "installed", "digits"
  c.lr = 2e-3
  c.num_steps, c.batch_size = 4_000, 64
  c.log_every, c.sample_every, c.checkpoint_every = 100, 2_000, 2_000
  m = c.model
  m.enc_blocks, m.dec_blocks = "8x1,8d2,4x1,4d4,1x1", "1x2,4m1,4x2,8m4"
  m.width, m.widths, m.bottleneck, m.z_dim = 48, "8:32", 0.5, 4
  m.no_bias_above = 64  # larger maps start at 0
  m.likelihood, m.mixtures, m.bits = "bernoulli", 10, 8  # or logistic_mixture
  m.mean, m.std = 77.7, 96.1  # of pixels 0 .. 255, for the encoder
  m.b1, m.b2, m.weight_decay, m.ema = 0.9, 0.9, 0.01, 0.995
  m.schedule, m.warmup = "cosine", 100  # or constant
  m.clip, m.skip = 200.0, 400.0  # lengths of a gradient; skip 0: only what is not finite
  m.eval_k = 500
  m.temperature = 1.0  # of samples
  if variant == "mnist10k":
    c.data.source, c.data.name = "embedded", "mnist10k"
    c.num_steps, m.eval_k = 3_000, 50
    m.enc_blocks, m.dec_blocks = "28d2,14x1,14d2,7x2,7d7,1x1", "1x2,7m1,7x3,14m7,14x2,28m14"
    m.width, m.widths, m.z_dim = 64, "28:8,14:32", 8
    m.mean, m.std = 33.3, 78.6
  if variant == "avatars":
    c.data.source, c.data.name = "prepared", "avatars"
    c.data.image_size = 32
    c.batch_size, m.eval_k = 32, 10
    m.enc_blocks = "32d2,16x1,16d2,8x1,8d2,4x1,4d4,1x1"
    m.dec_blocks = "1x2,4m1,4x2,8m4,8x2,16m8,16x1,32m16"
    m.width, m.widths, m.z_dim = 64, "32:16,16:32", 8
    m.likelihood, m.mixtures, m.mean, m.std = "logistic_mixture", 5, 180.0, 75.0
  if variant in ("paper", "imagenet64"):
    c.data.source, c.data.name = "tfds", "cifar10"
    c.data.image_size, c.data.channels = 32, 3
    c.lr, c.batch_size, c.num_steps = 2e-4, 32, 1_000_000  # 16 on each of 2 GPUs
    c.checkpoint_every = c.sample_every = 10_000
    m.enc_blocks = "32x11,32d2,16x6,16d2,8x6,8d2,4x3,4d4,1x3"
    m.dec_blocks = "1x1,4m1,4x2,8m4,8x5,16m8,16x10,32m16,32x21"
    m.width, m.widths, m.bottleneck, m.z_dim, m.ema = 384, "", 0.25, 16, 0.9999
    m.likelihood, m.mixtures, m.schedule, m.eval_k = "logistic_mixture", 10, "constant", 1
    m.mean, m.std = 120.63838, 64.16736
  if variant == "imagenet64":
    c.data.name, c.data.image_size = "downsampled_imagenet/64x64", 64
    c.lr, c.batch_size = 1.5e-4, 128  # 4 on each of 32 GPUs
    m.enc_blocks = "64x11,64d2,32x20,32d2,16x9,16d2,8x8,8d2,4x7,4d4,1x5"
    m.dec_blocks = "1x2,4m1,4x3,8m4,8x7,16m8,16x15,32m16,32x31,64m32,64x12"
    m.width, m.ema, m.clip, m.skip = 512, 0.999, 220.0, 380.0
    m.mean, m.std = 115.92961967, 69.37404
  if variant == "test":
    c.num_steps, c.batch_size, c.num_eval_samples = 2, 8, 16
    c.log_every = c.sample_every = c.checkpoint_every = 1
    c.data.image_size = 4
    m.enc_blocks, m.dec_blocks = "4d4,1", "1,4m1"
    m.width, m.widths, m.bottleneck, m.z_dim, m.warmup, m.eval_k = 8, "4:4", 0.25, 2, 1, 2
  return c
