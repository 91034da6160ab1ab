"""Sets that are fetched or drawn once and kept as TFDS array_record; sets.py has their table.

mnist: 60,000 training and 10,000 test digits, 28 x 28 grey, in the original order.

avatars: 9,000 training and 1,000 test faces, 64 x 64 RGB on white, each described by ten attributes
(avatars.py); avatars_COUNT and avatars_COUNT_SEED are other ones, the last tenth for testing.

photos: 189 training and 55 test tiles of photographs, 96 x 96 RGB (photos.py).

config.data: source="prepared", name, dir ("" = the user's cache folder), image_size (0 = native;
larger is padded with background, smaller is resized by area), channels (0 = native; 3 repeats the
grey). Of avatars also attributes (columns of the leaf "attributes", see attributes.py; none by
default; with them the leaf "drawn" has the whole row that a face was drawn of), label_key (the
attribute that is the label; none by default) and text_key="caption" with the keys of text.py. With
captions, the test split is made of the faces with combinations that are held out
(avatars.is_held_out), whatever split they are stored in, and the training split of the others; the
leaf "said" has the truth of each caption (avatars.said). The first run that asks for a set prepares
it.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from gm.core import Info, Source
from gm.data import attributes, avatars, images, memory, prepare, sets, text


def reads(cfg: Any) -> frozenset[str]:
  """Returns the keys of `cfg` that this source reads."""
  described = bool(sets.require(cfg["name"]).attributes)
  of_images = frozenset({"name", "dir", "image_size", "channels", "num_train"})
  return of_images | ({"attributes", "label_key", *text.reads(cfg)} if described else set())


def info(cfg: Any) -> Info:
  """Returns the shapes under `cfg`; fetches and reads nothing.

  Raises:
    ValueError: for an unknown name, size, number of channels or attribute.

  >>> info({"name": "mnist", "image_size": 14}).shape
  {'image': (14, 14, 1), 'label': ()}
  >>> info({"name": "avatars", "attributes": ("skin", "glasses!=none")}).shape
  {'image': (64, 64, 3), 'attributes': (8,), 'drawn': (10,)}
  """
  spec = sets.require(cfg["name"])
  if "image" not in spec.shape:
    raise ValueError(f"{cfg['name']!r} has two domains: set --config.data.source=domains")
  shape = {"image": images.shape(cfg, spec.shape["image"])}
  if not spec.attributes:
    return Info({**spec.shape, **shape}, num_classes=spec.num_classes)
  columns, num_classes = attributes.columns(cfg.get("attributes", ()), spec.attributes), 0
  if key := cfg.get("label_key", ""):
    attributes.position(key, spec.attributes)
    shape["label"], num_classes = (), len(spec.attributes[key])
  if columns:
    shape |= {"attributes": (len(columns),), "drawn": spec.shape["attributes"]}
  facts = text.declared(cfg, Info(shape, num_classes=num_classes, columns=columns), "caption")
  if "tokens" not in facts.shape:
    return facts
  return facts._replace(shape={**facts.shape, "said": (len(avatars.SAID),)}, said=avatars.SAID)


def read(folder: pathlib.Path, name: str, split: str) -> dict[str, np.ndarray]:
  """Returns the leaves of a split, from the arrays kept beside the records where they are there."""
  spec = sets.require(name)
  count = spec.num_examples[split]
  try:
    arrays = {
      leaf: np.load(prepare.array_file(folder, split, leaf), allow_pickle=False)
      for leaf in spec.shape
    }
    if all(a.shape == (count, *spec.shape[leaf]) for leaf, a in arrays.items()):
      return arrays
  except (OSError, ValueError, EOFError):  # removed or damaged: the records are the set
    pass
  import tensorflow_datasets as tfds

  try:
    records = tfds.builder_from_directory(folder).as_data_source(split=split)
    if len(records) != count:
      raise ValueError(f"{len(records)} records in {split}, expected {count}")
    arrays = {leaf: np.empty((count, *shape), np.uint8) for leaf, shape in spec.shape.items()}
    for start in range(0, count, 1_000):
      rows = records.__getitems__(range(start, min(start + 1_000, count)))
      for leaf, a in arrays.items():
        a[start : start + len(rows)] = [row[leaf] for row in rows]
  except Exception as error:  # TFDS and array_record raise many types on damaged files
    raise RuntimeError(
      f"the set {name!r} in {folder} cannot be read ({' '.join(str(error).split())}): "
      f"remove that folder and run python -m gm.data.prepare {name} --dir {folder.parent.parent}"
    ) from error
  return arrays


def _captioned(cfg: Any, folder: pathlib.Path, split: str) -> tuple[dict[str, np.ndarray], str]:
  """Returns the leaves of a split by combinations, tokens among them, and the tokenizer."""
  both = [read(folder, cfg["name"], s) for s in memory.SPLITS]
  arrays = {name: np.concatenate([a[name] for a in both]) for name in both[0]}
  captions = [avatars.describe(row) for row in arrays["attributes"]]
  named = [(caption, f"the caption {caption!r}") for caption in captions]
  arrays["tokens"], tokenizer = text.of_set(named, cfg)
  arrays["said"] = np.array([avatars.said(row) for row in arrays["attributes"]], np.int32)
  held_out = np.array([avatars.is_held_out(row) for row in arrays["attributes"]])
  kept = held_out == (split == "test")
  if not kept.any():
    raise ValueError(
      f"no combination that captions name is in the {split} split of {cfg['name']}: set a"
      " --config.data.name with more faces"
    )
  return {name: a[kept] for name, a in arrays.items()}, tokenizer


def _with_attributes(decode: Callable, encode: Callable) -> Callable:
  def both(rows):
    import jax.numpy as jnp

    drawn = jnp.asarray(rows["attributes"], jnp.int32)
    return {**decode(rows), "attributes": encode(drawn), "drawn": drawn}

  return both


def load(
  cfg: Any, split: str, *, seed: int = 0, shuffle: bool = True, part: tuple[int, int] = (0, 1)
) -> Source:
  """Loads a split, preparing the set where it is missing.

  Leaves: image uint8 [N, H, W, C], label uint8 [N] and, of a set that has them, attributes uint8
  [N, K], all of them as stored; `decode` picks the columns that are asked for. Where captions are
  asked for, tokens i32 [N, T].

  Args:
    cfg: config.data.
    split: "train" or "test".
    seed: order of the rows.
    shuffle: False reads them in their one constant order, a permutation.
    part: (process index, number of processes).

  Raises:
    ValueError: for an unknown name, split or attribute.
    RuntimeError: if the set cannot be prepared or read; the message says what to do.
  """
  facts = info(cfg)
  memory.require_split(split)
  folder, tokenizer = prepare.ensure(cfg["name"], cfg.get("dir", "")), ""
  if "tokens" in facts.shape:
    arrays, tokenizer = _captioned(cfg, folder, split)
  else:
    arrays = read(folder, cfg["name"], split)
  rows = memory.rows(cfg, split, len(arrays["image"]))
  arrays = {name: a[rows] for name, a in arrays.items()}
  height, width, channels = facts.shape["image"]
  spec = sets.require(cfg["name"])
  arrays["image"] = images.fit(arrays["image"], height, width, background=spec.background)
  decode, classes = images.decoder(channels), spec.classes
  if spec.attributes:
    if "label" in facts.shape:
      classes = tuple(spec.attributes[cfg["label_key"]])
      arrays["label"] = arrays["attributes"][
        :, attributes.position(cfg["label_key"], spec.attributes)
      ]
    if facts.columns:
      decode = _with_attributes(decode, attributes.encoder(facts.columns, spec.attributes))
  source = memory.from_arrays(facts, arrays, decode, seed=seed, shuffle=shuffle, part=part)
  return source._replace(classes=classes, tokenizer=tokenizer)
