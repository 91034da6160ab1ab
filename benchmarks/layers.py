"""Single layers of gm.nn against torch.nn.functional, on the shapes of the workloads.

python -m benchmarks.layers --only=conv4s2_64px,batch_32px --repeats=5

Two tasks for each layer y = f(x, w), with L = sum (y - target)^2 / 2 / batch:
  first:  L and its gradients in x and w                          (forward and backward)
  second: |dL/dx|^2 and its gradients in x and w                  (as a gradient penalty needs)
After each, x and w move a little down the gradient, so that no pass can be left out. Ours runs in a
compiled loop on one device per core, as in training (dense layers and the LSTM: on one device);
PyTorch in both memory layouts, the faster one counts. Both sides
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
  split: bool = True  # over one device per core, as convolutional networks train


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


def _grouped(x, w, *, groups):
  from gm.nn import grouped

  return grouped.grouped(x, w, groups=groups)


def _modulated(x, w, style):
  from gm.nn import modulated

  return modulated.modulated_conv(x, w, style)


def _modulated_torch(F, x, w, style):
  """The same products in the same order: of the authors' two forms the faster one on a CPU."""
  d = ((style**2) @ (w**2).sum((2, 3)).T + 1e-8).rsqrt()
  return F.conv2d(x * style[:, :, None, None], w, None, 1, 1) * d[:, :, None, None]


def _folded(x, w, *, up):
  from gm.nn import fold

  return (fold.up_conv if up else fold.conv_pool)(x, w)


def _folded_torch(F, x, w, *, up):
  if up:
    return F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), w, None, 1, 1)
  return F.avg_pool2d(F.conv2d(x, w, None, 1, 1), 2)


def _fir(x, *, up):
  from gm.nn import resample

  return (resample.upsample if up else resample.downsample)(x)


def _fir_torch(F, x, *, up):
  """A depthwise convolution, transposed to upsample."""
  taps = x.new_tensor([1.0, 3.0, 3.0, 1.0]) / 8
  kernel = (taps[:, None] * taps).expand(x.shape[1], 1, 4, 4)
  if up:
    return F.conv_transpose2d(x, 4 * kernel, None, 2, 1, groups=x.shape[1])
  return F.conv2d(x, kernel, None, 2, 1, groups=x.shape[1])


def _lstm(x, kernel):
  import jax.numpy as jnp

  from gm.nn import rnn

  width = kernel.shape[1]
  params = {"kernel": kernel, "bias": jnp.zeros(width)}
  return rnn.LSTM(width // 4, forget_bias=0.0).apply({"params": params}, x)[0]


def _lstm_torch(F, x, kernel):
  from torch import _VF

  features, width = x.shape[-1], kernel.shape[1] // 4
  weights = [kernel[:features].T, kernel[features:].T]  # the gates in the same order
  biases = [kernel.new_zeros(4 * width)] * 2
  first = (x.new_zeros(1, len(x), width),) * 2
  return _VF.lstm(x, first, weights + biases, True, 1, 0.0, True, False, True)[0]


def _attend(x, k, v, *, causal):
  from gm.nn import attention

  return attention.attend(x, k, v, causal=causal)


_same = lambda p: p
_kernel = lambda w: w.transpose(3, 2, 0, 1)
KINDS = {
  "conv": Kind(
    _conv, lambda F, x, w, *, stride, pad: F.conv2d(x, w, None, stride, pad), (_kernel,)
  ),
  "grouped": Kind(
    _grouped, lambda F, x, w, *, groups: F.conv2d(x, w, None, 1, 1, 1, groups), (_kernel,)
  ),
  "modulated": Kind(_modulated, _modulated_torch, (_kernel, _same)),
  "folded": Kind(_folded, _folded_torch, (_kernel,)),
  "fir": Kind(_fir, _fir_torch, ()),
  "lstm": Kind(_lstm, _lstm_torch, (_same,), split=False),
  "attention": Kind(
    _attend,
    lambda F, x, k, v, *, causal: F.scaled_dot_product_attention(x, k, v, is_causal=causal),
    (_same, _same),
  ),
  "transposed": Kind(
    _transposed,
    lambda F, x, w, *, stride, pad, more=0: F.conv_transpose2d(x, w, None, stride, pad, more),
    (lambda w: w[::-1, ::-1].transpose(2, 3, 0, 1),),
  ),
  "dense": Kind(lambda x, w: x @ w, lambda F, x, w: F.linear(x, w), (np.transpose,), split=False),
  "norm": Kind(_norm, _norm_torch, (_same, _same)),
}


class Layer(NamedTuple):
  """A kind with its shapes."""

  kind: str
  x: tuple  # [N, H, W, C], [N, T, C] or [N, C]
  params: tuple  # shapes, kernels [kh, kw, in, out]
  options: dict = {}  # noqa: RUF012, never changed
  tasks: tuple = TASKS


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
  "grouped4_16px": Layer("grouped", (16, 16, 16, 64), ((3, 3, 16, 64),), {"groups": 4}),
  "depthwise_16px": Layer("grouped", (16, 16, 16, 64), ((3, 3, 1, 64),), {"groups": 64}),
  "modulated_16px": Layer("modulated", (16, 16, 16, 64), ((3, 3, 64, 64), (16, 64))),
  "modulated_32px": Layer("modulated", (16, 32, 32, 32), ((3, 3, 32, 32), (16, 32))),
  "up_conv_16px": Layer("folded", (64, 16, 16, 64), ((3, 3, 64, 64),), {"up": True}),
  "conv_pool_32px": Layer("folded", (64, 32, 32, 64), ((3, 3, 64, 64),), {"up": False}),
  "fir_up_16px": Layer("fir", (16, 16, 16, 64), (), {"up": True}),
  "fir_down_32px": Layer("fir", (16, 32, 32, 64), (), {"up": False}),
  "lstm_30": Layer("lstm", (28, 30, 5), ((105, 400),)),
  # PyTorch's fused attention has no second derivative
  "attention_128": Layer(
    "attention", (64, 128, 64), ((64, 128, 64),) * 2, {"causal": True}, ("first",)
  ),
  "attention_16px": Layer(
    "attention", (64, 256, 8), ((64, 64, 8), (64, 64, 32)), {"causal": False}, ("first",)
  ),
}


