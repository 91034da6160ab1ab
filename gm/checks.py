"""What is checked of every config, whatever its method: common keys, and that it fits the memory.

Keys of `model` are checked by the method that reads them, those of a set by its file in gm/data.
"""

from __future__ import annotations

import ast
import functools
import importlib
import math
import os
import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict

from gm import core, flags
from gm.errors import UserError

MOST_PIXELS = 2**14  # of a side
# what a file of a package must define
PARTS = {"gm.data": {"info", "load", "reads"}, "gm.methods": {"stages"}}
PERIODS = ("log_every", "sample_every", "checkpoint_every", "eval_every")


def common(config: ConfigDict) -> None:
  """Checks the keys that every config has; reads no data and traces nothing.

  Raises:
    ValueError: for the first that cannot be.
  """
  top, data = {"section": ""}, {"section": "data"}
  flags.within(config, "seed", least=0, most=2**32 - 1, **top)  # jax takes no more of it
  flags.within(config, "batch_size", "accumulate", least=1, **top)
  flags.within(config, "num_steps", *PERIODS, least=0, most=flags.MOST_STEPS, **top)
  flags.within(config, "steps_per_call", least=0, most=2**16, **top)  # rows of all wait in memory
  flags.within(config, "keep_checkpoints", least=1, **top)
  flags.within(config, "num_eval_samples", least=1, most=2**24, **top)  # they are held in memory
  if "lr" in config:  # nothing is trained without
    flags.within(config, "lr", above=0.0, **top)
  flags.choice(config, "compute_dtype", ("float32", "bfloat16"), **top)
  flags.choice(config, "reference_split", ("train", "test"), **top)
  _best(config)
  for name in config.metrics:
    metric(name)
  wanted = config.data.get("attributes", ())
  if not all(isinstance(name, str) for name in wanted):
    raise ValueError(f"--config.data.attributes={wanted!r} are not all names")
  flags.within(config.data, "num_classes", least=0, **data)
  flags.within(config.data, "num_train", "memory_mb", least=0, most=flags.MOST_STEPS, **data)
  flags.within(config.data, "scale", above=0.0, **data)
  flags.within(config.data, "channels", least=0, most=3, **data)
  _image_size(config.data.get("image_size", 0))


def _image_size(given: Any) -> None:
  pair = given if isinstance(given, tuple | list) else (given, given)
  whole = all(isinstance(n, int) and not isinstance(n, bool) for n in pair)
  if len(pair) != 2 or not whole or not all(0 <= n <= MOST_PIXELS for n in pair):
    raise ValueError(
      f"--config.data.image_size={given!r} is not possible: give 0 (as stored), the pixels of both"
      f" sides or (height, width), each at most {MOST_PIXELS:,}"
    )


# What keys of data are where nothing is asked of them; `name` may stand though it is not read.
IDLE = {"dir": "", "image_size": 0, "channels": 0, "num_classes": 0, "num_train": 0}
IDLE |= {"image_key": "", "label_key": "", "train_split": "train", "test_split": "test"}
IDLE |= {"memory_mb": 256, "scale": 1.0, "attributes": (), "paired": False}
OF_TEXT = {"text_length": 32, "vocab_size": 1_024, "tokenizer": "word"}
IDLE |= {"text_key": "", **OF_TEXT}


def unread(data: ConfigDict, reads: frozenset) -> None:
  """Makes sure that nothing is asked of a set that its source would not do.

  Args:
    data: config.data.
    reads: the keys that the source reads.

  Raises:
    ValueError: for the first key that is set and not read.

  >>> unread(ConfigDict({"source": "embedded", "name": "mnist10k", "scale": 1.0}), frozenset())
  """
  for key in sorted(set(data) - {"source", "name"} - reads):
    value = tuple(data[key]) if isinstance(data[key], list) else data[key]  # out of config.json
    if key not in IDLE or value != IDLE[key]:
      remedy = f"set it to {IDLE[key]!r}" if key in IDLE else "take a config without it"
      if key in OF_TEXT and "text_key" in reads:
        remedy += ", or give --config.data.text_key"
      raise ValueError(
        f"--config.data.{key}={value!r} is not read by --config.data.source={data.source}"
        f" with the set {data.get('name', '')!r}: {remedy}"
      )


def _best(config: ConfigDict) -> None:
  best, known = config.best_metric, "set it to - or + and the name of a metric, or to ''"
  if best and (best[0] not in "+-" or not best[1:]):
    raise ValueError(f"--config.best_metric={best!r} has no direction: {known}")
  if best and not config.eval_every:
    raise ValueError(
      f"--config.best_metric={best!r} is never measured: set --config.eval_every above 0, or it"
      " to ''"
    )


