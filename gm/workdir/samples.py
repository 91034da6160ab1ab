"""Pictures and arrays in DIR/samples.

```
<stage>_<step>.png (.npz, .txt)   write_samples  samples of fixed noise
<stage>_<step>_<name>.png         write_show     the method's extra pictures
<stage>.gif                       write_gif
```
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gm.workdir import files, plots, tiles

MAX_TILES = 400  # of one picture of samples; write_arrays keeps them all
_PICTURE = re.compile(r"(?P<stage>.+?)_(?P<step>\d{8,})(?:_(?P<name>.+))?\Z")


def write_grid(path: str | Path, images: Any) -> Path:
  """Writes `tiles.grid(images)` as one PNG, grey or RGB."""
  return files.write_bytes(path, tiles.encode(tiles.grid(images)))


def write_arrays(path: str | Path, batch: Mapping[str, Any]) -> Path:
  """Writes every leaf of a batch into one compressed .npz; bfloat16, unknown to it, as float32."""
  arrays = {k: np.asarray(v) for k, v in batch.items()}
  arrays = {k: v.astype(np.float32) if v.dtype.kind == "V" else v for k, v in arrays.items()}
  buffer = io.BytesIO()
  np.savez_compressed(buffer, **arrays)
  return files.write_bytes(path, buffer.getvalue())


class Picture(NamedTuple):
  """What the name of a file in DIR/samples says."""

  stage: str
  step: int
  name: str  # "" for the samples of fixed noise, else "interpolation", "reconstruction", ...
  path: Path


def sample_path(workdir: str | Path, stage: str, step: int, name: str, ending: str) -> Path:
  """DIR/samples/<stage>_<step>[_<name>].<ending>, the step in 8 digits so that names sort."""
  name = f"_{name}" if name else ""
  return Path(workdir) / "samples" / f"{stage}_{step:08d}{name}.{ending}"


def read_pictures(workdir: str | Path, endings: Sequence[str] = ("png", "txt")) -> list[Picture]:
  """Lists the pictures in DIR/samples by (stage, name, step)."""
  found = []
  for path in (Path(workdir) / "samples").glob("[!.]*"):
    match = _PICTURE.match(path.stem)
    if match and path.suffix[1:] in endings:
      found.append(Picture(match["stage"], int(match["step"]), match["name"] or "", path))
  return sorted(found, key=lambda p: (p.stage, p.name, p.step))


def write_samples(
  workdir: str | Path,
  stage: str,
  step: int,
  batch: Mapping[str, Any],
  reference: Mapping[str, Any] | None = None,
  info: Any = None,
) -> list[Path]:
  """Writes what `sample` returned as DIR/samples/<stage>_<step>[_<kind>], see `write_kinds`.

  Args:
    workdir: the run's folder.
    stage: the stage's name.
    step: steps done in it.
    batch: arrays [N, ...], as in core.Batch.
    reference: real data of the same kind, for the plots.
    info: core.Info of the data.

  Returns:
    The files written.
  """
  where = lambda name, ending: sample_path(workdir, stage, step, name, ending)
  return write_kinds(where, batch, reference, info)


def write_kinds(
  where: Callable,
  batch: Mapping[str, Any],
  reference: Mapping[str, Any] | None = None,
  info: Any = None,
  rows: int = 1,
  classes: Sequence[str] = (),
) -> list[Path]:
  """Writes samples as pictures for people, by the kind of each entry.

  Images (image, or domains a and b) become a PNG grid. Points, series and rows become a plot, with
  real data in grey behind, and an .npz with the whole batch. A roll is drawn as an image, pitch
  upwards. Text becomes .txt. The first of these has no name, any other its own. Several images for
  each sample become its row, under each the class in the entry <kind>_label, see `tiles.captioned`.

  Args:
    where: (name, ending) -> path.
    batch: arrays [N, ...], as in core.Batch.
    reference: real data of the same kind, for the plots.
    info: core.Info of the data: modes and mode_std, columns and vocab_size are used.
    rows: of a grid of images; 1 lays them out in a square.
    classes: names of the labels.

  Returns:
    The files written.
  """
  batch = {k: np.asarray(v) for k, v in batch.items()}
  reference = {k: np.asarray(v) for k, v in (reference or {}).items()}
  found = {}
  for kind, x in batch.items():
    real, name = reference.get(kind), kind if found else ""
    if kind == "text":
      lines = "\n".join(_texts(x, getattr(info, "vocab_size", 0))) + "\n"
      found[where(name, "txt")] = lines.encode()
    elif kind == "roll":
      images = 2.0 * np.swapaxes(x[:MAX_TILES], 1, 2)[:, ::-1, :, None] - 1.0
      found[where(name, "png")] = tiles.encode(tiles.grid(images))
    elif kind in plots.BY_KIND:
      found[where(name, "png")] = plots.BY_KIND[kind](x, real, info)
    elif x.ndim == 4:
      x = x[:MAX_TILES] if rows == 1 else x.reshape(rows, -1, *x.shape[1:])
      found[where(name, "png")] = tiles.encode(tiles.grid(x))
    elif x.ndim == 5:
      picture = tiles.captioned(x[: MAX_TILES // x.shape[1]], batch.get(f"{kind}_label"), classes)
      found[where(name, "png")] = picture
  written = []
  if any(k in batch for k in ("point", "series", "row", "roll")):
    written.append(write_arrays(where("", "npz"), batch))
  # the first comes last: where it is, all are, see `is_drawn`
  for path, data in reversed(found.items()):
    files.write_bytes(path, data)
  return [*written, *found]


def is_drawn(workdir: str | Path, stage: str, step: int) -> bool:
  """Whether the samples of a step are there, which are written after all of its other pictures."""
  return any(sample_path(workdir, stage, step, "", end).exists() for end in ("png", "txt"))


def write_show(
  workdir: str | Path,
  stage: str,
  step: int,
  pictures: Mapping[str, Any],
  info: Any = None,
  classes: Sequence[str] = (),
) -> list[Path]:
  """Writes the extra pictures of `Stage.show` as <stage>_<step>_<name>.png.

  An entry may be
    an array [N, H, W, C] of images, as info has them: a square grid;
    an array [rows, cols, ...]: images [rows, cols, H, W, C]; points [rows, cols, D] and series
      [rows, cols, T, F] are drawn, row by row; others are kept as .npz;
    {"images": [rows, cols, H, W, C], "label": int [rows, cols]}: the class under each, see
      `tiles.captioned`;
    {"points": [N, 2], "label": int [N]}: a scatter, coloured by class where there is a label;
    {"x": [N], name: [N], ..., "draws": [M]}: a curve over x for each name and, where there are
      draws, their histogram as a density behind the curves, for integers a bar at each. The key
      of x may say what the axes are: "x: eps; y: accuracy".

  Args:
    workdir: the run's folder.
    stage: the stage's name.
    step: steps done in it.
    pictures: {name: entry}.
    info: core.Info of the data, for the centres of the modes and the shape of an image.
    classes: names of the labels.

  Returns:
    The files written.

  Raises:
    ValueError: for a dict of another kind, or whose arrays do not fit together.
  """
  written = []
  for name, x in pictures.items():
    png = sample_path(workdir, stage, step, name, "png")
    if isinstance(x, Mapping) and set(x) == {"images", "label"}:
      picture = tiles.captioned(*(np.asarray(x[k]) for k in ("images", "label")), classes)
      written.append(files.write_bytes(png, picture))
      continue
    if isinstance(x, Mapping):
      written.append(
        files.write_bytes(png, plots.table(name, {k: np.asarray(v) for k, v in x.items()}))
      )
      continue
    x = np.asarray(x)
    if x.ndim == 5 or (x.ndim == 4 and x.shape[1:] == getattr(info, "shape", {}).get("image")):
      written.append(write_grid(png, x))
    elif x.ndim == 4:
      written.append(files.write_bytes(png, plots.series(x.reshape(-1, *x.shape[2:]), None, info)))
    elif x.ndim == 3 and x.shape[-1] <= 3:
      written.append(files.write_bytes(png, plots.paths(x, info)))
    else:
      written.append(write_arrays(png.with_suffix(".npz"), {name: x}))
  return written


def write_gif(workdir: str | Path, stage: str, max_frames: int = 60) -> Path | None:
  """Writes DIR/samples/<stage>.gif from the stage's PNGs, the last frame held for two seconds.

  Args:
    workdir: the run's folder.
    stage: the stage's name.
    max_frames: of more pictures, evenly chosen ones are taken, the last among them.

  Returns:
    The file's path; None if the stage has no picture.
  """
  from PIL import Image

  paths = [p.path for p in read_pictures(workdir, ("png",)) if p.stage == stage and not p.name]
  if not paths:
    return None
  if len(paths) > max_frames:
    chosen = np.linspace(0, len(paths) - 1, max_frames).round().astype(int)
    paths = [paths[i] for i in chosen]
  frames = []
  for path in paths:
    with Image.open(path) as image:
      frames.append(image.convert("L" if image.mode == "L" else "RGB"))
  frames = [f if f.size == frames[-1].size else f.resize(frames[-1].size) for f in frames]
  encoded = gif(frames, [200] * (len(frames) - 1) + [2000])
  return files.write_bytes(Path(workdir) / "samples" / f"{stage}.gif", encoded)


def is_filmed(workdir: str | Path, stage: str) -> bool:
  """Whether DIR/samples/<stage>.gif is there, and younger than all that it shows."""
  paths = [p.path for p in read_pictures(workdir, ("png",)) if p.stage == stage and not p.name]
  film, made = Path(workdir) / "samples" / f"{stage}.gif", lambda path: path.stat().st_mtime_ns
  return film.exists() and made(film) >= max(map(made, paths), default=0)


def gif(pictures: Sequence[Any], milliseconds: int | Sequence[int]) -> bytes:
  """Encodes Pillow's images, of one size, as a GIF that runs for ever."""
  buffer = io.BytesIO()
  first, *rest = pictures
  first.save(buffer, "GIF", save_all=True, append_images=rest, duration=milliseconds, loop=0)
  return buffer.getvalue()


def _texts(text: np.ndarray, vocab_size: int) -> list[str]:
  """Strings as they are; token ids as bytes (0 ends a text) up to 256 of them, else as numbers."""
  if text.dtype.kind in "UOS":
    return [t.decode("utf-8", "replace") if isinstance(t, bytes) else str(t) for t in text]
  if 0 < vocab_size <= 256:
    return [bytes(t.astype(np.uint8)).partition(b"\0")[0].decode("utf-8", "replace") for t in text]
  return [" ".join(map(str, t)) for t in text.tolist()]
