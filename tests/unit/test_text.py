"""Text: tokens, captions of faces and of a user's own images, and prompts that are asked for."""

import io
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from PIL import Image

from gm import asked, core, errors, job, sampler, sampling
from gm.data import avatars, captions, folder, prepare, prepared, text
from gm.data import tfds as own_set
from gm.workdir import drawn, record

BASE = {"text_key": "caption", "text_length": 6, "vocab_size": 400, "tokenizer": "word"}
SAID = ["A red hat, a green scarf.", "the Red fox", "naïve 日本 fox"]


def learned(kind="word", **keys):
  return text.learn(SAID, {**BASE, "tokenizer": kind, **keys})


# ----------------------------------------------------------------------------------------- tokens


def test_words_have_ids_the_most_frequent_first():
  made = learned()
  found = text.encode(made, ["red a fox", "RED, (fox)!"], 4, ["x", "y"])
  assert found.dtype == np.int32 and sorted(found[0]) == [0, 1, 2, 3] and found[0, 3] == 0
  assert found[1].tolist() == [found[0, 0], found[0, 2], 0, 0]
  assert text.decode(made, found) == ["red a fox", "red fox"]
  ids = text.encode(made, SAID, 6, SAID)
  assert len(set(ids.ravel()) - {0}) == ids.max() == 9  # all in use, 1 ... 9


def test_byte_pairs_know_every_word_and_where_one_begins():
  made = learned("bpe")
  for said in ("an ünheard-of würd", "日本 fox", "red hat"):
    (ids,) = text.encode(made, [said], 64, [said])
    want = " ".join("".join(c if c.isalnum() else " " for c in said).split())
    assert text.decode(made, [ids]) == [want] and 0 not in ids[: np.flatnonzero(ids)[-1]]
  one, two = text.encode(made, ["redhat", "red hat"], 64, ["", ""])
  assert (one != two).any()
  assert max(text.encode(made, SAID, 64, SAID).ravel()) < 400


@pytest.mark.parametrize("kind", text.KINDS)
def test_a_tokenizer_is_a_function_of_the_captions(kind):
  rng = np.random.default_rng(0)
  said = [" ".join("abcdefgh"[i] * n for i, n in rng.integers(1, 8, (9, 2))) for _ in range(500)]
  cfg = {**BASE, "tokenizer": kind}
  assert text.learn(said, cfg) == text.learn(said, cfg)


@pytest.mark.parametrize(
  "kind, said, message",
  [
    ("word", "a Blue hat", "it: the word 'Blue' is in no caption"),
    ("word", " ., ", "it holds no word"),
    ("bpe", "", "it holds no word"),
    ("word", "red " * 7, "it has 7 tokens, 6 fit: shorten it, or else"),
    ("bpe", "w" * 9, "it has 10 tokens, 6 fit"),
  ],
)
def test_texts_that_cannot_be_read(kind, said, message):
  with pytest.raises(ValueError, match=message):
    text.encode(learned(kind), ["red", said], 6, ["other", "it"], ", or else")


def test_what_a_config_may_ask_of_text():
  facts = text.declared(BASE, core.Info({"image": (8, 8, 3)}), "caption")
  assert facts.shape == {"image": (8, 8, 3), "tokens": (6,)} and facts.vocab_size == 400
  assert core.batch_shapes(facts, 2)["tokens"].dtype == jnp.int32
  assert text.declared({**BASE, "text_key": ""}, core.Info({})) == core.Info({})
  for key, value in (
    *(("text_key", "captions"), ("tokenizer", "char"), ("text_length", 0)),
    *(("text_length", 10**6), ("vocab_size", 1)),
  ):
    with pytest.raises(ValueError, match=rf"--config\.data\.{key}={value!r}"):
      text.declared({**BASE, key: value}, core.Info({}), "caption")
  with pytest.raises(ValueError, match=r"--config\.data\.vocab_size=256.*257"):
    text.declared({**BASE, "tokenizer": "bpe", "vocab_size": 256}, core.Info({}))
  with pytest.raises(ValueError, match=r"9 words, --config\.data\.vocab_size=9 has ids for 8"):
    learned(vocab_size=9)
  learned(vocab_size=10)


