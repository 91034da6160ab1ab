"""The benchmarks without PyTorch: what they build, and what they make of their numbers."""

import argparse
import ast
import itertools
import json
import math

import pytest
from conftest import ROOT

from benchmarks import layers, measuring, scaling, steps, workers
from gm import core, job


def conv(before, width, kernel=3):
  return kernel**2 * before * width + width


def styled(before, width):  # the affine map of w, the kernel, the strength of the noise, the bias
  return 129 * before + 9 * before * width + 1 + width


RESIDUAL_D = (
  (conv(3, 64) + conv(64, 64) + conv(3, 64, 1))
  + (2 * conv(64, 64) + conv(64, 64, 1))
  + 2 * 2 * conv(64, 64)
  + 64
)
BLOCKS = 2 * (conv(128, 32) + conv(32, 128, 1))
SMALL_BLOCKS = 2 * (conv(64, 32) + conv(32, 64, 1))
ATTENTION = 64 * (8 + 8 + 32 + 32) + 1
# dcgan64: the counts of the PyTorch port of the paper; the others by hand
PARAMS = {
  "vae": {"enc": 784 * 400 + 400 + 400 * 40 + 40, "dec": 20 * 400 + 400 + 400 * 784 + 784},
  "gan2d": {
    "g": 2 * 128 + 128 + 128 * 128 + 128 + 128 * 2 + 2,
    "d": 2 * 128 + 128 + 128 * 128 + 128 + 128 + 1,
  },
  "dcgan64": {"g": 3_576_704, "d": 2_765_568},
  "wgan_gp32": {
    "g": 16 * (100 * 128 + 128 * 64 + 64 * 32 + 32 * 3) + (128 + 64 + 32) * 3 + 3,
    "d": 16 * (3 * 32 + 32 * 64 + 64 * 128 + 128) + (32 + 64 + 128) * 3 + 1,
  },
  "sngan": {
    "g": 129 * 1024 + 3 * (2 * conv(64, 64) + conv(64, 64, 1) + 4 * 64) + 2 * 64 + conv(64, 3),
    "d": RESIDUAL_D,
  },
  "biggan": {
    "g": 10 * 128
    + 21 * 1024
    + 3 * (2 * conv(64, 64) + conv(64, 64, 1) + 4 * 148 * 64)
    + ATTENTION
    + (2 * 64 + conv(64, 3)),
    "d": RESIDUAL_D + 1 + 10 * 64 + ATTENTION,
  },
  "stylegan2": {
    "g": 8 * 129 * 128
    + (16 * 64 + 5 * styled(64, 64) + styled(64, 32) + styled(32, 32))
    + (3 * 64 + 32) * (129 + 3)
    + 4 * 3,
    "d": conv(3, 32, 1)
    + (32 * 64 + conv(32, 32) + conv(32, 64))
    + 2 * (64 * 64 + 2 * conv(64, 64))
    + (conv(65, 64) + 1025 * 64 + 65),
  },
  "vqvae": {
    "enc": conv(1, 64, 4) + conv(64, 128, 4) + conv(128, 128) + BLOCKS + conv(128, 64, 1),
    "dec": conv(64, 128) + BLOCKS + conv(128, 64, 4) + conv(64, 1, 4),
  },
  "transformer": {
    "enc": conv(1, 32, 4) + conv(32, 64, 4) + conv(64, 64) + SMALL_BLOCKS + conv(64, 16, 1),
    "dec": conv(16, 64) + SMALL_BLOCKS + conv(64, 32, 4) + conv(32, 1, 4),
    "prior": (65 + 49 + 64) * 128 + 4 * (12 * 128**2 + 13 * 128) + 2 * 128,
  },
  "cyclegan": {**dict.fromkeys(("g_ab", "g_ba"), 7_837_699), "d_a": 2_764_737, "d_b": 2_764_737},
  "stargan": {
    "g": 49 * (3 + 4) * 32
    + 2 * 16 * (32 * 64 + 64 * 128)
    + 6 * 2 * (9 * 128**2 + 2 * 128)
    + 2 * (32 + 64 + 128 + 64 + 32)
    + 49 * 32 * 3,
    "d": sum(conv(a, b, 4) for a, b in itertools.pairwise((3, 32, 64, 128, 256, 512)))
    + 9 * 512
    + 2**2 * 512 * 4,
  },
  "srgan": {"sr": 1_548_547, "d": 23_563_649},
}
BATCH = {
  "vae": 128,
  "gan2d": 256,
  "dcgan32": 64,
  "dcgan64": 64,
  "wgan_gp32": 64,
  "wgan_gp64": 32,
  "sngan": 2 * 16,  # for two steps of D
  "biggan": 2 * 16,
  "stylegan2": 16,
  "vqvae": 32,
  "transformer": 32,
  "vqgan": 32,
  "cyclegan": 1,
  "stargan": 8,
  "srgan": 4,
}
SIZE = {
  "dcgan32": 32,
  "dcgan64": 64,
  "wgan_gp32": 32,
  "wgan_gp64": 64,
  "sngan": 32,
  "biggan": 32,
  "stylegan2": 32,
  "stargan": 64,
  "srgan": 96,
}


