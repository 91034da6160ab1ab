"""Attributes of images: from a value per attribute to the columns that a method is given.

A set stores a row of values per image, such as hair_color = black. config.data.attributes picks
what a batch holds as "attributes", f32 [B, A] of zeros and ones, the form of CelebA's labels:

  "hair_color"              a column for each value: one-hot
  "hair_color=black"        one column
  "mouth=smile|big_smile"   one column: any of them
  "glasses!=none"           one column: any but these

Info.columns has their names in this notation. What stands before "=" or "!=" is the attribute, so
columns of one attribute, such as hair colours, can be told from independent ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np


def columns(wanted: Sequence[str], values: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
  """Returns a name per column.

  Args:
    wanted: config.data.attributes.
    values: attribute -> names of its values.

  Returns:
    The names, a bare attribute written out into its values.

  Raises:
    ValueError: for an attribute or a value that the set does not have, or a column named twice.

  >>> columns(("size", "hat!=none"), {"size": ("s", "l"), "hat": ("none", "cap")})
  ('size=s', 'size=l', 'hat!=none')
  """
  found = []
  for text in (wanted,) if isinstance(wanted, str) else wanted:
    name, members = parse(text, values)
    found += [f"{name}={value}" for value in values[name]] if members is None else [text]
  if len(set(found)) < len(found):
    twice = sorted({name for name in found if found.count(name) > 1})
    raise ValueError(f"--config.data.attributes names {', '.join(twice)} more than once")
  return tuple(found)


def position(name: str, values: Mapping[str, Sequence[str]]) -> int:
  """Returns the place of an attribute in a stored row.

  Raises:
    ValueError: for an attribute that the set does not have.

  >>> position("hat", {"size": ("s", "l"), "hat": ("none", "cap")})
  1
  """
  if name not in values:
    raise ValueError(
      f"no attribute {name!r}: set --config.data.label_key to one of {', '.join(values)}, or to ''"
    )
  return list(values).index(name)


def encoder(names: Sequence[str], values: Mapping[str, Sequence[str]]) -> Callable:
  """Returns encode(stored rows uint8 [B, K]) -> f32 [B, len(names)] of 0 and 1; jnp-traceable.

  Args:
    names: as `columns` returns them.
    values: attribute -> names of its values.

  >>> encode = encoder(("size=l", "hat!=none"), {"size": ("s", "l"), "hat": ("none", "cap")})
  >>> encode(np.array([[0, 0], [1, 1]], np.uint8)).tolist()
  [[0.0, 0.0], [1.0, 1.0]]
  """
  table = np.zeros((len(names), max(map(len, values.values()))), np.float32)
  where = np.zeros(len(names), np.int32)
  for i, text in enumerate(names):
    name, members = parse(text, values)
    where[i] = position(name, values)
    table[i, : len(values[name])] = [value in members for value in values[name]]

  def encode(rows):
    import jax.numpy as jnp

    stored = jnp.asarray(rows, jnp.int32)[:, where]  # [B, A]
    return jnp.asarray(table)[jnp.arange(len(names)), stored]

  return encode


def parse(text: str, values: Mapping[str, Sequence[str]]) -> tuple[str, set | None]:
  """Returns (attribute, the values that make the column 1; None for all columns of it).

  >>> parse("hat!=none", {"size": ("s", "l"), "hat": ("none", "cap")})
  ('hat', {'cap'})
  """
  name, sign, listed = text.partition("=")
  negated = bool(sign) and name.endswith("!")
  name = name[:-1] if negated else name
  if name not in values:
    raise ValueError(
      f"no attribute {name!r} in {text!r}: set --config.data.attributes to names of "
      f"{', '.join(values)}, each alone or with =VALUE or !=VALUE"
    )
  if not sign:
    return name, None
  members = set(listed.split("|"))
  if members - set(values[name]):
    raise ValueError(
      f"no {name} {', '.join(sorted(members - set(values[name])))!r} in {text!r}: "
      f"--config.data.attributes takes {name}= with {', '.join(values[name])}"
    )
  return name, set(values[name]) - members if negated else members