# ------------------------------------------------------------------------------ captions of faces


def test_a_caption_says_what_is_there():
  rows = avatars.draw(3_000, seed=5)
  for row in rows:
    value = {n: avatars.VALUES[n][i] for n, i in zip(avatars.NAMES, row, strict=True)}
    said = avatars.describe(row)
    assert ("hair" in said) == (value["hair"] != "hat")
    assert ("no hair" in said) == (value["hair"] == "none")
    assert (" long " in said) <= (value["hair"] in avatars._LONG)
    assert ("sunglasses" in said) == (value["glasses"].startswith(("sunglasses", "wayfarers")))
    assert (" glasses" in said) == (value["glasses"].startswith(("prescription", "round")))
    assert ("beard" in said) == ("beard" in value["facial_hair"])
    assert ("moustache" in said) == ("moustache" in value["facial_hair"])
    if "red hair" in said:
      assert value["hair_color"] == "red"
    if "wearing blue" in said:
      assert "blue" in value["clothes_color"]
    for (name, named), i in zip(avatars.SAID, avatars.said(row), strict=True):
      if 0 <= i < len(named):
        place = said.index("wearing") if name == "clothes_color" else 0
        assert named[i] in said[place:], (name, said)
      assert (i == len(named)) <= (name in ("facial_hair", "glasses") and value[name] == "none")
      assert (i == -1) <= (name in ("hair_color", "clothes_color"))
  assert 0.45 < np.mean(["wearing" in avatars.describe(row) for row in rows]) < 0.55
  for name, named in avatars.WORDS.items():
    assert sorted(v for values in named.values() for v in values) == sorted(avatars.VALUES[name])


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
  made = tmp_path_factory.mktemp("data")
  prepare.ensure("avatars_60_3", made, say=lambda line: None)
  keys = {"name": "avatars_60_3", "dir": str(made), "image_size": 16, **BASE, "text_length": 16}
  return ConfigDict(keys)


def test_combinations_of_faces_are_held_out(faces):
  train, test = (prepared.load(faces, split, shuffle=False) for split in ("train", "test"))
  assert train.num_examples + test.num_examples == 60 and train.tokenizer == test.tokenizer
  body = lambda row: avatars.describe(row).partition(", wearing")[0]
  seen, held_out = ({body(r) for r in s.arrays["attributes"]} for s in (train, test))
  assert held_out and not seen & held_out
  rows = np.concatenate([s.arrays["attributes"] for s in (train, test)])
  assert sorted(map(tuple, rows)) == sorted(map(tuple, avatars.draw(60, seed=3)))
  batch = train.decode(train.batch(0, 8))
  assert batch["tokens"].dtype == jnp.int32 and batch["tokens"].shape == (8, 16)
  assert batch["said"].dtype == jnp.int32 and len(train.info.said) == batch["said"].shape[1]
  want = [avatars.describe(r).replace(",", "") for r in train.arrays["attributes"]]
  got = text.decode(train.tokenizer, batch["tokens"])
  assert got == [want[i] for i in train.indices(0, 8)]
  shares = [avatars.is_held_out(row) for row in avatars.draw(4_000)]
  assert 0.1 < np.mean(shares) < 0.25


# ----------------------------------------------------------------------------- a user's own images

PETS = ["a red cat", "a green dog, asleep", "a blue cat"]


def paint(top, names=("x/0.png", "1.png", "2.png")):
  for i, name in enumerate(names):
    (top / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), [(255, 0, 0), (0, 255, 0), (0, 0, 255)][i]).save(top / name)
  return top


def png(level):
  file = io.BytesIO()
  Image.new("RGB", (8, 8), (level,) * 3).save(file, "PNG")
  return file.getvalue()


def table(*rows):
  return "\n".join(["file,caption", *rows]) + "\n"


GOOD = table("x/0.png,a red cat", '1.png,"a green dog, asleep"', "./2.png,a blue cat")


