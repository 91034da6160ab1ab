"""python main.py --config=configs/lsgan.py --workdir=/tmp/lsgan

Variants: small (default; 28 px digits by label), modes (4 Gaussians in the plane), toy (8 on the
unit circle, as the authors have them), no_norm (digits without labels and without batch norm),
paper (112 px scenes), characters (3,740 Chinese characters by label), stability (64 px, no batch
norm in G), test. In stability also D goes without by --config.model.d_norm=none. RMSProp and the
Pearson targets: --config.model.optimizer=rmsprop --config.model.scheme=pearson. One class alone, of
any run with labels: --workdir=DIR --mode=sample --labels=3.

Measured, small, seeds 0 to 2, 10,000 samples: 97.6, 97.9 and 98.8 % are the digit that was asked
for, the rarest digit is 8.5 to 8.6 %, the classifier's Frechet distance 5.4, 6.5 and 6.1 (2.1
between halves of the data); 4 minutes on two cores. 2,000 steps with ema=0.998 gave 98.7 % and 5.0
(seed 0). Other variants were not run.
"""

from configs import common

VARIANTS = ("small", "modes", "toy", "no_norm", "paper", "characters", "stability", "test")


def get_config(variant="small"):
  if variant not in VARIANTS:
    raise common.unknown(variant, VARIANTS)
  c = common.base("lsgan")
  c.lr = 1e-3
  c.num_steps, c.batch_size = 1_000, 64
  c.log_every, c.sample_every, c.checkpoint_every = 50, 500, 1_000
  c.metrics = ("digits.scores",)
  m = c.model
  m.augment = ""  # of what D sees: color,translation,cutout, or some of them
  m.scheme = "01"  # or pearson
  m.optimizer, m.b1, m.ema = "adam", 0.5, 0.99  # or rmsprop
  m.d_lr = 1.0  # D's learning rate over G's
  m.noise, m.z_dim = "uniform", 128  # or normal
  m.nets, m.embed = "conv", 32  # or mlp; length of the map of the label, 0: no labels
  m.g_first, m.g_widths, m.g_strides, m.g_kernel = 32, (32,), (2, 2), 4  # 7 -> 14 -> 28
  m.g_norm, m.per_feature, m.output = "batch", True, "sigmoid"
  m.d_widths, m.d_dense, m.d_kernel, m.d_norm = (64, 80), (256,), 4, "batch"
  # in nets mlp; init: or orthogonal, init_scale its gain
  m.activation, m.init, m.init_scale = "leaky_relu", "lecun", 1.0
  m.sample_label = -1  # class of all samples; -1: the test split's, or those of --labels
  if variant in ("modes", "toy"):
    c.metrics, c.num_eval_samples = ("coverage.modes",), 2_500
    c.data.source = "points"
    m.noise, m.nets, m.embed, m.ema, m.g_norm, m.output = "normal", "mlp", 0, 0.0, "none", "none"
  if variant == "modes":
    c.num_steps, c.batch_size = 3_000, 256
    c.data.name, c.data.side = "grid", 2
    c.data.scale, c.data.std = 2.0, 0.15  # (+-2, +-2), standard deviation 0.3
    m.z_dim, m.g_widths, m.d_widths = 4, (64, 64), (64, 64)
  if variant == "toy":
    c.num_steps, c.batch_size = 35_000, 512
    c.log_every, c.sample_every, c.checkpoint_every = 500, 5_000, 5_000
    c.data.name, c.data.scale = "ring", 0.5  # radius 1, standard deviation 0.01
    m.z_dim, m.g_widths, m.d_widths, m.d_lr = 256, (128, 128), (128, 128), 0.1
    m.activation, m.init, m.init_scale = "tanh", "orthogonal", 1.4
  if variant == "no_norm":
    c.lr, c.num_steps = 2e-4, 1_500
    m.embed, m.g_norm, m.d_norm, m.output = 0, "none", "none", "tanh"
    m.g_first, m.g_widths, m.d_widths, m.d_dense = 64, (32,), (32, 64), ()
  if variant in ("paper", "characters", "stability"):
    names = {"paper": "lsun_church", "characters": "hwdb", "stability": "lsun_bedroom"}
    c.data.source, c.data.name = "folder", names[variant]
    c.num_steps, c.log_every, c.sample_every, c.checkpoint_every = 1_000_000, 100, 5_000, 10_000
    c.metrics = ()
    m.z_dim, m.ema, m.d_kernel = 1024, 0.0, 5
  if variant in ("paper", "stability"):
    c.data.image_size, c.data.channels = 112, 3
    m.embed, m.per_feature, m.output = 0, False, "tanh"
    m.g_first, m.g_widths, m.g_kernel = 256, (256, 256, 256, 256, 128, 64), 3
    m.g_strides = (2, 1, 2, 1, 2, 2, 1)  # 7 -> 14 -> 14 -> 28 -> 28 -> 56 -> 112 -> 112
    m.d_widths, m.d_dense = (64, 128, 256, 512), ()
  if variant == "characters":
    c.lr = 2e-4
    c.data.image_size, c.data.channels, c.data.num_classes = 28, 1, 3740
    m.embed, m.g_first, m.g_widths, m.g_kernel = 256, 128, (128,), 5
    m.d_widths, m.d_dense = (257, 320), (1024,)
  if variant == "stability":
    c.lr, c.data.image_size = 2e-4, 64
    m.g_first, m.g_widths, m.g_strides, m.g_kernel = 512, (256, 128, 64), (2, 2, 2, 2), 5
    m.g_norm = "none"
  if variant == "test":
    c.num_steps, c.batch_size, c.num_eval_samples = 2, 8, 16
    c.log_every = c.sample_every = c.checkpoint_every = 1
    m.z_dim, m.embed, m.g_first, m.g_widths = 4, 3, 4, (4,)
    m.d_widths, m.d_dense = (4, 6), (8,)
  return c
