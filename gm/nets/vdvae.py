"""The networks of the very deep VAE (arXiv:2011.10650): blocks of four convolutions on maps.

An encoder goes from the image to maps of one pixel and keeps one map of every resolution. The
decoder goes back; each of its blocks draws a map of latents and adds what it says to the map of its
resolution. Which blocks there are is told by strings, see `vdvae_plan`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from gm.nets.vdvae_plan import Steps, Widths
from gm.nn import conv, resample

Law = tuple[jax.Array, jax.Array]  # mean and log standard deviation, [B, side, side, Z]


def _init(num_blocks: int = 1) -> Any:
  """U(+-1 / sqrt(fan_in)), torch's default for kernels, divided by sqrt(num_blocks)."""
  return nn.initializers.variance_scaling(1 / (3 * num_blocks), "fan_in", "uniform")


def _fit(x: jax.Array, width: int) -> jax.Array:
  """Adds channels of zeros or leaves out the last, so that there are `width`."""
  more = max(0, width - x.shape[-1])
  return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, more)))[..., :width]


@functools.partial(jax.jit, static_argnames=("residual", "cpu_form"))
def _convolve(x: jax.Array, layers: list, *, residual: bool, cpu_form: bool) -> jax.Array:
  """What a block does; by jit, as then the many blocks of one shape are traced once."""
  del cpu_form  # convolutions depend on it: a trace is used again where it is the same
  h = x
  for kernel, bias in layers:
    h = conv.conv(nn.gelu(h, approximate=False), kernel) + bias
  return x + h if residual else h


class Block(nn.Module):
  """Convolutions of 1, 3, 3 and 1 pixels (1 on maps of up to 2 x 2), GELU before each.

  Attributes:
    middle: channels between.
    features: of the result.
    residual: whether x is added.
    last_init: of the last kernel.
  """

  middle: int
  features: int
  residual: bool = False
  last_init: Any = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, S, S, C] -> [B, S, S, features]."""
    kernel, inside, layers = 3 if x.shape[1] > 2 else 1, x.shape[-1], []
    for i, size in enumerate((1, kernel, kernel, 1), 1):
      features, init = (self.features, self.last_init) if i == 4 else (self.middle, None)
      shape = (size, size, inside, features)
      weights = (
        self.param(f"kernel{i}", init or _init(), shape),
        self.param(f"bias{i}", nn.initializers.zeros, (features,)),
      )
      layers.append([w.astype(self.dtype) for w in weights])
      inside = features
    x = x.astype(self.dtype)
    return _convolve(x, layers, residual=self.residual, cpu_form=conv.cpu_form())


class Encoder(nn.Module):
  """Images [B, S, S, C] -> {side: [B, side, side, width]}, the last map of each resolution."""

  blocks: Steps
  widths: Widths
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> dict[int, jax.Array]:
    """Encodes."""
    side = x.shape[1]
    h = conv.Conv(self.widths.at(side), 3, kernel_init=_init(), dtype=self.dtype, name="in")(x)
    found = {side: h}
    for i, (side, rate) in enumerate(self.blocks):
      sizes, last = (self.widths.inside(side), self.widths.at(side)), _init(len(self.blocks))
      h = Block(*sizes, True, last, dtype=self.dtype, name=f"block{i}")(h)
      h = resample.mean_pool(h, factor=rate) if rate else h
      h = found[h.shape[1]] = _fit(h, self.widths.at(h.shape[1]))
    return found


class Posteriors(nn.Module):
  """What the encoder's map and the decoder's, side by side, tell of the latents of a block."""

  blocks: Steps
  widths: Widths
  z_dim: int
  dtype: Any = jnp.float32

  def setup(self):
    """One network for each block."""
    num, inside = 2 * self.z_dim, self.widths.inside
    self.block = [Block(inside(s), num, dtype=self.dtype) for s, _ in self.blocks]

  def __call__(self, i: int, h: jax.Array, told: jax.Array) -> Law:
    """Law of the latents of block i given its map h and the encoder's."""
    out = self.block[i](jnp.concatenate([h, told], axis=-1)).astype(jnp.float32)
    return tuple(jnp.split(out, 2, axis=-1))


class Group(nn.Module):
  """A block of the decoder: the prior of its latents, and what they change."""

  width: int
  middle: int
  z_dim: int
  num_blocks: int
  dtype: Any = jnp.float32

  def setup(self):
    """Makes its layers."""
    zero, last = nn.initializers.zeros, _init(self.num_blocks)
    num = 2 * self.z_dim + self.width
    self.prior = Block(self.middle, num, last_init=zero, dtype=self.dtype)
    self.z_proj = conv.Conv(self.width, 1, kernel_init=last, dtype=self.dtype)
    self.resnet = Block(self.middle, self.width, True, last, dtype=self.dtype)

  def expect(self, h: jax.Array) -> tuple[Law, jax.Array]:
    """Law of the latents given the map, and the map with what the same network adds."""
    out = self.prior(h)
    mean, log_std, feature = jnp.split(out, (self.z_dim, 2 * self.z_dim), axis=-1)
    return (mean.astype(jnp.float32), log_std.astype(jnp.float32)), h + feature

  def absorb(self, h: jax.Array, z: jax.Array) -> jax.Array:
    """The map with its latents."""
    return self.resnet(h + self.z_proj(z))


