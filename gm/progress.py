"""How far training and sampling are: a bar or lines, and the clock."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

import jax

from gm import core, diagnostics


def say(text: str) -> None:
  """Prints a line, once however many processes there are."""
  if jax.process_index() == 0:
    print(text, flush=True)


class Bar:
  """Progress: a bar on a terminal, plain lines elsewhere; alarms once each."""

  def __init__(self, stage: core.Stage, step: int, records: list[dict], resumed: bool):
    self.stage, self.records, self.raised = stage, records, set()
    self.seconds = next((r["seconds"] for r in reversed(records) if "seconds" in r), 0.0)
    self.bar = None
    if resumed:
      say(f"{stage.name}: resumed at step {step} of {stage.num_steps}")
    if sys.stderr.isatty() and jax.process_index() == 0:
      from tqdm import tqdm

      self.bar = tqdm(total=stage.num_steps, initial=step, desc=stage.name, unit="step")

  def move(self, step: int) -> None:
    """Shows how far training is."""
    if self.bar is not None:
      self.bar.update(step - self.bar.n)

  def log(self, step: int, rate: float | None, metrics: dict) -> None:
    """Shows the main numbers, and new alarms."""
    self.records.append({"stage": self.stage.name, "step": step, **metrics})
    main = {k: v for k, v in metrics.items() if k.startswith("loss") or rate is None}
    text = "  ".join(f"{k} {v:.4g}" for k, v in main.items())
    if self.bar is not None:
      self.bar.set_postfix_str(text, refresh=False)
    elif rate is None:
      say(f"{self.stage.name} {step}  {text}")
    else:
      left = (self.stage.num_steps - step) / rate
      clock = f"{int(left) // 60}:{int(left) % 60:02d}"
      say(
        f"{self.stage.name} {step}/{self.stage.num_steps}  {rate:.4g} steps/s  {clock} left  {text}"
      )
    for alarm in diagnostics.alarms(self.records[-50:]):
      if alarm.name not in self.raised:
        self.raised.add(alarm.name)
        self.note(f"ALARM {alarm.name} at step {alarm.step}: {alarm.message}")

  def note(self, text: str) -> None:
    """Prints a line above the bar."""
    if self.bar is not None:
      self.bar.write(text)
    else:
      say(text)

  def close(self) -> None:
    """Leaves the bar as it stands."""
    if self.bar is not None:
      self.bar.close()


class Count:
  """How many of a known number are done, and how fast: a bar on a terminal, lines elsewhere."""

  def __init__(self, total: int, unit: str, seconds: float = 5.0):
    """Begins to count.

    Args:
      total: number in all.
      unit: what is counted, "images".
      seconds: between two lines.
    """
    self.total, self.unit, self.seconds = total, unit, seconds
    self.done, self.bar, self.start = 0, None, None
    self.begun = self.told = time.perf_counter()
    if sys.stderr.isatty() and jax.process_index() == 0:
      from tqdm import tqdm

      self.bar = tqdm(total=total, unit=f" {unit}")

  def add(self, num: int) -> None:
    """Counts some more as done."""
    now, self.done = time.perf_counter(), self.done + num
    if self.start is None:  # the first ones waited for the compiler, and do not count
      self.start = self.done, now
    if self.bar is not None:
      self.bar.update(num)
    elif now - self.told >= self.seconds or self.done == self.total:
      rate = (self.done - self.start[0]) / max(1e-9, now - self.start[1])
      speed = f"  {rate:,.4g} {self.unit}/s" if rate else ""
      if not rate and self.done == self.total:  # all came at once
        speed = f"  {self.done / max(1e-9, now - self.begun):,.4g} {self.unit}/s with the start"
      say(f"{self.done:,}/{self.total:,} {self.unit}{speed}")
      self.told = now

  def __enter__(self) -> Count:
    return self

  def __exit__(self, *exc) -> None:
    if self.bar is not None:
      self.bar.close()


class Clock:
  """Seconds of training: time spent on pictures, evaluation and saving does not count."""

  def __init__(self, step: int, seconds: float):
    self.step, self.seconds, self.since = step, seconds, time.perf_counter()

  def lap(self, step: int) -> tuple[float, float]:
    """Returns seconds so far and the steps per second since the last lap."""
    now = time.perf_counter()
    rate = (step - self.step) / max(1e-9, now - self.since)
    self.seconds, self.step, self.since = self.seconds + now - self.since, step, now
    return self.seconds, rate

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Does not count the time inside."""
    start = time.perf_counter()
    yield
    self.since += time.perf_counter() - start
