"""python main.py --config=configs/cyclegan.py --workdir=/tmp/cyclegan

Variants: small (default; satellite pictures and shaded relief of 32 pixels), digits (8x8 digits and
inverted ones), paper (folders of 256 pixels, as horse2zebra), lua (128 pixels by the authors' first
code), test.

Images of your own: --config.data.name=folder --config.data.dir=DIR, with trainA, trainB, testA and
testB in DIR; see gm/data/domains.py.

Measured, small, seed 0, on the 85 pairs of the test split, mean absolute differences in [-1, 1]:
translations are off their true counterparts by 0.168 (satellite) and 0.135 (relief), the images of
the other domain by 1.002, those with the right mean and deviation of each channel by 0.309 and
0.191, the median colour by 0.248 and 0.178, the best affine map of colours, learned of pairs, by
0.155 and 0.102; images that come back by 0.085 and 0.041. 3.5 minutes of processor time. Seed 2,
after a training of 1,500 steps: 0.164 and 0.152. Sea, forest and desert have their colours; what is
lost: the deep sea, black from above, is taken for land here and there.
From grey (skip=False, three blocks at half the size), of patches half as wide and often without a
coast, forest and desert were exchanged: 0.450 and 0.204, where right means and deviations gave
0.334 and 0.197. With skip, a cycle of 10 and a `same` of 0.5 images were still left as they are
after 200 steps. The other variants were not run.
"""

from configs import common

VARIANTS = ("small", "digits", "paper", "lua", "test")


def get_config(variant="small"):
  if variant not in VARIANTS:
    raise common.unknown(variant, VARIANTS)
  c = common.base("cyclegan")
  c.lr = 5e-4
  c.num_steps, c.batch_size = 2_000, 4
  c.log_every, c.sample_every, c.checkpoint_every = 100, 1_000, 1_000
  c.metrics, c.reference_split = ("translation.counterparts",), "test"
  c.num_eval_samples = 256  # there are no more pairs
  c.data.source, c.data.name, c.data.image_size = "domains", "maps", 32
  m = c.model
  m.g_base, m.num_blocks, m.num_halvings, m.pad = 16, 2, 0, "reflect"  # or zero
  m.d_widths, m.d_padding = (32, 64), 1
  m.norm = "layer"  # or instance, the paper's
  m.affine = False  # scale and shift of instance norms
  m.skip = True  # a translator adds the image to its result
  m.loss, m.cycle, m.same = "least_squares", 1.5, 0.0  # or logistic
  m.pool_size = 50
  m.constant, m.b1 = 0.5, 0.5  # the part of the steps before the rate falls
  m.jitter, m.flip = 0, 0.5  # pixels that images are enlarged by; chance
  if variant == "digits":
    c.data.name, c.data.image_size = "digits", 16
    c.lr, c.num_steps, c.batch_size = 1e-3, 1_500, 16
    m.g_base, m.num_blocks, m.d_widths, m.flip = 16, 2, (16, 32), 0.0
  if variant != "small":
    m.num_halvings = 1
    m.norm, m.skip, m.cycle, m.same = "instance", False, 10.0, 0.5
  if variant in ("paper", "lua"):
    c.data.name, c.data.image_size, c.data.channels = "folder", 256, 3
    c.metrics, c.reference_split, c.batch_size, c.num_devices = (), "train", 1, 1
    c.lr, c.num_steps = 2e-4, 200 * 1_177  # epochs of horse2zebra
    c.log_every, c.sample_every, c.checkpoint_every = 1_000, 10_000, 10_000
    m.g_base, m.num_blocks, m.num_halvings, m.jitter = 64, 9, 2, 30
    m.d_widths = (64, 128, 256, 512)
  if variant == "lua":
    c.data.image_size, m.num_blocks, m.jitter = 128, 6, 15
    m.d_padding, m.affine = 2, True
  if variant == "test":
    c.data.name, c.data.image_size = "digits", 8
    c.num_steps, c.batch_size, c.num_eval_samples = 2, 8, 16
    c.log_every = c.sample_every = c.checkpoint_every = 1
    m.g_base, m.num_blocks, m.num_halvings, m.d_widths = 8, 1, 0, (8,)
    m.norm, m.skip = "layer", True
    m.pool_size, m.jitter = 6, 2
  return c