def draw(shape: tuple, seed: int, fan: int = 1) -> np.ndarray:
  """Returns the same normal numbers in every process, of variance 1 / fan."""
  return np.random.default_rng(seed).standard_normal(shape, np.float32) / np.float32(fan**0.5)


def start(layer: Layer) -> tuple:
  """Returns x and the parameters, kernels scaled by their fan-in, keys and values not."""
  fans = [math.prod(shape[:-1]) if len(shape) != 3 else 1 for shape in layer.params]
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

  from gm import sharding, steps

  def first(leaves, target):
    y = KINDS[layer.kind].ours(*leaves, **layer.options)
    return jnp.sum((y - target) ** 2) / 2 / len(y)

  def second(leaves, target):
    return jnp.sum(jax.grad(first)(leaves, target)[0] ** 2)

  def step(_, carry):
    leaves, target, _ = carry
    value, grads = jax.value_and_grad(first if task == "first" else second)(leaves, target)
    return jax.tree.map(lambda a, g: a - RATE * g, leaves, grads), target, value

  many = lambda n, *carry: jax.lax.fori_loop(0, n, step, carry)
  run = jax.jit(many, compiler_options=steps.step_options())
  x, params = start(layer)
  mesh = sharding.make_mesh(0 if KINDS[layer.kind].split else 1)
  rows, whole = sharding.batched(mesh), sharding.replicated(mesh)
  leaves = [jax.device_put(x, rows), *(jax.device_put(p, whole) for p in params)]
  carry = leaves, jax.device_put(draw(out_shape(layer), 9), rows), jax.device_put(0.0, whole)
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
  shape = tuple(f().shape)
  if len(shape) == 4:
    shape = (shape[0], *shape[2:], shape[1])
  target = tensor(image(draw(shape, 9)))

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
  if side == "ours":
    from gm import sharding

    sharding.keep_memory()
    sharding.set_cpu_devices(args.threads, args.threads)
  else:
    import torch

    torch.set_num_threads(args.threads)
  found = {}
  for name in measuring.choose(args.only, list(LAYERS)):
    layer = LAYERS[name]
    for task in layer.tasks:
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
    sizes = (LAYERS[layer].x, *LAYERS[layer].params[:1])
    shapes = " * ".join("x".join(map(str, size)) for size in sizes)
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
