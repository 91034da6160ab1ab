"""Images as pixels: tiles of one canvas, with the name of a class under each or without, PNGs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from gm.workdir import plots

_TILE = 56  # pixels; smaller images are enlarged to at least this
_GAP, _GAP_VALUE = 2, 60  # separators: thin, dark grey
_STRIP = 16  # pixels for a line of text


def to_uint8(images: Any) -> np.ndarray:
  """Maps [-1, 1] to 0..255: round(127.5 (x + 1)), clipped; NaN is black; uint8 passes through.

  >>> to_uint8(np.array([-1.0, 0.0, 1.0, 7.0])).tolist()
  [0, 128, 255, 255]
  """
  images = np.asarray(images)
  if images.dtype == np.uint8:
    return images
  scaled = np.round((images.astype(np.float32) + 1.0) * 127.5)
  return np.clip(np.nan_to_num(scaled, nan=0.0), 0.0, 255.0).astype(np.uint8)


def planes(images: Any) -> np.ndarray:
  """Images [..., H, W, C] in [-1, 1] or uint8 -> u8 [N, H, W, 1 or 3].

  The planes of any other C stand side by side in grey.
  """
  tiles = to_uint8(images)
  tiles = tiles.reshape(-1, *tiles.shape[-3:])
  if tiles.shape[-1] in (1, 3):
    return tiles
  return np.swapaxes(tiles, 2, 3).reshape(*tiles.shape[:2], -1, 1)


def grid(images: Any) -> np.ndarray:
  """Lays images out on one canvas, enlarged by an integer (nearest) to tiles of 56 px or more.

  Args:
    images: [N, H, W, C] (nearly square layout) or [rows, cols, H, W, C], in [-1, 1] or uint8.
      C is 1 (grey) or 3 (RGB); the planes of any other C stand side by side in grey.

  Returns:
    u8 [height, width] or [height, width, 3].

  Raises:
    ValueError: on any other shape, or none at all.
  """
  images = np.asarray(images)
  if images.ndim not in (4, 5) or not images.size:
    raise ValueError(f"images are [N, H, W, C] or [rows, cols, H, W, C], given {images.shape}")
  if images.ndim == 4:
    rows, cols = plots.layout(len(images), *images.shape[1:3])
  else:
    rows, cols = images.shape[:2]
  tiles = planes(images)
  num, height, width, channels = tiles.shape
  scale = max(1, -(-_TILE // max(height, width)))
  height, width = height * scale, width * scale
  tiles = tiles.repeat(scale, axis=1).repeat(scale, axis=2)
  shape = (rows * (height + _GAP) + _GAP, cols * (width + _GAP) + _GAP, channels)
  canvas = np.full(shape, _GAP_VALUE, np.uint8)
  for i in range(num):
    top = _GAP + (i // cols) * (height + _GAP)
    left = _GAP + (i % cols) * (width + _GAP)
    canvas[top : top + height, left : left + width] = tiles[i]
  return canvas[..., 0] if channels == 1 else canvas


def captioned(images: np.ndarray, label: np.ndarray | None, classes: Sequence[str] = ()) -> bytes:
  """Rows of images, side by side where they are many, with the name of a class under each: a PNG.

  Args:
    images: [N, cols, H, W, C] in [-1, 1] or uint8.
    label: int [N, cols]; below 0, or None: nothing under it.
    classes: names; others are numbers.

  Raises:
    ValueError: if the shapes do not fit.
  """
  from PIL import Image, ImageDraw

  num, cols = images.shape[:2]
  label = np.full((num, cols), -1) if label is None else label
  if images.ndim != 5 or label.shape != (num, cols):
    raise ValueError(f"images are [N, cols, H, W, C] and labels [N, cols], given {label.shape}")
  tiles = np.stack([grid(row[:, None]) for row in images.reshape(-1, 1, *images.shape[2:])])
  height, width = tiles.shape[1:3]
  blocks, strip = plots.layout(num, height + _STRIP, cols * width)[1], height + _STRIP
  size = (blocks * (cols * width + _STRIP) - _STRIP, -(-num // blocks) * strip)
  picture = Image.new("RGB", size, (_GAP_VALUE,) * 3)
  draw = ImageDraw.Draw(picture)
  for i in range(num):
    for j in range(cols):
      left = (i % blocks) * (cols * width + _STRIP) + j * width
      top = i // blocks * strip
      picture.paste(Image.fromarray(tiles[i * cols + j]), (left, top))
      if (k := int(label[i, j])) >= 0:
        text = classes[k] if k < len(classes) else str(k)
        draw.text((left + width // 2, top + height), text, anchor="ma", fill="white", font_size=12)
  return _encoded(picture)


def png(image: Any) -> bytes:
  """One image [H, W, C] in [-1, 1] as a PNG of its own size, see `planes`."""
  pixels = planes(image)[0]
  return encode(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def encode(pixels: np.ndarray) -> bytes:
  """Pixels u8 [H, W] or [H, W, 3] as a PNG."""
  from PIL import Image

  return _encoded(Image.fromarray(pixels))


def _encoded(picture: Any) -> bytes:
  buffer = io.BytesIO()
  picture.save(buffer, "PNG", compress_level=4)
  return buffer.getvalue()
