"""Augmentations: what they keep and change, that they differentiate, that the key decides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm import augment

run = jax.jit(augment.augment, static_argnums=2)


def images(shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, shape), jnp.float32)


def key(seed=0):
  return jax.random.key(seed)


@pytest.mark.parametrize("shape", [(2, 1, 7, 1), (3, 28, 20, 4)])
@pytest.mark.parametrize("policy", ["color,translation,cutout", "flip"])
def test_shape_dtype_and_finiteness(shape, policy):
  x = images(shape)
  for dtype in (jnp.float32, jnp.bfloat16):
    out = run(key(), x.astype(dtype), policy)
    assert out.shape == shape and out.dtype == dtype
    assert np.isfinite(np.asarray(out, np.float32)).all()


@pytest.mark.parametrize("name", ["color", "translation", "cutout", "flip"])
def test_a_key_decides_everything_and_examples_differ(name):
  x = jnp.tile(images((1, 16, 16, 3)), (32, 1, 1, 1))
  out = np.asarray(run(key(), x, name))
  np.testing.assert_array_equal(out, run(key(), x, name))
  assert (out != np.asarray(run(key(1), x, name))).any()
  assert len(np.unique(out.reshape(32, -1), axis=0)) > (1 if name == "flip" else 8)


def test_empty_policy_changes_nothing_and_order_is_kept():
  x = images((4, 8, 8, 3))
  np.testing.assert_array_equal(run(key(), x, ""), x)
  first, second = jax.random.split(key())
  want = jax.jit(lambda x: augment.cutout(second, augment.color(first, x)))(x)
  np.testing.assert_allclose(run(key(), x, "color, cutout"), want, atol=1e-6)
  assert np.abs(run(key(), x, "cutout,color") - want).max() > 0.01
  with pytest.raises(ValueError, match=r"'colour'.*cutout.*--config\.model\.augment"):
    augment.augment(key(), x, "colour")


def test_color_is_brightness_saturation_contrast_with_the_published_ranges():
  x = images((4000, 2, 2, 3))
  out = np.asarray(jax.jit(augment.color)(key(), x), np.float64)
  x = np.asarray(x, np.float64)
  # saturation and contrast keep each image's mean, so its shift is the brightness
  shift = (out - x).mean(axis=(1, 2, 3))
  assert -0.5 <= shift.min() < -0.49 and 0.49 < shift.max() <= 0.5 and abs(shift.mean()) < 0.02
  # grey deviations are scaled by the contrast alone
  grey = lambda a: a.mean(3) - a.mean(axis=(1, 2, 3))[:, None, None]
  contrast = (grey(out) * grey(x)).sum((1, 2)) / (grey(x) ** 2).sum((1, 2))
  assert 0.499 < contrast.min() < 0.51 and 1.49 < contrast.max() < 1.501
  assert abs(contrast.mean() - 1) < 0.02
  # deviations from grey by contrast times saturation
  hue = lambda a: a - a.mean(3, keepdims=True)
  saturation = (hue(out) * hue(x)).sum((1, 2, 3)) / (hue(x) ** 2).sum((1, 2, 3)) / contrast
  assert -1e-3 < saturation.min() < 0.02 and 1.98 < saturation.max() < 2.001
  assert abs(saturation.mean() - 1) < 0.04
  # and nothing else: the three numbers give the image back
  mean = x.mean(axis=(1, 2, 3), keepdims=True)
  scale = lambda s: s[:, None, None, None]
  want = scale(contrast) * (grey(x)[..., None] + scale(saturation) * hue(x)) + mean + scale(shift)
  np.testing.assert_allclose(out, want, atol=2e-4)


def shifts(x, out, rows, columns):
  """The shift of each example, found by trying all."""
  found = []
  for a, b in zip(np.asarray(x), np.asarray(out)):
    big = np.pad(a, ((rows, rows), (columns, columns), (0, 0)))
    hits = [
      (i, j)
      for i in range(2 * rows + 1)
      for j in range(2 * columns + 1)
      if (big[i : i + a.shape[0], j : j + a.shape[1]] == b).all()
    ]
    assert len(hits) == 1
    found.append(hits[0])
  return np.array(found) - [rows, columns]


@pytest.mark.parametrize(
  "shape, rows, columns",
  [((300, 16, 24, 2), 2, 3), ((300, 9, 17, 1), 1, 2), ((200, 28, 12, 1), 4, 2)],
)
def test_translation_is_a_whole_shift_with_zeros_up_to_an_eighth(shape, rows, columns):
  """Rounded as in the authors' code: int(28 / 8 + 0.5) is 4."""
  x = images(shape)
  found = shifts(x, jax.jit(augment.translation)(key(), x), rows, columns)
  assert set(found[:, 0]) == set(range(-rows, rows + 1))
  assert set(found[:, 1]) == set(range(-columns, columns + 1))
  assert abs(np.corrcoef(found.T)[0, 1]) < 0.2  # the two axes have keys of their own