def metric(name: Any) -> None:
  """Checks that a name of config.metrics is that of a metric in gm/metrics; imports nothing.

  A metric is a public function whose first parameters are fake and real.

  Raises:
    ValueError: if it is not.

  >>> metric("mmd.codes")
  """
  folder, module = pathlib.Path(__file__).parent / "metrics", str(name).partition(".")[0]
  files = sorted(folder.glob("[!_]*.py"))
  metrics = lambda file: [
    f"{file.stem}.{f.name}"
    for f in functions(file)
    if not f.name.startswith("_") and [a.arg for a in f.args.args[:2]] == ["fake", "real"]
  ]
  if not any(name in metrics(file) for file in files if file.stem == module):
    known = [found for file in files for found in metrics(file)]
    raise ValueError(
      f"--config.metrics names {name!r}; it takes functions of gm/metrics, {', '.join(known)}, or"
      " () for none"
    )


def functions(file: pathlib.Path) -> list[ast.FunctionDef]:
  """The functions that a file defines at its top, read without importing it."""
  return _functions(file, file.stat().st_mtime_ns)


@functools.cache
def _functions(file: pathlib.Path, changed: int) -> list[ast.FunctionDef]:
  del changed  # a file that is edited is read again
  tree = ast.parse(file.read_text(encoding="utf-8"))
  return [node for node in tree.body if isinstance(node, ast.FunctionDef)]


def memory(mesh: jax.sharding.Mesh, stage: core.Stage, state: core.State, batch: dict) -> None:
  """Makes sure that a stage's state and one batch are no larger than the memory there is.

  What a step needs beside them is not known before it is compiled; this finds sizes that were
  mistyped.

  Args:
    mesh: the devices.
    stage: for its name.
    state: shapes with shardings.
    batch: shapes with shardings.

  Raises:
    ValueError: if not; the message says what to lower.
  """
  there = _memory()
  if there is None:
    return
  # virtual devices of a CPU share the machine's memory
  copies = len(mesh.local_devices) if mesh.devices.flat[0].platform == "cpu" else 1
  size = lambda x: math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
  of_state, of_batch = (copies * sum(map(size, jax.tree.leaves(t))) for t in (state, batch))
  if of_state + of_batch <= there:
    return
  if of_batch > of_state:
    num = jax.tree.leaves(batch)[0].shape[0]
    what = f"{num:,} examples in a step"
    lower = (
      "--config.batch_size, --config.data.image_size or what multiplies them in --config.model"
    )
  else:
    largest = max(state.params, key=lambda n: core.count(state.params[n]), default="")
    count = core.count(state.params.get(largest, {}))
    what = f"the state, in which {largest or 'extra'} has {count:,} parameters"
    lower = "the sizes in --config.model"
  raise ValueError(
    f"stage {stage.name}: {what}, would take {max(of_state, of_batch) / 1e9:,.1f} GB of the"
    f" {there / 1e9:,.1f} GB that there are: lower {lower}"
  )


def _memory() -> int | None:
  """Bytes of a device, or of this machine where the devices are its cores; None: not known."""
  device = jax.local_devices()[0]
  if device.platform != "cpu":
    return (device.memory_stats() or {}).get("bytes_limit")
  return machine_memory()


def held(num: int, size: int) -> None:
  """Makes sure that samples are no more than this machine's memory.

  Args:
    num: of samples.
    size: bytes of each.

  Raises:
    UserError: if they are.
  """
  there = machine_memory()
  if there is not None and num * size > there:
    raise UserError(
      f"{num:,} samples would take {num * size / 1e9:,.1f} GB of the {there / 1e9:,.1f} GB that"
      " there are: give fewer seeds or labels, or take them in parts, as they come out of"
      " sampling.open_run(workdir).stream(seeds)"
    )


def machine_memory() -> int | None:
  """Bytes of memory that this machine has; None: not known."""
  try:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  except (AttributeError, OSError, ValueError):  # not Unix
    return None


def module(package: str, name: str, flag: str) -> Any:
  """Returns a module of gm/data or gm/methods.

  Args:
    package: gm.data or gm.methods.
    name: of the file.
    flag: that names it.

  Raises:
    ValueError: if there is none that defines what is needed; the message has those there are.
  """
  file = pathlib.Path(__file__).parent / package.removeprefix("gm.") / f"{name}.py"
  parts = PARTS[package]
  fits = lambda path: parts <= {node.name for node in functions(path)}
  if not str(name).isidentifier() or not file.exists() or not fits(file):
    known = sorted(path.stem for path in file.parent.glob("*.py") if fits(path))
    raise ValueError(f"{flag}={name!r} is not known; there are {', '.join(known)}")
  return importlib.import_module(f"{package}.{name}")
