"""Images of one's own whose attributes are changed: what is asked for, read, made and written."""

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import blindfold
from PIL import Image

import configs.stargan
from gm import columns, core, editing, errors, job, loop, sampling

NAMES = ("hair_color=black", "hair_color=blonde", "hair_color=red", "glasses!=none")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  work = tmp_path_factory.mktemp("run")
  config = configs.stargan.get_config("test")
  config.num_steps = 0
  with pytest.MonkeyPatch.context() as patched:
    blindfold(patched)
    loop.train(config, str(work))
  return work


@pytest.fixture(scope="module")
def opened(trained):
  return job.newest(str(trained))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
  """A folder of pictures of several kinds, and what they show: in colour, upright, 8 x 8."""
  top, rng = tmp_path_factory.mktemp("own"), np.random.default_rng(0)
  colour = rng.integers(0, 256, (8, 8, 3), np.uint8)
  grey = np.repeat(colour[..., :1], 3, axis=2)
  shown = {"plain": colour, "grey": grey, "deep": grey, "turned": colour, "palette": grey}
  Image.fromarray(colour).save(top / "plain.png")
  Image.fromarray(grey[..., 0]).save(top / "grey.png")
  Image.fromarray(grey[..., 0].astype(np.uint16) * 257).save(top / "deep.png")
  exif = Image.Exif()
  exif[0x0112] = 6  # to be turned by 90 degrees
  Image.fromarray(np.rot90(colour)).save(top / "turned.png", exif=exif)
  Image.fromarray(grey).quantize(256).save(top / "palette.gif")
  alpha = np.where(np.arange(64).reshape(8, 8) % 3, 255, 0).astype(np.uint8)
  Image.fromarray(np.dstack([colour, alpha])).save(top / "clear.png")
  shown["clear"] = np.where(alpha[..., None] == 255, colour, 255)
  wide = np.concatenate([colour[:, :4] * 0, colour, colour[:, :4] * 0], axis=1)
  Image.fromarray(wide).save(top / "wide.png")
  shown["wide"] = colour
  (top / "notes.txt").write_text("no picture")
  return top, shown


def test_one_edit_is_an_image_of_the_name_of_its_file(trained, opened, pictures, tmp_path):
  top, shown = pictures
  target = "hair_color=red,-glasses!=none"
  request = sampling.Request(range(1), inputs=[str(top)], out=str(tmp_path), target=target)
  sampling.run(str(trained), None, request)
  tail = "hair_color_red_-glasses__none"
  assert sorted(p.name for p in tmp_path.iterdir()) == [f"{n}_{tail}.png" for n in sorted(shown)]
  made, index, state = opened
  wanted = jnp.array([[-1.0, -1.0, 1.0, -1.0]])
  for name, x in shown.items():
    with Image.open(tmp_path / f"{name}_{tail}.png") as image:
      found = np.asarray(image)
    given = jnp.asarray(x[None] / 127.5 - 1, jnp.float32)
    want = made.stages[index].edit(state, given, wanted)[0]
    np.testing.assert_allclose(found, np.asarray((want + 1) * 127.5), atol=1)


def test_without_a_target_a_grid_of_all_domains(trained, opened, pictures, tmp_path, capsys):
  one = str(pictures[0] / "plain.png")
  sampling.run(str(trained), None, sampling.Request(range(1), inputs=[one], out=str(tmp_path)))
  assert [p.name for p in tmp_path.iterdir()] == ["plain_edits.png"]
  told = "as it is; hair_color=black, hair_color=blonde, hair_color=red, glasses!=none, -glasses"
  assert told in capsys.readouterr().out
  found = sampling.draw(str(trained), [0], inputs=one)["image"]
  assert found.shape == (1, 1, 6, 8, 8, 3)
  x = pictures[1]["plain"] / 127.5 - 1
  np.testing.assert_allclose(found[0, 0, 0], x, atol=1e-6)
  made, index, state = opened
  nan = np.nan
  wanted = [[1, -1, -1, nan], [-1, 1, -1, nan], [-1, -1, 1, nan], [nan] * 3 + [1], [nan] * 3 + [-1]]
  given = jnp.repeat(jnp.asarray(x, jnp.float32)[None], 5, axis=0)
  want = made.stages[index].edit(state, given, jnp.array(wanted))
  np.testing.assert_allclose(found[0, 0, 1:], want, atol=1e-5)
  alone = sampling.draw(str(trained), [0], inputs=one, target="hair_color=red")["image"]
  np.testing.assert_allclose(alone[0], want[2], atol=1e-5)


