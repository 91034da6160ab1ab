"""Whole training steps of gm against the same models in PyTorch, on one CPU.

python -m benchmarks.steps --only=vae,dcgan32 --repeats=5 --output=/tmp/gm-benchmarks

Every measurement is a process of its own: ours, and PyTorch in three forms (see models_torch.py),
in turns. Ours is the project's loop: its data on the device, its compiled call, one call ahead.
Ratios are of neighbours in time and against PyTorch's fastest form. A step is data, noise, all
networks and optimizers; ours logs gradient norms and discriminator statistics besides. Where parts
of a method run every k steps only, whole periods are timed, and operations are means over one.
"""

from __future__ import annotations

import importlib
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from benchmarks import measuring, workers


class Workload(NamedTuple):
  """A config and its counterpart."""

  config: str  # file of configs/ and its variant
  torch: str  # its file in benchmarks/ and its class
  diff: dict  # what differs from the config
  lazy: Mapping = MappingProxyType({})  # not in every step: key of a weight -> of its interval
  stage: int = 0  # whose steps are timed; the ones before are begun, not trained


def _digits(size: int, batch_size: int, **model: Any) -> dict:
  """The embedded digits as colour images of another size, in place of a config's own data."""
  data = {"source": "embedded", "name": "mnist10k"}
  data |= {"num_classes": 0, "train_split": "train", "test_split": "test"}  # they have their own
  data |= {"image_size": size, "channels": 3}
  return {
    "batch_size": batch_size,
    **{f"data.{k}": v for k, v in data.items()},
    **{f"model.{k}": v for k, v in model.items()},
  }


_VAE = {"model.z_dim": 20, "model.enc_widths": (400,), "model.dec_widths": (400,)}
_GAN = {"model.z_dim": 2, "model.g_widths": (128, 128), "model.d_widths": (128, 128)}
_SNGAN = {"g_widths": (64,) * 3, "d_widths": (64,) * 4, "d_steps": 2, "g_batch_size": 0}
_BIGGAN = {  # the paper's at 32 pixels; samples by running averages
  "base": 16,
  "g_widths": (4, 4, 4),
  "d_widths": (4, 4, 4, 4),
  "d_down": 2,
  "attention": (16,),
  "z_dim": 80,
  "ema_from": 0,
  "standing_every": 0,
}
_STYLEGAN2 = {"z_dim": 128, "w_dim": 128, "base": 1024, "most": 64}
_VQVAE = {"model.widths": (64, 128), "model.num_codes": 512, "model.code_dim": 64}
_PRIOR = {"model.prior_layers": 4, "model.prior_width": 128}
_CYCLEGAN = {  # the paper's at 128 pixels, on digits that are padded to them
  "data.name": "digits",
  "data.image_size": 128,
  "model.num_blocks": 6,
  "model.jitter": 15,
}
_STARGAN = {  # the paper's at 64 pixels, so one layer of D less, half as wide; both players count
  "data.name": "avatars_200",
  "data.image_size": 64,
  "model.g_base": 32,
  "model.num_blocks": 6,
  "model.num_halvings": 2,
  "model.d_widths": (32, 64, 128, 256, 512),
  "model.num_critic": 1,
  "batch_size": 8,
}
_SRGAN = {"features": "digits", "content_weight": 0.0, "pixel_weight": 1.0}  # pixels in VGG's place
_LAZY = {"model.path_weight": "model.path_every", "model.r1_gamma": "model.r1_every"}
WORKLOADS = {  # wgan_gp makes one critic step of its five, so that both players count
  "vae": Workload("vae:small", "models_torch:VAE", {"batch_size": 128, **_VAE}),
  "gan2d": Workload("gan:ring", "models_torch:GAN", {"batch_size": 256, **_GAN}),
  "dcgan32": Workload("dcgan:paper", "models_torch:DCGAN", _digits(32, 64, g_base=32, d_base=32)),
  "dcgan64": Workload("dcgan:paper", "models_torch:DCGAN", _digits(64, 64)),
  "wgan_gp32": Workload(
    "wgan:paper", "models_torch:WGANGP", _digits(32, 64, base=32, num_critic=1)
  ),
  "wgan_gp64": Workload(
    "wgan:paper", "models_torch:WGANGP", _digits(64, 32, base=64, num_critic=1)
  ),
  "sngan": Workload("sngan:paper", "models_torch_resnet:SNGAN", _digits(32, 16, **_SNGAN)),
  "biggan": Workload(
    "biggan:paper", "models_torch_resnet:BigGAN", _digits(32, 16, **_BIGGAN) | {"accumulate": 1}
  ),
  "stylegan2": Workload(
    "stylegan2:paper", "models_torch_stylegan2:StyleGAN2", _digits(32, 16, **_STYLEGAN2), _LAZY
  ),
  "vqvae": Workload("vqvae:small", "models_torch_vqvae:VQVAE", {"batch_size": 32, **_VQVAE}),
  "transformer": Workload(
    "vqvae:small", "models_torch_vqvae:Prior", {"batch_size": 32, **_PRIOR}, stage=1
  ),
  "vqgan": Workload(
    "vqgan:small", "models_torch_vqgan:VQGAN", {"batch_size": 32, "model.disc_start": 0}
  ),
  "cyclegan": Workload("cyclegan:paper", "models_torch_cyclegan:CycleGAN", _CYCLEGAN),
  "stargan": Workload("stargan:small", "models_torch_stargan:StarGAN", _STARGAN),
  "srgan": Workload("srgan:paper", "models_torch_srgan:SRGAN", _digits(96, 4, **_SRGAN), stage=1),
}
FORMS = ("eager", "tuned", "compiled")  # of PyTorch, as in models_torch.py


