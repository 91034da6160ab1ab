"""What every method promises of its averages, statistics and samples, as traced or run once.

How often the statistics of a network move in a step is the method's own promise: its test file says
it in PASSES, a list of (variant, changes, {network: training passes that are kept}).
"""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from jax.interpreters import partial_eval as pe

from gm import core, evaluation, job
from gm.nn import spectral

METHODS = sorted(p.stem for p in (ROOT / "gm/methods").glob("*.py") if p.stem != "__init__")
KEPT = ("batch_stats", spectral.COLLECTION)  # collections that move in passes of training


@functools.cache
def prepare(name, variant="test", changes=()):
  config = importlib.import_module(f"configs.{name}").get_config(variant)
  config.update_from_flattened_dict({"num_devices": 1, **dict(changes)})
  return job.prepare(config)


def paths_of(tree):
  return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def lean(function, *args):
  """What `function` does to its first argument, without all that its result does not need.

  Returns the paths of the leaves that are read, and a jitted function of that argument alone.
  """
  closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
  jaxpr, used = pe.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))

  def run(*args):
    leaves = [x for x, u in zip(jax.tree.leaves(args), used, strict=True) if u]
    found = jax.core.eval_jaxpr(jaxpr, closed.consts, *leaves)
    return jax.tree.unflatten(jax.tree.structure(shapes), found)

  read = {path for path, u in zip(paths_of(args), used, strict=True) if u}
  return read, jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})


def passes_of(name):
  return getattr(importlib.import_module(f"test_{name}"), "PASSES", [])


@pytest.mark.parametrize("name", METHODS)
def test_samples_and_pictures_are_made_of_the_average(name):
  """They read all of it, running averages too, and nothing of the raw G or of its statistics."""
  variants = [("test", ()), *((v, tuple(changes.items())) for v, changes, _ in passes_of(name))]
  for made in (prepare(name, *variant) for variant in dict.fromkeys(variants)):
    for stage, info, state in zip(made.stages, made.infos, made.templates, strict=True):
      check_sources(stage, state, core.batch_shapes(info, evaluation.NUM_TILES))


def check_sources(stage, state, batch):
  def sample(state, batch, key):
    found = stage.sample(state, batch, key)  # less what is said of the data and not drawn
    return {k: v for k, v in found.items() if k != "feature" and not k.startswith("data_")}

  def used(function):
    read, _ = lean(function, state, batch, jax.random.key(0))
    return lambda what: {path for path in read if path.startswith(f"[0].{what}")}

  of_sample = used(sample)
  if not state.ema:
    assert of_sample("params") or not state.params, stage.name
    return
  whole = {path: f"[0].ema{path}" for path in paths_of(state.ema)}
  network = lambda path: path.split("'")[1].removesuffix("_stats")
  drawn = {network(path) for path in of_sample("ema")}  # evaluation reads the others, encoders
  assert of_sample("ema") == {v for k, v in whole.items() if network(k) in drawn}, stage.name
  if drawn < set(map(network, whole)):
    of_evaluate = used(lambda *args: stage.evaluate(*args))
    assert of_sample("ema") | of_evaluate("ema") == set(whole.values())
    assert not of_evaluate("params"), stage.name
  assert drawn, stage.name
  assert not of_sample("params") and not of_sample("stats['g']")
  of_show = used(lambda *args: stage.show(*args))
  assert not of_show("params['g']") and not of_show("stats['g']")


def doubled(state, tx, grads, *, slot=None):
  """An optimizer that doubles the players, which leaves their singular vectors where they are."""
  twice = {n: jax.tree.map(lambda p: 2 * p, state.params[n]) for n in grads}
  found = {f"gradnorm_{slot or '+'.join(grads)}": jnp.zeros(())}
  return state.replace(params={**state.params, **twice}), found


