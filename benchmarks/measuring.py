"""What the benchmarks share: a process for each measurement, ratios of pairs, files of results."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).parent.parent
BLOCK_SECONDS, MAX_STEPS = 0.03, 64  # steps timed together, as the loop calls them
WORKER_SECONDS = 3600  # after which a measurement counts as failed


# ------------------------------------------------------------------------------ inside a worker


def limit_threads(num_threads: int) -> None:
  """Gives this process so many cores; call it before jax or torch is imported."""
  if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:num_threads])
  os.environ["OMP_NUM_THREADS"] = str(num_threads)


def per_step(block: Callable[[int], Any], seconds: float, *, period: int = 1) -> float:
  """Returns the median seconds of a step; block(n) does n steps, at least 3 blocks are timed.

  Every block is a whole number of periods: where some steps do more than others, such as a
  regulariser at every 16th, each block has as many of them, and the median is one of means.

  Raises:
    ValueError: if a period does not fit into a block.
  """
  if period > MAX_STEPS:
    raise ValueError(f"a period of {period} steps does not fit into a block of {MAX_STEPS}")

  def timed(n):
    start = time.perf_counter()
    block(n)
    return (time.perf_counter() - start) / n

  block(1)
  n = period * max(1, min(MAX_STEPS, int(BLOCK_SECONDS / timed(1))) // period)
  block(n)
  each, end = [], time.perf_counter() + seconds
  while time.perf_counter() < end or len(each) < 3:
    each.append(timed(n))
  return statistics.median(each)


def peak_megabytes() -> float:
  """Returns the most memory that this process has held."""
  try:  # of this program alone; getrusage also counts the one that started it
    lines = pathlib.Path("/proc/self/status").read_text().split("\n")
    return int(next(x for x in lines if x.startswith("VmHWM")).split()[1]) / 1024
  except OSError:
    import resource

    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


# ------------------------------------------------------------------------------ starting workers


def run_worker(module: str, task: str, *, folder: str, threads: int, flags: Sequence = ()) -> dict:
  """Runs `python -m module --worker=task` and returns the JSON of its last line.

  Args:
    module: of a benchmark.
    task: what its worker does.
    folder: compiled programs are kept in it, so an empty one makes a cold start.
    threads: cores and threads.
    flags: more flags.

  Returns:
    What the worker printed, or {"error": the last line that it wrote to stderr}.
  """
  command = [sys.executable, "-m", module, f"--worker={task}", f"--threads={threads}", *flags]
  caches = {"JAX_COMPILATION_CACHE_DIR": "xla", "TORCHINDUCTOR_CACHE_DIR": "inductor"}
  env = {**os.environ, **{k: os.path.join(folder, v) for k, v in caches.items()}}
  command.append(f"--started={time.time()}")
  try:
    done = subprocess.run(
      command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=WORKER_SECONDS
    )
  except subprocess.TimeoutExpired:
    return {"error": f"not done after {WORKER_SECONDS} seconds"}
  return parse_worker(done.returncode, done.stdout, done.stderr)


def parse_worker(status: int, stdout: str, stderr: str) -> dict:
  """Returns a worker's result from what it left."""
  if status == 0:
    return json.loads(stdout.strip().split("\n")[-1])
  lines = [x.strip() for x in stderr.split("\n") if x.strip()]
  errors = [x for x in lines if "Error" in x.split(":")[0]]  # a traceback's last line, not advice
  return {"error": (errors or lines or [f"exit status {status}"])[-1][:200]}


def flags(description: str, *, seconds: float = 10.0) -> argparse.ArgumentParser:
  """Returns the flags that every benchmark has."""
  parser = argparse.ArgumentParser(description=description)
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--seconds", type=float, default=seconds, help="per measurement")
  parser.add_argument("--threads", type=int, default=2)
  parser.add_argument("--output", default="/tmp/gm-benchmarks", help="folder of the results")
  parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
  parser.add_argument("--started", type=float, default=0.0, help=argparse.SUPPRESS)
  return parser


def choose(only: str, known: Sequence[str]) -> list[str]:
  """Returns the names in a comma-separated list; all where it is empty.

  Raises:
    SystemExit: for a name that does not exist.
  """
  names = only.split(",") if only else list(known)
  if set(names) - set(known):
    raise SystemExit(f"error: --only={only} must name some of {', '.join(known)}")
  return names


# --------------------------------------------------------------------------------- what it means


class Ratio(NamedTuple):
  """Ours over theirs: below 1 we are faster."""

  median: float
  least: float
  most: float


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
  """Compares measurements that were made in pairs: the median, least and largest of the ratios."""
  ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
  return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Returns a Markdown table."""
  lines = [head, ["---"] * len(head), *rows]
  return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def machine() -> dict:
  """Returns what was measured on.

  Raises:
    SystemExit: where PyTorch is not installed.
  """
  model = platform.processor() or platform.machine()
  if os.path.exists("/proc/cpuinfo"):
    lines = pathlib.Path("/proc/cpuinfo").read_text().split("\n")
    model = next((x.partition(": ")[2] for x in lines if x.startswith("model name")), model)
  packages = ("jax", "jaxlib", "flax", "optax", "numpy", "torch")
  installed = {d.name: d.version for d in importlib.metadata.distributions()}
  if "torch" not in installed:
    raise SystemExit("error: PyTorch is missing: pip install -r benchmarks/requirements.txt")
  return {
    "processor": model,
    "cores": os.cpu_count(),
    "load": os.getloadavg()[0],  # of other work, taken before the first measurement
    "python": platform.python_version(),
    **{p: installed[p] for p in packages},
  }


def write(folder: str, name: str, results: dict, text: str, draw: Callable | None = None) -> None:
  """Writes folder/name.json, .md and, with `draw(figure)`, .png."""
  path = pathlib.Path(folder)
  path.mkdir(parents=True, exist_ok=True)
  (path / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
  (path / f"{name}.md").write_text(text)
  if draw is not None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure = plt.figure(layout="constrained")
    draw(figure)
    figure.savefig(path / f"{name}.png", dpi=130)
    plt.close(figure)


def draw_ratios(figure: Any, ratios: dict[str, Ratio]) -> None:
  """Draws one bar for each name with its spread, and a line where both take the same time."""
  figure.set_size_inches(7, 1.2 + 0.35 * len(ratios))
  axes, places = figure.subplots(), range(len(ratios))
  values = list(ratios.values())
  spread = [[r.median - r.least for r in values], [r.most - r.median for r in values]]
  axes.barh(places, [r.median for r in values], xerr=spread, color="#4c72b0", capsize=3)
  axes.axvline(1.0, color="black", linewidth=1)
  axes.set_yticks(places, list(ratios))
  axes.invert_yaxis()
  axes.set_xlabel("time of gm / time of PyTorch (below 1: gm is faster)")
