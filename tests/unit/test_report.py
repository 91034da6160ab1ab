"""The page: well-formed, self-contained, complete, and made of whatever files there are."""

import base64
import io
import json
import math
import re
from html.parser import HTMLParser
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from gm.workdir import curves, files, log, record, report, samples

VOID = {"meta", "img", "input", "br", "link"}


class Page(HTMLParser):
  """Checks that tags nest and collects tags with attributes and text."""

  def __init__(self, text):
    super().__init__(convert_charrefs=True)
    self.open, self.tags, self.text = [], [], ""
    self.feed(text)
    self.close()
    assert not self.open, f"never closed: {self.open}"

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

  def handle_data(self, data):
    if not self.open or self.open[-1] not in ("style", "script"):
      self.text += data

  def all(self, tag, **attrs):
    wanted = {k.rstrip("_"): v for k, v in attrs.items()}
    return [a for t, a in self.tags if t == tag and wanted.items() <= a.items()]


class Alarm(NamedTuple):
  step: int
  stage: str
  name: str
  message: str


def make_run(folder, stages=("train",), pictures=4):
  facts = {"data": {"origin": "10,000 real digits"}, "stages": dict.fromkeys(stages, 400)}
  facts["command"] = "python main.py --config=configs/gan.py --workdir=/tmp/run"
  config = {"method": "gan", "lr": 0.000213, "data": {"source": "embedded"}, "num_steps": 400}
  record.write_config(folder, config, facts)
  out, rng = log.Log(folder), np.random.default_rng(0)
  for stage in stages:
    for step in range(10, 401, 10):
      metrics = {"loss_d": 1.3 + 0.1 * rng.normal(), "gradnorm_g": math.exp(rng.normal())}
      out.write(stage, step, step / 2, 640.0, metrics)
    for step in range(pictures):
      x = rng.uniform(-1, 1, (4, 8, 8, 1))
      samples.write_samples(folder, stage, 100 * step, {"image": x})
  out.close()
  show = {"interpolation": np.zeros((2, 3, 8, 8, 1)), "manifold": np.zeros((3, 3, 8, 8, 1))}
  samples.write_show(folder, stages[-1], 400, show)
  protocol = {"num_samples": 10000, "seed": 3, "feature_net": "digits", "split": "test"}
  record.write_eval(folder, {"metrics": {"frechet": 12.3456}, "protocol": protocol})
  return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  folder = make_run(tmp_path_factory.mktemp("run"))
  text = report.write(folder).read_text(encoding="utf-8")
  return folder, text, Page(text)


def test_contains_each_part(run):
  _, _, page = run
  for part in (
    "python main.py --config=configs/gan.py --workdir=/tmp/run",
    "0.000213",  # the config's values, not rounded
    "Data: 10,000 real digits",
    "jaxlib",
    "400 of 400",
    "finished",
    "3.3minutes",
    "frechet12.35",
    "num samples10,000",
    "seed3",
    "feature netdigits",
    "splittest",
    "interpolation",
    "manifold",
    "step 300",
  ):
    assert part in page.text, part
  assert "not real" not in page.text
  assert {a["id"] for a in page.all("section")} >= {
    *("alarms", "evaluation", "samples", "curves", "values", "run")
  }


