"""Images on their way in: sizes, reading of untrusted files, resizing, and uint8 -> [-1, 1]."""

from __future__ import annotations

import functools
import io
import operator
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from gm.core import Info

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # Pillow starts no program for
# what `folder` takes for an image
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
MAX_PIXELS = 1 << 27  # 134 megapixels; a larger image is taken for a decompression bomb


def size(image_size: Any, native: tuple[int, int] | None = None) -> tuple[int, int]:
  """Returns (height, width) from `config.data.image_size`.

  Args:
    image_size: 0 = native, an int = square, or (height, width).
    native: the set's own (height, width); None if it has none.

  Raises:
    ValueError: for anything else, or for 0 where there is no native size.

  >>> size(0, (28, 28)), size(32), size((48, 64))
  ((28, 28), (32, 32), (48, 64))
  """
  given = image_size
  if isinstance(image_size, (int, np.integer)):
    image_size = (image_size, image_size)
  try:
    h, w = (operator.index(v) for v in image_size)
  except (TypeError, ValueError):
    h, w = -1, -1
  if native is not None and (h, w) == (0, 0):
    return native
  if h < 1 or w < 1:
    zero = "0 (native size), " if native else ""
    raise ValueError(
      f"image_size {given!r}: set --config.data.image_size to "
      f"{zero}a positive int or (height, width)"
    )
  return h, w


def shape(cfg: Any, native: tuple[int, int, int]) -> tuple[int, int, int]:
  """Returns the (H, W, C) of a built-in set under `cfg`; grey may be asked for as RGB.

  Raises:
    ValueError: if the size or the number of channels cannot be had.

  >>> shape({"image_size": 32, "channels": 3}, (28, 28, 1))
  (32, 32, 3)
  """
  channels = cfg.get("channels", 0) or native[2]
  if channels not in (native[2], 3):
    allowed = sorted({0, native[2], 3})
    raise ValueError(f"channels {channels}: set --config.data.channels to one of {allowed}")
  return (*size(cfg.get("image_size", 0), native[:2]), channels)


def declared(cfg: Any, what: str) -> Info:
  """Returns the Info of a user's own image set, which the config alone must tell.

  Args:
    cfg: config.data with image_size, channels (1 or 3) and num_classes (0 = labels are not read).
    what: the kind of source, for the messages.

  Raises:
    ValueError: if one of them is missing.

  >>> declared({"image_size": 64, "channels": 3, "num_classes": 0}, "folder").shape
  {'image': (64, 64, 3)}
  """
  try:
    height, width = size(cfg.get("image_size", 0))
  except ValueError as error:
    raise ValueError(f"source {what!r} has no native size: {error}") from None
  channels, num_classes = cfg.get("channels", 0), cfg.get("num_classes")
  if channels not in (1, 3):
    raise ValueError(
      f"source {what!r} needs the number of channels: set --config.data.channels to 1 or 3, "
      f"it is {channels!r}"
    )
  if not isinstance(num_classes, int) or num_classes < 0:
    raise ValueError(
      f"source {what!r} needs the number of classes: set --config.data.num_classes to it, "
      f"or to 0 to leave labels out; it is {num_classes!r}"
    )
  label = {"label": ()} if num_classes else {}
  return Info({"image": (height, width, channels), **label}, num_classes=num_classes)


def decoder(channels: int, *, levels: float = 255.0) -> Callable[[dict], dict]:
  """Returns decode(rows): image uint8 0 ... levels -> f32 in [-1, 1], the rest i32; jnp-traceable.

  image = 2 * stored / levels - 1, a grey image repeated where `channels` is 3.

  Args:
    channels: of the images that come out.
    levels: the stored value of white.

  >>> decoder(1)({"image": np.array([[[[0], [255]]]], np.uint8)})["image"].ravel().tolist()
  [-1.0, 1.0]
  """

  def decode(rows: dict) -> dict:
    import jax.numpy as jnp

    x = jnp.asarray(rows["image"], jnp.float32) / (levels / 2) - 1.0  # [B, H, W, stored channels]
    batch = {"image": jnp.broadcast_to(x, (*x.shape[:-1], channels))}
    for name in ("label", "tokens", "said"):
      if name in rows:
        batch[name] = jnp.asarray(rows[name], jnp.int32)
    return batch

  return decode