def test_captions_come_with_their_images(tmp_path, monkeypatch):
  monkeypatch.setattr(folder, "in_test", lambda path: path == "2.png")
  (paint(tmp_path / "csv") / "captions.csv").write_text(GOOD)
  paint(tmp_path / "txt")
  for name, said in zip(("x/0.txt", "1.txt", "2.txt"), PETS, strict=True):
    (tmp_path / "txt" / name).write_text(f"\n{said}\n")
  digests = set()
  for kind, memory_mb in (("csv", 256), ("txt", 256), ("csv", 0)):
    cfg = {"dir": str(tmp_path / kind), "image_size": 8, "channels": 3, "num_classes": 0, **BASE}
    source = folder.load({**cfg, "memory_mb": memory_mb}, "train", shuffle=False)
    assert source.info == folder.info(cfg) and source.num_examples == 2
    batch = source.decode(source.batch(0, 2))
    said = text.decode(source.tokenizer, batch["tokens"])
    for x, words in zip(np.asarray(batch["image"]), said, strict=True):
      assert words == ["a red cat", "a green dog asleep"][int(x[0, 0].argmax())]
    digests.add(source.origin["captions"])
  assert len(digests) == 1  # where they stand is no matter
  (tmp_path / "txt/1.txt").write_text("a green dog")
  changed = folder.load({**cfg, "dir": str(tmp_path / "txt")}, "train")
  assert changed.origin["captions"] not in digests


def test_an_image_with_several_captions_is_several_examples(tmp_path):
  (paint(tmp_path) / "captions.csv").write_text(GOOD + "1.png,some dog\n1.png,green\n")
  assert len(captions.of_files(tmp_path, ["1.png", "x/0.png", "2.png"])["1.png"]) == 3
  cfg = {"dir": str(tmp_path), "image_size": 8, "channels": 3, "num_classes": 0, **BASE}
  num = [folder.load(cfg, split).num_examples for split in ("train", "test")]
  assert sum(num) == 5


BAD = {
  "x/0.png,a\n1.png,b": r"2\.png has no caption in .*captions\.csv: add a line",
  "x/0.png,a": r"has no caption in .*captions\.csv \(nor have 1 others\)",
  "x/0.png,a\n1.png,b\n2.png,c\n3.png,d": r"captions\.csv line 5 names 3\.png, which is not in",
  "x/0.png,a\n1.png, \n2.png,c": r"captions\.csv line 3: the caption of 1\.png is empty",
  "x/0.png,a, b": r"captions\.csv line 2 has 3 fields, not 2",
}


@pytest.mark.parametrize("rows", BAD)
def test_tables_that_do_not_fit_are_named(rows, tmp_path):
  (paint(tmp_path) / "captions.csv").write_text(table(rows))
  with pytest.raises(ValueError, match=BAD[rows]) as error:
    captions.of_files(tmp_path, ["x/0.png", "1.png", "2.png"])
  assert "\n" not in str(error.value)


def test_what_is_no_table_and_texts_that_are_missing(tmp_path):
  paint(tmp_path)
  of = lambda: captions.of_files(tmp_path, ["1.png"])
  with pytest.raises(ValueError, match=r"1\.png has no caption: there is no 1\.txt beside it"):
    of()
  (tmp_path / "1.txt").write_text(" \n")
  with pytest.raises(ValueError, match=r"1\.txt is empty"):
    of()
  (tmp_path / "1.txt").write_bytes(b"\xff\xfe\xfa")
  with pytest.raises(ValueError, match=r"1\.txt is no UTF-8"):
    of()
  (tmp_path / "captions.csv").write_text("name;text\n")
  with pytest.raises(ValueError, match=r"must begin with the line file,caption"):
    of()
  (tmp_path / "captions.csv").write_text(table("1.png,hat"))
  assert of()["1.png"][0][0] == "hat"
  cfg = {"dir": str(tmp_path), "image_size": 8, "channels": 3, "num_classes": 0, **BASE}
  (tmp_path / "captions.csv").write_text(GOOD.replace("a red cat", "a cat " * 4))
  with pytest.raises(ValueError, match=r"csv line 2 has 8 tokens, 6 fit.*data\.text_length"):
    folder.load(cfg, "train")


