"""Single layers of gm.nn against torch.nn.functional, on the shapes of the workloads.

python -m benchmarks.layers --only=conv4s2_64px,batch_32px --repeats=5

Two tasks for each layer y = f(x, w), with L = sum (y - target)^2 / 2 / batch:
  first:  L and its gradients in x and w                          (forward and backward)
  second: |dL/dx|^2 and its gradients in x and w                  (as a gradient penalty needs)
After each, x and w move a little down the gradient, so that no pass can be left out. Ours runs in a
compiled loop, as in training; PyTorch in both memory layouts, the faster one counts. Both sides
start from the same numbers, and the values of L and |dL/dx|^2 are compared.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks import measuring

RATE = 1e-6
TASKS = ("first", "second")
LAYOUTS = {"contiguous": "contiguous_format", "channels_last": "channels_last"}  # of PyTorch


class Kind(NamedTuple):
  """A layer in both libraries, with the same options."""

  ours: Callable  # (x, *params, **options), NHWC
  theirs: Callable  # (torch.nn.functional, x, *params, **options), NCHW
  turn: tuple  # NumPy functions: our params -> PyTorch's


def _conv(x, w, *, stride, pad):
  from gm.nn import conv

  return conv.conv(x, w, strides=stride, padding=pad)


def _transposed(x, w, *, stride, pad, more=0):
  from gm.nn import conv

  low = w.shape[0] - 1 - pad
  return conv.conv_transpose(x, w, strides=stride, padding=((low, low + more),) * 2)


def _norm(x, scale, bias, *, kind):
  from gm.nn import norm

  return norm.normalize(x, scale, bias, kind=kind)[0]


def _norm_torch(F, x, scale, bias, *, kind):
  if kind == "instance":
    return F.instance_norm(x, weight=scale, bias=bias)
  return F.batch_norm(x, None, None, scale, bias, training=True)


_same = lambda p: p
KINDS = {
  "conv": Kind(
    _conv,
    lambda F, x, w, *, stride, pad: F.conv2d(x, w, None, stride, pad),
    (lambda w: w.transpose(3, 2, 0, 1),),
  ),
  "transposed": Kind(
    _transposed,
    lambda F, x, w, *, stride, pad, more=0: F.conv_transpose2d(x, w, None, stride, pad, more),
    (lambda w: w[::-1, ::-1].transpose(2, 3, 0, 1),),
  ),
  "dense": Kind(lambda x, w: x @ w, lambda F, x, w: F.linear(x, w), (np.transpose,)),
  "norm": Kind(_norm, _norm_torch, (_same, _same)),
}


class Layer(NamedTuple):
  """A kind with its shapes."""

  kind: str
  x: tuple  # [N, H, W, C] or [N, C]
  params: tuple  # shapes, kernels [kh, kw, in, out]
  options: dict = {}  # noqa: RUF012, never changed


_FOUR = {"stride": 2, "pad": 1}
_FIVE = {"stride": 2, "pad": 2}
_THREE = {"stride": 1, "pad": 1}
LAYERS = {
  "conv4s2_64px": Layer("conv", (64, 64, 64, 3), ((4, 4, 3, 64),), _FOUR),
  "conv4s2_32px": Layer("conv", (64, 32, 32, 64), ((4, 4, 64, 128),), _FOUR),
  "conv4s2_8px": Layer("conv", (64, 8, 8, 256), ((4, 4, 256, 512),), _FOUR),
  "conv5s2_32px": Layer("conv", (64, 32, 32, 64), ((5, 5, 64, 128),), _FIVE),
  "conv3_32px": Layer("conv", (64, 32, 32, 64), ((3, 3, 64, 64),), _THREE),
  "conv3_8px": Layer("conv", (64, 8, 8, 256), ((3, 3, 256, 256),), _THREE),
  "up4s2_4px": Layer("transposed", (64, 4, 4, 512), ((4, 4, 512, 256),), _FOUR),
  "up4s2_16px": Layer("transposed", (64, 16, 16, 128), ((4, 4, 128, 64),), _FOUR),
  "up4s2_32px": Layer("transposed", (64, 32, 32, 64), ((4, 4, 64, 3),), _FOUR),
  "up5s2_16px": Layer("transposed", (64, 16, 16, 128), ((5, 5, 128, 64),), {**_FIVE, "more": 1}),
  "dense_784": Layer("dense", (128, 784), ((784, 400),)),
  "dense_128": Layer("dense", (256, 128), ((128, 128),)),
  "batch_32px": Layer("norm", (64, 32, 32, 64), ((64,), (64,)), {"kind": "batch"}),
  "batch_8px": Layer("norm", (64, 8, 8, 256), ((256,), (256,)), {"kind": "batch"}),
  "instance_32px": Layer("norm", (64, 32, 32, 64), ((64,), (64,)), {"kind": "instance"}),
}


def draw(shape: tuple, seed: int, fan: int = 1) -> np.ndarray:
  """Returns the same normal numbers in every process, of variance 1 / fan."""
  return np.random.default_rng(seed).standard_normal(shape, np.float32) / np.float32(fan**0.5)


def start(layer: Layer) -> tuple:
  """Returns x and the parameters, kernels scaled by their fan-in."""
  fans = [math.prod(shape[:-1]) for shape in layer.params]
  return draw(layer.x, 0), [draw(s, i + 1, f) for i, (s, f) in enumerate(zip(layer.params, fans))]


# ---------------------------------------------------------------------------------- the workers


def out_shape(layer: Layer) -> tuple:
  """Returns the shape of our y, from shapes alone."""
  import jax

  f = lambda x, *params: KINDS[layer.kind].ours(x, *params, **layer.options)
  shapes = [jax.ShapeDtypeStruct(shape, np.float32) for shape in (layer.x, *layer.params)]
  return jax.eval_shape(f, *shapes).shape


def ours(layer: Layer, task: str) -> Callable:
  """Returns block(n) -> the value at the last of n steps."""
  import jax
  import jax.numpy as jnp

  def first(leaves, target):
    y = KINDS[layer.kind].ours(*leaves, **layer.options)
    return jnp.sum((y - target) ** 2) / 2 / len(y)

  def second(leaves, target):
    return jnp.sum(jax.grad(first)(leaves, target)[0] ** 2)

  def step(_, carry):
    leaves, target, _ = carry
    value, grads = jax.value_and_grad(first if task == "first" else second)(leaves, target)
    return jax.tree.map(lambda a, g: a - RATE * g, leaves, grads), target, value

  run = jax.jit(lambda n, *carry: jax.lax.fori_loop(0, n, step, carry))
  x, params = start(layer)
  carry = jax.tree.map(jnp.asarray, ([x, *params], draw(out_shape(layer), 9), np.float32(0)))
  return lambda n: float(run(n, *carry)[2])


def theirs(layer: Layer, task: str, layout: str) -> Callable:
  """The same in PyTorch."""
  import torch
  from torch.nn import functional as F

  def tensor(a):
    t = torch.from_numpy(np.ascontiguousarray(a))
    return t.contiguous(memory_format=getattr(torch, LAYOUTS[layout])) if t.ndim == 4 else t

  image = lambda a: a.transpose(0, 3, 1, 2) if a.ndim == 4 else a
  kind, (x, params) = KINDS[layer.kind], start(layer)
  params = [turn(p) for turn, p in zip(kind.turn, params)]
  leaves = [tensor(a).requires_grad_() for a in (image(x), *params)]
  f = lambda: kind.theirs(F, *leaves, **layer.options)
  shape = f().shape
  target = tensor(image(draw((shape[0], *shape[2:], shape[1]), 9)))

  def step():
    value = (f() - target).square().sum() / 2 / len(target)
    if task == "second":
      (slope,) = torch.autograd.grad(value, leaves[0], create_graph=True)
      value = slope.square().sum()
    grads = torch.autograd.grad(value, leaves)
    with torch.no_grad():
      for leaf, grad in zip(leaves, grads):
        leaf.sub_(grad, alpha=RATE)
    return value

  return lambda n: float([step().detach() for _ in range(n)][-1])


def work(side: str, args: Any) -> dict:
  """Measures all chosen layers on one side: {name/task: {"step": seconds, "value": at first}}."""
  measuring.limit_threads(args.threads)
  if side != "ours":
    import torch

    torch.set_num_threads(args.threads)
  found = {}
  for name in measuring.choose(args.only, list(LAYERS)):
    for task in TASKS:
      layer = LAYERS[name]
      block = ours(layer, task) if side == "ours" else theirs(layer, task, side)
      value = block(1)
      found[f"{name}/{task}"] = {"value": value, "step": measuring.per_step(block, args.seconds)}
  return found


# --------------------------------------------------------------------------------- the measuring


def check(rounds: dict) -> None:
  """Ends the run where a side failed, or where the sides do not compute the same."""
  for side, found in rounds.items():
    if "error" in found:
      raise SystemExit(f"error: {side}: {found['error']}")
    for name, us in rounds["ours"].items():
      if not math.isclose(us["value"], found[name]["value"], rel_tol=1e-3):
        raise SystemExit(f"error: {name}: {side} gives {found[name]['value']}, ours {us['value']}")


def summary(runs: list[dict]) -> dict:
  """Returns {name/task: {"ms", "torch", "layout", "ratio"}}, medians, PyTorch's faster layout."""
  found = {}
  for name in runs[0]["ours"]:
    times = {side: [r[side][name]["step"] for r in runs] for side in runs[0]}
    best = min(LAYOUTS, key=lambda layout: statistics.median(times[layout]))
    found[name] = {
      "ms": 1e3 * statistics.median(times["ours"]),
      "torch": 1e3 * statistics.median(times[best]),
      "layout": best,
      "ratio": measuring.ratio(times["ours"], times[best]),
    }
  return found


