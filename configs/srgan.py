"""python main.py --config=configs/srgan.py --workdir=/tmp/srgan

Variants: small (default; photographs), paper (a folder of photographs, such as DIV2K), test.

Measured, seed 0 alone, in a shorter run than small: batches of 16, 300 steps of the first stage at
one rate and 100 of the second. On the 55 tiles of two photographs that are held out whole, means
over tiles, 4 pixels of border left out, 8 bits: PSNR of luma 31.14 dB after the first stage
(bicubic 30.96) and 30.90 after the second, of RGB 29.49 (29.31) and 29.09, SSIM of luma 0.785
(0.780) and 0.779; distance by the features that it is trained on 2.50 (bicubic 2.49) and 2.30; mean
|Laplacian| 0.020 (0.012; of the photographs 0.135) and 0.043. Without model.skip, 500 steps of the
first stage gave 27.69 dB. small itself was not run to its end, nor on other seeds, and paper not at
all.
"""

from configs import common

VARIANTS = ("small", "paper", "test")


def get_config(variant="small"):
  if variant not in VARIANTS:
    raise common.unknown(variant, VARIANTS)
  c = common.base("srgan")
  c.lr = 1e-3
  c.num_steps, c.batch_size = 500, 8  # of the second stage
  c.log_every, c.sample_every, c.checkpoint_every = 100, 1_000, 1_000
  c.data.source, c.data.name = "prepared", "photos"
  m = c.model
  m.pretrain_steps = 1_500  # of the first, on pixels alone
  m.crop = 48  # pixels of what is trained on, cut out of the tiles at random; 0: whole tiles
  m.flip, m.b1 = 0.5, 0.9  # chance of mirroring
  m.decay_at = 0.8, 0.5  # the part of each stage's steps before the rate falls to a tenth
  m.base, m.num_blocks = 32, 4
  m.slopes, m.bias, m.last = "channel", False, "linear"  # or layer; before batch norms; or tanh
  m.skip = True  # G adds to what bicubic gives, for a short training; the paper's does not
  m.d_widths, m.d_hidden, m.d_head = (16, 16, 32, 32, 64, 64), 64, "dense"  # or pool
  m.features, m.features_file = "efficientnet", ""  # or vgg54, vgg22: with a file; digits
  m.content_weight, m.pixel_weight, m.d_weight = 0.02, 1.0, 1e-3
  if variant == "small":
    c.eval_every = 1_000  # and at the end of each stage
  if variant != "small":
    m.skip = False
  if variant == "paper":
    c.data.source, c.data.name, c.data.image_size, c.data.channels = "tiles", "div2k", 96, 3
    c.lr, c.num_steps, c.batch_size, m.pretrain_steps = 1e-4, 200_000, 16, 1_000_000
    c.log_every, c.sample_every, c.checkpoint_every = 1_000, 10_000, 10_000
    m.crop, m.base, m.num_blocks, m.decay_at = 0, 64, 16, (1.0, 0.5)
    m.d_widths, m.d_hidden = (64, 64, 128, 128, 256, 256, 512, 512), 1_024
    m.features, m.content_weight, m.pixel_weight = "vgg54", 1.0, 0.0
  if variant == "test":
    c.data.source, c.data.name, c.data.image_size = "installed", "digits", 16
    c.num_steps, c.batch_size, c.num_eval_samples = 2, 8, 16
    c.log_every = c.sample_every = c.checkpoint_every = 1
    m.pretrain_steps, m.crop, m.base, m.num_blocks = 2, 8, 8, 1
    m.d_widths, m.d_hidden, m.features = (4, 8, 8), 8, "digits"
  return c
