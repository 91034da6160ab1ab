"""What every method promises; methods are found by listing gm/methods."""

import functools
import importlib
import re
import signal
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, Kept, described
from jax.experimental.key_reuse._core import check_key_reuse
from jax.interpreters import partial_eval as pe

from gm import augment, core, evaluation, feed, job, loop, steps
from gm.interrupt import Interrupt
from gm.workdir import checkpoint

METHODS = sorted(p.stem for p in (ROOT / "gm/methods").glob("*.py") if p.stem != "__init__")


def config_of(name, variant="test"):
  return importlib.import_module(f"configs.{name}").get_config(variant)


class Run(NamedTuple):
  """A test variant after two steps of each stage."""

  job: job.Job
  states: list  # per stage: [initial, after one step, after two]
  metrics: list
  batches: list
  kept: Kept


def contract_config(name, num_devices=1):
  """The test variant, with a batch beside which work that is not split is small."""
  config = config_of(name)
  with config.unlocked():
    config.num_devices, config.batch_size = num_devices, 64
  return config


@functools.cache
def run(name, num_devices=1):
  """On several devices every step starts from what one device had before it."""
  kept = Kept()
  made = job.prepare(contract_config(name, num_devices), kept)
  one = run(name) if num_devices > 1 else None
  states, metrics, batches, prev = [], [], [], None
  for i, stage in enumerate(made.stages):
    source = job.load(made, i, "train")
    batches.append(jax.tree.map(jnp.asarray, source.decode(source.batch(0, made.sizes[i]))))
    fed, data = feed.on_device(source, made.mesh)
    place = lambda tree: jax.tree.map(
      lambda x, s: jax.device_put(np.array(x), s.sharding), tree, made.templates[i]
    )
    first = one.states[i][0] if one else steps.initialise(made, i, prev, source, kept)
    states.append([first])
    metrics.append([])
    _, rows = feed.make_feed(made, i, fed)
    if stage.num_steps:
      call, totals = steps.make_call(made, i, fed, (data, rows(0, 1)), kept)
    for k in range(min(2, stage.num_steps)):
      before = place((one.states[i] if one else states[-1])[k])  # a copy: the call takes it
      totals = steps.zero_totals(made, i, totals.sums)
      state, totals, _ = call(before, totals, data, rows(k, 1), made.keys[i]["step"], 1)
      states[-1].append(state)
      metrics[-1].append(totals.sums)
    prev = states[-1][-1]
  return Run(made, states, metrics, batches, kept)


@pytest.mark.parametrize("name", METHODS)
def test_files(name):
  for path in (f"configs/{name}.py", f"tests/methods/test_{name}.py"):
    assert (ROOT / path).exists(), f"method {name} has no {path}"
  assert re.search(rf"\b{name}\b", (ROOT / "README.md").read_text()), f"no README row for {name}"


@pytest.mark.parametrize("name", METHODS)
def test_docstring(name):
  head = importlib.import_module(f"gm.methods.{name}").__doc__
  for word in ("Idea:", "Objective", "Departures", "Run:"):
    assert word in head, f"gm/methods/{name}.py: its docstring has no {word!r}"


@pytest.mark.parametrize("name", METHODS)
def test_config(name):
  assert re.search(r"\d", importlib.import_module(f"configs.{name}").__doc__)
  for variant in ("small", "paper", "test"):
    config = config_of(name, variant)
    assert config.method == name
  with pytest.raises(ValueError, match="no variant 'nonsense'"):
    config_of(name, "nonsense")


@pytest.mark.parametrize("name", METHODS)
def test_every_variant_builds(name):
  for variant in importlib.import_module(f"configs.{name}").VARIANTS:
    for stage in described(name, variant):
      assert stage["outputs"] and all(n > 0 for n in stage["params"].values()), variant


@pytest.mark.parametrize("name", METHODS)
def test_state_is_a_fixed_point(name):
  shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)
  for states in run(name).states:
    for after in states[1:]:
      assert jax.tree.structure(states[0]) == jax.tree.structure(after)
      assert shapes(states[0]) == shapes(after)


