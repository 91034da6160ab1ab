"""Columns of attributes: which of them rule each other out, and what it means to change one.

Names are those of Info.columns. Columns of one attribute, such as hair_color=black and
hair_color=red, are its values: one of them is chosen, and the others are then 0. Any other column,
such as glasses!=none, is turned over. Of CelebA's names those that cannot go together are known.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

# of CelebA, from AttGAN's code (LynnHo/AttGAN-Tensorflow, commit f1231fc)
VALUES = dict.fromkeys(("Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair"), "hair_color")
OPPOSED = ({"Bald", "Bangs"}, {"Receding_Hairline", "Bangs"}, {"Straight_Hair", "Wavy_Hair"})


def alternatives(names: Sequence[str]) -> np.ndarray:
  """Returns bool [A, A]: whether column j is another value of the attribute of column i.

  >>> alternatives(("hair=red", "glasses!=none", "hair=black")).astype(int).tolist()
  [[0, 0, 1], [0, 0, 0], [1, 0, 0]]
  """
  of = np.array([VALUES.get(n, n.partition("=")[0].removesuffix("!")) for n in names])
  return (of[:, None] == of) & ~np.eye(len(names), dtype=bool)


def rivals(names: Sequence[str]) -> np.ndarray:
  """Returns bool [A, A]: whether column j is 0 where column i is 1.

  >>> rivals(("Bald", "Bangs", "Black_Hair", "Blond_Hair")).astype(int)[[0, 2]].tolist()
  [[0, 1, 0, 0], [0, 0, 0, 1]]
  """
  opposed = np.array([[{a, b} in OPPOSED for b in names] for a in names])
  return alternatives(names) | opposed


def change(labels: jax.Array, column: jax.Array, names: Sequence[str]) -> jax.Array:
  """Labels after one column of each row is changed: a value chosen, any other column turned over.

  Args:
    labels: of 0 and 1, [B, A].
    column: which one, i32 [B].
    names: of the columns.

  Returns:
    [B, A]; the rivals of what is 1 now are 0.

  Source: as the code of Choi et al., 2018, arXiv:1711.09020, makes the pictures of the paper.

  >>> labels, names = jnp.array([[1.0, 0.0, 1.0]] * 2), ("hair=red", "hair=black", "Young")
  >>> change(labels, jnp.array([1, 2]), names).tolist()
  [[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]]
  """
  chosen = jnp.asarray(alternatives(names).any(1))[column][:, None]
  picked = jax.nn.one_hot(column, len(names)) > 0
  after = jnp.where(picked, jnp.where(chosen, 1.0, 1.0 - labels), labels)
  on = jnp.any(picked & (after > 0.5), axis=1, keepdims=True)
  return jnp.where(on & jnp.asarray(rivals(names))[column], 0.0, after)


def require(found: Sequence[str], what: str) -> None:
  """Raises ValueError if there are no columns."""
  if not found:
    raise ValueError(
      f"{what} changes attributes, and these data have none: set --config.data.attributes, as in"
      " \"('hair_color=black','glasses!=none')\" for --config.data.name=avatars or, for TFDS's"
      " celeb_a, \"('Male','Young')\""
    )
