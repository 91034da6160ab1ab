"""White shapes whose five factors are known and independent: a small stand-in for dSprites.

| factor | values |
|---|---|
| shape | square, ellipse |
| scale | 4, half a side from 8 to 16 % of the image |
| angle | 8, steps of 11.25 degrees: each looks different, as a square repeats after 90 degrees |
| x | 16, the middle of the shape from 25 to 75 % of the width |
| y | 8, from 35 to 65 % of the height |

x varies more than y: of two alike directions a model would take any two between. Every combination
is drawn once, 8,192 images in all; a fixed tenth of them is the test split. A batch has "image",
"label" (the shape) and "factors", f32 [B, 5], the number of each value.

config.data: source="shapes", name="shapes", image_size (0 = 32; shapes are drawn at that size, and
stretched where it is not square), channels (0 = 1; 3 repeats the grey).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gm.core import Info, Source
from gm.data import images, memory

NAMES = ("shapes",)
FACTORS = {"shape": 2, "scale": 4, "angle": 8, "x": 16, "y": 8}
CLASSES = ("square", "ellipse")
SIDE = 32
AXES = (1.3, 0.65)  # of an ellipse, in half sides of the square of its scale


def reads(cfg: Any) -> frozenset[str]:
  """Returns the keys of `cfg` that this source reads."""
  del cfg
  return frozenset({"name", "image_size", "channels", "num_train"})


def info(cfg: Any) -> Info:
  """Returns the shapes under `cfg`.

  Raises:
    ValueError: for an unknown name, size or number of channels.

  >>> info({"name": "shapes"}).shape
  {'image': (32, 32, 1), 'label': (), 'factors': (5,)}
  """
  memory.require(cfg["name"], NAMES, what="drawn set", flag="--config.data.name")
  shape = {"image": images.shape(cfg, (SIDE, SIDE, 1)), "label": (), "factors": (len(FACTORS),)}
  return Info(shape, num_classes=len(CLASSES))


def draw(factors: np.ndarray, height: int = SIDE, width: int = SIDE) -> np.ndarray:
  """Draws shapes; grey at their edges, one pixel wide, so that no two of them are one picture.

  Args:
    factors: [N, 5], whole numbers below those of FACTORS.
    height: pixels.
    width: pixels.

  Returns:
    uint8 [N, height, width, 1], black 0 and white 255.

  >>> round(draw(np.array([[0, 3, 0, 6, 4]])).sum() / 255)  # a square of 10.24 pixels
  105
  """
  kind, scale, angle, x, y = np.asarray(factors, np.float32).T[..., None, None]
  side = np.float32(min(height, width))
  half = 0.08 + 0.08 * scale / (FACTORS["scale"] - 1)
  theta = np.float32(np.pi / 2) * angle / FACTORS["angle"]
  across, along = (np.arange(n, dtype=np.float32) + 0.5 for n in (width, height))
  right = across / width - (0.25 + 0.5 * x / (FACTORS["x"] - 1))
  down = along[:, None] / height - (0.35 + 0.3 * y / (FACTORS["y"] - 1))
  u = (np.cos(theta) * right + np.sin(theta) * down) / half
  v = (np.cos(theta) * down - np.sin(theta) * right) / half
  square = 1 - np.maximum(abs(u), abs(v))
  p, q = u / AXES[0], v / AXES[1]
  radius = np.sqrt(p**2 + q**2)
  slope = np.sqrt((p / AXES[0]) ** 2 + (q / AXES[1]) ** 2) / np.maximum(radius, 1e-6)
  ellipse = (1 - radius) / np.maximum(slope, 1e-6)
  inside = np.where(kind == 0, square, ellipse) * half * side  # pixels from the edge, about
  return np.rint(255 * np.clip(inside + 0.5, 0, 1)).astype(np.uint8)[..., None]


def load(
  cfg: Any, split: str, *, seed: int = 0, shuffle: bool = True, part: tuple[int, int] = (0, 1)
) -> Source:
  """Draws a split; leaves image uint8 [N, H, W, 1], label and factors uint8.

  Args:
    cfg: config.data.
    split: "train" or "test".
    seed: order of the rows.
    shuffle: False reads them in their one constant order, a permutation.
    part: (process index, number of processes).

  Raises:
    ValueError: for an unknown name or split.

  >>> load({"name": "shapes"}, "test").num_examples
  820
  """
  facts = info(cfg)
  memory.require_split(split)
  every = np.stack(np.meshgrid(*map(np.arange, FACTORS.values()), indexing="ij"), -1)
  every = every.reshape(-1, len(FACTORS)).astype(np.uint8)
  order = np.random.default_rng(0).permutation(len(every))
  num_test = -(-len(every) // 10)
  kept = order[:num_test] if split == "test" else order[num_test:]
  factors = every[kept[memory.rows(cfg, split, len(kept))]]
  height, width, channels = facts.shape["image"]
  image = np.concatenate([draw(f, height, width) for f in np.array_split(factors, 16)])
  arrays = {"image": image, "label": factors[:, 0], "factors": factors}
  of_image = images.decoder(channels)

  def decode(rows: dict) -> dict:
    import jax.numpy as jnp

    return {**of_image(rows), "factors": jnp.asarray(rows["factors"], jnp.float32)}

  source = memory.from_arrays(facts, arrays, decode, seed=seed, shuffle=shuffle, part=part)
  return source._replace(classes=CLASSES)
