"""One training at a time in a workdir."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path
from typing import IO

from gm.errors import UserError, user_input
from gm.workdir import files

LEFT = 3600.0  # seconds after which a file that is not whole has been left by a killed process


class Lock:
  """DIR/.lock, held from `take` to the end of the block or of the process, in whatever way.

  The block takes it where the folder is there, so that nobody moves on what is read in it; a folder
  that is yet to be made is locked by `take`. The system keeps the lock, not the file, which stays
  and means nothing. On NFS it holds between machines, as far as the server knows locks; a file
  system that knows none is not locked.
  """

  def __init__(self, workdir: str | Path):
    self.workdir, self.file = Path(workdir), None

  def __enter__(self) -> Lock:
    if self.workdir.is_dir():
      with user_input():
        self.take()
    return self

  def take(self) -> None:
    """Locks the folder, if that has not been done.

    Raises:
      UserError: if another process holds it.
      OSError: if the file cannot be made, with the remedy.
    """
    if self.file is None:
      self.file = _take(self.workdir)

  def __exit__(self, *_: object) -> None:
    if self.file is not None:
      self.file.close()


def _take(workdir: Path) -> IO:
  path = workdir / ".lock"
  with files.explained(path):
    file = open(path, "a+b", buffering=0)  # noqa: SIM115, closed by the caller
  try:
    import fcntl

    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    with file:
      file.seek(0)
      holder = file.read(200).decode(errors="replace").strip() or "another process"
    raise UserError(
      f"{workdir} is being trained by {holder}: wait for it, or give another --workdir"
    ) from None
  except (OSError, ImportError):  # no locks here
    return file
  with contextlib.suppress(OSError):  # words for others, on a disk that may be full
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
  _tidy(path.parent)
  return file


def _tidy(workdir: Path) -> None:
  """Removes the halves of files that killed processes left; others may be at work on theirs."""
  for folder in (workdir, workdir / "samples"):
    for path in folder.glob(".*.tmp"):
      with contextlib.suppress(OSError):
        if time.time() - path.stat().st_mtime > LEFT:
          path.unlink()
