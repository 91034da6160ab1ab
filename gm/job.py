"""What training, evaluation, sampling and inspection have in common: the set-up of a run."""

from __future__ import annotations

import importlib
import os
import pathlib
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from gm import core, programs, sharding
from gm.errors import UserError, user_input
from gm.workdir import checkpoint, record

# Keys that may change when a run is continued: they move no parameter on the way.
FREE_KEYS = frozenset(
  {"num_steps", "steps_per_call", "log_every", "sample_every", "eval_every", "checkpoint_every"}
  | {"keep_checkpoints", "metrics", "num_eval_samples", "reference_split", "best_metric"}
)


class Job(NamedTuple):
  """A config made concrete, without any data."""

  config: ConfigDict
  stages: list[core.Stage]
  infos: list[core.Info]  # facts about each stage's data
  sizes: list[int]  # examples per step of each stage
  templates: list[core.State]  # shapes and shardings of each stage's state
  keys: list[dict]  # independent keys of each stage, by purpose
  mesh: jax.sharding.Mesh


def prepare(config: ConfigDict, shelf: programs.Shelf | None = None) -> Job:
  """Builds all that needs no data: stages, facts, shapes, devices and keys.

  Args:
    config: from configs/.
    shelf: where shapes that were found by tracing are kept; see gm/programs.py.

  Raises:
    UserError: where the config asks for something that does not exist or does not fit.
  """
  with user_input():
    if config.compute_dtype not in ("float32", "bfloat16"):
      raise ValueError(
        f"--config.compute_dtype={config.compute_dtype!r} is not known: float32 or bfloat16"
      )
    mesh = sharding.start(config)
    data = _module("gm.data", config.data.source, "--config.data.source")
    method = _module("gm.methods", config.method, "--config.method")
    stages = method.stages(config, data.info(config.data))
    infos = [data.info(data_config(config, stage)) for stage in stages]
    sizes = [stage.data.get("batch_size", config.batch_size) for stage in stages]
    for size in sizes:
      sharding.check_batch(mesh, size, config.accumulate)
  purposes = ("init", "step", "sample", "evaluate", "show")
  root = jax.random.key(config.seed)
  split = [jax.random.split(jax.random.fold_in(root, i), len(purposes)) for i in range(len(stages))]
  keys = [dict(zip(purposes, k, strict=True)) for k in split]
  shapes = shelf.read("shapes") if shelf else None
  if shapes is None:
    shapes, prev = [], None
    for i, stage in enumerate(stages):
      batch = core.batch_shapes(infos[i], sizes[i], sharding.batched(mesh))
      with user_input():  # layers say what does not fit when they are built
        prev = jax.eval_shape(stage.init, keys[i]["init"], batch, prev)
      shapes.append(prev)
    if shelf:
      shelf.write("shapes", shapes)
  templates = [
    jax.tree.map(
      lambda s, h: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=h), s, sharding.of_state(mesh, s)
    )
    for s in shapes
  ]
  return Job(config, stages, infos, sizes, templates, keys, mesh)


def load(
  job: Job, index: int, split: str, *, shuffle: bool = True, whole: bool = False
) -> core.Source:
  """Opens a split of the data set of a stage.

  Args:
    job: the run.
    index: of the stage.
    split: "train" or "test".
    shuffle: False reads in the set's own order.
    whole: give every process all rows of a batch, not its share.
  """
  with user_input():
    data = _module("gm.data", job.config.data.source, "--config.data.source")
    return data.load(
      data_config(job.config, job.stages[index]),
      split,
      seed=job.config.seed,
      shuffle=shuffle,
      part=(0, 1) if whole else (jax.process_index(), jax.process_count()),
    )


def data_config(config: ConfigDict, stage: core.Stage) -> ConfigDict:
  """config.data with the overrides of a stage."""
  overrides = {k: v for k, v in stage.data.items() if k != "batch_size"}
  return ConfigDict({**config.data.to_dict(), **overrides})


def open_workdir(job: Job, workdir: str, source: core.Source) -> None:
  """Creates the workdir with its config.json, or checks that it belongs to this config.

  Raises:
    UserError: if it cannot be written, or belongs to a config that differs in more than FREE_KEYS.
  """
  with user_input():
    os.makedirs(workdir, exist_ok=True)
    config = job.config.to_dict()
    try:
      old = record.read_config(workdir)["config"]
    except FileNotFoundError:
      old = config
    fixed = lambda c: {k: v for k, v in c.items() if k not in FREE_KEYS}
    differs = record.diff(fixed(old), fixed(config))
    if differs:
      raise ValueError(
        f"{workdir} belongs to a run with another config ({'; '.join(differs)}): give another"
        " --workdir, or the config that it was made with"
      )
    data = config["data"]
    origin = f"{data['source']}:{data['name']}, {source.num_examples:,} training examples"
    facts = {
      "data": {"origin": origin, "generated": data["source"] == "points"},
      "stages": {stage.name: stage.num_steps for stage in job.stages},
    }
    record.write_config(workdir, config, facts)


def restore(job: Job, workdir: str, index: int) -> core.State | None:
  """Returns the newest good state of a stage, or None where there is none."""
  folder = checkpoint.stage_dir(workdir, index, job.stages[index].name)
  if not checkpoint.has_steps(folder):
    return None
  with user_input():
    manager = checkpoint.open_manager(folder)
    state = checkpoint.restore(manager, job.templates[index])
    manager.close()
  return state


def newest(workdir: str, config: ConfigDict | None = None) -> tuple[Job, int, core.State]:
  """Returns the job of a workdir, the last of its stages that was saved, and its newest state.

  Args:
    workdir: of a run.
    config: None to take it from the workdir.

  Raises:
    UserError: if the folder holds no run, or none of its checkpoints can be read.
  """
  if config is None:
    with user_input():
      config = ConfigDict(record.read_config(workdir)["config"])
  job = prepare(config)
  for index in reversed(range(len(job.stages))):
    state = restore(job, workdir, index)
    if state is not None:
      return job, index, state
  raise UserError(f"{workdir} holds no checkpoint: train first with --mode=train")


def _module(package: str, name: str, flag: str) -> Any:
  folder = pathlib.Path(__file__).parent / package.removeprefix("gm.")
  known = sorted(p.stem for p in folder.glob("*.py") if p.stem != "__init__")
  if name not in known:
    raise ValueError(f"{flag}={name!r} is not known; there are {', '.join(known)}")
  return importlib.import_module(f"{package}.{name}")