class Decoder(nn.Module):
  """Latents from the smallest maps to the largest -> numbers for each pixel."""

  blocks: Steps
  widths: Widths
  z_dim: int
  features: int
  no_bias_above: int
  dtype: Any = jnp.float32

  def setup(self):
    """Makes its blocks, the maps that they start from, and the last layer."""
    at, zeros = self.widths.at, nn.initializers.zeros
    self.group = [
      Group(at(s), self.widths.inside(s), self.z_dim, len(self.blocks), self.dtype)
      for s, _ in self.blocks
    ]
    self.first = {
      s: self.param(f"bias{s}", zeros, (s, s, at(s)))
      for s in dict.fromkeys(s for s, _ in self.blocks)
      if s <= self.no_bias_above
    }
    last = at(self.blocks[-1][0])
    self.gain = self.param("gain", nn.initializers.ones, (last,))
    self.bias = self.param("bias", zeros, (last,))
    self.out = conv.Conv(self.features, 1, kernel_init=_init(), dtype=self.dtype)

  def start(self, num: int) -> dict[int, jax.Array]:
    """The maps before the first block."""
    empty = {s: jnp.zeros((s, s, self.widths.at(s))) for s, _ in self.blocks}
    return {
      s: jnp.broadcast_to(m.astype(self.dtype), (num, *m.shape))
      for s, m in {**empty, **self.first}.items()
    }

  def mixed(self, i: int, maps: dict) -> jax.Array:
    """The map of block i, with that of a smaller resolution where it says so."""
    side, below = self.blocks[i]
    h = maps[side]
    if not below:
      return h
    return h + resample.nearest(_fit(maps[below], h.shape[-1]), factor=side // below)

  def expect(self, i: int, h: jax.Array) -> tuple[Law, jax.Array]:
    """`Group.expect` of block i."""
    return self.group[i].expect(h)

  def absorb(self, i: int, h: jax.Array, z: jax.Array) -> jax.Array:
    """`Group.absorb` of block i."""
    return self.group[i].absorb(h, z)

  def finish(self, h: jax.Array) -> jax.Array:
    """The last map -> numbers of the likelihood, float32."""
    return self.out(h * self.gain + self.bias).astype(jnp.float32)


class Drawn(NamedTuple):
  """Latents of one block, and their laws."""

  z: jax.Array  # [B, S, S, Z]
  posterior: Law | None  # None where the prior was drawn from
  prior: Law


class VDVAE(nn.Module):
  """All of it; its parameters are of three networks: enc, q (the posteriors) and dec.

  Attributes:
    encoder: blocks, see `parse`.
    decoder: blocks.
    z_dim: latent channels of each of the decoder's.
    features: numbers for each pixel.
    widths: channels.
    no_bias_above: larger maps start at 0, the others at a learned map.
  """

  encoder: Steps
  decoder: Steps
  z_dim: int
  features: int
  widths: Widths
  no_bias_above: int = 64
  dtype: Any = jnp.float32

  def setup(self):
    """Makes the three networks."""
    made = {"widths": self.widths, "dtype": self.dtype}
    self.enc = Encoder(self.encoder, **made)
    self.q = Posteriors(self.decoder, z_dim=self.z_dim, **made)
    self.dec = Decoder(
      self.decoder,
      z_dim=self.z_dim,
      features=self.features,
      no_bias_above=self.no_bias_above,
      **made,
    )

  def encode(self, x: jax.Array) -> dict[int, jax.Array]:
    """Images -> a map of every resolution."""
    return self.enc(x)

  def decode(
    self,
    eps: Sequence[jax.Array],
    told: dict | None = None,
    *,
    num_told: int | None = None,
    temperature: float = 1.0,
  ) -> tuple[jax.Array, list[Drawn]]:
    """Draws the latents of every block, the first given nothing, each given those before it.

    Args:
      eps: standard normal, [B, S, S, Z] for each block.
      told: maps of the encoder; without them all is drawn from the prior.
      num_told: the first blocks draw from the posterior, the others from the prior; None: all.
      temperature: factor of the prior's standard deviations.

    Returns:
      Numbers for each pixel [B, S, S, features], and what was drawn.
    """
    num = 0 if told is None else len(self.decoder) if num_told is None else num_told
    maps, drawn = self.dec.start(len(eps[0])), []
    for i, (side, _) in enumerate(self.decoder):
      h = self.dec.mixed(i, maps)
      prior, after = self.dec.expect(i, h)
      posterior = self.q(i, h, told[side]) if i < num else None
      mean, log_std = posterior or (prior[0], prior[1] + jnp.log(temperature))
      z = mean + jnp.exp(log_std) * eps[i]
      maps[side] = self.dec.absorb(i, after, z)
      drawn.append(Drawn(z, posterior, prior))
    return self.dec.finish(maps[side]), drawn

  def __call__(self, x: jax.Array, eps: Sequence[jax.Array]) -> tuple[jax.Array, list[Drawn]]:
    """Encodes and decodes: what all networks are made by."""
    return self.decode(eps, self.encode(x))
