"""What training, evaluation, sampling and inspection have in common: the set-up of a run."""

from __future__ import annotations

import functools
import json
import os
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from gm import checks, continuing, core, programs, sharding
from gm.errors import UserError, user_input
from gm.progress import say
from gm.workdir import checkpoint, lock, record


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
  data = checks.module("gm.data", config.data.source, "--config.data.source")
  method = checks.module("gm.methods", config.method, "--config.method")
  checks.unread(config.data, data.reads(config.data))
  stages = method.stages(config, data.info(config.data))
  infos = [data.info(data_config(config, stage)) for stage in stages]
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
    data = checks.module("gm.data", job.config.data.source, "--config.data.source")
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


def check_workdir(job: Job, workdir: str) -> None:
  """Makes sure that a workdir is new, or of a run that this config may continue; writes nothing.

  Raises:
    UserError: if it belongs to a config that differs in more than FREE_KEYS and DEVICE_KEYS.
  """
  with user_input():
    facts = continuing.facts_of(workdir)
    if facts is not None:
      _check(workdir, facts["config"], job.config, reading=False)


def open_workdir(job: Job, held: lock.Lock, source: core.Source, *, changed_at: str = "") -> dict:
  """Creates the workdir with its config.json, or writes that anew; returns what is on record.

  Args:
    job: the run.
    held: the lock of the workdir, which is taken before anything is written.
    source: the training split.
    changed_at: where training has come to, if it may go on with a set that has changed; the changes
      are put on record under this name.

  Raises:
    UserError: if it cannot be written, is being trained by another process, does not pass
      `check_workdir`, or was trained on a set that has changed since.
  """
  workdir = str(held.workdir)
  with user_input():
    os.makedirs(workdir, exist_ok=True)
    held.take()
    check_workdir(job, workdir)
    changed = "; ".join(data_changes(workdir, source))
    if changed and not changed_at:
      raise ValueError(
        f"the data of {workdir} have changed since its run began ({changed}): go on with them as"
        " they are by --changed_data, which its config.json and report will say, put them back as"
        " they were, or start anew with another --workdir"
      )
    changes = _data_facts(workdir).get("changes", [])
    if changed:
      changes = [*changes, f"{changed_at}: {changed}"]
      say(f"note: the data have changed ({changed}); training goes on with them as they are")
    config = continuing.plain(job.config.to_dict())
    said = f"{origin(job, source)}, {source.num_examples:,} training examples"
    left_out = source.origin.get("unused", ())
    if left_out:
      said += f"; not used: {', '.join(f'{name}/' for name in left_out)}"
    said += "".join(f"; changed at {change}" for change in changes)
    data = {"origin": said, "generated": config["data"]["source"] == "points"}
    more = {"classes": source.classes, "set": source.origin, "changes": changes}
    data |= {name: fact for name, fact in more.items() if fact}
    facts = {"data": data, "stages": {stage.name: stage.num_steps for stage in job.stages}}
    if source.tokenizer:
      record.write_tokenizer(workdir, source.tokenizer)
    record.write_config(workdir, config, facts)
    return {"config": config, **facts}


def _check(where: str | pathlib.Path, old: Mapping, config: ConfigDict, *, reading: bool) -> None:
  """Raises ValueError unless `config` may continue, or read, a run of the config `old`."""
  continuing.check(
    where,
    old,
    config.to_dict(),
    reading=reading,
    same_training=lambda values: _training(config) == _training(continuing.changed(config, values)),
  )


def _training(config: ConfigDict) -> list[str]:
  return _programs(config.to_json())


