"""What a user can mend, told in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class UserError(Exception):
  """Something that the user can mend; reported in one line, without a traceback."""


@contextlib.contextmanager
def user_input() -> Iterator[None]:
  """Turns the errors that bad input raises into a UserError."""
  try:
    yield
  except (ValueError, KeyError, OSError, ImportError, RuntimeError) as error:
    raise UserError(sentence(error)) from error


def sentence(error: Exception) -> str:
  """What an error says, in one line.

  >>> sentence(FileNotFoundError(2, "No such file or directory", "/tmp/x"))
  '/tmp/x: No such file or directory'
  """
  text = str(error)
  if isinstance(error, OSError) and error.strerror:
    text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
  if isinstance(error, KeyError) and error.args:
    text = str(error.args[0])  # its str() is a repr
  return " ".join(text.split())
