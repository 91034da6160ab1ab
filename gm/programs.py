"""Compiled programs kept on disk: a second start of a run traces, lowers and compiles nothing.

jax keeps what its compiler made in a cache of its own; but to look there it must have the program,
and tracing and lowering that takes longer than loading the result. Here a program is found by a
digest of all that it is made from: this package's files, the config, versions and devices. So this
is right only where all functions are those of the files, which a notebook or a test may have
changed: `main.py` asks for it, nobody else does. What was compiled is kept by the program's text,
so that runs which differ in their seed alone share it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import pathlib
import pickle
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from typing import Any

import jax
from jax import lax
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
LIMIT = 2**30  # bytes; those that were not used for longest go first
_LOADING = threading.Lock()  # two at a time may end the process: seen once in some thousand loads


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
      self.ahead[name] = self.pool.submit(self._find, name)

  def find(self, name: str, like: tuple) -> jax.stages.Compiled | None:
    """Returns a program if it is kept and these can be its last arguments, else None."""
    ahead = self.ahead.pop(name, None)
    program = ahead.result() if ahead else self._find(name)
    if program is None:
      return None
    kinds = jax.tree.map(lambda a: (a.shape, a.dtype), program.args_info[0][-len(like) :])
    return program if kinds == _kinds(like) else None

  def make(self, name: str, function: Callable, args: tuple, **how: Any) -> jax.stages.Compiled:
    """Traces, compiles and keeps a program.

    Args:
      name: under which it is kept.
      function: of trees of tuples, lists and dicts of arrays.
      args: arrays, or shapes with shardings.
      **how: as of `jax.jit`.
    """
    lowered = jax.jit(function, **how).lower(*args)
    text = lowered.as_text()  # without the arguments that are not used
    whole = f"{facts(self.mesh)} {how} {lowered.args_info} {text}"
    content = hashlib.sha256(whole.encode()).hexdigest()[:32]
    program = self._load(content)
    if program is None:
      with _no_cache():
        program = lowered.compile()
      if "callback" in text:  # the address of a function of this process
        return program
      try:
        _write(content, (serialize_executable.serialize(program), "lapack" in text))
      except Exception as error:  # whatever a backend does not serialise
        logging.info("%s cannot be kept: %s", name, error)
        return program
    self.write(name, content)
    return program

  def read(self, name: str) -> Any:
    """Returns a value that `write` kept for this config, or None."""
    return _read(f"{self.digest}-{name}")

  def write(self, name: str, value: Any) -> None:
    """Keeps a value for this config; a full disk costs the next start time, this run nothing."""
    _write(f"{self.digest}-{name}", value)

  def _find(self, name: str) -> jax.stages.Compiled | None:
    content = self.read(name)
    return content and self._load(content)

  def _load(self, content: str) -> jax.stages.Compiled | None:
    kept = _read(content)
    if kept is None:
      return None
    try:
      program, has_linear_algebra = kept
      if has_linear_algebra:  # jax looks up LAPACK's functions when it first lowers a call of one
        jax.jit(lax.linalg.cholesky).lower(jax.ShapeDtypeStruct((1, 1), "float32"))
      devices = list(self.mesh.devices.flat)
      with _LOADING:
        return serialize_executable.deserialize_and_load(*program, execution_devices=devices)
    except Exception as error:  # whatever the compiler meets
      logging.warning("a program is damaged, and made again: %s", error)
      return None


def _read(name: str) -> Any:
  """Returns a value or None; a damaged one is as good as none."""
  path = folder() / name
  try:
    value = pickle.loads(zlib.decompress(path.read_bytes()))
  except FileNotFoundError:
    return None
  except Exception as error:  # whatever pickle meets
    logging.warning("%s is damaged, and made again: %s", path, error)
    return None
  with contextlib.suppress(OSError):  # such as a folder that may only be read
    path.touch()
  return value


def _write(name: str, value: Any) -> None:
  path = folder() / name
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(f".{os.getpid()}")
    new.write_bytes(zlib.compress(pickle.dumps(value), 1))
    new.rename(path)
    prune(path.parent)
  except (OSError, pickle.PicklingError, TypeError, AttributeError) as error:
    logging.warning("%s was not kept for the next start: %s", name, error)


@contextlib.contextmanager
def _no_cache() -> Iterator[None]:
  """Compiles anew: what XLA itself has loaded, it serialises without its functions."""
  before = jax.config.jax_enable_compilation_cache
  jax.config.update("jax_enable_compilation_cache", False)
  compilation_cache.reset_cache()
  try:
    yield
  finally:
    jax.config.update("jax_enable_compilation_cache", before)
    compilation_cache.reset_cache()


def init_name(index: int) -> str:
  """Under which a stage's `init` is kept."""
  return f"{index:02d}-init"


def steps_name(index: int) -> str:
  """Under which a stage's steps are kept."""
  return f"{index:02d}-steps"


def folder() -> pathlib.Path:
  """Returns where programs are kept: beside what they were compiled to."""
  return pathlib.Path(jax.config.jax_compilation_cache_dir) / "programs"


def prune(path: pathlib.Path, limit: int = LIMIT) -> None:
  """Deletes what was not used for longest, until no more than `limit` bytes are left."""
  found = []
  for file in path.iterdir():
    with contextlib.suppress(FileNotFoundError):  # another process was first
      found.append((file.stat(), file))
  total = 0
  for stat, file in sorted(found, key=lambda x: -x[0].st_mtime):
    total += stat.st_size
    if total > limit:
      file.unlink(missing_ok=True)


def digest(
  config: ConfigDict, mesh: jax.sharding.Mesh, root: pathlib.Path = pathlib.Path(__file__).parent
) -> str:
  """Names all that a program is made from: files under `root`, config, versions and so on."""
  found = hashlib.sha256()
  for path in sorted(root.rglob("*.py")):
    found.update(f"{path.relative_to(root)} ".encode() + path.read_bytes())
  found.update(f"{facts(mesh)} {config.to_json()}".encode())
  return found.hexdigest()[:32]


def facts(mesh: jax.sharding.Mesh) -> str:
  """Versions, flags and devices."""
  flags = sorted((k, v) for k, v in os.environ.items() if k.startswith(("JAX_", "XLA_")))
  versions = [metadata.version(p) for p in PACKAGES]
  devices = [(d.device_kind, d.id) for d in mesh.devices.flat]
  return f"{flags} {versions} {jax.default_backend()} {jax.device_count()} {devices}"


def _kinds(args: tuple) -> tuple:
  """Shapes and types of arrays or of what stands for them."""
  return jax.tree.map(lambda a: (a.shape, a.dtype), jax.eval_shape(lambda *a: a, *args))
