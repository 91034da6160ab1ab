"""Cartoon faces drawn from parts: every attribute is known, and every counterfactual can be drawn.

The parts are those of python-avatars 1.4.1 (MIT; after Pablo Stanley's avataaars), drawn by
resvg-py 0.5.0 (MIT). A face is the row of its ten attributes, one number each, and nothing else:

  row = draw(1, seed=0)[0]
  face, blond = render(row), render(edit(row, hair_color="blonde"))

Left out of VALUES are parts that would make a label meaningless: hair that hides the beard or the
glasses, has a colour of its own or looks like another; glasses that hide the eyes; clothes without
a colour. So every attribute can be seen in every face, but for the colour of the hair where there
is neither hair nor beard (1 face in 88).

A caption (`describe`) calls values by words that anybody would use, so that several values share a
word. What it does not name is not there, the colour of the clothes aside.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import io
from collections.abc import Iterator, Sequence

import numpy as np

PACKAGES = {"python-avatars": "1.4.1", "resvg-py": "0.5.0"}
SIDE = 64
VALUES = {  # names of python-avatars; "none" is an empty part
  "skin": ("tanned", "yellow", "pale", "light", "brown", "dark_brown", "black"),
  "hair_color": (
    *("auburn", "black", "blonde", "blonde_golden", "brown", "brown_dark", "pastel_pink"),
    *("platinum", "red", "silver_gray"),
  ),
  "hair": (
    *("none", "big_hair", "bob", "bun", "caesar", "curly", "curvy", "dreads", "frida", "frizzle"),
    *("fro_band", "fro", "long_not_too_long", "mia_wallace", "shaggy_mullet", "shaggy"),
    *("short_curly", "short_dreads_1", "short_dreads_2", "short_flat", "short_round"),
    *("short_waved", "sides", "straight_1", "straight_strand", "braids", "bride", "buzzcut"),
    *("cornrows", "dreadlocks", "einstein_hair", "elvis", "evil_spike", "half_shaved", "hat"),
    *("mohawk", "mowgli", "pixie", "pompadour", "quiff", "twist_long_hair"),
    *("twist_long_hair_2", "wick", "wild"),
  ),
  "facial_hair": (
    *("none", "beard_light", "beard_magestic", "beard_medium", "moustache_fancy"),
    *("moustache_magnum", "einstein_moustache", "wick_beard"),
  ),
  "mouth": (
    *("concerned", "default", "disbelief", "eating", "grimace", "sad", "scream_open", "serious"),
    *("smile", "tongue", "twinkle", "vomit", "big_smile"),
  ),
  "eyes": (
    *("closed", "cry", "default", "eye_roll", "happy", "heart", "side", "squint", "surprised"),
    *("wink_wacky", "wink", "x_dizzy"),
  ),
  "brows": (
    *("none", "angry_natural", "angry", "default_natural", "default", "flat_natural"),
    *("frown_natural", "raised_excited_natural", "raised_excited", "sad_concerned_natural"),
    *("sad_concerned", "unibrow_natural", "up_down_natural", "up_down"),
  ),
  "glasses": (
    *("none", "eyepatch", "prescription_1", "prescription_2", "round", "sunglasses", "wayfarers"),
    *("sunglasses_2", "wayfarers_2"),
  ),
  "clothes": (
    *("blazer_shirt", "blazer_sweater", "collar_sweater", "graphic_shirt", "hoodie", "overall"),
    *("shirt_crew_neck", "shirt_scoop_neck", "shirt_v_neck", "bond_suit", "chef", "gladiator"),
    *("jedi_robe", "shirt_wick"),
  ),
  "clothes_color": (
    *("black", "blue_01", "blue_02", "blue_03", "gray_01", "gray_02", "heather", "pastel_blue"),
    *("pastel_green", "pastel_orange", "pastel_yellow", "pink", "red", "white"),
  ),
}
NAMES = tuple(VALUES)
HALF_NONE = ("facial_hair", "glasses")  # half of the faces are without; the rest is uniform
_PARTS = {  # attribute -> enumeration of python-avatars, arguments of its Avatar
  "skin": ("SkinColor", ("skin_color",)),
  "hair_color": ("HairColor", ("hair_color", "facial_hair_color")),
  "hair": ("HairType", ("top",)),
  "facial_hair": ("FacialHairType", ("facial_hair",)),
  "mouth": ("MouthType", ("mouth",)),
  "eyes": ("EyeType", ("eyes",)),
  "brows": ("EyebrowType", ("eyebrows",)),
  "glasses": ("AccessoryType", ("accessory",)),
  "clothes": ("ClothingType", ("clothing",)),
  "clothes_color": ("ClothingColor", ("clothing_color",)),
}


_LONG = (  # below the ears
  *("big_hair", "bob", "curly", "curvy", "dreads", "fro_band", "fro", "long_not_too_long"),
  *("mia_wallace", "shaggy_mullet", "straight_1", "straight_strand", "bride", "cornrows"),
  *("dreadlocks", "einstein_hair", "half_shaved", "twist_long_hair", "twist_long_hair_2", "wick"),
  "wild",
)
WORDS = {  # attribute -> word -> the values that it is said of
  "hair": {
    "no hair": ("none",),
    "a hat": ("hat",),
    "long": _LONG,
    "short": tuple(v for v in VALUES["hair"] if v not in ("none", "hat", *_LONG)),
  },
  "hair_color": {
    "auburn": ("auburn",),
    "black": ("black",),
    "blonde": ("blonde", "blonde_golden"),
    "brown": ("brown", "brown_dark"),
    "pink": ("pastel_pink",),
    "platinum": ("platinum",),
    "red": ("red",),
    "gray": ("silver_gray",),
  },
  "facial_hair": {
    "": ("none",),
    "a beard": ("beard_light", "beard_magestic", "beard_medium", "wick_beard"),
    "a moustache": ("moustache_fancy", "moustache_magnum", "einstein_moustache"),
  },
  "glasses": {
    "": ("none",),
    "glasses": ("prescription_1", "prescription_2", "round"),
    "sunglasses": ("sunglasses", "wayfarers", "sunglasses_2", "wayfarers_2"),
    "an eyepatch": ("eyepatch",),
  },
  "clothes_color": {
    "black": ("black",),
    "blue": ("blue_01", "blue_02", "blue_03", "pastel_blue"),
    "gray": ("gray_01", "gray_02", "heather"),
    "green": ("pastel_green",),
    "orange": ("pastel_orange",),
    "yellow": ("pastel_yellow",),
    "pink": ("pink",),
    "red": ("red",),
    "white": ("white",),
  },
}
HELD_OUT = 5  # one combination of what captions name in five


def draw(num: int, *, seed: int = 0) -> np.ndarray:
  """Draws the attributes of faces, independent of each other.

  Args:
    num: faces.
    seed: non-negative.

  Returns:
    uint8 [num, 10]: for each attribute of NAMES a position in its VALUES.

  >>> draw(3).shape
  (3, 10)
  """
  rng = np.random.default_rng(seed)
  columns = []
  for name, values in VALUES.items():
    column = rng.integers(len(values), size=num)
    if name in HALF_NONE:  # values.index("none") is 0
      column = np.where(rng.random(num) < 0.5, 0, rng.integers(1, len(values), size=num))
    columns.append(column)
  return np.stack(columns, 1).astype(np.uint8)


def edit(attributes: Sequence[int], **values: str) -> np.ndarray:
  """Returns the attributes of the same face with some of them changed.

  Args:
    attributes: [10].
    **values: attribute = value, both by name.

  Returns:
    uint8 [10].

  Raises:
    ValueError: for a name or a value that does not exist.

  >>> VALUES["glasses"][edit(draw(1)[0], glasses="round")[NAMES.index("glasses")]]
  'round'
  """
  row = np.array(attributes, np.uint8)
  for name, value in values.items():
    if value not in VALUES.get(name, ()):
      raise ValueError(
        f"no {name}={value} among faces: the attributes are {', '.join(NAMES)}, and the values of "
        f"{name} {', '.join(VALUES.get(name, ())) or 'none'}"
      )
    row[NAMES.index(name)] = VALUES[name].index(value)
  return row


def words(attributes: Sequence[int]) -> dict[str, str]:
  """Returns the word for each attribute that captions name, {"hair": "short", ...}; "": not there.

  The colour of hair has none where there is no hair, or a hat on it.
  """
  found = {}
  for name, named in WORDS.items():
    value = VALUES[name][attributes[NAMES.index(name)]]
    found[name] = next(word for word, values in named.items() if value in values)
  return found if found["hair"] in ("long", "short") else {**found, "hair_color": ""}


SAID = tuple((name, tuple(filter(None, named))) for name, named in WORDS.items())


def said(attributes: Sequence[int]) -> list[int]:
  """Returns the number of the word in SAID that the caption has for each attribute.

  Of beard and glasses that are not there it is the number after the last word; -1: the caption says
  nothing of it, neither that it is there nor that it is not.
  """
  found, numbers = words(attributes), []
  for name, named in SAID:
    told = name != "clothes_color" or _names_clothes(attributes)
    absent = len(named) if name in HALF_NONE else -1
    numbers.append(-1 if not told else named.index(found[name]) if found[name] else absent)
  return numbers


def _names_clothes(attributes: Sequence[int]) -> bool:
  return sum(map(int, attributes)) % 2 == 1


def _body(found: dict[str, str]) -> str:
  hair = f"{found['hair']} {found['hair_color']} hair" if found["hair_color"] else found["hair"]
  *rest, last = filter(None, (hair, found["facial_hair"], found["glasses"]))
  return f"a person with {', '.join(rest)} and {last}" if rest else f"a person with {last}"


def describe(attributes: Sequence[int]) -> str:
  """Says in a line what a face looks like; of half of the faces also the colour of the clothes.

  Which half is told by the parity of the row's sum, so a caption is a function of the row.

  >>> describe(edit([0] * 10, hair="bob", hair_color="red", glasses="round"))
  'a person with long red hair and glasses'
  >>> describe(edit([0] * 10, hair="bob", hair_color="red", glasses="round", eyes="cry"))
  'a person with long red hair and glasses, wearing black'
  """
  found = words(attributes)
  wearing = f", wearing {found['clothes_color']}" if _names_clothes(attributes) else ""
  return _body(found) + wearing


def is_held_out(attributes: Sequence[int]) -> bool:
  """Whether the combination of hair, its colour, beard and glasses is kept for testing.

  It is if the first 8 bytes of the SHA-256 of the caption without clothes are 0 modulo 5. So a
  method has seen every word of a held-out caption, and never these words together.

  >>> bool(is_held_out(draw(1)[0]))
  False
  """
  digest = hashlib.sha256(_body(words(attributes)).encode()).digest()
  return int.from_bytes(digest[:8]) % HELD_OUT == 0


def render(attributes: Sequence[int], *, size: int = SIDE) -> np.ndarray:
  """Draws one face on white, about 9 ms at 64 pixels.

  Args:
    attributes: [10], as `draw` returns them.
    size: height and width in pixels.

  Returns:
    uint8 [size, size, 3].

  Raises:
    ModuleNotFoundError: unless the two packages are there in the pinned versions.
  """
  from PIL import Image

  require_packages()
  import python_avatars
  import resvg_py

  parts = {
    "style": python_avatars.AvatarStyle.TRANSPARENT,
    "nose": python_avatars.NoseType.DEFAULT,
    "shirt_graphic": python_avatars.ClothingGraphic.SKULL,
  }
  for name, i in zip(NAMES, attributes, strict=True):
    kind, arguments = _PARTS[name]
    part = getattr(python_avatars, kind)[VALUES[name][i].upper()]
    parts |= dict.fromkeys(arguments, part)
  face = python_avatars.Avatar(**parts).render()  # 264 x 280, here in the middle of a square
  square = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-8 0 280 280">{face}</svg>'
  png = resvg_py.svg_to_bytes(
    svg_string=square, width=size, height=size, background="#ffffff", skip_system_fonts=True
  )
  return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def examples(attributes: np.ndarray) -> Iterator[dict]:
  """Draws a face for each row.

  Args:
    attributes: uint8 [N, 10].

  Yields:
    {"image": uint8 [64, 64, 3], "attributes": uint8 [10]}.
  """
  for row in attributes:
    yield {"image": render(row), "attributes": row}


@functools.cache
def require_packages() -> None:
  """Raises ModuleNotFoundError unless the packages are there in the pinned versions.

  Another version may have other parts, and then the labels would not be those of the pictures.
  """
  found = {}
  for name in PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[name] = "none"
  if found != PACKAGES:
    pins = " ".join(f"{name}=={version}" for name, version in PACKAGES.items())
    have = ", ".join(f"{name} {version}" for name, version in found.items())
    raise ModuleNotFoundError(f"faces are drawn with {pins}, found {have}: pip install {pins}")
