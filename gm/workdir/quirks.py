"""What orbax does beside its work, and what it makes of errors.

It looks for its files by a glob of their whole path, so a folder with a bracket in its name would
be read as a pattern; it tells what nobody asked for; and it hides the reason of an error under
pages of settings.
"""

from __future__ import annotations

import contextlib
import glob
import logging
import pathlib
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

TRIES = 20  # to look at checkpoints of a training that goes on
_links: dict[str, tuple] = {}  # folder -> (link to it, what holds the link until the process ends)


def without_glob(folder: pathlib.Path) -> pathlib.Path:
  """Returns a path of an existing folder that no glob takes for a pattern: itself, or a link.

  >>> without_glob(pathlib.Path("/tmp")).as_posix()
  '/tmp'
  """
  if glob.escape(str(folder)) == str(folder):
    return folder
  if str(folder) not in _links:
    place = tempfile.TemporaryDirectory(prefix="gm-")
    link = pathlib.Path(place.name) / "checkpoints"
    link.symlink_to(folder, target_is_directory=True)
    _links[str(folder)] = link, place
  return _links[str(folder)][0]


def named(path: object) -> str:
  """The folder's own path, of one that `without_glob` gave."""
  return next((name for name, (link, _) in _links.items() if str(link) == str(path)), str(path))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Without the tracebacks that orbax and asyncio log of a checkpoint that cannot be read."""
  drop_late_errors()
  loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
  levels = [logger.level for logger in loggers]
  for logger in loggers:
    logger.setLevel(logging.CRITICAL + 1)
  try:
    yield
  finally:
    for logger, level in zip(loggers, levels, strict=True):
      logger.setLevel(level)


def drop_late_errors() -> None:
  """From now on, silence of reads that were under way when another one failed.

  Orbax reads all arrays at once and stops at the first error; Python then reports the others one by
  one, as errors that nobody waits for, whenever they come.
  """
  before = sys.unraisablehook
  if getattr(before, "drops_late_errors", False):
    return

  def hook(found):
    code = getattr(found.object, "cr_code", None)  # of a coroutine
    late = code is not None and "orbax" in code.co_filename
    if not late and str(found.exc_value) != "Event loop is closed":
      before(found)

  hook.drops_late_errors = True
  sys.unraisablehook = hook


def os_error(error: BaseException | None) -> int | None:
  """The operating system's number of what went wrong with a file, if that is what it was."""
  while error is not None:
    if isinstance(error, OSError) and error.errno:
      return error.errno
    found = re.search(r"os_error_code='(\d+)'", str(error))  # in TensorStore's own kinds
    if found:
      return int(found[1])
    error = error.__cause__ or error.__context__
  return None


def settled(look: Callable) -> Any:
  """What `look` gives, again where a training deletes a checkpoint between its name and its age."""
  for left in reversed(range(TRIES)):
    try:
      return look()
    except FileNotFoundError:
      if not left:
        raise
