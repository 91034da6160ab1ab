"""Several processes of one job: how they find one another, and how one ends when another has.

jax ends a process whose partner is gone by abort(), after pages of its own. Here both end in a line
with status 1: what its library writes goes through `_Errors`, and abort() calls `_aborted`.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
import threading
import time
from typing import NoReturn

from gm import interrupt

EXAMPLE = "JAX_COORDINATOR_ADDRESS=10.0.0.1:1234 JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=0"
VARIABLES = {
  "JAX_COORDINATOR_ADDRESS": "the host and a free port of process 0, as 10.0.0.1:1234",
  "JAX_NUM_PROCESSES": "the number of processes, 1 or more",
  "JAX_PROCESS_ID": "the number of this process, from 0 to JAX_NUM_PROCESSES - 1",
}
HEARTBEAT = 60  # seconds after which a process that is not heard of counts as gone
PATIENCE = 5.0  # seconds until a process says what it waits for
LOST = re.compile(r"Gloo|NCCL|coordination|[Hh]eartbeat|UNAVAILABLE|DEADLINE_EXCEEDED|Barrier")
_DUMP = re.compile(r"coordination_service|distributed service|RegisterTask")

_job: Job | None = None  # that this process belongs to


class Job:
  """What is known of the other processes while this one lives."""

  def __init__(self, wait: int, show: bool):
    """Reads the environment.

    Args:
      wait: seconds in which the others must have started.
      show: let pass what the library writes when it gives up.

    Raises:
      ValueError: for a variable that cannot be; the message has its name.
    """
    self.wait, self.show, self.connected = wait, show, threading.Event()
    self.address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    self.num, self.number = _number("JAX_NUM_PROCESSES", 1), _number("JAX_PROCESS_ID", 0)
    if self.address is not None:
      port = re.fullmatch(r".+:(\d{1,5})", self.address)
      if not port or not 0 < int(port[1]) < 2**16:
        _wrong("JAX_COORDINATOR_ADDRESS")
    if None not in (self.num, self.number) and self.number >= self.num:
      _wrong("JAX_PROCESS_ID")

  def connect(self) -> None:
    """Waits for the others, says so, and gives up in the end.

    Raises:
      ValueError: if the variables are not all there and no cluster is found that has set others.
    """
    import jax

    threading.Thread(target=self._be_patient, daemon=True).start()
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
    try:
      jax.distributed.initialize(
        num_processes=self.num,
        process_id=self.number,
        initialization_timeout=self.wait + 60,  # later than we do
        heartbeat_timeout_seconds=HEARTBEAT,
      )
    except (ValueError, TypeError) as error:
      missing = [name for name in VARIABLES if name not in os.environ]
      if not missing:
        raise
      what = "; ".join(f"{name} is not set, {VARIABLES[name]}" for name in missing)
      raise ValueError(f"--distributed: {what} (for example {EXAMPLE})") from error
    self.connected.set()

  def waits_for(self) -> str:
    """The others, in words."""
    if self.number:
      return f"process 0 of this job at {self.address} (JAX_COORDINATOR_ADDRESS)"
    others = f"all {self.num} processes" if self.num else "all processes"
    return f"{others} of this job to start (JAX_NUM_PROCESSES), as process 0 at {self.address}"

  def lost(self) -> NoReturn:
    """Ends this process, because another has ended."""
    if not self.connected.is_set():
      interrupt.leave(f"error: waited in vain for {self.waits_for()}", 1)
    interrupt.leave(
      "error: another process of this job has ended, or cannot be reached any more; the same"
      " command in all of them resumes from the last checkpoint",
      1,
    )

  def _be_patient(self) -> None:
    if self.connected.wait(min(PATIENCE, self.wait)):
      return
    if self.wait > PATIENCE:
      print(f"waiting up to {self.wait} s for {self.waits_for()}", flush=True)
    if not self.connected.wait(self.wait - PATIENCE):
      self.lost()


def join(wait: int, show: bool) -> None:
  """Makes this process one of a job, as the environment says; see `Job`."""
  global _job
  _job = Job(wait, show)
  if not show:
    _Errors(_job)
  _job.connect()


def give_up(error: Exception, said: str, status: int) -> None:
  """Ends a process of a job after an error, without waiting for the others.

  Args:
    error: what went wrong; it may be that another process has ended.
    said: the line about it.
    status: to end with.
  """
  if _job is None or not _job.connected.is_set():
    return
  if LOST.search(str(error)):
    _job.lost()
  interrupt.leave(f"error: {' '.join(said.split())}", status)


def decided(here: bool) -> bool:
  """What process 0 says, in all of them."""
  import jax
  import numpy as np
  from jax.experimental import multihost_utils

  if jax.process_count() == 1:
    return here
  return bool(multihost_utils.broadcast_one_to_all(np.bool_(here)))


def _number(name: str, least: int) -> int | None:
  """The number that the launcher may have set; clusters that jax knows need none."""
  value = os.environ.get(name)
  if value is None:
    return None
  if not re.fullmatch(r"\d{1,9}", value) or int(value) < least:
    _wrong(name)
  return int(value)


def _wrong(name: str) -> NoReturn:
  raise ValueError(f"{name}={os.environ[name]} is not possible: give {VARIABLES[name]}")


class _Errors:
  """What C code writes to the error output: passed on, but for why it gives up."""

  def __init__(self, job: Job):
    self.job, self.held, true = job, [], os.dup(2)
    receive, send = os.pipe()
    os.dup2(send, 2)
    os.close(send)
    interrupt.ERRORS = true
    sys.stderr = open(true, "w", buffering=1, closefd=False)  # noqa: SIM115, until the end
    threading.Thread(target=self._pass_on, args=(receive, true), daemon=True).start()
    self.handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._aborted)  # kept from being collected
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    libc.signal(signal.SIGABRT, ctypes.cast(self.handler, ctypes.c_void_p))

  def _pass_on(self, receive: int, true: int) -> None:
    rest = b""
    while data := os.read(receive, 2**16):
      *lines, rest = (rest + data).split(b"\n")
      for line in lines:
        if self.held or _DUMP.search(line.decode(errors="replace")):
          self.held.append(line)
        else:
          os.write(true, line + b"\n")

  def _aborted(self, signum: int) -> None:
    """Is called by abort(), in the thread that gives up."""
    time.sleep(0.3)  # until the last words of the library have been read
    if self.held:
      self.job.lost()
    interrupt.leave("error: a library has aborted this process", 128 + signum)