@functools.cache
def stepped(name, variant, changes, still=()):
  """A state of random numbers late in training, the one after, and that where averages of batch
  norms had been 1 more, but for networks that are `still`.
  """
  made, rng = prepare(name, variant, changes), np.random.default_rng(0)
  info, stage, template = made.infos[-1], made.stages[-1], made.templates[-1]
  zeros = lambda s: np.zeros(s.shape, s.dtype)
  normal = lambda s: np.asarray(rng.normal(size=s.shape), s.dtype)

  def running(path, s):
    return abs(normal(s)) + 1 if jax.tree_util.keystr(path).endswith("['var']") else normal(s)

  state = jax.tree.map(zeros, template).replace(step=np.int32(1_000_000))
  state = state.replace(
    params=jax.tree.map(normal, template.params),
    stats=jax.tree_util.tree_map_with_path(running, template.stats),
    ema=jax.tree.map(normal, template.ema),
  )
  batch = core.batch_shapes(info, made.sizes[-1])
  batch = {k: normal(s) if s.dtype == jnp.float32 else zeros(s) for k, s in batch.items()}

  def step(state):
    after, _ = stage.step(state, batch, made.keys[-1]["step"])
    return after.params, after.stats, after.ema

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(core, "move", doubled)
    _, run = lean(step, state)
  more = lambda path: path[0].key not in still and "batch_stats" in jax.tree_util.keystr(path)
  raised = jax.tree_util.tree_map_with_path(lambda path, x: x + np.float32(more(path)), state.stats)
  return state, run(state), run(state.replace(stats=raised))


@pytest.mark.parametrize("name", METHODS)
def test_averages_follow_what_they_are_averages_of(name):
  """By one decay, slowly: average <- d average + (1 - d) new, of parameters and statistics."""
  made = prepare(name)
  if not made.templates[-1].ema:
    return
  state, (params, stats, ema), _ = stepped(name, "test", ())
  assert set(ema) <= set(params) | {f"{n}_stats" for n in stats}
  of = {**{f"{n}_stats": v for n, v in stats.items()}, **params}
  flat = lambda tree: np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
  new, old, got = (flat({n: tree[n] for n in ema}) for tree in (of, state.ema, ema))
  decay = np.vdot(got - new, old - new) / np.vdot(old - new, old - new)
  np.testing.assert_allclose(got, decay * old + (1 - decay) * new, rtol=1e-4, atol=1e-4)
  if "ema" in made.config.model:
    np.testing.assert_allclose(decay, made.config.model.ema, atol=1e-3)
  else:
    assert 0.9 < decay < 1


@pytest.mark.parametrize("name", METHODS)
def test_statistics_move_once_for_every_pass_that_is_kept(name):
  """Averages of batch norms by 0.9 of their distance each time, u by one step of iteration."""
  moving = {
    n for n, s in prepare(name).templates[-1].stats.items() if n != "w_avg" and set(s) & {*KEPT}
  }
  for variant, changes, want in passes_of(name):
    still = tuple(n for n, num in want.items() if num == 0)  # frozen
    state, (_, stats, _), (_, raised, _) = stepped(name, variant, tuple(changes.items()), still)
    assert set(want) == {n for n, s in stats.items() if jax.tree.leaves(s)}
    moving -= set(want)
    for n, num in want.items():
      assert set(stats[n]) <= {*KEPT}
      if n in still:
        jax.tree.map(np.testing.assert_array_equal, stats[n], state.stats[n])
        continue
      close = functools.partial(np.testing.assert_allclose, rtol=1e-3, err_msg=n)
      shares = jax.tree.map(
        lambda a, b: np.mean(b - a), *(s[n].get("batch_stats", {}) for s in (stats, raised))
      )
      for share in jax.tree.leaves(shares):  # what is left of a difference of 1
        close(np.log(share) / np.log(0.9), num, rtol=1e-2)
      for path, u in stats[n].get(spectral.COLLECTION, {"u": {}})["u"].items():
        weight = functools.reduce(dict.get, path.split("/"), state.params[n]["net"])
        want_u = state.stats[n][spectral.COLLECTION]["u"][path]
        for _ in range(num):
          _, want_u = spectral.sigma(weight, want_u)
        close(u, want_u, atol=1e-4)
  assert not moving, f"say in PASSES of tests/methods/test_{name}.py how often these move"
