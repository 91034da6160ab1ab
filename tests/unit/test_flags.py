"""Every key of every config, given nonsense: each ends in one line that names its flag."""

import functools
import importlib
import io
import math

import jax
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from test_data_images import encoded, write_set

from gm import checks, core, errors, flags, inspection, job, sharding
from gm.data import points, sets
from gm.nn import conv

METHODS = sorted(p.stem for p in (ROOT / "gm/methods").glob("*.py") if p.stem != "__init__")

WRONG = {  # of any key with a value of this type
  int: (-2, 2**32, 10**12, 10**400),
  float: (math.nan, math.inf, -math.inf, 1e39, 1e308, -1e308),
  str: ("nosuch",),
  tuple: ((-1,), (10**12,), ("nosuch",), ("",), (None,), (math.nan,), ((1, 2), 3), (True,)),
}
EDGE = {int: (0, -1), float: (0.0, -1.0, 1.0), str: ("",), tuple: ((),), bool: ()}  # of some keys
MINUS_ONE = {"model.decay_from", "model.sample_label", "model.g_bias", "model.ada_target"}
MINUS_ONE |= {"data.mean"}
# files, folders, features and splits of a set, and other runs: only looking for them can tell
FREE = {"data.dir", "data.image_key", "data.label_key", "data.train_split", "data.test_split"}
FREE |= {"init_from", "model.features_file"}


def config_of(name, variant="test", **changes):
  config = importlib.import_module(f"configs.{name}").get_config(variant)
  return changed(config, changes)


def changed(config, changes):
  config = config.copy_and_resolve_references()
  with config.ignore_type():
    config.update_from_flattened_dict(changes)
  return config


def kind(value):
  return next(t for t in (bool, int, float, str, tuple) if isinstance(value, t))


def keys_of(config, section):
  inside, head = (config[section], f"{section}.") if section else (config, "")
  return {head + k: v for k, v in inside.items() if section or k not in ("data", "model")}


def refusal(config, key, or_key=None):
  """The line that refuses a config before anything is traced, or None."""
  try:
    job.plan(config)
  except ValueError as error:  # no KeyError, TypeError, ...: these are for programmers
    text = str(error)
    named = f"--config.{key}" in text or f"--config.{or_key or key}" in text
    assert named and "\n" not in text, text
    return text
  return None


def free_of(config):
  of_source = {
    "folder": {"data.name"},
    "tiles": {"data.name"},
    "tfds": {"data.name", "data.text_key", "data.attributes"},
  }
  return FREE | of_source.get(config.data.source, set())


@pytest.mark.parametrize("name", METHODS)
def test_nonsense_is_refused_before_anything_is_traced(name):
  """In every variant; an edge such as 0 is refused by its flag too, or taken."""
  for variant in importlib.import_module(f"configs.{name}").VARIANTS:
    config = config_of(name, variant)
    keys = [key for section in ("", "data", "model") for key in keys_of(config, section).items()]
    with config.ignore_type():
      for key, value in keys:
        if key in free_of(config):
          continue
        for wrong in (*WRONG.get(kind(value), ()), *EDGE[kind(value)]):
          config.update_from_flattened_dict({key: wrong})
          refused = refusal(config, key, or_key="batch_size" if key == "num_devices" else None)
          assert refused or wrong in EDGE[kind(value)], f"{variant}: {key}={wrong!r} is taken"
        config.update_from_flattened_dict({key: value})


@pytest.mark.parametrize("name", METHODS)
def test_an_edge_is_refused_or_works(name):
  """0, -1 and empty tuples: `least` and `empty` must say what the networks can do."""
  config = config_of(name)
  for key, value in {**keys_of(config, ""), **keys_of(config, "model")}.items():
    for edge in EDGE[kind(value)]:
      new = changed(config, {key: edge})
      if edge == value or key in free_of(config) or refusal(new, key):
        continue
      assert edge in ((), "") or edge >= 0 or key in MINUS_ONE, f"{key}={edge} is taken"
      if key.startswith("model.") and isinstance(edge, int | tuple):  # others change no shape
        try:
          with conv.form("plain"):
            job.prepare(new)
        except errors.UserError as error:
          assert f"--config.{key}" in str(error), error


@pytest.mark.parametrize("size", ["20x36", 1.5, math.nan, -1, 10**12, (), (1,), (8, -1), (True, 8)])
def test_a_size_of_images_that_is_none(size):
  assert refusal(config_of("gan", **{"data.image_size": size}), "data.image_size")


