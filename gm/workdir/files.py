"""Files that are there whole or not at all, and JSON without surprises.

Whole files appear by `os.replace`, so a reader (or a process that is killed) never sees half of
one, and two processes may write the same one. Every failure to write is an OSError of the same kind
as the cause, with one sentence that names the file and the remedy.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
  """Turns an OSError into one of the same kind that names the file and what to do."""
  try:
    yield
  except OSError as error:
    reason = error.strerror or str(error)
    text = f"cannot write {path}: {reason}; {remedy(error.errno)}"
    raise OSError(error.errno or errno.EIO, text) from error


def fault(text: str) -> OSError | None:
  """The fault of the disk in what a library says in words of its own, or None.

  >>> fault("RESOURCE_EXHAUSTED: Error writing: No space left on device [OS error 28]")
  OSError(28, 'No space left on device')
  """
  known = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS, errno.EIO)
  found = next((n for n in known if os.strerror(n) in text), None)
  return OSError(found, os.strerror(found)) if found else None


def remedy(number: int | None) -> str:
  """What to do about an `errno` of writing."""
  if number in (errno.ENOSPC, errno.EDQUOT):
    return "free some space, then give the same command again to resume"
  return "give a --workdir that can be written"


def write_bytes(path: str | Path, data: bytes) -> Path:
  """Writes a file whole or not at all; makes its folder.

  Raises:
    OSError: of the cause's own kind (PermissionError ...), naming the file and the remedy.
  """
  path = Path(path)
  temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # lock.py removes what is left
  with explained(path):
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


def plain(value: Any) -> Any:
  """The JSON form of configs and metrics: no tuples, no arrays, no non-finite numbers."""
  if isinstance(value, Mapping):
    return {str(k): plain(v) for k, v in value.items()}
  if isinstance(value, (list, tuple, set, frozenset)):
    return [plain(v) for v in value]
  if value is None or isinstance(value, (bool, int, str)):
    return value
  if isinstance(value, Path):
    return str(value)
  if hasattr(value, "dtype"):
    array = np.asarray(value)
    if array.ndim:
      return [plain(v) for v in array]
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


def dumps(value: Any, indent: int | None = None) -> str:
  """JSON text of `plain(value)`."""
  return json.dumps(plain(value), indent=indent, ensure_ascii=False, allow_nan=False)


def read_json(path: Path, remedy: str) -> dict:
  """Reads a table of names.

  Raises:
    FileNotFoundError: if there is no file; the message ends in the remedy.
    ValueError: if it holds something else.
  """
  try:
    value = json.loads(path.read_bytes())
  except FileNotFoundError:
    raise FileNotFoundError(errno.ENOENT, f"there is no {path}; {remedy}") from None
  except ValueError as error:
    raise ValueError(f"{path} is not valid JSON ({error}); {remedy}") from None
  if not isinstance(value, dict):
    raise ValueError(f"{path} holds a {type(value).__name__}, not a table of names; {remedy}")
  return value
