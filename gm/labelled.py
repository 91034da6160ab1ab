"""A few labelled images out of many: a stage that picks them, and those whose turn it is."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gm import core


def stage(num: int, num_classes: int) -> core.Stage:
  """Returns a stage without steps whose state keeps the first images of every class.

  Of a class that has too few, or is rarer than half of its even share, some come twice.

  Args:
    num: how many are labelled, a multiple of num_classes.
    num_classes: there are.

  Returns:
    The stage; `extra` of its state has image [num, H, W, C] and label [num], the classes in turn.
  """

  def init(key, batch, prev):
    def first(c):  # the places of class c; its first one again where there are too few
      here = batch["label"] == c
      return jnp.nonzero(here, size=num // num_classes, fill_value=here.argmax())[0]

    rows = jnp.stack([first(c) for c in range(num_classes)], axis=1).ravel()  # 0 1 2 .. 0 1 ..
    known = {name: batch[name][rows] for name in ("image", "label")}
    return core.State(step=jnp.zeros((), jnp.int32), params={}, opt={}, extra=known)

  def step(state, batch, key):
    return state.replace(step=state.step + 1), {}

  def sample(state, batch, key):
    return turn(state.extra, 0, len(batch["image"]))

  return core.Stage("labels", 0, init, step, sample, data={"batch_size": max(1_024, 2 * num)})


def turn(known: dict, i: int | jax.Array, size: int) -> dict:
  """Returns batch i of the labelled examples, which come one after the other, again and again.

  >>> turn({"label": jnp.array([4, 5, 6])}, 1, 2)["label"].tolist()
  [6, 4]
  """
  rows = (i * size + jnp.arange(size)) % len(known["label"])
  return {name: x[rows] for name, x in known.items()}
