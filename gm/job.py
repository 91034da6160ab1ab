"""What training, evaluation, sampling and inspection have in common: the set-up of a run."""

from __future__ import annotations

import importlib
import os
import pathlib
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from gm import checks, core, programs, sharding
from gm.errors import UserError, user_input
from gm.workdir import checkpoint, record

# Keys that may change when a run is continued: they move no parameter on the way.
FREE_KEYS = frozenset(
  {"num_steps", "steps_per_call", "log_every", "sample_every", "eval_every", "checkpoint_every"}
  | {"keep_checkpoints", "metrics", "num_eval_samples", "reference_split", "best_metric"}
)
MOST_NAMED = 8  # keys in which a config differs that are spelled out
# Keys that may differ too where a run is only read: of devices, places, evaluation and samples.
READ_KEYS = FREE_KEYS | {"num_devices", "cpu_devices", "batch_size", "accumulate", "init_from"}
READ_KEYS |= {"data.dir", "data.memory_mb"}
READ_KEYS |= {
  f"model.{key}"
  for key in ("truncation", "psi", "sample_label", "bn_mode", "probe", "eval_k", "eval_chunk")
}
READ_KEYS |= {"model.temperature", "model.top_k", "model.top_p"}
READ_KEYS |= {"model.standing_every", "model.standing_passes"}


class Job(NamedTuple):
  """A config made concrete, without any data."""

  config: ConfigDict
  stages: list[core.Stage]
  infos: list[core.Info]  # facts about each stage's data
  sizes: list[int]  # examples per step of each stage
  templates: list[core.State]  # shapes and shardings of each stage's state
  keys: list[dict]  # independent keys of each stage, by purpose
  mesh: jax.sharding.Mesh


def plan(
  config: ConfigDict,
) -> tuple[jax.sharding.Mesh, list[core.Stage], list[core.Info], list[int]]:
  """Returns devices, stages, facts about their data and examples per step; traces nothing.

  Raises:
    ValueError: where the config asks for something that does not exist or cannot be.
  """
  checks.common(config)
  mesh = sharding.start(config)
  data = _module("gm.data", config.data.source, "--config.data.source")
  method = _module("gm.methods", config.method, "--config.method")
  stages = method.stages(config, data.info(config.data))
  infos = [data.info(data_config(config, stage)) for stage in stages]
  checks.columns(config.data.attributes, infos[0])
  sizes = [stage.data.get("batch_size", config.batch_size) for stage in stages]
  for size in sizes:
    sharding.check_batch(mesh, size, config.accumulate)
  return mesh, stages, infos, sizes


def prepare(
  config: ConfigDict, shelf: programs.Shelf | None = None, *, on_paper: bool = False
) -> Job:
  """Builds all that needs no data: stages, facts, shapes, devices and keys.

  Args:
    config: from configs/.
    shelf: where shapes that were found by tracing are kept; see gm/programs.py.
    on_paper: it need not fit the memory that there is, because nothing will be run.

  Raises:
    UserError: where the config asks for something that does not exist or does not fit.
  """
  with user_input():
    mesh, stages, infos, sizes = plan(config)
  purposes = ("init", "step", "sample", "evaluate", "show", "picture", "seeds")
  root = jax.random.key(config.seed)
  split = [jax.random.split(jax.random.fold_in(root, i), len(purposes)) for i in range(len(stages))]
  keys = [dict(zip(purposes, k, strict=True)) for k in split]
  batches = [
    core.batch_shapes(info, size, sharding.batched(mesh))
    for info, size in zip(infos, sizes, strict=True)
  ]
  shapes = shelf.read("shapes") if shelf else None
  if shapes is None:
    shapes, prev = [], None
    for i, stage in enumerate(stages):
      with user_input():  # layers say what does not fit when they are built
        prev = jax.eval_shape(stage.init, keys[i]["init"], batches[i], prev)
      shapes.append(prev)
    if shelf:
      shelf.write("shapes", shapes)
  templates = [
    jax.tree.map(
      lambda s, h: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=h), s, sharding.of_state(mesh, s)
    )
    for s in shapes
  ]
  if not on_paper:
    with user_input():
      for stage, template, batch in zip(stages, templates, batches, strict=True):
        checks.memory(mesh, stage, template, batch)
  return Job(config, stages, infos, sizes, templates, keys, mesh)


def load(
  job: Job, index: int, split: str, *, shuffle: bool = True, whole: bool = False
) -> core.Source:
  """Opens a split of the data set of a stage.

  Args:
    job: the run.
    index: of the stage.
    split: "train" or "test".
    shuffle: False reads in the set's constant order, a permutation.
    whole: give every process all rows of a batch, not its share.
  """
  with user_input():
    data = _module("gm.data", job.config.data.source, "--config.data.source")
    source = data.load(
      data_config(job.config, job.stages[index]),
      split,
      seed=job.config.seed,
      shuffle=shuffle,
      part=(0, 1) if whole else (jax.process_index(), jax.process_count()),
    )
  if source.arrays is not None:  # read and checked
    return source

  def batch(i: int, size: int) -> dict:
    with user_input():  # files that are read on the way may be damaged
      return source.batch(i, size)

  return source._replace(batch=batch)


def data_config(config: ConfigDict, stage: core.Stage) -> ConfigDict:
  """config.data with the overrides of a stage."""
  overrides = {k: v for k, v in stage.data.items() if k != "batch_size"}
  return ConfigDict({**config.data.to_dict(), **overrides})


