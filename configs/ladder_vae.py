"""python main.py --config=configs/ladder_vae.py --workdir=/tmp/ladder_vae

Variants: small (default; 8x8 digits, 16 and 8 latents), bottom_up (small with the encoder of a
plain hierarchy), mnist10k (28 px, 32 and 16 latents), paper (five layers), test.

Measured on 2 cores, seeds 0, 1, 2, 297 test images, nats by 500 draws: small 22.33, 22.23, 22.12,
ELBO -22.8, -22.7, -22.6, of a rate of 5.8 the top layer tells 3.6, 3.6, 3.5; bottom_up 22.39,
22.30, 22.24, ELBO -22.9, -22.8, -22.7, 3.8, 3.6, 3.6 of 6.2. About 20 s of one core each. mnist10k
and paper were not run.
"""

from configs import common

VARIANTS = ("small", "bottom_up", "mnist10k", "paper", "test")


def get_config(variant="small"):
  if variant not in VARIANTS:
    raise common.unknown(variant, VARIANTS)
  c = common.base("ladder_vae")
  c.data.source, c.data.name = "installed", "digits"
  c.lr = 1e-3
  c.num_steps, c.batch_size = 4_500, 100  # 300 epochs of 1,500 digits of 8 x 8
  c.log_every, c.sample_every, c.checkpoint_every = 100, 1_500, 1_500
  m = c.model
  m.inference = "ladder"  # or bottom_up
  m.z_dims, m.widths, m.depth, m.activation = (16, 8), (200, 100), 2, "tanh"
  m.warmup, m.free_bits = 1_500, 0.0  # steps, 100 epochs; nats of each layer
  m.schedule, m.adam_eps, m.clip = "cosine", 1e-8, 0.0  # or constant; clip: of gradients, 0: none
  m.eval_k, m.eval_chunk = 500, 50
  if variant == "bottom_up":
    m.inference = "bottom_up"
  if variant == "mnist10k":
    c.data.source, c.data.name = "embedded", "mnist10k"
    c.num_steps, c.sample_every, c.checkpoint_every = 9_000, 3_000, 3_000
    m.warmup = 3_000
    m.z_dims, m.widths, m.depth = (32, 16), (400, 100), 1
  if variant == "paper":
    c.data.source, c.data.name = "prepared", "mnist"
    c.lr, c.batch_size, c.num_steps, m.warmup = 2e-4, 256, 470_000, 47_000  # 2,000 and 200 epochs
    c.checkpoint_every = c.sample_every = 10_000
    m.z_dims, m.widths = (64, 32, 16, 8, 4), (512, 256, 128, 64, 32)
    m.activation, m.schedule, m.adam_eps, m.clip = "leaky_relu", "constant", 1e-4, 0.9
    m.eval_k = 5_000
  if variant == "test":
    c.num_steps, c.batch_size, c.num_eval_samples = 2, 8, 16
    c.log_every = c.sample_every = c.checkpoint_every = 1
    m.z_dims, m.widths, m.depth, m.warmup, m.eval_k, m.eval_chunk = (3, 2), (16, 8), 1, 4, 4, 2
  return c
