"""What a key of a config may be: a name out of a few, a number within bounds, data that fit.

What is wrong is an error of one line with the flag, what was given and what is allowed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gm import core


def _read(given: Mapping, key: str, section: str) -> tuple[str, Any]:
  """Returns the flag of a key and its value."""
  flag = f"--config.{section}.{key}" if section else f"--config.{key}"
  if key not in given:
    raise ValueError(
      f"{flag} is missing: the config is another method's, or an older one's; give --config=NAME.py"
      " with the name of --config.method, and single keys instead of a whole section"
    )
  return flag, given[key]


def choice(given: Mapping, key: str, allowed: Sequence[str], *, section: str = "model") -> str:
  """Returns given[key], a name out of a few.

  Args:
    given: a section of the config.
    key: in it.
    allowed: the names that are known.
    section: its name, for the message; "" for keys outside of sections.

  Raises:
    ValueError: for any other name; the message has the flag and what is known.

  >>> choice({"noise": "normal"}, "noise", ("normal", "uniform"))
  'normal'
  """
  flag, value = _read(given, key, section)
  if value not in allowed:
    raise ValueError(f"{flag}={value!r} is not known: choose {', '.join(allowed)}")
  return value


MOST_UNITS = 2**20  # in one direction: what is larger is a mistake
MOST_STEPS = 2**31 - 1  # they are counted as i32
_LARGEST = float(np.finfo(np.float32).max)


def within(
  given: Mapping,
  *keys: str,
  least: float | None = None,
  above: float | None = None,
  most: float | None = None,
  below: float | None = None,
  length: int | None = None,
  empty: bool = False,
  section: str = "model",
) -> None:
  """Checks the numbers of a config, and tuples of numbers one by one.

  Where `least` is whole, so are the numbers, and at most MOST_UNITS if `most` is not given; others
  are anything finite, and as near to a bound as float32 can tell.

  Args:
    given: a section of the config.
    *keys: of numbers or tuples in it.
    least: bound that may be reached, as `most`.
    above: bound that may not be reached, as `below`.
    most: see least.
    below: see above.
    length: of tuples.
    empty: whether tuples may be empty.
    section: its name, for the message; "" for keys outside of sections.

  Raises:
    ValueError: for anything else; the message has the flag and what is allowed.

  >>> m = {"z_dim": 64, "widths": (256, 128), "ema": 0.999}
  >>> within(m, "z_dim", "widths", least=1)
  >>> within(m, "ema", least=0.0, below=1.0)
  """
  whole = isinstance(least, int)
  most = MOST_UNITS if whole and most is None else most
  bounds = {"at least": least, "above": above, "at most": most, "below": below}
  allowed = " and ".join(f"{word} {bound:,}" for word, bound in bounds.items() if bound is not None)

  def fits(x: Any) -> bool:
    if isinstance(x, bool) or not isinstance(x, int if whole else (int, float)):
      return False
    if not whole:
      x = float(np.float32(x)) if abs(x) <= _LARGEST else math.nan
    return (
      (whole or math.isfinite(x))
      and (least is None or x >= least)
      and (above is None or x > above)
      and (most is None or x <= most)
      and (below is None or x < below)
    )

  for key in keys:
    flag, value = _read(given, key, section)
    numbers = value if (several := isinstance(value, tuple | list)) else (value,)
    wrong = not all(map(fits, numbers)) or (not numbers and not empty)
    if wrong or (several and length not in (None, len(numbers))):
      kind = "whole number" if whole else "finite number"
      size = f"{length} " if length else "any number of " if empty else "one or more "
      what = f"{size}{kind}s, each" if several else f"a {kind}"
      raise ValueError(f"{flag}={value!r} is not possible: give {what} {allowed}".rstrip())


def matching(given: Mapping, key: str, other: str, *, section: str = "model") -> None:
  """Checks that a tuple is as long as another.

  Raises:
    ValueError: if not.

  >>> matching({"widths": (64, 32), "z_dims": (8, 4)}, "widths", "z_dims")
  """
  flag, value = _read(given, key, section)
  other_flag, like = _read(given, other, section)
  if len(value) != len(like):
    raise ValueError(
      f"{flag}={value!r} is not possible: give {len(like)}, one for each of {other_flag}={like!r}"
    )


def kernel(given: Mapping, *keys: str, shape: Sequence[int]) -> None:
  """Checks the sides of kernels: 1 to the larger side of images [H, W, C], as given in `shape`.

  Raises:
    ValueError: for anything else.

  >>> kernel({"kernel": 4}, "kernel", shape=(28, 28, 1))
  """
  within(given, *keys, least=1, most=max(shape[:2]))


def unlabelled(what: str, data: Mapping) -> str:
  """The message for data without labels that something needs.

  >>> unlabelled("cgan", {"source": "folder", "name": "unused"})
  'cgan needs labels, and folder has none here: set --config.data.num_classes'
  """
  if data["source"] in ("folder", "tfds"):  # the config says how many classes there are
    return f"{what} needs labels, and {data['source']} has none here: set --config.data.num_classes"
  return (
    f"{what} needs labels, and {data['source']}:{data['name']} has none: set another"
    " --config.data.name, or --config.data.source and --config.data.num_classes"
  )


def leaf(info: core.Info, *names: str) -> str:
  """Returns the first of the leaves that a method can make and the data have.

  Raises:
    ValueError: if they have none of them.

  >>> leaf(core.Info({"point": (2,)}), "image", "point")
  'point'
  """
  found = [name for name in names if name in info.shape]
  if not found:
    raise ValueError(
      f"the method is for data with {' or '.join(names)}, these have {', '.join(info.shape)}: set"
      " another --config.data.source and --config.data.name"
    )
  return found[0]
