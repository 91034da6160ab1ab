"""A TFDS set that the user has prepared as array_record, read without TensorFlow.

config.data: source="tfds"; either dir = the folder that holds dataset_info.json, or dir = the
data_dir above it and name = "set", "set/config" or "set:version"; image_size (int or (height,
width)), channels (1 or 3), num_classes (0 = labels are not read), image_key ("image"), label_key
("label"), train_split ("train"), test_split ("test") in TFDS notation, so that a set without a test
split is cut by train_split="train[:90%]", test_split="train[90%:]"; memory_mb (256: a larger set is
streamed); text_key = a feature that is a text or several, with the keys of text.py: an example for
each; attributes = names in a feature "attributes" of truth values, such as CelebA's, which become
the columns of the leaf "attributes". Images are resized by the short side and cropped to the centre
(images.crop). What is stored as an image file is decoded as a folder's files are; TFDS alone would
give the raw indices of palettes, and CMYK as it is.

A label below 0, which TFDS takes for "none", or above the last class is an error that names the
example: where the set is opened, or where it is read if it is streamed.

A set is prepared by  builder.download_and_prepare(file_format="array_record").
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from gm.core import Info, Source
from gm.data import images, memory, stream, text


def reads(cfg: Any) -> frozenset[str]:
  """Returns the keys of `cfg` that this source reads."""
  of_set = frozenset({"name", "dir", "image_key", "label_key", "train_split", "test_split"})
  of_images = {"image_size", "channels", "num_classes", "num_train", "memory_mb", "attributes"}
  return of_set | of_images | text.reads(cfg)


def info(cfg: Any) -> Info:
  """Returns the shapes that `cfg` declares; touches no file.

  Raises:
    ValueError: if image_size, channels or num_classes is missing, or text is not as in text.py.

  >>> info({"image_size": 64, "channels": 3, "num_classes": 0}).shape
  {'image': (64, 64, 3)}
  """
  facts = text.declared(cfg, images.declared(cfg, "tfds"))
  names = cfg.get("attributes", ())
  if not names:
    return facts
  names = (names,) if isinstance(names, str) else tuple(names)
  if len(set(names)) < len(names):
    raise ValueError(f"--config.data.attributes={names} names one more than once")
  shape = {**facts.shape, "attributes": (len(names),)}
  return facts._replace(shape=shape, columns=names)


def _builder(cfg: Any) -> Any:
  """Returns the builder of a prepared set."""
  import tensorflow_datasets as tfds

  name, folder = cfg.get("name"), cfg.get("dir")
  if folder and (pathlib.Path(folder).expanduser() / "dataset_info.json").is_file():
    return tfds.builder_from_directory(pathlib.Path(folder).expanduser())
  if not name:
    raise ValueError(
      f"no dataset_info.json in {folder!r} and no name: set --config.data.dir to the folder that "
      "holds it, or --config.data.name to the set below --config.data.dir"
    )
  try:
    at = {"data_dir": pathlib.Path(folder).expanduser()} if folder else {}
    builder = tfds.builder(name, file_format="array_record", **at)
  except (tfds.core.DatasetNotFoundError, ValueError, AssertionError) as error:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise FileNotFoundError(
      f"no TFDS set {name!r} below {folder or 'the TFDS default folder'!r} ({reason}): "
      "set --config.data.name and --config.data.dir, or prepare it with file_format='array_record'"
    ) from error
  return builder


def _overlap(builder: Any, a: str, b: str) -> bool:
  """Returns whether two splits in TFDS notation share a record."""

  def pieces(spec: str) -> list[tuple[str, int, int]]:
    instructions = builder.info.splits[spec].file_instructions
    # take is -1 for a shard's whole rest
    return [
      (i.filename, i.skip, i.skip + i.take if i.take >= 0 else i.examples_in_shard)
      for i in instructions
    ]

  return any(
    f == g and start < end and begin < stop
    for f, start, stop in pieces(a)
    for g, begin, end in pieces(b)
  )


def _num_examples(builder: Any, spec: str, flag: str) -> int:
  """Returns the length of a split in TFDS notation.

  Raises:
    ValueError: if the notation is not TFDS's, or if there is no example in it. Of a slice that ends
      before it begins TFDS may give rows all the same.
  """
  from tensorflow_datasets.core import ReadInstruction

  name = builder.info.full_name
  try:
    num = builder.info.splits[spec].num_examples
    parts = ReadInstruction.from_spec(spec).to_absolute(builder.info.splits)
    if any(None not in (part.from_, part.to) and part.from_ >= part.to for part in parts):
      num = 0
  except (ValueError, AssertionError) as error:
    raise ValueError(f"{flag}={spec!r} of {name}: {' '.join(str(error).split())}") from error
  if num < 1:
    sizes = {split: facts.num_examples for split, facts in builder.info.splits.items()}
    raise ValueError(f"{flag}={spec!r} of {name} holds no example (of {sizes}): set another slice")
  return num


def _label(value: Any, num_classes: int, where: str) -> np.int32:
  """Returns a label that is one of the classes.

  Raises:
    ValueError: for anything else; the message says `where` it stands.
  """
  x = np.asarray(value)
  if x.shape or x.dtype.kind not in "iub":
    raise ValueError(
      f"the label of {where} is {x.dtype} {x.shape}, no whole number: set --config.data.label_key, "
      "or --config.data.num_classes=0"
    )
  if not 0 <= x < num_classes:
    raise ValueError(
      f"the label of {where} is {x}, not one of 0 ... {num_classes - 1}: choose a split that has "
      "labels (--config.data.train_split, test_split), or set --config.data.num_classes=0"
    )
  return np.int32(x)


def _require_attributes(facts_of_set: Any, names: tuple[str, ...]) -> None:
  """Raises ValueError unless the feature "attributes" has all of these names."""
  features = facts_of_set.features
  known = list(getattr(features["attributes"], "keys", tuple)()) if "attributes" in features else []
  if unknown := [name for name in names if name not in known]:
    raise ValueError(
      f"{facts_of_set.full_name} has no attribute {unknown[0]!r}, it has"
      f" {', '.join(sorted(known)) or 'none'}: set --config.data.attributes"
    )


def _truths(values: Any, names: tuple[str, ...], where: str) -> np.ndarray:
  """Returns attributes as uint8 0 and 1; raises ValueError for anything but truth values."""
  found = [np.asarray(values[name]) for name in names]
  for name, x in zip(names, found, strict=True):
    if x.shape or x not in (0, 1):
      raise ValueError(
        f"attribute {name!r} of {where} is {x!r}, no truth value: leave it out of"
        " --config.data.attributes"
      )
  return np.array(found).astype(np.uint8)


def _captions(
  builder: Any, key: str, spec: str, decoders: dict
) -> list[tuple[int, tuple[str, str]]]:
  """Returns (example, (caption, where it stands)) of a split, in order.

  Raises:
    ValueError: if an example has none, or the feature is no text.
  """
  found = []
  for i, example in enumerate(builder.as_data_source(split=spec, decoders=decoders)):
    where = f"example {i} of {spec} in {builder.info.full_name}"
    several = example[key] if isinstance(example[key], list | np.ndarray) else [example[key]]
    kinds = [isinstance(x, bytes | str) for x in several]
    if key in decoders or not kinds or not all(kinds):  # an image that is not decoded is bytes too
      raise ValueError(
        f"{where} has no text in {key!r}: set --config.data.text_key to a feature that is a text,"
        " or to ''"
      )
    said = [x.decode("utf-8", "replace") if isinstance(x, bytes) else x for x in several]
    found += [(i, (x, f"the text of {where}")) for x in said]
  return found


def load(
  cfg: Any, split: str, *, seed: int = 0, shuffle: bool = True, part: tuple[int, int] = (0, 1)
) -> Source:
  """Loads a split; rows image uint8 [H, W, C] and, with classes, label i32, with text tokens i32.

  Args:
    cfg: config.data.
    split: "train" or "test".
    seed: order of the rows.
    shuffle: False reads them in their one constant order, a permutation.
    part: (process index, number of processes).

  Returns:
    Source; origin has the full name of the set with its version ("name"), its size on disk in
    bytes, the splits and the number of examples in each.

  Raises:
    FileNotFoundError: if no such set is prepared.
    ValueError: for missing keys, features or splits, splits that overlap or are empty, images that
      are not uint8, or labels that are none of the classes.
  """
  from tensorflow_datasets import decode, features

  facts = info(cfg)
  memory.require_split(split)
  builder = _builder(cfg)
  facts_of_set = builder.info
  specs = {s: cfg.get(f"{s}_split", s) for s in memory.SPLITS}
  known = {s for s, spec in specs.items() if spec.split("[")[0] in facts_of_set.splits}
  if split not in known and facts_of_set.splits:  # a set that is not prepared has none at all
    raise ValueError(
      f"{facts_of_set.full_name} has no split {specs[split]!r}, it has "
      f"{sorted(facts_of_set.splits)}: set --config.data.{split}_split, e.g. to 'train[:90%]' for "
      "train and 'train[90%:]' for test"
    )
  num = {s: _num_examples(builder, specs[s], f"--config.data.{s}_split") for s in sorted(known)}
  if len(known) == 2 and _overlap(builder, specs["train"], specs["test"]):
    raise ValueError(
      f"the splits {specs} overlap: set --config.data.train_split and --config.data.test_split "
      "to separate slices"
    )
  keys = {"image": cfg.get("image_key") or "image"}
  if facts.num_classes:
    keys["label"] = cfg.get("label_key") or "label"
  if "tokens" in facts.shape:
    keys["text"] = cfg["text_key"]
  _require_attributes(facts_of_set, facts.columns)
  for what, key in keys.items():
    if key not in facts_of_set.features:
      raise ValueError(
        f"{facts_of_set.full_name} has no feature {key!r}, it has {sorted(facts_of_set.features)}: "
        f"set --config.data.{what}_key" + (", or num_classes=0" if what == "label" else "")
      )
  classes = ()
  if facts.num_classes:
    feature = facts_of_set.features[keys["label"]]
    count = getattr(feature, "num_classes", facts.num_classes)
    if count != facts.num_classes:
      raise ValueError(
        f"{facts_of_set.full_name} has {count} classes: set --config.data.num_classes={count}, "
        f"it is {facts.num_classes}"
      )
    classes = tuple(getattr(feature, "names", None) or ())
  # the file's bytes of every image, of those too that are not asked for: to decode takes time
  files = {k for k, kind in facts_of_set.features.items() if isinstance(kind, features.Image)}
  decoders = {k: decode.SkipDecoding() for k in files}
  kind = facts_of_set.features[keys["image"]].np_dtype
  if keys["image"] in files and kind not in (np.uint8, np.uint16):
    raise ValueError(
      f"feature {keys['image']!r} of {facts_of_set.full_name} is {np.dtype(kind)}: "
      "set --config.data.image_key to a uint8 image [H, W, C]"
    )
  try:
    examples = builder.as_data_source(split=specs[split], decoders=decoders)
  except (RuntimeError, FileNotFoundError, AssertionError, KeyError) as error:
    raise FileNotFoundError(
      f"{facts_of_set.full_name} cannot be read as array_record "
      f"({' '.join(str(error).split())}): prepare it with file_format='array_record', or set "
      "--config.data.dir to the folder where it is prepared"
    ) from error
  height, width, channels = facts.shape["image"]
  rows, tokenizer, digest = [(i, {}) for i in range(len(examples))], "", {}
  if "text" in keys:
    told = {s: _captions(builder, keys["text"], specs[s], decoders) for s in num}
    flat = [caption for captions in told.values() for _, caption in captions]
    tokens, tokenizer = text.of_set(flat, cfg)
    digest["captions"] = text.digest(caption for caption, _ in flat)
    start = 0 if split == next(iter(told)) else len(flat) - len(told[split])
    own = zip(told[split], tokens[start : start + len(told[split])], strict=True)
    rows = [(i, {"tokens": row}) for (i, _), row in own]

  def read(row: tuple[int, dict]) -> dict[str, np.ndarray]:
    from PIL import Image

    i, label = row[0], dict(row[1])
    example, where = examples[i], f"example {i} of {specs[split]} in {facts_of_set.full_name}"
    if facts.columns:
      label["attributes"] = _truths(example["attributes"], facts.columns, where)
    if "label" in keys:
      label["label"] = _label(example[keys["label"]], facts.num_classes, where)
    if keys["image"] in files:
      x = images.read(example[keys["image"]], height, width, channels, name=where)
      return {"image": x, **label}
    x = np.asarray(example[keys["image"]])
    if x.dtype != np.uint8 or x.ndim not in (2, 3):
      raise ValueError(
        f"feature {keys['image']!r} of {facts_of_set.full_name} is {x.dtype} {x.shape}: "
        "set --config.data.image_key to a uint8 image [H, W, C]"
      )
    image = Image.fromarray(x[..., 0] if x.ndim == 3 and x.shape[-1] == 1 else x)
    return {"image": images.crop(image, height, width, channels), **label}

  def decoded(rows: dict) -> dict:
    told = {n: rows[n].astype(np.float32) for n in ("attributes",) if n in rows}
    return {**images.decoder(channels)(rows), **told}

  source = stream.from_reader(
    facts,
    [rows[i] for i in memory.rows(cfg, split, len(rows))],
    read,
    decoded,
    memory_mb=cfg.get("memory_mb", stream.MEMORY_MB),
    seed=seed,
    shuffle=shuffle,
    part=part,
  )
  origin = {
    "name": facts_of_set.full_name,
    "bytes": int(facts_of_set.dataset_size),
    "splits": {s: specs[s] for s in num},
    "examples": num,
    **digest,
  }
  return source._replace(classes=classes, tokenizer=tokenizer, origin=origin)