@functools.cache
def area_matrix(n: int, m: int) -> np.ndarray:
  """Returns the f32 [m, n] matrix of area resampling, n pixels to m <= n equal intervals.

  Entry (i, j) is the share of interval [i n/m, (i+1) n/m) that pixel [j, j+1) covers; rows sum to
  1.

  >>> area_matrix(3, 2).round(3).tolist()
  [[0.6669999957084656, 0.3330000042915344, 0.0], [0.0, 0.3330000042915344, 0.6669999957084656]]
  """
  edges = np.arange(m + 1) * (n / m)
  left, right = edges[:-1, None], edges[1:, None]
  pixel = np.arange(n)
  covered = np.minimum(right, pixel + 1) - np.maximum(left, pixel)
  matrix = (np.clip(covered, 0, None) * (m / n)).astype(np.float32)
  matrix.flags.writeable = False  # the cache hands out one array
  return matrix


def fit(x: np.ndarray, height: int, width: int, *, background: int = 0) -> np.ndarray:
  """Fits drawings on an empty background to another size, each axis by itself.

  A longer axis is padded with background (equally on both sides, an odd pixel at the end), so that
  28 -> 32 leaves every pixel as it is; a shorter axis is resized by area.

  Args:
    x: uint8 [N, H, W, C].
    height, width: of the result.
    background: the value padded with.

  Returns:
    uint8 [N, height, width, C].

  >>> fit(np.full((1, 2, 2, 1), 8, np.uint8), 4, 1)[0, :, :, 0].tolist()
  [[0], [8], [8], [0]]
  """
  h, w = x.shape[1:3]
  if height < h or width < w:
    rows = area_matrix(h, min(h, height))
    columns = area_matrix(w, min(w, width))
    out = np.empty((len(x), len(rows), len(columns), x.shape[3]), np.uint8)
    for i in range(0, len(x), 1024):  # float32 copies of a part at a time
      part = np.einsum("nhwc,yh->nywc", x[i : i + 1024].astype(np.float32), rows, optimize=True)
      part = np.einsum("nywc,xw->nyxc", part, columns, optimize=True)
      out[i : i + 1024] = np.rint(part)
    x = out
  dy, dx = height - x.shape[1], width - x.shape[2]
  if dy or dx:
    around = ((0, 0), (dy // 2, dy - dy // 2), (dx // 2, dx - dx // 2), (0, 0))
    x = np.pad(x, around, constant_values=background)
  return x


def flat(image: Any, channels: int) -> Any:
  """Returns an image as grey or RGB; transparency is laid over white.

  Args:
    image: PIL.Image of any mode of 8 bits a channel or less.
    channels: 1 or 3.

  Raises:
    ValueError: for pixels that have no 8-bit meaning (32-bit integers and floats).
  """
  from PIL import Image

  if image.mode[0] in "IF":
    raise ValueError(f"pixels of mode {image.mode!r} have no fixed range: save as 8 or 16 bit")
  if image.has_transparency_data:
    image = image.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
  return image.convert("L" if channels == 1 else "RGB")


def crop(image: Any, height: int, width: int, channels: int) -> np.ndarray:
  """Resizes the short side and crops the centre, in one pass; grey or RGB as asked.

  The largest centred box of the aspect width / height is resampled with Lanczos (antialiased).

  Args:
    image: as in `flat`.
    height: of the result.
    width: of the result.
    channels: 1 or 3.

  Returns:
    uint8 [height, width, channels].

  Raises:
    ValueError: as `flat` does.
  """
  from PIL import Image

  image = flat(image, channels)
  w, h = image.size
  scale = max(height / h, width / w)
  bw, bh = min(w, width / scale), min(h, height / scale)
  box = ((w - bw) / 2, (h - bh) / 2, (w + bw) / 2, (h + bh) / 2)
  if (w, h) != (width, height):
    image = image.resize((width, height), Image.Resampling.LANCZOS, box=box)
  return np.asarray(image).reshape(height, width, channels)


def _upright_8_bit(image: Any) -> Any:
  """Returns an opened file's image as EXIF turns it, in 8 bits; 16-bit grey keeps the upper 8.

  Pillow leaves the transparent value of a PNG in the depth of the file: it follows the pixels, or
  none would be equal to it.
  """
  from PIL import Image, ImageOps

  layout = image.tile[0].args if image.tile else ""  # of a PNG's bytes
  grey16 = image.mode.startswith("I;16") or (image.format == "PPM" and image.mode == "I")
  image = ImageOps.exif_transpose(image)
  transparent = image.info.get("transparency")
  if grey16:  # convert("L") would clip to 255
    x = np.asarray(image)
    return Image.fromarray(np.where(x == transparent, 255, x >> 8).astype(np.uint8))
  if transparent is not None and layout in ("L;2", "L;4"):
    image.info["transparency"] = transparent * (85 if layout == "L;2" else 17)
  if transparent is not None and layout == "RGB;16B":  # by the upper 8 bits, which is all there is
    image.info["transparency"] = tuple(v >> 8 for v in transparent)
  return image


def opened(file: str | os.PathLike | bytes, name: str, use: Callable, upright: bool = True) -> Any:
  """Returns use(image) of a file that nobody vouches for, `upright` and of 8 bits or as it lies.

  Only the formats in FORMATS are tried, and the size in the header is checked before any pixel is
  decoded.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if it is corrupt, truncated or too large; the message names it.
  """
  from PIL import Image

  source = io.BytesIO(file) if isinstance(file, bytes) else os.fspath(file)
  name = name or str(source)
  try:
    with Image.open(source, formats=FORMATS) as image:
      w, h = image.size
      if w * h > MAX_PIXELS:
        raise ValueError(f"{w} x {h} pixels, at most {MAX_PIXELS} are read")
      return use(_upright_8_bit(image) if upright else image)
  except FileNotFoundError:
    raise
  except Exception as error:  # decoders raise anything: struct.error, SyntaxError, ...
    reason = str(error).replace(str(source), "file")
    raise ValueError(f"{name}: not readable as an image ({reason}): remove it or fix it") from error


def read(
  file: str | os.PathLike | bytes, height: int, width: int, channels: int, *, name: str = ""
) -> np.ndarray:
  """Reads one image file that nobody vouches for, upright (EXIF) and cropped as `crop` does.

  Args:
    file: its path, or its bytes.
    height: of the result.
    width: of the result.
    channels: 1 or 3.
    name: of the image, for messages; "": the path.

  Returns:
    uint8 [height, width, channels].

  Raises:
    FileNotFoundError, ValueError: as `opened` does.
  """
  return opened(file, name, lambda image: crop(image, height, width, channels))


def read_whole(
  file: str | os.PathLike | bytes, channels: int, *, name: str = "", most: int = MAX_PIXELS
) -> np.ndarray:
  """Reads one image file in its own size.

  Args:
    file, channels, name: as in `read`.
    most: pixels that are taken.

  Returns:
    uint8 [H, W, channels].

  Raises:
    FileNotFoundError, ValueError: as `read` does.
  """

  def whole(image: Any) -> np.ndarray:
    w, h = image.size
    if w * h > most:
      raise ValueError(f"{w} x {h} pixels, at most {most:,} are taken: make it smaller")
    return np.asarray(flat(image, channels)).reshape(h, w, channels)

  return opened(file, name, whole)


def read_halves(
  file: str | os.PathLike | bytes, height: int, width: int, channels: int, *, name: str = ""
) -> tuple[np.ndarray, np.ndarray]:
  """Reads two images that stand side by side in one file, each cropped as `crop` does.

  Args:
    file, height, width, channels, name: as in `read`; the sizes are of each image.

  Returns:
    The left and the right one; a middle column is in neither.

  Raises:
    FileNotFoundError, ValueError: as `read` does.
  """

  def halves(image: Any) -> tuple[np.ndarray, np.ndarray]:
    w, h = image.size
    if w < 2:
      raise ValueError("one column cannot be halved")
    boxes = (0, 0, w // 2, h), (w - w // 2, 0, w, h)
    return tuple(crop(image.crop(box), height, width, channels) for box in boxes)

  return opened(file, name, halves)