def table(found: dict) -> str:
  """Returns the Markdown of a summary."""
  rows = []
  for name, s in found.items():
    layer, task = name.split("/")
    shapes = " * ".join("x".join(map(str, s)) for s in (LAYERS[layer].x, LAYERS[layer].params[0]))
    spread = f"{s['ratio'].median:.2f} ({s['ratio'].least:.2f} to {s['ratio'].most:.2f})"
    times = [f"{s['ms']:.3g}", f"{s['torch']:.3g} ({s['layout']})"]
    rows.append([layer, shapes, task, *times, spread])
  head = ["layer", "input and kernel", "derivatives", "gm, ms", "PyTorch, ms", "gm / PyTorch"]
  return measuring.markdown(head, rows)


def main() -> None:
  """Measures, or works where --worker says so."""
  parser = measuring.flags(__doc__.split("\n")[0], seconds=1.0)
  parser.add_argument("--only", default="", help=f"some of {','.join(LAYERS)}")
  args = parser.parse_args()
  if args.worker:
    print(json.dumps(work(args.worker, args)))
    return
  flags, sides, runs = [f"--only={args.only}", f"--seconds={args.seconds}"], ["ours", *LAYOUTS], []
  measuring.choose(args.only, list(LAYERS))
  machine = measuring.machine()
  with tempfile.TemporaryDirectory() as folder:
    for i in range(args.repeats):
      print(f"round {i + 1} of {args.repeats}", file=sys.stderr, flush=True)
      run = lambda side: measuring.run_worker(
        "benchmarks.layers", side, folder=folder, threads=args.threads, flags=flags
      )
      rounds = {side: run(side) for side in (sides if i % 2 == 0 else sides[::-1])}
      check(rounds)
      runs.append(rounds)
  found = summary(runs)
  ratios = {name: s["ratio"] for name, s in found.items()}
  results = {"machine": machine, "settings": vars(args), "runs": runs, "summary": found}
  draw = lambda figure: measuring.draw_ratios(figure, ratios)
  measuring.write(args.output, "layers", results, table(found), draw)
  print(table(found))


if __name__ == "__main__":
  main()
