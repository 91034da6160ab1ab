"""Images of two domains, "a" and "b": the same scenes in pairs, or some of each, unpaired.

config.data: source="domains", paired, image_size, channels, num_train (of each domain), and name:

  digits  scikit-learn's digits and, as b, the same inverted; image_size 0 = 8, larger is padded
  maps    satellite pictures and shaded relief of the same coasts (maps.py); image_size 0 = 64, less
          is resized by area; dir as of `prepared`
  folder  images of your own, of any sizes, cropped and resized as those of `folder`; channels and
          image_size (int or (height, width)) must be given; memory_mb as there. Below dir lie

    trainA/ trainB/ testA/ testB/   in any case, also train_a and so on; val as `folder` has it
    A/ B/                           split by the hash of a file's name, as in `folder`
    train/ test/, or files alone    with paired=True: both images side by side in each file, a left

With paired=True a batch has the same scenes in both, in folders the files of equal names, whatever
their endings. Else both are drawn independently, an epoch is one of the larger domain, and of the
built-in sets a has every second scene and b the others, so that there is no pair to learn from;
neighbouring maps overlap, so a place may be in both, a window never.
Test splits of the built-in sets are pairs always.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from gm.core import Info, Source
from gm.data import folder, images, installed, maps, memory, prepare, prepared, stream

NAMES = ("digits", "folder", "maps")
LEAVES = ("a", "b")
_FOLDER = re.compile(r"(?P<role>[a-z]*)[ _-]?(?P<leaf>[ab])", re.IGNORECASE)


def _paired(cfg: Any) -> bool:
  paired = cfg.get("paired", False)
  if not isinstance(paired, bool):
    raise ValueError(f"--config.data.paired={paired!r} is not known: set it to True or False")
  return paired


def reads(cfg: Any) -> frozenset[str]:
  """Returns the keys of `cfg` that this source reads."""
  more = {"folder": {"dir", "memory_mb"}, "maps": {"dir"}}.get(cfg["name"], set())
  return frozenset({"name", "paired", "image_size", "channels", "num_train"} | more)


def info(cfg: Any) -> Info:
  """Returns the shapes under `cfg`; reads nothing.

  Raises:
    ValueError: for an unknown name, size or number of channels.

  >>> info({"name": "digits", "image_size": 16}).shape
  {'a': (16, 16, 1), 'b': (16, 16, 1)}
  """
  name = cfg["name"]
  memory.require(name, NAMES, what="set of two domains", flag="--config.data.name")
  aligned = _paired(cfg) or name != "folder"
  if name == "folder":
    size = cfg.get("image_size", 0), cfg.get("channels", 0)
    declared = {"image_size": size[0], "channels": size[1], "num_classes": 0}
    shape = images.declared(declared, "domains").shape["image"]
  else:
    native = (maps.SIDE, maps.SIDE, 3) if name == "maps" else (8, 8, 1)
    shape = images.shape(cfg, native)
  if name == "maps" and max(shape[:2]) > maps.SIDE:
    raise ValueError(
      f"maps has {maps.SIDE} x {maps.SIDE} pixels: set --config.data.image_size to at most"
      f" {maps.SIDE}, it is {cfg['image_size']!r}"
    )
  return Info(dict.fromkeys(LEAVES, shape), aligned=aligned)


def decoder(channels: int, *, levels: float = 255.0) -> Callable[[dict], dict]:
  """Returns decode(rows): a and b as `images.decoder` does it; jnp-traceable.

  >>> decoder(1)({n: np.zeros((1, 1, 1, 1), np.uint8) for n in "ab"})["b"].ravel().tolist()
  [-1.0]
  """
  one = images.decoder(channels, levels=levels)
  return lambda rows: {leaf: one({"image": rows[leaf]})["image"] for leaf in LEAVES}


def apart(facts: Info, a: Source, b: Source, decode: Callable) -> Source:
  """Returns the Source of two sets, each read in its own order; the smaller one more often.

  Args:
    facts: of both.
    a: with leaf "image".
    b: with leaf "image".
    decode: rows {"a", "b"} -> Batch.

  >>> one = lambda seed: memory.from_arrays(Info({}), {"image": np.arange(9)}, None, seed=seed)
  >>> rows = apart(Info({}), one(0), one(1), None).batch(0, 9)
  >>> (rows["a"] == rows["b"]).all().item(), (np.sort(rows["a"]) == np.sort(rows["b"])).all().item()
  (False, True)
  """

  def batch(i: int, size: int) -> dict[str, np.ndarray]:
    return {leaf: of.batch(i, size)["image"] for leaf, of in zip(LEAVES, (a, b))}

  def indices(i: int, size: int) -> dict[str, np.ndarray]:
    return {leaf: of.indices(i, size) for leaf, of in zip(LEAVES, (a, b))}

  held = a.arrays is not None and b.arrays is not None
  return Source(
    facts,
    max(a.num_examples, b.num_examples),
    batch,
    decode,
    {"a": a.arrays["image"], "b": b.arrays["image"]} if held else None,
    indices if held else None,
  )


def load(
  cfg: Any, split: str, *, seed: int = 0, shuffle: bool = True, part: tuple[int, int] = (0, 1)
) -> Source:
  """Loads a split; leaves a and b uint8 [N, H, W, C].

  Args:
    cfg: config.data.
    split: "train" or "test".
    seed: order of the rows; that of b is another's.
    shuffle: False reads them in their one constant order, a permutation; domains of one size then
      in the same.
    part: (process index, number of processes).

  Returns:
    Source; origin of a folder as `folder` gives it.

  Raises:
    FileNotFoundError: if a folder or a split has no images, or an image has no counterpart.
    ValueError: for an unknown name or split, missing keys, or a file that cannot be read.
    RuntimeError: if the maps cannot be prepared or read; the message says what to do.
  """
  facts = info(cfg)
  memory.require_split(split)
  seeds = {"a": seed, "b": (seed + 1) % 2**32}
  order = lambda leaf="a": {"seed": seeds[leaf], "shuffle": shuffle, "part": part}
  height, width, channels = shape = facts.shape["a"]
  if cfg["name"] == "folder":
    return _of_folder(cfg, split, facts, order)
  if cfg["name"] == "maps":
    pairs = prepared.read(prepare.ensure("maps", cfg.get("dir", "")), "maps", split)
    pairs, levels = {leaf: images.fit(x, height, width) for leaf, x in pairs.items()}, 255
  else:
    like = {"name": "digits", "image_size": shape[:2], "channels": channels}
    image = installed.load(like, split, shuffle=False).arrays["image"]
    pairs, levels = {"a": image, "b": installed.LEVELS - image}, installed.LEVELS
  kept = memory.rows(cfg, split, len(pairs["a"]))
  pairs, decode = {leaf: x[kept] for leaf, x in pairs.items()}, decoder(channels, levels=levels)
  if _paired(cfg) or split == "test":
    return memory.from_arrays(facts, pairs, decode, **order())
  some = {leaf: {"image": x[i::2]} for i, (leaf, x) in enumerate(sorted(pairs.items()))}
  each = (memory.from_arrays(facts, some[leaf], decode, **order(leaf)) for leaf in LEAVES)
  return apart(facts, *each, decode)


# ------------------------------------------------------------------------- images of the user's own


def _names(top: pathlib.Path) -> dict[tuple[str, str], str]:
  """Returns the folders of the domains in `top`: {(role, leaf): name}; a role may be ""."""
  found = {}
  for name in sorted(p.name for p in top.iterdir() if p.is_dir()):
    match = _FOLDER.fullmatch(name)
    role = match and folder.ROLES.get(match["role"].lower(), "" if not match["role"] else None)
    if role is None:
      continue
    key = role, match["leaf"].lower()
    if key in found:
      raise ValueError(
        f"{top} has {found[key]}/ and {name}/ for one split: keep one of them in --config.data.dir"
      )
    found[key] = name
  return found


def _files(top: pathlib.Path, split: str) -> dict[str, list[folder.File]] | None:
  """Returns the files of a split by domain, or None where there are no folders of domains.

  Raises:
    FileNotFoundError: if there are some and one is missing.
  """
  names = _names(top)
  if {("", "a"), ("", "b")} <= set(names):
    every = {leaf: folder.files_of(top / names["", leaf]) for leaf in LEAVES}
    test = split == "test"
    return {n: [f for f in x if folder.in_test(_stem(f)) == test] for n, x in every.items()}
  if not any(role for role, _ in names):
    return None
  held_out = "test" if any(role == "test" for role, _ in names) else "val"
  for role, leaf in [(r, n) for r in ("train", held_out) for n in LEAVES]:
    if (role, leaf) not in names:
      have = "/, ".join(sorted(names.values()))
      missing = f"{'test' if role == 'val' else role}{leaf.upper()}"
      raise FileNotFoundError(
        f"{top} has {have}/ and no {missing}/: add it, or change --config.data.dir"
      )
  role = held_out if split == "test" else split
  return {leaf: folder.files_of(top / names[role, leaf]) for leaf in LEAVES}


def _stem(file: folder.File) -> str:
  return os.path.splitext(file.name)[0]


def _matched(files: dict[str, list[folder.File]]) -> list[tuple[folder.File, folder.File]]:
  """Returns the pairs of files of equal names.

  Raises:
    FileNotFoundError: for the first without a counterpart.
  """
  by_name = {leaf: {_stem(f): f for f in found} for leaf, found in files.items()}
  for leaf, other in (LEAVES, LEAVES[::-1]):
    for name, file in by_name[leaf].items():
      if name not in by_name[other]:
        raise FileNotFoundError(
          f"{file.path} has no counterpart of that name among the images of {other}: add it, or set"
          " --config.data.paired=False"
        )
  return [(file, by_name["b"][name]) for name, file in by_name["a"].items()]


def _listed(top: pathlib.Path, splits: dict[str, dict[str, list[folder.File]]]) -> dict[str, Any]:
  """Returns the facts on where files came from."""
  digest, counts = hashlib.sha256(), {}
  for split, files in splits.items():
    for leaf, found in files.items():
      counts[f"{split}_{leaf}"] = len(found)
      for f in found:
        digest.update(folder.as_bytes(f"{split}/{leaf}/{f.name}\0{f.size}\0"))
  name = folder.printable(os.path.abspath(top))
  return {"name": name, "files": counts, "listing": digest.hexdigest()[:16]}


def _of_folder(cfg: Any, split: str, facts: Info, order: Callable) -> Source:
  if not cfg.get("dir"):
    raise ValueError("the set 'folder' needs a folder: set --config.data.dir")
  top, shape, paired = pathlib.Path(cfg["dir"]).expanduser(), facts.shape["a"], _paired(cfg)
  if not top.is_dir():
    raise FileNotFoundError(f"{top} is not a folder: set --config.data.dir to the folder of images")
  splits, decode = {s: _files(top, s) for s in memory.SPLITS}, decoder(shape[2])
  memory_mb = cfg.get("memory_mb", stream.MEMORY_MB)
  side_by_side = splits["train"] is None
  if side_by_side:
    if not paired:
      raise FileNotFoundError(
        f"{top} has no trainA/, trainB/, testA/ and testB/, nor A/ and B/: add them; or, if each"
        " file has both images side by side, set --config.data.paired=True"
      )
    found, origin = folder.splits_of(top)
    pairs = found[split]
  else:
    origin = _listed(top, splits)
    empty = [leaf for leaf, files in splits[split].items() if not files]
    pairs = _matched(splits[split]) if paired and not empty else []
  if not (pairs if paired else not empty):
    raise FileNotFoundError(
      f"{top} has no images of both domains for split {split!r} (found {origin['files']}): add"
      " images, or change --config.data.dir"
    )

  def chosen(rows: list) -> list:
    return [rows[i] for i in memory.rows(cfg, split, len(rows))]

  def halves(file: folder.File) -> dict[str, np.ndarray]:
    return dict(zip(LEAVES, images.read_halves(file.path, *shape)))

  def both(pair: tuple) -> dict[str, np.ndarray]:
    return {leaf: images.read(f.path, *shape) for leaf, f in zip(LEAVES, pair)}

  def one(file: folder.File) -> dict[str, np.ndarray]:
    return {"image": images.read(file.path, *shape)}

  if paired:
    read = halves if side_by_side else both
    how = {"memory_mb": memory_mb, **order()}
    return stream.from_reader(facts, chosen(pairs), read, decode, **how)._replace(origin=origin)
  how = {leaf: {"memory_mb": memory_mb / 2, **order(leaf)} for leaf in LEAVES}
  each = (
    stream.from_reader(facts, chosen(splits[split][leaf]), one, decode, **how[leaf])
    for leaf in LEAVES
  )
  return apart(facts, *each, decode)._replace(origin=origin)
