"""Signals that ask a process to end.

Where nothing would be lost it ends at once, also in the middle of an import, of the compiler or of
a wait for another process; training saves first, unless a second Ctrl-C does not wait for that.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from typing import Any, NoReturn

ERRORS = 2  # the file descriptor for a last line
ASKING = (signal.SIGTERM, signal.SIGINT)

_holder: Interrupt | None = None  # of what saves before the process ends
_watched = False  # whether a thread learns of signals, see `end_at_once`


class Stopped(Exception):
  """The run was asked to stop by a signal and has saved its state."""

  def __init__(self, message: str, signum: int):
    super().__init__(message)
    self.signum = signum


class Break(BaseException):
  """A signal came while something was done that can be done again."""


def leave(line: str, status: int) -> NoReturn:
  """Ends the process with a line, whatever its threads wait for."""
  with contextlib.suppress(OSError):
    os.write(ERRORS, f"{line}\n".encode())
  os._exit(status)


def end_at_once() -> None:
  """From here on SIGTERM and Ctrl-C end this process, with one line and status 128 + signal.

  Python calls a handler only between two instructions of its main thread, and an exception that a
  handler raises may be swallowed by a callback; so a thread is told by the C part of Python's
  handling. This is for programs: the process of a notebook belongs to others.
  """
  global _watched
  receive, send = os.pipe()
  os.set_blocking(send, False)
  signal.set_wakeup_fd(send, warn_on_full_buffer=False)
  for signum in ASKING:
    signal.signal(signum, lambda *_: None)
  _watched = True
  threading.Thread(target=_watch, args=(receive,), daemon=True).start()


def _watch(receive: int) -> None:
  while True:
    for signum in os.read(receive, 64):
      if signum in ASKING and (_holder is None or not _holder.holds):
        leave("interrupted", 128 + signum)
      if signum in ASKING and _holder.ask(signum):
        leave("interrupted before the state was saved; the last checkpoint stays", 128 + signum)


class Interrupt:
  """Remembers SIGTERM and Ctrl-C so that the loop can save first; a second Ctrl-C stops at once.

  Attributes:
    holds: whether there is something to do before the process ends.
    signum: the first signal that came while it held; 0: none.
  """

  def __enter__(self) -> Interrupt:
    global _holder
    self.signum, self.previous, self.asked = 0, {}, 0
    self.holds = self.breakable = False
    with contextlib.suppress(ValueError):  # only the main thread may handle signals
      for s in ASKING:
        self.previous[s] = signal.signal(s, self._handle)
    _holder = self
    return self

  def ask(self, signum: int) -> bool:
    """Notes that a signal came; True where it is a Ctrl-C and not the first signal."""
    from gm.progress import say

    before, self.signum = self.signum, self.signum or signum
    if not before:
      say("stopping: the state will be saved first")
    return before > 0 and signum == signal.SIGINT

  def _handle(self, signum: int, frame: Any) -> None:
    del frame
    if not _watched and (self.ask(signum) or (signum == signal.SIGINT and not self.holds)):
      raise KeyboardInterrupt
    if self.breakable:
      self.signum = self.signum or signum
      raise Break

  def heard(self) -> int:
    """The signal that came, or 0; of several processes none may act on it alone."""
    import jax

    return self.signum if jax.process_count() == 1 else 0

  def agreed(self, step: int, period: int) -> int:
    """The signal, or 0; several processes ask one another every `period` steps, to stop as one."""
    import jax

    if jax.process_count() == 1:
      return self.signum
    if abs(step - self.asked) < period:
      return 0
    self.asked = step
    return self._of_all()

  def _of_all(self) -> int:
    import numpy as np
    from jax.experimental import multihost_utils

    return int(multihost_utils.process_allgather(np.int32(self.signum)).max())

  def check(self, message: str) -> None:
    """Raises Stopped with a message if a signal came to this process or to another of its job."""
    import jax

    signum = self.signum if jax.process_count() == 1 else self._of_all()
    if signum:
      raise Stopped(message, signum)

  def attempt(self, work: Callable[[], Any]) -> Any:
    """Returns what `work` does; None where a signal came before or on the way, and broke it off.

    Several processes work to the end, because they work together.
    """
    import jax

    alone = jax.process_count() == 1
    try:
      self.breakable = alone
      try:
        return None if self.heard() else work()
      finally:
        self.breakable = False
    except Break:
      self.breakable = False
      return None

  def __exit__(self, *_: object) -> None:
    global _holder
    _holder = None
    for s, handler in self.previous.items():
      signal.signal(s, handler)
