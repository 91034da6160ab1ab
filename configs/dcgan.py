"""python main.py --config=configs/dcgan.py --workdir=/tmp/dcgan

Variants: small (default; 28 px digits), paper (64 px), test.

Measured (80 GFLOP/s on 2 cores): small, seeds 0, 1, 2: the rarest digit is 5.7, 5.8, 6.9 % of
10,000 samples, Frechet distance 56.8, 55.6, 57.1 (two halves of the real digits: 2.1), in runs of
one device each. Seed 0 on two devices, where sums have another order: 4.9 %, 70.5, in 4 min 26 s
with start and evaluation. A linear probe of 1,000 test digits is right for 92.5 % of them on D's
features, 92.0 % on those of an untrained D, 81.1 % on pixels. paper was not run.
"""

from configs import common

VARIANTS = ("small", "paper", "test")


def get_config(variant="small"):
  if variant not in VARIANTS:
    raise common.unknown(variant, VARIANTS)
  c = common.base("dcgan")
  c.lr = 2e-3
  c.num_steps, c.batch_size = 4_000, 64
  c.log_every, c.sample_every, c.checkpoint_every = 50, 500, 1_000
  c.cpu_devices = 0  # one per core: 1.2 to 1.3 times as fast as one device on two cores
  c.metrics = ("digits.scores", "probe.linear")
  m = c.model
  m.augment = ""  # of what D sees: color,translation,cutout, or some of them
  m.b1, m.noise, m.z_dim, m.ema = 0.5, "normal", 64, 0.999
  m.g_base, m.d_base = 32, 32
  m.start, m.kernel, m.first = 7, 4, "dense"  # 7 -> 14 -> 28; first: of G, and last of D
  m.probe = True  # samples hold D's features of the test images, for probe.linear
  m.bn_mode = "running"  # statistics of samples: running averages, or of the batch drawn
  if variant == "paper":
    c.data.source, c.data.name = "folder", "celeba"
    c.data.image_size, c.data.channels = 64, 3
    c.lr, c.batch_size, c.num_steps = 2e-4, 128, 15_830  # 10 epochs of 202,599 faces
    m.z_dim, m.ema, m.g_base, m.d_base, m.start, m.first = 100, 0.0, 64, 64, 4, "conv"
    c.metrics, m.probe = (), False
  if variant == "test":
    c.num_steps, c.batch_size, c.num_eval_samples = 2, 8, 16
    c.log_every = c.sample_every = c.checkpoint_every = 1
    m.z_dim, m.g_base, m.d_base = 4, 4, 4
  return c
