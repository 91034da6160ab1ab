"""ADA: its moves and colours follow the published law, and its probability what D knows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm import ada


def images(shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, shape), jnp.float32)


def key(seed=0):
  return jax.random.key(seed)


def smooth(n, h, w, c):
  """Images without fine structure, which survive a rotation."""
  y, x = np.mgrid[0:h, 0:w]
  waves = [np.cos(0.5 * y + i) * np.sin(0.4 * x + 2 * i + k) for i in range(n) for k in range(c)]
  return jnp.asarray(np.stack(waves).reshape(n, c, h, w).transpose(0, 2, 3, 1), jnp.float32)


def test_the_wavelet_filter_is_orthogonal():
  taps = np.array(ada.SYM6)
  np.testing.assert_allclose(taps.sum(), np.sqrt(2), rtol=1e-7)
  for shift in range(0, 12, 2):
    product = (taps[shift:] * taps[: 12 - shift]).sum()
    np.testing.assert_allclose(product, float(shift == 0), atol=1e-9)


def test_warp_by_whole_moves():
  x = images((2, 6, 9, 3))
  matrix = lambda *rows: jnp.asarray([[*rows, (0, 0, 1)]] * 2, jnp.float32)
  warp = jax.jit(ada.warp)
  np.testing.assert_allclose(warp(x, matrix((1, 0, 0), (0, 1, 0))), x, atol=1e-5)
  # the result's pixel (y, x) is the image's (y - 2, x + 3), mirrored at the border
  out = warp(x, matrix((1, 0, 3), (0, 1, -2)))
  wide = np.pad(x, ((0, 0), (2, 0), (0, 3), (0, 0)), mode="reflect")
  np.testing.assert_allclose(out, wide[:, :6, 3:], atol=1e-5)
  # far away it is the mirrored image again: its period is 2 (9 - 1)
  far = warp(x, matrix((1, 0, 16 * 5), (0, 1, 0)))
  np.testing.assert_allclose(far, x, atol=1e-4)


def test_warp_by_other_moves_keeps_smooth_images():
  x = smooth(2, 16, 16, 1)
  matrix = lambda *rows: jnp.asarray([[*rows, (0, 0, 1)]] * 2, jnp.float32)
  inner = (slice(None), slice(3, -3), slice(3, -3))
  warp = jax.jit(ada.warp)
  mirrored = warp(x, matrix((-1, 0, 0), (0, 1, 0)))
  np.testing.assert_allclose(mirrored[inner], x[:, :, ::-1][inner], atol=0.05)
  # a quarter turn: (column, row) of the result is (-row, column) of the image
  turned = warp(x, matrix((0, -1, 0), (1, 0, 0)))
  np.testing.assert_allclose(turned[inner], jnp.rot90(x, 1, (1, 2))[inner], atol=0.05)
  half = warp(x, matrix((1, 0, 0.5), (0, 1, 0)))
  np.testing.assert_allclose(half[inner], ((x + jnp.roll(x, -1, 2)) / 2)[inner], atol=0.03)


def test_geometry_has_the_published_law():
  n, size = 20_000, (16, 24)
  draw = jax.jit(ada.geometry, static_argnames=("size", "batch", "kinds"))
  for p in (1.0, 0.5):
    b = np.asarray(draw(key(), p, size=size, batch=n, kinds="b"))
    linear = b[:, :2, :2].round(4)
    det = np.linalg.det(linear)
    np.testing.assert_allclose(np.abs(det), 1.0, atol=1e-4)
    np.testing.assert_allclose((det < 0).mean(), p / 2, atol=0.02)  # mirrored
    upright = np.abs(linear[:, 0, 0]) > 0.5
    np.testing.assert_allclose(upright.mean(), 1 - p / 2, atol=0.02)  # 0 or 2 quarter turns
    moves = np.abs(b[:, :2, 2]).round(4)  # a linear part turns them, so only their sizes are known
    assert set(np.unique(moves)) == {0.0, 1.0, 2.0, 3.0}
    # both are rounded to 0 from 1/6 of the way to 3, and 1/4 of that to 2
    np.testing.assert_allclose((moves == 0).all(1).mean(), 1 - p + p / 24, atol=0.02)
    g = np.asarray(draw(key(1), p, size=size, batch=n, kinds="g"))
    scale = -np.log2(np.abs(np.linalg.det(g[:, :2, :2]))) / 2
    np.testing.assert_allclose(scale.std(), 0.2 * np.sqrt(p), rtol=0.05)
    ratio = np.linalg.svd(g[:, :2, :2], compute_uv=False)
    stretch = np.log2(ratio[:, 0] / ratio[:, 1]) / 2  # |N(0, 0.2^2)|
    np.testing.assert_allclose((stretch**2).mean(), 0.04 * p, rtol=0.1)
    if p == 1:  # turned before the stretch and after it: the angles of both bases are uniform
      before, _, after = np.linalg.svd(g[:, :2, :2])
      squares = np.stack([before[:, 0, 0], after[:, 0, 0]]) ** 2  # of their cosines
      np.testing.assert_allclose(squares.var(1), 1 / 8, atol=0.01)
    turned = np.abs(g[:, 0, 1] - g[:, 1, 0]) > 1e-5
    np.testing.assert_allclose(turned.mean(), p, atol=0.02)
    still = (np.abs(g[:, :2, 2]) < 1e-6).all(1)
    np.testing.assert_allclose(still.mean(), 1 - p, atol=0.02)
  right, down = np.linalg.inv(g)[~still][:, :2, 2].T  # in the result's frame: undone last
  np.testing.assert_allclose([right.std(), down.std()], [0.125 * 24, 0.125 * 16], rtol=0.05)


def test_adaptive_color_has_the_published_law():
  grey = jnp.concatenate([jnp.zeros((20_000, 1, 1, 1)), jnp.ones((20_000, 1, 1, 1))], 2)
  run = jax.jit(ada.color)
  for p in (1.0, 0.5):
    zero, one = np.asarray(run(key(), grey, p)).reshape(-1, 2).T
    slope = one - zero  # +- contrast
    np.testing.assert_allclose((slope < 0).mean(), p / 2, atol=0.02)
    np.testing.assert_allclose(np.log2(np.abs(slope)).std(), 0.5 * np.sqrt(p), rtol=0.05)
    np.testing.assert_allclose((zero / slope).std(), 0.2 * np.sqrt(p), rtol=0.05)
  color = jnp.broadcast_to(jnp.array([0.5, -0.25, -0.25]), (20_000, 1, 1, 3))
  out = np.asarray(run(key(2), color, 1.0)).reshape(-1, 3)
  deviation = out - out.mean(1, keepdims=True)
  length = np.linalg.norm(deviation, axis=1) / np.linalg.norm([0.5, -0.25, -0.25])
  np.testing.assert_allclose(np.log2(length).std(), np.sqrt(1 + 0.25), rtol=0.05)
  angle = np.arctan2(deviation[:, 1] - deviation[:, 2], np.sqrt(3) * deviation[:, 0])
  np.testing.assert_allclose(np.histogram(angle, 4, (-np.pi, np.pi))[0] / 20_000, 0.25, atol=0.02)


@pytest.mark.parametrize("channels", [1, 3])
def test_adaptive_does_nothing_at_0_and_much_at_1(channels):
  x = images((16, 12, 10, channels))
  run = jax.jit(ada.augment)
  np.testing.assert_allclose(run(key(), x, 0.0), x, atol=1e-5)
  out = np.asarray(run(key(), x, 1.0))
  assert out.shape == x.shape and np.isfinite(out).all()
  assert (np.abs(out - x).max(axis=(1, 2, 3)) > 0.1).all()


def test_adaptive_errors_and_letters():
  x = images((2, 6, 6, 1))
  np.testing.assert_array_equal(ada.augment(key(), x, 1.0, ""), x)
  with pytest.raises(ValueError, match="ada_kinds"):
    ada.augment(key(), x, 1.0, "bx")
  with pytest.raises(ValueError, match="channels"):
    ada.augment(key(), images((2, 6, 6, 2)), 1.0)


def test_adaptive_has_second_derivatives():
  """A penalty on the gradient at the image before the augmentation."""
  x = images((2, 6, 6, 1))

  def penalty(w):
    d = lambda x: jnp.sum(jnp.tanh(w * ada.augment(key(), x, 0.9)))
    return jnp.sum(jax.grad(d)(x) ** 2)

  both = jax.jit(jax.value_and_grad(penalty))
  slope = (both(0.51)[0] - both(0.49)[0]) / 0.02
  np.testing.assert_allclose(both(0.5)[1], slope, rtol=1e-2)


def test_adapt_rises_above_the_target_and_stays_above_0():
  move = lambda p, sign: float(ada.adapt(jnp.array(p), jnp.array(sign), target=0.6, step=0.1))
  np.testing.assert_allclose([move(0.3, 0.7), move(0.3, 0.5), move(0.3, 0.6)], [0.4, 0.2, 0.3])
  assert move(0.05, -1.0) == 0.0
