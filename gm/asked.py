"""Seeds, labels, images and texts as they are asked for, in flags or in Python: read and checked.

A range of seeds stays one, however long it is.
"""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gm.data import images, text
from gm.errors import UserError, user_input
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


def label_numbers(
  labels: Sequence[str | int] | str | int, classes: Sequence[str], flag: str = "--labels"
) -> list[int]:
  """Returns labels as numbers, each once.

  Args:
    labels: numbers or names. A text that is a name is that class, also where it looks like a
      number; then a line says so.
    classes: all names, in the order of their numbers.
    flag: that they were given by.

  Raises:
    UserError: if they are none, or one is unknown.

  >>> label_numbers(["dog", "0"], ["cat", "dog"])
  [1, 0]
  """
  given = [labels] if isinstance(labels, str | int) else list(labels)
  if not given:
    raise UserError(f"{flag} names no label: give numbers or names, or leave it out")
  known, found = {name: i for i, name in enumerate(classes)}, []
  for label in given:
    text, named = str(label), isinstance(label, str) and label in known
    number = known[text] if named else int(text) if re.fullmatch("[0-9]{1,10}", text) else -1
    if not 0 <= number < len(classes):
      shown = ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")
      raise UserError(
        f"{flag}: there is no label {text!r}; give numbers from 0 to {len(classes) - 1} or"
        f" names: {shown}"
      )
    if named and text.isdecimal() and text != str(number):
      say(f"{flag.removeprefix('--')}: {text} -> class {number}")
    found.append(number)
  return list(dict.fromkeys(found))


def image_files(paths: Sequence[str] | str, flag: str = "--input") -> list[str]:
  """Returns the files that a flag names: a folder stands for the images that lie in it.

  Raises:
    UserError: if there are none.
  """
  paths, found = [paths] if isinstance(paths, str) else list(paths), []
  for path in map(str, paths):
    if not os.path.isdir(path):
      found.append(path)
      continue
    try:
      names = sorted(os.listdir(path))
    except OSError as error:
      raise UserError(f"{flag}: {path} cannot be listed ({error.strerror})") from error
    inside = [n for n in names if n[0] != "." and Path(n).suffix.lower() in images.SUFFIXES]
    if not inside:
      raise UserError(f"{flag}: the folder {path} has no images: give another, or files")
    found += [os.path.join(path, name) for name in inside]
  if not found:
    raise UserError(f"{flag} names no file: give paths of images, or leave it out")
  return found


def read_images(
  paths: Sequence[str], shape: tuple[int, int, int], flag: str = "--input"
) -> np.ndarray:
  """Reads images of the user's own as a data set's: upright, the largest centred part, resized.

  Args:
    paths: as in `image_files`.
    shape: H, W and C of the images that a method knows.
    flag: that they were given by.

  Returns:
    f32 [N, H, W, C] in [-1, 1].

  Raises:
    UserError: if there is none, one cannot be read, or such a method has none as files.
  """
  paths = image_files(paths, flag)
  if shape[2] not in (1, 3):
    raise UserError(f"{flag}: images of {shape[2]} channels come from no file: leave it out")
  try:
    with user_input():
      found = [images.read(path, *shape) for path in paths]
  except UserError as error:
    raise UserError(f"{flag}: {error}") from error
  return np.stack(found).astype(np.float32) / 127.5 - 1


def image_names(paths: Sequence[str]) -> list[str]:
  """Names for what is made of files: their own without folder and ending, numbered where not new.

  >>> image_names(["a/cat.png", "b/cat.jpg", "my dog.png"])
  ['cat', 'cat_1', 'my_dog']
  """
  return text_names([Path(path).stem for path in paths])


def check_one_each(request: Any, made: str, images: str, *, targets: bool) -> None:
  """Refuses what means nothing where every image that is given becomes one of its own, undrawn.

  Args:
    request: sampling.Request.
    made: what becomes of an image, "translation".
    images: which they are, "images that are translated".
    targets: whether there is something to be chosen by --target.

  Raises:
    ValueError: naming the flag.
  """
  if len(request.seeds) > 1:
    raise ValueError(f"--seeds: of an image one {made} is made, nothing drawn: leave it out")
  for flag in ("labels", "complete", "prompts", *(() if targets else ("target",))):
    if getattr(request, flag) is not None:
      raise ValueError(f"--{flag}: {images} have none: leave it out")
  if request.form not in (None, "files"):
    raise ValueError(f"--format={request.form}: {images} become a file each: leave it out")


def text_names(texts: Sequence[str]) -> list[str]:
  """Names for files that are made for texts, numbered where not new.

  >>> text_names(["a red hat", "A hat, red", "a red hat"])
  ['a_red_hat', 'A_hat__red', 'a_red_hat_2']
  """
  names = []
  for i, given in enumerate(texts):
    name = re.sub(r"[^\w.-]", "_", given)[:40]
    names.append(name if name not in names else f"{name}_{i}")
  return names


MOST_PROMPTS = 10_000  # in one call: a file of more is no file of prompts


def read_prompts(path: str) -> list[str]:
  """Returns the prompts of a file, one a line.

  Raises:
    UserError: if it cannot be read, or has a line without text.
  """
  try:
    lines = Path(path).expanduser().read_text(encoding="utf-8-sig").splitlines()
  except (OSError, UnicodeDecodeError) as error:
    wrong = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
    raise UserError(f"--prompts={path} cannot be read ({wrong})") from error
  empty = next((i for i, line in enumerate(lines, 1) if not line.strip()), None)
  if empty or not lines:
    where = f"line {empty} is empty" if empty else "it is empty"
    raise UserError(f"--prompts={path}: {where}: give a text in each line")
  return lines


def check_prompts(prompts: Sequence[str] | str) -> list[str]:
  """Returns texts as a list, each once.

  Raises:
    UserError: if they are none, or too many.
  """
  found = list(dict.fromkeys([prompts] if isinstance(prompts, str) else prompts))
  if not 0 < len(found) <= MOST_PROMPTS:
    raise UserError(f"--prompt: {len(found):,} texts are given: give 1 to {MOST_PROMPTS:,}")
  return found


def prompt_tokens(prompts: Sequence[str], tokenizer: str, length: int) -> np.ndarray:
  """Returns texts as tokens, i32 [N, length].

  Args:
    prompts: the texts.
    tokenizer: of the run, see gm/data/text.py.
    length: tokens that a text has room for.

  Raises:
    UserError: for a text that is empty or too long, or a word that is not known.
  """
  with user_input():
    return text.encode(tokenizer, prompts, length, [f"--prompt={p[:80]!r}" for p in prompts])