@pytest.mark.parametrize("name", list(BATCH))
def test_workloads_build(name):
  found, stage = job.prepare(steps.config_of(name)), steps.WORKLOADS[name].stage
  assert found.sizes[stage] == BATCH[name]
  if name in SIZE:
    assert found.infos[0].shape["image"] == (SIZE[name], SIZE[name], 3)
  if name in PARAMS:
    params = found.templates[stage].params
    assert {n: core.count(p) for n, p in params.items()} == PARAMS[name]


def test_every_workload_has_its_class_in_torch():
  for workload in steps.WORKLOADS.values():
    file, _, name = workload.torch.partition(":")
    tree = ast.parse((ROOT / f"benchmarks/{file}.py").read_text())
    assert name in {n.name for n in tree.body if isinstance(n, ast.ClassDef)}


def test_no_benchmark_needs_torch_or_jax_before_its_worker_has_limited_the_threads():
  for path in (ROOT / "benchmarks").glob("*.py"):
    body = ast.parse(path.read_text()).body
    found = {n.module for n in body if isinstance(n, ast.ImportFrom)}
    found |= {a.name for n in body if isinstance(n, ast.Import) for a in n.names}
    if path.stem in ("steps", "layers", "scaling", "measuring", "workers"):
      assert not {m.split(".")[0] for m in found} & {"jax", "gm", "torch", "flax"}, path


def test_changes_of_a_config():
  config = steps.config_of("dcgan32", "batch_size=16,model.g_base=8,data.image_size=64")
  assert (config.batch_size, config.model.g_base, config.model.d_base) == (16, 8, 32)
  assert config.data.image_size == 64
  with pytest.raises(KeyError):
    steps.config_of("dcgan32", "model.width=8")


@pytest.mark.parametrize("name", list(scaling.AXES))
def test_axes_of_scaling_change_configs(name):
  for keys, values in scaling.AXES[name].values():
    flat = steps.config_of(name, ",".join(f"{k}={values[0]}" for k in keys)).to_dict()
    for key in keys:
      section, _, leaf = key.rpartition(".")
      assert (flat[section] if section else flat)[leaf] == values[0]


def test_layers_have_the_shapes_of_the_workloads():
  expected = {
    "conv4s2_64px": (64, 32, 32, 64),
    "conv5s2_32px": (64, 16, 16, 128),
    "conv3_8px": (64, 8, 8, 256),
    "up4s2_4px": (64, 8, 8, 256),
    "up5s2_16px": (64, 32, 32, 64),
    "dense_784": (128, 400),
    "batch_8px": (64, 8, 8, 256),
  }
  found = {name: layers.out_shape(layer) for name, layer in layers.LAYERS.items()}
  assert {name: found[name] for name in expected} == expected


def test_a_layer_gives_the_value_computed_by_hand():
  layer = layers.Layer("dense", (2, 3), ((3, 1),))
  x, (w,) = layers.start(layer)
  error = x @ w - layers.draw((2, 1), 9)
  slope = error @ w.T / 2
  assert math.isclose(layers.ours(layer, "first")(1), (error**2).sum() / 4, rel_tol=1e-5)
  assert math.isclose(layers.ours(layer, "second")(1), (slope**2).sum(), rel_tol=1e-5)


