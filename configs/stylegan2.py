"""python main.py --config=configs/stylegan2.py --workdir=/tmp/stylegan2

Variants: small (default; digits at 16 px), ada (200 of these images, adaptive augmentation), no_ada
(the same without), paper (1024 px, the published configuration F), paper256 (F at 256 px), ada256
(what the authors' code of ADA calls paper256: half the width, larger batches, ADA), test.

Measured, small, seeds 0, 1, 2 and 16, 10,000 samples: the rarest digit is 5.4, 3.6, 5.3 and 6.1 %
of them, the classifier's Frechet distance 18.0, 21.9, 16.6 and 16.6 (1.0 between halves of the
data); 5 to 6 minutes on two cores. With lr 2.5e-3, R1 0.0016 and batches of 32 G is still collapsed
after 48,000 images (Frechet 406, seed 0). no_ada and ada, seed 0, D's mean scores of images as they
are: of the 200 that it is trained on 0.52 above those of others without ADA, 0.15 below with it; p
ends at 0.12. So D no longer overfits, but in 3,000 steps G has not gained by it: Frechet 102
without ADA, 427 with it, all of one class; with R1 0.5 and ada_target=0.3 42 and 199 (p 0.18), with
R1 0.5 alone p stays at 0. The paper variants were not trained.
"""

from configs import common

VARIANTS = ("small", "ada", "no_ada", "paper", "paper256", "ada256", "test")


def get_config(variant="small"):
  if variant not in VARIANTS:
    raise common.unknown(variant, VARIANTS)
  c = common.base("stylegan2")
  c.lr = 8e-3
  c.num_steps, c.batch_size = 6_000, 16
  c.log_every, c.sample_every, c.checkpoint_every = 100, 1_000, 2_000
  c.metrics = ("digits.scores",)
  c.data.image_size = 16
  m = c.model
  m.z_dim, m.w_dim, m.mapping_layers = 64, 64, 4
  m.base, m.most, m.stddev_group, m.mirror = 512, 32, 4, False
  m.b1, m.b2 = 0.0, 0.99
  m.ema_images, m.ema_ramp = 2_000, 0.05  # half-life; at most this share of the images seen
  m.mixing = 0.9
  m.r1_gamma, m.r1_every = 0.5, 16  # the authors' rule, 0.0002 * 16^2 / 16, lets G collapse
  m.path_weight, m.path_every = 2.0, 4
  m.noise, m.psi = "random", 1.0  # of samples
  m.augment = ""  # of what D sees: color,translation,cutout, or some of them
  m.ada_kinds = ""  # letters out of "bgc", of what D sees too; "": none
  m.ada_target, m.ada_images = 0.6, 500_000  # images in which p may rise from 0 to 1
  if variant in ("ada", "no_ada"):
    c.num_steps, c.eval_every, c.reference_split = 3_000, 1_000, "test"
    c.data.num_train = 200
    m.r1_gamma, m.ada_images = 0.05, 20_000  # all of small's R1 keeps D below ada_target
  if variant in ("ada", "ada256"):
    m.ada_kinds = "bgc"
  if variant in ("paper", "paper256", "ada256"):
    c.data.source, c.data.name = "folder", "ffhq"
    c.data.image_size, c.data.channels = 1024, 3
    c.lr, c.batch_size, c.num_steps, c.metrics = 2e-3, 32, 781_250, ()  # 25 million images
    m.z_dim, m.w_dim, m.mapping_layers = 512, 512, 8
    m.base, m.most, m.mirror = 32768, 512, True
    m.ema_images, m.ema_ramp, m.r1_gamma = 10_000, 0.0, 10.0
  if variant in ("paper256", "ada256"):
    c.data.image_size = 256
  if variant == "ada256":
    c.lr, c.batch_size, c.num_steps = 2.5e-3, 64, 390_625
    m.base, m.stddev_group, m.r1_gamma, m.ema_images = 16384, 8, 1.0, 20_000
  if variant == "test":
    c.data.image_size = 4
    c.num_steps, c.batch_size, c.num_eval_samples = 2, 8, 16
    c.log_every = c.sample_every = c.checkpoint_every = 1
    m.z_dim, m.w_dim, m.mapping_layers, m.base, m.most = 4, 4, 1, 16, 4
    m.ada_kinds, m.ada_images = "c", 100
  return c
