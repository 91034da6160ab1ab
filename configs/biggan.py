"""python main.py --config=configs/biggan.py --workdir=/tmp/biggan

Variants: small (default; 16 px digits), paper (ImageNet, 128 px, ch 96), narrow (the same with
ch 64), cifar10 (32 px, without attention, chunks and shared embedding), test, test_tables.

Measured, small, seeds 0 to 2, 10,000 samples: 99.0, 99.1 and 99.5 % are the digit that was asked
for, the rarest digit is 8.5 to 8.7 %, the classifier's Frechet distance 9.1, 13.7 and 16.1 (1.0
between halves of the data); 5 minutes on two cores. Other variants were not run.
"""

from configs import common

PAPER = ("paper", "narrow", "cifar10")
VARIANTS = ("small", *PAPER, "test", "test_tables")


def get_config(variant="small"):
  if variant not in VARIANTS:
    raise common.unknown(variant, VARIANTS)
  c = common.base("biggan")
  c.lr = 5e-4  # of G
  c.num_steps, c.batch_size = 1_500, 64  # steps of G; each of d_steps steps of D sees a batch
  c.log_every, c.sample_every, c.checkpoint_every = 50, 500, 500
  c.metrics = ("digits.scores",)
  c.data.image_size = 16
  m = c.model
  m.augment = ""  # of what D sees: color,translation,cutout, or some of them
  m.d_steps, m.d_lr, m.adam_eps, m.sn_eps = 2, 1.0, 1e-8, 1e-8  # d_lr: D's learning rate over G's
  m.z_dim, m.hierarchical, m.embed_features = 24, True, 16
  m.base, m.g_widths, m.d_widths, m.d_down = 8, (4, 4), (4, 4, 4), 2  # widths in multiples of base
  m.attention = (8,)  # heights of the maps of G and D that attention follows
  m.scheme, m.ortho_weight = "orthogonal", 0.0  # first weights: or glorot, normal
  m.ema, m.ema_from = 0.99, 200
  m.truncation = 0.0  # threshold of |z| in samples; 0: none
  m.standing_every, m.standing_passes = 100, 16  # batch norm of samples; 0, 16: running averages
  if variant in ("paper", "narrow"):
    c.data.source, c.data.name, c.data.num_classes = "tfds", "imagenet2012", 1_000
    c.data.image_size, c.data.channels, c.data.test_split = 128, 3, "validation"
    c.lr, c.batch_size, c.num_steps, c.accumulate, c.metrics = 5e-5, 2_048, 150_000, 8, ()
    m.d_lr, m.adam_eps, m.sn_eps, m.ortho_weight = 4.0, 1e-6, 1e-6, 1e-4
    m.z_dim, m.embed_features, m.base, m.attention = 120, 128, 96, (64,)
    m.g_widths, m.d_widths, m.d_down = (16, 8, 4, 2, 1), (1, 2, 4, 8, 16, 16), 5
    m.ema, m.ema_from, m.standing_every = 0.9999, 20_000, 1_000
  if variant == "narrow":
    m.base = 64
  if variant in ("cifar10", "test_tables"):
    m.hierarchical, m.embed_features, m.attention, m.scheme = False, 0, (), "normal"
  if variant == "cifar10":
    c.data.source, c.data.name, c.data.num_classes = "tfds", "cifar10", 10
    c.data.image_size, c.data.channels = 32, 3
    c.lr, c.batch_size, c.num_steps, c.metrics = 2e-4, 50, 125_000, ()  # 500 epochs, 4 batches each
    m.d_steps, m.z_dim, m.base = 4, 128, 64
    m.g_widths, m.d_widths, m.ema, m.ema_from = (4, 4, 4), (4, 4, 4, 4), 0.9999, 1_000
    m.standing_every = 1_000
  if variant in ("test", "test_tables"):
    c.num_steps, c.batch_size, c.num_eval_samples = 2, 8, 16
    c.log_every = c.sample_every = c.checkpoint_every = 1
    c.data.image_size, m.base, m.g_widths, m.d_widths, m.d_down = 8, 8, (1,), (1,), 1
    m.z_dim, m.embed_features, m.ema_from = 4, m.embed_features // 4, 1
    m.ortho_weight, m.truncation, m.standing_every, m.standing_passes = 1e-4, 0.5, 2, 2
    m.adam_eps = 1e-4
  if variant == "test":
    m.attention = (4, 8)  # in D, in G
  return c
