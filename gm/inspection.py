"""`--mode=inspect`: what a config builds, from shapes alone: no data, no memory, no workdir."""

from __future__ import annotations

import json
import math

import jax
from jax.extend import core as jex
from ml_collections import ConfigDict

from gm import core
from gm.job import Job, prepare
from gm.nn import conv


def run(config: ConfigDict, *, json_line: bool = False) -> dict:
  """Prints a table of every stage; with `json_line` a last line for programs. Returns the facts."""
  with conv.form("plain"):  # traced sooner, and of the same shapes
    facts = describe(prepare(config, on_paper=True))
  for line in table(facts):
    print(line)
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
