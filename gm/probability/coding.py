"""Codes of whole bits: the shortest for a law, whose mean length lies between its entropy and one
bit more.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from gm.probability.joint import law


class PrefixCode(NamedTuple):
  """Words of which none begins another, so that what is written in them can be read in one way."""

  words: tuple[str, ...]  # "0", "10", ...; "" for what never occurs, and where nothing else does
  mean_length: float  # bits for a symbol


def prefix_code(p: jax.Array) -> PrefixCode:
  """The code of least mean length L for symbols that follow p: H(p) <= L < H(p) + 1, in bits.

  The two rarest symbols are joined again and again. Words are given by length and, among equals,
  in the order of the symbols, so a law has one code.

  Args:
    p: law, [K], with known values.

  Returns:
    The words, and their mean length.

  Raises:
    ValueError: if p is no law of one variable.

  Source: Huffman, A method for the construction of minimum-redundancy codes, 1952; bounds: Shannon,
  1948.

  >>> prefix_code([1 / 2, 1 / 4, 1 / 8, 1 / 8])
  PrefixCode(words=('0', '10', '110', '111'), mean_length=1.75)
  """
  probs = np.asarray(p, np.float64)
  if probs.ndim != 1:
    raise ValueError(f"p: given {probs.shape}; symbols are [K]")
  law("p", probs)  # refuses what is none, but divides in the precision of jax
  probs = probs / probs.sum()
  lengths = np.zeros(len(probs), np.int64)
  heap = [(weight, k, (k,)) for k, weight in enumerate(probs) if weight > 0]
  heapq.heapify(heap)
  while len(heap) > 1:
    (a, i, first), (b, _, second) = heapq.heappop(heap), heapq.heappop(heap)
    joined = first + second
    lengths[list(joined)] += 1
    heapq.heappush(heap, (a + b, i, joined))
  words, last, number = [""] * len(probs), 0, 0
  for k in np.argsort(lengths, kind="stable"):
    if lengths[k]:
      number <<= int(lengths[k]) - last
      last = int(lengths[k])
      words[k] = f"{number:0{last}b}"
      number += 1
  return PrefixCode(tuple(words), float(probs @ lengths))


def encode(words: Sequence[str], symbols: Iterable[int]) -> str:
  """Writes symbols one after the other.

  Args:
    words: of a prefix code.
    symbols: numbers, 0 to K - 1.

  Raises:
    ValueError: for a symbol that has no word.

  >>> encode(("0", "10", "110", "111"), [1, 0, 3])
  '100111'
  """
  symbols = list(symbols)
  for k in symbols:
    if not 0 <= k < len(words) or not words[k]:
      raise ValueError(f"symbol {k} has no word; the words are {tuple(words)}")
  return "".join(words[k] for k in symbols)


def decode(words: Sequence[str], bits: str) -> list[int]:
  """Reads what `encode` wrote; no mark is needed between words.

  Args:
    words: of a prefix code.
    bits: of 0 and 1.

  Raises:
    ValueError: if the bits end within a word, or begin none.

  >>> decode(("0", "10", "110", "111"), "100111")
  [1, 0, 3]
  """
  known, symbols, word = {w: k for k, w in enumerate(words) if w}, [], ""
  for bit in bits:
    word += bit
    if word in known:
      symbols.append(known[word])
      word = ""
  if word:
    raise ValueError(f"bits: after {len(symbols)} symbols {word!r} is no word of {tuple(words)}")
  return symbols
