"""Curves: every scalar over the steps as small multiples, one panel for each family."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gm.workdir import log

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


def draw(records: Sequence[Mapping]) -> bytes | None:
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

  series, spans = by_metric(records)
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


def by_metric(records: Sequence[Mapping]) -> tuple[dict, list]:
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
        if number and name not in log.KEYS[:3]:
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
    label = f"{'last' if len(series) == 1 else name}  {number(float(last))}"
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


def number(value: Any) -> str:
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