NAMED = [  # each was another recipe without a word, or an error that named no flag
  ("gan", {"model.optimizer": "rmsprop"}, r"model\.optimizer='rmsprop' .* adam, sgd"),
  ("gan", {"model.noise": "unit"}, r"model\.noise='unit' .* normal, uniform"),
  ("gan", {"model.loss": "hinge"}, r"model\.loss='hinge' .* nonsaturating, minimax"),
  ("gan", {"model.g_bias_from_data": True}, r"model\.g_bias_from_data=False .*g_output=sigmoid"),
  ("gan", {"accumulate": 0}, r"--config\.accumulate=0 .* at least 1"),
  ("gan", {"model.pack": 3}, r"--config\.model\.pack or --config\.batch_size"),
  ("gan", {"num_steps": -1}, r"--config\.num_steps=-1 .* at least 0"),
  ("gan", {"best_metric": "frechet"}, r"best_metric='frechet' has no direction"),
  ("gan", {"best_metric": "-frechet"}, r"never measured: set --config\.eval_every"),
  ("gan", {"metrics": ("digits.nosuch",)}, r"--config\.metrics names 'digits\.nosuch'"),
  ("gan", {"metrics": ("digits._images",)}, r"names 'digits\._images'.* digits\.scores, .*\(\)"),
  ("gan", {"metrics": ("digits.classify",)}, r"--config\.metrics names 'digits\.classify'"),
  (
    "gan",
    {"data.source": "stream"},
    r"data\.source='stream' .* embedded, folder, installed, picture, points",
  ),
  ("gan", {"method": "__init__"}, r"--config\.method='__init__' is not known; there are aae, "),
  ("gan", {"keep_checkpoints": 0}, r"--config\.keep_checkpoints=0 .* at least 1"),
  (
    "gan",
    {"data.attributes": ("hair",)},
    r"--config\.data\.attributes=.* is not read by .*embedded",
  ),
  ("sampling", {"num_steps": 5}, r"--config\.num_steps=5: nothing is trained"),
  ("gan", {"num_devices": -1}, r"-1 devices .*--config\.num_devices"),
  ("gan", {"cpu_devices": 10**6}, r"--config\.cpu_devices=1000000"),
  ("gan", {"method": "vae"}, r"--config\.model\.eval_k is missing: .*--config\.method"),
  ("vae", {"model.schedule": "constant"}, r"model\.schedule='constant' .* cosine, burda"),
  ("infogan", {"model.nets": "mlp", "data.source": "points", "data.name": "ring"}, "augment"),
  ("wgan", {"model.d_norm": "batch"}, r"--config\.model\.d_norm to none.*lipschitz=clip"),
  ("aae", {"model.rate_ends": (20, 10)}, r"--config\.model\.rate_ends=\(20, 10\)"),
  ("progan", {"model.start": 0}, r"--config\.model\.start=0"),
  ("dcgan", {"data.source": "points", "data.name": "ring"}, r"--config\.data\.source"),
  ("sampling", {"data.name": "correlated", "data.mean": (0.0, math.nan)}, r"--config\.data\.mean"),
]


@pytest.mark.parametrize("name, changes, message", NAMED)
def test_what_is_not_possible_says_what_is(name, changes, message):
  if name == "infogan":
    changes = {**changes, "model.augment": "color"}
  with pytest.raises(ValueError, match=message):
    job.plan(config_of(name, **changes))


@pytest.mark.parametrize("name", [n for n in METHODS if "augment" in config_of(n).model])
def test_augmentations_are_of_images_and_known(name):
  assert "'nosuch'" in refusal(
    config_of(name, **{"model.augment": "color,nosuch"}), "model.augment"
  )
  variants = importlib.import_module(f"configs.{name}").VARIANTS
  for variant in variants:
    config = config_of(name, variant, **{"model.augment": "color"})
    if config.data.source == "points":
      assert refusal(config, "model.augment"), variant


# ----------------------------------------------------------------------------- what does not fit


def test_what_is_larger_than_the_memory_names_the_largest_network(monkeypatch):
  config = config_of("gan", **{"model.g_widths": (2**20, 2**20), "model.g_norm": "none"})
  with pytest.raises(
    errors.UserError, match=r"the state, in which g has 1,1\d\d,\d{3},\d{3},\d{3} pa"
  ):
    job.prepare(config)
  assert inspection.run(config)["stages"][0]["params"]["g"] > 2**40  # on paper all is well
  monkeypatch.setattr(checks, "_memory", lambda: 10**9)
  job.prepare(config_of("gan"))
  with pytest.raises(
    errors.UserError, match=r"1,048,576 examples .* 3\.3 GB .*--config\.batch_size"
  ):
    job.prepare(config_of("gan", batch_size=2**20))