def test_layers_that_differ_are_not_compared():
  same = {"a/first": {"step": 1.0, "value": 2.0}}
  layers.check({"ours": same, "contiguous": same})
  with pytest.raises(SystemExit, match="contiguous gives"):
    layers.check({"ours": same, "contiguous": {"a/first": {"step": 1.0, "value": 2.1}}})
  with pytest.raises(SystemExit, match="no torch"):
    layers.check({"ours": same, "contiguous": {"error": "no torch"}})


def test_ratio_is_of_pairs():
  # the medians alone would give 2 / 4
  assert measuring.ratio([1.0, 2.0, 9.0], [4.0, 2.0, 10.0]) == (0.9, 0.25, 1.0)
  with pytest.raises(ValueError):
    measuring.ratio([1.0], [1.0, 2.0])


def test_worker_output():
  assert measuring.parse_worker(0, 'noise\n{"step": 0.5}\n', "warning") == {"step": 0.5}
  trace = "Traceback\n  File x\nKeyError: 'a'\n\nSet TRACE=1 for more\n"
  assert measuring.parse_worker(1, "", trace) == {"error": "KeyError: 'a'"}
  assert measuring.parse_worker(-9, "", "") == {"error": "exit status -9"}


def test_median_of_steps(monkeypatch):
  first, check, stop = [0.0, 0.01], 0.0, 9.0  # 0.01 s a step makes blocks of 3
  blocks = [[check, 0.0, 0.3], [check, 0.0, 0.9], [check, 0.0, 0.6]]
  clock = iter([*first, 0.0, *itertools.chain(*blocks), stop])
  monkeypatch.setattr(measuring.time, "perf_counter", lambda: next(clock))
  done = []
  assert math.isclose(measuring.per_step(done.append, 1.0), 0.2)
  assert done == [1, 1, 3, 3, 3, 3]


def test_blocks_of_whole_periods(monkeypatch):
  # 0.006 s a step would make blocks of 5, and a period is 4
  clock = iter([0.0, 0.006, 0.0, *itertools.chain(*[[0.0, 0.0, 0.8]] * 3), 9.0])
  monkeypatch.setattr(measuring.time, "perf_counter", lambda: next(clock))
  done = []
  assert math.isclose(measuring.per_step(done.append, 1.0, period=4), 0.2)
  assert done == [1, 1, 4, 4, 4, 4]
  with pytest.raises(ValueError, match="a period of 65 steps"):
    measuring.per_step(done.append, 1.0, period=65)


def test_slow_steps_still_make_a_whole_period(monkeypatch):
  clock = iter([0.0, 1.0, 0.0, *itertools.chain(*[[0.0, 0.0, 16.0]] * 3), 9.0])
  monkeypatch.setattr(measuring.time, "perf_counter", lambda: next(clock))
  done = []
  assert measuring.per_step(done.append, 1.0, period=16) == 1.0
  assert done == [1, 1, 16, 16, 16, 16]


def test_lazy_parts():
  known = steps.WORKLOADS["stylegan2"].lazy
  found = lambda changes: workers.intervals(steps.config_of("stylegan2", changes), known)
  assert found("") == {"model.path_weight": 4, "model.r1_gamma": 16}
  assert found("model.path_weight=0.0,model.r1_every=8") == {"model.r1_gamma": 8}
  assert workers.intervals(steps.config_of("vae"), steps.WORKLOADS["vae"].lazy) == {}
  # 10 in every step, 8 in every 4th, 16 in every 16th
  assert workers.mean_flops(34, [(26, 4), (18, 16)]) == 10 + 2 + 1


def test_names_of_workloads():
  assert measuring.choose("", ["a", "b"]) == ["a", "b"]
  assert measuring.choose("b", ["a", "b"]) == ["b"]
  with pytest.raises(SystemExit, match="must name some of a, b"):
    measuring.choose("c", ["a", "b"])


