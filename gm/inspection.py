"""`--mode=inspect`: what a config builds, from shapes alone: no data, no memory, no workdir."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
from flax import linen as nn
from jax.extend import core as jex
from jax.interpreters import partial_eval
from ml_collections import ConfigDict

from gm import core
from gm.errors import user_input
from gm.job import Job, prepare
from gm.nn import conv


def run(config: ConfigDict, *, json_line: bool = False, layers: bool = False) -> dict:
  """Prints a table of every stage and returns the facts.

  Args:
    config: from configs/.
    json_line: print the facts in a last line for programs.
    layers: print the layers of every network too.
  """
  with conv.form("plain"):  # traced sooner, and of the same shapes
    job = prepare(config, on_paper=True)
    with user_input():  # what does not fit may show where a step is traced
      facts = describe(job)
  for line in table(facts):
    print(line)
  if layers:
    with user_input():
      texts = layer_tables(job)
    for text in texts:
      print(text)
  if json_line:
    print(json.dumps(facts))
  return facts


def describe(job: Job) -> dict:
  """Returns parameters, output shapes and operations of every stage.

  Operations are those of the plain convolutions, on every backend. The job is not to be run after
  this: its functions may have been traced in that form.

  Returns:
    {"method", "stages": [{"name", "num_steps", "batch_size", "params": {network: count},
    "outputs": {name: shape}, "flops_per_step"}]}.
  """
  stages = []
  for i, stage in enumerate(job.stages):
    batch, key = core.batch_shapes(job.infos[i], job.sizes[i]), job.keys[i]["step"]
    state = job.templates[i]
    with conv.form("plain"):
      outputs = jax.eval_shape(stage.sample, state, batch, key)
      step = jax.make_jaxpr(stage.step)(state, batch, key).jaxpr
    stages.append(
      {
        "name": stage.name,
        "num_steps": stage.num_steps,
        "batch_size": job.sizes[i],
        "params": {n: core.count(p) for n, p in state.params.items()},
        "outputs": {n: list(x.shape) for n, x in outputs.items()},
        "flops_per_step": flops(step),
      }
    )
  return {"method": job.config.method, "stages": stages}


def table(facts: dict) -> list[str]:
  """Returns the lines that describe a method to a person."""
  lines = [f"method {facts['method']}"]
  for s in facts["stages"]:
    operations = f"{s['flops_per_step'] / 1e9:,.3f} GFLOP per step"
    lines.append(
      f"stage {s['name']}: {s['num_steps']:,} steps of {s['batch_size']} examples, {operations}"
    )
    width = max(map(len, [*s["params"], *s["outputs"], "network"]))
    lines.append(f"  {'network':<{width}}  {'parameters':>14}")
    lines += [f"  {n:<{width}}  {count:>14,}" for n, count in s["params"].items()]
    lines += [f"  {n:<{width}}  {'x'.join(map(str, x)):>14}" for n, x in s["outputs"].items()]
  return lines


class Network(NamedTuple):
  """A network of a stage, as `init` builds it."""

  name: str  # in the state's params: "g", "g/mapping"
  module: nn.Module
  args: tuple  # shapes of what `init` gives it
  kwargs: dict


def networks(job: Job, index: int) -> list[Network]:
  """Returns the networks of a stage: the modules that its `init` initialises, seen by flax itself.

  The name is that of the first params of the same structure and shapes that have none yet.
  """
  stage, found = job.stages[index], []

  def watch(next_call, args, kwargs, context):
    module = context.module
    if module.path == () and module.is_initializing() and context.method_name == "__call__":
      shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype) if isinstance(x, jax.Array) else x
      found.append((module.clone(parent=None), *jax.tree.map(shape, (args, kwargs))))
    return next_call(*args, **kwargs)

  batch = core.batch_shapes(job.infos[index], job.sizes[index])
  prev = job.templates[index - 1] if index else None
  # a function of its own, so that nothing is taken from a trace that was made before
  with nn.intercept_methods(watch):
    jax.eval_shape(lambda *given: stage.init(*given), job.keys[index]["init"], batch, prev)
  trees, named = dict(_subtrees(job.templates[index].params)), []
  form = lambda tree: jax.tree.map(lambda x: x.shape, tree)
  for module, args, kwargs in found:
    init = partial(module.init, jax.random.key(0))
    params = form(_trace(init, args, kwargs).get("params", {}))
    name = next((n for n, tree in trees.items() if form(tree) == params), "")
    trees.pop(name, None)
    named.append(Network(name or type(module).__name__, module, args, kwargs))
  return named


def layer_tables(job: Job, *, width: int = 140) -> list[str]:
  """Returns flax's table of every network of every stage: outputs, parameters and operations.

  Shapes alone are worked with. Operations are the compiler's count of a forward pass of one batch
  as `init` gives it, often of two examples, and of each layer with all in it.

  Args:
    job: of a config.
    width: of a line.
  """
  found = []
  with conv.form("plain"):
    for i, stage in enumerate(job.stages):
      for net in networks(job, i):
        show = nn.tabulate(
          net.module,
          jax.random.key(0),
          compute_flops=True,
          console_kwargs={"force_terminal": False, "width": width},
        )
        texts = []
        _trace(lambda *args, **kwargs: texts.append(show(*args, **kwargs)), net.args, net.kwargs)
        head = f"stage {stage.name}: network {net.name}; one forward pass of the examples in inputs"
        found.append(f"{head}{texts[0]}")
  return found


def _trace(function: Callable, args: tuple, kwargs: dict) -> Any:
  """Shapes of what a function gives, where some arguments are shapes and others are as they are."""
  leaves, tree = jax.tree.flatten((args, kwargs))
  shapes = {i: x for i, x in enumerate(leaves) if isinstance(x, jax.ShapeDtypeStruct)}

  def call(arrays):
    args, kwargs = jax.tree.unflatten(tree, [arrays.get(i, x) for i, x in enumerate(leaves)])
    return function(*args, **kwargs)

  return jax.eval_shape(call, shapes)


def _subtrees(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
  for name, branch in tree.items():
    if isinstance(branch, dict):
      yield f"{path}{name}", branch
      yield from _subtrees(branch, f"{path}{name}/")


def depends(function: Callable, *args: Any) -> tuple[dict[str, set[str]], dict]:
  """What the entries of a function's dict depend on, by values and not by shapes.

  Args:
    function: traceable; it returns {name: array}.
    *args: pytrees of arrays or shapes.

  Returns:
    {name: paths of the arrays in `args`}, {name: shape}.

  >>> depends(lambda a, b: {"x": a["u"] + 1, "y": b + len(a["v"])}, {"u": 1.0, "v": (2.0,)}, 3.0)[0]
  {'x': {"[0]['u']"}, 'y': {'[1]'}}
  """
  traced, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
  paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(args)]
  found = {}
  for i, name in enumerate(sorted(shapes)):
    _, used = partial_eval.dce_jaxpr(traced.jaxpr, [i == j for j in range(len(shapes))])
    found[name] = {path for path, u in zip(paths, used) if u}
  return found, shapes


def flops(jaxpr: jex.Jaxpr) -> int:
  """Counts the operations of matrix products and convolutions; one multiply-add is two.

  The body of a scan counts as often as it runs, that of a while loop once, of a cond the dearest
  branch. Products with the zeros that dilation inserts do not count.
  """
  total = 0
  for eqn in jaxpr.eqns:
    total += _own_flops(eqn)
    inner = [flops(j) for j in _inner(eqn)]
    if eqn.primitive.name == "cond":
      total += max(inner)
    else:
      total += sum(inner) * (eqn.params["length"] if eqn.primitive.name == "scan" else 1)
  return total


def _inner(eqn: jex.JaxprEqn) -> list:
  found = []
  for name, value in eqn.params.items():
    if name in ("jvp_jaxpr_fun", "fwd_jaxpr_thunk", "bwd"):
      continue  # derivative rules, not the computation itself
    for v in value if isinstance(value, tuple | list) else [value]:
      v = getattr(v, "jaxpr", v)
      if isinstance(v, jex.Jaxpr):
        found.append(v)
  return found


def _own_flops(eqn: jex.JaxprEqn) -> int:
  if eqn.primitive.name == "dot_general":
    (contract, _), _ = eqn.params["dimension_numbers"]
    depth = math.prod(eqn.invars[0].aval.shape[a] for a in contract)
    return 2 * depth * math.prod(eqn.outvars[0].aval.shape)
  if eqn.primitive.name == "conv_general_dilated":
    kernel, out = eqn.invars[1].aval.shape, eqn.outvars[0].aval.shape
    features = eqn.params["dimension_numbers"].rhs_spec[0]
    per_output = math.prod(kernel) // kernel[features]
    return 2 * per_output * math.prod(out) // math.prod(eqn.params["lhs_dilation"])
  return 0
