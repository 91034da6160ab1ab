"""Scores of digit images by a small classifier that stands in this repository.

The network is the `classifier` method's, trained on the 60,000 images of MNIST's training split;
its numbers are those of weights/digit_classifier.npz, with a record of their training. Its Frechet
distance has nothing to do with published FIDs: compare it with frechet_self, and with runs of the
same number of samples.

  python -m gm.metrics.digits export --workdir=DIR     takes the weights from a run of `classifier`
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from gm.core import Info
from gm.metrics import coverage, frechet
from gm.nets.classifier import DigitClassifier
from gm.weights import digits as weights

NUM_CLASSES = 10
NUM_FEATURES = 128
SIDE = 28
BATCH = 500  # one shape, so one compilation


def scores(
  fake: Mapping[str, np.ndarray], real: Mapping[str, np.ndarray], info: Info
) -> dict[str, float]:
  """Fidelity and balance of digit images, as the classifier sees them.

  Args:
    fake: "image" [N, H, W, C] in [-1, 1], and "label" [N] where a digit was asked for.
    real: "image" [M, H, W, C].
    info: facts of the data: they have ten classes, or none that are known.

  Returns:
    frechet: `frechet.feature_distance` of all N samples from all M real images.
    frechet_self: the same between two random disjoint halves of the real images, each of
      min(N, M) // 2. It falls about as 1 / size, so that where N = M perfect samples score half of
      it: two sets of 5,000 real images of MNIST are 2.16 apart, the halves of one 3.84.
    class_min_share: share of the rarest predicted digit; 0 where a digit is never drawn.
    class_max_share: share of the most frequent one.
    class_kl: KL in nats of the predicted digits of the samples from those of the real images, the
      latter with half a count added to each.
    confidence: mean of the largest class probability.
    label_agreement: share of samples predicted to be the digit asked for, if there is "label".

  Raises:
    ValueError: if there are no images, fewer than 4 of either, or another number of classes.
  """
  if info.num_classes not in (0, NUM_CLASSES):
    raise ValueError(
      f"digits.scores is of digits, these data have {info.num_classes} classes: take it out of"
      " --config.metrics, or use data of ten digits"
    )
  probs, features = classify(_images(fake, "samples"))
  real_probs, real_features = classify(_images(real, "real data"))
  size = min(len(features), len(real_features)) // 2
  digits = probs.argmax(1)
  share = _counts(digits) / len(digits)
  real_share = (_counts(real_probs.argmax(1)) + 0.5) / (len(real_probs) + 0.5 * NUM_CLASSES)
  found = {
    "frechet": frechet.feature_distance(features, real_features),
    "frechet_self": frechet.self_distance(real_features, size=size),
    "class_min_share": float(share.min()),
    "class_max_share": float(share.max()),
    "class_kl": coverage.kl_to(share, real_share),
    "confidence": float(probs.max(1).mean()),
  }
  if "label" in fake:
    found["label_agreement"] = float((digits == np.asarray(fake["label"])).mean())
  return found


scores.least = 4  # two halves of two
scores.feature_net = f"gm digit classifier, {NUM_FEATURES} features"


def classify(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Class probabilities and features of images, in batches of one shape.

  Args:
    images: [N, H, W, C] in [-1, 1], brought to 28 x 28 x 1 by `to_digits`.

  Returns:
    probabilities [N, 10] and features [N, 128], f32.

  Raises:
    ValueError: if these are not images.

  >>> probs, features = classify(np.zeros((3, 32, 32, 3)))
  >>> probs.shape, features.shape
  ((3, 10), (3, 128))
  """
  images = np.asarray(images, np.float32)
  if images.ndim != 4 or not len(images) or images.shape[3] not in (1, 3):
    raise ValueError(
      f"digits.scores takes images [N, H, W, C] with N >= 1 and 1 or 3 channels, not {images.shape}"
    )
  variables, run = _network()
  parts = []
  for i in range(0, len(images), BATCH):
    part = images[i : i + BATCH]
    padded = np.pad(part, ((0, BATCH - len(part)), (0, 0), (0, 0), (0, 0)))
    parts.append([x[: len(part)] for x in jax.device_get(run(variables, padded))])
  probs, features = (np.concatenate(p) for p in zip(*parts, strict=True))
  return probs, features


