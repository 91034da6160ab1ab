"""What was run and what it reached: DIR/config.json, DIR/eval.json, and DIR/tokenizer.json."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import sys
import tomllib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from gm.workdir import files

SECTIONS = ("data", "model")  # tables inside of every config
TOKENIZER = "tokenizer.json"


def _version(package: str) -> str:
  """Of an installed package; of gm itself from pyproject.toml where it runs from its repository."""
  try:
    return metadata.version({"orbax": "orbax-checkpoint"}.get(package, package))
  except metadata.PackageNotFoundError:
    project = Path(__file__).parents[2] / "pyproject.toml"
    if package == "gm" and project.exists():
      return tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"]
    return "not installed"


def write_config(workdir: str | Path, config: Mapping, facts: Mapping | None = None) -> Path:
  """Writes DIR/config.json: all that is needed to run the same again.

  Where the file exists, the facts in it that are not given anew stay, the time of the first start
  among them.

  Args:
    workdir: the run's folder.
    config: the config as run, as nested dicts.
    facts: what else is known. The report reads "data" ({"origin": a sentence on where the data
      came from, "generated": True where they were drawn from a formula}), "stages"
      ({name: number of steps}) and "command"; all are optional and others are kept as given.

  Returns:
    The file's path.
  """
  import jax

  names = ("jax", "jaxlib", "flax", "optax", "orbax", "numpy", "gm")
  path = Path(workdir) / "config.json"
  fresh = {
    "config": config,
    "command": shlex.join(["python", *sys.argv]),
    "versions": {"python": platform.python_version()} | {n: _version(n) for n in names},
    "devices": [f"{d.platform}:{d.id} {d.device_kind}" for d in jax.devices()],
    "platform": f"{platform.platform()}, {os.cpu_count()} cores",
  }
  started = {"started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
  try:
    old = {k: v for k, v in files.read_json(path, "").items() if k not in fresh}
  except (OSError, ValueError):
    old = {}
  record = {**fresh, **started, **old, **(facts or {})}
  return files.write_bytes(path, (files.dumps(record, 2) + "\n").encode())


def read_config(workdir: str | Path) -> dict:
  """Reads DIR/config.json; the config as run is its entry "config".

  Raises:
    FileNotFoundError: if the folder holds no run.
    ValueError: if the file is not valid JSON, or holds no config.
  """
  remedy = "give the --workdir of a run, or train first with --mode=train"
  path = Path(workdir) / "config.json"
  facts = files.read_json(path, remedy)
  config = facts.get("config")
  for name, table in (("config", config), *((f"config.{k}", _entry(config, k)) for k in SECTIONS)):
    if not isinstance(table, dict):
      raise ValueError(f"{path} has no table {name!r}; {remedy}")
  return facts


def write_tokenizer(workdir: str | Path, tokenizer: str) -> None:
  """Writes DIR/tokenizer.json, which turns text into the tokens that a run is trained on.

  Raises:
    ValueError: if another one is there already: the captions have changed.
  """
  path = Path(workdir) / TOKENIZER
  if path.exists() and path.read_text(encoding="utf-8") != tokenizer:
    raise ValueError(
      f"the captions are not those that {path} was made of: put them back as they were, or start"
      " anew with another --workdir"
    )
  files.write_bytes(path, tokenizer.encode())


def read_tokenizer(workdir: str | Path) -> str:
  """Reads DIR/tokenizer.json.

  Raises:
    ValueError: if it is missing or damaged.
  """
  path = Path(workdir) / TOKENIZER
  remedy = "put back a copy; or the command that trained the run, given again, makes it anew"
  files.read_json(path, remedy)
  return path.read_text(encoding="utf-8")


def read_steps(workdir: str | Path) -> dict[str, int]:
  """How many steps each stage of a run has, by its config.json; {} where that does not say."""
  try:
    steps = read_config(workdir).get("stages")
  except (OSError, ValueError):
    return {}
  return steps if isinstance(steps, dict) else {}


def _entry(table: Any, key: str) -> Any:
  return table.get(key) if isinstance(table, dict) else None


def diff(old: Mapping, new: Mapping) -> list[str]:
  """Lists the keys in which two configs differ, with both values; tuples equal lists.

  >>> diff({"lr": 0.1, "model": {"z_dim": 8}}, {"lr": 0.2, "model": {"z_dim": 8}})
  ['lr: 0.1 in the workdir, 0.2 now']
  """
  old, new = flatten(old), flatten(new)
  show = lambda table, key: repr(table[key]) if key in table else "absent"
  same = lambda a, b: a == b and isinstance(a, bool) == isinstance(b, bool)
  return [
    f"{k}: {show(old, k)} in the workdir, {show(new, k)} now"
    for k in sorted({*old, *new})
    if k not in old or k not in new or not same(old[k], new[k])
  ]


def flatten(tree: Mapping, prefix: str = "") -> dict[str, Any]:
  """Turns nested dicts into one with dotted keys and plain JSON values; empty dicts stay.

  >>> flatten({"seed": 1, "model": {"widths": (8, 8)}})
  {'seed': 1, 'model.widths': [8, 8]}
  """
  flat = {}
  for key, value in files.plain(tree).items():
    if isinstance(value, dict) and value:
      flat |= flatten(value, f"{prefix}{key}.")
    else:
      flat[prefix + key] = value
  return flat


def write_eval(workdir: str | Path, result: Mapping) -> Path:
  """Writes DIR/eval.json.

  Args:
    workdir: the run's folder.
    result: {"metrics": {name: value}, "protocol": {"num_samples", "seed", "feature_net", "split"},
      "stage", "step"}, a table of any depth; non-finite numbers as in metrics.jsonl.

  Returns:
    The file's path.
  """
  return files.write_bytes(Path(workdir) / "eval.json", (files.dumps(result, 2) + "\n").encode())
