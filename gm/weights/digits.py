"""The weights of `gm.nets.classifier.DigitClassifier` that stand in this repository.

They were trained by the `classifier` method, and `python -m gm.metrics.digits export` wrote them.
"""

from __future__ import annotations

import json
import pathlib

import numpy as np
from flax import traverse_util

FILE = pathlib.Path(__file__).parent / "digit_classifier.npz"


def load(file: pathlib.Path = FILE) -> tuple[dict, dict]:
  """Returns (variables in float32, record of their training: accuracy, steps, data, seed)."""
  with np.load(file, allow_pickle=False) as content:
    arrays = {name: content[name] for name in content.files}
  record = json.loads(str(arrays.pop("record")))
  arrays = {name: a.astype(np.float32) for name, a in arrays.items()}
  return traverse_util.unflatten_dict(arrays, sep="/"), record
