"""python main.py --config=configs/singan.py --workdir=/tmp/singan

Variants: small (default; a photograph of a temple at 64 pixels), paper, test.

Not measured: no variant was trained to its end, on 0 seeds, and the number of steps of small is a
guess; its tests say what it shall reach.
"""

from configs import common

VARIANTS = ("small", "paper", "test")


def get_config(variant="small"):
  if variant not in VARIANTS:
    raise common.unknown(variant, VARIANTS)
  c = common.base("singan")
  c.lr = 5e-4
  c.num_steps, c.batch_size, c.num_devices = 300, 1, 1  # of each level
  c.log_every, c.sample_every, c.checkpoint_every = 100, 0, 0
  c.metrics, c.num_eval_samples = ("patches.of_one",), 20
  c.data.source, c.data.name, c.data.image_size = "picture", "china", 64
  m = c.model
  m.min_size, m.max_size, m.factor = 18, 64, 0.75  # pixels of the pyramid, and from level to level
  m.width = 16  # channels; twice as many every four levels
  m.d_steps, m.g_steps = 3, 3
  m.gp_weight, m.rec_weight, m.noise = 0.1, 10.0, 0.1
  m.b1, m.b2, m.decay_at = 0.5, 0.999, 0.8  # the part of the steps before the rate falls
  m.quantise = True  # images are cut to 8 bits between levels
  m.out_size = ()  # of samples; (): that of the picture
  m.start_level = 0  # of samples: the levels below give the picture
  m.inject = 0  # the level at which an image enters; 0: none does
  m.extra = 0  # how often the finest level is applied again, to enlarge
  if variant == "paper":
    c.data.image_size = 0
    c.num_steps, c.num_eval_samples = 2_000, 50
    m.min_size, m.max_size, m.width = 25, 250, 32
  if variant == "test":
    c.num_devices = 0
    c.data.image_size = 20  # and two levels, of 12 and 14
    c.num_steps, c.num_eval_samples = 2, 4
    c.log_every = c.sample_every = c.checkpoint_every = 1
    c.batch_size, m.min_size, m.max_size, m.width = 8, 12, 14, 24
    m.d_steps, m.g_steps = 1, 1
  return c
