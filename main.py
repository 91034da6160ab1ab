"""Trains, evaluates, samples and inspects every method of gm.

python main.py --config=configs/gan.py --workdir=/tmp/run
python main.py --config=configs/gan.py:paper --mode=inspect
python main.py --workdir=/tmp/run --mode=sample --seeds=0-35
"""

import os
import re
import sys
from types import ModuleType
from typing import NamedTuple

from gm import interrupt

if __name__ == "__main__":  # before the imports that take time
  interrupt.end_at_once()

# isort: split
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

# numpy's and scipy's threads for linear algebra wait asleep: awake they take a tenth of the start
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
FLAGS = flags.FLAGS
_CONFIG = config_flags.DEFINE_config_file(
  "config",
  None,
  "configs/NAME.py[:variant]; change keys with --config.KEY=VALUE.",
  lock_config=True,
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: created, or continued.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "eval", "sample", "inspect"], "What to do.")
_NUM_SAMPLES = flags.DEFINE_integer(
  "num_samples", 64, "With --mode=sample: the seeds 0 to N - 1.", lower_bound=1
)
_SEEDS = flags.DEFINE_string(
  "seeds", None, "With --mode=sample: 0-35 or 1,5,9; a seed's sample is always the same."
)
_LABELS = flags.DEFINE_list(
  "labels", None, "With --mode=sample: numbers or names; every seed for each."
)
_TRUNCATION = flags.DEFINE_float(
  "truncation", None, "With --mode=sample: in place of the config's, where the method has one."
)
_FORMAT = flags.DEFINE_enum(
  "format",
  None,
  ["grid", "files", "npz"],
  "With --mode=sample: a picture (what you get if not given), an image each, arrays.",
)
_WALK = flags.DEFINE_string(
  "walk", None, "With --mode=sample: 5,9,13; a film from seed to seed and back to the first."
)
_INPUT = flags.DEFINE_list(
  "input", None, "With --mode=sample: images that samples are made of, files or folders of them."
)
_COMPLETE = flags.DEFINE_list(
  "complete", None, "With --mode=sample: files of images whose lower half is made anew, each."
)
_TARGET = flags.DEFINE_string(
  "target", None, "With --mode=sample: the class, domain or attributes that samples shall have."
)
_STRENGTH = flags.DEFINE_list(
  "strength", None, "With --input: how far attributes are changed; several make a grid."
)
_PROMPT = flags.DEFINE_multi_string(
  "prompt", None, "With --mode=sample: a text that samples are made for; may be given again."
)
_PROMPTS = flags.DEFINE_string("prompts", None, "With --mode=sample: a file with a text a line.")
_FRAMES = flags.DEFINE_integer("frames", 60, "With --walk: frames of the film.", lower_bound=1)
_OUT = flags.DEFINE_string("out", None, "With --mode=sample: folder; DIR/samples if not given.")
_OVERWRITE = flags.DEFINE_bool(
  "overwrite", False, "With --mode=sample: replace files that are there already."
)
_JSON = flags.DEFINE_bool("json", False, "With --mode=inspect: a last line for programs.")
_LAYERS = flags.DEFINE_bool("layers", False, "With --mode=inspect: the layers of every network.")
_DISTRIBUTED = flags.DEFINE_bool(
  "distributed", False, "One of several processes of a job, which JAX_... variables describe."
)
_WAIT = flags.DEFINE_integer(
  "wait", 300, "With --distributed: seconds for all processes to start.", lower_bound=1
)
_CHANGED_DATA = flags.DEFINE_bool(
  "changed_data",
  False,
  "With --mode=train: go on though the data have changed; config.json and the report say so.",
)
_TRACEBACK = flags.DEFINE_bool("traceback", False, "Show where an error of the input was found.")


OF_MODE = {  # the flags that one mode alone understands
  "train": ["changed_data"],
  "sample": [
    "num_samples",
    "seeds",
    "labels",
    "input",
    "complete",
    "target",
    "strength",
    "prompt",
    "prompts",
    "truncation",
    "format",
    "walk",
    "frames",
    "out",
    "overwrite",
  ],
  "inspect": ["json", "layers"],
}
APART = (  # of each the first rules the others out
  ("walk", "seeds", "num_samples", "format", "input", "complete", "target"),
  ("complete", "input", "target"),
  ("seeds", "num_samples"),
  ("prompt", "prompts"),
)


def check_together() -> None:
  """Raises ValueError for flags that mean nothing here, rather than ignore them."""
  for mode, names in OF_MODE.items():
    for name in names:
      if FLAGS[name].present and _MODE.value != mode:
        raise ValueError(f"--{name} belongs to --mode={mode}, the mode is {_MODE.value}")
  for name, *others in APART:
    for other in others:
      if FLAGS[name].present and FLAGS[other].present:
        raise ValueError(f"--{name} and --{other} exclude each other: give one of them")
  if FLAGS["wait"].present and not _DISTRIBUTED.value:
    raise ValueError("--wait belongs to --distributed")
  if FLAGS["frames"].present and not FLAGS["walk"].present:
    raise ValueError("--frames belongs to --walk: give the seeds to walk between")


def fail(message: str, status: int = 2) -> None:
  """Ends the process with one clear line."""
  print(f"error: {' '.join(str(message).split())}", file=sys.stderr, flush=True)
  sys.exit(status)


def check_file(argv: list[str]) -> None:
  """Raises ValueError where --config names no file; both --config=FILE and --config FILE count."""
  for flag, after in zip(argv, [*argv[1:], ""]):
    name, sign, path = flag.partition("=")
    path = (path if sign else after).partition(":")[0]
    if name in ("--config", "-config") and not os.path.isfile(path):
      files = os.listdir("configs") if os.path.isdir("configs") else []
      known = {f for f in files if f.endswith(".py")} - {"__init__.py", "common.py"}
      raise ValueError(f"no config file {path!r}; there are {', '.join(sorted(known))}")


