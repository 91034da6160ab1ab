"""python main.py --config=configs/iwae.py --workdir=/tmp/iwae

Variants: small (default; 8x8 digits, k = 5), mnist10k (28 px, k = 5), two_layers (mnist10k with two
layers of latents), mnist (full MNIST, two layers, k = 50), paper (one layer, k = 50),
paper_two_layers, test. MIWAE(8, 8): --config.model.bound=miwae --config.model.k=64
--config.model.groups=8. DReG: --config.model.gradient=dreg.

Measured on 2 cores. small, seeds 0, 1, 2, 297 test images, nats by 500 draws: 22.37, 22.40, 22.27
with k = 5; 22.78, 22.75, 22.66 with k = 1, the VAE. The ELBO is the worse for it: -23.38, -23.43,
-23.31 against -23.12, -23.10, -22.99. Half a minute each. mnist10k, seed 0, 1,000 test images: 99.5
nats where the VAE of these networks has 100.7 (configs/vae.py); 194 s of one core. mnist was not
run: a step takes 90 ms of one core, all of them one and a half hours. Nor were the others.
"""

from configs import common

VARIANTS = ("small", "mnist10k", "two_layers", "mnist", "paper", "paper_two_layers", "test")


def get_config(variant="small"):
  if variant not in VARIANTS:
    raise common.unknown(variant, VARIANTS)
  c = common.base("iwae")
  c.data.source, c.data.name = "installed", "digits"
  c.lr = 1e-3
  c.num_steps, c.batch_size = 4_500, 100  # 300 epochs of 1,500 digits of 8 x 8
  c.log_every, c.sample_every, c.checkpoint_every = 100, 1_500, 1_500
  m = c.model
  m.z_dims, m.widths, m.depth, m.activation = (8,), (200,), 2, "tanh"  # depth: of each network
  m.bound, m.k, m.groups, m.mix = "iwae", 5, 1, 0.5  # mix: ELBO's share, in ciwae
  m.gradient = "total"  # of the encoder; or dreg
  m.schedule, m.steps_per_epoch, m.adam_eps = "cosine", 3_000, 1e-8  # or burda, in epochs
  m.eval_k, m.eval_chunk = 500, 50
  if variant in ("mnist10k", "two_layers"):
    c.data.source, c.data.name = "embedded", "mnist10k"
    c.num_steps, c.sample_every, c.checkpoint_every = 10_000, 2_500, 2_500
    m.z_dims, m.widths, m.depth = (20,), (400,), 1
  if variant == "two_layers":
    m.z_dims, m.widths = (40, 20), (400, 100)
  if variant == "paper":
    m.z_dims = (50,)
  if variant in ("mnist", "paper_two_layers"):
    m.z_dims, m.widths = (100, 50), (200, 100)
  if variant in ("mnist", "paper", "paper_two_layers"):
    c.data.source, c.data.name = "prepared", "mnist"
    m.k = 50
  if variant == "mnist":
    c.num_steps, c.checkpoint_every, c.sample_every = 60_000, 5_000, 10_000
  if variant in ("paper", "paper_two_layers"):
    c.num_steps, c.batch_size, c.checkpoint_every = 9_840_000, 20, 100_000
    m.schedule, m.adam_eps, m.eval_k = "burda", 1e-4, 5_000
  if variant == "test":
    c.num_steps, c.batch_size, c.num_eval_samples = 2, 8, 16
    c.log_every = c.sample_every = c.checkpoint_every = 1
    m.z_dims, m.widths, m.depth, m.k, m.eval_k, m.eval_chunk = (3, 2), (16, 8), 1, 4, 8, 4
  return c
