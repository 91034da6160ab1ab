"""Signals that ask a run to stop."""

from __future__ import annotations

import contextlib
import signal
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from gm.progress import say


class Interrupt:
  """Remembers SIGTERM and Ctrl-C so that the loop can save first; a second Ctrl-C stops at once."""

  def __enter__(self) -> Interrupt:
    self.signum, self.previous = 0, {}
    with contextlib.suppress(ValueError):  # only the main thread may handle signals
      for s in (signal.SIGTERM, signal.SIGINT):
        self.previous[s] = signal.signal(s, self._remember)
    return self

  def _remember(self, signum: int, frame: Any) -> None:
    del frame
    if self.signum and signum == signal.SIGINT:
      raise KeyboardInterrupt
    self.signum = signum
    say("stopping: the state will be saved first")

  def agreed(self, step: int, period: int) -> int:
    """The signal, or 0; several processes ask one another every `period` steps, to stop as one."""
    if jax.process_count() == 1:
      return self.signum
    if not period or step % period:
      return 0
    return int(multihost_utils.process_allgather(np.int32(self.signum)).max())

  def __exit__(self, *_: object) -> None:
    for s, handler in self.previous.items():
      signal.signal(s, handler)