def reason(error: Exception, argv: list[str]) -> str:
  """What is wrong with the flags, out of what the libraries for flags and configs say of it."""
  while "parsing config file" in str(error) and error.__context__:
    error = error.__context__  # the config file's own words, else buried in a traceback
  text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
  if "--" in text or not isinstance(error, KeyError | TypeError | AttributeError):
    return text
  missing, meant = re.search(r"\w+", text), re.search('Did you mean "(.*?)"', text)
  for flag in argv:  # the one whose key is not there
    name, _, path = flag.partition("=")[0].partition(".")
    if path and name.endswith("config") and (path in text or missing[0] in path.split(".")):
      return f"{name}.{path} is no key of the config" + (
        f": did you mean {meant[1]}?" if meant else ""
      )
  return text


def parse(argv: list[str]) -> list[str]:
  """Parses the flags; whatever is wrong with them ends in one line."""
  try:
    check_file(argv)
    rest = FLAGS(argv)
    if len(rest) > 1:
      raise ValueError(f"{rest[1]!r} is not a flag; see --help")
    check_together()
    if _CONFIG.value is None and (_MODE.value in ("train", "inspect") or not _WORKDIR.value):
      raise ValueError("which method? give --config=configs/NAME.py[:variant]")
    if _WORKDIR.value is None and _MODE.value != "inspect":
      raise ValueError("where to? give --workdir=DIR")
    return rest
  except SystemExit:
    raise
  except Exception as error:  # absl, ml_collections and the config file each raise their own kinds
    if "--traceback" in argv:
      raise
    fail(reason(error, argv))


def read_ahead(config: ConfigDict, workdir: str) -> object:
  """Begins to load what an earlier start has compiled, before all else is imported."""
  from gm import programs, sharding

  try:
    shelf = programs.Shelf(config, sharding.start(config))
  except (ValueError, RuntimeError):  # a config that cannot be: `loop.train` says what is wrong
    return None
  shelf.read_ahead(workdir)
  return shelf


def request(sampling: ModuleType) -> NamedTuple:
  """What the flags of --mode=sample ask for."""
  from gm import asked

  if _WALK.value is not None:
    seeds, frames = asked.parse_seeds(_WALK.value, "--walk"), _FRAMES.value
  elif _SEEDS.value is not None:
    seeds, frames = asked.parse_seeds(_SEEDS.value), 0
  else:  # of an image of the user's own one sample, if no more are asked for
    given = _INPUT.value if _COMPLETE.value is None else _COMPLETE.value
    one = given is not None and not FLAGS["num_samples"].present
    seeds, frames = range(1 if one else _NUM_SAMPLES.value), 0
  return sampling.Request(
    seeds,
    frames,
    _LABELS.value,
    _TRUNCATION.value,
    _FORMAT.value,
    _OUT.value,
    _OVERWRITE.value,
    _INPUT.value,
    _TARGET.value,
    _COMPLETE.value,
    _PROMPT.value if _PROMPTS.value is None else asked.read_prompts(_PROMPTS.value),
    _STRENGTH.value,
  )


def work() -> None:
  """Calls the part of gm that the mode names."""
  logging.set_verbosity(logging.WARNING)  # jax tells which backends it did not find
  config, workdir = _CONFIG.value, _WORKDIR.value
  if workdir is not None:  # the shell leaves --workdir=~/x as it is
    workdir = os.path.abspath(os.path.expanduser(workdir))
  shelf = None
  if _MODE.value == "train" and not _DISTRIBUTED.value:
    shelf = read_ahead(config, workdir)
  from gm import loop  # after the flags: a mistyped one should not wait for jax

  if _DISTRIBUTED.value:
    from gm import processes
    from gm.errors import user_input

    with user_input():
      processes.join(_WAIT.value, _TRACEBACK.value)
  if _MODE.value == "train":
    try:
      loop.train(config, workdir, shelf, changed_data=_CHANGED_DATA.value)
    except interrupt.Stopped as stopped:
      print(stopped, flush=True)
      sys.exit(128 + stopped.signum)
  elif _MODE.value == "eval":
    from gm import evaluation

    evaluation.run_eval(workdir, config)
  elif _MODE.value == "sample":
    from gm import sampling

    for path in sampling.run(workdir, config, request(sampling)):
      print(path)
  else:
    from gm import inspection

    inspection.run(config, json_line=_JSON.value, layers=_LAYERS.value)


def verdict(error: Exception) -> tuple[str, int]:
  """The line that is said of an error, and the exit status: 2 where the input is wrong."""
  text = str(error)
  if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
    return (
      f"out of memory ({(text.splitlines() or [''])[0]}): lower --config.batch_size, raise"
      " --config.accumulate, or lower the sizes in --config.model",
      1,
    )
  from gm import errors

  if isinstance(error, errors.UserError):
    return text, 2
  if isinstance(error, OSError):  # of a disk, a folder, a network
    return errors.sentence(error), 2
  if isinstance(error, FloatingPointError):
    return text, 1
  return f"{type(error).__name__}: {text[:1000]} (--traceback shows where)", 1


def main(argv: list[str]) -> None:
  """Does what the flags say; every error ends in one line, unless --traceback is given."""
  del argv
  try:
    work()
  except Exception as error:
    if _TRACEBACK.value:
      raise
    said, status = verdict(error)
    if _DISTRIBUTED.value:
      from gm import processes

      processes.give_up(error, said, status)
    fail(said, status)


if __name__ == "__main__":
  try:
    app.run(main, flags_parser=parse)
  except KeyboardInterrupt:
    interrupt.leave("interrupted", 130)
