"""Seeds and labels as they are asked for, in flags or in Python: read and checked.

A range of seeds stays one, however long it is.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Sequence

from gm.errors import UserError
from gm.progress import say

MAX_SEED = 2**31 - 1
MOST_LISTED = 2**20  # of seeds that are no single range; they are held one by one


def parse_seeds(text: str, flag: str = "--seeds") -> Sequence[int]:
  """Returns the seeds that a flag names; raises UserError for anything but numbers and ranges.

  >>> parse_seeds("0-3"), parse_seeds("0-3,9")
  (range(0, 4), [0, 1, 2, 3, 9])
  """
  ranges = [_range(part, text, flag) for part in text.split(",")]
  if len(ranges) == 1:
    return ranges[0]
  total = sum(map(len, ranges))
  if total > MOST_LISTED:
    raise UserError(
      f"{flag}={text[:40]!r}: several ranges name at most {MOST_LISTED:,} seeds, these {total:,}:"
      " give one range, or fewer seeds"
    )
  return [seed for seeds in ranges for seed in seeds]


def _range(part: str, text: str, flag: str) -> range:
  match = re.fullmatch(r"\s*([0-9]{1,10})(?:-([0-9]{1,10}))?\s*", part)
  first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, MAX_SEED + 1)
  if first > last:
    raise UserError(
      f"{flag}={text[:40]!r}: {part!r} is no seed: a range goes upwards, as in"
      f" {flag}={last}-{first}"
    )
  if last > MAX_SEED:
    raise UserError(
      f"{flag}={text[:40]!r}: {part[:40]!r} is no seed: give numbers from 0 to {MAX_SEED} or"
      f" ranges, as in {flag}=0-35 or {flag}=1,5,9"
    )
  return range(first, last + 1)


def check_seeds(seeds: Iterable[int] | str) -> Sequence[int]:
  """Returns seeds as they are, or read from text.

  Raises:
    UserError: if they are none, no whole numbers, or out of range.
  """
  if isinstance(seeds, str):
    return parse_seeds(seeds)
  if not isinstance(seeds, range):
    try:
      seeds = [operator.index(seed) for seed in seeds]
    except TypeError:
      raise UserError(
        f"seeds={seeds!r} are no whole numbers: give range(36), [1, 5, 9] or '0-35'"
      ) from None
  ends = (seeds[0], seeds[-1]) if seeds and isinstance(seeds, range) else seeds
  if not ends or min(ends) < 0 or max(ends) > MAX_SEED:
    raise UserError(
      f"seeds are numbers from 0 to {MAX_SEED}, and at least one: change --seeds or --num_samples"
    )
  return seeds


def distinct(seeds: Sequence[int]) -> Sequence[int]:
  """Returns every seed once, in the order in which they came first."""
  return seeds if isinstance(seeds, range) else list(dict.fromkeys(seeds))


def label_numbers(labels: Sequence[str | int] | str | int, classes: Sequence[str]) -> list[int]:
  """Returns labels as numbers, each once.

  Args:
    labels: numbers or names. A text that is a name is that class, also where it looks like a
      number; then a line says so.
    classes: all names, in the order of their numbers.

  Raises:
    UserError: if they are none, or one is unknown.

  >>> label_numbers(["dog", "0"], ["cat", "dog"])
  [1, 0]
  """
  given = [labels] if isinstance(labels, str | int) else list(labels)
  if not given:
    raise UserError("--labels names no label: give numbers or names, or leave it out")
  known, found = {name: i for i, name in enumerate(classes)}, []
  for label in given:
    text, named = str(label), isinstance(label, str) and label in known
    number = known[text] if named else int(text) if re.fullmatch("[0-9]{1,10}", text) else -1
    if not 0 <= number < len(classes):
      shown = ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")
      raise UserError(
        f"--labels: there is no label {text!r}; give numbers from 0 to {len(classes) - 1} or"
        f" names: {shown}"
      )
    if named and text.isdecimal() and text != str(number):
      say(f"labels: {text} -> class {number}")
    found.append(number)
  return list(dict.fromkeys(found))
