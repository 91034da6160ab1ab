"""Plots of points, series and rows as PNG.

Figures are drawn on Agg canvases without pyplot's global state, so that a thread may write while
the next steps run; matplotlib is imported when the first is drawn.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_BLUE, _GREY, _LIGHT, _INK = "#2f6fd0", "#8a8f98", "#c9cdd3", "#333a45"


def layout(num: int, height: int, width: int) -> tuple[int, int]:
  """Rows and columns of a nearly square picture with few empty places; 10 square tiles: 2 x 5."""

  def cost(cols):
    rows = -(-num // cols)
    cost = abs(math.log(rows * height / (cols * width))) + 5 * (rows * cols - num) / num
    return round(cost, 6)  # so that 2 x 3 ties with 3 x 2, and the wider is taken

  cols = min(range(num, 0, -1), key=cost)
  return -(-num // cols), cols


def _figure(width: float, height: float) -> Any:
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(width, height), dpi=100)
  FigureCanvasAgg(figure)
  return figure


def _png(figure: Any) -> bytes:
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png")
  return buffer.getvalue()


def _tidy(axes: Any) -> None:
  axes.tick_params(labelsize=8, colors=_GREY, length=2)
  for side, spine in axes.spines.items():
    spine.set_visible(side in ("left", "bottom"))
    spine.set_color(_LIGHT)


def _finite(x: np.ndarray) -> np.ndarray:
  """Rows [N, ...] without those that hold a NaN or an infinity."""
  x = x.astype(np.float32)
  return x[np.isfinite(x.reshape(len(x), -1)).all(axis=1)]


def _window(*candidates: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
  """Limits [D], [D] with a margin, from the first candidate [N, D] that has rows.

  Real data come first, so that the axes of all steps agree.
  """
  for x in candidates:
    if x is not None and len(x):
      low, high = x.min(axis=0), x.max(axis=0)
      margin = np.maximum(0.15 * (high - low), 1e-3)
      return low - margin, high + margin
  return np.full(2, -1.0), np.full(2, 1.0)


def _modes(info: Any, dim: int) -> np.ndarray:
  centres = np.asarray(getattr(info, "modes", ()), np.float32)
  if not centres.size:
    return np.zeros((0, dim), np.float32)
  centres = centres.reshape(len(centres), -1)
  return centres if centres.shape[1] == dim else np.zeros((0, dim), np.float32)


def points(x: np.ndarray, real: np.ndarray | None, info: Any) -> bytes:
  """[N, D] -> PNG: a density scatter of the first two coordinates; D = 1: a histogram."""
  total = len(x)
  x = _finite(x.reshape(total, -1))
  real = None if real is None else _finite(real.reshape(len(real), -1))
  centres = _modes(info, x.shape[1])
  low, high = _window(real, centres, x)
  outside = total - int(((x >= low) & (x <= high)).all(axis=1).sum())
  note = f"{total:,} points" + (f", {outside:,} outside" if outside else "")
  note += ", real data in grey" if real is not None else ""
  note += f"; coordinates 1 and 2 of {x.shape[1]}" if x.shape[1] > 2 else ""
  if x.shape[1] == 1:
    return _histograms({note: (x[:, 0], None if real is None else real[:, 0])}, centres[:, 0])
  figure = _figure(5.6, 5.6)
  axes = figure.add_axes((0.08, 0.06, 0.89, 0.87))
  _tidy(axes)
  axes.grid(color="#eef0f2", linewidth=0.6)
  axes.set_axisbelow(True)
  if real is not None and len(real):
    axes.scatter(*real[:4000, :2].T, s=7, color=_LIGHT, linewidths=0, label="real")
  if len(centres):
    style = {"facecolors": "none", "edgecolors": _GREY, "linewidths": 1.0}
    axes.scatter(*centres[:, :2].T, s=90, label="modes", **style)
  if len(x):
    density, x = _by_density(x[:, :2], low[:2], high[:2])
    axes.scatter(*x.T, s=6, c=density, cmap="plasma_r", vmin=0.0, vmax=1.0, linewidths=0)
  axes.set_xlim(low[0], high[0])
  axes.set_ylim(low[1], high[1])
  axes.set_aspect("equal", adjustable="box")
  axes.set_title(note, fontsize=9, color=_INK, loc="left")
  return _png(figure)


def _by_density(x: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple:
  """Relative density [N] and points [N, 2], the densest last, so that they lie on top."""
  bins = 48
  cell = ((x - low) / (high - low) * bins).clip(0, bins - 1).astype(int)
  cell = cell[:, 0] * bins + cell[:, 1]
  count = np.bincount(cell, minlength=bins * bins)[cell]
  order = np.argsort(count, kind="stable")
  shade = 0.2 + 0.8 * np.sqrt(count / count.max())  # the palest colours are lost on white
  return shade[order], x[order]


def _histograms(columns: Mapping[str, tuple], centres: np.ndarray | Sequence = ()) -> bytes:
  """{title: (fake [N], real [M] or None)} -> PNG with one histogram each, at most 24."""
  columns = dict(list(columns.items())[:24])
  rows, cols = layout(len(columns), 3, 4) if len(columns) > 1 else (1, 1)
  width, height = (3.0 * cols, 2.3 * rows) if len(columns) > 1 else (6.4, 4.2)
  figure = _figure(width, height)
  for i, (title, (fake, real)) in enumerate(columns.items()):
    axes = figure.add_subplot(rows, cols, i + 1)
    _tidy(axes)
    low, high = _window(*(None if v is None else v[:, None] for v in (real, fake)))
    edges = np.linspace(low[0], high[0], 61)
    for values, style in (
      (real, {"color": _LIGHT, "histtype": "stepfilled"}),
      (fake, {"color": _BLUE, "histtype": "step", "linewidth": 1.4}),
    ):
      if values is not None and len(values):
        weights = np.full(len(values), 1.0 / (len(values) * (edges[1] - edges[0])))
        axes.hist(values, edges, weights=weights, **style)
    for centre in centres:
      axes.axvline(centre, color=_GREY, linewidth=0.8, linestyle=":")
    axes.set_yticks([])
    axes.set_title(title, fontsize=9, color=_INK, loc="left", parse_math=False)
  figure.subplots_adjust(0.3 / width, 0.3 / height, 1 - 0.1 / width, 1 - 0.3 / height, 0.15, 0.45)
  return _png(figure)


def rows(x: np.ndarray, real: np.ndarray | None, info: Any) -> bytes:
  """[N, F] -> PNG: a histogram per column, generated as a line over real in grey."""
  names = [c if isinstance(c, str) else c[0] for c in getattr(info, "columns", ())]
  x, real = _finite(x), None if real is None else _finite(real)
  names += [f"column {i}" for i in range(len(names), x.shape[1])]
  title = lambda i: names[i] if names.count(names[i]) == 1 else f"{names[i]} ({i})"
  pairs = ((x[:, i], None if real is None else real[:, i]) for i in range(x.shape[1]))
  return _histograms({str(title(i)): pair for i, pair in enumerate(pairs)})


def series(x: np.ndarray, real: np.ndarray | None, info: Any) -> bytes:
  """[N, T, F] -> PNG: up to twelve series, a line per feature; four real ones in grey above."""
  del info
  shown = [] if real is None else [(s, "real") for s in real[:4]]
  shown += [(s, "generated" if shown else "") for s in x[:12]]
  cols = min(4, max(1, len(shown)))
  rows = -(-len(shown) // cols)
  width, height = 2.6 * cols, 1.7 * rows
  figure = _figure(width, height)
  values = np.asarray([s for s, _ in shown if np.isfinite(s).all()], np.float32)
  low, high = _window(values.reshape(-1, 1)) if values.size else _window()
  shades = ["#2f6fd0", "#d9822b", "#2a9d6f", "#b0488f", "#7a6ad8", "#6b7280"]
  for i, (series, label) in enumerate(shown):
    axes = figure.add_subplot(rows, cols, i + 1)
    _tidy(axes)
    for j, line in enumerate(series.T[:6]):
      grey = {"color": _GREY, "alpha": 1 - 0.13 * j} if label == "real" else {"color": shades[j]}
      axes.plot(line, linewidth=1.0, **grey)
    axes.set_ylim(low[0], high[0])
    axes.set_title(label, fontsize=8, color=_INK, loc="left", pad=2)
    axes.tick_params(labelsize=6, labelleft=i % cols == 0, labelbottom=i >= len(shown) - cols)
  figure.subplots_adjust(0.45 / width, 0.3 / height, 1 - 0.1 / width, 1 - 0.2 / height, 0.08, 0.25)
  return _png(figure)


def paths(x: np.ndarray, info: Any) -> bytes:
  """[rows, cols, D] -> PNG: one path a row through the plane of the first two coordinates."""
  figure = _figure(5.6, 5.6)
  axes = figure.add_axes((0.08, 0.06, 0.89, 0.87))
  _tidy(axes)
  axes.grid(color="#eef0f2", linewidth=0.6)
  if x.shape[-1] == 1:  # no plane: place in the row against value
    place = np.broadcast_to(np.arange(x.shape[1])[None, :, None], x.shape)
    x = np.concatenate([place, x], axis=-1)
  elif len(centres := _modes(info, x.shape[-1])):
    style = {"facecolors": "none", "edgecolors": _GREY, "linewidths": 1.0}
    axes.scatter(*centres[:, :2].T, s=90, **style)
  for i, path in enumerate(x):
    shade = f"C{i % 10}"
    axes.plot(*path[:, :2].T, linewidth=0.8, color=shade, alpha=0.6)
    axes.scatter(*path[:, :2].T, s=8, color=shade, linewidths=0)
  return _png(figure)


def table(name: str, table: Mapping[str, np.ndarray]) -> bytes:
  """A dict of `Stage.show` -> PNG."""
  shapes = ", ".join(f"{k} {v.shape}" for k, v in table.items())
  if "points" in table:
    points, label = table["points"], table.get("label")
    fits = points.ndim == 2 and points.shape[1] == 2 and set(table) <= {"points", "label"}
    fits = fits and (
      label is None or (label.shape == points.shape[:1] and label.dtype.kind in "iu")
    )
    if fits:
      return _classes(points, label)
  elif said := next((k for k in table if k == "x" or k.startswith("x: ")), None):
    x, draws = table[said], table.get("draws")
    curves = {k: v for k, v in table.items() if k not in (said, "draws")}
    fits = x.ndim == 1 and all(c.shape == x.shape for c in curves.values())
    if fits and len(x) and (draws is None or draws.ndim == 1):
      labels = [part[3:] for part in said.partition("; ")[::2]]  # of "x: one; y: another"
      return _curves(x, curves, draws, labels)
  raise ValueError(
    f"show: {name!r} holds {shapes}; a plot is points [N, 2] with an optional label [N] of"
    " integers, or x [N] with curves [N] and optional draws [M]"
  )


def _legend(axes: Any, **place: Any) -> None:
  if axes.get_legend_handles_labels()[0]:
    style = {"fontsize": 8, "labelcolor": _INK, "framealpha": 0.85, "edgecolor": "none"}
    legend = axes.legend(**style, handletextpad=0.4, borderpad=0.3, **place)
    for text in legend.get_texts():
      text.set_parse_math(False)


def _class_colours(classes: np.ndarray) -> dict[int, tuple]:
  """{class: RGBA}: ten that can be told apart, by number where they are 0 to 9; more, a scale."""
  from matplotlib import colormaps

  if len(classes) > 10:
    return dict(zip(classes.tolist(), colormaps["turbo"](np.linspace(0.0, 1.0, len(classes)))))
  digits = classes.min(initial=0) >= 0 and classes.max(initial=0) < 10
  return {int(c): colormaps["tab10"](int(c) if digits else i) for i, c in enumerate(classes)}


def _classes(x: np.ndarray, label: np.ndarray | None) -> bytes:
  """[N, 2] and labels [N] -> PNG: a scatter with a colour and a legend entry for each class."""
  width = 5.6 if label is None else 6.2  # inches; the legend stands beside the points
  figure = _figure(width, 5.6)
  axes = figure.add_axes((0.45 / width, 0.06, 5.0 / width, 0.87))
  _tidy(axes)
  axes.grid(color="#eef0f2", linewidth=0.6)
  axes.set_axisbelow(True)
  finite = np.isfinite(x).all(axis=1)
  lost = len(x) - int(finite.sum())
  note = f"{len(x):,} points" + (f", {lost:,} not finite" if lost else "")
  x = x[finite]
  style = {"s": float(np.clip(30_000 / max(1, len(x)), 4, 16)), "linewidths": 0}
  if label is None:
    axes.scatter(*x.T, color=_BLUE, **style)
  elif len(x):
    colours = _class_colours(np.unique(label))
    # in the order given, not class by class: the last class would hide the others
    axes.scatter(*x.T, c=[colours[c] for c in label[finite].tolist()], **style)
    for c, colour in colours.items():
      axes.scatter([], [], s=30, linewidths=0, color=[colour], label=str(c))
    if len(colours) <= 26:  # what fits
      _legend(axes, loc="upper left", bbox_to_anchor=(1.0, 1.0))
  axes.set_title(note, fontsize=9, color=_INK, loc="left")
  return _png(figure)


def _curves(
  x: np.ndarray, curves: Mapping, draws: np.ndarray | None, labels: Sequence[str]
) -> bytes:
  """[N], {name: [N]} and draws [M] -> PNG: curves over x on a histogram of density."""
  figure = _figure(6.4, 4.2)
  axes = figure.add_axes((0.11, 0.11, 0.86, 0.80))
  _tidy(axes)
  style = {"fontsize": 9, "color": _INK, "parse_math": False}
  axes.set_xlabel(labels[0], **style)
  axes.set_ylabel(labels[1], **style)
  axes.grid(color="#eef0f2", linewidth=0.6)
  axes.set_axisbelow(True)
  if draws is not None and len(draws):
    low, high = float(x.min()), float(x.max())
    inside = draws[(draws >= low) & (draws <= high)]  # neither NaN
    outside = len(draws) - len(inside)
    if draws.dtype.kind in "iu":
      place, count = np.unique(inside, return_counts=True)
      axes.bar(place, count / len(draws), width=0.8, color=_LIGHT, label="draws")
    else:
      bins = int(np.clip(2 * len(draws) ** (1 / 3), 10, 100))  # Rice's rule
      count, edges = np.histogram(inside, bins, (low, high))
      density = count / (len(draws) * (edges[1] - edges[0]))
      axes.stairs(density, edges, fill=True, color=_LIGHT, label="draws")
    note = f"{len(draws):,} draws" + (f", {outside:,} outside" if outside else "")
    axes.set_title(note, fontsize=9, color=_INK, loc="left")
  order = np.argsort(x, kind="stable")
  marker = {"marker": "o", "markersize": 5, "linestyle": ":"} if x.dtype.kind in "iu" else {}
  for i, (name, y) in enumerate(curves.items()):
    axes.plot(x[order], y[order], color=f"C{i % 10}", linewidth=1.4, label=name, **marker)
  _legend(axes)
  return _png(figure)


BY_KIND = {"point": points, "series": series, "row": rows}
