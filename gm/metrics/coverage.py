"""Points: modes covered and distances between sets; and the size of a sampler's support."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from gm.core import Info

RADIUS = 3.0  # standard deviations: the convention of VEEGAN and PacGAN
ENOUGH = 20  # points that make a mode more than a stray
NUM_DIRECTIONS = 64
BIRTHDAYS = 100  # samples among which a duplicate is looked for
ORDERS = 8  # in which the points are read
SAME = 1e-3  # share of the pairs of real points that count as duplicates


def modes(
  fake: Mapping[str, np.ndarray], real: Mapping[str, np.ndarray], info: Info
) -> dict[str, float]:
  """How many of the known modes are sampled, how evenly and how exactly.

  Every point belongs to its nearest centre, and is of high quality within 3 standard deviations of
  it; in two dimensions a perfect sampler has 1 - e^-4.5 = 98.9 % of those.

  Args:
    fake: "point" [N, D].
    real: not used: the law is known.
    info: with modes and mode_std.

  Returns:
    modes_1: centres with a high-quality point. One stray is enough, so a collapse may still show
      all of them.
    modes_20: centres with 20 of them.
    num_modes: all centres.
    high_quality: share of high-quality points.
    mode_kl: KL(modes of the high-quality points || uniform) in nats; log(num_modes) at one mode,
      and where there is no such point; about (num_modes - 1) / 2N for a perfect sampler.
    mode_min_share: share of the rarest mode among the high-quality points; fair is 1 / num_modes.

  Raises:
    ValueError: if there are no points, or the data have no known modes.

  Source: Srivastava et al., 2017, arXiv:1705.07761; Lin et al., 2018, arXiv:1712.04086.

  >>> two = Info({"point": (1,)}, modes=((0.0,), (9.0,)), mode_std=1.0)
  >>> found = modes({"point": np.array([[0.5], [8.0], [9.5], [5.0]])}, {}, two)
  >>> found["modes_1"], found["modes_20"], found["high_quality"]
  (2.0, 0.0, 0.75)
  """
  if not info.modes:
    raise ValueError(
      "coverage.modes needs data with known modes (ring, grid): use another --config.data.name, or"
      " coverage.distance in --config.metrics"
    )
  x, centres = _points(fake, "samples"), np.asarray(info.modes, np.float64)
  if x.shape[1] != centres.shape[1]:
    raise ValueError(f"points of {x.shape[1]} dimensions have no modes of {centres.shape[1]}")
  square = sum((x[:, d, None] - centres[:, d]) ** 2 for d in range(x.shape[1]))  # [N, K]
  nearest = square.argmin(1)
  # a point that is not a number compares as False, so it is of low quality
  high = square[np.arange(len(x)), nearest] <= (RADIUS * info.mode_std) ** 2
  counts = np.bincount(nearest[high], minlength=len(centres))
  share = counts / max(1, counts.sum())
  return {
    "modes_1": float((counts >= 1).sum()),
    "modes_20": float((counts >= ENOUGH).sum()),
    "num_modes": float(len(centres)),
    "high_quality": float(high.mean()),
    "mode_kl": kl_to(share, np.full(len(centres), 1 / len(centres))),
    "mode_min_share": float(share.min()),
  }


def distance(
  fake: Mapping[str, np.ndarray], real: Mapping[str, np.ndarray], info: Info
) -> dict[str, float]:
  """How far the samples are from real points of any law.

  Args:
    fake: "point" [N, D].
    real: "point" [M, D].
    info: not used.

  Returns:
    sliced_w1: `sliced_wasserstein` in the data's own unit.
    sliced_w1_self: the same between two random halves of `real`, a floor: M / 2 each.

  Raises:
    ValueError: if there are no points, or a value is not finite.

  >>> x = np.array([[1.0], [4.0]])
  >>> distance({"point": x + 2.5}, {"point": x}, Info({}))
  {'sliced_w1': 2.5, 'sliced_w1_self': 3.0}
  """
  x, y = _points(fake, "samples"), _points(real, "real data")
  for found, what in ((x, "samples"), (y, "real points")):
    if not np.isfinite(found).all():
      raise ValueError(
        f"{(~np.isfinite(found)).any(1).sum()} of {len(found)} {what} are not finite"
      )
  halves = np.array_split(np.random.default_rng(0).permutation(y), 2)
  return {
    "sliced_w1": sliced_wasserstein(x, y),
    "sliced_w1_self": sliced_wasserstein(*halves) if len(y) > 1 else 0.0,
  }


def support(
  fake: Mapping[str, np.ndarray], real: Mapping[str, np.ndarray], info: Info
) -> dict[str, float]:
  """The birthday test on points of any law, with duplicates defined by the real data.

  Two points are duplicates where they are as near as the nearest thousandth of the pairs of real
  points, so that real data have a support of about 1,000 and a sampler on one of 8 equal modes has
  an eighth of that. Batches of 100 are drawn from the points in 8 shuffled orders; between
  independent draws of 2,500 points the estimate still varies by about a tenth.

  Args:
    fake: "point" [N, D].
    real: "point" [M, D].
    info: not used.

  Returns:
    support: `birthday_support` of the samples; infinity where too few of the batches of 100 hold a
      duplicate, which is a support of more than 7,000.
    support_real: the same of the real points.

  Raises:
    ValueError: if there are no points, or fewer than 100 of either.

  >>> x = np.random.default_rng(0).random((4000, 2))
  >>> found = support({"point": x / 4}, {"point": x}, Info({}))  # a sixteenth of the area
  >>> found["support_real"] / found["support"] > 8
  True
  """
  x, y = _points(fake, "samples"), _points(real, "real data")
  if min(len(x), len(y)) < BIRTHDAYS:
    raise ValueError(
      f"coverage.support looks for duplicates among {BIRTHDAYS} points, given {len(x)} samples and"
      f" {len(y)} real ones: raise --config.num_eval_samples"
    )
  some = np.random.default_rng(1).permutation(y)[:2000]
  square = sum((some[:, d, None] - some[:, d]) ** 2 for d in range(some.shape[1]))
  tolerance = float(np.sqrt(np.quantile(square[np.triu_indices(len(some), 1)], SAME)))
  rng = np.random.default_rng(0)

  def estimate(z):
    orders = [rng.permutation(z)[: len(z) // BIRTHDAYS * BIRTHDAYS] for _ in range(ORDERS)]
    batches = np.concatenate(orders).reshape(-1, BIRTHDAYS, z.shape[1])
    return birthday_support(batches, tolerance=tolerance)

  return {"support": estimate(x), "support_real": estimate(y)}


support.least = BIRTHDAYS


def sliced_wasserstein(a: np.ndarray, b: np.ndarray, *, seed: int = 0) -> float:
  """Mean over directions u of the 1-Wasserstein distance between the projections on u.

  A shift by v in the plane costs 2/pi |v|. On a line there is one direction; in the plane 64 at
  equal angles; above, 64 drawn from `seed`.

  Args:
    a: [N, D].
    b: [M, D].
    seed: of the directions where D > 2.

  Returns:
    The distance, in the unit of the points.

  Raises:
    ValueError: if the sets differ in D.

  Source: Rabin et al., 2011, "Wasserstein barycenter and its application to texture mixing".

  >>> a = np.zeros((5, 2))
  >>> round(sliced_wasserstein(a, a + np.array([np.pi, 0.0])), 2)
  2.0
  """
  if a.shape[1] != b.shape[1]:
    raise ValueError(f"points of {a.shape[1]} and {b.shape[1]} dimensions cannot be compared")
  dim = a.shape[1]
  if dim == 1:
    return wasserstein_1d(a[:, 0], b[:, 0])
  if dim == 2:
    angles = np.pi * np.arange(NUM_DIRECTIONS) / NUM_DIRECTIONS
    u = np.stack([np.cos(angles), np.sin(angles)])
  else:
    u = np.random.default_rng(seed).standard_normal((dim, NUM_DIRECTIONS))
    u /= np.linalg.norm(u, axis=0)
  return float(np.mean([wasserstein_1d(p, q) for p, q in zip((a @ u).T, (b @ u).T, strict=True)]))


def wasserstein_1d(a: np.ndarray, b: np.ndarray) -> float:
  """1-Wasserstein distance of two samples on the line: the integral of |F_a - F_b|.

  Args:
    a: [N].
    b: [M], of any length.

  Returns:
    The distance, in the unit of the points.

  >>> wasserstein_1d(np.array([0.0, 1.0]), np.array([2.0]))
  1.5
  """
  a, b = np.sort(a), np.sort(b)
  x = np.sort(np.concatenate([a, b]))
  at = lambda sample: np.searchsorted(sample, x[:-1], side="right") / len(sample)
  return float(np.abs(at(a) - at(b)) @ np.diff(x))


def kl_to(p: np.ndarray, q: np.ndarray) -> float:
  """KL(p || q) in nats of two histograms of shares; -log min q, the most it can be, if p is empty.

  Args:
    p: [K], sums to 1, or all 0.
    q: [K], sums to 1, positive.

  >>> round(kl_to(np.array([1.0, 0.0]), np.array([0.5, 0.5])), 6)
  0.693147
  """
  seen = p > 0
  if not seen.any():
    return float(-np.log(q.min()))
  return max(0.0, float(p[seen] @ np.log(p[seen] / q[seen])))


def birthday_support(batches: np.ndarray, *, tolerance: float = 0.0) -> float:
  """Size of a sampler's support from the birthday paradox.

  With N equally likely outcomes a batch of s samples holds a duplicate with probability
  1 - exp(-s (s - 1) / 2N), half at s = 1.18 sqrt(N), so N = s (s - 1) / (2 ln 2) at the s where
  half of these batches do. Outcomes that are not equally likely collide earlier: one of probability
  p is seen twice after about 1/p samples.

  Args:
    batches: [R, S, ...], R batches of independent samples; each is read up to its first duplicate.
    tolerance: Euclidean distance up to which two samples are duplicates, to be set on real data.

  Returns:
    The estimate; infinity where fewer than half of the batches hold a duplicate, and then S, hence
    the support that can be seen, is too small.

  Source: Arora and Zhang, 2017, arXiv:1706.08224.

  >>> round(birthday_support(np.zeros((3, 4, 2))), 2)  # one outcome; s = 2
  1.44
  """
  num, size = np.shape(batches)[:2]
  first = np.full(num, np.inf)
  for r, x in enumerate(np.asarray(batches, np.float64).reshape(num, size, -1)):
    for j in range(1, size):
      if (((x[:j] - x[j]) ** 2).sum(1) <= tolerance**2).any():
        first[r] = j + 1
        break
  s = np.sort(first)[(num - 1) // 2]
  return float(s * (s - 1) / (2 * math.log(2)))


def _points(batch: Mapping[str, np.ndarray], what: str) -> np.ndarray:
  if "point" not in batch:
    raise ValueError(
      f"this metric compares points, the {what} hold {', '.join(sorted(batch)) or 'nothing'}: take"
      " it out of --config.metrics, or set --config.data.source=points"
    )
  x = np.asarray(batch["point"], np.float64)
  if x.ndim != 2 or not len(x):
    raise ValueError(f"the {what} must be points [N, D] with N >= 1, not {x.shape}")
  return x
