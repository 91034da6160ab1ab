"""PSNR, SSIM and luma against numbers worked out otherwise; shuffled pixels; pictures in tiles."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from gm import fidelity
from gm.nn import resample


def images(shape=(2, 24, 20, 3), seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, shape).astype(np.float32)


def test_psnr_is_of_what_lies_inside_the_border():
  x = images()
  y = x.copy()
  y[:, 4:-4, 4:-4] += np.where(x[:, 4:-4, 4:-4] > 127, -5, 5)
  y[:, :4] = 0
  np.testing.assert_allclose(fidelity.psnr(x, y, border=4), 20 * np.log10(255 / 5), rtol=1e-5)
  assert (fidelity.psnr(x, y) < 20).all()
  np.testing.assert_allclose(fidelity.psnr(x, x), 20 * np.log10(255) + 30, rtol=1e-5)


def test_luma_is_that_of_bt_601():
  colours = jnp.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255.0]])
  found = fidelity.luma(colours)[:, 0]
  np.testing.assert_allclose(found, [16, 81.481, 144.553, 40.966, 235], rtol=1e-5)
  grey = images((1, 4, 4, 1))
  np.testing.assert_array_equal(fidelity.luma(grey), grey)


def test_ssim_is_that_of_its_definition():
  x, y = images(), images(seed=1)
  y = (0.7 * x + 0.3 * y).astype(np.float32)
  blur = lambda z: ndimage.gaussian_filter(z, 1.5, truncate=5 / 1.5, axes=(1, 2))[:, 5:-5, 5:-5]
  a, b = x.astype(np.float64), y.astype(np.float64)
  m, n = blur(a), blur(b)
  c, d = (0.01 * 255) ** 2, (0.03 * 255) ** 2
  cov, var = blur(a * b) - m * n, blur(a * a) - m * m + blur(b * b) - n * n
  want = ((2 * m * n + c) * (2 * cov + d) / ((m * m + n * n + c) * (var + d))).mean((1, 2, 3))
  np.testing.assert_allclose(fidelity.ssim(x, y), want, rtol=1e-3)
  inside = fidelity.ssim(x[:, 4:-4, 4:-4], y[:, 4:-4, 4:-4])
  np.testing.assert_allclose(fidelity.ssim(x, y, border=4), inside, rtol=1e-5)


def test_detail_is_the_laplacian():
  x = images((1, 9, 8, 3))
  want = np.abs(ndimage.laplace(x[0], axes=(0, 1)))[1:-1, 1:-1].mean()
  np.testing.assert_allclose(fidelity.detail(x), [want], rtol=1e-5)


@pytest.mark.parametrize("factor", [2, 3])
def test_shuffled_pixels_stand_where_torch_puts_them(factor):
  """[N, C f f, H, W] is read as (C, f, f), and its blocks become pixels."""
  n, h, w, c, f = 2, 3, 4, 5, factor
  theirs = np.arange(n * c * f * f * h * w, dtype=np.float32).reshape(n, c * f * f, h, w)
  want = np.zeros((n, c, h * f, w * f), np.float32)
  for i in range(f):
    for j in range(f):
      want[:, :, i::f, j::f] = theirs[:, i * f + j :: f * f]
  found = resample.pixel_shuffle(jnp.asarray(np.moveaxis(theirs, 1, 3)), factor=f)
  np.testing.assert_array_equal(np.moveaxis(np.asarray(found), 3, 1), want)


def test_shuffling_needs_channels_that_divide():
  with pytest.raises(ValueError, match="6 channels do not make blocks of 2 x 2"):
    resample.pixel_shuffle(jnp.zeros((1, 2, 2, 6)))
