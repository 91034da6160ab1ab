"""Classifier. LeCun et al., Gradient-based learning applied to document recognition, 1998.

Idea: a small convolutional network that tells digits apart, to score generators of digits: its
features give a Frechet distance, its predictions the share of each class. A game of one player.
Objective: minimise -E log softmax(c(x))_y over shifted images.
Departures: not LeNet-5 but two convolutions of stride 2, rectified, and one dense layer, see
gm/nets/classifier.py. Images are shifted by up to `shift` pixels either way, and the weights that
count are averages over steps.
Run: python main.py --config=configs/classifier.py --workdir=/tmp/classifier
  5.8 minutes of processor time, 99.34 % of the 10,000 test images (seed 0)
Then: python -m gm.metrics.digits export --workdir=/tmp/classifier
"""

from __future__ import annotations

import jax.numpy as jnp
import optax

from gm import augment, core, flags, optim
from gm.nets.classifier import DigitClassifier


def stages(config, info: core.Info) -> list[core.Stage]:
  """Returns the one stage of a classifier of 28 x 28 x 1 digits.

  Raises:
    ValueError: for other data, or a number that is not possible.
  """
  m = config.model
  flags.within(m, "shift", least=0, most=27)
  flags.within(m, "ema", least=0.0, below=1.0)
  if info.shape.get("image") != (28, 28, 1) or info.num_classes != 10:
    raise ValueError(
      f"classifier takes images (28, 28, 1) of 10 classes, the data have {info.shape.get('image')}"
      f" and {info.num_classes}: set --config.data.name to mnist or mnist10k, in their own size"
    )
  c = DigitClassifier(dtype=config.compute_dtype)
  tx = optim.adam(optim.cosine(config.lr, config.num_steps))

  def logits(params, x):  # [B, H, W, C] -> [B, 10]
    return c.apply({"params": params["c"]}, x)[0]

  def shift(key, x):  # what comes in repeats the border, which is background
    return augment.random_crop(key, augment.pad(x, (m.shift, m.shift), mode="edge"), x.shape[1:3])

  def errors(params, batch):
    found, y = logits(params, batch["image"]), batch["label"]
    nll = optax.softmax_cross_entropy_with_integer_labels(found, y).mean()
    return nll, (found.argmax(-1) == y).astype(jnp.float32).mean()

  def init(key, batch, prev):
    params = {"c": core.build(c, key, batch["image"][:2])[0]}
    return core.State(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt={"c": core.init_slot(tx, params, ["c"])},
      ema=params,
    )

  def step(state, batch, key):
    def loss(p, b):
      nll, accuracy = errors(p, b)
      return nll, ({}, {"train_accuracy": accuracy})

    batch = {**batch, "image": shift(key, batch["image"])}
    state, found = core.minimize(state, tx, loss, ["c"], batch, accumulate=config.accumulate)
    # short at first: else the average would hold on to the random start for 1 / (1 - ema) steps
    decay = jnp.minimum(m.ema, state.step / (state.step + 10))
    ema = core.ema(state.ema, state.params, decay)
    return state.replace(step=state.step + 1, ema=ema), found

  def predict(state, batch):
    return logits(state.ema, batch["image"]).argmax(-1).astype(jnp.int32)

  def sample(state, batch, key):
    """The images with the labels that they get."""
    return {"image": batch["image"], "label": predict(state, batch)}

  def evaluate(state, batch, key):
    nll, accuracy = errors(state.ema, batch)
    return {"nll": nll, "accuracy": accuracy}

  def show(state, batch, key):
    """Images in the order of the labels that they get."""
    x, cols = batch["image"], 8
    x = x[jnp.argsort(predict(state, batch), stable=True)]
    return {"sorted": x[: len(x) // cols * cols].reshape(-1, cols, *x.shape[1:])}

  return [core.Stage("train", config.num_steps, init, step, sample, evaluate, show)]