def test_a_state_counts_where_it_lies(monkeypatch):
  """Replicated once for each device, split once in all; devices of a CPU share its memory."""
  assert 2**28 < checks._memory() < 2**50
  mesh = sharding.make_mesh(2)
  stage = core.Stage("train", 1, None, None, None)
  one = jax.ShapeDtypeStruct((1000, 1000), "float32")
  batch = {"x": jax.ShapeDtypeStruct((2,), "float32", sharding=sharding.batched(mesh))}
  for where, num_bytes in (
    (sharding.replicated(mesh), 8_000_008),
    (sharding.batched(mesh), 4e6 + 8),
  ):
    params = {"g": jax.ShapeDtypeStruct(one.shape, one.dtype, sharding=where)}
    check = functools.partial(checks.memory, mesh, stage, core.State((), params, {}), batch)
    monkeypatch.setattr(checks, "_memory", lambda n=num_bytes: n)
    check()
    monkeypatch.setattr(checks, "_memory", lambda n=num_bytes: n - 1)
    with pytest.raises(ValueError, match="stage train: the state, in which g has 1,000,000"):
      check()


# --- what the checks say


def test_choice_names_the_flag_and_what_is_known():
  assert flags.choice({"loss": "bce"}, "loss", ("bce", "hinge")) == "bce"
  with pytest.raises(ValueError, match=r"--config\.model\.loss='bec'.*choose bce, hinge"):
    flags.choice({"loss": "bec"}, "loss", ("bce", "hinge"))
  with pytest.raises(ValueError, match=r"--config\.data\.loss='bec'"):
    flags.choice({"loss": "bec"}, "loss", ("bce",), section="data")


M = {"z": 3, "widths": (8, 1), "ema": 0.5, "none": (), "tiny": 1e-60, "one": 1 - 1e-12, "on": True}


@pytest.mark.parametrize(
  "keys, bounds, message",
  [
    (
      ["z"],
      {"least": 4},
      r"--config\.model\.z=3 .* a whole number at least 4 and at most 1,048,576",
    ),
    (["z"], {"least": 1, "most": 2}, "at least 1 and at most 2"),
    (["ema", "widths"], {"least": 2}, r"ema=0\.5 .* whole"),
    (["widths"], {"least": 2}, r"widths=\(8, 1\) .* one or more whole numbers, each at least 2"),
    (["widths"], {"least": 1, "length": 3}, "give 3 whole numbers"),
    (["none"], {"least": 1}, r"none=\(\)"),
    (["on"], {"least": 0}, "on=True"),
    (["ema"], {"above": 0.5}, "a finite number above 0.5"),
    (["ema"], {"below": 0.5}, "below 0.5"),
    (["tiny"], {"above": 0.0}, "tiny=1e-60"),  # 0 in float32
    (["one"], {"below": 1.0}, "one=0.99"),  # 1 in float32
    (["nosuch"], {}, r"--config\.model\.nosuch is missing"),
    (["z"], {"least": 4, "section": ""}, r"^--config\.z=3"),
  ],
)
def test_within_names_the_flag_and_the_bounds(keys, bounds, message):
  with pytest.raises(ValueError, match=message):
    flags.within(M, *keys, **bounds)


def test_within_lets_bounds_and_all_finite_numbers_pass():
  flags.within(M, "z", "widths", least=1, most=8)
  flags.within(M, "none", least=1, empty=True)
  flags.within(M, "widths", least=1, length=2)
  flags.within(M, "ema", "z", "widths", least=0.5, most=8.0)  # whole numbers are numbers
  flags.within(M, "ema", "one", "tiny")


def test_leaf_is_the_first_that_the_data_have():
  info = core.Info({"point": (2,), "label": ()})
  assert flags.leaf(info, "image", "point") == "point"
  with pytest.raises(
    ValueError, match=r"with image, these have point, label.*--config\.data\.source"
  ):
    flags.leaf(info, "image")


@pytest.mark.parametrize("name", ["dcgan", "wgan", "lsgan"])
def test_a_kernel_is_no_larger_than_the_image(name):
  for key in {"lsgan": ("g_kernel", "d_kernel")}.get(name, ("kernel",)):
    assert f"--config.model.{key}=29 " in refusal(
      config_of(name, **{f"model.{key}": 29}), f"model.{key}"
    )
    job.plan(config_of(name, **{f"model.{key}": 28}))


