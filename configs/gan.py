"""python main.py --config=configs/gan.py --workdir=/tmp/gan

Variants: small (default), ring, grid, moons (points in the plane), paper, test; minimax (ring with
that loss); collapse (a ring that loses modes; remedies: --config.model.pack=2, ...unroll=5);
line (a normal law on a line and a G that can reach it, beside the best D); vanishing (the same with
a D trained against a G that does not move).

Measured on 2 cores (80 GFLOP/s): small, seeds 0, 1, 2: the rarest digit is 7.6, 7.7, 8.1 % of
10,000 samples, Frechet distance 19.8, 23.4, 22.7 (two halves of the real digits: 2.1), in runs of
one thread each; seed 0 on both cores gave the same in 93 s of training and 8 s of evaluation.
ring, seeds 0, 1, 2: 8 of 8 modes, 0.93, 0.91, 0.93 of high quality, mode KL 0.007, 0.008, 0.004, in
25 s. grid, seed 0: 10 of 25 modes, 0.68 of high quality: mode collapse (Lin et al., 2018, report 17
modes for a plain GAN). minimax, seed 0: 8 of 8 modes, 0.93 of high quality, mode KL 0.002, in 28 s
of one core. paper was not run.
collapse, seeds 0, 1, 2: 4, 1, 3 of 8 modes have 20 of 2,500 samples (8, 1, 8 have one), mode KL
0.65, 2.08, 0.94, 0.80, 0.05, 0.83 of high quality; a fresh discriminator finds a JSD of at least
0.15, 0.52, 0.17. With model.pack=2: 8 of 8, KL 0.017, 0.004, 0.008, quality 0.73, 0.82, 0.81, JSD
below 0.001. Both take about 25 s of one core. With model.unroll=5, in 150 s: 8, 6, 4 of 8, KL 0.14,
0.30, 0.71, quality 0.40, 0.72, 0.72, JSD 0.08, 0.08, 0.16: less collapse, but no cure here.
Such games are chaotic: on another processor seed 0 of collapse ends with no mode of 20 samples,
quality 0.01 and a JSD of at least 0.46.
line, seed 0: the game's value falls from -0.2 to -1.3863 (-log 4), at most 0.02 below the best D's,
in 13 s.
vanishing, seed 0: after 10, 100, 500, 2,000 steps of D the minimax gradient is 2.4e-1, 7.5e-3,
8.0e-4, 8e-5 of the other (seeds 1 and 2 end at 4e-5 and 5e-5), and the game's value -0.42, -1.2e-2,
-1.2e-3, -1.1e-4 of at most 0.
"""

from configs import common

LINES = ("line", "vanishing")
POINTS = ("ring", "grid", "moons", "minimax", "collapse", *LINES)
VARIANTS = ("small", *POINTS, "paper", "test")


def get_config(variant="small"):
  if variant not in VARIANTS:
    raise common.unknown(variant, VARIANTS)
  c = common.base("gan")
  c.lr = 2e-3
  c.num_steps, c.batch_size = 8_000, 64
  c.log_every, c.sample_every, c.checkpoint_every = 200, 1_000, 3_000
  c.metrics = ("digits.scores",)
  m = c.model
  m.augment = ""  # of what D sees: color,translation,cutout, or some of them
  m.loss = "nonsaturating"  # or minimax
  m.optimizer, m.b1, m.d_lr = "adam", 0.5, 1.0  # d_lr: D's learning rate over G's
  m.noise, m.z_dim, m.ema = "normal", 32, 0.999
  m.g_widths, m.g_activation, m.g_norm, m.g_output = (256, 256), "relu", "batch", "tanh"
  m.d_widths, m.d_activation, m.d_pieces, m.d_dropout = (256, 256), "leaky_relu", 1, (0.0, 0.0)
  m.g_init, m.d_init, m.g_bias_from_data = "lecun", "lecun", False
  m.g_init_scale = m.d_init_scale = 1.0
  m.g_bias = 0.0  # at the start, of G's output
  m.g_from = 0  # step from which G moves
  m.pack = 1  # samples that D sees as one
  m.unroll = 0  # steps of D that G looks ahead
  if variant in POINTS:
    c.lr = 1e-3
    c.num_steps, c.batch_size = 6_000, 256
    c.sample_every, c.checkpoint_every = 500, 1_000
    c.metrics = ("coverage.distance" if variant == "moons" else "coverage.modes",)
    c.num_eval_samples = 2_500
    c.data.source, c.data.name = "points", variant if variant in ("grid", "moons") else "ring"
    m.d_lr, m.z_dim, m.g_output, m.g_norm = 2.0, 2, "none", "none"
    m.g_widths, m.g_activation, m.g_init = (128, 128), "tanh", "orthogonal"
    m.g_init_scale = m.d_init_scale = 1.4
    m.d_widths, m.d_activation, m.d_init, m.d_dropout = (128, 128), "tanh", "orthogonal", (0.0, 0.0)
  if variant == "grid":
    c.data.scale, m.g_widths, m.d_widths = 0.5, (256, 256), (256, 256, 256)
  if variant == "minimax":
    m.loss = "minimax"
  if variant == "collapse":
    c.num_steps = 4_000
    c.metrics = ("coverage.modes", "coverage.support", "fresh.held_out")
    c.data.scale = 0.5
    m.d_lr, m.z_dim, m.ema = 1.0, 16, 0.0
    m.g_activation = m.d_activation = "relu"
  if variant in LINES:  # N(2, 1/16) against N(-2, 1/16) at the start
    c.num_steps = 2_000
    c.log_every, c.eval_every, c.sample_every = 10, 100, 200
    c.metrics = ()
    c.data.name, c.data.mean, c.data.std = "gaussian1d", 2.0, 0.25
    m.b1, m.d_lr, m.z_dim, m.ema = 0.9, 1.0, 1, 0.0
    m.g_widths, m.g_init_scale, m.g_bias = (), 0.25, -2.0  # orthogonal in one dimension: +-0.25
    m.d_widths = (64, 64)
  if variant == "line":  # wide at first, so that the laws meet
    c.lr, c.num_steps, c.sample_every = 2e-3, 4_000, 500
    c.data.std, m.g_init_scale, m.d_lr, m.b1 = 1.0, 1.0, 2.0, 0.5
  if variant == "vanishing":
    m.loss, m.g_from = "minimax", 2_000
  if variant == "paper":
    c.data.source, c.data.name = "prepared", "mnist"
    c.lr, c.batch_size, c.num_steps = 0.1, 100, 300_000
    m.optimizer, m.noise, m.z_dim, m.ema = "sgd", "uniform", 100, 0.0
    m.g_widths, m.g_norm, m.g_output = (1200, 1200), "none", "sigmoid"
    m.d_widths, m.d_pieces, m.d_dropout = (240, 240), 5, (0.2, 0.5)
    m.g_init, m.d_init, m.g_bias_from_data = "uniform", "uniform", True
    m.g_init_scale, m.d_init_scale = 0.05, 0.005
  if variant == "test":
    c.num_steps, c.batch_size, c.num_eval_samples = 2, 8, 16
    c.log_every = c.sample_every = c.checkpoint_every = 1
    m.z_dim, m.g_widths, m.d_widths, m.d_dropout = 4, (16,), (16,), (0.2, 0.5)
  return c
