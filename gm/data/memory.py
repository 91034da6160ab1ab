"""Sets held in memory, read in an order that is a pure function of (seed, i)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from gm.core import Info, Source

SPLITS = ("train", "test")
_CONSTANT = (0, 0, 1)  # of no run: (seed, epoch) are the numbers of those


def require(value: str, allowed: Iterable[str], *, what: str, flag: str) -> None:
  """Checks a name against the names that exist.

  Args:
    value: the name that was given.
    allowed: the names that exist.
    what: what it names, for the message.
    flag: the flag that sets it.

  Raises:
    ValueError: if `value` is not allowed; the message lists what is.

  >>> require("train", SPLITS, what="split", flag="split=")
  """
  if value not in allowed:
    raise ValueError(f"unknown {what} {value!r}: set {flag} to one of {sorted(allowed)}")


def require_split(split: str) -> None:
  """Raises ValueError unless `split` is "train" or "test"."""
  require(split, SPLITS, what="split", flag="load(cfg, split)")


def require_part(part: tuple[int, int]) -> None:
  """Raises ValueError unless part = (p, n) has 0 <= p < n."""
  p, n = part
  if not 0 <= p < n:
    raise ValueError(
      f"part {part} is not (process index, number of processes): 0 <= index < number"
    )


def part_size(size: int, part: tuple[int, int]) -> int:
  """Returns the rows of a global batch of `size` that one of `part[1]` processes holds.

  Raises:
    ValueError: if the batch does not split evenly.

  >>> part_size(8, (1, 4))
  2
  """
  if size < 1 or size % part[1]:
    raise ValueError(
      f"a global batch of {size} does not split evenly over {part[1]} processes: "
      "change --config.batch_size"
    )
  return size // part[1]


def rows(cfg: Any, split: str, n: int) -> np.ndarray:
  """Returns the rows of a split that are used: all, or num_train of the training split.

  Args:
    cfg: config.data.
    split: "train" or "test".
    n: rows that there are.

  Raises:
    ValueError: if `cfg` asks for more than there are, or for a negative number.

  >>> rows({"num_train": 3}, "train", 9).tolist()
  [0, 3, 6]
  """
  kept = cfg.get("num_train", 0) if split == "train" else 0
  if not 0 <= kept <= n:
    raise ValueError(
      f"{kept} of {n} training examples cannot be taken: set --config.data.num_train to at most"
      f" {n}, or to 0 for all"
    )
  return np.arange(kept or n) * n // (kept or n)


def constant(n: int) -> np.ndarray:
  """Returns the order in which n rows are read without shuffling: a permutation, always the same.

  A set may be stored class by class, or sorted in some other way. The first rows in this order are
  a random sample of it nevertheless, so pictures and numbers may be made from those.

  Args:
    n: number of rows.

  Returns:
    i32 [n], read-only; it depends on n alone.

  >>> sorted(constant(4).tolist())
  [0, 1, 2, 3]
  """
  rows = np.arange(n, dtype=np.int32)
  np.random.default_rng(_CONSTANT).shuffle(rows)
  rows.flags.writeable = False  # slices of it are handed out
  return rows


def order(
  n: int, *, seed: int = 0, shuffle: bool = True, part: tuple[int, int] = (0, 1)
) -> Callable[[int, int], np.ndarray]:
  """Returns `indices(i, size)`, the rows of global batch i that belong to this process.

  Position p = i * size + j of the endless stream lies in epoch p // n and shows row
  permutation(seed, epoch)[p % n], or constant(n)[p % n] without shuffling; process q of m takes j =
  q, q + m, ... So every epoch shows every row once, and no call depends on the calls before it.

  Args:
    n: number of rows.
    seed: non-negative; another seed gives another order.
    shuffle: False: every epoch, of every seed, is in the constant order.
    part: (process index, number of processes).

  Returns:
    indices: (i, size of the global batch) -> i32 [size / number of processes], read-only.

  Raises:
    ValueError: for an empty set, a negative seed or i, a part that is none, a batch that does not
      split.

  >>> indices = order(3, shuffle=False)
  >>> bool((indices(1, 3) == constant(3)).all())
  True
  """
  if n < 1:
    raise ValueError("the set is empty: point --config.data.dir or --config.data.name at another")
  if seed < 0:
    raise ValueError(f"seed {seed} is negative: set --config.seed to 0 or more")
  require_part(part)
  first, step = part
  rows = np.arange(n, dtype=np.int32) if shuffle else constant(n)

  @functools.lru_cache(maxsize=4)  # bounded: a batch touches one epoch, or two at a boundary
  def epoch(e: int) -> np.ndarray:
    if not shuffle:
      return rows
    permutation = np.random.default_rng((seed, e)).permutation(rows)
    permutation.flags.writeable = False  # slices of it are handed out
    return permutation

  def indices(i: int, size: int) -> np.ndarray:
    i, size = int(i), int(size)  # a NumPy i32 would overflow in i * size
    if i < 0:
      raise ValueError(f"batch {i} does not exist: i counts from 0")
    part_size(size, part)
    e, start = divmod(i * size, n)
    if start + size <= n:
      return epoch(e)[start + first : start + size : step]
    pieces = []
    while size > 0:
      pieces.append(epoch(e)[start : start + size])
      size -= len(pieces[-1])
      e, start = e + 1, 0
    return np.concatenate(pieces)[first::step]

  return indices


def from_arrays(
  info: Info,
  arrays: dict[str, np.ndarray],
  decode: Callable,
  *,
  seed: int = 0,
  shuffle: bool = True,
  part: tuple[int, int] = (0, 1),
) -> Source:
  """Returns the Source of a set that is wholly in memory.

  Args:
    info: its static facts.
    arrays: leaves [N, ...] in storage dtype, such as uint8 images.
    decode: rows in storage dtype -> Batch; jnp-traceable.
    seed: order of the rows, see `order`.
    shuffle: False reads them in their one constant order, a permutation.
    part: (process index, number of processes).

  Raises:
    ValueError: if the leaves differ in length, or as `order` does.

  >>> source = from_arrays(Info({"x": ()}), {"x": np.arange(4)}, lambda rows: rows, shuffle=False)
  >>> sorted(source.batch(1, 4)["x"].tolist())
  [0, 1, 2, 3]
  """
  lengths = {name: len(a) for name, a in arrays.items()}
  if len(set(lengths.values())) != 1:
    raise ValueError(f"the arrays of one set must be of one length; given {lengths}")
  num_examples = next(iter(lengths.values()))
  indices = order(num_examples, seed=seed, shuffle=shuffle, part=part)

  def batch(i: int, size: int) -> dict[str, np.ndarray]:
    rows = indices(i, size)
    return {name: a[rows] for name, a in arrays.items()}

  return Source(info, num_examples, batch, decode, arrays, indices)