@pytest.mark.parametrize("name", METHODS)
def test_steps_count_and_metrics_are_finite(name):
  for states, metrics in zip(run(name).states, run(name).metrics, strict=True):
    for k, found in enumerate(metrics):
      assert int(states[k + 1].step) == k + 1
      for metric, value in found.items():
        assert value.shape == () and value.dtype == jnp.float32, metric
        assert np.isfinite(value), metric


@pytest.mark.parametrize("name", METHODS)
def test_minimize_moves_the_players_it_names_and_no_other(name, monkeypatch):
  """Spies on core.move: the named networks all change, whatever else is in params does not."""
  done = run(name)
  moved = []
  true_move = core.move

  def spy(state, tx, grads, *, slot=None):
    after, found = true_move(state, tx, grads, slot=slot)
    moved.append(set(grads))
    for n in state.params:
      same = all(
        a is b
        for a, b in zip(
          jax.tree.leaves(state.params[n]), jax.tree.leaves(after.params[n]), strict=True
        )
      )
      assert same == (n not in grads), n
    return after, found

  monkeypatch.setattr(core, "move", spy)
  for i, stage in enumerate(done.job.stages):
    if not stage.num_steps:
      continue
    moved.clear()
    state, key = done.states[i][0], done.job.keys[i]["step"]
    jax.eval_shape(lambda *args: stage.step(*args), state, done.batches[i], key)  # traced anew
    named = set().union(*moved) if moved else set()
    for n, before in state.params.items():
      after = done.states[i][-1].params[n]
      pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
      changed = any((np.asarray(a) != np.asarray(b)).any() for a, b in pairs)
      assert changed == (n in named), f"{n} of stage {stage.name}: named {sorted(named)}"


@pytest.mark.parametrize("name", METHODS)
def test_keys_are_used_once(name):
  done = run(name)
  for i, stage in enumerate(done.job.stages):
    state, batch, key = done.states[i][0], done.batches[i], done.job.keys[i]["step"]
    prev = done.states[i - 1][-1] if i else None
    check_key_reuse(stage.init, key, batch, prev)
    for function in (stage.step, stage.sample, stage.evaluate, stage.complete):
      if function is not None:
        check_key_reuse(function, state, batch, key)
    tiles = jax.tree.map(lambda x: jnp.resize(x, (evaluation.NUM_TILES, *x.shape[1:])), batch)
    check_key_reuse(stage.show, state, tiles, key)


@pytest.mark.parametrize("name", METHODS)
def test_sample_and_evaluate(name):
  done = run(name)
  for i, stage in enumerate(done.job.stages):
    state, batch, key = done.states[i][-1], done.batches[i], done.job.keys[i]
    out = jax.jit(stage.sample)(state, batch, key["sample"])
    assert out, stage.name
    for x in out.values():
      assert x.shape[0] == done.job.sizes[i] and np.isfinite(x).all()
    again = jax.jit(stage.sample)(state, batch, key["sample"])
    jax.tree.map(np.testing.assert_array_equal, out, again)
    found = jax.jit(stage.evaluate)(state, batch, key["evaluate"])
    arrays = {k: x for k, x in found.items() if x.ndim}
    assert all(len(x) == done.job.sizes[i] for x in arrays.values())
    if arrays:  # else there is nothing to conclude from
      more = jax.jit(stage.conclude)(arrays, key["evaluate"])
      check_key_reuse(stage.conclude, arrays, key["evaluate"])
      assert not found.keys() & more.keys()
      found = more | {k: x for k, x in found.items() if not x.ndim}
    for metric, value in found.items():
      assert value.shape == () and np.isfinite(value), metric


@pytest.mark.parametrize("name", METHODS)
def test_checkpoint_round_trip_is_exact(name, tmp_path):
  done = run(name)
  for i, states in enumerate(done.states):
    manager = checkpoint.open_manager(tmp_path / str(i))
    checkpoint.save(manager, states[-1])
    manager.wait_until_finished()
    back = checkpoint.restore(manager, done.job.templates[i])
    manager.close()
    jax.tree.map(np.testing.assert_array_equal, back, states[-1])