@functools.lru_cache(maxsize=2)
def _programs(config: str) -> list[str]:
  """The programs that a config trains by, as text: of every stage its first state and its step."""
  job, found, prev = prepare(ConfigDict(json.loads(config)), on_paper=True), [], None
  for stage, info, size, like, keys in zip(*job[1:6], strict=True):
    batch = core.batch_shapes(info, size)
    first = jax.jit(stage.init).lower(keys["init"], batch, prev)
    step = jax.jit(stage.step).lower(like, batch, keys["step"])
    found += [stage.name, first.as_text(), step.as_text()]
    prev = like
  return found


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
  before = _data_facts(workdir).get("set")
  kept = lambda facts: {k: v for k, v in facts.items() if k != "unused"}
  return record.diff(kept(before), kept(source.origin)) if before and source.origin else []


def _data_facts(workdir: str) -> dict:
  """What is on record of the data of a workdir; {} where nothing is."""
  data = (continuing.facts_of(workdir) or {}).get("data")
  return data if isinstance(data, dict) else {}


def restore(
  job: Job, workdir: str, index: int, *, resume: bool = False, same_run: bool = True
) -> core.State | None:
  """Returns the newest good state of a stage, or None where there is none; changes nothing.

  Args:
    job: the run.
    workdir: of the run.
    index: of the stage.
    resume: training goes on from there, see `checkpoint.restore`.
    same_run: the checkpoint must be of a run that this config may continue, or read.
  """
  folder = checkpoint.stage_dir(workdir, index, job.stages[index].name)
  if not checkpoint.has_steps(folder):
    return None

  def check(kept: dict) -> None:
    if same_run and isinstance(kept.get("config"), dict):  # older ones have none
      config = continuing.complete(kept["config"])[0]
      _check(folder / str(kept["step"]), config, job.config, reading=not resume)
    before, now = kept.get("devices", job.mesh.size), job.mesh.size
    if resume and before != now:
      say(
        f"note: the number of devices is {now}, it was {before} when this was saved: the result is"
        " the same up to rounding, not bit for bit"
      )

  with user_input():
    manager = checkpoint.open_manager(folder, read_only=True)
    try:
      return checkpoint.restore(manager, job.templates[index], resume=resume, check=check)
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
    old = continuing.require_facts(workdir)["config"]
    if config is None:
      config = ConfigDict(old)
    else:
      _check(workdir, old, config, reading=True)
  job = prepare(config)
  found = last_state(job, workdir)
  if found is None:
    raise UserError(f"{workdir} holds no checkpoint: train first with --mode=train")
  return job, *found


def last_state(job: Job, workdir: str, *, resume: bool = False) -> tuple[int, core.State] | None:
  """Returns the last of the stages that was saved, and its newest state; None: none was.

  Stages before it are not looked at: whatever has become of their checkpoints, they are done.
  """
  for index in reversed(range(len(job.stages))):
    state = restore(job, workdir, index, resume=resume)
    if state is not None:
      return index, state
  return None


def initial_state(job: Job) -> tuple[int, core.State | None]:
  """Returns the first stage to run and the state before it, which config.init_from may name."""
  if not job.config.init_from:
    return 0, None
  folder = continuing.absolute(job.config.init_from)
  workdir, _, name = folder.rpartition("/checkpoints/")
  names = [f"{i:02d}-{stage.name}" for i, stage in enumerate(job.stages[:-1])]
  if name not in names:
    raise UserError(
      f"--config.init_from={folder} must end in /checkpoints/ and the name of a stage that another"
      f" follows: {', '.join(names) or 'this method has one stage only'}"
    )
  index = names.index(name)
  try:
    state = restore(job, workdir, index, same_run=False)
  except UserError as error:  # the flag to change is not that of this run's own workdir
    said = str(error).replace("another --workdir", "another --config.init_from")
    raise UserError(f"--config.init_from={folder}: {said}") from error
  if state is None:
    raise UserError(f"--config.init_from={folder} holds no checkpoint")
  num_steps = record.read_steps(workdir).get(job.stages[index].name, 0)
  if int(state.step) < num_steps:
    raise UserError(
      f"--config.init_from={folder} is at step {int(state.step):,} of {num_steps:,}: let that run"
      " finish the stage first"
    )
  return index + 1, state
