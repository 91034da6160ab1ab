"""One page about a run, made from the files in its workdir and nothing else.

`write(workdir)` makes DIR/curves.png (every scalar over the steps, small multiples) and
DIR/report.html (self-contained: pictures are inline, nothing is loaded from elsewhere). Both can be
made at any time, also of a run that is still going, was killed, or lost some of its files.
"""

from __future__ import annotations

import ast
import base64
import html
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gm import diagnostics, writers

# Families of metrics, in the order of the page: title, pattern of the names, y axis.
_FAMILIES = (
  ("losses", r"^(?!lr|learning).*(loss|(^|_)(bce|nll|elbo|kl|rate|distortion|rec)($|_))", "auto"),
  ("gradient norms", r"gradnorm|grad_norm", "positive"),
  ("discriminator outputs", r"^d_(real|fake|accuracy)|_d_(real|fake|accuracy)$", "share"),
  ("saturation", r"saturation|grad_ratio", "positive"),
  ("dead units", r"^dead_", "share"),
  ("optimizer", r"^(lr|learning_rate)", "positive"),
)
_SHADES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9")  # told apart by all
_INK, _GREY, _LIGHT = "#333a45", "#767c86", "#c9cdd3"
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
  records = writers.read_metrics(workdir)
  picture = curves(records)
  if picture:
    writers.write_bytes(workdir / "curves.png", picture)
  return writers.write_bytes(workdir / "report.html", page(workdir, records, picture).encode())


# --------------------------------------------------------------------------------------- curves