@pytest.mark.parametrize("name", ["cgan", "lsgan"])
def test_a_folder_without_labels_is_named_as_one(name):
  folder = {"data.source": "folder", "data.channels": 1, "data.image_size": 28}
  with pytest.raises(ValueError, match=r"folder has none here: set --config.data.num_classes"):
    job.plan(config_of(name, **folder))


# --- what a source does not read


SETS = {  # source -> a set
  "embedded": "mnist10k",
  "installed": "digits",
  "points": "ring",
  "prepared": "mnist",
  "domains": "digits",
  "folder": "mine",
  "tfds": "mine",
}
SET_TO = {"image_size": 16, "channels": 1, "num_train": 9, "memory_mb": 1, "scale": 2.0}
SET_TO |= {"attributes": ("hair_color",), "label_key": "hair_color"}


def test_the_common_config_asks_nothing_of_a_set():
  common = importlib.import_module("configs.common").base("none").data.to_dict()
  assert {k: v for k, v in common.items() if k not in ("source", "name")} == checks.IDLE


@pytest.mark.parametrize("source", SETS)
def test_what_a_source_does_not_read_is_refused(source):
  common = importlib.import_module("configs.common").base("none").data
  data = changed(common, {"source": source, "name": SETS[source]})
  reads = importlib.import_module(f"gm.data.{source}").reads(data)
  checks.unread(data, reads)
  assert reads - {"name"} <= set(checks.IDLE) | {"radius", "std", "num_modes"}
  for key, idle in checks.IDLE.items():
    other = changed(data, {key: SET_TO.get(key, 3 if isinstance(idle, int) else "other")})
    if key in reads:
      checks.unread(other, reads)
      continue
    with pytest.raises(ValueError, match=rf"^--config\.data\.{key}=.*source={source} .*set it to"):
      checks.unread(other, reads)


def test_what_another_law_reads_is_refused_too():
  assert refusal(config_of("gan", "ring", **{"data.name": "moons"}), "data") is None
  with pytest.raises(ValueError, match=r"data\.num_modes=5 is not read by .*'grid': take"):
    config = config_of("gan", "ring")
    with config.unlocked():
      config.data.num_modes, config.data.name = 5, "grid"
    job.plan(config)


class Watched(dict):
  """A config.data that knows which of its keys were read."""

  def __init__(self, *given):
    super().__init__(*given)
    self.seen = set()

  def __getitem__(self, key):
    self.seen.add(key)
    return super().__getitem__(key)

  def get(self, key, default=None):
    self.seen.add(key)
    return super().get(key, default)


@pytest.mark.parametrize(
  ("source", "name"),
  [("embedded", "mnist10k"), ("installed", "digits"), ("shapes", "shapes"), ("folder", "mine")]
  + [("domains", "digits")]
  + [("points", name) for name in points.NAMES]
  + [("tfds", "toy"), ("prepared", "mnist"), ("prepared", "avatars_10")],
)
def test_a_source_says_what_it_reads(source, name, tmp_path, monkeypatch):
  given = Watched({"source": source, "name": name})
  if source in ("folder", "tfds"):
    given |= {"image_size": 4, "channels": 1, "num_classes": 0}
  if source in ("folder", "tfds", "prepared"):
    given["dir"] = str(tmp_path)
  file = lambda: io.BytesIO(encoded(Image.new("L", (4, 4))))
  if source == "folder":
    for i in range(12):
      (tmp_path / f"{i}.png").write_bytes(file().read())
  if source == "tfds":
    given |= {"image_key": "photo", "num_classes": 2}
    rows = lambda: [{"photo": file(), "label": 0} for _ in range(2)]
    write_set(tmp_path, {"train": rows(), "test": rows()})
  if name == "mnist":  # drawn here in place of fetched
    row = {"image": np.zeros((28, 28, 1), np.uint8), "label": 0}
    drawn = {"package": "", "extract": lambda wheel: {"train": [row] * 2, "test": [row]}}
    small = sets.SETS["mnist"]._replace(**drawn, num_examples={"train": 2, "test": 1})
    monkeypatch.setitem(sets.SETS, "mnist", small)
  given.seen.clear()
  module = importlib.import_module(f"gm.data.{source}")
  module.info(given)
  module.load(given, "train").batch(0, 2)
  assert given.seen == module.reads(dict(given))
