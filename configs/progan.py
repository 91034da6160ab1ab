"""python main.py --config=configs/progan.py --workdir=/tmp/progan

Variants: small (default; digits at 16 px, from 4 over 8), fixed (the same network and number of
images without growth), paper (1024 px), test.

Measured, small, seeds 0 to 2, 10,000 samples: the rarest digit is 5.0, 4.9 and 5.6 % of them, the
classifier's Frechet distance 19.3, 20.6 and 15.8 (1.0 between halves of the data), critic's
estimate on held-out images 0.95, 0.85 and 0.77; 7 to 8 minutes on two cores. With half as many
steps at full size seed 0 gave 3.8 % and 36.2. fixed, seed 0: 6.4 % and 15.4, estimate 0.60: at 16
pixels growth saves time (3,000 of its 12,000 steps are at 4 and 8 pixels), but buys no quality.
"""

from configs import common

VARIANTS = ("small", "fixed", "paper", "test")


def get_config(variant="small"):
  if variant not in VARIANTS:
    raise common.unknown(variant, VARIANTS)
  c = common.base("progan")
  c.lr = 1e-3
  c.num_steps, c.batch_size = 8_000, 16  # at full size, faded in; images set what comes before
  c.log_every, c.sample_every, c.checkpoint_every = 50, 1_000, 1_000
  c.metrics = ("digits.scores", "sliced.wasserstein")
  c.data.image_size = 16
  if variant in ("small", "fixed"):
    c.eval_every = 3_000  # and at the end of each stage
  m = c.model
  m.augment = ""  # of what D sees: color,translation,cutout, or some of them
  m.start = 4  # pixels of the first stage
  m.stable_images, m.fade_images = 16_000, 16_000  # shown at a size, and while it is faded in
  m.batch_sizes = ()  # of each resolution; empty: batch_size
  m.z_dim, m.base, m.most = 64, 128, 64
  m.stddev_group, m.mirror = 4, False
  m.gp_weight, m.gamma, m.drift = 10.0, 1.0, 0.001
  m.b1, m.b2, m.ema = 0.0, 0.99, 0.999
  if variant == "fixed":
    m.start, c.num_steps = 16, 12_000  # as small: 4 times 1,000, and 8,000
  if variant == "paper":
    c.data.source, c.data.name = "folder", "celeba_hq"
    c.data.image_size, c.data.channels = 1024, 3
    c.batch_size, c.num_steps, c.metrics = 16, 2_066_667, ()  # 6.2 of 19 million images, by 3
    c.num_devices = 1  # three images do not split
    m.stable_images = m.fade_images = 800_000
    m.batch_sizes = (16, 16, 16, 16, 16, 16, 14, 6, 3)
    m.z_dim, m.base, m.most, m.stddev_group, m.mirror = 512, 8192, 512, 0, True
  if variant == "test":
    c.data.image_size = 8
    c.num_steps, c.batch_size, c.num_eval_samples = 2, 8, 16
    c.log_every = c.sample_every = c.checkpoint_every = 1
    m.stable_images, m.fade_images = 0, 8  # 4 pixels are only passed through
    m.z_dim, m.base, m.most = 4, 16, 4
  return c