@pytest.mark.parametrize("name", METHODS)
def test_resumed_run_is_the_same_bit_for_bit(name, tmp_path, monkeypatch, blind):
  """Is stopped by a signal after the first step of every stage and started again."""
  config, done = contract_config(name), run(name)
  with config.unlocked():
    config.checkpoint_every, config.metrics = 1, ()
  num_stops = 0
  while True:
    # only the step at which a stage begins is interrupted, or no run would come to an end
    stops = lambda self, step, period: signal.SIGTERM * (step == 1)
    monkeypatch.setattr(Interrupt, "agreed", stops)
    try:
      loop.train(config, str(tmp_path), done.kept)
      break
    except loop.Stopped:
      num_stops += 1
  assert num_stops == sum(stage.num_steps > 0 for stage in done.job.stages)
  last = job.restore(done.job, str(tmp_path), len(done.job.stages) - 1)
  jax.tree.map(np.testing.assert_array_equal, last, done.states[-1][-1])


@pytest.mark.parametrize("name", METHODS)
def test_two_devices_do_what_one_does(name):
  one, two = run(name), run(name, 2)
  assert two.job.mesh.size == 2
  for i in range(len(two.job.stages)):
    for k, found in enumerate(two.metrics[i]):
      for metric, value in one.metrics[i][k].items():
        np.testing.assert_allclose(found[metric], value, rtol=2e-3, atol=2e-4, err_msg=metric)
      for n, p in one.states[i][k + 1].params.items():
        flat = lambda tree: np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
        a, b = flat(p), flat(two.states[i][k + 1].params[n])
        # Adam's first step is lr times the gradient's sign, which rounding may flip where it is 0,
        # as it is for a bias before batch norm
        far = np.abs(a - b) > 1e-4 + 1e-3 * np.abs(a)
        assert far.mean() < 0.01, n


@pytest.mark.parametrize("name", METHODS)
def test_two_devices_share_the_work(name):
  """Each does about half of it: data, noise and all that is made of them are split."""
  one, two = run(name).kept.programs, run(name, 2).kept.programs
  flops = lambda program: program.cost_analysis()["flops"]
  for step in (n for n in one if n.endswith("steps")):
    assert flops(two[step]) < 0.65 * flops(one[step]), step


@pytest.mark.parametrize("name", METHODS)
def test_augment_is_all_that_d_sees_of_images(name, monkeypatch):
  """Where the augmented image is black, no network's move depends on the data any more."""
  config = config_of(name)
  image_gan = {"g", "d"} <= set(run(name).states[-1][0].params) and "image" in run(name).batches[-1]
  image_gan &= run(name).job.stages[-1].edit is None  # whose G is given the image itself
  assert ("augment" in config.model) == image_gan
  if not image_gan:
    return
  policies = []

  def black(key, x, policy):
    height, width, channels = run(name).batches[-1]["image"].shape[1:]
    factor = height // x.shape[1]  # at half of the size, and so on, where D judges several
    assert x.shape[1:] == (height // factor, width // factor, channels)
    policies.append(policy)
    return jnp.zeros_like(x)

  def reads_images():
    with config.unlocked():
      config.num_devices = 1
    made = job.prepare(config)
    step = lambda *args: made.stages[-1].step(*args)[0].params
    args = run(name).states[-1][0], run(name).batches[-1], made.keys[-1]["step"]
    traced = jax.make_jaxpr(step)(*args).jaxpr
    _, used = pe.dce_jaxpr(traced, [True] * len(traced.outvars))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(args)]
    return used[paths.index("[1]['image']")]

  assert reads_images()
  with config.unlocked():
    config.model.augment = "color, cutout"
  check_key_reuse(
    job.prepare(config).stages[-1].step,
    *(run(name).states[-1][0], run(name).batches[-1], run(name).job.keys[-1]["step"]),
  )
  monkeypatch.setattr(augment, "augment", black)
  assert not reads_images()
  assert policies and set(policies) == {"color, cutout"}
