"""Captions of images that are files, written by whoever collected them.

In a folder of images (--config.data.text_key=caption) they stand in one of two places:

  captions.csv     in the folder itself; a first line file,caption and then a line for each caption:
                   train/a.png,"a red hat, a green scarf". Files are named from this folder.
  a.txt            beside a.png where there is no captions.csv; each line is a caption.

An image with several captions is an example for each. One without is an error, and so is a line
that names no image; UTF-8.
"""

from __future__ import annotations

import csv
import pathlib
import posixpath
from collections.abc import Iterable

FILE = "captions.csv"
COLUMNS = ["file", "caption"]


def of_files(top: pathlib.Path, paths: Iterable[str]) -> dict[str, list[tuple[str, str]]]:
  """Returns the captions of images.

  Args:
    top: the folder.
    paths: of the images, below it.

  Returns:
    path -> (caption, where it stands), one or more.

  Raises:
    ValueError: for an image without a caption, an empty caption, a line that names no image, or a
      file that cannot be read; the message says which.
  """
  if (top / FILE).exists():
    return _from_table(top, list(paths))
  return {path: _beside(top, path) for path in paths}


def _text(path: pathlib.Path) -> str:
  try:
    return path.read_text(encoding="utf-8-sig")
  except UnicodeDecodeError as error:
    raise ValueError(f"{path} is no UTF-8 text ({error.reason}): save it as UTF-8") from error


def _from_table(top: pathlib.Path, paths: list[str]) -> dict[str, list[tuple[str, str]]]:
  table, found = top / FILE, {path: [] for path in paths}
  rows = csv.reader(_text(table).splitlines(keepends=True))
  try:
    if next(rows, None) != COLUMNS:
      raise ValueError(f"{table} must begin with the line {','.join(COLUMNS)}: add it")
    for row in rows:
      where = f"{table} line {rows.line_num}"
      if len(row) != len(COLUMNS):
        raise ValueError(
          f"{where} has {len(row)} fields, not {len(COLUMNS)}: put a caption with commas into"
          ' "quotes"'
        )
      name, caption = posixpath.normpath(row[0].strip()), row[1].strip()
      if not caption:
        raise ValueError(f"{where}: the caption of {name} is empty: write one, or remove the line")
      if name in found:
        found[name].append((caption, where))
      elif not (top / name).is_file():  # else it is of no split that is used
        raise ValueError(f"{where} names {name}, which is not in {top}: mend or remove the line")
  except csv.Error as error:
    raise ValueError(f"{table} line {rows.line_num} cannot be read ({error}): mend it") from error
  without = [path for path, captions in found.items() if not captions]
  if without:
    more = f" (nor have {len(without) - 1:,} others)" if len(without) > 1 else ""
    raise ValueError(
      f"{top / without[0]} has no caption in {table}{more}: add a line for it, or remove the image"
    )
  return found


def _beside(top: pathlib.Path, path: str) -> list[tuple[str, str]]:
  file = (top / path).with_suffix(".txt")
  if not file.is_file():
    raise ValueError(
      f"{top / path} has no caption: there is no {file.name} beside it, and no {FILE} in {top}: add"
      " one of them, or set --config.data.text_key=''"
    )
  lines = [line.strip() for line in _text(file).splitlines()]
  found = [(line, f"{file} line {i}") for i, line in enumerate(lines, 1) if line]
  if not found:
    raise ValueError(f"{file} is empty: write a caption into it, or remove the image")
  return found
