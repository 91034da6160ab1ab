"""python main.py --config=configs/autoencoder.py --workdir=/tmp/autoencoder

Variants: small (default; embedded digits, 784-512-256-2), digits (8x8, 64-128-64-2), linear (the
same data, no hidden layer), paper (784-1000-500-250-30 on full MNIST), test.

Measured, squared error per pixel, time on one core: small, seeds 0, 1, 2, 0.0388, 0.0388, 0.0389 on
the test images, where two principal components leave 0.0555; 0.0321 in training; 130 s. Seed 0:
linear 0.0522 in training and 0.0539, where they leave 0.0521, 3 s; digits 0.0229 and 0.0316, where
they leave 0.0521, 10 s; digits with model.z_dim=8 0.0074 and 0.0114, where eight leave 0.0234.
paper was not run.
Of decoded draws of N(0, I) 1.00 (small), 0.78 (linear), 1.00 (digits), 0.16 (digits, z_dim=8) pass
the test of the nearest image. In the plane they fall among the codes near 0, where the decoder
blurs many digits into one, and a blur is near to all: of small's draws 0.4 % are of the rarest
digit. In eight dimensions they fall beside the codes.
"""

from configs import common

VARIANTS = ("small", "digits", "linear", "paper", "test")


def get_config(variant="small"):
  if variant not in VARIANTS:
    raise common.unknown(variant, VARIANTS)
  c = common.base("autoencoder")
  c.lr = 1e-3
  c.num_steps, c.batch_size = 6_000, 100
  c.log_every, c.sample_every, c.checkpoint_every = 100, 1_000, 2_000
  c.metrics = ("reconstruction.pca", "reconstruction.accepted", "digits.scores")
  c.num_eval_samples = 1_000
  c.reference_split = "test"  # the images whose error is measured
  m = c.model
  m.z_dim, m.widths, m.activation = 2, (512, 256), "relu"  # of the encoder; the decoder mirrors it
  if variant in ("digits", "linear"):
    c.data.source, c.data.name = "installed", "digits"
    m.widths = (128, 64)
  if variant == "linear":
    c.lr, c.num_steps, m.widths = 1e-2, 3_000, ()
  if variant == "paper":
    c.data.source, c.data.name = "prepared", "mnist"
    c.num_steps, c.checkpoint_every, c.sample_every = 120_000, 10_000, 10_000
    c.num_eval_samples = 10_000
    m.z_dim, m.widths = 30, (1000, 500, 250)
  if variant == "test":
    c.num_steps, c.batch_size, c.num_eval_samples = 2, 8, 16
    c.log_every = c.sample_every = c.checkpoint_every = 1
    m.widths = (16,)
  return c
