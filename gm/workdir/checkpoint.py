"""Checkpoints: orbax, written in the background, verified when read.

`<workdir>/checkpoints/<index>-<stage>/<step>/` holds the state and a small record: the step, one
checksum per array, and what the run was, its config among it. A step becomes visible by an atomic
rename, so a killed run leaves no half a checkpoint; bytes that changed afterwards fail their
checksum, and the step before is used. To read deletes nothing: what was skipped goes when training
has a newer state to save.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import pathlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gm import core
from gm.workdir import files, quirks


def stage_dir(workdir: str, index: int, name: str) -> pathlib.Path:
  """Returns the folder of a stage's checkpoints.

  >>> stage_dir("/tmp/run", 0, "train").as_posix()
  '/tmp/run/checkpoints/00-train'
  """
  return pathlib.Path(workdir).absolute() / "checkpoints" / f"{index:02d}-{name}"


def has_steps(folder: pathlib.Path) -> bool:
  """True where a folder may hold checkpoints; answers without importing orbax."""
  return folder.is_dir() and any(p.name.isdigit() for p in folder.iterdir())


def open_manager(
  folder: pathlib.Path, *, keep: int = 3, scores: Mapping | None = None, read_only: bool = False
) -> Any:
  """Returns the manager of one stage's checkpoints.

  Args:
    folder: from `stage_dir`.
    keep: number of latest checkpoints that stay.
    scores: {step: number}, read whenever one is saved: the checkpoint of the greatest stays too.
    read_only: change nothing in the folder; a run that is still going may be read.
  """
  import orbax.checkpoint as ocp  # imported late: half a second that the first step need not wait
  from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

  logging.getLogger("absl").setLevel(logging.CRITICAL)  # else each file; what counts is raised
  logging.getLogger("asyncio").addFilter(_untold)
  quirks.drop_late_errors()
  if read_only:
    options = ocp.CheckpointManagerOptions(read_only=True, create=False)
    return quirks.settled(
      lambda: ocp.CheckpointManager(quirks.without_glob(folder), options=options)
    )
  rules = [policy.LatestN(keep), _Best({} if scores is None else scores)]
  options = ocp.CheckpointManagerOptions(
    preservation_policy=policy.AnyPreservationPolicy(rules),
    cleanup_tmp_directories=True,
    enable_async_checkpointing=True,
  )
  folder.mkdir(parents=True, exist_ok=True)
  return ocp.CheckpointManager(quirks.without_glob(folder), options=options)


class _Best:
  """Keeps the checkpoint of the greatest score; orbax asks it for each whether it stays."""

  def __init__(self, scores: Mapping[int, float]):
    self.scores = scores

  def should_preserve(self, checkpoints: Sequence[Any], **_: Any) -> list[bool]:
    rated = [c.step for c in checkpoints if c.step in self.scores]
    best = max(rated, key=self.scores.get, default=None)
    return [c.step == best for c in checkpoints]


def save(manager: Any, state: core.State, facts: Mapping | None = None) -> None:
  """Saves a state under its own step; returns as soon as the arrays are copied.

  Args:
    manager: from `open_manager`.
    state: to be saved.
    facts: of the run, kept in the record: its "config" and others.
  """
  import orbax.checkpoint as ocp

  step = int(state.step)
  if step in manager.all_steps():
    return
  record = {**files.plain(facts or {}), "step": step, "crc32": _checksums(state)}
  manager.save(
    step,
    args=ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record)),
  )


def restore(
  manager: Any,
  like: core.State,
  step: int | None = None,
  *,
  resume: bool = False,
  check: Callable[[dict], None] | None = None,
) -> core.State | None:
  """Returns the newest checkpoint that reads back as it was written, or None; deletes nothing.

  Unreadable and altered checkpoints are skipped with a warning of one line.

  Args:
    manager: from `open_manager`.
    like: the state's shapes, with shardings.
    step: only this step.
    resume: training goes on from what is returned, and what was skipped goes in the end. So one
      that cannot be read now, but may be later, is an error, and so is one under another's number.
    check: is given the record of what is returned, and raises if it is not to be used.

  Raises:
    ValueError: if there are checkpoints but none can be read, if they hold a state of another
      structure, or as `resume` and `check` say.
  """
  listed = lambda: sorted(manager.all_steps() if step is None else [step], reverse=True)
  steps, skipped, reason, tries = listed(), [], "", quirks.TRIES
  while steps:
    candidate = steps.pop(0)
    where = f"{quirks.named(manager.directory)}/{candidate}"
    state, record, reason, lasting = _read(manager, candidate, like)
    if not reason:
      if check:
        check(record)
      return state
    if resume and not lasting:
      raise ValueError(
        f"the checkpoint {where} cannot be read now ({reason}): nothing was changed; give the same"
        " command again when it can be read, or move it out of the folder to do without it"
      )
    if resume and record:
      raise ValueError(
        f"the checkpoint {where} cannot be used, {reason}: move it out of the folder"
      )
    skipped.append(candidate)
    if not resume and step is None and tries:
      before, tries = {*steps, *skipped}, tries - 1
      quirks.settled(manager.reload)
      if set(listed()) != before:  # a training goes on, and has deleted what was being read
        steps, skipped, reason = listed(), [], ""
        continue
    logging.warning("checkpoint %s skipped: %s", where, reason)
  if reason:
    remedy = (
      "move the folder away to train this stage anew, or" if resume else "put back a copy, or"
    )
    raise ValueError(
      f"none of the checkpoints {skipped} in {quirks.named(manager.directory)} can be read:"
      f" {remedy} give another --workdir"
    )
  return None


def _read(manager: Any, step: int, like: core.State) -> tuple[Any, dict, str, bool]:
  """Reads a checkpoint: its state and its record, or why not, and whether that is for good.

  There is a record with a reason only where all is whole but of another step.

  Raises:
    ValueError: if it holds a state of another structure.
  """
  import orbax.checkpoint as ocp

  wanted = {"state": ocp.args.StandardRestore(like), "record": ocp.args.JsonRestore()}
  try:
    with quirks.quiet():
      found = manager.restore(step, args=ocp.args.Composite(**wanted))
  except Exception as error:  # orbax, tensorstore and zarr each raise their own kinds
    differs = _of_another_config(manager, step, like)
    if differs:
      raise ValueError(
        f"the checkpoints in {quirks.named(manager.directory)} were made with another config"
        f" ({differs}): give the config of that run, or another --workdir"
      ) from error
    number = quirks.os_error(error)
    text = " ".join(str(error).split()).partition(". ")[0][:200]  # else pages of TensorStore
    reason = os.strerror(number) if number else text or type(error).__name__
    return None, {}, reason, number in (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
  if not _agree(found.record["crc32"], _checksums(found.state)):
    return None, {}, "its contents do not match their checksums", True
  if found.record["step"] != step:
    return None, found.record, f"it holds step {found.record['step']}, so it is a copy", True
  return found.state, found.record, "", True


def _untold(record: logging.LogRecord) -> bool:
  """False for a fault of the disk: it comes as an error too, and pages are logged about it."""
  return not files.fault(f"{record.getMessage()} {record.exc_info and record.exc_info[1]}")


def last_record(workdir: str | pathlib.Path) -> dict | None:
  """Returns the record of the newest checkpoint of a workdir that tells the config of its run."""
  import orbax.checkpoint as ocp

  top = pathlib.Path(workdir).absolute() / "checkpoints"
  for folder in sorted(top.iterdir(), reverse=True) if top.is_dir() else ():
    if not has_steps(folder):
      continue
    manager = open_manager(folder, read_only=True)
    try:
      for step in sorted(manager.all_steps(), reverse=True):
        with contextlib.suppress(Exception), quirks.quiet():  # damaged: the one before tells it too
          record = manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))
          if isinstance(record.record.get("config"), dict):
            return record.record
    finally:
      manager.close()
  return None


def _of_another_config(manager: Any, step: int, like: core.State) -> str:
  """The first array of a checkpoint that has no place or another shape; "" where all fit."""
  try:
    with quirks.quiet():
      stored = _shapes(manager.item_metadata(step)["state"])
  except Exception:  # too damaged to say what it holds
    return ""
  wanted = _shapes(like) if stored else {}
  show = lambda shapes, name: str(shapes.get(name, "absent"))
  return next(
    (
      f"{name}: {show(stored, name)} in the checkpoint, {show(wanted, name)} now"
      for name in sorted({*stored, *wanted})
      if stored.get(name) != wanted.get(name)
    ),
    "",
  )


def _shapes(tree: Any) -> dict[str, tuple]:
  """Shapes of the arrays of a tree by their paths, however its containers are stored."""
  name = lambda part: str(
    next(getattr(part, k) for k in ("name", "key", "idx") if hasattr(part, k))
  )
  return {
    "/".join(map(name, path)): tuple(x.shape)
    for path, x in jax.tree_util.tree_leaves_with_path(
      tree, is_leaf=lambda x: hasattr(x, "shape") and hasattr(x, "dtype")
    )
  }


def _checksums(state: core.State) -> list[int]:
  """CRC-32 of every array's bytes; 0 where no process holds all of it."""

  def checksum(x: jax.Array) -> int:
    if not getattr(x, "is_fully_addressable", True):
      if not x.is_fully_replicated:
        return 0
      x = x.addressable_data(0)
    return zlib.crc32(np.ascontiguousarray(np.asarray(x)).view(np.uint8))

  return [checksum(x) for x in jax.tree.leaves(state)]


def _agree(kept: list[int], now: list[int]) -> bool:
  """Whether checksums are the same; 0 is none: no process held, or holds, the whole array."""
  return len(kept) == len(now) and all(a == b or 0 in (a, b) for a, b in zip(kept, now))
