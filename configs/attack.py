"""python main.py --config=configs/attack.py --workdir=/tmp/attack

Variants: small (default; a classifier and three attacks on it), network (then a network that finds
attacks in one pass), compete (then both in turn, beside a classifier that is finetuned once), paper
(Madry et al.'s network and attack), test.
"""

from configs import common

VARIANTS = ("small", "network", "compete", "paper", "test")


def get_config(variant="small"):
  if variant not in VARIANTS:
    raise common.unknown(variant, VARIANTS)
  c = common.base("attack")
  c.lr = 2e-3
  c.num_steps, c.batch_size = 800, 100
  c.log_every, c.sample_every, c.checkpoint_every = 50, 0, 300
  m = c.model
  m.game = "attack"  # or network, compete: stages are added
  m.c_widths, m.c_features, m.c_pool, m.c_dropout = (16, 32), 128, False, 0.2
  m.a_base, m.a_sees, m.a_lr = 8, "image", 2e-3  # or slope: of C's loss
  m.a_moves = 1  # of A where it sees the slope, anew before each
  m.c_steps, m.a_steps, m.once_steps = 800, 200, 150  # of the stages before the last
  m.eps, m.pgd_step, m.pgd_steps, m.restarts = 0.3, 0.01, 40, 2  # pixels in [0, 1]
  m.num_tries = 200  # of the search without gradients
  m.near_weight, m.near_rounds, m.near_steps, m.near_stride = 10.0, 6, 40, 1.0  # of the nearest
  if variant == "network":
    m.game, c.num_steps = "network", 300
  if variant == "compete":
    m.game, c.num_steps, m.a_steps = "compete", 1_500, 150
    c.lr, c.batch_size, m.c_dropout = 4e-3, 64, 0.0
    m.a_sees = "slope"
  if variant == "paper":
    c.data.source, c.data.name = "prepared", "mnist"
    m.game, c.lr, m.a_lr = "compete", 1e-4, 1e-4
    c.batch_size, c.num_steps, c.checkpoint_every = 50, 100_000, 5_000
    m.c_widths, m.c_features, m.c_pool, m.c_dropout = (32, 64), 1_024, True, 0.0
    m.c_steps, m.a_steps, m.once_steps = 20_000, 20_000, 5_000
    m.a_base, m.a_sees, m.a_moves, m.restarts = 32, "slope", 4, 20
    m.near_rounds, m.near_steps, m.num_tries = 9, 1_000, 5_000
  if variant == "test":
    m.game = "compete"
    c.num_steps, c.batch_size, c.num_eval_samples = 2, 8, 16
    c.log_every = c.sample_every = c.checkpoint_every = 1
    m.c_steps = m.a_steps = m.once_steps = 2
    m.c_widths, m.c_features, m.c_dropout, m.a_base, m.a_sees = (4, 4), 16, 0.5, 4, "slope"
    m.pgd_steps, m.num_tries, m.near_rounds, m.near_steps = 2, 2, 2, 2
  return c
