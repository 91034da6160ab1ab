"""How near an image is to the true one, as super-resolution papers measure it, and how sharp.

Their protocol: images are rounded to 8 bits, a border of 4 pixels is cut off (as wide as the
scale), and PSNR and SSIM are taken of the luma Y of BT.601, with a range of 255. PSNR of RGB is
lower, by 1 to 2 dB on photographs. Numbers of one protocol do not compare with those of another.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from gm.nn import resample

LUMA = (65.481, 128.553, 24.966)  # of R, G and B in [0, 1]; 16 is added
LEAST_MSE = 1e-3  # of 255^2: equal images have a PSNR of 78 dB, not an infinite one
WINDOW = 11  # pixels of SSIM's Gaussian, of standard deviation 1.5


def bytes_of(x: jax.Array) -> jax.Array:
  """What a file of an image holds: [-1, 1] -> 0 ... 255, rounded and clipped, f32.

  >>> bytes_of(jnp.array([-1.0, 0.0, 7.0])).tolist()
  [0.0, 128.0, 255.0]
  """
  return jnp.clip(jnp.round(127.5 * (x + 1)), 0, 255)


def luma(x: jax.Array) -> jax.Array:
  """Y of BT.601: 16 + 65.481 R + 128.553 G + 24.966 B, colours over 255; grey stays as it is.

  Args:
    x: [..., 1 or 3], 0 ... 255.

  Returns:
    [..., 1]; of colours 16 (black) to 235 (white).

  >>> luma(jnp.full(3, 255.0)).round(2).item()
  235.0
  """
  if x.shape[-1] == 1:
    return x
  return 16 + jnp.sum(x * jnp.asarray(LUMA, x.dtype) / 255, -1, keepdims=True)


def inner(x: jax.Array, border: int) -> jax.Array:
  """Images [B, H, W, C] without a border."""
  return x[:, border:-border, border:-border] if border else x


def psnr(x: jax.Array, y: jax.Array, *, border: int = 0) -> jax.Array:
  """Peak signal-to-noise ratio: 10 log10(255^2 / mean (x - y)^2).

  Args:
    x: [B, H, W, C], 0 ... 255.
    y: like x.
    border: pixels that are cut off on every side.

  Returns:
    dB, [B], at most 78.

  >>> psnr(jnp.zeros((1, 1, 1, 1)), jnp.full((1, 1, 1, 1), 25.5)).round(3).tolist()
  [20.0]
  """
  mse = jnp.mean((inner(x, border) - inner(y, border)) ** 2, (1, 2, 3))
  return 10 * jnp.log10(255**2 / jnp.maximum(mse, LEAST_MSE))


def ssim(x: jax.Array, y: jax.Array, *, border: int = 0) -> jax.Array:
  """Structural similarity, means of the map over its valid part and over channels.

  (2 m_x m_y + c_1) (2 s_xy + c_2) / ((m_x^2 + m_y^2 + c_1) (s_x^2 + s_y^2 + c_2)), moments under a
  Gaussian window, c_1 = (0.01 255)^2, c_2 = (0.03 255)^2.

  Args:
    x: [B, H, W, C], 0 ... 255, both sides 11 or more after the cut.
    y: like x.
    border: pixels that are cut off on every side.

  Returns:
    [B], 1 for equal images.

  Source: Wang et al., 2004, IEEE Transactions on Image Processing 13 (4).

  >>> x = jnp.arange(144.0).reshape(1, 12, 12, 1)
  >>> ssim(x, x).tolist(), bool(ssim(x, 143 - x)[0] < 0)
  ([1.0], True)
  """
  x, y = inner(x, border), inner(y, border)
  taps = np.exp(-((np.arange(WINDOW) - WINDOW // 2) ** 2) / (2 * 1.5**2))
  blur = lambda z: resample.upfirdn(z, taps / taps.sum())
  m_x, m_y = blur(x), blur(y)
  s_x, s_y, s_xy = blur(x * x) - m_x**2, blur(y * y) - m_y**2, blur(x * y) - m_x * m_y
  c_1, c_2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
  means = (2 * m_x * m_y + c_1) / (m_x**2 + m_y**2 + c_1)
  return jnp.mean(means * (2 * s_xy + c_2) / (s_x + s_y + c_2), (1, 2, 3))


def detail(x: jax.Array) -> jax.Array:
  """How much fine detail an image has: mean |Laplacian| over its inner pixels, [B].

  >>> detail(jnp.zeros((1, 3, 3, 1)).at[0, 1, 1, 0].set(2.0)).tolist()
  [8.0]
  """
  around = x[:, :-2, 1:-1] + x[:, 2:, 1:-1] + x[:, 1:-1, :-2] + x[:, 1:-1, 2:]
  return jnp.mean(jnp.abs(around - 4 * x[:, 1:-1, 1:-1]), (1, 2, 3))