@pytest.mark.parametrize("height, width", [(8, 12), (9, 7)])
def test_cutout_is_one_rectangle_of_half_the_sides(height, width):
  out = np.asarray(jax.jit(augment.cutout)(key(), jnp.ones((500, height, width, 2))))
  assert (out[..., 0] == out[..., 1]).all() and set(np.unique(out)) == {0.0, 1.0}
  hole = out[..., 0] == 0
  rows, columns = hole.any(2), hole.any(1)
  assert (hole == rows[:, :, None] & columns[:, None, :]).all()
  for side, flags in ((height, rows), (width, columns)):
    size = int(side / 2 + 0.5)  # as in the authors' code
    count = flags.sum(1)
    runs = np.abs(np.diff(np.pad(flags.astype(int), ((0, 0), (1, 1))), axis=1)).sum(1)
    assert (runs == 2).all()  # contiguous
    # the centre reaches both borders, where half of the rectangle is outside
    assert count.max() == size and count.min() == (size + 1) // 2
    for edge in (0, -1):
      assert count[flags[:, edge]].min() == (size + 1) // 2
    np.testing.assert_allclose(flags.mean(0), flags.mean(0)[::-1], atol=0.15)  # no side preferred


def test_cutout_leaves_the_rest_alone():
  x = images((16, 8, 12, 3))
  out = np.asarray(jax.jit(augment.cutout)(key(), x))
  assert ((out == 0) | (out == np.asarray(x))).all()


def test_flip_mirrors_half_of_the_images_left_to_right():
  x = images((400, 3, 4, 2))
  out, x = np.asarray(augment.flip(key(), x)), np.asarray(x)
  mirrored = (out == x[:, :, ::-1]).all(axis=(1, 2, 3))
  kept = (out == x).all(axis=(1, 2, 3))
  assert (mirrored ^ kept).all() and 150 < mirrored.sum() < 250
  np.testing.assert_array_equal(augment.flip(key(), x, p=0.0), x)
  np.testing.assert_array_equal(augment.flip(key(), x, p=1.0), x[:, :, ::-1])


def test_pad_and_crop():
  x = images((200, 6, 5, 2))
  padded = np.asarray(augment.pad(x, (2, 1)))
  assert padded.shape == (200, 10, 7, 2)
  np.testing.assert_array_equal(padded[:, 2:-2, 1:-1], x)
  assert padded[:, :2].max() == padded[:, :, :1].max() == 0
  np.testing.assert_array_equal(augment.pad(x, (1, 0), mode="reflect")[:, 0], x[:, 1])
  np.testing.assert_array_equal(augment.random_crop(key(), x, (6, 5)), x)
  crops = np.asarray(augment.random_crop(key(), x, (4, 3)))
  places = {
    (i, j)
    for crop, image in zip(crops, np.asarray(x))
    for i in range(3)
    for j in range(3)
    if (crop == image[i : i + 4, j : j + 3]).all()
  }
  assert crops.shape == (200, 4, 3, 2) and len(places) == 9
  with pytest.raises(ValueError, match=r"\(7, 5\).*\(6, 5\).*image_size"):
    augment.random_crop(key(), x, (7, 5))


@pytest.mark.parametrize(
  "policy", ["color", "translation", "cutout", "flip", "color,translation,cutout"]
)
def test_gradient_passes_through_and_equals_finite_differences(policy):
  with jax.enable_x64(True):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(3, 8, 10, 2)))
    weight = jnp.asarray(np.random.default_rng(2).normal(size=x.shape))
    f = jax.jit(lambda x: jnp.sum(weight * augment.augment(key(3), x, policy) ** 2))
    grad = jax.jit(jax.grad(f))(x)
    along = jnp.asarray(np.random.default_rng(3).normal(size=x.shape))
    slope = (f(x + 1e-5 * along) - f(x - 1e-5 * along)) / 2e-5
    np.testing.assert_allclose(jnp.vdot(grad, along), slope, rtol=1e-6)
    assert (np.abs(np.asarray(grad)).sum(axis=(1, 2, 3)) > 0).all()


def test_second_derivative_exists_for_gradient_penalties():
  x = images((2, 8, 8, 1))

  def penalty(w):
    d = lambda x: jnp.sum(jnp.tanh(w * augment.augment(key(), x)))
    return jnp.sum(jax.grad(d)(x) ** 2)

  both = jax.jit(jax.value_and_grad(penalty))
  slope = (both(0.51)[0] - both(0.49)[0]) / 0.02
  np.testing.assert_allclose(both(0.5)[1], slope, rtol=1e-2)
