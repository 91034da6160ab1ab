"""Devices: one mesh over all of them; the batch is split over it, the state is replicated or split.

There is one axis, "data". On an accelerator its devices are the chips of all processes; on a CPU
they are virtual devices, so the same code runs everywhere.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import pathlib
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

MOST_CPU_DEVICES = 256  # threads of one process that wait for one another


def start(config: ConfigDict) -> Mesh:
  """Starts jax as a config asks, and returns the mesh to work on.

  Raises:
    ValueError: where there are not so many devices.
  """
  use_compilation_cache()
  keep_memory()
  set_cpu_devices(config.cpu_devices, config.batch_size // max(1, config.accumulate))
  return make_mesh(config.num_devices)


def use_compilation_cache() -> None:
  """Keeps compiled programs on disk, apart for each kind of processor."""
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
  if jax.config.jax_compilation_cache_dir:
    return
  cpu = ""
  with contextlib.suppress(OSError):
    lines = pathlib.Path("/proc/cpuinfo").read_text().split("\n")
    cpu = next((x for x in lines if x.startswith(("flags", "Features"))), "")
  kind = hashlib.sha256(f"{cpu} {jax.__version__}".encode()).hexdigest()[:12]
  root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(root) / "gm" / "xla" / kind))


def set_cpu_devices(per_process: int, batch_size: int) -> None:
  """Asks for virtual CPU devices. No effect on accelerators, nor once jax has made its devices.

  Args:
    per_process: their number; 0 means one per core, but no more than divide the batch.
    batch_size: examples per step.

  Raises:
    ValueError: for a negative number, or more than MOST_CPU_DEVICES.
  """
  if not 0 <= per_process <= MOST_CPU_DEVICES:
    raise ValueError(
      f"--config.cpu_devices={per_process} is not possible: set it to 0 (one per core) ..."
      f" {MOST_CPU_DEVICES}"
    )
  if per_process == 0:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    per_process = max(n for n in range(1, cores + 1) if batch_size % n == 0)
  with contextlib.suppress(RuntimeError):  # the devices are there already
    jax.config.update("jax_num_cpu_devices", per_process)


def keep_memory() -> None:
  """Lets the C library keep freed memory instead of giving it back, where it can (glibc).

  A compiled call allocates its working memory anew. Given back in between, each of its pages costs
  a page fault in the next call: about a tenth of a step of a convolutional GAN on a CPU.
  """
  with contextlib.suppress(AttributeError, OSError, TypeError):  # not glibc
    trim_threshold, mmap_max = -1, -4
    libc = ctypes.CDLL(None)
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(mmap_max, 0)


def make_mesh(num_devices: int = 0) -> Mesh:
  """Returns a mesh with the axis "data" over the first `num_devices` devices (0: all).

  Raises:
    ValueError: if there are fewer, or for a negative number.
  """
  devices = jax.devices()
  if not 0 <= num_devices <= len(devices):
    raise ValueError(
      f"{num_devices} devices asked for, {len(devices)} found: set --config.num_devices to 0 (all)"
      f" ... {len(devices)}"
    )
  devices = devices[: num_devices or len(devices)]
  return jax.make_mesh((len(devices),), ("data",), (AxisType.Auto,), devices=devices)


def check_batch(mesh: Mesh, batch_size: int, accumulate: int = 1) -> None:
  """Raises ValueError unless the batch splits evenly over devices and accumulated parts."""
  parts = mesh.size * accumulate
  if batch_size <= 0 or batch_size % parts:
    raise ValueError(
      f"a batch of {batch_size} does not divide over {mesh.size} devices"
      + (f" times {accumulate} accumulated parts" if accumulate > 1 else "")
      + f": set --config.batch_size to a multiple of {parts}"
    )


def replicated(mesh: Mesh) -> NamedSharding:
  """Every device holds all of it."""
  return NamedSharding(mesh, PartitionSpec())


def batched(mesh: Mesh, axis: int = 0) -> NamedSharding:
  """The given axis is split over the devices."""
  return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def over(mesh: Mesh) -> contextlib.AbstractContextManager:
  """Names the mesh that `core.shard` splits batches over, while a function is traced."""
  return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def of_state(mesh: Mesh, shapes: Any, *, split_above: float = 2**31) -> Any:
  """Returns a sharding for every array of a state.

  A small state is replicated. One of more than `split_above` bytes is split over the devices, each
  array along its largest axis that divides evenly; the compiler then gathers parameters as they are
  used and scatters gradients.

  Args:
    mesh: from `make_mesh`.
    shapes: pytree of shapes.
    split_above: bytes.
  """
  size = sum(np.prod(s.shape) * s.dtype.itemsize for s in jax.tree.leaves(shapes))

  def one(s):
    axes = [a for a, n in enumerate(s.shape) if n % mesh.size == 0 and n >= mesh.size > 1]
    if size <= split_above or not axes:
      return replicated(mesh)
    return batched(mesh, max(axes, key=lambda a: s.shape[a]))

  return jax.tree.map(one, shapes)


def put(tree: Any, sharding: NamedSharding) -> Any:
  """Places this process's NumPy rows on the devices as one global array."""
  if jax.process_count() == 1:
    return jax.device_put(tree, sharding)
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)