def test_is_self_contained(run):
  _, text, page = run
  for _, attrs in page.tags:
    for name in ("src", "href", "srcset", "action", "poster"):
      if name in attrs:
        assert attrs[name].startswith(("data:image/", "#")), attrs[name][:80]
  assert not page.all("link")
  (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
  (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
  assert not re.search(r"https?:|url\(|@import|//|fetch|XMLHttp|import\(", style + script)
  assert "prefers-color-scheme: dark" in text and "@media print" in text


def test_slider_has_as_many_frames_as_pngs(run):
  folder, _, page = run
  pngs = sorted((folder / "samples").glob("train_????????.png"))
  assert len(pngs) == 4
  (slider,) = page.all("input", type="range")
  assert (slider["min"], slider["max"], slider["value"]) == ("0", "3", "3")
  frames = page.all("div", class_="frame")
  labels = [f["data-label"] for f in frames]
  assert labels == ["step 0", "step 100", "step 200", "step 300", "step 400", "step 400"]
  assert ["hidden" in f for f in frames] == [True] * 3 + [False] * 3  # the last is shown
  images = [a["src"].partition(",")[2] for a in page.all("img")]
  assert [base64.b64decode(i) for i in images[:4]] == [p.read_bytes() for p in pngs]
  assert len(page.all("button")) == 1
  assert images[-1] == base64.b64encode((folder / "curves.png").read_bytes()).decode()


def test_is_a_pure_function_of_the_files(run):
  folder, text, _ = run
  assert report.write(folder).read_text(encoding="utf-8") == text


def test_stages_stand_in_the_order_of_training(tmp_path):
  make_run(tmp_path, ("8px", "16px_fade", "16px"), pictures=2)
  page = Page(report.write(tmp_path).read_text())
  labels = [f["data-label"] for f in page.all("div", class_="frame")][:6]
  stages = [f"{s} · step {n}" for s in ("8px", "16px_fade", "16px") for n in (0, 100)]
  assert labels == stages


def test_pictures_of_another_mode_have_their_own_player(tmp_path):
  make_run(tmp_path)
  samples.write_samples(tmp_path, "train_drawn", 400, {"image": np.zeros((4, 8, 8, 1))})
  page = Page(report.write(tmp_path).read_text())
  (slider,) = page.all("input", type="range")
  assert slider["max"] == "3" and "train drawn" in page.text


def test_pictures_that_were_asked_for_are_not_of_training(tmp_path):
  make_run(tmp_path)
  before = report.write(tmp_path).read_text()
  for name in ("seeds0-3", "truncation0.5_seeds1,7_labels3", "walk1,2"):
    samples.write_grid(
      samples.sample_path(tmp_path, "train", 400, name, "png"), np.zeros((4, 8, 8, 1))
    )
  assert report.write(tmp_path).read_text() == before
  name = samples.sample_path(tmp_path, "train", 400, "truncation", "png")
  samples.write_grid(name, np.zeros((4, 8, 8, 1)))  # a method's own
  assert report.write(tmp_path).read_text() != before


def test_a_folder_is_not_called_by_the_name_of_another_set(tmp_path):
  data = {"source": "folder", "name": "mnist10k", "dir": "/pictures"}
  record.write_config(tmp_path, {"method": "dcgan", "data": data})
  text = Page(report.write(tmp_path).read_text()).text
  assert "/pictures" in text and "mnist10k" not in text
  record.write_config(tmp_path, {"method": "dcgan", "data": {**data, "source": "embedded"}})
  assert "mnist10k" in Page(report.write(tmp_path).read_text()).text


def test_generated_data_are_said_to_be(tmp_path):
  config = {"method": "gan", "data": {"source": "points", "name": "ring"}}
  record.write_config(tmp_path, config)
  assert (
    "generated by a formula; they are not real" in Page(report.write(tmp_path).read_text()).text
  )
  record.write_config(tmp_path, {**config, "data": {"source": "embedded"}}, {"data": "digits"})
  page = Page(report.write(tmp_path).read_text())
  assert "not real" not in page.text and "Data: digits" in page.text


def test_classes_are_named(tmp_path):
  for classes, said in (
    (["cat", "<dog>"], "2 classes: cat, <dog>"),
    ([*map(str, range(30))], "19, ..."),
  ):
    record.write_config(tmp_path, {"method": "gan"}, {"data": {"origin": "x", "classes": classes}})
    assert said in Page(report.write(tmp_path).read_text()).text


@pytest.mark.parametrize(
  "missing", ["config.json", "metrics.jsonl", "eval.json", "samples", "everything"]
)
def test_missing_pieces(tmp_path, missing):
  make_run(tmp_path)
  report.write(tmp_path)
  for path in sorted(tmp_path.rglob("*"), reverse=True):
    if missing == "everything" or missing in path.relative_to(tmp_path).parts[:1]:
      path.rmdir() if path.is_dir() else path.unlink()
  page = Page(report.write(tmp_path).read_text())
  expected = {
    "config.json": "config.json is missing",
    "metrics.jsonl": "Nothing was logged",
    "eval.json": "No evaluation yet",
    "samples": "No pictures yet",
    "everything": "No pictures yet",
  }
  assert expected[missing] in page.text


def test_broken_files(tmp_path):
  make_run(tmp_path)
  (tmp_path / "config.json").write_text("{")
  (tmp_path / "eval.json").write_text("[1]")
  with open(tmp_path / "metrics.jsonl", "a") as file:
    file.write('{"stage": "tra')
  page = Page(report.write(tmp_path).read_text())
  assert "config.json is missing or cannot be read" in page.text


def test_unfinished_run(tmp_path):
  make_run(tmp_path)
  out = log.Log(tmp_path)
  out.rewind("train", 200)
  out.close()
  page = Page(report.write(tmp_path).read_text())
  assert "unfinished" in page.text and "200 of 400" in page.text


def test_a_sampler_says_that_nothing_is_trained():
  assert report._headline({}, {"num_steps": 0}, []) == [
    ("no steps", "a sampler: nothing is trained")
  ]
  assert report._headline({}, {"num_steps": 5}, []) == [("nothing logged", "so far")]


def test_everything_is_escaped(tmp_path, monkeypatch):
  evil = "<script>alert('x')</script>\"&"
  record.write_config(tmp_path, {"method": evil, evil: evil}, {"data": evil, "command": evil})
  out = log.Log(tmp_path)
  out.write(evil, 1, 0.0, 0.0, {evil: 1.0, "$x_{": 2.0})
  out.close()
  record.write_eval(tmp_path, {"metrics": {evil: 1.0}, "protocol": {evil: evil}})
  files.write_bytes(tmp_path / "samples" / "train_00000001.txt", evil.encode())
  monkeypatch.setattr(report.diagnostics, "alarms", lambda r: [Alarm(1, evil, evil, evil)])
  text = report.write(tmp_path).read_text()
  page = Page(text)
  assert text.count("<script>") == 1 and evil in page.text


def test_alarms_are_listed(tmp_path, monkeypatch):
  make_run(tmp_path)
  seen = []

  def alarms(records):
    seen.extend(records)
    return [Alarm(120, "train", "mode_collapse", "try a smaller step")]

  monkeypatch.setattr(report.diagnostics, "alarms", alarms)
  text = Page(report.write(tmp_path).read_text()).text
  assert "mode collapse" in text and "try a smaller step" in text and "train · step 120" in text
  assert len(seen) == 41  # the lines logged, and the last evaluation
  monkeypatch.setattr(report.diagnostics, "alarms", lambda r: [])
  assert "None of the checks fired" in Page(report.write(tmp_path).read_text()).text


def test_the_last_evaluation_raises_alarms(tmp_path):
  """Modes are often counted at the end only."""
  make_run(tmp_path)
  record.write_eval(
    tmp_path,
    {
      "stage": "train",
      "step": 9,
      "metrics": {"modes_20": 4.0, "num_modes": 8.0, "mode_kl": 0.6},
      "protocol": {},
    },
  )
  text = Page(report.write(tmp_path).read_text()).text
  assert "mode collapse" in text


def test_real_alarms_are_called(tmp_path):
  out = log.Log(tmp_path)
  for step in (100, 200, 300, 400):
    out.write("train", step, 1.0, 1.0, {"rate": 0.001})
  out.close()
  assert "kl collapse" in Page(report.write(tmp_path).read_text()).text


def test_docstring_is_read_without_import(tmp_path, monkeypatch):
  methods = tmp_path / "gm" / "methods"
  methods.mkdir(parents=True)
  source = (
    '"""ABC. A. Author, A Title, 2014.\n\nIdea: x < y.\n"""\nraise RuntimeError("imported")\n'
  )
  (methods / "abc_gan.py").write_text(source)
  monkeypatch.setattr(report, "_METHODS", methods)
  record.write_config(tmp_path, {"method": "abc_gan"})
  page = Page(report.write(tmp_path).read_text())
  assert "ABC. A. Author, A Title, 2014." in page.text and "Idea: x < y." in page.text
  assert report.method_docstring("../../secret") == ""


def test_many_pictures_become_jpeg_but_all_stay(tmp_path, monkeypatch):
  make_run(tmp_path)
  monkeypatch.setattr(report, "_MAX_EMBEDDED", 100)
  page = Page(report.write(tmp_path).read_text())
  frames = [a["src"] for a in page.all("img") if "curves" not in a.get("class", "")]
  assert len(frames) == 6 and all(f.startswith("data:image/jpeg") for f in frames)
  with Image.open(io.BytesIO(base64.b64decode(frames[0].partition(",")[2]))) as image:
    assert image.format == "JPEG" and image.size == (118, 118)


# --- curves


def records(names, steps=50, stage="train", value=lambda name, step: 1.0 + step):
  return [
    {"stage": stage, "step": s, "seconds": 1.0, "examples_per_second": 5.0}
    | {n: value(n, s) for n in names}
    for s in range(1, steps + 1)
  ]


def test_stages_lie_end_to_end():
  series, spans = curves.by_metric(records(["a"], 30, "one") + records(["a", "b"], 20, "two"))
  assert spans == [("one", 0, 30), ("two", 30, 50)]
  assert [x[[0, -1]].tolist() for x, _ in series["a"]] == [[1, 30], [31, 50]]
  assert len(series["b"]) == 1 and "seconds" not in series and "examples_per_second" in series


def test_families_and_magnitudes():
  sizes = {"loss_g": 1.0, "loss_d": 2.0, "rec_loss": 500.0, "learning_rate": 1e-4}
  sizes |= {"gradnorm_g": 1.0, "d_real": 0.5, "d_fake": 0.5, "frechet": 9.0, "class_a": 0.1}
  series, _ = curves.by_metric(records(list(sizes), value=lambda n, s: sizes[n]))
  panels = [(title, sorted(names)) for title, _, names in curves._panels(series)]
  assert panels == [
    ("losses", ["loss_d", "loss_g"]),
    ("rec_loss", ["rec_loss"]),
    ("gradnorm_g", ["gradnorm_g"]),
    ("discriminator outputs", ["d_fake", "d_real"]),
    ("learning_rate", ["learning_rate"]),
    ("frechet", ["frechet"]),
    ("class_a", ["class_a"]),
    ("examples per second", ["examples_per_second"]),
  ]


def test_no_panel_is_crowded():
  series, _ = curves.by_metric(records([f"loss_{i}" for i in range(20)], 5))
  panels = curves._panels(series)
  assert max(len(names) for _, _, names in panels) == 6
  assert sorted(n for _, _, names in panels for n in names) == sorted(series)


def test_forty_single_metrics_share_panels():
  series, _ = curves.by_metric(records([f"m{i}_x" for i in range(40)], 5))
  panels = curves._panels(series)
  assert len(panels) == 8  # seven of up to six, and the speed
  assert sorted(n for _, _, names in panels for n in names) == sorted(series)


def test_smooth_is_unbiased_and_passes_over_nan():
  np.testing.assert_allclose(curves._smooth(np.full(90, 3.0)), 3.0)
  y = np.array([1.0, np.nan, 2.0] * 20)  # decay = 1 - 1/2
  weights = np.array([0.5, 1.0])  # of the third point: 2 counts once, 1 half
  expected = (weights * [1.0, 2.0]).sum() / weights.sum()
  assert curves._smooth(y)[2] == pytest.approx(expected)
  assert curves._smooth(y)[1] == 1.0


def test_envelope_keeps_the_spike():
  x, y = np.arange(10_000.0), np.zeros(10_000)
  y[7777] = 5.0
  thin_x, thin_y = curves._envelope(x, y)
  assert len(thin_x) <= 800 and thin_y.max() == 5.0 and thin_x[thin_y.argmax()] == 7777
  assert (np.diff(thin_x) > 0).all()


@pytest.mark.parametrize("num", [1, 5, 40])
def test_curves_picture(num):
  rng = np.random.default_rng(0)
  picture = curves.draw(records([f"m{i}_x" for i in range(num)], value=lambda n, s: rng.normal()))
  with Image.open(io.BytesIO(picture)) as image:
    assert image.size[0] > 400
    assert np.asarray(image.convert("L")).std() > 5


def test_curves_of_nothing_and_of_nan():
  assert curves.draw([]) is None
  assert curves.draw(records(["loss"], value=lambda n, s: math.nan)) is not None


def test_one_record_is_enough(tmp_path):
  out = log.Log(tmp_path)
  out.write("train", 0, 0.0, 0.0, {"loss": 1.0})
  out.close()
  report.write(tmp_path)
  assert (tmp_path / "curves.png").exists()
  assert json.loads((tmp_path / "metrics.jsonl").read_text())["loss"] == 1.0
