"""python main.py --config=configs/classifier.py --workdir=/tmp/classifier

Variants: small (default; its weights are gm/weights/digit_classifier.npz), paper (the same network
for 50 epochs, never run), test.

Measured: small, seed 0, is right on 99.34 % of the 10,000 test images of MNIST, before and after
the weights are rounded to float16. 11 minutes at low priority on 2 cores that were busy with other
work, 5.8 minutes of processor time.
"""

from configs import common

VARIANTS = ("small", "paper", "test")


def get_config(variant="small"):
  if variant not in VARIANTS:
    raise common.unknown(variant, VARIANTS)
  c = common.base("classifier")
  c.lr = 1.5e-3
  c.num_steps, c.batch_size = 2_500, 100
  c.log_every, c.sample_every, c.checkpoint_every = 100, 0, 500
  c.cpu_devices = 0  # one per core: 1.3 times as fast as one device on two cores
  c.data.source, c.data.name = "prepared", "mnist"
  m = c.model
  m.shift, m.ema = 1, 0.998  # shift: pixels either way
  if variant == "paper":  # the same network for 50 epochs
    c.num_steps, c.checkpoint_every, c.eval_every = 30_000, 5_000, 5_000
    m.shift, m.ema = 2, 0.9995
  if variant == "test":
    c.data.source, c.data.name = "embedded", "mnist10k"
    c.num_steps, c.batch_size = 2, 8
    c.log_every = c.sample_every = c.checkpoint_every = 1
  return c