def config_of(name: str, changes: str = "") -> Any:
  """Returns a workload's config; `changes` is key=value,key=value, the values in JSON."""
  file, _, variant = WORKLOADS[name].config.partition(":")
  config = importlib.import_module(f"configs.{file}").get_config(variant)
  given = dict(item.split("=") for item in changes.split(",") if item)
  config.lock()  # an unknown key is an error
  config.update_from_flattened_dict(WORKLOADS[name].diff)
  config.update_from_flattened_dict({k: json.loads(v) for k, v in given.items()})
  return config


# --------------------------------------------------------------------------------- the measuring


def run(task: str, args: Any, folder: str, *, seconds: float, changes: str = "") -> dict:
  """Starts a worker for `task`, SIDE:WORKLOAD or peak:SIDE."""
  data = os.path.join(folder, f"{task.partition(':')[2]}.npz")
  flags = [f"--data={data}", f"--set={changes}", f"--seconds={seconds}"]
  found = measuring.run_worker(
    "benchmarks.steps", task, folder=folder, threads=args.threads, flags=flags
  )
  text = f"{1e3 * found['step']:.2f} ms" if "step" in found else found.get("error", "done")
  print(f"{task} {changes} {text}", file=sys.stderr, flush=True)
  return found


def measure(name: str, args: Any, folder: str) -> dict:
  """Measures one workload: cold starts, then `repeats` rounds of all sides.

  Raises:
    SystemExit: if ours fails, or if the two sides' parameter counts differ.
  """
  known = run(f"facts:{name}", args, folder, seconds=0, changes=args.set)

  def side_of(side, seconds):
    found = run(f"{side}:{name}", args, folder, seconds=seconds, changes=args.set)
    check(name, side, known, found)
    return found

  check(name, "facts", known, known)
  sides = ["ours", *args.forms.split(",")]
  cold = {side: side_of(side, 0) for side in sides if side in ("ours", "compiled")}
  runs = {side: [] for side in sides}
  for i in range(args.repeats):
    for side in sides if i % 2 == 0 else sides[::-1]:  # against drift
      if not any("error" in r for r in runs[side]):
        runs[side].append(side_of(side, args.seconds))
  return {"flops": known["flops"], "params": known["params"], "cold": cold, "runs": runs}


def check(name: str, side: str, known: dict, found: dict) -> None:
  """Ends the run where ours failed or where another model was measured; PyTorch may fail."""
  if "error" in found and side in ("facts", "ours"):
    raise SystemExit(f"error: {name}: {side}: {found['error']}")
  if "error" not in found and found["params"] != known["params"]:
    raise SystemExit(
      f"error: {name}: {side} has parameters {found['params']}, ours {known['params']}"
    )


# ------------------------------------------------------------------------------------ the results


def summary(record: dict, peak: float) -> dict:
  """Returns what a workload's measurements say.

  Args:
    record: from `measure`.
    peak: operations per second of the machine.

  Returns:
    For every side its medians {"ms", "megabytes", "start", "compile", "peak"}, or {"error"}. Times
    but "ms" are in seconds; "compile" is the first step's less one step's; "peak" the share of the
    peak. "start_cold" and "compile_cold" are with an empty cache of compiled programs. Under "best"
    the name of PyTorch's fastest form and under "ratio" ours over it: median, least, most.
  """
  found = {}
  for side, runs in record["runs"].items():
    errors = [r["error"] for r in runs if "error" in r]
    if errors:
      found[side] = {"error": errors[0]}
      continue
    step, first, start, megabytes = (
      statistics.median(r[key] for r in runs) for key in ("step", "first", "start", "megabytes")
    )
    found[side] = {
      "ms": 1e3 * step,
      "megabytes": megabytes,
      "start": start,
      "compile": max(0.0, first - step),
      "peak": record["flops"] / step / peak,
    }
    cold = record["cold"].get(side, {})
    if "first" in cold:
      found[side] |= {"start_cold": cold["start"], "compile_cold": cold["first"] - step}
  forms = [f for f in found if f != "ours" and "ms" in found[f]]
  if forms:
    best = min(forms, key=lambda f: found[f]["ms"])
    times = [[r["step"] for r in record["runs"][side]] for side in ("ours", best)]
    found |= {"best": best, "ratio": measuring.ratio(*times)}
  return found