def test_where_there_are_degrees_a_row_of_them_for_each_attribute(opened, pictures):
  """By a method that adds what is wanted of its attributes to the image."""
  made, index, state = opened

  def edit(state, x, wanted):
    return x + jnp.nansum(wanted * jnp.array([0.0, 0.1, 0.2, 0.3]), axis=1)[:, None, None, None]

  stage = made.stages[index]._replace(edit=edit, strengths=(-2.0, 0.0, 2.0))
  made = made._replace(stages=[stage])
  one = str(pictures[0] / "plain.png")
  of = lambda **how: editing.Editing(made, index, state, [one], **how)
  rows = next(of().stream())
  assert rows.shape == (4, 4, 8, 8, 3)
  added = (rows[:, 1:] - rows[:, :1]).mean((2, 3, 4))
  want = [[0.0, 0.0, -0.3], [-0.2, 0.0, 0.2 - 0.2], [-0.4, 0.0, 0.4 - 0.1], [-0.6, 0.0, 0.6]]
  np.testing.assert_allclose(added, want, atol=1e-5)
  assert "glasses!=none -2, glasses!=none 0, glasses!=none 2" in of().legend
  slider = next(of(target="glasses!=none", strengths=["-1", "0.5"]).stream())
  np.testing.assert_allclose(
    (slider[0, 1:] - slider[0, 0]).mean((1, 2, 3)), [-0.3, 0.15], atol=1e-5
  )
  most = next(of(target="glasses!=none").stream())
  np.testing.assert_allclose((most - slider[0, 0]).mean(), 0.6, atol=1e-5)
  for strengths in (["much"], [], ["3"], ["nan"], ["0"] * 21):
    with pytest.raises(errors.UserError, match=r"--strength=.*numbers from -2 to 2, at most 20"):
      of(strengths=strengths)


def test_what_cannot_be_asked_for_is_said_in_a_line(trained, pictures, tmp_path):
  own = [str(pictures[0] / "plain.png")]
  (tmp_path / "empty").mkdir()
  for changes, said in (
    ({"target": "hair"}, "--target=hair: there is no such attribute: give hair_color=black"),
    ({"target": ""}, "--target=: there is no such attribute"),
    ({"target": "hair_color=red,hair_color=black"}, "these exclude each other"),
    ({"target": "glasses!=none,-glasses!=none"}, "these exclude each other"),
    ({"strengths": ["1"]}, "--strength=1: stargan turns attributes on or off"),
    ({"inputs": [str(tmp_path / "empty")]}, "--input: the folder .*empty has no images"),
    ({"inputs": [str(pictures[0] / "notes.txt")]}, r"--input: .*notes\.txt: not readable"),
    ({"inputs": None, "strengths": ["1"]}, "--strength is of attributes of images"),
    ({"seeds": range(3)}, "--seeds: of an image one edit is made"),
    ({"form": "npz"}, "--format=npz: images whose attributes are changed become a file each"),
    ({"labels": ["3"]}, "--labels: images whose attributes are changed have none"),
  ):
    request = sampling.Request(range(1), inputs=own, out=str(tmp_path))._replace(**changes)
    with pytest.raises(errors.UserError, match=said) as error:
      sampling.run(str(trained), None, request)
    assert "\n" not in str(error.value)


def test_faces_of_the_test_split_are_edited_by_seed(trained):
  found = sampling.draw(str(trained), range(3), target="glasses!=none")
  assert found["image"].shape == (3, 8, 8, 3)
  assert found["column"].tolist() == [NAMES.index("glasses!=none")] * 3


def test_columns_of_one_attribute_are_rivals():
  assert columns.rivals(NAMES)[0].tolist() == [False, True, True, False]
  labels = jnp.array([[1.0, 0.0, 0.0, 1.0]] * 3)
  found = columns.change(labels, jnp.array([0, 1, 3]), NAMES)
  assert found.tolist() == [[1, 0, 0, 1], [0, 1, 0, 1], [1, 0, 0, 0]]
  bangs, celeb = jnp.array([[0.0, 1.0, 1.0], [0.0, 0.0, 1.0]]), ("Bald", "Bangs", "Young")
  assert columns.change(bangs, jnp.array([0, 0]), celeb).tolist() == [[1, 0, 1], [1, 0, 1]]
  assert columns.change(bangs, jnp.array([1, 1]), celeb).tolist() == [[0, 0, 1], [0, 1, 1]]
  assert core.batch_shapes(core.Info({"drawn": (10,)}), 2)["drawn"].dtype == jnp.int32
