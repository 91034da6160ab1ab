"""Step time and memory of one workload against batch size, resolution and width.

python -m benchmarks.scaling --only=dcgan32 --repeats=3 --output=/tmp/gm-benchmarks

Ours and PyTorch with channels_last and fused Adam; processes and steps are those of
benchmarks.steps.
"""

from __future__ import annotations

import statistics
import tempfile
from typing import Any

from benchmarks import measuring, steps

_BATCH = ("batch_size",), (16, 32, 64, 128)
_SIZE = ("data.image_size",), (16, 32, 64)
_DCGAN = ("model.g_base", "model.d_base"), (16, 32, 64)
_WGAN = ("model.base",), (16, 32, 64)
AXES = {  # workload -> axis -> the config keys that it sets, and their values
  "dcgan32": {"batch size": _BATCH, "pixels": _SIZE, "width": _DCGAN},
  "wgan_gp32": {"batch size": _BATCH, "pixels": _SIZE, "width": _WGAN},
}
SIDES = {"ours": "gm", "tuned": "PyTorch"}


def measure(name: str, args: Any, folder: str) -> list[dict]:
  """Measures every point of every axis: {"axis", "value", "side", "ms", "megabytes"}."""
  points = []
  for axis, (keys, values) in AXES[name].items():
    for value in values:
      changes = ",".join(f"{key}={value}" for key in keys)
      known = steps.run(f"facts:{name}", args, folder, seconds=0, changes=changes)
      # compiling takes memory of its own: it is done before anything is measured
      steps.run(f"ours:{name}", args, folder, seconds=0, changes=changes)
      runs = {side: [] for side in SIDES}
      for _ in range(args.repeats):
        for side, found in runs.items():
          task = f"{side}:{name}"
          found.append(steps.run(task, args, folder, seconds=args.seconds, changes=changes))
          if "error" in found[-1]:
            raise SystemExit(f"error: {task} with {changes}: {found[-1]['error']}")
          steps.check(name, side, known, found[-1])
      for side, found in runs.items():
        ms = 1e3 * statistics.median(r["step"] for r in found)
        megabytes = statistics.median(r["megabytes"] for r in found)
        point = {"axis": axis, "value": value, "side": side, "ms": ms, "megabytes": megabytes}
        points.append(point)
  return points


def table(points: list[dict]) -> str:
  """Returns the Markdown of all points, one row for each value of an axis."""
  rows = {}
  for p in points:
    rows.setdefault((p["axis"], p["value"]), {})[p["side"]] = p
  cells = []
  for (axis, value), row in rows.items():
    ms = [f"{row[side]['ms']:.3g}" for side in SIDES]
    cells.append([axis, value, *ms, *(f"{row[side]['megabytes']:.0f}" for side in SIDES)])
  titles = SIDES.values()
  head = ["axis", "value", *(f"{t}, ms" for t in titles), *(f"{t}, MB" for t in titles)]
  return measuring.markdown(head, cells)


def draw(figure: Any, points: list[dict]) -> None:
  """Draws time above memory, one column for each axis."""
  axes = list(dict.fromkeys(p["axis"] for p in points))
  figure.set_size_inches(3.3 * len(axes), 5.2)
  grid = figure.subplots(2, len(axes), squeeze=False)
  for row, (key, label) in enumerate((("ms", "step, ms"), ("megabytes", "peak memory, MB"))):
    for column, axis in enumerate(axes):
      panel = grid[row][column]
      for side, title in SIDES.items():
        line = [p for p in points if p["axis"] == axis and p["side"] == side]
        panel.plot([p["value"] for p in line], [p[key] for p in line], "o-", label=title)
      values = sorted({p["value"] for p in points if p["axis"] == axis})
      panel.set_xscale("log", base=2)
      panel.set_xticks(values, [str(v) for v in values])
      panel.minorticks_off()
      if key == "ms":
        panel.set_yscale("log")
      else:
        panel.set_ylim(bottom=0)
        panel.set_xlabel(axis)
    grid[row][0].set_ylabel(label)
  grid[0][0].legend()


def main() -> None:
  """Measures one workload."""
  parser = measuring.flags(__doc__.split("\n")[0], seconds=5.0)
  parser.add_argument("--only", default="dcgan32", choices=list(AXES))
  args = parser.parse_args()
  results = {"machine": measuring.machine(), "settings": vars(args)}
  with tempfile.TemporaryDirectory() as folder:
    points = measure(args.only, args, folder)
  name = f"scaling_{args.only}"
  results = {**results, "points": points}
  measuring.write(args.output, name, results, table(points), lambda figure: draw(figure, points))
  print(table(points))


if __name__ == "__main__":
  main()