def test_the_texts_of_a_tfds_set(tmp_path):
  features = {"image": tfds.features.Image(shape=(8, 8, 3)), "said": tfds.features.Text()}
  features["all"] = tfds.features.Sequence(tfds.features.Text())
  writer = {
    s: [{"image": png(i), "said": PETS[i], "all": PETS[: i + 1]} for i in range(n)]
    for s, n in (("train", 3), ("test", 2))
  }
  at = tmp_path / "pets" / "1.0.0"
  at.mkdir(parents=True)
  identity = tfds.core.DatasetIdentity("pets", "1.0.0", str(at), "")
  facts = tfds.core.DatasetInfo(builder=identity, features=tfds.features.FeaturesDict(features))
  written = tfds.core.SequentialWriter(facts, 10, file_format="array_record")
  written.initialize_splits(list(writer))
  written.add_examples(writer)
  written.close_all()
  cfg = {
    "dir": str(at),
    "image_size": 8,
    "channels": 3,
    "num_classes": 0,
    **BASE,
  }
  for key, num in (("said", 3), ("all", 6)):
    for memory_mb in (256, 0):
      cfg |= {"text_key": key, "memory_mb": memory_mb}
      source = own_set.load(cfg, "train", shuffle=False)
      assert source.num_examples == num and len(source.origin["captions"]) == 16
      batch = source.decode(source.batch(0, num))
      which = np.rint((np.asarray(batch["image"])[:, 0, 0, 0] + 1) * 127.5).astype(int)
      said = text.decode(source.tokenizer, batch["tokens"])
      plain = [p.replace(",", "") for p in PETS]
      pairs = set(zip(which.tolist(), said, strict=True))
      assert pairs == {(i, plain[j]) for i in range(3) for j in (range(i + 1) if num > 3 else [i])}
  for key, said in (("image", "has no text in 'image'"), ("none", "no feature 'none'")):
    with pytest.raises(ValueError, match=rf"{said}.*--config\.data\.text_key"):
      own_set.load({**cfg, "text_key": key}, "train")


# ----------------------------------------------------------------------------------------- prompts


def words_as_grey():
  """A job of one stage that paints a text's first token, and the noise of a seed beside it."""

  def sample(state, batch, key):
    z = jax.random.uniform(key, (len(batch["tokens"]), 1))
    first = batch["tokens"][:, :1] / 100 * state.params["g"]
    x = jnp.concatenate([first, z], axis=1)
    return {"image": x[:, None, :, None], "tokens": batch["tokens"]}

  state = core.State(jnp.zeros((), jnp.int32), {"g": jnp.ones(())}, {})
  stage = core.Stage("train", 3, None, None, sample)
  info = core.Info({"image": (1, 2, 1), "tokens": (6,)}, vocab_size=400)
  keys = [{"seeds": jax.random.key(0)}]
  mesh = jax.sharding.Mesh(jax.devices()[:1], ("data",))
  config = types.SimpleNamespace(method="painter")
  return job.Job(config, [stage], [info], [4], [jax.eval_shape(lambda: state)], keys, mesh), state


def test_every_prompt_is_drawn_for_every_seed():
  made, state = words_as_grey()
  ids = asked.prompt_tokens(["fox", "red a", "fox"][:2], learned(), 6)
  drawer = sampler.Sampler(made, 0, state, prompts=ids)
  parts = list(drawer.stream([3, 70]))
  image = np.concatenate([p["image"] for p in parts])[:, 0, :, 0]
  np.testing.assert_allclose(image[:, 0], np.repeat(ids[:, 0] / 100, 2), rtol=1e-6)
  np.testing.assert_array_equal(image[:2, 1], image[2:, 1])  # of one seed the same noise
  assert image[0, 1] != image[1, 1]
  (one,) = drawer.stream([3], prompts=[1])
  np.testing.assert_array_equal(one["image"][0, 0, :, 0], image[2])
  np.testing.assert_array_equal(one["tokens"], ids[1:])


