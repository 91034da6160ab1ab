"""Scalars over time: DIR/metrics.jsonl, and the same for TensorBoard.

tensorboardX is imported at the first line, because the time to the first step counts.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gm.workdir import files

KEYS = ("stage", "step", "seconds", "examples_per_second")  # the first of a line


def read_metrics(workdir: str | Path) -> list[dict]:
  """Reads DIR/metrics.jsonl; a line that is not whole or none of ours is left out, no file is none.

  Non-finite numbers stand in the file as the strings "nan", "inf" and "-inf", because JSON has no
  such numbers; here they are floats again.

  Args:
    workdir: the run's folder.

  Returns:
    One dict per line: stage (str), step (int), seconds and examples_per_second where it has them,
    then every scalar.
  """
  path = Path(workdir) / "metrics.jsonl"
  lines = path.read_bytes().split(b"\n") if path.exists() else []
  return [record for record in map(_record, lines) if record]


def evaluations(records: Sequence[Mapping], stage: str) -> dict[int, Mapping]:
  """The lines of a stage that are of evaluations, by their step."""
  here = (r for r in records if r["stage"] == stage)
  return {r["step"]: r for r in here if not r.get("examples_per_second")}


def _record(line: bytes) -> dict | None:
  """A line as it was written, None where it cannot have been."""
  try:
    found = json.loads(line)
    stage, step = found["stage"], found["step"]
    if not isinstance(stage, str) or type(step) is not int:
      return None
    number = lambda v: float(v) if isinstance(v, str) else v
    found = {k: number(v) for k, v in found.items() if k != "stage"}
  except (ValueError, KeyError, TypeError, AttributeError):
    return None
  good = all(isinstance(v, int | float) for v in found.values())
  return {"stage": stage, **found} if good else None


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
    with files.explained(self._path):
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
    examples_per_second: float | None,
    metrics: Mapping[str, Any],
  ) -> None:
    """Adds one line.

    Args:
      stage: the stage's name.
      step: steps done in this stage.
      seconds: time spent in training so far.
      examples_per_second: speed since the last line; None: a line of an evaluation, which has none.
      metrics: scalars (Python, NumPy or JAX); non-finite ones become "nan", "inf", "-inf".

    Raises:
      ValueError: if a metric has the name of one of the four fixed keys.
      OSError: if the file cannot grow, with the remedy.
    """
    clash = [k for k in metrics if k in KEYS]
    if clash:
      raise ValueError(f"metrics {clash} have reserved names; rename them, {list(KEYS)} are taken")
    scalars = {k: float(files.plain(v)) for k, v in metrics.items()}
    record = dict(zip(KEYS, (stage, int(step), seconds, examples_per_second)))
    if examples_per_second is None:
      del record["examples_per_second"]
    record |= scalars
    with files.explained(self._path):
      self._append(files.dumps(record).encode() + b"\n")
    with files.explained(self._dir / "events.out.tfevents"):
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
    files.write_bytes(self._path, "".join(files.dumps(r) + "\n" for r in kept).encode())
    with files.explained(self._dir / "events.out.tfevents"):
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
