"""Everything that a run leaves in its workdir, except checkpoints and the report.

```
DIR/config.json     write_config   the config as run, versions, devices, where the data came from
DIR/metrics.jsonl   Log            stage, step, seconds, examples_per_second, every scalar
DIR/events.out...   Log            the same for TensorBoard
DIR/samples/        write_samples  <stage>_<step>.png (.npz, .txt) samples of fixed noise
                    write_show     <stage>_<step>_<name>.png the method's extra pictures
                    write_gif      <stage>.gif
DIR/eval.json       write_eval     the last evaluation with its protocol
```

Whole files appear by `os.replace`, so a reader (or a process that is killed) never sees half of
one. Every failure to write is an OSError of the same kind as the cause, with one sentence that
names the file and the remedy. matplotlib, PIL and tensorboardX are imported where they are used,
because the time to the first step counts; figures are drawn on Agg canvases without pyplot's global
state, so that a thread may write while the next steps run.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import io
import json
import math
import os
import platform
import re
import shlex
import socket
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

KEYS = ("stage", "step", "seconds", "examples_per_second")  # of every line in metrics.jsonl
MAX_TILES = 400  # of one picture of samples; write_arrays keeps them all
_TILE = 56  # pixels; smaller images are enlarged to at least this
_GAP, _GAP_VALUE = 2, 60  # separators: thin, dark grey
_PICTURE = re.compile(r"(?P<stage>.+?)_(?P<step>\d{8,})(?:_(?P<name>.+))?\Z")
_BLUE, _GREY, _LIGHT, _INK = "#2f6fd0", "#8a8f98", "#c9cdd3", "#333a45"


# ---------------------------------------------------------------------------------------- files


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
  """Turns an OSError into one of the same kind that names the file and what to do."""
  try:
    yield
  except OSError as error:
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
      remedy = "free some space, then give the same command again to resume"
    else:
      remedy = "give a --workdir that can be written"
    raise OSError(error.errno or errno.EIO, f"cannot write {path}: {reason}; {remedy}") from error


def write_bytes(path: str | Path, data: bytes) -> Path:
  """Writes a file whole or not at all; makes its folder.

  Raises:
    OSError: of the cause's own kind (PermissionError ...), naming the file and the remedy.
  """
  path = Path(path)
  temp = path.with_name(f".{path.name}.tmp")  # one fixed name: a killed process leaves at most one
  with _explained(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      with open(temp, "wb") as file:
        file.write(data)
      os.replace(temp, path)
    except BaseException:
      with contextlib.suppress(OSError):
        temp.unlink()
      raise
  return path


def _plain(value: Any) -> Any:
  """The JSON form of configs and metrics: no tuples, no arrays, no non-finite numbers."""
  if isinstance(value, Mapping):
    return {str(k): _plain(v) for k, v in value.items()}
  if isinstance(value, (list, tuple, set, frozenset)):
    return [_plain(v) for v in value]
  if value is None or isinstance(value, (bool, int, str)):
    return value
  if isinstance(value, Path):
    return str(value)
  if hasattr(value, "dtype"):
    array = np.asarray(value)
    if array.ndim:
      return [_plain(v) for v in array]
    if array.dtype.kind in "biu":
      return array.item()
    if (
      array.dtype != np.float64
    ):  # shortest form that gives the same float32: 0.1, not 0.10000000149
      value = str(np.float32(array))
  elif not isinstance(value, float):
    return str(value)
  number = float(value)
  return number if math.isfinite(number) else str(number)


def _dumps(value: Any, indent: int | None = None) -> str:
  return json.dumps(_plain(value), indent=indent, ensure_ascii=False, allow_nan=False)


# -------------------------------------------------------------------------------------- metrics


def read_metrics(workdir: str | Path) -> list[dict]:
  """Reads DIR/metrics.jsonl; a line that is not whole is left out, no file means no lines.

  Non-finite numbers stand in the file as the strings "nan", "inf" and "-inf", because JSON has no
  such numbers; here they are floats again.

  Args:
    workdir: the run's folder.

  Returns:
    One dict per line: stage (str), step (int), seconds, examples_per_second, then every scalar.
  """
  path = Path(workdir) / "metrics.jsonl"
  records = []
  for line in path.read_bytes().split(b"\n") if path.exists() else []:
    try:
      record = json.loads(line)
    except ValueError:
      continue
    if isinstance(record, dict) and "stage" in record and "step" in record:
      number = lambda k, v: float(v) if k != "stage" and isinstance(v, str) else v
      records.append({k: number(k, v) for k, v in record.items()})
  return records


class Log:
  """Appends scalars to DIR/metrics.jsonl and to a TensorBoard event file in DIR.

  A line is handed to the operating system before `write` returns, so it survives the process. A
  line that a killed process left half-written is removed on opening.

  >>> import tempfile
  >>> folder = tempfile.mkdtemp()
  >>> log = Log(folder)
  >>> log.write("train", 100, 2.5, 6400.0, {"loss_g": 0.7, "loss_d": float("nan")})
  >>> log.close()
  >>> print(open(folder + "/metrics.jsonl").read().strip())  # doctest: +NORMALIZE_WHITESPACE
  {"stage": "train", "step": 100, "seconds": 2.5, "examples_per_second": 6400.0, "loss_g": 0.7,
  "loss_d": "nan"}
  """

  def __init__(self, workdir: str | Path):
    self._dir = Path(workdir)
    self._path = self._dir / "metrics.jsonl"
    self._events = None
    with _explained(self._path):
      self._dir.mkdir(parents=True, exist_ok=True)
      self._file = open(self._path, "a+b", buffering=0)  # noqa: SIM115
      self._mend()

  def _mend(self) -> None:
    """Ends the last line, or cuts it off if it is not whole JSON."""
    end = self._file.seek(0, os.SEEK_END)
    self._file.seek(max(0, end - (1 << 20)))  # a line has a few hundred bytes, not a million
    tail = self._file.read().rpartition(b"\n")[2]
    if not tail:
      return
    try:
      json.loads(tail)
      self._append(b"\n")
    except ValueError:
      self._file.truncate(end - len(tail))

  def _append(self, data: bytes) -> None:
    while data:
      data = data[self._file.write(data) :]

  def write(
    self,
    stage: str,
    step: int,
    seconds: float,
    examples_per_second: float,
    metrics: Mapping[str, Any],
  ) -> None:
    """Adds one line.

    Args:
      stage: the stage's name.
      step: steps done in this stage.
      seconds: time spent in training so far.
      examples_per_second: speed since the last line.
      metrics: scalars (Python, NumPy or JAX); non-finite ones become "nan", "inf", "-inf".

    Raises:
      ValueError: if a metric has the name of one of the four fixed keys.
      OSError: if the file cannot grow, with the remedy.
    """
    clash = [k for k in metrics if k in KEYS]
    if clash:
      raise ValueError(f"metrics {clash} have reserved names; rename them, {list(KEYS)} are taken")
    scalars = {k: float(_plain(v)) for k, v in metrics.items()}
    record = dict(zip(KEYS, (stage, int(step), seconds, examples_per_second))) | scalars
    with _explained(self._path):
      self._append(_dumps(record).encode() + b"\n")
    with _explained(self._dir / "events.out.tfevents"):
      if self._events is None:
        self._events = _Events(self._dir)
      self._events.add(record, time.time())
      self._events.flush()

  def rewind(self, stage: str, step: int, stages: Sequence[str] = ()) -> None:
    """Drops what was logged after the state that a checkpoint restored.

    A stage that starts anew (step 0) loses all its lines. The event files are written again from
    the lines that stay, so TensorBoard shows exactly what metrics.jsonl holds.

    Args:
      stage: name of the restored stage.
      step: its restored step; lines up to and including it stay.
      stages: names of the run's stages in order; by default the order in the file.
    """
    records = read_metrics(self._dir)
    order = list(dict.fromkeys([*stages, *(r["stage"] for r in records)]))
    if stage not in order:
      return
    here = order.index(stage)

    def stays(record):
      place = order.index(record["stage"])
      return place < here or (place == here and 0 < step >= record["step"])

    kept = [r for r in records if stays(r)]
    if len(kept) == len(records):
      return
    self.close()
    write_bytes(self._path, "".join(_dumps(r) + "\n" for r in kept).encode())
    with _explained(self._dir / "events.out.tfevents"):
      old = list(self._dir.glob("events.out.tfevents.*.gm"))
      if kept:
        self._events = _Events(self._dir)
        now, last = time.time(), kept[-1].get("seconds", 0.0)
        for r in kept:
          self._events.add(r, now - last + r.get("seconds", 0.0))
        self._events.flush()
      for path in old:
        path.unlink()
      self._file = open(self._path, "a+b", buffering=0)  # noqa: SIM115

  def close(self) -> None:
    """Closes both files."""
    self._file.close()
    if self._events is not None:
      self._events.close()
      self._events = None


class _Events:
  """A TensorBoard event file, written in the caller's thread.

  tensorboardX's SummaryWriter hands events to a thread; if that dies of a full disk, the training
  would wait for its queue for ever.
  """

  def __init__(self, folder: Path):
    from tensorboardX.proto import event_pb2
    from tensorboardX.record_writer import RecordWriter

    number = time.time_ns() // 1_000_000  # milliseconds: names must sort in order of creation
    self._event = event_pb2.Event
    self._out = RecordWriter(f"{folder}/events.out.tfevents.{number}.{socket.gethostname()}.gm")
    header = self._event(wall_time=time.time(), file_version="brain.Event:2")
    self._out.write(header.SerializeToString())

  def add(self, record: Mapping[str, Any], wall_time: float) -> None:
    event = self._event(wall_time=wall_time, step=record["step"])
    for name, value in record.items():
      if name not in KEYS[:3]:
        tag = f"{record['stage']}/{name}"
        event.summary.value.add(tag=tag, simple_value=float(value))
    self._out.write(event.SerializeToString())

  def flush(self) -> None:
    self._out.flush()

  def close(self) -> None:
    with contextlib.suppress(OSError):  # what could not be written was reported by flush
      self._out.close()


# --------------------------------------------------------------------------- config, evaluation


def _version(package: str) -> str:
  """Of an installed package; of gm itself from pyproject.toml where it runs from its repository."""
  try:
    return metadata.version({"orbax": "orbax-checkpoint"}.get(package, package))
  except metadata.PackageNotFoundError:
    project = Path(__file__).parents[1] / "pyproject.toml"
    if package == "gm" and project.exists():
      return tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"]
    return "not installed"


def write_config(workdir: str | Path, config: Mapping, facts: Mapping | None = None) -> Path:
  """Writes DIR/config.json: all that is needed to run the same again.

  Where the file exists, the facts in it that are not given anew stay, the time of the first start
  among them.

  Args:
    workdir: the run's folder.
    config: the config as run, as nested dicts.
    facts: what else is known. The report reads "data" ({"origin": a sentence on where the data
      came from, "generated": True where they were drawn from a formula}), "stages"
      ({name: number of steps}) and "command"; all are optional and others are kept as given.

  Returns:
    The file's path.
  """
  import jax

  names = ("jax", "jaxlib", "flax", "optax", "orbax", "numpy", "gm")
  path = Path(workdir) / "config.json"
  fresh = {
    "config": config,
    "command": shlex.join(["python", *sys.argv]),
    "versions": {"python": platform.python_version()} | {n: _version(n) for n in names},
    "devices": [f"{d.platform}:{d.id} {d.device_kind}" for d in jax.devices()],
    "platform": f"{platform.platform()}, {os.cpu_count()} cores",
  }
  started = {"started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
  try:
    old = {k: v for k, v in read_config(workdir).items() if k not in fresh}
  except (OSError, ValueError):
    old = {}
  record = {**fresh, **started, **old, **(facts or {})}
  return write_bytes(path, (_dumps(record, 2) + "\n").encode())


def _read_json(path: Path, remedy: str) -> dict:
  try:
    value = json.loads(path.read_bytes())
  except FileNotFoundError:
    raise FileNotFoundError(errno.ENOENT, f"there is no {path}; {remedy}") from None
  except ValueError as error:
    raise ValueError(f"{path} is not valid JSON ({error}); {remedy}") from None
  if not isinstance(value, dict):
    raise ValueError(f"{path} holds a {type(value).__name__}, not a table of names; {remedy}")
  return value


def read_config(workdir: str | Path) -> dict:
  """Reads DIR/config.json; the config as run is its entry "config".

  Raises:
    FileNotFoundError: if the folder holds no run.
    ValueError: if the file is not valid JSON.
  """
  remedy = "give the --workdir of a run, or train first with --mode=train"
  return _read_json(Path(workdir) / "config.json", remedy)


def diff(old: Mapping, new: Mapping) -> list[str]:
  """Lists the keys in which two configs differ, with both values; tuples equal lists.

  >>> diff({"lr": 0.1, "model": {"z_dim": 8}}, {"lr": 0.2, "model": {"z_dim": 8}})
  ['lr: 0.1 in the workdir, 0.2 now']
  """
  old, new = flatten(old), flatten(new)
  show = lambda table, key: repr(table[key]) if key in table else "absent"
  same = lambda a, b: a == b and isinstance(a, bool) == isinstance(b, bool)
  return [
    f"{k}: {show(old, k)} in the workdir, {show(new, k)} now"
    for k in sorted({*old, *new})
    if k not in old or k not in new or not same(old[k], new[k])
  ]


def flatten(tree: Mapping, prefix: str = "") -> dict[str, Any]:
  """Turns nested dicts into one with dotted keys and plain JSON values; empty dicts stay.

  >>> flatten({"seed": 1, "model": {"widths": (8, 8)}})
  {'seed': 1, 'model.widths': [8, 8]}
  """
  flat = {}
  for key, value in _plain(tree).items():
    if isinstance(value, dict) and value:
      flat |= flatten(value, f"{prefix}{key}.")
    else:
      flat[prefix + key] = value
  return flat


def write_eval(workdir: str | Path, result: Mapping) -> Path:
  """Writes DIR/eval.json.

  Args:
    workdir: the run's folder.
    result: {"metrics": {name: value}, "protocol": {"num_samples", "seed", "feature_net", "split"},
      "stage", "step"}, a table of any depth; non-finite numbers as in metrics.jsonl.

  Returns:
    The file's path.
  """
  return write_bytes(Path(workdir) / "eval.json", (_dumps(result, 2) + "\n").encode())


# --------------------------------------------------------------------------------------- images


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


def _layout(num: int, height: int, width: int) -> tuple[int, int]:
  """Rows and columns of a nearly square picture with few empty places; 10 square tiles: 2 x 5."""

  def cost(cols):
    rows = -(-num // cols)
    cost = abs(math.log(rows * height / (cols * width))) + 5 * (rows * cols - num) / num
    return round(cost, 6)  # so that 2 x 3 ties with 3 x 2, and the wider is taken

  cols = min(range(num, 0, -1), key=cost)
  return -(-num // cols), cols


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
    rows, cols = _layout(len(images), *images.shape[1:3])
  else:
    rows, cols = images.shape[:2]
  tiles = to_uint8(images).reshape(-1, *images.shape[-3:])
  if tiles.shape[-1] not in (1, 3):
    tiles = np.swapaxes(tiles, 2, 3).reshape(*tiles.shape[:2], -1, 1)
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


def write_grid(path: str | Path, images: Any) -> Path:
  """Writes `grid(images)` as one PNG, grey or RGB."""
  from PIL import Image

  buffer = io.BytesIO()
  Image.fromarray(grid(images)).save(buffer, "PNG", compress_level=4)
  return write_bytes(path, buffer.getvalue())


def write_arrays(path: str | Path, batch: Mapping[str, Any]) -> Path:
  """Writes every leaf of a batch into one compressed .npz; bfloat16, unknown to it, as float32."""
  arrays = {k: np.asarray(v) for k, v in batch.items()}
  arrays = {k: v.astype(np.float32) if v.dtype.kind == "V" else v for k, v in arrays.items()}
  buffer = io.BytesIO()
  np.savez_compressed(buffer, **arrays)
  return write_bytes(path, buffer.getvalue())


# -------------------------------------------------------------------------------------- samples


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
  """Writes what `sample` returned as pictures for people, by the kind of each entry.

  Images (image, or domains a and b) become a PNG grid. Points, series and rows become a plot, with
  real data in grey behind, and an .npz with the whole batch. A roll is drawn as an image, pitch
  upwards. Text becomes .txt. The first of these is <stage>_<step>, any other carries its own name.

  Args:
    workdir: the run's folder.
    stage: the stage's name.
    step: steps done in it.
    batch: arrays [N, ...], as in core.Batch.
    reference: real data of the same kind, for the plots.
    info: core.Info of the data: modes and mode_std, columns and vocab_size are used.

  Returns:
    The files written.
  """
  batch = {k: np.asarray(v) for k, v in batch.items()}
  reference = {k: np.asarray(v) for k, v in (reference or {}).items()}
  where = lambda name, ending: sample_path(workdir, stage, step, name, ending)
  written, drawn = [], False
  if any(k in batch for k in ("point", "series", "row", "roll")):
    written.append(write_arrays(where("", "npz"), batch))
  for kind, x in batch.items():
    real, name = reference.get(kind), kind if drawn else ""
    if kind == "text":
      lines = "\n".join(_texts(x, getattr(info, "vocab_size", 0))) + "\n"
      written.append(write_bytes(where(name, "txt"), lines.encode()))
    elif kind == "roll":
      images = 2.0 * np.swapaxes(x[:MAX_TILES], 1, 2)[:, ::-1, :, None] - 1.0
      written.append(write_grid(where(name, "png"), images))
    elif kind in _PLOTS:
      written.append(write_bytes(where(name, "png"), _PLOTS[kind](x, real, info)))
    elif x.ndim == 4:
      written.append(write_grid(where(name, "png"), x[:MAX_TILES]))
    else:
      continue  # labels and other conditions
    drawn = True
  return written


def write_show(
  workdir: str | Path, stage: str, step: int, pictures: Mapping[str, Any], info: Any = None
) -> list[Path]:
  """Writes the extra pictures of `Stage.show` as <stage>_<step>_<name>.png.

  An entry may be
    an array [rows, cols, ...]: images [rows, cols, H, W, C]; points [rows, cols, D] and series
      [rows, cols, T, F] are drawn, row by row; others are kept as .npz;
    {"points": [N, 2], "label": int [N]}: a scatter, coloured by class where there is a label;
    {"x": [N], name: [N], ..., "draws": [M]}: a curve over x for each name and, where there are
      draws, their histogram as a density behind the curves, for integers a bar at each.

  Args:
    workdir: the run's folder.
    stage: the stage's name.
    step: steps done in it.
    pictures: {name: entry}.
    info: core.Info of the data, for the centres of the modes.

  Returns:
    The files written.

  Raises:
    ValueError: for a dict of another kind, or whose arrays do not fit together.
  """
  written = []
  for name, x in pictures.items():
    png = sample_path(workdir, stage, step, name, "png")
    if isinstance(x, Mapping):
      written.append(write_bytes(png, _plot_table(name, {k: np.asarray(v) for k, v in x.items()})))
      continue
    x = np.asarray(x)
    if x.ndim == 5:
      written.append(write_grid(png, x))
    elif x.ndim == 4:
      written.append(write_bytes(png, _plot_series(x.reshape(-1, *x.shape[2:]), None, info)))
    elif x.ndim == 3 and x.shape[-1] <= 3:
      written.append(write_bytes(png, _plot_paths(x, info)))
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
  buffer = io.BytesIO()
  durations = [200] * (len(frames) - 1) + [2000]
  frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
  return write_bytes(Path(workdir) / "samples" / f"{stage}.gif", buffer.getvalue())


def _texts(text: np.ndarray, vocab_size: int) -> list[str]:
  """Strings as they are; token ids as bytes (0 ends a text) up to 256 of them, else as numbers."""
  if text.dtype.kind in "UOS":
    return [t.decode("utf-8", "replace") if isinstance(t, bytes) else str(t) for t in text]
  if 0 < vocab_size <= 256:
    return [bytes(t.astype(np.uint8)).partition(b"\0")[0].decode("utf-8", "replace") for t in text]
  return [" ".join(map(str, t)) for t in text.tolist()]


# ---------------------------------------------------------------------------------------- plots


def _figure(width: float, height: float) -> Any:
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(width, height), dpi=100)
  FigureCanvasAgg(figure)
  return figure


def _png(figure: Any) -> bytes:
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png")
  return buffer.getvalue()


def _tidy(axes: Any) -> None:
  axes.tick_params(labelsize=8, colors=_GREY, length=2)
  for side, spine in axes.spines.items():
    spine.set_visible(side in ("left", "bottom"))
    spine.set_color(_LIGHT)


def _finite(x: np.ndarray) -> np.ndarray:
  """Rows [N, ...] without those that hold a NaN or an infinity."""
  x = x.astype(np.float32)
  return x[np.isfinite(x.reshape(len(x), -1)).all(axis=1)]


def _window(*candidates: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
  """Limits [D], [D] with a margin, from the first candidate [N, D] that has rows.

  Real data come first, so that the axes of all steps agree.
  """
  for x in candidates:
    if x is not None and len(x):
      low, high = x.min(axis=0), x.max(axis=0)
      margin = np.maximum(0.15 * (high - low), 1e-3)
      return low - margin, high + margin
  return np.full(2, -1.0), np.full(2, 1.0)


def _modes(info: Any, dim: int) -> np.ndarray:
  centres = np.asarray(getattr(info, "modes", ()), np.float32)
  if not centres.size:
    return np.zeros((0, dim), np.float32)
  centres = centres.reshape(len(centres), -1)
  return centres if centres.shape[1] == dim else np.zeros((0, dim), np.float32)


def _plot_points(x: np.ndarray, real: np.ndarray | None, info: Any) -> bytes:
  """[N, D] -> PNG: a density scatter of the first two coordinates; D = 1: a histogram."""
  total = len(x)
  x = _finite(x.reshape(total, -1))
  real = None if real is None else _finite(real.reshape(len(real), -1))
  centres = _modes(info, x.shape[1])
  low, high = _window(real, centres, x)
  outside = total - int(((x >= low) & (x <= high)).all(axis=1).sum())
  note = f"{total:,} points" + (f", {outside:,} outside" if outside else "")
  note += ", real data in grey" if real is not None else ""
  note += f"; coordinates 1 and 2 of {x.shape[1]}" if x.shape[1] > 2 else ""
  if x.shape[1] == 1:
    return _plot_histograms({note: (x[:, 0], None if real is None else real[:, 0])}, centres[:, 0])
  figure = _figure(5.6, 5.6)
  axes = figure.add_axes((0.08, 0.06, 0.89, 0.87))
  _tidy(axes)
  axes.grid(color="#eef0f2", linewidth=0.6)
  axes.set_axisbelow(True)
  if real is not None and len(real):
    axes.scatter(*real[:4000, :2].T, s=7, color=_LIGHT, linewidths=0, label="real")
  if len(centres):
    style = {"facecolors": "none", "edgecolors": _GREY, "linewidths": 1.0}
    axes.scatter(*centres[:, :2].T, s=90, label="modes", **style)
  if len(x):
    density, x = _by_density(x[:, :2], low[:2], high[:2])
    axes.scatter(*x.T, s=6, c=density, cmap="plasma_r", vmin=0.0, vmax=1.0, linewidths=0)
  axes.set_xlim(low[0], high[0])
  axes.set_ylim(low[1], high[1])
  axes.set_aspect("equal", adjustable="box")
  axes.set_title(note, fontsize=9, color=_INK, loc="left")
  return _png(figure)


def _by_density(x: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple:
  """Relative density [N] and points [N, 2], the densest last, so that they lie on top."""
  bins = 48
  cell = ((x - low) / (high - low) * bins).clip(0, bins - 1).astype(int)
  cell = cell[:, 0] * bins + cell[:, 1]
  count = np.bincount(cell, minlength=bins * bins)[cell]
  order = np.argsort(count, kind="stable")
  shade = 0.2 + 0.8 * np.sqrt(count / count.max())  # the palest colours are lost on white
  return shade[order], x[order]


def _plot_histograms(columns: Mapping[str, tuple], centres: np.ndarray | Sequence = ()) -> bytes:
  """{title: (fake [N], real [M] or None)} -> PNG with one histogram each, at most 24."""
  columns = dict(list(columns.items())[:24])
  rows, cols = _layout(len(columns), 3, 4) if len(columns) > 1 else (1, 1)
  width, height = (3.0 * cols, 2.3 * rows) if len(columns) > 1 else (6.4, 4.2)
  figure = _figure(width, height)
  for i, (title, (fake, real)) in enumerate(columns.items()):
    axes = figure.add_subplot(rows, cols, i + 1)
    _tidy(axes)
    low, high = _window(*(None if v is None else v[:, None] for v in (real, fake)))
    edges = np.linspace(low[0], high[0], 61)
    for values, style in (
      (real, {"color": _LIGHT, "histtype": "stepfilled"}),
      (fake, {"color": _BLUE, "histtype": "step", "linewidth": 1.4}),
    ):
      if values is not None and len(values):
        weights = np.full(len(values), 1.0 / (len(values) * (edges[1] - edges[0])))
        axes.hist(values, edges, weights=weights, **style)
    for centre in centres:
      axes.axvline(centre, color=_GREY, linewidth=0.8, linestyle=":")
    axes.set_yticks([])
    axes.set_title(title, fontsize=9, color=_INK, loc="left", parse_math=False)
  figure.subplots_adjust(0.3 / width, 0.3 / height, 1 - 0.1 / width, 1 - 0.3 / height, 0.15, 0.45)
  return _png(figure)


def _plot_rows(x: np.ndarray, real: np.ndarray | None, info: Any) -> bytes:
  """[N, F] -> PNG: a histogram per column, generated as a line over real in grey."""
  names = [c if isinstance(c, str) else c[0] for c in getattr(info, "columns", ())]
  x, real = _finite(x), None if real is None else _finite(real)
  names += [f"column {i}" for i in range(len(names), x.shape[1])]
  title = lambda i: names[i] if names.count(names[i]) == 1 else f"{names[i]} ({i})"
  pairs = ((x[:, i], None if real is None else real[:, i]) for i in range(x.shape[1]))
  return _plot_histograms({str(title(i)): pair for i, pair in enumerate(pairs)})


def _plot_series(x: np.ndarray, real: np.ndarray | None, info: Any) -> bytes:
  """[N, T, F] -> PNG: up to twelve series, a line per feature; four real ones in grey above."""
  del info
  shown = [] if real is None else [(s, "real") for s in real[:4]]
  shown += [(s, "generated" if shown else "") for s in x[:12]]
  cols = min(4, max(1, len(shown)))
  rows = -(-len(shown) // cols)
  width, height = 2.6 * cols, 1.7 * rows
  figure = _figure(width, height)
  values = np.asarray([s for s, _ in shown if np.isfinite(s).all()], np.float32)
  low, high = _window(values.reshape(-1, 1)) if values.size else _window()
  shades = ["#2f6fd0", "#d9822b", "#2a9d6f", "#b0488f", "#7a6ad8", "#6b7280"]
  for i, (series, label) in enumerate(shown):
    axes = figure.add_subplot(rows, cols, i + 1)
    _tidy(axes)
    for j, line in enumerate(series.T[:6]):
      grey = {"color": _GREY, "alpha": 1 - 0.13 * j} if label == "real" else {"color": shades[j]}
      axes.plot(line, linewidth=1.0, **grey)
    axes.set_ylim(low[0], high[0])
    axes.set_title(label, fontsize=8, color=_INK, loc="left", pad=2)
    axes.tick_params(labelsize=6, labelleft=i % cols == 0, labelbottom=i >= len(shown) - cols)
  figure.subplots_adjust(0.45 / width, 0.3 / height, 1 - 0.1 / width, 1 - 0.2 / height, 0.08, 0.25)
  return _png(figure)


def _plot_paths(x: np.ndarray, info: Any) -> bytes:
  """[rows, cols, D] -> PNG: one path a row through the plane of the first two coordinates."""
  figure = _figure(5.6, 5.6)
  axes = figure.add_axes((0.08, 0.06, 0.89, 0.87))
  _tidy(axes)
  axes.grid(color="#eef0f2", linewidth=0.6)
  if x.shape[-1] == 1:  # no plane: place in the row against value
    place = np.broadcast_to(np.arange(x.shape[1])[None, :, None], x.shape)
    x = np.concatenate([place, x], axis=-1)
  elif len(centres := _modes(info, x.shape[-1])):
    style = {"facecolors": "none", "edgecolors": _GREY, "linewidths": 1.0}
    axes.scatter(*centres[:, :2].T, s=90, **style)
  for i, path in enumerate(x):
    shade = f"C{i % 10}"
    axes.plot(*path[:, :2].T, linewidth=0.8, color=shade, alpha=0.6)
    axes.scatter(*path[:, :2].T, s=8, color=shade, linewidths=0)
  return _png(figure)


def _plot_table(name: str, table: Mapping[str, np.ndarray]) -> bytes:
  """A dict of `Stage.show` -> PNG."""
  shapes = ", ".join(f"{k} {v.shape}" for k, v in table.items())
  if "points" in table:
    points, label = table["points"], table.get("label")
    fits = points.ndim == 2 and points.shape[1] == 2 and set(table) <= {"points", "label"}
    fits = fits and (
      label is None or (label.shape == points.shape[:1] and label.dtype.kind in "iu")
    )
    if fits:
      return _plot_classes(points, label)
  elif "x" in table:
    curves = {k: v for k, v in table.items() if k not in ("x", "draws")}
    draws = table.get("draws")
    fits = table["x"].ndim == 1 and all(c.shape == table["x"].shape for c in curves.values())
    if fits and len(table["x"]) and (draws is None or draws.ndim == 1):
      return _plot_curves(table["x"], curves, draws)
  raise ValueError(
    f"show: {name!r} holds {shapes}; a plot is points [N, 2] with an optional label [N] of"
    " integers, or x [N] with curves [N] and optional draws [M]"
  )


def _legend(axes: Any, **place: Any) -> None:
  if axes.get_legend_handles_labels()[0]:
    style = {"fontsize": 8, "labelcolor": _INK, "framealpha": 0.85, "edgecolor": "none"}
    legend = axes.legend(**style, handletextpad=0.4, borderpad=0.3, **place)
    for text in legend.get_texts():
      text.set_parse_math(False)


def _class_colours(classes: np.ndarray) -> dict[int, tuple]:
  """{class: RGBA}: ten that can be told apart, by number where they are 0 to 9; more, a scale."""
  from matplotlib import colormaps

  if len(classes) > 10:
    return dict(zip(classes.tolist(), colormaps["turbo"](np.linspace(0.0, 1.0, len(classes)))))
  digits = classes.min(initial=0) >= 0 and classes.max(initial=0) < 10
  return {int(c): colormaps["tab10"](int(c) if digits else i) for i, c in enumerate(classes)}


def _plot_classes(x: np.ndarray, label: np.ndarray | None) -> bytes:
  """[N, 2] and labels [N] -> PNG: a scatter with a colour and a legend entry for each class."""
  width = 5.6 if label is None else 6.2  # inches; the legend stands beside the points
  figure = _figure(width, 5.6)
  axes = figure.add_axes((0.45 / width, 0.06, 5.0 / width, 0.87))
  _tidy(axes)
  axes.grid(color="#eef0f2", linewidth=0.6)
  axes.set_axisbelow(True)
  finite = np.isfinite(x).all(axis=1)
  lost = len(x) - int(finite.sum())
  note = f"{len(x):,} points" + (f", {lost:,} not finite" if lost else "")
  x = x[finite]
  style = {"s": float(np.clip(30_000 / max(1, len(x)), 4, 16)), "linewidths": 0}
  if label is None:
    axes.scatter(*x.T, color=_BLUE, **style)
  elif len(x):
    colours = _class_colours(np.unique(label))
    # in the order given, not class by class: the last class would hide the others
    axes.scatter(*x.T, c=[colours[c] for c in label[finite].tolist()], **style)
    for c, colour in colours.items():
      axes.scatter([], [], s=30, linewidths=0, color=[colour], label=str(c))
    if len(colours) <= 26:  # what fits
      _legend(axes, loc="upper left", bbox_to_anchor=(1.0, 1.0))
  axes.set_title(note, fontsize=9, color=_INK, loc="left")
  return _png(figure)


def _plot_curves(x: np.ndarray, curves: Mapping, draws: np.ndarray | None) -> bytes:
  """[N], {name: [N]} and draws [M] -> PNG: curves over x on a histogram of density."""
  figure = _figure(6.4, 4.2)
  axes = figure.add_axes((0.09, 0.08, 0.88, 0.83))
  _tidy(axes)
  axes.grid(color="#eef0f2", linewidth=0.6)
  axes.set_axisbelow(True)
  if draws is not None and len(draws):
    low, high = float(x.min()), float(x.max())
    inside = draws[(draws >= low) & (draws <= high)]  # neither NaN
    outside = len(draws) - len(inside)
    if draws.dtype.kind in "iu":
      place, count = np.unique(inside, return_counts=True)
      axes.bar(place, count / len(draws), width=0.8, color=_LIGHT, label="draws")
    else:
      bins = int(np.clip(2 * len(draws) ** (1 / 3), 10, 100))  # Rice's rule
      count, edges = np.histogram(inside, bins, (low, high))
      density = count / (len(draws) * (edges[1] - edges[0]))
      axes.stairs(density, edges, fill=True, color=_LIGHT, label="draws")
    note = f"{len(draws):,} draws" + (f", {outside:,} outside" if outside else "")
    axes.set_title(note, fontsize=9, color=_INK, loc="left")
  order = np.argsort(x, kind="stable")
  marker = {"marker": "o", "markersize": 5, "linestyle": ":"} if x.dtype.kind in "iu" else {}
  for i, (name, y) in enumerate(curves.items()):
    axes.plot(x[order], y[order], color=f"C{i % 10}", linewidth=1.4, label=name, **marker)
  _legend(axes)
  return _png(figure)


_PLOTS = {"point": _plot_points, "series": _plot_series, "row": _plot_rows}