def test_prompts_that_cannot_be_read_end_in_a_line(tmp_path):
  read = lambda *prompts: asked.prompt_tokens(asked.check_prompts(prompts), learned(), 6)
  for prompts, said in (
    (("a purple hat",), "--prompt='a purple hat': the word 'purple' is in no caption"),
    (("red", " "), "--prompt=' ' holds no word"),
    (("",), "--prompt='' holds no word"),
    (("red " * 7,), "--prompt='red red .*' has 7 tokens, 6 fit: shorten it$"),
    ((), "--prompt: 0 texts are given"),
  ):
    with pytest.raises(errors.UserError, match=said) as error:
      read(*prompts)
    assert "\n" not in str(error.value)
  assert len(read("a red fox", "a red fox")) == 1 == len(read("a red\nfox"))
  file = tmp_path / "prompts.txt"
  for content, said in (
    (b"red\n\nfox\n", "line 2 is empty"),
    (b"", "it is empty"),
    (b"\xff", "UTF"),
  ):
    file.write_bytes(content)
    with pytest.raises(errors.UserError, match=rf"--prompts=.*{said}"):
      asked.read_prompts(str(file))
  file.write_text("a red fox\nhat\n")
  assert asked.read_prompts(str(file)) == ["a red fox", "hat"]
  with pytest.raises(errors.UserError, match=r"--prompts=.*none cannot be read"):
    asked.read_prompts(str(tmp_path / "none"))


def test_what_is_told_no_text_says_so():
  made, state = words_as_grey()
  deaf = lambda state, batch, key: {
    "image": jax.random.normal(key, (1, 1, 2, 1)) * state.params["g"]
  }
  made = made._replace(stages=[made.stages[0]._replace(sample=deaf)])
  with pytest.raises(errors.UserError, match="--prompt: this painter is told no text"):
    sampler.Sampler(made, 0, state, prompts=np.ones((1, 6), np.int32))


def test_each_prompt_has_a_picture_of_its_own(tmp_path):
  made, state = words_as_grey()
  prompts = ["a red fox", "A red, fox"]
  drawer = sampler.Sampler(made, 0, state, prompts=asked.prompt_tokens(prompts, learned(), 6))
  place = drawn.Place(tmp_path, None, "train_00000003")
  request = sampling.Request(range(4), prompts=prompts)
  paths = sampling._write_samples(drawer, request, [None], place)
  stem = "train_00000003_seeds0-3"
  assert [p.name for p in paths] == [f"{stem}_a_red_fox.png", f"{stem}_A_red__fox.png"]
  files = sampling._write_samples(drawer, request._replace(form="files"), [None], place)
  assert [p.name for p in files] == ["train_00000003"]
  assert sorted(p.name for p in files[0].iterdir())[0] == "A_red__fox_seed0000.png"
  assert len(list(files[0].iterdir())) == 8
  (paths[1]).unlink()
  with pytest.raises(ValueError, match=r"a_red_fox\.png is there already"):
    sampling._write_samples(drawer, request, [None], place)
  assert not paths[1].exists()  # nothing was drawn


def test_a_workdir_keeps_its_tokenizer(tmp_path):
  record.write_tokenizer(tmp_path, learned())
  record.write_tokenizer(tmp_path, learned())
  assert record.read_tokenizer(tmp_path) == learned()
  with pytest.raises(ValueError, match="the captions are not those"):
    record.write_tokenizer(tmp_path, learned("bpe"))
  (tmp_path / "tokenizer.json").write_text("{")
  with pytest.raises(ValueError, match=r"tokenizer\.json is not valid JSON.*makes it anew"):
    record.read_tokenizer(tmp_path)
  (tmp_path / "tokenizer.json").unlink()
  with pytest.raises(FileNotFoundError, match=r"no .*tokenizer\.json"):
    record.read_tokenizer(tmp_path)