def curves(records: Sequence[Mapping]) -> bytes | None:
  """Draws every scalar over the steps, stages end to end, one panel for each family.

  Faint lines are the raw values, strong lines their moving averages; triangles at the bottom mark
  values that are not finite.

  Args:
    records: lines of metrics.jsonl.

  Returns:
    A PNG; None if there is nothing to draw.
  """
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  series, spans = _series(records)
  panels = _panels(series)
  if not panels:
    return None
  cols = min(3, len(panels)) if len(panels) != 4 else 2
  rows = -(-len(panels) // cols)
  width, height = 4.6 * cols, 2.9 * rows
  figure = Figure(figsize=(width, height), dpi=110, facecolor="white")
  FigureCanvasAgg(figure)
  figure.subplots_adjust(
    left=0.5 / width,
    right=1 - 0.15 / width,
    bottom=0.35 / height,
    top=1 - 0.62 / height,
    wspace=0.2,
    hspace=0.42,
  )
  for i, (title, scale, names) in enumerate(panels):
    axes = figure.add_subplot(rows, cols, i + 1)
    _draw_panel(axes, title, scale, {n: series[n] for n in names}, spans)
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png")
  return buffer.getvalue()


def _series(records: Sequence[Mapping]) -> tuple[dict, list]:
  """Lays the stages end to end.

  Returns:
    {metric: [(x [n], y [n]) for each stage that logged it]}, [(stage, first x, last x)].
  """
  spans, offset = [], 0
  stages = list(dict.fromkeys(r["stage"] for r in records))
  series: dict[str, list] = {}
  for stage in stages:
    lines = [r for r in records if r["stage"] == stage]
    last = max(int(r["step"]) for r in lines)
    spans.append((stage, offset, offset + last))
    found: dict[str, list] = {}
    for r in lines:
      for name, value in r.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if number and name not in writers.KEYS[:3]:
          found.setdefault(name, []).append((offset + r["step"], float(value)))
    for name, points in found.items():
      series.setdefault(name, []).append(tuple(np.asarray(points, np.float64).T))
    offset += last
  return series, spans


def _panels(series: Mapping[str, list]) -> list[tuple[str, str, list[str]]]:
  """Groups metrics by family, then by magnitude, six to a panel: (title, scale, names)."""
  groups: dict[str, tuple[str, list]] = {}
  for name in series:
    if name == "examples_per_second":
      continue
    other = (re.split(r"[/_]", name)[0] or name, "", "auto")
    title, _, scale = next((f for f in _FAMILIES if re.search(f[1], name)), other)
    groups.setdefault(title, (scale, []))[1].append(name)
  order = [title for title, _, _ in _FAMILIES]
  alone = [t for t, (_, names) in groups.items() if t not in order and len(names) == 1]
  if len(alone) > 9:  # a panel for each would make a page of its own
    groups["others"] = ("auto", [groups.pop(t)[1][0] for t in alone])
  panels = []
  for title in sorted(groups, key=lambda t: order.index(t) if t in order else len(order)):
    scale, names = groups[title]
    for part in [names] if scale != "auto" else _by_magnitude(names, series):
      for first in range(0, len(part), 6):
        chunk = part[first : first + 6]
        panels.append((chunk[0] if len(chunk) == 1 else title, scale, chunk))
  if "examples_per_second" in series:
    panels.append(("examples per second", "auto", ["examples_per_second"]))
  return panels


def _by_magnitude(names: Sequence[str], series: Mapping[str, list]) -> list[list[str]]:
  """Splits names where neighbours in order of magnitude are more than thirtyfold apart."""

  def size(name):
    values = np.abs(np.concatenate([y for _, y in series[name]]))
    values = values[np.isfinite(values) & (values > 0)]
    return float(np.median(values)) if len(values) else 0.0

  groups: list[list[str]] = []
  last = 0.0
  for name in sorted(names, key=size):
    if groups and (last == 0.0 or size(name) <= 30 * last):
      groups[-1].append(name)
    else:
      groups.append([name])
    last = size(name)
  return [sorted(g, key=list(names).index) for g in groups]


def _smooth(y: np.ndarray) -> np.ndarray:
  """A bias-corrected moving average over about a thirtieth of the curve; NaN are passed over."""
  decay = 1.0 - 1.0 / max(1.0, len(y) / 30)
  out, total, weight = np.empty_like(y), 0.0, 0.0
  for i, value in enumerate(y):
    if math.isfinite(value):
      total, weight = decay * total + value, decay * weight + 1.0
    out[i] = total / weight if weight else math.nan
  return out


def _envelope(x: np.ndarray, y: np.ndarray, buckets: int = 400) -> tuple[np.ndarray, np.ndarray]:
  """Thins a long curve to the lowest and highest value of each bucket, so that spikes stay."""
  if len(x) <= 2 * buckets:
    return x, y
  keep = []
  for part in np.array_split(np.arange(len(x)), buckets):
    values = np.where(np.isfinite(y[part]), y[part], np.nan)
    if np.isnan(values).all():
      keep.append(part[0])
    else:
      keep += sorted({part[np.nanargmin(values)], part[np.nanargmax(values)]})
  return x[keep], y[keep]


def _limits(axes: Any, scale: str, y: np.ndarray) -> None:
  """Chooses the axis: log where all is positive and spread widely; a few spikes do not rule it."""
  if scale == "share" and y.min() >= 0 and y.max() <= 1:
    axes.set_ylim(-0.03, 1.03)
    return
  low, high = np.percentile(y, [1, 99])
  spread = high / low if low > 0 else 0.0
  if y.min() > 0 and spread > (20 if scale == "positive" else 100):
    axes.set_yscale("log")
    return
  margin = 0.25 * (high - low)
  if high > low and y.max() - y.min() > 4 * (high - low):
    axes.set_ylim(low - margin, high + margin)


def _draw_panel(
  axes: Any, title: str, scale: str, series: Mapping[str, list], spans: Sequence
) -> None:
  every = np.concatenate([y for parts in series.values() for _, y in parts])
  finite = every[np.isfinite(every)]
  if len(finite):
    _limits(axes, scale, finite)
  for (name, parts), shade in zip(series.items(), _SHADES):
    last = parts[-1][1][-1]
    label = f"{'last' if len(series) == 1 else name}  {_number(float(last))}"
    for x, y in parts:
      bad = ~np.isfinite(y)
      shown = np.where(bad, np.nan, y)
      few = len(x) <= 30
      marker = {"marker": "o", "markersize": 3} if few else {}
      if not few:
        axes.plot(*_envelope(x, shown), color=shade, alpha=0.22, linewidth=0.7)
        x_line, y_line = x, _smooth(shown)
        stride = max(1, len(x) // 800)
        keep = np.r_[0 : len(x) - 1 : stride, len(x) - 1]  # the last point always
        x_line, y_line = x_line[keep], y_line[keep]
      else:
        x_line, y_line = x, shown
      axes.plot(x_line, y_line, color=shade, linewidth=1.5, label=label, **marker)
      label = "_same"  # one entry in the legend for all stages
      if bad.any():
        axes.plot(
          x[bad],
          np.full(bad.sum(), 0.02),
          "^",
          color="#c0262d",
          markersize=5,
          transform=axes.get_xaxis_transform(),
        )
  for i, (stage, first, _) in enumerate(spans):
    if i:
      axes.axvline(first, color=_GREY, linewidth=0.8, linestyle=(0, (2, 2)))
    if 1 < len(spans) <= 10:
      axes.text(
        first,
        0.985,
        f" {stage}",
        transform=axes.get_xaxis_transform(),
        fontsize=6.5,
        color=_GREY,
        va="top",
        clip_on=True,
        parse_math=False,
      )
  axes.set_xlim(0, max(1, spans[-1][2]))
  axes.tick_params(labelsize=7.5, colors=_GREY, length=2, which="both")
  axes.grid(axis="y", color="#e9ebee", linewidth=0.6)
  axes.set_axisbelow(True)
  for side, spine in axes.spines.items():
    spine.set_visible(side in ("left", "bottom"))
    spine.set_color(_LIGHT)
  _scale_steps(axes, spans[-1][2])
  _label(axes, title, len(series))


def _scale_steps(axes: Any, last: int) -> None:
  from matplotlib.ticker import FuncFormatter, MaxNLocator

  axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
  if last >= 10_000:
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v / 1000:g}k"))


def _label(axes: Any, title: str, num: int) -> None:
  """Title and, under it, the legend with the last values, both above the axes."""
  longest = max(len(t) for t in axes.get_legend_handles_labels()[1])
  cols = max(1, min(num, 70 // (longest + 4)))
  lines = 1 if num == 1 else -(-num // cols)
  legend = axes.legend(
    loc="lower left",
    bbox_to_anchor=(-0.02, 0.99),
    ncols=cols,
    fontsize=7,
    frameon=False,
    handlelength=1.0,
    columnspacing=1.0,
    labelspacing=0.2,
    borderpad=0.2,
    borderaxespad=0.0,
    labelcolor=_GREY,
  )
  for text in legend.get_texts():
    text.set_parse_math(False)
  axes.set_title(
    title.replace("_", " "),
    fontsize=10,
    fontweight="bold",
    color=_INK,
    loc="left",
    y=1.0,  # given, because searching for it costs a third of the time
    pad=4 + 10.5 * lines,
    parse_math=False,
  )


# ----------------------------------------------------------------------------------------- page


def _number(value: Any) -> str:
  """Four significant digits; counts whole; everything else as it is."""
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    return str(value)
  if not math.isfinite(value):
    return str(value)
  if float(value).is_integer() and abs(value) < 1e15:
    return f"{int(value):,}"
  if 1e-3 <= abs(value) < 1e5:
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
  return f"{value:.3e}"


def _e(value: Any) -> str:
  return html.escape(str(value), quote=True)


def _load(path: Path) -> dict:
  """A JSON table, empty if the file is missing or broken: the page is made of what there is."""
  try:
    value = json.loads(path.read_bytes())
  except (OSError, ValueError):
    return {}
  return value if isinstance(value, dict) else {}


def method_docstring(method: str) -> str:
  """The docstring of gm/methods/<method>.py, read without importing it; "" if there is none."""
  path = Path(__file__).parent / "methods" / f"{method}.py"
  if not str(method).isidentifier() or not path.exists():
    return ""
  return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


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
  config = facts.get("config") if isinstance(facts.get("config"), dict) else {}
  method = str(config.get("method", workdir.resolve().name))
  docstring = method_docstring(method)
  stages = list(dict.fromkeys(r["stage"] for r in records))
  pictures = writers.read_pictures(workdir)
  sections = [
    ("alarms", "Alarms", _alarms([*records, *_last_record(result)])),
    ("evaluation", "Evaluation", _evaluation(result)),
    ("samples", "Samples over time", _players(pictures, stages)),
    ("curves", "Curves", _curves_section(picture)),
    ("values", "Last values", _last_values(records)),
    ("run", "What was run", _what_was_run(facts, config)),
  ]
  if docstring:
    sections.append(("method", "The method", f"<pre>{_e(docstring)}</pre>"))
  body = "\n".join(
    f'<section id="{name}">\n<h2>{title}</h2>\n{content}\n</section>'
    for name, title, content in sections
  )
  links = " ".join(f'<a href="#{name}">{title}</a>' for name, title, _ in sections)
  version = facts.get("versions", {})
  version = version.get("gm", "") if isinstance(version, dict) else ""
  return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{_e(method)} · report</title>
<style>{_CSS}</style>
</head>
<body>
<header>
<h1>{_e(method)}</h1>
<p class="lead">{_e(docstring.partition(chr(10))[0])}</p>
{_data_statement(facts, config)}
{_headline(facts, config, records)}
<nav>{links}</nav>
</header>
<main>
{body}
</main>
<footer>Made by gm {_e(version)} from the files in this run's workdir.</footer>
<script>{_JS}</script>
</body>
</html>
"""


def _data_statement(facts: Mapping, config: Mapping) -> str:
  data = facts.get("data")
  origin = data.get("origin", "") if isinstance(data, dict) else data or ""
  section = config.get("data") if isinstance(config.get("data"), dict) else {}
  generated = data.get("generated") if isinstance(data, dict) else None
  if generated is None:
    generated = section.get("source") == "points"  # the one family that is drawn from formulas
  origin = origin or " · ".join(str(section[k]) for k in ("source", "name") if section.get(k))
  if generated:
    text = "<strong>The data of this run were generated by a formula; they are not real.</strong>"
    return f'<p class="notice">{text} {_e(origin)}</p>'
  return f'<p class="origin">Data: {_e(origin)}</p>' if origin else ""


def _headline(facts: Mapping, config: Mapping, records: Sequence[Mapping]) -> str:
  """The four or five numbers that one looks for first."""
  items = []
  if records:
    last = records[-1]
    planned = facts.get("stages") if isinstance(facts.get("stages"), dict) else {}
    total = planned.get(last["stage"]) if planned else config.get("num_steps")
    step = _number(last["step"])
    known = isinstance(total, int) and not isinstance(total, bool) and total > 0
    left = [s for s in planned if s not in {r["stage"] for r in records} and planned[s]]
    finished = known and last["step"] >= total and not left
    state = "finished" if finished else "unfinished" if known else ""
    items.append((f"{step} of {_number(total)}" if known else step, f"steps of {last['stage']}"))
    if state:
      items.insert(0, (state, "this run"))
    seconds = last.get("seconds", math.nan)
    if isinstance(seconds, (int, float)) and math.isfinite(seconds):
      small = seconds < 120
      value, unit = (seconds, "seconds") if small else (seconds / 60, "minutes")
      items.append((f"{value:.1f}", f"{unit} of training"))
    speeds = [r.get("examples_per_second") for r in records]
    speeds = [s for s in speeds if isinstance(s, (int, float)) and math.isfinite(s)]
    if speeds:
      items.append((_number(round(float(np.median(speeds)))), "examples per second, median"))
  elif config.get("num_steps") == 0:
    items.append(("no steps", "a sampler: nothing is trained"))
  else:
    items.append(("nothing logged", "so far"))
  cells = "".join(f"<div><b>{_e(v)}</b><span>{_e(k)}</span></div>" for v, k in items)
  return f'<div class="facts">{cells}</div>'


def _last_record(result: Mapping) -> list[dict]:
  """The last evaluation in the form of a line of metrics.jsonl: it can raise alarms too."""
  metrics = result.get("metrics")
  if not isinstance(metrics, dict):
    return []
  return [{"stage": result.get("stage", ""), "step": result.get("step", 0), **metrics}]


def _alarms(records: Sequence[Mapping]) -> str:
  alarms = list(diagnostics.alarms(list(records))) if records else []
  if not records:
    return '<p class="quiet">Nothing was logged, so nothing could be checked.</p>'
  if not alarms:
    return '<p class="good">None of the checks fired.</p>'
  rows = "".join(
    f'<li><span class="where">{_e(a.stage)} · step {_e(_number(a.step))}</span>'
    f"<b>{_e(str(a.name).replace('_', ' '))}</b><p>{_e(a.message)}</p></li>"
    for a in alarms
  )
  return f'<ul class="alarms">{rows}</ul>'


def _table(rows: Sequence[Sequence[Any]], head: Sequence[str] = (), numbers: bool = False) -> str:
  top = f"<thead><tr>{''.join(f'<th>{_e(h)}</th>' for h in head)}</tr></thead>" if head else ""
  body = "".join(
    f'<tr><th scope="row">{_e(row[0])}</th>{"".join(f"<td>{_e(v)}</td>" for v in row[1:])}</tr>'
    for row in rows
  )
  kind = ' class="numbers"' if numbers else ""
  return f'<div class="scroll"><table{kind}>{top}<tbody>{body}</tbody></table></div>'


def _evaluation(result: Mapping) -> str:
  if not result:
    return '<p class="quiet">No evaluation yet: give the same command with --mode=eval.</p>'
  metrics = result.get("metrics") if isinstance(result.get("metrics"), dict) else None
  rest = {k: v for k, v in result.items() if k not in ("metrics", "protocol")}
  if metrics is None:  # a flat table: numbers are the metrics
    number = lambda v: isinstance(v, (int, float)) and not isinstance(v, bool)
    metrics = {k: v for k, v in rest.items() if number(v) and k not in ("step", "seed")}
    rest = {k: v for k, v in rest.items() if k not in metrics}
  protocol = result.get("protocol", {})
  protocol = protocol if isinstance(protocol, dict) else {"protocol": protocol}
  values = [(k, _number(v)) for k, v in writers.flatten(metrics).items()]
  how = [
    (k.replace("_", " "), _number(v)) for k, v in writers.flatten({**rest, **protocol}).items()
  ]
  left = _table(values, ("metric", "value"), numbers=True)
  right = _table(how, ("protocol", "")) if how else ""
  return f'<div class="columns">{left}{right}</div>'


def _embed(pictures: Sequence[writers.Picture]) -> list[tuple[writers.Picture, str]]:
  """Reads pictures as HTML: PNGs as data URIs (JPEG if together they are large), text as is."""
  files = []
  for p in pictures:
    try:
      files.append((p, p.path.read_bytes()))
    except OSError:  # removed since it was listed
      continue
  large = sum(len(data) for p, data in files if p.path.suffix == ".png") > _MAX_EMBEDDED
  return [(p, _text(d) if p.path.suffix == ".txt" else _image(d, p, large)) for p, d in files]


def _text(data: bytes) -> str:
  return f"<pre>{_e(data.decode('utf-8', 'replace'))}</pre>"


def _image(data: bytes, picture: writers.Picture, large: bool) -> str:
  kind = "png"
  if large:
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
      image.convert("L" if image.mode == "L" else "RGB").save(buffer, "JPEG", quality=88)
    data, kind = buffer.getvalue(), "jpeg"
  alt = f"{picture.name or 'samples'}, stage {picture.stage}, step {picture.step}"
  source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
  return f'<img alt="{_e(alt)}" src="{source}">'


def _players(pictures: Sequence[writers.Picture], stages: Sequence[str]) -> str:
  """A player for the samples of fixed noise, then one for each kind of extra picture."""
  if not pictures:
    return '<p class="quiet">No pictures yet.</p>'
  found = _embed(pictures)
  several = len({p.stage for p in pictures if p.stage in stages}) > 1

  def title(p):  # of a stage that was not trained, --mode=sample has its own pictures
    of = "" if p.stage in stages or not stages else p.stage
    return " ".join(part for part in (of, p.name) if part).replace("_", " ")

  place = lambda s: stages.index(s) if s in stages else len(stages)
  found.sort(key=lambda one: (place(one[0].stage), one[0].stage, one[0].step))
  players = []
  for name in sorted({title(p) for p, _ in found}):  # "" is the first
    frames = [(p, content) for p, content in found if title(p) == name]
    players.append(_player(name, frames, several))
  return f'<div class="players">{"".join(players)}</div>'


def _player(name: str, frames: Sequence[tuple[writers.Picture, str]], several: bool) -> str:
  title = name or "samples of fixed noise"
  label = lambda p: f"{p.stage} · step {p.step:,}" if several else f"step {p.step:,}"
  shown = "".join(
    f'<div class="frame" data-label="{_e(label(p))}"{"" if i == len(frames) - 1 else " hidden"}>'
    f"{content}</div>"
    for i, (p, content) in enumerate(frames)
  )
  last = len(frames) - 1
  controls = (
    f'<div class="controls"><button type="button" aria-label="Play">&#9654;</button>'
    f'<input type="range" min="0" max="{last}" value="{last}" step="1" '
    f'aria-label="Step of {_e(title)}"></div>'
    if last
    else ""
  )
  caption = f"<b>{_e(title)}</b><output>{_e(label(frames[-1][0]))}</output>"
  main = "" if name else " main"
  return (
    f'<figure class="player{main}"><figcaption>{caption}</figcaption>'
    f'<div class="frames">{shown}</div>{controls}</figure>'
  )


def _curves_section(picture: bytes | None) -> str:
  if not picture:
    return '<p class="quiet">Nothing was logged yet.</p>'
  source = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
  alt = "Every logged scalar over the steps; the table of last values follows"
  return f'<img class="curves" alt="{alt}" src="{source}">'


def _last_values(records: Sequence[Mapping]) -> str:
  series, _ = _series(records)
  if not series:
    return '<p class="quiet">Nothing was logged yet.</p>'
  rows = []
  for name, parts in series.items():
    y = np.concatenate([part[1] for part in parts])
    finite = y[np.isfinite(y)]
    low, high = (finite.min(), finite.max()) if len(finite) else (math.nan, math.nan)
    rows.append((name, *(_number(float(v)) for v in (y[0], y[-1], low, high))))
  table = _table(rows, ("scalar", "first", "last", "lowest", "highest"), numbers=True)
  return f"<details><summary>{len(rows)} scalars</summary>{table}</details>"


def _what_was_run(facts: Mapping, config: Mapping) -> str:
  if not facts:
    return '<p class="quiet">config.json is missing or cannot be read.</p>'
  parts = []
  if facts.get("command"):
    parts.append(f"<h3>Command</h3><pre><code>{_e(facts['command'])}</code></pre>")
  around = {k: v for k, v in facts.items() if k not in ("config", "command", "versions")}
  devices = around.get("devices")
  if isinstance(devices, list):
    around["devices"] = ", ".join(map(str, devices[:8])) + (" ..." if len(devices) > 8 else "")
  around = [(k, _number(v)) for k, v in writers.flatten(around).items()]
  versions = facts.get("versions", {})
  versions = list(versions.items()) if isinstance(versions, dict) else []
  # the config is shown as typed on a command line, not rounded
  settings = [(k, json.dumps(v, ensure_ascii=False)) for k, v in writers.flatten(config).items()]
  left = f"<h3>Config</h3>{_table(settings)}" if settings else ""
  right = f"<h3>Where</h3>{_table(around)}" if around else ""
  right += f"<h3>Versions</h3>{_table(versions)}" if versions else ""
  parts.append(f'<div class="columns"><div>{left}</div><div>{right}</div></div>')
  return "".join(parts)


_CSS = """
:root { --ink: #1d232b; --soft: #636b76; --line: #e2e5e9; --paper: #ffffff; --card: #f6f7f9;
  --accent: #1f64c0; --good: #1c7a4d; --warn: #8f5a00; --warn-paper: #fff6e3; --bad: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7eb; --soft: #9aa2ad; --line: #2d333b; --paper: #14171b; --card: #1c2026;
    --accent: #7db2ff; --good: #67c797; --warn: #f0c060; --warn-paper: #2c2414; --bad: #ff8a80; }
  /* white paper becomes black and then, by screen, the page's own; hues stay */
  img.curves { filter: invert(1) hue-rotate(180deg); mix-blend-mode: screen; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.5rem 3rem; max-width: 76rem; color: var(--ink);
  background: var(--paper); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, sans-serif; }
h1 { margin: 0; font-size: 2.4rem; line-height: 1.15; letter-spacing: -0.02em; }
h2 { margin: 3rem 0 1rem; padding-bottom: .35rem; font-size: 1.25rem;
  border-bottom: 1px solid var(--line); }
h3 { margin: 1.4rem 0 .5rem; font-size: .95rem; }
.lead { margin: .4rem 0 1rem; max-width: 52rem; color: var(--soft); font-size: 1.08rem; }
.origin { margin: .4rem 0; }
.quiet { color: var(--soft); }
.good { color: var(--good); font-weight: 600; }
.notice { padding: .6rem .9rem; border-left: 4px solid var(--warn); color: var(--warn);
  background: var(--warn-paper); border-radius: 0 6px 6px 0; }
.facts { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1.3rem 0; }
.facts div { flex: 1 1 9rem; padding: .7rem .95rem; background: var(--card); border-radius: 8px; }
.facts b { display: block; font-size: 1.3rem; font-variant-numeric: tabular-nums; }
.facts span { color: var(--soft); font-size: .85rem; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .92rem; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
.alarms { margin: 0; padding: 0; list-style: none; }
.alarms li { margin: .6rem 0; padding: .65rem .95rem; border-left: 4px solid var(--bad);
  background: var(--card); border-radius: 0 8px 8px 0; }
.alarms b { color: var(--bad); }
.alarms b::first-letter { text-transform: uppercase; }
.alarms p { margin: .15rem 0 0; }
.where { float: right; margin-left: 1rem; color: var(--soft); font-size: .85rem; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr));
  gap: 0 2.5rem; align-items: start; }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: .9rem; }
th, td { padding: .32rem .6rem .32rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
tbody th { font-weight: 400; color: var(--soft); }
thead th { font-size: .8rem; color: var(--soft); }
td { overflow-wrap: anywhere; }
.numbers td, .numbers thead th:not(:first-child) { text-align: right;
  font-variant-numeric: tabular-nums; }
pre { margin: 0; padding: .8rem 1rem; overflow-x: auto; background: var(--card);
  border-radius: 8px; font: .86rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.players { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(27rem, 100%), 1fr));
  gap: 1.5rem; align-items: start; }
.player { margin: 0; padding: 1rem; background: var(--card); border-radius: 10px; }
figcaption { display: flex; justify-content: space-between; gap: 1rem; margin-bottom: .7rem; }
figcaption b::first-letter { text-transform: uppercase; }
output { color: var(--soft); font-variant-numeric: tabular-nums; }
.frame img { display: block; margin: 0 auto; max-width: 100%; height: auto; border-radius: 4px; }
.frame pre { max-height: 30rem; overflow: auto; white-space: pre-wrap; }
.controls { display: flex; align-items: center; gap: .8rem; margin-top: .8rem; }
.controls input { flex: 1; accent-color: var(--accent); }
.controls button { width: 2.3rem; height: 2.3rem; border: 1px solid var(--line); cursor: pointer;
  border-radius: 50%; color: var(--accent); background: var(--paper); font-size: .85rem; }
img.curves { display: block; width: 100%; height: auto; }
summary { cursor: pointer; color: var(--accent); }
footer { margin-top: 3rem; color: var(--soft); font-size: .85rem; }
@media print {
  body { max-width: none; padding: 0; font-size: 10.5pt; }
  nav, .controls { display: none; }
  .player, .facts div, .alarms li, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  pre { white-space: pre-wrap; }
  .facts div, .player, pre { border: 1px solid var(--line); }
}
"""

_JS = """
for (const player of document.querySelectorAll(".player")) {
  const frames = player.querySelectorAll(".frame"), range = player.querySelector("input");
  const button = player.querySelector("button"), output = player.querySelector("output");
  if (!range) continue;
  let timer = null;
  const show = i => {
    frames.forEach((frame, j) => { frame.hidden = j !== i; });
    output.textContent = frames[i].dataset.label;
    range.value = i;
    range.setAttribute("aria-valuetext", frames[i].dataset.label);
  };
  const stop = () => {
    clearInterval(timer); timer = null;
    button.textContent = "\\u25b6"; button.setAttribute("aria-label", "Play");
  };
  range.addEventListener("input", () => { stop(); show(+range.value); });
  button.addEventListener("click", () => {
    if (timer) return stop();
    let i = +range.value === frames.length - 1 ? 0 : +range.value;
    show(i);
    button.textContent = "\\u275a\\u275a"; button.setAttribute("aria-label", "Pause");
    timer = setInterval(() => { i += 1; show(i); if (i === frames.length - 1) stop(); }, 200);
  });
}
"""
