"""Modulated convolution (StyleGAN2): every sample has its own scales of one shared kernel.

With a style s [N, I], the kernel of sample n is w'[.., i, o] = w[.., i, o] s[n, i], demodulated to
unit norm, w' / sqrt(sum_.., i w'^2 + eps). A convolution is linear, so nothing is gained by making
N kernels: the same numbers are

  y = conv(x * s, w) * d,  d[n, o] = (sum_i s[n, i]^2 sum_.. w[.., i, o]^2 + eps)^(-1/2),

one convolution with one kernel. Per-sample kernels need a grouped convolution, 13 times slower on a
CPU. Made of `gm.nn.conv` and `gm.nn.resample`, so it has fast derivatives of every order.
Source: Karras et al., 2020, arXiv:1912.04958, section 2.2 and appendix B.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from gm.nn import equalized, init, resample


def modulated_conv(
  x: jax.Array,
  w: jax.Array,
  style: jax.Array,
  *,
  demodulate: bool = True,
  resampling: str = "none",
  taps: Sequence[float] = resample.TAPS,
  eps: float = 1e-8,
) -> jax.Array:
  """Convolves sample n with w * style[n], of unit norm per output channel if demodulated.

  Args:
    x: [N, H, W, I].
    w: [k, k, I, O], k odd.
    style: [N, I].
    demodulate: divide by the norm of each sample's kernel.
    resampling: "none", "up" or "down", see `gm.nn.resample.fir_conv`.
    taps: of the filter that goes with it.
    eps: added to the squared norm.

  Returns:
    [N, P, Q, O].

  Source: Karras et al., 2020, arXiv:1912.04958, equations 1 to 3.

  >>> one = jnp.ones((1, 1, 1, 1))
  >>> modulated_conv(3 * one, one, 5 * one[0, 0]).item()  # the scale of the style is divided out
  3.0
  """
  y = resample.fir_conv(x * style[:, None, None], w, resampling=resampling, taps=taps)
  if demodulate:
    squares = jnp.sum(w.astype(jnp.float32) ** 2, (0, 1))
    d = jax.lax.rsqrt(style.astype(jnp.float32) ** 2 @ squares + eps)
    y = y * d[:, None, None].astype(y.dtype)
  return y


class ModulatedConv(nn.Module):
  """`modulated_conv` with its kernel and the affine map from w to styles, bias 1 at first.

  The kernel is N(0, 1) and unscaled: demodulation divides any scale out. Without demodulation
  (ToRGB) the style is divided by sqrt(I) instead.

  Attributes:
    features: channels of the output.
    kernel_size: odd.
    demodulate, resampling: see `modulated_conv`.
  """

  features: int
  kernel_size: int = 3
  demodulate: bool = True
  resampling: str = "none"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, latent: jax.Array) -> jax.Array:
    """[N, H, W, I], latent w [N, D] -> [N, P, Q, features]."""
    channels = x.shape[-1]
    style = equalized.Dense(channels, bias_start=1.0, dtype=self.dtype, name="affine")(latent)
    if not self.demodulate:
      style = style / channels**0.5
    k = self.kernel_size
    w = self.param("kernel", init.normal(1.0), (k, k, channels, self.features), jnp.float32)
    return modulated_conv(
      x.astype(self.dtype),
      w.astype(self.dtype),
      style,
      demodulate=self.demodulate,
      resampling=self.resampling,
    )
