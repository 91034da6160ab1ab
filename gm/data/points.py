"""Points drawn from known laws, so that a model's samples can be scored exactly.

| name | law (before `scale`) | keys (default) | label |
|---|---|---|---|
| ring | num_modes equal Gaussians on a circle | radius (2), std (0.02), num_modes (8) | mode |
| grid | side^2 equal Gaussians, 2 apart; 25 at (-4, -2, 0, 2, 4)^2 | side (5), std (0.05) | mode |
| gaussian1d | N(mean, std^2) on the line | mean (4), std (0.5) | none |
| moons | two half circles with Gaussian noise | std (0.05) | moon |
| spiral | two arms, 1.5 turns, with Gaussian noise | std (0.1) | arm |
| checkerboard | uniform on 8 of the 16 squares of side 2 in [-4, 4]^2 | none | square |
| quadratic | 3/8 x^2 on [0, 2] of the line | none | none |
| table | (row, column) of a cell of a table | probs (`TABLE`, 3 x 3) | cell, row by row |
| correlated | N(mean, cov) in the plane | mean (0.5, -1), cov (1.5, 0.4; 0.4, 0.8) | none |

`scale` multiplies points, modes and standard deviations alike; 0.5 puts ring on the unit circle. A
split is one fixed draw, 100,000 points to train and 10,000 to test, from a seed that name and split
alone determine: the run's seed changes the order only, and the two draws are independent.

Sources: ring and grid, arXiv:1705.07761 and arXiv:1712.04086 (its grid); spiral, arXiv:1810.01367;
moons as in scikit-learn.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from gm.core import Info, Source
from gm.data import memory
from gm.flags import within

NUM_EXAMPLES = {"train": 100_000, "test": 10_000}


class _Curve(NamedTuple):
  """A uniform choice of branch, a position u ~ U(0, 1) along it, and isotropic Gaussian noise."""

  centre: Callable  # (branch [...], v [...]) -> [..., 2], where u = v ** power
  power: int  # the change of variable that makes `centre` smooth in v
  length: float  # of one branch
  std: float  # default


def _moon(branch: np.ndarray, v: np.ndarray) -> np.ndarray:
  upper = np.stack([np.cos(np.pi * v), np.sin(np.pi * v)], -1)
  return np.where(branch[..., None] == 0, upper, np.array([1.0, 0.5]) - upper)


def _arm(branch: np.ndarray, v: np.ndarray) -> np.ndarray:
  turn = 3 * np.pi * v
  return np.stack([-np.cos(turn), np.sin(turn)], -1) * (turn / 3 * (1 - 2 * branch))[..., None]


_CURVES = {
  "moons": _Curve(_moon, 1, np.pi, 0.05),
  "spiral": _Curve(_arm, 2, 15.3, 0.1),
}
_MIXTURES = {"ring": 0.02, "grid": 0.05, "gaussian1d": 0.5}  # default std
_KEYS = {  # of a law's own
  "ring": {"radius", "std", "num_modes"},
  "grid": {"side", "std"},
  "gaussian1d": {"mean", "std"},
  "moons": {"std"},
  "spiral": {"std"},
  "table": {"probs"},
  "correlated": {"mean", "cov"},
}
NAMES = (*_MIXTURES, *_CURVES, "checkerboard", "quadratic", "table", "correlated")
TABLE = ((0.32, 0.03, 0.01), (0.06, 0.24, 0.02), (0.02, 0.03, 0.27))


def _positive(cfg: Any, key: str, default: float) -> float:
  found = {key: cfg.get(key, default)}
  within(found, key, above=0.0, section="data")
  return found[key]


def _count(cfg: Any, key: str, default: int, most: int) -> int:
  found = {key: cfg.get(key, default)}
  within(found, key, least=1, most=most, section="data")
  return found[key]


def _array(cfg: Any, key: str, default: tuple) -> np.ndarray:
  """Returns f64 numbers; NaN for what is none."""
  try:
    return np.asarray(cfg.get(key, default), np.float64)
  except (TypeError, ValueError):  # names, or rows of several lengths
    return np.full((), np.nan)


def _centres(name: str, cfg: Any) -> np.ndarray:
  """Returns the centres [K, D] of a mixture before `scale`."""
  if name == "ring":
    num_modes = _count(cfg, "num_modes", 8, 10_000)
    angle = 2 * np.pi * np.arange(num_modes) / num_modes
    return _positive(cfg, "radius", 2.0) * np.stack([np.cos(angle), np.sin(angle)], -1)
  if name == "grid":
    side = _count(cfg, "side", 5, 100)
    line = 2.0 * np.arange(side) - (side - 1)
    return np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
  mean = {"mean": cfg.get("mean", 4.0)}
  within(mean, "mean", section="data")
  return np.array([[float(mean["mean"])]])


def _table(cfg: Any) -> np.ndarray:
  """Returns the probabilities [K, L] of `table`."""
  probs = _array(cfg, "probs", TABLE)
  if probs.ndim != 2 or not np.isfinite(probs).all() or (probs < 0).any() or not probs.any():
    raise ValueError(
      f"probs {cfg.get('probs')} are no table of probabilities: set --config.data.probs to rows of"
      " one length, no value negative and one at least positive"
    )
  return probs / probs.sum()


def _normal(cfg: Any) -> tuple[np.ndarray, np.ndarray]:
  """Returns mean [2] and Cholesky factor [2, 2] of `correlated`."""
  mean, cov = _array(cfg, "mean", (0.5, -1.0)), _array(cfg, "cov", ((1.5, 0.4), (0.4, 0.8)))
  try:
    if mean.shape != (2,) or not np.isfinite(mean).all():
      raise np.linalg.LinAlgError
    if cov.shape != (2, 2) or not np.isfinite(cov).all() or (cov != cov.T).any():
      raise np.linalg.LinAlgError
    return mean, np.linalg.cholesky(cov)
  except np.linalg.LinAlgError:
    raise ValueError(
      f"mean {cfg.get('mean')} and cov {cfg.get('cov')} are no normal law in the plane: set"
      " --config.data.mean to two numbers and --config.data.cov to two rows of two, symmetric and"
      " positive definite"
    ) from None


def reads(cfg: Any) -> frozenset[str]:
  """Returns the keys of `cfg` that this source reads."""
  memory.require(cfg["name"], NAMES, what="point set", flag="--config.data.name")
  return frozenset({"name", "scale", "num_train"} | _KEYS.get(cfg["name"], set()))


def info(cfg: Any) -> Info:
  """Returns shapes, number of classes and, for mixtures of more than one mode, the labels' modes.

  Raises:
    ValueError: for an unknown name, or a key that does not make a law.

  >>> info({"name": "ring", "scale": 0.5, "num_modes": 4}).mode_std
  0.01
  """
  name = cfg["name"]
  memory.require(name, NAMES, what="point set", flag="--config.data.name")
  scale = _positive(cfg, "scale", 1.0)
  if name == "quadratic":
    return Info({"point": (1,)})
  if name == "table":
    return Info({"point": (2,), "label": ()}, num_classes=_table(cfg).size)
  if name == "correlated":
    _normal(cfg)
    return Info({"point": (2,)})
  if name in _CURVES:
    _positive(cfg, "std", _CURVES[name].std)
  if name not in _MIXTURES:
    num_classes = 8 if name == "checkerboard" else 2
    return Info({"point": (2,), "label": ()}, num_classes=num_classes)
  centres = _centres(name, cfg) * scale
  k, d = centres.shape
  return Info(
    {"point": (d,), **({"label": ()} if k > 1 else {})},
    num_classes=k if k > 1 else 0,
    modes=tuple(tuple(float(v) for v in c) for c in centres),
    mode_std=_positive(cfg, "std", _MIXTURES[name]) * scale,
  )


def sample(rng: np.random.Generator, n: int, cfg: Any) -> dict[str, np.ndarray]:
  """Draws from the law that `cfg` names.

  Args:
    rng: NumPy generator.
    n: number of points.
    cfg: config.data with `name` and the set's own keys (see the table above).

  Returns:
    {"point": f32 [n, D], "label": i32 [n]}, the label only where there is more than one part.

  Raises:
    ValueError: as `info` does.

  >>> sample(np.random.default_rng(0), 3, {"name": "grid"})["point"].shape
  (3, 2)
  """
  facts, name = info(cfg), cfg["name"]
  label = rng.integers(max(1, facts.num_classes), size=n)
  if name == "checkerboard":
    row, pair = label // 2, label % 2
    corner = np.stack([2 * pair + row % 2, row], -1) * 2.0 - 4.0  # lower left of the square
    x = corner + 2.0 * rng.random((n, 2))
  elif name == "quadratic":  # F(x) = x^3 / 8
    x = 2.0 * np.cbrt(rng.random((n, 1)))
  elif name == "table":
    probs = _table(cfg)
    label = rng.choice(probs.size, n, p=probs.ravel())
    x = np.stack(np.unravel_index(label, probs.shape), -1)
  elif name == "correlated":
    mean, chol = _normal(cfg)
    x = mean + rng.standard_normal((n, 2)) @ chol.T
  else:
    if name in _CURVES:
      curve = _CURVES[name]
      x, std = curve.centre(label, rng.random(n) ** (1 / curve.power)), curve.std
    else:
      x, std = _centres(name, cfg)[label], _MIXTURES[name]
    x = x + _positive(cfg, "std", std) * rng.standard_normal(x.shape)
  rows = {"point": (x * cfg.get("scale", 1.0)).astype(np.float32)}
  if facts.num_classes:
    rows["label"] = label.astype(np.int32)
  return rows


def _nodes(name: str, cfg: Any) -> tuple[np.ndarray, np.ndarray, float]:
  """Returns centres [K, D], log weights [K] and std of the law as a mixture, before `scale`.

  Exact for the mixtures. A curve is integrated by Gauss-Legendre, 8 nodes to pieces of at most
  about one std, which leaves an error near float64's rounding.
  """
  if name in _MIXTURES:
    centres = _centres(name, cfg)
    weights = np.full(len(centres), 1 / len(centres))
    return centres, np.log(weights), _positive(cfg, "std", _MIXTURES[name])
  curve = _CURVES[name]
  std = _positive(cfg, "std", curve.std)
  pieces = int(np.ceil(2 * curve.length / std)) + 1
  node, weight = np.polynomial.legendre.leggauss(8)
  v = ((np.arange(pieces)[:, None] + (node + 1) / 2) / pieces).ravel()
  # u = v ** power is uniform, so v has the density power * v ** (power - 1); a branch has 1/2
  w = np.tile(weight / (2 * pieces), pieces) * curve.power * v ** (curve.power - 1) / 2
  branches = [curve.centre(np.full(len(v), b), v) for b in (0, 1)]
  return np.concatenate(branches), np.log(np.tile(w, 2)), std


def log_density(name: str, x: np.ndarray, cfg: Any) -> np.ndarray:
  """Returns log p(x) of the law: moons and spiral by quadrature, the others exactly.

  log p(x) = log sum_k w_k N(x / scale; c_k, std^2 I) - D log scale.

  Args:
    name: the set.
    x: points [N, D], after `scale`.
    cfg: config.data with the set's own keys.

  Returns:
    f64 [N] in nats; -inf outside the squares of the checkerboard, the range of `quadratic` and the
    cells of `table`, of which it is the log-probability, unaffected by `scale`.

  Raises:
    ValueError: as `info` does.

  >>> log_density("checkerboard", np.array([[-3.0, -3.0], [-1.0, -3.0]]), {"name": "checkerboard"})
  array([-3.4657359,       -inf])
  """
  memory.require(name, NAMES, what="point set", flag="--config.data.name")
  scale = _positive(cfg, "scale", 1.0)
  x = np.asarray(x, np.float64) / scale
  shift = x.shape[-1] * np.log(scale)
  if name == "checkerboard":
    square = np.floor((x + 4) / 2)
    inside = np.all((square >= 0) & (square <= 3), -1) & (square.sum(-1) % 2 == 0)
    return np.where(inside, -np.log(32.0), -np.inf) - shift
  if name == "quadratic":
    with np.errstate(divide="ignore"):
      density = np.where((x >= 0) & (x <= 2), 3 / 8 * x**2, 0.0)
      return np.log(density[:, 0]) - shift
  if name == "table":
    probs, cell = _table(cfg), np.round(x).astype(int)
    inside = (np.abs(x - cell) < 1e-5).all(1) & ((cell >= 0) & (cell < probs.shape)).all(1)
    with np.errstate(divide="ignore"):
      return np.where(inside, np.log(probs[tuple(np.where(inside[:, None], cell, 0).T)]), -np.inf)
  if name == "correlated":
    mean, chol = _normal(cfg)
    square = (np.linalg.solve(chol, (x - mean).T) ** 2).sum(0)
    return -np.log(2 * np.pi) - np.log(np.diag(chol)).sum() - square / 2 - shift
  centres, log_weights, std = _nodes(name, cfg)
  constant = x.shape[-1] * (np.log(std) + 0.5 * np.log(2 * np.pi)) + shift
  out = np.empty(len(x))
  for i in range(0, len(x), 512):  # [512, K] at a time
    part = x[i : i + 512]
    square = sum((part[:, d, None] - centres[:, d]) ** 2 for d in range(x.shape[-1]))
    terms = log_weights - square / (2 * std**2)
    top = terms.max(1)
    out[i : i + 512] = top + np.log(np.exp(terms - top[:, None]).sum(1)) - constant
  return out


def load(
  cfg: Any, split: str, *, seed: int = 0, shuffle: bool = True, part: tuple[int, int] = (0, 1)
) -> Source:
  """Loads a split's fixed draw; leaves point f32 [N, D] and label i32 [N].

  Args:
    cfg: config.data.
    split: "train" or "test".
    seed: order of the rows.
    shuffle: False reads them in their one constant order, a permutation.
    part: (process index, number of processes).

  Raises:
    ValueError: for an unknown name or split, or as `info` does.

  >>> load({"name": "ring"}, "train").num_examples
  100000
  """
  facts = info(cfg)
  memory.require_split(split)
  rng = np.random.default_rng(zlib.crc32(f"{cfg['name']}/{split}".encode()))
  arrays = sample(rng, NUM_EXAMPLES[split], cfg)
  rows = memory.rows(cfg, split, NUM_EXAMPLES[split])
  arrays = {name: a[rows] for name, a in arrays.items()}

  def decode(rows: dict) -> dict:
    import jax.numpy as jnp

    return {name: jnp.asarray(a) for name, a in rows.items()}

  return memory.from_arrays(facts, arrays, decode, seed=seed, shuffle=shuffle, part=part)
