"""Samplers. Von Neumann, Various techniques used in connection with random digits, 1951.

Idea: a generator without parameters: uniform or normal noise is turned into draws of a law that is
known exactly, so that everything a generative model is judged by can be computed beside its truth.
Objective: none is trained. With F the cumulative function of the law and u ~ U(0, 1),
  discrete:   the first cell k of a table with F_k > u
  inverse:    x = F^-1(u), a formula
  tabulated:  the same from values of the density on a grid
  rejection:  x ~ g kept with probability f(x) / b(x), b >= f, g = b / (integral of b)
  reparam:    x = mean + L eps, eps ~ N(0, I), L L^T the covariance: gradients pass through mean, L
Departures: rejection draws each sample in a loop of its own, and is evaluated on a fixed budget of
candidates. The gradients that are compared are those of E x^T A x, A = I, in the mean: by the path
through x, and by the score function (Williams, 1992).
Run: python main.py --config=configs/sampling.py --workdir=/tmp/sampling
  seconds; 200,000 draws lie within 0.0030 of the law, where 0.0036 is the 1 % limit
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gm import core, flags
from gm.probability import fit, gaussian, gradients, sampling

_LAWS = {  # of config.data.name, for each of config.model.method
  "discrete": "table",
  "inverse": "quadratic",
  "tabulated": "quadratic",
  "rejection": "quadratic",
  "reparam": "correlated",
}


def stages(config, info: core.Info) -> list[core.Stage]:
  """Returns the one stage, of no steps, that draws from the law of config.data.

  Raises:
    ValueError: for a name or a number that is not possible, or another law.
  """
  m, data = config.model, config.data
  if config.num_steps:
    raise ValueError(
      f"--config.num_steps={config.num_steps}: nothing is trained here, so there are no steps: set"
      " it to 0"
    )
  flags.within(m, "num_draws", "num_shown", least=1, most=2**27)
  flags.within(m, "num_knots", least=2)
  flags.choice(m, "bound", ("triangle", "constant"))
  law = _LAWS[flags.choice(m, "method", tuple(_LAWS))]
  if (data.source, data.name) != ("points", law):
    given = data.source if data.source == "folder" else f"{data.source}:{data.name}"
    raise ValueError(
      f"{m.method} draws from the law {law}, the data are {given}: set"
      f" --config.data.source=points and --config.data.name={law}"
    )
  build = {"discrete": _discrete, "reparam": _reparam, "rejection": _rejection}
  draw, evaluate, show = build.get(m.method, _inverse)(m, data)

  def init(key, batch, prev):
    return core.State(step=jnp.zeros((), jnp.int32), params={}, opt={})

  def step(state, batch, key):
    return state.replace(step=state.step + 1), {}

  def sample(state, batch, key):
    x = draw(key, len(batch["point"]))
    return {"point": data.scale * x.reshape(batch["point"].shape)}

  def keep(state, batch, key):  # tests of a law are of all points at once
    return {"real": batch["point"] / data.scale}

  def conclude(found, key):
    return evaluate(key, found["real"])

  shown = lambda state, batch, key: show(key)
  return [core.Stage("sample", 0, init, step, sample, keep, shown, conclude=conclude)]


def _discrete(m, data):
  """Cells of a table, by their numbers row by row."""
  table = jnp.array(data.probs, jnp.float32)
  cells = jnp.arange(table.size)

  def cell(key, n):
    return sampling.discrete_inverse_cdf(key, table.ravel(), (n,))

  def draw(key, n):  # -> (row, column) [n, 2]
    return jnp.stack(jnp.unravel_index(cell(key, n), table.shape), -1).astype(jnp.float32)

  def evaluate(key, real):
    row, column = jnp.round(real).astype(jnp.int32).T
    chi2, p_value = fit.chi_square(cell(key, m.num_draws), table.ravel())
    _, real_p_value = fit.chi_square(row * table.shape[1] + column, table.ravel())
    return {"chi2": chi2, "p_value": p_value, "real_p_value": real_p_value}

  def show(key):
    probs = table.ravel() / table.sum()
    return {"law": {"x": cells, "probability": probs, "draws": cell(key, m.num_shown)}}

  return draw, evaluate, show


def _line(m, draw, **bounds):
  """What samplers of the quadratic law share: the distance of draws to it, and its picture."""

  def distances(x, mask, real):
    return {
      "ks": fit.ks_distance(x, sampling.quadratic_cdf, mask),
      "ks_limit": 1.63 / jnp.sqrt(mask.sum()),  # exceeded once in a hundred times
      "real_ks": fit.ks_distance(real[:, 0], sampling.quadratic_cdf),
    }

  def show(key):
    grid = jnp.linspace(0.0, 2.0, 201)
    curves = {"density": sampling.quadratic_pdf, **bounds}
    drawn = {name: curve(grid) for name, curve in curves.items()}
    return {"law": {"x": grid, **drawn, "draws": draw(key, m.num_shown)}}

  return distances, show


def _inverse(m, data):
  """3/8 x^2 on [0, 2], by the formula of its inverse or by a table of its density."""
  knots = jnp.linspace(0.0, 2.0, m.num_knots)

  def draw(key, n):
    if m.method == "inverse":
      return sampling.inverse_transform(key, sampling.quadratic_inverse_cdf, (n,))
    return sampling.tabulated_inverse(key, knots, sampling.quadratic_pdf(knots), (n,))

  distances, show = _line(m, draw)

  def evaluate(key, real):
    return distances(draw(key, m.num_draws), jnp.ones(m.num_draws, bool), real)

  return draw, evaluate, show


def _rejection(m, data):
  """3/8 x^2 on [0, 2], under a bound that is constant, 3/2, or a triangle, 3/4 x."""

  def propose(key, n):  # the inverse of each bound's own cumulative function
    u = jax.random.uniform(key, (n,))
    return 2 * (u if m.bound == "constant" else jnp.sqrt(u))

  def bound(x):
    return jnp.full_like(x, 1.5) if m.bound == "constant" else 0.75 * x

  law = (lambda x: jnp.log(sampling.quadratic_pdf(x)), propose, lambda x: jnp.log(bound(x)))

  def draw(key, n):
    return sampling.rejection_loop(key, *law, n).values

  distances, show = _line(m, draw, bound=bound)

  def evaluate(key, real):
    found = sampling.rejection(key, *law, m.num_draws)
    exact = {"constant": 1 / 3, "triangle": 2 / 3}[m.bound]
    return {
      **distances(found.values, found.accepted, real),
      "acceptance": found.rate,
      "exact_acceptance": jnp.array(exact),
      "violations": found.violations,
    }

  return draw, evaluate, show


def _reparam(m, data):
  """A normal law in the plane with correlated coordinates."""
  mean, cov = jnp.array(data.mean, jnp.float32), jnp.array(data.cov, jnp.float32)
  chol = gaussian.cholesky(cov)

  def draw(key, n):  # [n, 2]
    return gradients.gaussian_reparam(key, mean, chol=chol, shape=(n,))

  def evaluate(key, real):
    k = core.keys(key, "draw", "path", "score")
    errors = lambda x: abs(jnp.cov(x.T) - cov).max()
    square, n = lambda x: x @ x, m.num_draws  # E |x|^2 has the gradient 2 mean
    path = gradients.pathwise_gradient(k.path, square, mean, chol, n)
    score = gradients.score_function_gradient(k.score, square, mean, chol, n)
    return {
      "covariance_error": errors(draw(k.draw, n)),
      "real_covariance_error": errors(real),
      "pathwise_error": abs(path.mean(0) - 2 * mean).max(),
      "score_error": abs(score.mean(0) - 2 * mean).max(),
      "pathwise_variance": path.var(0).sum(),
      "score_variance": score.var(0).sum(),
    }

  def show(key):
    x = draw(key, m.num_shown)
    found = {}
    for i, name in enumerate(("first", "second")):
      std = jnp.sqrt(cov[i, i])
      grid = jnp.linspace(mean[i] - 4 * std, mean[i] + 4 * std, 201)
      density = jax.scipy.stats.norm.pdf(grid, mean[i], std)
      found[name] = {"x": grid, "density": density, "draws": x[:, i]}
    return found

  return draw, evaluate, show
