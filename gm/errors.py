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
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
      text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, KeyError) and error.args:
      text = error.args[0]  # its str() is a repr
    raise UserError(" ".join(text.split())) from error
