"""Traced programs kept on disk: a second start of a run neither traces nor lowers anything again.

What the compiler makes of a program is in jax's own cache; but to look there jax must have the
program, and tracing it takes about as long as loading it. A program is found by a digest of all
that it is made from: this package's files, the config, versions and devices. So this is right only
where all functions are those of the files, which a notebook or a test may have changed: `main.py`
asks for it, nobody else does.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pathlib
import pickle
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from typing import Any, NamedTuple

import jax
from jax import export
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


class Program(NamedTuple):
  """A compiled function and what it takes."""

  run: Callable
  args: tuple  # jax.ShapeDtypeStruct


class Shelf:
  """What is kept for one config, by name: programs, and other values that tracing found."""

  def __init__(self, config: ConfigDict, mesh: jax.sharding.Mesh):
    self.mesh, self.digest = mesh, digest(config, mesh)
    self.pool, self.ahead = ThreadPoolExecutor(2), {}

  def read_ahead(self, workdir: str) -> None:
    """Begins to load the programs of the stage that a run has come to, while others set it up."""
    folders = (pathlib.Path(workdir) / "checkpoints").glob("[0-9][0-9]-*")
    index = max((int(f.name[:2]) for f in folders), default=0)
    for name in (steps_name(index), init_name(index)):
      self.ahead[name] = self.pool.submit(self._load, name)

  def find(self, name: str, like: tuple) -> Program | None:
    """Returns a program if it is kept and these can be its last arguments, else None."""
    ahead = self.ahead.pop(name, None)
    program = ahead.result() if ahead else self._load(name)
    if program is None or _kinds(program.args[-len(like) :]) != _kinds(like):
      return None
    return program

  def make(
    self,
    name: str,
    function: Callable,
    args: tuple,
    *,
    donate: tuple[int, ...] = (),
    options: Mapping[str, Any] | None = None,
  ) -> Program | None:
    """Traces, keeps and compiles a program; None where it is of a kind that cannot be kept.

    Args:
      name: under which it is kept.
      function: jitted, of trees of tuples, lists and dicts of arrays.
      args: arrays, or shapes with shardings.
      donate: arguments whose memory it may use.
      options: of the compiler.
    """
    try:
      exported = export.export(function)(*args)
      program = bytes(exported.serialize())
    except Exception as error:  # such as a call of the host, or of a library that promises nothing
      logging.info("%s cannot be kept: %s", name, error)
      return None
    shardings = [getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(args)]
    how = {
      "specs": [s.spec if isinstance(s, NamedSharding) else None for s in shardings],
      "donate": donate,
      "options": dict(options or {}),
    }
    self.write(name, {"program": program, **how})
    return self._compile(exported, **how)

  def read(self, name: str) -> Any:
    """Returns a value that `write` kept, or None; a damaged one is as good as none."""
    try:
      return pickle.loads((folder() / f"{self.digest}-{name}").read_bytes())
    except FileNotFoundError:
      return None
    except Exception as error:  # whatever pickle meets
      logging.warning("%s is damaged, and made again: %s", name, error)
      return None

  def write(self, name: str, value: Any) -> None:
    """Keeps a value; where that fails the next start is slower, and this run loses nothing."""
    path = folder() / f"{self.digest}-{name}"
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      new = path.with_suffix(f".{os.getpid()}")
      new.write_bytes(pickle.dumps(value))
      new.rename(path)
    except (OSError, pickle.PicklingError, TypeError, AttributeError) as error:
      logging.warning("%s was not kept for the next start: %s", name, error)

  def _load(self, name: str) -> Program | None:
    kept = self.read(name)
    if kept is None:
      return None
    try:
      return self._compile(export.deserialize(bytearray(kept.pop("program"))), **kept)
    except Exception as error:  # whatever the compiler meets
      logging.warning("%s is damaged, and made again: %s", name, error)
      return None

  def _compile(
    self, exported: export.Exported, specs: list, donate: tuple[int, ...], options: dict
  ) -> Program:
    shardings = [None if s is None else NamedSharding(self.mesh, s) for s in specs]
    leaves = [
      jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s)
      for a, s in zip(exported.in_avals, shardings, strict=True)
    ]
    args, _ = jax.tree.unflatten(exported.in_tree, leaves)
    call = jax.jit(
      exported.call,
      donate_argnums=donate,
      out_shardings=jax.tree.unflatten(exported.out_tree, exported.out_shardings_jax(self.mesh)),
      compiler_options=options,
    )
    return Program(call.lower(*args).compile(), args)


def init_name(index: int) -> str:
  """Under which a stage's `init` is kept."""
  return f"{index:02d}-init"


def steps_name(index: int) -> str:
  """Under which a stage's steps are kept."""
  return f"{index:02d}-steps"


def folder() -> pathlib.Path:
  """Returns where programs are kept: beside what they were compiled to."""
  return pathlib.Path(jax.config.jax_compilation_cache_dir) / "programs"


def digest(
  config: ConfigDict, mesh: jax.sharding.Mesh, root: pathlib.Path = pathlib.Path(__file__).parent
) -> str:
  """Names all that a program is made from: files under `root`, config, flags, versions, devices."""
  found = hashlib.sha256()
  for path in sorted(root.rglob("*.py")):
    found.update(f"{path.relative_to(root)} ".encode() + path.read_bytes())
  flags = sorted((k, v) for k, v in os.environ.items() if k.startswith(("JAX_", "XLA_")))
  versions = [metadata.version(p) for p in PACKAGES]
  devices = [d.device_kind for d in mesh.devices.flat]
  facts = (config.to_json(), flags, versions, jax.default_backend(), devices)
  found.update(repr(facts).encode())
  return found.hexdigest()[:32]


def _kinds(args: tuple) -> tuple:
  """Shapes and types of arrays or of what stands for them."""
  return jax.tree.map(lambda a: (a.shape, a.dtype), jax.eval_shape(lambda *a: a, *args))
