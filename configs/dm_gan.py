"""python main.py --config=configs/dm_gan.py --workdir=/tmp/dm_gan

Variants: small (default; captioned avatars, 8 -> 16 -> 32 px), paper (CUB, 64 -> 128 -> 256), test.

Measured, small, seeds 0, 1, on 1,600 samples for held-out combinations of hair, its colour, beard
and glasses, by a network that has learned from real images what captions say: it names what the
caption says in 67.1, 71.1 % (chance 31.7, 32.3; real images 90.6). Of these hair 94, 91 %, its
colour 83, 83, glasses 82, 83, colour of clothes 47, 49, beard 30, 49, where chance is 39, 43: a
beard is not learned. A sample's own caption is the nearest of 32 for 70.5, 74.6 %. The encoders
find that of a held-out image for 80.4, 79.7, 83.0 % (seeds 0, 1, 2; chance 3.1). Noise changes
clothes and light in seed 1, next to nothing in seed 0. About 7 minutes of processor time with
evaluation, of a machine that had much other work. paper was not run.
"""

from configs import common

VARIANTS = ("small", "paper", "test")


def get_config(variant="small"):
  if variant not in VARIANTS:
    raise common.unknown(variant, VARIANTS)
  c = common.base("dm_gan")
  c.data.source, c.data.name, c.data.image_size = "prepared", "avatars", 32
  c.data.text_key, c.data.text_length, c.data.vocab_size = "caption", 16, 64
  c.lr, c.batch_size, c.num_steps = 1e-3, 16, 3_000
  c.log_every, c.sample_every, c.checkpoint_every = 50, 500, 1_000
  c.metrics, c.num_eval_samples = ("captions.carried",), 1_600
  m = c.model
  m.features, m.embed, m.dropout = 64, 64, 0.2  # of words and sentence; of a token
  m.image_encoder, m.widths = "convolutions", (32, 64, 128)  # or inception
  m.matching_steps, m.matching_batch_size = 500, 32  # 0: batch_size
  m.matching_lr, m.matching_decay_every = 2e-3, 1_000_000  # steps, each time by 0.98, to a tenth
  m.text_clip, m.gammas = 0.25, (4.0, 5.0, 10.0)
  m.num_captions = 32  # of which the own one is to be found, in r_precision
  m.g_base, m.d_base, m.z_dim, m.condition = 16, 32, 16, 16
  m.num_refine, m.num_blocks = 2, 1
  m.matching_weight, m.b1, m.ema = 0.5, 0.5, 0.995
  m.augment = ""  # of what D sees: color,translation,cutout, or some of them
  if variant == "paper":
    c.data.source, c.data.name, c.data.image_size, c.data.channels = "folder", "cub", 256, 3
    c.data.text_length, c.data.vocab_size = 18, 5_450
    c.lr, c.batch_size, c.num_steps = 2e-4, 10, 708_000  # 800 epochs of 8,855 birds
    c.metrics = ()
    c.checkpoint_every = c.sample_every = 10_000
    m.features, m.embed, m.dropout, m.image_encoder = 256, 300, 0.5, "inception"
    m.matching_steps, m.matching_batch_size = 36_800, 48  # 200 epochs
    m.matching_decay_every, m.matching_weight = 184, 5.0
    m.num_captions, m.g_base, m.d_base, m.z_dim, m.condition = 100, 64, 32, 100, 100
    m.num_blocks, m.ema = 2, 0.999
  if variant == "test":
    c.num_steps, c.batch_size, c.num_eval_samples, c.metrics = 2, 8, 16, ()
    c.log_every = c.sample_every = c.checkpoint_every = 1
    c.data.image_size = 16
    m.matching_steps, m.matching_batch_size, m.num_captions = 2, 0, 4
    m.features, m.embed, m.widths = 4, 4, (4, 4)
    m.g_base, m.d_base, m.z_dim, m.condition, m.num_refine = 4, 4, 4, 4, 1
  return c
