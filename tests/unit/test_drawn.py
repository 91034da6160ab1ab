"""What --mode=sample writes: read back and compared with what was given."""

import io
import re
import sys

import numpy as np
import pytest
from PIL import Image

from gm import core, progress
from gm.workdir import drawn, samples, tiles, video


def place(folder, overwrite=False, out=None):
  return drawn.Place(folder, out, "train_00000007", overwrite)


def images(num, height=6, width=4, channels=1, seed=0):
  return np.random.default_rng(seed).uniform(-1, 1, (num, height, width, channels))


def pixels(path):
  with Image.open(path) as image:
    return np.asarray(image)


def test_files_hold_each_image_in_its_true_size(tmp_path):
  x = images(5, channels=3)
  writer = drawn.Files(place(tmp_path), [f"seed{i}" for i in range(5)], ["image"])
  writer.add({"image": x[:2]})
  writer.add({"image": x[2:]})
  (folder,) = writer.close()
  assert folder == tmp_path / "samples/train_00000007"
  assert sorted(p.name for p in folder.iterdir()) == [f"seed{i}.png" for i in range(5)]
  for i in range(5):
    np.testing.assert_array_equal(pixels(folder / f"seed{i}.png"), tiles.to_uint8(x[i]))


def test_files_go_where_out_says_and_of_two_kinds_each_has_its_name(tmp_path):
  writer = drawn.Files(place(tmp_path, out=tmp_path / "o"), ["s0"], ["a", "b"])
  writer.add({"a": images(1), "b": images(1, seed=1), "seed": np.arange(1)})
  assert writer.close() == [tmp_path / "o"]
  assert sorted(p.name for p in (tmp_path / "o").iterdir()) == ["s0_a.png", "s0_b.png"]
  assert pixels(tmp_path / "o/s0_a.png").shape == (6, 4)  # grey


@pytest.mark.parametrize("kind", ["files", "npz", "grid"])
def test_what_is_there_is_not_overwritten_unless_asked(kind, tmp_path):
  def write(overwrite):
    to = place(tmp_path, overwrite, tmp_path / "o")
    writer = {
      "files": lambda: drawn.Files(to, ["s0", "s1"], ["image"]),
      "npz": lambda: drawn.Arrays(to, "x"),
      "grid": lambda: drawn.Picture(to, "x", 1, core.Info({})),
    }[kind]()
    writer.add({"image": images(2)})
    writer.close()

  write(False)
  before = {p: p.stat().st_mtime_ns for p in (tmp_path / "o").iterdir()}
  with pytest.raises(ValueError, match=r"is there already: give --overwrite.*--out"):
    write(False)
  assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "o").iterdir()}
  write(True)
  assert before.keys() == {*(tmp_path / "o").iterdir()}
  assert all(p.stat().st_mtime_ns > t for p, t in before.items())


@pytest.mark.parametrize("kind", ["files", "npz", "grid"])
def test_a_folder_that_cannot_be_is_refused_before_anything_is_drawn(kind, tmp_path):
  (tmp_path / "file").write_text("")
  for out in (tmp_path / "file", tmp_path / "file/below", "/proc/nosuch"):
    to = place(tmp_path, False, out)
    with pytest.raises(ValueError, match=rf"^--out={out} is no folder that can be written"):
      {
        "files": lambda: drawn.Files(to, ["s0"], ["image"]),
        "npz": lambda: drawn.Arrays(to, "x"),
        "grid": lambda: drawn.Picture(to, "x", 1, core.Info({})),
      }[kind]()


def test_ranges_are_spelled_without_being_counted():
  assert drawn.spell(range(2**31)) == "0-2147483647" and drawn.spell(range(5, 6)) == "5"
  assert drawn.spell([0, 1, 2, 9]) == "0-2,9"


def test_pictures_that_were_asked_for_are_known_by_their_names():
  for name in ("seeds0-35", "seeds5_labels3,7", "walk5,9,13_label3", "truncation0.7_seeds0-9"):
    assert drawn.NAMED.match(name), name
  for name in ("", "truncation", "interpolation", "walk", "seeds"):  # a method's own
    assert not drawn.NAMED.match(name), name


def test_arrays_that_came_in_parts_are_one_npz(tmp_path):
  x, seeds = images(7).astype(np.float32), np.arange(7)
  writer = drawn.Arrays(place(tmp_path), "seeds0-6")
  for part in (slice(0, 3), slice(3, 4), slice(4, 7)):
    writer.add({"image": x[part], "seed": seeds[part]})
  (path,) = writer.close()
  assert path == tmp_path / "samples/train_00000007_seeds0-6.npz"
  assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing else is left
  with np.load(path) as found:
    assert set(found) == {"image", "seed"}
    for name, value in (("image", x), ("seed", seeds)):
      assert found[name].dtype == value.dtype
      np.testing.assert_array_equal(found[name], value)


def test_a_grid_has_a_row_for_each_label(tmp_path):
  x = images(6, 60, 60)
  writer = drawn.Picture(place(tmp_path), "x", 3, core.Info({"image": (60, 60, 1)}))
  writer.add({"image": x[:3], "seed": np.arange(3)})
  writer.add({"image": x[3:], "seed": np.arange(3)})
  (path,) = writer.close()
  expected = tiles.grid(x.reshape(3, 2, 60, 60, 1))
  np.testing.assert_array_equal(pixels(path), expected)
  assert expected.shape[0] > expected.shape[1] and tiles.grid(x).shape != expected.shape