def to_digits(images: jax.Array) -> jax.Array:
  """Brings images to 28 x 28 x 1, as the built-in sets bring MNIST to other sizes, backwards.

  Values are clipped to [-1, 1]; channels are averaged; each axis by itself is cropped to its middle
  28 pixels if it is longer, since those sets add background around the digit, and interpolated
  linearly if it is shorter, since they resize by area there.

  Args:
    images: [B, H, W, C].

  Returns:
    [B, 28, 28, 1].

  >>> to_digits(jnp.zeros((2, 32, 16, 3))).shape
  (2, 28, 28, 1)
  """
  x = jnp.clip(images, -1.0, 1.0).mean(3, keepdims=True)
  top, left = (max(0, n - SIDE) // 2 for n in x.shape[1:3])
  x = x[:, top : top + SIDE, left : left + SIDE]
  return jax.image.resize(x, (len(x), SIDE, SIDE, 1), "linear")


def export(workdir: str, path: pathlib.Path = weights.FILE) -> dict:
  """Writes the averaged weights of a finished run of `classifier`, in float16.

  Args:
    workdir: of the run.
    path: the file.

  Returns:
    The record that the file holds: the test accuracy is that of the rounded weights.

  Raises:
    gm.errors.UserError: if the folder holds no run.
    ValueError: if it holds one of another method.
  """
  # the command needs the loop's side of gm, on which the metrics themselves do not depend
  evaluation = importlib.import_module("gm.evaluation")
  evaluator, state = evaluation.from_workdir(workdir, None)
  config = evaluator.job.config
  if config.method != "classifier":
    raise ValueError(f"{workdir} is a run of {config.method}: give one of classifier as --workdir")
  rounded = jax.tree.map(lambda x: np.asarray(x, np.float16), state.ema)
  widened = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), rounded)
  record = {
    "test_accuracy": round(evaluator.evaluate(state.replace(ema=widened))["accuracy"], 6),
    "num_test": evaluator.source.num_examples,
    "steps": int(state.step),
    "batch_size": config.batch_size,
    "data": evaluation.origin(evaluator.job, evaluator.source),
    "seed": config.seed,
  }
  variables = {"params": rounded["c"]}
  arrays = traverse_util.flatten_dict(variables, sep="/")
  np.savez_compressed(path, record=json.dumps(record), **arrays)
  return record


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line; returns the exit code."""
  parser = argparse.ArgumentParser(prog="python -m gm.metrics.digits")
  command = parser.add_subparsers(required=True).add_parser("export", help="writes the weights")
  command.add_argument("--workdir", required=True, help="a finished run of configs/classifier.py")
  command.add_argument(
    "--to", type=pathlib.Path, default=weights.FILE, help=f"default: {weights.FILE.name}"
  )
  args = parser.parse_args(argv)
  try:
    print(json.dumps(export(args.workdir, args.to)))
  except (ValueError, OSError, importlib.import_module("gm.errors").UserError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


@functools.cache
def _network() -> tuple[dict, Callable]:
  net = DigitClassifier()

  def run(variables, images):
    logits, features = net.apply(variables, to_digits(images))
    return jax.nn.softmax(logits), features

  return jax.device_put(weights.load()[0]), jax.jit(run)


def _counts(digits: np.ndarray) -> np.ndarray:
  return np.bincount(digits, minlength=NUM_CLASSES)


def _images(batch: Mapping[str, np.ndarray], what: str) -> np.ndarray:
  if "image" not in batch:
    raise ValueError(
      f"digits.scores takes images, the {what} hold {', '.join(sorted(batch)) or 'nothing'}: take"
      " it out of --config.metrics, or use data with images"
    )
  return batch["image"]


if __name__ == "__main__":
  sys.exit(main())
