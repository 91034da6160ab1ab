"""Saves the states of a stage as its training goes on, in the background."""

from __future__ import annotations

import contextlib
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping

import jax
from ml_collections import ConfigDict

from gm import core
from gm.errors import UserError, sentence
from gm.workdir import checkpoint, files


class Saver:
  """Saves states of one stage in the background; orbax is imported at the first of them."""

  def __init__(
    self, folder: pathlib.Path, config: ConfigDict, last: int, facts: Mapping | None = None
  ):
    self.folder, self.config, self.facts, self.manager = folder, config, facts, None
    self.last = last  # newest step that has been saved; -1: none
    self.scores = {}  # step -> config.best_metric, the greater the better

  def rate(self, step: int, metrics: Mapping[str, float]) -> None:
    """Notes the metrics of a step, by which the best checkpoint is chosen; NaN is none.

    Raises:
      UserError: if config.best_metric is none of them.
    """
    sign, name = self.config.best_metric[:1], self.config.best_metric[1:]
    if name and name not in metrics:
      raise UserError(
        f"--config.best_metric={sign}{name} is none of the evaluation's metrics:"
        f" {', '.join(sorted(metrics))}"
      )
    if name and not math.isnan(metrics[name]):
      self.scores[step] = -metrics[name] if sign == "-" else metrics[name]

  def save(self, state: core.State) -> None:
    """Saves a state under its step; raises UserError if it cannot be written."""
    with _writing(self.folder):
      if self.manager is None:
        keep = self.config.keep_checkpoints
        self.manager = checkpoint.open_manager(self.folder, keep=keep, scores=self.scores)
        for step in self.manager.all_steps():
          if step > self.last:  # it was skipped, and what comes now takes its place
            self.manager.delete(step)
      checkpoint.save(self.manager, state, self.facts)
    self.last = int(state.step)

  @contextlib.contextmanager
  def rescuing(self, state: Callable[[], core.State]) -> Iterator[None]:
    """Whatever goes wrong inside, what is being saved is saved to its end.

    The state is saved too if the fault is the input's or the disk's, such as a damaged file that is
    met on the way. Where that fails as well, the first error is still the one that is told.

    Args:
      state: returns the state, or raises an error where it is not worth keeping.
    """
    try:
      yield
    except Exception as error:
      lasting = isinstance(error, UserError | OSError)
      if jax.process_count() == 1:  # others would have to save with it
        with contextlib.suppress(Exception):
          if lasting:
            self.save(state())
        with contextlib.suppress(Exception):
          self.close()
      if isinstance(error, OSError):
        raise UserError(sentence(error)) from error
      raise

  def close(self) -> None:
    """Waits until all is on disk."""
    manager, self.manager = self.manager, None
    if manager is not None:
      with _writing(self.folder):
        manager.close()


@contextlib.contextmanager
def _writing(folder: pathlib.Path) -> Iterator[None]:
  """Turns what orbax and TensorStore say of a disk into a UserError of one line."""
  try:
    yield
  except (ValueError, KeyError, OSError, ImportError, RuntimeError) as error:
    try:
      with files.explained(folder):
        raise files.fault(str(error)) or error
    except Exception as told:
      raise UserError(sentence(told)) from error
