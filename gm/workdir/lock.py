"""One training at a time in a workdir."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path
from typing import IO

from gm.errors import UserError
from gm.workdir import files

LEFT = 3600.0  # seconds after which a file that is not whole has been left by a killed process


def take(workdir: str | Path) -> IO:
  """Locks DIR/.lock until what is returned is closed or the process has ended, in whatever way.

  The system keeps the lock, not the file, which stays and means nothing. On NFS it holds between
  machines, as far as the server knows locks; a file system that knows none is not locked.

  Raises:
    UserError: if another process holds it.
    OSError: if the file cannot be made, with the remedy.
  """
  path = Path(workdir) / ".lock"
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
