"""python main.py --config=configs/wgan.py --workdir=/tmp/wgan

Variants: small (default; gradient penalty), clip (weight clipping), ring (8 Gaussians), line (1-D),
paper and paper_clip (32 px), test, test_clip.

Measured: ring, seed 0, covers 8 of 8 modes with at least 5 % of 4,096 samples each, at least 65 %
of them within 0.2 of a centre. A critic alone, with model.penalty=one_sided and model.gp_weight=50,
finds W1 of two Gaussians on a line within 10 %. small, seeds 0, 1, 2: the rarest digit is 7.1, 6.9,
7.7 % of 10,000 samples, Frechet distance 57.7, 54.2, 64.0 (two halves of the real digits: 2.1),
slope 1.12, 1.10, 1.14 on held-out pairs; 4 min 54 s with start and evaluation on two cores (80
GFLOP/s together), before it used one device per core, which is 1.2 times as fast. clip, seed 0: no
digits yet after its 2,000 steps (Frechet distance 578); its critic's slope is 0.02. paper was not
run.
"""

from configs import common

VARIANTS = ("small", "clip", "ring", "line", "paper", "paper_clip", "test", "test_clip")


def get_config(variant="small"):
  if variant not in VARIANTS:
    raise common.unknown(variant, VARIANTS)
  c = common.base("wgan")
  c.lr = 5e-4
  c.num_steps, c.batch_size = 2_000, 32  # G steps; each of num_critic critic steps sees a batch
  c.log_every, c.sample_every, c.checkpoint_every = 50, 500, 500
  c.cpu_devices = 0  # one per core: 1.2 to 1.3 times as fast as one device on two cores
  c.metrics = ("digits.scores",)
  m = c.model
  m.augment = ""  # of what D sees: color,translation,cutout, or some of them
  m.lipschitz, m.num_critic, m.gp_weight, m.clip = "gp", 5, 10.0, 0.01
  m.penalty = "two_sided"  # or one_sided: of slopes above 1 alone
  m.b1, m.b2, m.ema = 0.5, 0.9, 0.995
  m.nets, m.z_dim, m.scheme = "conv", 128, "improved_wgan"
  m.base, m.kernel, m.first, m.crop = 16, 4, "dense", True  # 28 -> 14 -> 7 -> 4
  m.g_norm, m.d_norm, m.output = "none", "none", "tanh"
  m.widths = (128, 128, 128)  # where nets is "mlp"
  if variant in ("ring", "line"):
    c.data.source, c.data.name = "points", {"ring": "ring", "line": "gaussian1d"}[variant]
    c.lr, c.num_steps, c.batch_size, c.cpu_devices = 1e-4, 2_000, 128, 1
    c.metrics, c.num_eval_samples = ("coverage.modes",), 2_500
    m.nets, m.z_dim, m.gp_weight, m.scheme = "mlp", 2, 0.1, "he_uniform"
    c.data.scale = 0.7071 if variant == "ring" else 1.0  # radius 2 -> 1.414, as the authors do
  if variant == "line":
    c.metrics = ()
  if variant in ("clip", "test_clip"):
    m.lipschitz = "clip"
    c.lr = 5e-5
  if variant.startswith("paper"):
    c.data.source, c.data.name = "tfds", "cifar10"
    c.data.image_size, c.data.channels = 32, 3
    c.lr, c.batch_size, c.num_steps, c.metrics = 1e-4, 64, 40_000, ()
    m.z_dim, m.scheme, m.ema, m.b2 = 100, "torch", 0.0, 0.999
    m.base, m.kernel, m.first, m.crop = 256, 4, "conv", False
    m.g_norm, m.d_norm = "batch", "instance"
  if variant == "paper_clip":
    m.lipschitz, m.d_norm, c.lr = "clip", "batch", 5e-5
  if variant.startswith("test"):
    c.num_steps, c.batch_size, c.num_eval_samples = 2, 8, 16
    c.log_every = c.sample_every = c.checkpoint_every = 1
    m.z_dim, m.base, m.num_critic = 4, 4, 2
  return c