def tables(results: dict) -> str:
  """Returns the Markdown of all results."""
  peak = max(results["peak"])
  rows, costs, notes = [], [], []
  for name, record in results["workloads"].items():
    s = summary(record, peak)
    us, them, r = s["ours"], s.get(s.get("best"), {}), s.get("ratio")
    number = lambda side, key, spec: f"{side[key]:{spec}}" if key in side else "-"
    pair = lambda key, spec: f"{number(us, key, spec)} / {number(them, key, spec)}"
    forms = [number(s.get(f, {}), "ms", ".3g") for f in FORMS]
    spread = f"{r.median:.2f} ({r.least:.2f} to {r.most:.2f})" if r else "-"
    rows.append([name, f"{us['ms']:.3g}", *forms, spread, pair("peak", ".0%")])
    costs.append(
      [
        name,
        f"{us['compile_cold']:.1f} / {us['compile']:.1f}",
        f"{us['start_cold']:.1f} / {us['start']:.1f}",
        f"{number(them, 'start_cold', '.1f')} / {number(them, 'start', '.1f')}",
        pair("megabytes", ".0f"),
        f"{record['flops'] / 1e9:.3g}",
      ]
    )
    notes += [f"\n{name}, {f}: failed: {s[f]['error']}\n" for f in FORMS if "error" in s.get(f, {})]
  head = ["workload", "gm, ms", *(f"PyTorch {f}, ms" for f in FORMS)]
  head += ["gm / fastest PyTorch", "share of peak: gm / PyTorch"]
  more = ["workload", "gm compiles, s: cold / warm", "gm's first step after s: cold / warm"]
  more += ["PyTorch's: cold / warm", "memory, MB: gm / PyTorch", "GFLOP a step"]
  m, settings = results["machine"], results["settings"]
  text = f"{m['processor']}, {settings['threads']} threads, jax {m['jax']}, torch {m['torch']};"
  text += f" {settings['repeats']} pairs, median (least to most);"
  text += f" peak {peak / 1e9:.0f} GFLOP/s.\n\n"
  text += measuring.markdown(head, rows) + "\n" + measuring.markdown(more, costs)
  return text + "".join(notes)


def save(results: dict, output: str) -> None:
  """Writes what there is so far."""
  found = {n: summary(r, max(results["peak"])) for n, r in results["workloads"].items()}
  ratios = {n: s["ratio"] for n, s in found.items() if "ratio" in s}
  draw = lambda figure: measuring.draw_ratios(figure, ratios)
  results = {**results, "summary": found}
  measuring.write(output, "steps", results, tables(results), draw if ratios else None)


def main() -> None:
  """Measures, or works where --worker says so."""
  parser = measuring.flags(__doc__.split("\n")[0])
  parser.add_argument("--only", default="", help=f"some of {','.join(WORKLOADS)}")
  parser.add_argument("--forms", default=",".join(FORMS), help="of PyTorch")
  parser.add_argument("--set", default="", help="changes of configs: batch_size=32,model.z_dim=8")
  parser.add_argument("--data", default="", help="used by the workers")
  args = parser.parse_args()
  if args.worker:
    measuring.limit_threads(args.threads)
    side, _, name = args.worker.partition(":")
    if side == "peak":
      found = workers.peak(name, args.seconds, args.threads)
    else:
      found = workers.work(side, config_of(name, args.set), WORKLOADS[name], args)
    print(json.dumps(found))
    return
  names = measuring.choose(args.only, list(WORKLOADS))
  results = {"machine": measuring.machine(), "settings": vars(args), "peak": [], "workloads": {}}
  with tempfile.TemporaryDirectory() as folder:
    for name in names:
      for side in ("ours", "theirs"):
        found = run(f"peak:{side}", args, folder, seconds=min(3, args.seconds))
        if "error" in found:
          raise SystemExit(f"error: {found['error']}")
        results["peak"].append(found["flops_per_second"])
      results["workloads"][name] = measure(name, args, folder)
      save(results, args.output)
  print(tables(results))


if __name__ == "__main__":
  main()