def test_points_become_a_plot_and_arrays(tmp_path):
  writer = drawn.Picture(place(tmp_path), "x", 1, core.Info({"point": (2,)}))
  writer.add({"point": np.zeros((5, 2), np.float32)})
  assert sorted(p.suffix for p in writer.close()) == [".npz", ".png"]


def test_show_draws_images_as_images(tmp_path):
  """Not as a line for every row of pixels, which is what four axes are without info."""
  x = images(5, 60, 60)
  info = core.Info({"image": (60, 60, 1)})
  (path,) = samples.write_show(tmp_path, "train", 1, {"drawn": x}, info)
  np.testing.assert_array_equal(pixels(path), tiles.grid(x))


def test_a_walk_becomes_a_gif_without_an_encoder_too(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "av", None)
  x = np.linspace(-1, 1, 6)[:, None, None, None] * np.ones((1, 28, 20, 1))
  (path,), remark = video.write_walk(place(tmp_path), "walk1,2", {"image": x})
  assert path.name == "train_00000007_walk1,2.gif" and "pip install av" in remark
  with Image.open(path) as film:
    assert (film.n_frames, film.size) == (6, (200, 280))
    assert (film.info["loop"], film.info["duration"]) == (0, 1000 // video.FPS)
    for i in range(6):
      film.seek(i)
      value = np.asarray(film.convert("L"))
      np.testing.assert_allclose(value, tiles.to_uint8(x[i, 0, 0, 0]), atol=1)


def test_a_walk_becomes_an_mp4_where_the_encoder_is(tmp_path):
  import av

  x = np.linspace(-1, 1, 6)[:, None, None, None] * np.ones((1, 255, 301, 1))
  film = av.open(io.BytesIO(video.mp4(video.frames(x))))
  frames = [f.to_ndarray(format="gray") for f in film.decode(video=0)]
  assert film.streams.video[0].codec_context.name == "h264"
  assert len(frames) == 6 and frames[0].shape == (256, 302)  # even sides
  means = [f.mean() for f in frames]
  np.testing.assert_allclose(means, tiles.to_uint8(x[:, 0, 0, 0]), atol=4)


def test_a_walk_of_points_becomes_a_path(tmp_path):
  found, remark = video.write_walk(place(tmp_path), "walk1,2", {"point": np.ones((6, 2))})
  assert sorted(p.suffix for p in found) == [".npz", ".png"] and not remark


def test_progress_tells_samples_per_second(capsys):
  with progress.Count(6, "images", seconds=0.0) as count:
    count.add(2)
    count.add(4)
  first, last = capsys.readouterr().out.splitlines()
  assert first == "2/6 images" and last.startswith("6/6 images") and last.endswith("images/s")
  with progress.Count(6, "images") as count:
    count.add(6)  # all at once
  assert re.fullmatch(r"6/6 images  [\d,.e+]+ images/s with the start\n", capsys.readouterr().out)


def test_images_have_the_names_of_their_classes_under_them():
  """Nothing of a tile is covered; a strip below holds the name, or stays empty."""
  x = np.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8, 1)
  label = np.array([[0, -1, 1], [1, 1, 7]])
  open_ = lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
  plain, named = (open_(tiles.captioned(x, y, ["cat", "dog"])) for y in (None, label))
  assert plain.shape == named.shape
  rows, cols = np.nonzero((plain != named).any(-1))
  side = tiles.grid(x[:1, 0]).shape[0]  # of a tile with its frame
  assert named.shape[:2] == (2 * (side + 16), 3 * side)
  places = {(int(r // (side + 16)), int(c // side)) for r, c in zip(rows, cols)}
  assert places == {(0, 0), (0, 2), (1, 0), (1, 1), (1, 2)}  # all but that below 0
  assert (rows % (side + 16) >= side).all()
  for i in range(2):
    for j in range(3):
      tile = named[i * (side + 16) :, j * side :][:side, :side, 0]
      np.testing.assert_array_equal(tile, tiles.grid(x[i, j : j + 1]))
  numbers = open_(tiles.captioned(x, label))  # without names
  assert (numbers != named).any()
  with pytest.raises(ValueError, match=r"given \(2, 2\)"):
    tiles.captioned(x, label[:, :2])


def test_several_images_for_a_sample_are_its_row(tmp_path):
  x = np.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8, 1)
  label = np.array([[0, -1, 1], [1, 1, 0]])
  place = drawn.Place(tmp_path, None, "train_00000001")
  picture = drawn.Picture(place, "seeds0-1", 1, core.Info({}), ["cat", "dog"])
  picture.add({"attack": x, "attack_label": label, "image": x[:, 0]})
  first, second = picture.close()
  assert first.name.endswith("seeds0-1.png") and second.name.endswith("seeds0-1_image.png")
  assert first.read_bytes() == tiles.captioned(x, label, ["cat", "dog"])
  (shown,) = samples.write_show(
    tmp_path, "t", 1, {"attack": {"images": x, "label": label}}, core.Info({}), ["cat", "dog"]
  )
  assert shown.read_bytes() == first.read_bytes()
