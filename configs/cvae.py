"""python main.py --config=configs/cvae.py --workdir=/tmp/cvae

Variants: small (default; 8x8 digits), learned (small with p(z|y) learned), mnist10k (28 px), paper,
test. One class alone, of any run: --workdir=DIR --mode=sample --labels=3.

Measured on 2 cores. small, seeds 0, 1, 2, 297 test images: 20.13, 20.16, 20.11 nats given the label
(k = 500), a wrong label costs 12.7, 12.7, 12.3; half a minute. 97.6, 98.6, 97.9 % of 1,000 samples
have the label of their nearest training image. learned, seed 0: 20.03 nats, 13.0, 98.2 %. mnist10k,
seed 0, 1,000 test images: 97.6 nats, a wrong label costs 68, the classifier agrees on 88.3 % of
10,000 samples; 134 s of one core. paper was not run.
"""

from configs import common

VARIANTS = ("small", "learned", "mnist10k", "paper", "test")


def get_config(variant="small"):
  if variant not in VARIANTS:
    raise common.unknown(variant, VARIANTS)
  c = common.base("cvae")
  c.data.source, c.data.name = "installed", "digits"
  c.lr = 1e-3
  c.num_steps, c.batch_size = 4_500, 100  # 300 epochs of 1,500 digits of 8 x 8
  c.log_every, c.sample_every, c.checkpoint_every = 100, 1_500, 1_500
  m = c.model
  m.prior = "plain"  # or learned: p(z|y) depends on y
  m.z_dim, m.activation = 8, "tanh"
  m.enc_widths, m.dec_widths, m.prior_widths = (200, 200), (200, 200), (100,)
  m.schedule, m.steps_per_epoch, m.adam_eps = "cosine", 3_000, 1e-8  # or burda, in epochs
  m.eval_k, m.eval_chunk = 500, 50
  if variant == "learned":
    m.prior = "learned"
  if variant == "mnist10k":
    c.data.source, c.data.name = "embedded", "mnist10k"
    c.num_steps, c.sample_every, c.checkpoint_every = 9_000, 3_000, 3_000
    c.metrics = ("digits.scores",)
    m.z_dim, m.enc_widths, m.dec_widths = 10, (400, 400), (400, 400)
  if variant == "paper":
    c.data.source, c.data.name = "prepared", "mnist"
    c.num_steps, c.batch_size, c.checkpoint_every = 9_840_000, 20, 100_000
    m.prior, m.z_dim = "learned", 50
    m.schedule, m.adam_eps, m.eval_k = "burda", 1e-4, 5_000
  if variant == "test":
    c.num_steps, c.batch_size, c.num_eval_samples = 2, 8, 16
    c.log_every = c.sample_every = c.checkpoint_every = 1
    m.prior = "learned"
    m.z_dim, m.enc_widths, m.dec_widths, m.prior_widths = 2, (16,), (16,), (8,)
    m.eval_k, m.eval_chunk = 4, 2
  return c
