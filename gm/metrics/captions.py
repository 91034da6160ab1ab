"""Whether images show what their captions say, by a network that learns it of real ones.

Of data whose captions have a known truth (Info.said), the network learns from real images which
word a caption has for each attribute, and names those of the samples. A caption's word counts where
it was said; so does a beard or glasses that are not there, which captions say by silence.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gm.core import Info
from gm.metrics import reader

HELD_OUT = 6  # one real image in so many measures the network


def carried(fake: Mapping, real: Mapping, info: Info) -> dict[str, float]:
  """How often samples show what their captions say, and how often they would by chance.

  Args:
    fake: "image" [N, H, W, C] and "data_said" [N, A], the numbers of what captions say of each
      attribute (-1: nothing).
    real: "image" and "said" of at least 600 images; one in 6 is not learned from.
    info: `said` has the names of the attributes.

  Returns:
    For each attribute and for "all", their mean: carried_NAME, the share of samples where the
    network names what the caption says; real_NAME, the same of real images that it has not seen;
    chance_NAME, that of samples beside the captions of other samples.

  Raises:
    ValueError: if it is not known what captions say, or there are too few real images.
  """
  if "data_said" not in fake or "said" not in real:
    raise ValueError(
      "captions.carried needs captions of which is known what they say, and a method that is told"
      " them: set --config.data.name=avatars and --config.data.text_key=caption, or take it out of"
      " --config.metrics"
    )
  x, y = np.asarray(real["image"], np.float32), np.asarray(real["said"])
  if len(x) < carried.least:
    raise ValueError(f"captions.carried needs {carried.least} real images, given {len(x)}")
  samples, asked = np.asarray(fake["image"], np.float32), np.asarray(fake["data_said"])
  name = reader.train(x[len(x) // HELD_OUT :], y[len(x) // HELD_OUT :], y.max(0) + 1)
  found, seen = {}, name(samples)
  parts = {
    "carried": _agreement(seen, asked),
    "real": _agreement(name(x[: len(x) // HELD_OUT]), y[: len(x) // HELD_OUT]),
    "chance": _agreement(seen, np.random.default_rng(0).permutation(asked)),
  }
  for what, shares in parts.items():
    found |= {f"{what}_{n}": share for (n, _), share in zip(info.said, shares, strict=True)}
    found[f"{what}_all"] = float(np.mean(shares))
  return found


carried.least = 600


def _agreement(seen: np.ndarray, said: np.ndarray) -> list[float]:
  """The share of rows that agree, of those where something is said, for each attribute."""
  return [float((seen[:, i] == s)[s >= 0].mean()) for i, s in enumerate(said.T)]
