"""Two virtual CPU devices and one compilation cache for all tests; no GPU, no network."""

import functools
import gc
import importlib
import json
import os
import pathlib
import sys
import tempfile

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

os.environ.setdefault("JAX_PLATFORMS", "cpu")
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME", tempfile.gettempdir())) / "gm-tests-xla"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
# tests compile much and run little: so programs are made in a fifth of the time, and run in twice
QUICK = " --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + QUICK

import jax  # noqa: E402
import optax  # noqa: E402
import pytest  # noqa: E402

# of programs that run long: loops that train
OPTIMISED = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
jax.devices()  # settles the number of devices
gc.set_threshold(100_000, 20, 100)  # tracing makes many objects that live: looked over less often


@pytest.hookimpl(tryfirst=True)  # before xdist looks for groups
def pytest_collection_modifyitems(items):
  """All tests of one method run in one process, which then compiles its programs once."""
  methods = {p.stem for p in (ROOT / "gm/methods").glob("*.py")}
  for item in items:
    name = item.path.stem.removeprefix("test_")
    if hasattr(item, "callspec"):
      name = item.callspec.params.get("name", name)
    if name in methods:
      item.add_marker(pytest.mark.xdist_group(name))


def pytest_collection_finish(session):
  """Sees that the groups are known to xdist, which writes them behind the names of tests."""
  lost = [
    i.nodeid for i in session.items if [*i.iter_markers("xdist_group")] and "@" not in i.nodeid
  ]
  if lost and "PYTEST_XDIST_WORKER" in os.environ:
    raise pytest.UsageError(f"this pytest and xdist keep no groups together, so {lost[0]} is slow")


MOST_MAPS = 20_000  # pieces of memory of a process; Linux gives 65,530, and each program takes some


def group_of(item):
  return next((m.args[0] for m in item.iter_markers("xdist_group")), item.path)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem):
  """Between methods and files compiled programs are given up, where they have become many."""
  maps = pathlib.Path("/proc/self/maps")
  if nextitem is None or group_of(item) == group_of(nextitem) or not maps.exists():
    return
  if maps.read_bytes().count(b"\n") > MOST_MAPS:
    for module in [m for n, m in sys.modules.items() if n.startswith(("test_", "conftest"))]:
      for value in list(vars(module).values()):
        if hasattr(value, "cache_clear"):
          value.cache_clear()
    jax.clear_caches()
    gc.collect()


class Kept:
  """Compiled programs by name, as `programs.Shelf` keeps them, in memory and for one config.

  So they are compiled once for many tests, without LLVM's optimisations: where bits are compared,
  both sides are of the same program. Other seeds of a config have the same programs.

  Args:
    options: of the compiler, for steps.
  """

  def __init__(self, **options):
    self.programs, self.values, self.options = {}, {}, options

  def find(self, name, like):
    return self.programs.get(name)

  def make(self, name, function, args, **how):
    options = {**how.pop("compiler_options", {}), "xla_backend_optimization_level": 0}
    options |= self.options if name.endswith("steps") else {}
    lowered = jax.jit(function, **how).lower(*args)
    self.programs[name] = lowered.compile(compiler_options=options)
    return self.programs[name]

  def read(self, name):
    return self.values.get(name)

  def write(self, name, value):
    self.values[name] = value


def quickly(function, *args):
  """What a function gives, compiled as a whole: call by call each small operation is compiled."""
  return jax.jit(lambda *args: function(*args))(*args)  # always traced anew


def jit(function):
  """Compiles without LLVM's optimisations: for what runs a few times."""
  return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def config_of(name, variant, **changes):
  """A config for one device; changes by full name, {"model.width": 4}."""
  config = importlib.import_module(f"configs.{name}").get_config(variant)
  config.update_from_flattened_dict({"num_devices": 1, **changes})
  return config


@functools.cache
def prepared(name, **changes):
  """The job of a method's test variant, shared by the tests that want these changes."""
  from gm import job

  return job.prepare(config_of(name, "test", **changes))


@functools.cache
def compiled(name, stage, what, **changes):
  """A function of a stage of it, shared likewise."""
  return jit(getattr(prepared(name, **changes).stages[stage], what))


@functools.cache
def on_paper(name, variant):
  """The job of a variant, for its shapes: it is not to be run, see `inspection.describe`."""
  from gm import job
  from gm.nn import conv

  config = importlib.import_module(f"configs.{name}").get_config(variant)
  with conv.form("plain"):  # traced sooner
    return job.prepare(config, on_paper=True)


def lightly(state, tx, grads, *, slot=None):
  """core.move for shapes: the optimizer moves one leaf of each player, as it would all of them."""
  slot = slot or "+".join(grads)
  assert slot in state.opt and grads.keys() <= state.params.keys()
  few = {n: jax.tree.leaves(g)[:1] for n, g in grads.items()}
  tx.update(few, tx.init(few), few)
  return state, {f"gradnorm_{slot}": optax.global_norm(few)}


@functools.cache
def described(name, variant):
  """What `--mode=inspect` says of each stage of a variant, found once for all tests of a method."""
  from gm import core, inspection

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(core, "move", lightly)
    return inspection.describe(on_paper(name, variant))["stages"]


def train(config, workdir, kept=None, *, draw=True):
  """Trains with steps that are optimised as outside of tests; returns the last metrics.

  Without curves, and without pictures unless asked to `draw`: they take as long as many steps.
  """
  from gm import evaluation, loop, steps
  from gm.workdir import curves

  options = steps.step_options()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(steps, "step_options", lambda: {**options, **OPTIMISED})
    patch.setattr(curves, "draw", lambda records: None)
    for what in () if draw else ("write_samples", "write_extra"):
      patch.setattr(evaluation.Evaluator, what, lambda *_: None)
    loop.train(config, str(workdir), kept)
  return json.loads((pathlib.Path(workdir) / "eval.json").read_text())["metrics"]


class Blind:
  """An evaluator that draws and measures nothing."""

  def __init__(self, job, index):
    pass

  def write_samples(self, workdir, state):
    pass

  write_extra = write_samples

  def evaluate(self, state):
    return {"number": 1.0}

  def finish(self, workdir, state):
    return {}


def blindfold(patch):
  """Training without pictures, metrics and page, which take longer than a few steps."""
  from gm import evaluation
  from gm.workdir import report

  patch.setattr(evaluation, "Evaluator", Blind)
  patch.setattr(report, "write", lambda workdir: None)


@pytest.fixture
def blind(monkeypatch):
  blindfold(monkeypatch)