def open_workdir(job: Job, workdir: str, source: core.Source) -> None:
  """Creates the workdir with its config.json, or checks that it belongs to this config and data.

  Raises:
    UserError: if it cannot be written, belongs to a config that differs in more than FREE_KEYS, or
      was trained on a set that has changed since.
  """
  with user_input():
    os.makedirs(workdir, exist_ok=True)
    config = _absolute(job.config.to_dict())
    _compare(workdir, config, FREE_KEYS)
    changed = data_changes(workdir, source)
    if changed:
      raise ValueError(
        f"the data of {workdir} have changed since its run began ({'; '.join(changed)}): put them"
        " back as they were, or start anew with another --workdir"
      )
    said = f"{origin(job, source)}, {source.num_examples:,} training examples"
    left_out = source.origin.get("unused", ())
    if left_out:
      said += f"; not used: {', '.join(f'{name}/' for name in left_out)}"
    data = {"origin": said, "generated": config["data"]["source"] == "points"}
    if source.classes:
      data["classes"] = source.classes
    if source.origin:
      data["set"] = source.origin
    facts = {"data": data, "stages": {stage.name: stage.num_steps for stage in job.stages}}
    record.write_config(workdir, config, facts)


def _compare(workdir: str, config: dict, free: frozenset) -> None:
  """Raises ValueError if a workdir is of a config that differs in more than the keys `free`."""
  try:
    old = _absolute(record.read_config(workdir)["config"])
  except FileNotFoundError:
    return
  fixed = lambda c: {k: v for k, v in record.flatten(c).items() if k not in free}
  differs = record.diff(fixed(old), fixed(config))
  if old.get("method") != config["method"]:  # then all else differs too
    differs = [text for text in differs if text.startswith("method: ")]
  if len(differs) > MOST_NAMED:
    differs = [*differs[:MOST_NAMED], f"and {len(differs) - MOST_NAMED} more keys"]
  if differs:
    raise ValueError(
      f"{workdir} belongs to a run with another config ({'; '.join(differs)}): give another"
      " --workdir, or the config that it was made with"
    )


def origin(job: Job, source: core.Source) -> str:
  """Says where data came from: embedded:mnist10k, tfds:toy/1.0.0, folder:/cats, listing 3f09...

  Args:
    job: the run.
    source: any split of the data of one of its stages.
  """
  data = job.config.data
  listing = f", listing {source.origin['listing']}" if "listing" in source.origin else ""
  return f"{data.source}:{source.origin.get('name', data.name)}{listing}"


def data_changes(workdir: str, source: core.Source) -> list[str]:
  """Returns what is no longer as it was when the run of a workdir began, in its set of data.

  Args:
    workdir: of a run, or of none yet.
    source: any split of the data of one of its stages.
  """
  try:
    data = record.read_config(workdir).get("data")
  except FileNotFoundError:
    return []
  before = data.get("set") if isinstance(data, dict) else None
  kept = lambda facts: {k: v for k, v in facts.items() if k != "unused"}
  return record.diff(kept(before), kept(source.origin)) if before and source.origin else []


def _absolute(config: dict) -> dict:
  """A config with its paths absolute: the folder that a later command is given in is another."""

  def whole(tree, key):
    path = tree.get(key)
    return {**tree, key: os.path.abspath(os.path.expanduser(path))} if path else tree

  return {**whole(config, "init_from"), "data": whole(config.get("data", {}), "dir")}


def restore(job: Job, workdir: str, index: int, *, resume: bool = False) -> core.State | None:
  """Returns the newest good state of a stage, or None where there is none.

  Args:
    job: the run.
    workdir: of the run.
    index: of the stage.
    resume: training goes on from there, so damaged checkpoints are deleted; else nothing in the
      workdir changes.
  """
  folder = checkpoint.stage_dir(workdir, index, job.stages[index].name)
  if not checkpoint.has_steps(folder):
    return None
  with user_input():
    manager = checkpoint.open_manager(folder, read_only=not resume)
    try:
      return checkpoint.restore(manager, job.templates[index], resume=resume)
    finally:
      manager.close()


def newest(workdir: str, config: ConfigDict | None = None) -> tuple[Job, int, core.State]:
  """Returns the job of a workdir, the last of its stages that was saved, and its newest state.

  Args:
    workdir: of a run.
    config: None to take it from the workdir.

  Raises:
    UserError: if the folder holds no run or one of another config (READ_KEYS may differ), or none
      of its checkpoints can be read.
  """
  with user_input():
    if config is None:
      config = ConfigDict(record.read_config(workdir)["config"])
    _compare(workdir, _absolute(config.to_dict()), READ_KEYS)
  job = prepare(config)
  for index in reversed(range(len(job.stages))):
    state = restore(job, workdir, index)
    if state is not None:
      return job, index, state
  raise UserError(f"{workdir} holds no checkpoint: train first with --mode=train")


PARTS = {"gm.data": {"info", "load"}, "gm.methods": {"stages"}}  # what a file must define


def _module(package: str, name: str, flag: str) -> Any:
  file = pathlib.Path(__file__).parent / package.removeprefix("gm.") / f"{name}.py"
  parts = PARTS[package]
  fits = lambda path: parts <= {node.name for node in checks.functions(path)}
  if not str(name).isidentifier() or not file.exists() or not fits(file):
    known = sorted(path.stem for path in file.parent.glob("*.py") if fits(path))
    raise ValueError(f"{flag}={name!r} is not known; there are {', '.join(known)}")
  return importlib.import_module(f"{package}.{name}")
