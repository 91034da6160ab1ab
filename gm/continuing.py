"""Which config a run has, and which other ones may continue it or read it.

The config of a run stands in its config.json and, again, in every checkpoint: so a run is known by
either, and a checkpoint that came from elsewhere is found out.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gm.progress import say
from gm.workdir import checkpoint, files, record

# Keys that may change when a run is continued: they move no parameter on the way.
FREE_KEYS = frozenset(
  {"steps_per_call", "log_every", "sample_every", "eval_every", "checkpoint_every"}
  | {"keep_checkpoints", "metrics", "num_eval_samples", "reference_split", "best_metric"}
)
DEVICE_KEYS = frozenset({"num_devices", "cpu_devices"})  # they move parameters by rounding alone
# Keys that may differ too where a run is only read: of devices, places, evaluation and samples.
READ_KEYS = FREE_KEYS | DEVICE_KEYS | {"num_steps", "batch_size", "accumulate", "init_from"}
# Of `model` those that samples are asked with, or that move what is kept for samples; of the others
# the programs tell.
READ_KEYS |= {"data.dir", "data.memory_mb", "model.truncation", "model.psi"}
READ_KEYS |= {"model.standing_every", "model.standing_passes"}
MOST_NAMED = 8  # keys in which a config differs that are spelled out


def facts_of(workdir: str) -> dict | None:
  """Returns what is on record of a run, its "config" whole; None where there is no run.

  Where config.json is missing or cannot be read, the newest checkpoint tells the config. A key that
  was not there when the run was made has its default, as in configs/. A line says either.

  Raises:
    ValueError: if there is a config.json that cannot be read, and no checkpoint that tells.
  """
  try:
    facts = record.read_config(workdir)
  except (FileNotFoundError, ValueError) as error:
    facts = checkpoint.last_record(workdir)
    if facts is None and isinstance(error, FileNotFoundError):
      return None
    if facts is None:
      raise
    wrong = error.strerror if isinstance(error, OSError) else str(error)
    _say_once(f"note: {wrong.partition(';')[0]}; the config is taken from the checkpoints")
  config, absent = complete(facts["config"])
  if absent:
    _say_once(
      f"note: the config of {workdir} is an older one's, without {', '.join(absent)}: each has its"
      " default"
    )
  return {**facts, "config": config}


def require_facts(workdir: str) -> dict:
  """As `facts_of`; raises FileNotFoundError where there is no run."""
  return facts_of(workdir) or record.read_config(workdir)


@functools.cache
def _say_once(text: str) -> None:
  say(text)


def complete(config: Mapping) -> tuple[dict, list[str]]:
  """Returns a config with the keys that it lacks, and the names of these.

  Raises:
    ValueError: if it does not say of which method it is.
  """
  if not isinstance(config.get("method"), str):
    raise ValueError("the config of the run has no key method: put back a copy of its config.json")
  try:
    module = importlib.import_module(f"configs.{config['method']}")
  except ImportError:  # a config of one's own
    return dict(config), []
  default = files.plain(module.get_config().to_dict())
  absent = [key for key in default if key not in config]
  whole = {**default, **config}
  for section in record.SECTIONS:
    absent += [f"{section}.{key}" for key in default[section] if key not in whole[section]]
    whole[section] = {**default[section], **whole[section]}
  return whole, absent


def plain(config: Mapping) -> dict:
  """A config as it goes on record: paths absolute, as the folder of a later command is another.

  The name of a set is empty where its source reads none, or that of a set that was not used stays.
  """

  def whole(tree: Mapping, key: str) -> dict:
    return {**tree, key: absolute(tree[key])} if tree.get(key) else dict(tree)

  data = whole(config["data"], "dir")
  with contextlib.suppress(ImportError, AttributeError, ValueError):  # one that there is not
    source = importlib.import_module(f"gm.data.{data['source']}")
    data |= {} if "name" in source.reads(data) else {"name": ""}
  return {**whole(config, "init_from"), "data": data}


def absolute(path: str) -> str:
  """The whole path; ~ is the home folder also where no shell has said so, as in --workdir=~/x.

  >>> absolute("/a/./b"), absolute("~") == os.path.expanduser("~")
  ('/a/b', True)
  """
  return os.path.abspath(os.path.expanduser(path))


def check(
  workdir: str | Path,
  old: Mapping,
  new: Mapping,
  *,
  reading: bool,
  same_training: Callable[[dict], bool],
) -> None:
  """Makes sure that a config may continue, or read, what another one began.

  Args:
    workdir: or the checkpoint, for the message.
    old: the config that it was made with.
    new: the config now.
    reading: whether nothing is trained, so that READ_KEYS may differ.
    same_training: whether the new config with these values {dotted key: old value} trains by the
      same programs. Asked where keys differ of which only the programs can tell whether they move a
      parameter: num_steps and those of `model`.

  Raises:
    ValueError: if it may not; the message names keys that differ.
  """
  free = READ_KEYS if reading else FREE_KEYS | DEVICE_KEYS
  old, new = (
    {k: v for k, v in record.flatten(plain(c)).items() if k not in free} for c in (old, new)
  )
  differs = record.diff(old, new)
  if old.get("method") != new["method"]:  # then all else differs too
    differs = [text for text in differs if text.startswith("method: ")]
  elif len(differs) > 1 and any(not _of_programs(text) for text in differs):
    differs = [text for text in differs if not text.startswith("num_steps: ")]  # no matter here
  if not differs:
    return
  keys = [text.partition(": ")[0] for text in differs]
  perhaps = all(_of_programs(text) for text in differs)
  perhaps = perhaps and all(k in old and k in new for k in keys)
  if perhaps and same_training({k: old[k] for k in keys}):
    return
  remedy = "give another --workdir, or the config that it was made with"
  if keys == ["num_steps"]:  # a learning rate that falls until then would jump
    remedy = (
      "what a step does depends on it, such as a learning rate that falls until the last one; keep"
      f" --config.num_steps={old['num_steps']}, or begin anew with another --workdir"
    )
  if len(differs) > MOST_NAMED:
    differs = [*differs[:MOST_NAMED], f"and {len(differs) - MOST_NAMED} more keys"]
  raise ValueError(
    f"{workdir} belongs to a run with another config ({'; '.join(differs)}): {remedy}"
  )


def _of_programs(text: str) -> bool:
  """Whether what a difference changes, if anything, is the programs that train."""
  return text.startswith(("num_steps: ", "model."))


def changed(config: Any, values: Mapping) -> Any:
  """A copy of a ConfigDict with other values, {dotted key: value}."""
  copy = config.copy_and_resolve_references()
  with copy.ignore_type(), copy.unlocked():
    copy.update_from_flattened_dict(dict(values))
  return copy
