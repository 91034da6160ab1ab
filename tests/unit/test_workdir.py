"""What lands in the workdir: read back and compared with what was given."""

import errno
import io
import json
import math
import struct
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from gm.workdir import files, log, plots, record, samples, tiles


def lines(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def events(workdir):
  """[(step, {tag: value})] of all event files, by the format's definition."""
  from tensorboardX.proto import event_pb2

  found = []
  for path in sorted(workdir.glob("events.out.tfevents.*")):
    data = path.read_bytes()
    while data:
      (length,) = struct.unpack("<Q", data[:8])
      event = event_pb2.Event.FromString(data[12 : 12 + length])
      data = data[16 + length :]
      if event.summary.value:
        found.append((event.step, {v.tag: v.simple_value for v in event.summary.value}))
  return found


def fill(workdir, steps_of):
  out = log.Log(workdir)
  for stage, steps in steps_of.items():
    for step in steps:
      out.write(stage, step, 0.5 * step, 100.0, {"loss": float(step)})
  return out


# --- metrics


def test_line_has_the_fixed_keys_first_and_every_scalar(tmp_path):
  out = log.Log(tmp_path)
  out.write("train", 7, 1.5, 640.0, {"loss_g": jnp.float32(0.1), "n": np.int64(3), "x": 2})
  record = lines(tmp_path)[0]  # before close: a line is in the file when write returns
  out.close()
  assert list(record) == ["stage", "step", "seconds", "examples_per_second", "loss_g", "n", "x"]
  assert record["loss_g"] == 0.1  # not 0.10000000149
  assert (record["stage"], record["step"], record["n"], record["x"]) == ("train", 7, 3, 2)


def test_every_float32_survives_the_file(tmp_path):
  values = np.random.default_rng(0).normal(size=50).astype(np.float32)
  out = log.Log(tmp_path)
  out.write("train", 1, 0.0, 0.0, {str(i): v for i, v in enumerate(values)})
  out.close()
  back = [np.float32(log.read_metrics(tmp_path)[0][str(i)]) for i in range(50)]
  assert back == list(values)


def test_non_finite_values_are_valid_json_and_come_back(tmp_path):
  out = log.Log(tmp_path)
  out.write("train", 1, 0.0, 0.0, {"a": math.nan, "b": jnp.inf, "c": -math.inf})
  out.close()

  def refuse(name):
    raise AssertionError(f"{name} is not JSON")

  text = (tmp_path / "metrics.jsonl").read_text()
  record = json.loads(text, parse_constant=refuse)
  assert (record["a"], record["b"], record["c"]) == ("nan", "inf", "-inf")
  back = log.read_metrics(tmp_path)[0]
  assert math.isnan(back["a"]) and back["b"] == math.inf and back["c"] == -math.inf


def test_reserved_metric_name_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r"'step'.*reserved"):
    log.Log(tmp_path).write("train", 1, 0.0, 0.0, {"step": 1.0})
  assert not lines(tmp_path)


def test_tensorboard_holds_the_same_scalars(tmp_path):
  fill(tmp_path, {"a": [1, 2]}).close()
  expected = [(s, {"a/examples_per_second": 100.0, "a/loss": float(s)}) for s in (1, 2)]
  assert events(tmp_path) == expected