def record():
  run = lambda ms: {"step": ms / 1e3, "first": 2.0, "start": 5.0, "megabytes": 400.0}
  return {
    "flops": 2e9,
    "params": {"g": 1},
    "cold": {"ours": {"first": 4.0, "start": 9.0}},
    "runs": {
      "ours": [run(20), run(10), run(30)],
      "eager": [run(40), run(41), run(42)],
      "tuned": [run(25), run(40), run(24)],
      "compiled": [{"error": "no compiler"}],
    },
  }


def test_summary_of_made_up_numbers():
  found = steps.summary(record(), 1e12)
  assert found["best"] == "tuned"
  assert found["ratio"] == pytest.approx((0.8, 0.25, 1.25))
  assert found["ours"]["ms"] == 20 and found["tuned"]["ms"] == 25
  assert found["ours"]["peak"] == pytest.approx(0.1)  # 2 GFLOP in 20 ms of 1 TFLOP/s
  assert found["ours"]["compile"] == pytest.approx(1.98)
  assert found["ours"]["compile_cold"] == pytest.approx(3.98)
  assert found["compiled"] == {"error": "no compiler"}


def results():
  machine = {"processor": "P", "jax": "1", "torch": "2"}
  settings = {"threads": 2, "repeats": 3}
  return {
    "machine": machine,
    "settings": settings,
    "peak": [9e11, 1e12],
    "workloads": {"w": record()},
  }


def test_files(tmp_path):
  steps.save(results(), str(tmp_path))
  assert json.loads((tmp_path / "steps.json").read_text())["summary"]["w"]["best"] == "tuned"
  text = (tmp_path / "steps.md").read_text()
  assert "| w | 20 | 41 | 25 | - | 0.80 (0.25 to 1.25) | 10% / 8% |" in text
  assert "peak 1000 GFLOP/s" in text and "w, compiled: failed: no compiler" in text
  assert (tmp_path / "steps.png").stat().st_size > 1000


def test_another_model_is_not_measured():
  known = {"params": {"g": 1}}
  steps.check("w", "eager", known, {"params": {"g": 1}})
  steps.check("w", "compiled", known, {"error": "no compiler"})
  with pytest.raises(SystemExit, match="eager has parameters"):
    steps.check("w", "eager", known, {"params": {"g": 2}})
  with pytest.raises(SystemExit, match="out of memory"):
    steps.check("w", "ours", known, {"error": "out of memory"})


def test_rounds_alternate_and_a_failed_form_is_left_out(monkeypatch):
  tasks = []

  def run(task, args, folder, *, seconds, changes=""):
    tasks.append(task.partition(":")[0] + ("" if seconds else "0"))
    if task == "compiled:w" and seconds:
      return {"error": "no compiler"}
    return {"params": {"g": 1}, "flops": 1.0, "step": 1.0}

  monkeypatch.setattr(steps, "run", run)
  args = argparse.Namespace(forms="eager,compiled", repeats=3, seconds=1.0, set="")
  found = steps.measure("w", args, "")
  assert tasks[:3] == ["facts0", "ours0", "compiled0"]
  assert tasks[3:] == ["ours", "eager", "compiled", "eager", "ours", "ours", "eager"]
  assert [len(runs) for runs in found["runs"].values()] == [3, 3, 1]


def test_table_of_layers():
  runs = [{"ours": 2.0, "contiguous": 8.0, "channels_last": 4.0}] * 3
  name = "dense_128/first"
  runs = [{s: {name: {"step": t / 1e3, "value": 1.0}} for s, t in r.items()} for r in runs]
  row = "| dense_128 | 256x128 * 128x128 | first | 2 | 4 (channels_last) | 0.50 (0.50 to 0.50) |"
  assert row in layers.table(layers.summary(runs))


def test_picture_of_scaling(tmp_path):
  points = [
    {"axis": axis, "value": v, "side": side, "ms": 2.0 * v, "megabytes": 100.0}
    for axis in ("batch size", "pixels", "width")
    for v in (16, 32)
    for side in scaling.SIDES
  ]
  text = scaling.table(points)
  assert "| pixels | 32 | 64 | 64 | 100 | 100 |" in text
  measuring.write(str(tmp_path), "s", {}, text, lambda figure: scaling.draw(figure, points))
  assert (tmp_path / "s.png").stat().st_size > 5000
