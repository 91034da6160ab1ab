"""Which blocks a very deep VAE has, told by strings as in its authors' code (arXiv:2011.10650).

8x5   five blocks on maps of 8 x 8; 8 alone is one
8d2   in the encoder one block, and the mean of 2 x 2 pixels after it
8m4   in the decoder one block, before which the map of 4 x 4 is added, each pixel repeated
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

Steps = tuple[tuple[int, int], ...]  # (side, the number after d or m, else 0)

MOST_BLOCKS = 1_000
_WORD = re.compile(r"(\d{1,6})(?:([xdm])(\d{1,6}))?")


def parse(text: str, letter: str) -> Steps:
  """Reads a string of blocks.

  Args:
    text: e.g. "32x2,32d2,16".
    letter: d in an encoder's, m in a decoder's.

  Raises:
    ValueError: if it is no such string.

  >>> parse("8x2,8d2,4", "d"), parse("1,4m1", "m")
  (((8, 0), (8, 0), (8, 2), (4, 0)), ((1, 0), (4, 1)))
  """
  found = []
  for word in str(text).split(","):
    match = _WORD.fullmatch(word.strip())
    if not match or match[2] not in (None, "x", letter) or "0" in (match[1], match[3]):
      given = f"--config.model.{'enc' if letter == 'd' else 'dec'}_blocks={text!r}"
      raise ValueError(f"{given}: {word!r} is no block; write 8x5, 8 or 8{letter}2, by commas")
    side, number = int(match[1]), int(match[3] or 0)
    found += [(side, 0)] * min(number, MOST_BLOCKS + 1) if match[2] == "x" else [(side, number)]
  if len(found) > MOST_BLOCKS:
    raise ValueError(f"{len(found):,} blocks are too many in {text!r}: at most {MOST_BLOCKS:,}")
  return tuple(found)


@dataclasses.dataclass(frozen=True)
class Widths:
  """Channels by the side of a map.

  >>> widths = Widths.parse(16, "8:24,4:32")
  >>> widths.at(8), widths.at(1), widths.inside(8)
  (24, 16, 6)
  """

  most: int
  others: tuple[tuple[int, int], ...] = ()  # (side, channels)
  bottleneck: float = 0.25

  @classmethod
  def parse(cls, most: int, others: str, bottleneck: float = 0.25) -> Widths:
    """`others` is side:channels, joined by commas; an empty string is none.

    Raises:
      ValueError: if it is no such string.
    """
    words = [w.strip() for w in str(others).split(",")] if others else []
    if not all(re.fullmatch(r"[1-9]\d{0,5}:[1-9]\d{0,5}", w) for w in words):
      raise ValueError(
        f"--config.model.widths={others!r} is not possible: write side:channels, joined by commas"
      )
    return cls(most, tuple(tuple(map(int, w.split(":"))) for w in words), bottleneck)

  def at(self, side: int) -> int:
    """Channels of a map."""
    return dict(self.others).get(side, self.most)

  def inside(self, side: int) -> int:
    """Channels inside of its blocks."""
    return max(1, int(self.at(side) * self.bottleneck))


def check(encoder: Steps, decoder: Steps, image: Sequence[int]) -> None:
  """Follows the maps through the blocks of both.

  Raises:
    ValueError: where a map is not there, or does not divide.
  """
  height, width = image[:2]
  if height != width:
    raise ValueError(f"images are {height} x {width}, not square: set --config.data.image_size")
  side, seen = height, {height}
  for given, rate in encoder:
    if given != side or (rate and side % rate):
      raise ValueError(
        f"--config.model.enc_blocks: a block {given}{f'd{rate}' if rate else ''} where maps of"
        f" images of {height} pixels are {side} x {side}; or change --config.data.image_size"
      )
    side = side // rate if rate else side
    seen.add(side)
  known = set()
  for given, below in decoder:
    if given not in seen:
      raise ValueError(
        f"--config.model.dec_blocks: a block of {given} x {given}, where the encoder has maps of"
        f" {', '.join(map(str, sorted(seen)))}"
      )
    if below and (below not in known or below >= given or given % below):
      raise ValueError(
        f"--config.model.dec_blocks: {given}m{below} needs a map of {below} x {below} before it,"
        f" that {given} is a multiple of"
      )
    known.add(given)
  if decoder[-1][0] != height:
    raise ValueError(f"--config.model.dec_blocks ends at {given}, images have {height} pixels")