def test_opening_again_appends(tmp_path):
  fill(tmp_path, {"a": [1, 2]}).close()
  fill(tmp_path, {"a": [3]}).close()
  assert [r["step"] for r in lines(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_half_written_last_line_is_dropped(tmp_path, cut):
  fill(tmp_path, {"a": [1, 2]}).close()
  path = tmp_path / "metrics.jsonl"
  whole = path.read_bytes()
  path.write_bytes(whole[:-1][:-cut])  # a process killed while it wrote
  assert [r["step"] for r in log.read_metrics(tmp_path)] == [1]
  fill(tmp_path, {"a": [3]}).close()
  assert [r["step"] for r in lines(tmp_path)] == [1, 3]


def test_a_last_line_that_lacks_only_its_end_is_kept(tmp_path):
  fill(tmp_path, {"a": [1, 2]}).close()
  path = tmp_path / "metrics.jsonl"
  path.write_bytes(path.read_bytes()[:-1])
  fill(tmp_path, {"a": [3]}).close()
  assert [r["step"] for r in lines(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize(
  ("stage", "step", "kept"),
  [
    ("b", 20, [("a", 10), ("a", 20), ("b", 10), ("b", 20)]),  # up to and including it
    ("b", 15, [("a", 10), ("a", 20), ("b", 10)]),
    ("b", 0, [("a", 10), ("a", 20)]),  # the stage starts anew
    ("a", 10, [("a", 10)]),  # and the later stage goes
    ("a", 0, []),
    ("c", 5, [("a", 10), ("a", 20), ("b", 10), ("b", 20), ("b", 30)]),
  ],
)
def test_rewind(tmp_path, stage, step, kept):
  out = fill(tmp_path, {"a": [10, 20], "b": [10, 20, 30]})
  out.rewind(stage, step, ["a", "b", "c"])
  assert [(r["stage"], r["step"]) for r in lines(tmp_path)] == kept
  out.write(stage, step + 1, 0.0, 0.0, {"loss": 9.0})
  out.close()
  kept = [*kept, (stage, step + 1)]
  assert [(r["stage"], r["step"]) for r in lines(tmp_path)] == kept
  shown = [(tag.split("/")[0], s) for s, tags in events(tmp_path) for tag in tags if "loss" in tag]
  assert shown == kept


def test_rewind_orders_stages_by_the_list_not_by_name(tmp_path):
  out = fill(tmp_path, {"8px": [10], "16px": [10]})
  out.rewind("8px", 10, ["8px", "16px"])
  out.close()
  assert [r["stage"] for r in lines(tmp_path)] == ["8px"]


def test_rewind_keeps_values_exactly(tmp_path):
  out = log.Log(tmp_path)
  out.write("a", 1, 0.1, 1 / 3, {"x": math.nan, "y": jnp.float32(0.7)})
  out.write("a", 2, 0.2, 1.0, {"y": 1.0})
  first = lines(tmp_path)[0]
  out.rewind("a", 1)
  out.close()
  assert lines(tmp_path) == [first]


# --- failures


def full_disk(*args, **kwargs):
  class Full(io.BytesIO):
    def write(self, data):
      raise OSError(errno.ENOSPC, "No space left on device")

  return Full()


def no_permission(path, *args, **kwargs):
  raise PermissionError(errno.EACCES, "Permission denied", str(path))


def test_full_disk_is_one_clear_error_and_loses_nothing(tmp_path, monkeypatch):
  path = record.write_eval(tmp_path, {"metrics": {"a": 1}})
  monkeypatch.setattr(files, "open", full_disk, raising=False)
  with pytest.raises(OSError, match=r"cannot write .*eval\.json: No space left.*free some") as e:
    record.write_eval(tmp_path, {"metrics": {"a": 2}})
  assert e.value.errno == errno.ENOSPC
  assert json.loads(path.read_text()) == {"metrics": {"a": 1}}
  assert [p.name for p in tmp_path.iterdir()] == ["eval.json"]  # no rest of the attempt


def test_full_disk_is_reported_by_the_log_which_can_go_on(tmp_path):
  out = fill(tmp_path, {"a": [1]})
  out._file.write(b'{"stage": "a", "st')  # what fitted
  out._file.close()
  out._file = full_disk()
  with pytest.raises(OSError, match=r"metrics\.jsonl.*free some space"):
    out.write("a", 2, 0.0, 0.0, {"x": 1.0})
  out.close()
  fill(tmp_path, {"a": [2]}).close()
  assert [r["step"] for r in lines(tmp_path)] == [1, 2]


def test_permission_error_keeps_its_type(tmp_path, monkeypatch):
  for room in (files, log):
    monkeypatch.setattr(room, "open", no_permission, raising=False)
  for act in (
    lambda: record.write_config(tmp_path, {"a": 1}),
    lambda: samples.write_grid(tmp_path / "x.png", np.zeros((1, 4, 4, 1))),
    lambda: log.Log(tmp_path),
  ):
    with pytest.raises(PermissionError, match=r"cannot write .*Permission denied.*--workdir"):
      act()


def test_workdir_below_a_file_is_one_clear_error(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(OSError, match=r"cannot write .*--workdir"):
    log.Log(tmp_path / "file" / "run")


# --- config


def test_config_round_trip(tmp_path):
  config = {"lr": 2e-4, "seed": 0, "model": {"widths": (8, 8)}, "best": None, "on": True}
  config["data"] = {}
  record.write_config(tmp_path, config, {"data": {"origin": "drawn"}})
  back = record.read_config(tmp_path)
  assert back["config"] == {**config, "model": {"widths": [8, 8]}}
  assert record.diff(back["config"], config) == []
  assert back["data"] == {"origin": "drawn"}
  assert set(back["versions"]) >= {"python", "jax", "jaxlib", "flax", "optax", "orbax", "numpy"}
  assert back["devices"] and all("cpu" in d for d in back["devices"])
  assert back["versions"]["jax"] == jax.__version__
  assert "not installed" not in back["versions"].values()
  assert back["started"] and back["platform"]


def test_writing_the_config_again_keeps_the_start(tmp_path):
  tables = {"data": {}, "model": {}}
  record.write_config(tmp_path, {"a": 1, **tables}, {"data": "drawn", "started": "then"})
  record.write_config(tmp_path, {"a": 2, **tables}, {"more": 3})
  back = record.read_config(tmp_path)
  assert (back["started"], back["data"], back["more"]) == ("then", "drawn", 3)
  assert back["config"] == {"a": 2, **tables}


def test_missing_or_broken_config_says_what_to_do(tmp_path):
  with pytest.raises(FileNotFoundError, match="--workdir"):
    record.read_config(tmp_path)
  (tmp_path / "config.json").write_text('{"config": ')
  with pytest.raises(ValueError, match="not valid JSON"):
    record.read_config(tmp_path)


@pytest.mark.parametrize("facts", [{}, {"config": 3}, {"config": {"data": {}}}])
def test_a_config_without_its_tables_says_what_to_do(tmp_path, facts):
  (tmp_path / "config.json").write_text(json.dumps(facts))
  with pytest.raises(ValueError, match=r"config\.json has no table 'config.*--workdir"):
    record.read_config(tmp_path)


def test_diff_names_dotted_keys_with_both_values():
  old = {"lr": 1.0, "seed": 1, "gone": "x", "flag": True, "model": {"z": 8, "w": [1, 2], "e": {}}}
  new = {"lr": 1.0, "seed": 2, "flag": 1, "model": {"z": 9, "w": (1, 2), "e": {}, "new": None}}
  assert record.diff(old, new) == [
    "flag: True in the workdir, 1 now",
    "gone: 'x' in the workdir, absent now",
    "model.new: absent in the workdir, None now",
    "model.z: 8 in the workdir, 9 now",
    "seed: 1 in the workdir, 2 now",
  ]


def test_eval_is_valid_json_with_arrays_and_nan(tmp_path):
  record.write_eval(tmp_path, {"metrics": {"a": jnp.float32(0.1), "b": math.nan, "c": np.ones(2)}})
  back = json.loads((tmp_path / "eval.json").read_text())
  assert back == {"metrics": {"a": 0.1, "b": "nan", "c": [1.0, 1.0]}}


# --- images


def test_to_uint8_inverts_the_decoding_of_every_byte():
  u = np.arange(256, dtype=np.uint8)
  assert (tiles.to_uint8(u.astype(np.float32) / 127.5 - 1) == u).all()
  assert tiles.to_uint8(u) is u
  odd = np.array([-5.0, 5.0, np.nan, np.inf, -np.inf], np.float32)
  assert tiles.to_uint8(odd).tolist() == [0, 255, 0, 255, 0]
  assert tiles.to_uint8(jnp.array([1.0, -1.0], jnp.bfloat16)).tolist() == [255, 0]


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_png_holds_every_pixel(tmp_path, channels):
  x = np.random.default_rng(0).integers(0, 256, (6, 28, 28, channels), dtype=np.uint8)
  path = samples.write_grid(tmp_path / "g.png", x.astype(np.float32) / 127.5 - 1)
  with Image.open(path) as image:
    assert image.mode == {1: "L", 3: "RGB"}[channels]
    pixels = np.asarray(image).reshape(*image.size[::-1], channels)
  assert pixels.shape == (2 * 58 + 2, 3 * 58 + 2, channels)  # 2 x 3 tiles of 56, gaps of 2
  for i in range(6):
    top, left = 2 + i // 3 * 58, 2 + i % 3 * 58
    tile = pixels[top : top + 56, left : left + 56]
    assert (tile[::2, ::2] == x[i]).all() and (tile[1::2, 1::2] == x[i]).all()
  gaps = pixels[[0, 1, 58, 59, 116, 117]]
  assert (gaps == 60).all()


def test_grid_of_rows_and_columns_keeps_its_layout():
  x = np.zeros((2, 5, 64, 64, 1), np.float32) - 1
  x[1, 3] = 1.0
  canvas = tiles.grid(x)
  assert canvas.shape == (2 * 66 + 2, 5 * 66 + 2)
  assert (canvas[68:132, 2 + 3 * 66 : 66 + 3 * 66] == 255).all()
  assert (canvas == 255).sum() == 64 * 64


@pytest.mark.parametrize(
  ("num", "layout"), [(1, (1, 1)), (10, (2, 5)), (16, (4, 4)), (25, (5, 5)), (64, (8, 8))]
)
def test_layout_is_nearly_square_and_full(num, layout):
  assert plots.layout(num, 28, 28) == layout


def test_small_images_are_enlarged_large_ones_not():
  assert tiles.grid(np.zeros((1, 8, 8, 1))).shape == (60, 60)  # 7 times
  assert tiles.grid(np.zeros((1, 64, 48, 1))).shape == (68, 52)


def test_planes_that_are_no_colours_stand_side_by_side():
  x = np.stack([np.full((64, 64), -1.0), np.full((64, 64), 1.0)], axis=-1)[None]
  canvas = tiles.grid(x)
  assert canvas.shape == (68, 132)
  assert (canvas[2:66, 2:66] == 0).all() and (canvas[2:66, 66:130] == 255).all()


@pytest.mark.parametrize("shape", [(28, 28), (3, 28, 28), (0, 8, 8, 1)])
def test_wrong_image_shapes_are_named(shape):
  with pytest.raises(ValueError, match=r"\[N, H, W, C\].*given \(" + str(shape[0])):
    tiles.grid(np.zeros(shape))


# --- samples


def test_image_samples_make_one_png_whose_names_sort(tmp_path):
  for step in (1000, 20, 300):
    batch = {"image": np.zeros((4, 8, 8, 1)), "label": np.arange(4)}
    samples.write_samples(tmp_path, "train", step, batch)
  names = sorted(p.name for p in (tmp_path / "samples").iterdir())
  assert names == [f"train_{s:08d}.png" for s in (20, 300, 1000)]
  found = samples.read_pictures(tmp_path)
  assert [(p.stage, p.step, p.name) for p in found] == [("train", s, "") for s in (20, 300, 1000)]


def test_two_domains_make_two_pictures(tmp_path):
  x = np.zeros((4, 8, 8, 3))
  written = samples.write_samples(tmp_path, "16px_fade", 5, {"a": x, "b": x})
  assert [p.name for p in written] == ["16px_fade_00000005.png", "16px_fade_00000005_b.png"]
  assert {(p.stage, p.step, p.name) for p in samples.read_pictures(tmp_path)} == {
    ("16px_fade", 5, ""),
    ("16px_fade", 5, "b"),
  }


def dark(path):
  with Image.open(path) as image:
    return np.asarray(image.convert("RGB"), np.int32)


def test_points_are_drawn_where_they_are(tmp_path):
  real = np.array([[-1.0, -1.0], [1.0, 1.0]] * 50, np.float32)
  info = SimpleNamespace(modes=((-1.0, -1.0), (1.0, 1.0)))
  written = samples.write_samples(
    tmp_path, "t", 1, {"point": np.full((200, 2), 0.9, np.float32)}, {"point": real}, info
  )
  assert [p.suffix for p in written] == [".npz", ".png"]
  with np.load(written[0]) as arrays:
    assert (arrays["point"] == np.float32(0.9)).all()
  rgb = dark(written[1])
  coloured = (rgb.max(-1) - rgb.min(-1)) > 60  # the samples; real data and modes are grey
  rows, cols = np.nonzero(coloured)
  assert len(rows) and rows.max() < rgb.shape[0] / 2 and cols.min() > rgb.shape[1] / 2
  grey = (rgb.max(-1) < 215) & ~coloured
  assert grey[rgb.shape[0] // 2 : -40, 60 : rgb.shape[1] // 2].any()  # the mode that was missed


@pytest.mark.parametrize(
  "batch",
  [
    {"point": np.random.default_rng(0).normal(size=(99, 1))},
    {"point": np.random.default_rng(0).normal(size=(99, 5))},
    {"series": np.random.default_rng(0).normal(size=(9, 30, 2))},
    {"row": np.random.default_rng(0).normal(size=(99, 3)), "label": np.arange(99)},
    {"roll": np.random.default_rng(0).uniform(size=(4, 32, 12))},
    {"point": np.full((9, 2), np.nan)},
    {"row": np.full((9, 3), np.nan)},
    {"series": np.full((9, 5, 3), np.inf)},
  ],
  ids=lambda b: "-".join(b),
)
@pytest.mark.parametrize("with_real", [True, False])
def test_other_kinds_make_arrays_and_a_plot(tmp_path, batch, with_real):
  real = {k: np.nan_to_num(v, posinf=1.0) for k, v in batch.items()} if with_real else None
  info = SimpleNamespace(columns=("a_$x^{", ("b", "number")), modes=())
  npz, png = samples.write_samples(tmp_path, "t", 12, batch, real, info)
  with np.load(npz) as arrays:
    assert set(arrays) == set(batch)
    for name, value in batch.items():
      np.testing.assert_array_equal(arrays[name], value)
  with Image.open(png) as image:
    assert min(image.size) > 50


def test_a_roll_has_its_low_pitches_below(tmp_path):
  roll = np.zeros((1, 60, 60), np.float32)
  roll[0, 10:20, 0] = 1.0  # [T, P]: the lowest pitch, early
  _, png = samples.write_samples(tmp_path, "t", 1, {"roll": roll})
  with Image.open(png) as image:
    pixels = np.asarray(image)[2:-2, 2:-2]
  rows, cols = np.nonzero(pixels == 255)
  assert set(rows) == {59} and set(cols) == set(range(10, 20))


def test_text(tmp_path):
  ids = np.array([[72, 105, 0, 33], [79, 107, 33, 0]])
  (path,) = samples.write_samples(
    tmp_path, "t", 1, {"text": ids}, None, SimpleNamespace(vocab_size=256)
  )
  assert path.name == "t_00000001.txt" and path.read_text() == "Hi\nOk!\n"
  (path,) = samples.write_samples(
    tmp_path, "t", 2, {"text": ids}, None, SimpleNamespace(vocab_size=900)
  )
  assert path.read_text() == "72 105 0 33\n79 107 33 0\n"


def test_show_by_kind(tmp_path):
  rng = np.random.default_rng(0)
  pictures = {
    "interpolation": rng.uniform(-1, 1, (2, 3, 8, 8, 1)),
    "path": rng.normal(size=(2, 9, 2)),
    "songs": rng.normal(size=(2, 3, 20, 1)),
    "table": rng.normal(size=(2, 3, 7)),
  }
  written = samples.write_show(tmp_path, "train", 9, pictures)
  assert [p.name for p in written] == [
    "train_00000009_interpolation.png",
    "train_00000009_path.png",
    "train_00000009_songs.png",
    "train_00000009_table.npz",
  ]
  with Image.open(written[0]) as image:
    assert image.size == (3 * 58 + 2, 2 * 58 + 2)


def test_show_colours_points_by_class(tmp_path):
  x = np.concatenate([np.full((300, 2), -1.0), np.full((300, 2), 1.0)])
  x[0] = np.nan  # left out, not drawn
  label = np.repeat([3, 7], 300)
  (path,) = samples.write_show(tmp_path, "t", 2, {"latent": {"points": x, "label": label}})
  assert path.name == "t_00000002_latent.png"
  rgb, colour = dark(path), {3: (214, 39, 40), 7: (127, 127, 127)}  # of tab10, by their number
  middle = rgb.shape[0] // 2
  for c, left, low in ((3, True, True), (7, False, False)):
    rows, cols = np.nonzero((rgb == colour[c]).all(-1))
    quarter = ((cols < middle) == left) & ((rows > middle) == low)
    assert quarter.sum() > 5 and quarter.sum() > 0.3 * len(rows)  # the rest is the legend's
  (plain,) = samples.write_show(tmp_path, "t", 2, {"plain": {"points": x}})
  assert not (dark(plain) == colour[3]).all(-1).any()


@pytest.mark.parametrize("classes", [[0, 9], [1, 11], range(10, 20), range(13), range(40)])
def test_every_class_has_its_own_colour(classes):
  colours = plots._class_colours(np.asarray(classes))
  assert list(colours) == list(classes)
  assert len({tuple(np.round(c, 3)) for c in colours.values()}) == len(classes)


def test_show_draws_the_histogram_as_a_density_under_the_curve(tmp_path):
  def bars(x, draws, height):
    pictures = {"law": {"x": x, "height": np.full(len(x), height), "draws": draws}}
    (path,) = samples.write_show(tmp_path, "t", 3, pictures)
    rgb = dark(path)
    blue = np.nonzero((rgb[..., 2] - rgb[..., 0] > 60).sum(1) > 100)[0]
    grey = np.nonzero((rgb == (201, 205, 211)).all(-1).sum(1) > 300)[0]
    return blue.min(), grey.min()

  draws = (np.arange(4_096) + 0.5) / 1_024  # even on [0, 4], of which [0, 2] is shown in 32 bins
  curve, grey = bars(np.linspace(0, 2, 50), draws, 0.25)
  assert abs(curve - grey) <= 3  # pixels: the bars reach the law's height, not twice it
  curve, grey = bars(np.arange(4), np.arange(400) % 4, 0.25)  # integers: a bar at each
  assert abs(curve - grey) <= 3


def test_the_key_of_x_names_the_axes(tmp_path):
  """What is said stands below and to the left, and nothing is there where nothing is said."""

  def margins(said):
    curve = {said: np.arange(9.0), "line": np.zeros(9)}
    (path,) = samples.write_show(tmp_path, "t", 5, {"plot": curve})
    ink = dark(path).astype(int).max(-1) < 128  # darker than the numbers at the axes
    return ink[-20:].sum(), ink[:, :20].sum()

  assert margins("x") == (0, 0)
  below, left = margins("x: eps")
  assert below > 10 and left == 0
  assert min(margins("x: eps_1 $; y: accuracy")) > 10  # no formula is read into it


@pytest.mark.parametrize(
  "table",
  [
    {"points": np.zeros((4, 3))},
    {"points": np.zeros((4, 2)), "label": np.zeros(3, int)},
    {"points": np.zeros((4, 2)), "label": np.zeros(4)},
    {"x": np.zeros(4), "law": np.zeros(3)},
    {"x": np.zeros(4), "draws": np.zeros((3, 1))},
    {"y": np.zeros(4)},
  ],
)
def test_show_names_what_does_not_fit(tmp_path, table):
  with pytest.raises(ValueError, match=r"'bad' holds .* a plot is points \[N, 2\]"):
    samples.write_show(tmp_path, "t", 1, {"bad": table})


def test_gif_has_a_frame_for_each_png_and_holds_the_last(tmp_path):
  assert samples.write_gif(tmp_path, "train") is None
  for step in range(5):
    x = np.full((4, 8, 8, 1), -1 + step / 2)
    samples.write_samples(tmp_path, "train", step, {"image": x})
    samples.write_samples(tmp_path, "other", step, {"image": x})
  samples.write_show(tmp_path, "train", 4, {"extra": np.zeros((1, 1, 8, 8, 1))})
  path = samples.write_gif(tmp_path, "train")
  assert path == tmp_path / "samples" / "train.gif"
  with Image.open(path) as image:
    assert image.n_frames == 5
    durations, greys = [], []
    for i in range(5):
      image.seek(i)
      durations.append(image.info["duration"])
      greys.append(int(np.asarray(image.convert("L"))[10, 10]))
  assert durations == [200, 200, 200, 200, 2000]
  assert greys == tiles.to_uint8(np.arange(5) / 2 - 1).tolist()
  samples.write_gif(tmp_path, "train", max_frames=3)
  with Image.open(path) as image:
    assert image.n_frames == 3


def test_arrays_keep_bfloat16_values(tmp_path):
  path = samples.write_arrays(tmp_path / "x.npz", {"x": jnp.array([0.5, -2.0], jnp.bfloat16)})
  with np.load(path) as arrays:
    assert arrays["x"].dtype == np.float32 and arrays["x"].tolist() == [0.5, -2.0]


def test_imports_are_lazy_and_never_tensorflow_or_pyplot():
  code = """
import sys, tempfile
import numpy as np
from gm.workdir import log, record, report, samples
heavy = {"matplotlib", "PIL", "tensorboardX", "tensorflow", "scipy.stats"} & set(sys.modules)
assert not heavy, heavy
d = tempfile.mkdtemp()
out = log.Log(d)
out.write("train", 1, 0.1, 1.0, {"loss": 1.0})
out.close()
samples.write_samples(d, "train", 1, {"point": np.zeros((3, 2))})
report.write(d)
bad = {"tensorflow", "matplotlib.pyplot"} & set(sys.modules)
assert not bad, bad
"""
  subprocess.run([sys.executable, "-c", code], check=True)
