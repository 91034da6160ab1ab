"""Walks as moving pictures: GIF by Pillow, MP4 by PyAV (the package `av`) where it is installed."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gm.workdir import files, plots, samples, tiles
from gm.workdir.drawn import Place

REMEDY = "pip install av==18.1.0 writes walks as MP4 too"
FPS = 25  # frames per second
_LEAST = 256  # pixels of the longer side


def frame_bytes(shape: tuple[int, ...]) -> int:
  """Bytes that a frame of this shape takes while a film is made: of images as enlarged, of u8.

  >>> frame_bytes((28, 20, 1)), frame_bytes((2,))
  (56000, 8)
  """
  if len(shape) != 3:
    return 4 * math.prod(shape)
  scale = max(1, -(-_LEAST // max(shape[:2])))
  return math.prod(shape) * max(scale**2, 4)  # those drawn are f32


def frames(images: np.ndarray) -> np.ndarray:
  """Images in [-1, 1] -> u8 [N, H, W, 1 or 3], enlarged by whole numbers to 256 px or more.

  >>> frames(np.zeros((2, 28, 20, 1))).shape
  (2, 280, 200, 1)
  """
  planes = tiles.planes(images)
  scale = max(1, -(-_LEAST // max(planes.shape[1:3])))
  return planes.repeat(scale, axis=1).repeat(scale, axis=2)


def mp4(pictures: np.ndarray) -> bytes | None:
  """Encodes frames u8 [N, H, W, 1 or 3] as H.264, which every browser plays; None without PyAV.

  An odd side is made even by repeating its last row or column, as the format wants it.
  """
  try:
    import av
  except ImportError:
    return None
  _, height, width, _ = pictures.shape
  pictures = np.pad(pictures, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), "edge")
  buffer = io.BytesIO()
  with av.open(buffer, "w", format="mp4") as container:
    stream = container.add_stream("libx264", rate=FPS, options={"crf": "16"})
    stream.height, stream.width = pictures.shape[1:3]
    stream.pix_fmt = "yuv420p"
    for picture in pictures:
      colours = np.broadcast_to(picture, (*picture.shape[:2], 3))
      frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(colours), format="rgb24")
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return buffer.getvalue()


def write_walk(
  place: Place, name: str, batch: Mapping[str, np.ndarray], info: Any = None
) -> tuple[list[Path], str]:
  """Writes a walk: images as GIF and MP4, points as a path, and whatever is no image as .npz.

  Args:
    place: where to.
    name: of the walk.
    batch: {kind: [frames, ...]}.
    info: core.Info of the data.

  Returns:
    The files, and a remark if there is no encoder for MP4, else "".
  """
  from PIL import Image

  written, remark = [], ""
  for kind, x in batch.items():
    where = lambda ending: place.path(f"{name}_{kind}" if len(batch) > 1 else name, ending)
    if x.ndim == 4:
      pictures = frames(x)
      grey = pictures.shape[-1] == 1
      images = [Image.fromarray(p[..., 0] if grey else p) for p in pictures]
      written.append(files.write_bytes(where("gif"), samples.gif(images, 1000 // FPS)))
      found = mp4(pictures)
      if found is None:
        remark = f"no MP4: {REMEDY}"
      else:
        written.append(files.write_bytes(where("mp4"), found))
      continue
    written.append(samples.write_arrays(where("npz"), {kind: x}))
    if x.ndim == 2 and x.shape[1] <= 3:
      written.append(files.write_bytes(where("png"), plots.paths(x[None], info)))
  return written, remark
