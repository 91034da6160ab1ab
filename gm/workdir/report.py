"""One page about a run, made from the files in its workdir and nothing else.

`write(workdir)` makes DIR/curves.png (every scalar over the steps, small multiples) and
DIR/report.html (self-contained: pictures are inline, nothing is loaded from elsewhere). Both can be
made at any time, also of a run that is still going, was killed, or lost some of its files. What the
page looks like is in page.html; here are the values in it.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import functools
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gm import diagnostics
from gm.errors import user_input
from gm.workdir import curves, drawn, files, log, record, samples

_METHODS = Path(__file__).parents[1] / "methods"
_MAX_CLASSES = 20  # that are named at the top of the page
_MAX_EMBEDDED = 24e6  # bytes of PNG; above it the page holds JPEGs, the files stay as they are


def write(workdir: str | Path) -> Path:
  """Writes DIR/curves.png (if anything was logged) and DIR/report.html.

  Args:
    workdir: the run's folder.

  Returns:
    The path of report.html.

  Raises:
    OSError: if a file cannot be written.
  """
  workdir = Path(workdir)
  records = log.read_metrics(workdir)
  picture = curves.draw(records)
  if picture:
    files.write_bytes(workdir / "curves.png", picture)
  return files.write_bytes(workdir / "report.html", page(workdir, records, picture).encode())


@contextlib.contextmanager
def following(workdir: str | Path) -> Iterator[log.Log]:
  """The log of a run; writes the page in the end, however it ends, and hides no error by that.

  Raises:
    UserError: if a file cannot be written.
  """
  with user_input():
    lines = log.Log(workdir)
  try:
    yield lines
  except BaseException:
    with contextlib.suppress(Exception):
      lines.close()
      write(workdir)
    raise
  lines.close()
  with user_input():
    write(workdir)


def page(workdir: Path, records: Sequence[Mapping], picture: bytes | None) -> str:
  """The whole of report.html.

  Args:
    workdir: the run's folder.
    records: lines of metrics.jsonl.
    picture: curves.png, None if there is none.

  Returns:
    One self-contained page.
  """
  facts, result = _load(workdir / "config.json"), _load(workdir / "eval.json")
  config = _table(facts, "config")
  method = str(config.get("method", workdir.resolve().name))
  docstring = method_docstring(method)
  checked = [*records, *_last_record(result)]
  pictures = [p for p in samples.read_pictures(workdir) if not drawn.NAMED.match(p.name)]
  return _template().render(
    method=method,
    docstring=docstring,
    data=_data(facts, config),
    headline=_headline(facts, config, records),
    alarms=list(diagnostics.alarms(checked)) if checked else None,
    evaluation=_evaluation(result),
    players=_players(pictures, list(dict.fromkeys(r["stage"] for r in records))),
    curves=_data_uri(picture, "png") if picture else "",
    values=_values(records),
    run=_run(facts, config),
    version=_table(facts, "versions").get("gm", ""),
  )


@functools.cache
def _template() -> Any:
  import jinja2  # imported late: the first step need not wait for it

  folder = jinja2.FileSystemLoader(Path(__file__).parent)
  env = jinja2.Environment(
    loader=folder,
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
  env.filters["number"] = curves.number
  return env.get_template("page.html")


def _load(path: Path) -> dict:
  """A JSON table, empty if the file is missing or broken: the page is made of what there is."""
  try:
    value = json.loads(path.read_bytes())
  except (OSError, ValueError):
    return {}
  return value if isinstance(value, dict) else {}


def _table(given: Mapping, key: str) -> dict:
  """given[key] where that is a table, else an empty one."""
  value = given.get(key)
  return value if isinstance(value, dict) else {}


def method_docstring(method: str) -> str:
  """The docstring of gm/methods/<method>.py, read without importing it; "" if there is none."""
  path = _METHODS / f"{method}.py"
  if not str(method).isidentifier() or not path.exists():
    return ""
  return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def _data(facts: Mapping, config: Mapping) -> dict:
  """Where the data came from, whether they were drawn by a formula, and names of their classes."""
  data, section = facts.get("data"), _table(config, "data")
  origin = data.get("origin", "") if isinstance(data, dict) else data or ""
  generated = data.get("generated") if isinstance(data, dict) else None
  if generated is None:
    generated = section.get("source") == "points"  # the one family that is drawn from formulas
  keys = ("source", "dir" if section.get("source") == "folder" else "name")
  origin = origin or " · ".join(str(section[k]) for k in keys if section.get(k))
  classes = data.get("classes") if isinstance(data, dict) else None
  names = [str(name) for name in classes] if isinstance(classes, list) else []
  shown = ", ".join(names[:_MAX_CLASSES]) + (", ..." if len(names) > _MAX_CLASSES else "")
  return {"origin": origin, "generated": generated, "classes": shown, "num_classes": len(names)}


def _headline(facts: Mapping, config: Mapping, records: Sequence[Mapping]) -> list[tuple[str, str]]:
  """The four or five numbers that one looks for first, each with what it is."""
  number = curves.number
  if not records:
    if config.get("num_steps") == 0:
      return [("no steps", "a sampler: nothing is trained")]
    return [("nothing logged", "so far")]
  items = []
  last, planned = records[-1], _table(facts, "stages")
  total = planned.get(last["stage"]) if planned else config.get("num_steps")
  step = number(last["step"])
  known = isinstance(total, int) and not isinstance(total, bool) and total > 0
  left = [s for s in planned if s not in {r["stage"] for r in records} and planned[s]]
  if known:
    finished = last["step"] >= total and not left
    items.append(("finished" if finished else "unfinished", "this run"))
  items.append((f"{step} of {number(total)}" if known else step, f"steps of {last['stage']}"))
  seconds = last.get("seconds", math.nan)
  if isinstance(seconds, (int, float)) and math.isfinite(seconds):
    value, unit = (seconds, "seconds") if seconds < 120 else (seconds / 60, "minutes")
    items.append((f"{value:.1f}", f"{unit} of training"))
  speeds = [r.get("examples_per_second") for r in records]
  speeds = [s for s in speeds if isinstance(s, (int, float)) and math.isfinite(s)]
  if speeds:
    items.append((number(round(float(np.median(speeds)))), "examples per second, median"))
  return items


def _last_record(result: Mapping) -> list[dict]:
  """The last evaluation in the form of a line of metrics.jsonl: it can raise alarms too."""
  metrics = result.get("metrics")
  if not isinstance(metrics, dict):
    return []
  return [{"stage": result.get("stage", ""), "step": result.get("step", 0), **metrics}]


def _evaluation(result: Mapping) -> dict | None:
  """Rows of the metrics and of the protocol of eval.json; None if there is none."""
  if not result:
    return None
  metrics = result.get("metrics") if isinstance(result.get("metrics"), dict) else None
  rest = {k: v for k, v in result.items() if k not in ("metrics", "protocol")}
  if metrics is None:  # a flat table: numbers are the metrics
    number = lambda v: isinstance(v, (int, float)) and not isinstance(v, bool)
    metrics = {k: v for k, v in rest.items() if number(v) and k not in ("step", "seed")}
    rest = {k: v for k, v in rest.items() if k not in metrics}
  protocol = result.get("protocol", {})
  protocol = {**rest, **(protocol if isinstance(protocol, dict) else {"protocol": protocol})}
  rows = lambda table: [(k, curves.number(v)) for k, v in record.flatten(table).items()]
  how = [(k.replace("_", " "), v) for k, v in rows(protocol)]
  return {"metrics": rows(metrics), "protocol": how}


def _players(pictures: Sequence[samples.Picture], stages: Sequence[str]) -> list[dict]:
  """A player for the samples of fixed noise, then one for each kind of extra picture."""
  several = len({p.stage for p in pictures if p.stage in stages}) > 1

  def title(p):  # of a stage that was not trained, --mode=sample has its own pictures
    of = "" if p.stage in stages or not stages else p.stage
    return " ".join(part for part in (of, p.name) if part).replace("_", " ")

  place = lambda s: stages.index(s) if s in stages else len(stages)
  found = _frames(sorted(pictures, key=lambda p: (place(p.stage), p.stage, p.step)), several)
  names = sorted({title(p) for p, _ in found})  # "" is the first
  return [{"name": n, "frames": [f for p, f in found if title(p) == n]} for n in names]


def _frames(
  pictures: Sequence[samples.Picture], several: bool
) -> list[tuple[samples.Picture, dict]]:
  """Reads pictures: PNGs as data URIs (JPEG if together they are large), text as it is."""
  read = []
  for p in pictures:
    try:
      read.append((p, p.path.read_bytes()))
    except OSError:  # removed since it was listed
      continue
  large = sum(len(data) for p, data in read if p.path.suffix == ".png") > _MAX_EMBEDDED
  frames = []
  for p, data in read:
    text = data.decode("utf-8", "replace") if p.path.suffix == ".txt" else None
    frame = {
      "label": f"{p.stage} · step {p.step:,}" if several else f"step {p.step:,}",
      "alt": f"{p.name or 'samples'}, stage {p.stage}, step {p.step}",
      "text": text,
      "source": "" if text is not None else _image(data, large),
    }
    frames.append((p, frame))
  return frames


def _image(data: bytes, large: bool) -> str:
  if not large:
    return _data_uri(data, "png")
  from PIL import Image

  buffer = io.BytesIO()
  with Image.open(io.BytesIO(data)) as image:
    image.convert("L" if image.mode == "L" else "RGB").save(buffer, "JPEG", quality=88)
  return _data_uri(buffer.getvalue(), "jpeg")


def _data_uri(data: bytes, kind: str) -> str:
  return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _values(records: Sequence[Mapping]) -> list[tuple]:
  """Rows (scalar, first, last, lowest, highest)."""
  rows = []
  for name, parts in curves.by_metric(records)[0].items():
    y = np.concatenate([part[1] for part in parts])
    finite = y[np.isfinite(y)]
    low, high = (finite.min(), finite.max()) if len(finite) else (math.nan, math.nan)
    rows.append((name, *(curves.number(float(v)) for v in (y[0], y[-1], low, high))))
  return rows


def _run(facts: Mapping, config: Mapping) -> dict | None:
  """The command, and rows of the config, of where it ran and of versions."""
  if not facts:
    return None
  around = {k: v for k, v in facts.items() if k not in ("config", "command", "versions")}
  settings = record.flatten(config)
  if settings.get("data.source") == "folder":
    settings.pop("data.name", None)  # says nothing there
  devices = around.get("devices")
  if isinstance(devices, list):
    around["devices"] = ", ".join(map(str, devices[:8])) + (" ..." if len(devices) > 8 else "")
  return {
    "command": facts.get("command"),
    # the config is shown as typed on a command line, not rounded
    "settings": [(k, json.dumps(v, ensure_ascii=False)) for k, v in settings.items()],
    "around": [(k, curves.number(v)) for k, v in record.flatten(around).items()],
    "versions": list(_table(facts, "versions").items()),
  }
