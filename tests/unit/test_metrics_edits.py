"""Edits of attributes: what counts as changed and as kept, beside faces that are drawn."""

import jax.numpy as jnp
import numpy as np
import pytest

from gm import columns, core
from gm.data import attributes, avatars, images
from gm.metrics import edits, reader

NAMES = ("hair_color=red", "hair_color=black", "glasses!=none")
INFO = core.Info({}, columns=NAMES)


def squares(labels):
  """Images with a square of a colour for each attribute that is there."""
  x = np.full((len(labels), 8, 8, 3), -1.0, np.float32)
  for image, row in zip(x, labels, strict=True):
    for i, on in enumerate(row):
      image[4 * (i // 2) : 4 * (i // 2) + 4, 4 * (i % 2) : 4 * (i % 2) + 4, i] = 2 * on - 1
  return x


@pytest.fixture
def data(monkeypatch):
  """Real images, edits without their images, and the labels that these should have."""

  def train(x, y, sizes):  # which knows squares
    assert len(x) == len(y) == 667 and sizes.tolist() == [2, 2, 2]
    np.testing.assert_array_equal(squares(y), x)
    return lambda x: np.stack([x[:, 4 * (i // 2), 4 * (i % 2), i] > 0 for i in range(3)], 1)

  monkeypatch.setattr(reader, "train", train)
  rng = np.random.default_rng(0)
  hair = np.eye(3, dtype=int)[rng.integers(0, 3, 1_200)][:, :2]
  labels = np.c_[hair, rng.integers(0, 2, 1_200)]
  column = rng.integers(0, 3, 400)
  asked = np.asarray(columns.change(jnp.asarray(labels[800:], jnp.float32), column, NAMES))
  fake = {"column": column, "original": squares(labels[800:]), "data_attributes": labels[800:]}
  return {"image": squares(labels[:800]), "attributes": labels[:800]}, fake, asked


def test_what_is_changed_and_kept(data):
  real, fake, asked = data
  right = edits.changed({**fake, "image": squares(asked)}, real, INFO)
  each = {f"changed_{n}": 1.0 for n in NAMES}
  assert right == {"changed": 1.0, "before": 0.0, "kept": 1.0, "real": 1.0, **each}
  same = edits.changed({**fake, "image": fake["original"]}, real, INFO)
  assert (same["changed"], same["kept"]) == (0.0, 1.0)
  every = edits.changed({**fake, "image": squares(1 - fake["data_attributes"])}, real, INFO)
  assert (every["changed"], every["kept"]) == (1.0, 0.0)
  some = fake["original"].copy()
  some[:100] = squares(asked)[:100]
  half = edits.changed({**fake, "image": some}, real, INFO)
  differ = (asked != fake["data_attributes"])[np.arange(400), fake["column"]]
  np.testing.assert_allclose(half["changed"], differ[:100].sum() / differ.sum(), rtol=1e-6)


def test_faces_are_compared_with_those_that_are_drawn(data, monkeypatch):
  """Glasses of any kind count, and only what was to change."""
  real, fake, _ = data
  monkeypatch.setattr(edits, "DRAWN", 8)
  drawn = avatars.draw(8, seed=1)
  encode = attributes.encoder(NAMES, avatars.VALUES)
  draw = lambda rows: np.asarray(
    images.decoder(3)({"image": images.fit(np.stack(list(map(avatars.render, rows))), 32, 32)})[
      "image"
    ]
  )
  labels = np.asarray(encode(drawn)).astype(int)
  bare = drawn.copy()
  bare[:, avatars.NAMES.index("glasses")] = 0
  there = [avatars.edit(row, glasses="round") for row in bare]
  monkeypatch.setattr(reader, "train", lambda *_: lambda x: np.zeros((len(x), 3), int))
  labels[:, 2] = 0
  fake = {"column": np.full(8, 2), "data_attributes": labels, "data_drawn": bare}
  fake |= {"original": draw(bare), "image": draw(there)}
  found = edits.changed(fake, real, INFO)
  assert found["l1"] == 0 < 0.005 < found["l1_before"], found
  bald = [avatars.edit(row, hair="none", glasses="round") for row in bare]
  worse = edits.changed({**fake, "image": draw(bald)}, real, INFO)
  assert worse["l1"] > 0.05 and worse["l1_before"] == found["l1_before"]


def test_what_cannot_be_measured_is_said(data):
  real, fake, asked = data
  with pytest.raises(ValueError, match=r"edits\.changed needs images with attributes.*--config"):
    edits.changed({"image": squares(asked)}, real, INFO)
  few = {n: x[:599] for n, x in real.items()}
  with pytest.raises(ValueError, match="needs 600 real images"):
    edits.changed({**fake, "image": squares(asked)}, few, INFO)
