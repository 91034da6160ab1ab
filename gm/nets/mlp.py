"""Fully connected networks: the first GAN's, and the encoders and decoders of the VAE family."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from gm.nn import linear, norm

ACTIVATIONS = {
  "relu": nn.relu,
  "leaky_relu": lambda x: nn.leaky_relu(x, 0.2),
  "tanh": jnp.tanh,
  "softplus": nn.softplus,
  "elu": nn.elu,
  "swish": nn.swish,
  "none": lambda x: x,
}
OUTPUTS = {"tanh": jnp.tanh, "sigmoid": nn.sigmoid, "none": lambda x: x}
NORMS = ("none", "batch", "layer")  # instance norm of a row is 0


def _choose(table: dict[str, Callable], name: str, what: str) -> Callable:
  if name not in table:
    raise ValueError(f"{what} {name!r}: choose {', '.join(table)} (the {what} in --config.model)")
  return table[name]


def _flat(x: jax.Array) -> jax.Array:
  return x.reshape(x.shape[0], -1)


class Generator(nn.Module):
  """z [B, Z] -> [B, *shape], float32.

  Attributes:
    shape: of one sample, such as (28, 28, 1) or (2,).
    widths: of the hidden layers.
    activation: relu, leaky_relu (0.2), tanh, softplus, elu, swish or none.
    output: tanh, sigmoid or none.
    norm, norm_first: none, batch or layer, after every hidden layer; the first one only with
      norm_first.
    use_bias: keeps the biases that batch norm takes out again, as published counts have them.
    dropout: rates at the input and at every hidden layer, as the discriminator's.
    output_init: of the last kernel, where it is not kernel_init.
    output_bias_init: such as the log-odds of the training pixels.
  """

  shape: tuple[int, ...]
  widths: Sequence[int] = (1200, 1200)
  activation: str = "relu"
  output: str = "tanh"
  norm: str = "none"
  norm_first: bool = True
  use_bias: bool = False
  dropout: tuple[float, float] = (0.0, 0.0)
  kernel_init: Callable = nn.initializers.lecun_normal()
  output_init: Callable | None = None
  output_bias_init: Callable = nn.initializers.zeros
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, z: jax.Array, train: bool = True) -> jax.Array:
    """Generates from z."""
    act = _choose(ACTIVATIONS, self.activation, "activation")
    z = nn.Dropout(self.dropout[0], deterministic=not train)(z)
    for i, width in enumerate(self.widths):
      kind = self.norm if i > 0 or self.norm_first else "none"
      bias = self.use_bias or kind == "none"
      z = nn.Dense(width, use_bias=bias, kernel_init=self.kernel_init, dtype=self.dtype)(z)
      z = norm.layer(kind, scale_init=nn.initializers.ones, dtype=self.dtype)(z, train)
      z = nn.Dropout(self.dropout[1], deterministic=not train)(act(z))
    x = nn.Dense(
      math.prod(self.shape),
      kernel_init=self.output_init or self.kernel_init,
      bias_init=self.output_bias_init,
      dtype=self.dtype,
    )(z)
    x = _choose(OUTPUTS, self.output, "output")(x.astype(jnp.float32))
    return x.reshape(z.shape[0], *self.shape)


class Discriminator(nn.Module):
  """x [B, ...] -> logits [B], float32.

  Attributes:
    widths: of the hidden layers.
    activation: as the generator's; not used where pieces > 1.
    pieces: > 1 makes the hidden layers maxout over so many linear maps.
    dropout: rates at the input and at every hidden layer; the first GAN's are (0.2, 0.5). In
      training a rate above 0 needs `rngs={"dropout": key}`.
  """

  widths: Sequence[int] = (240, 240)
  activation: str = "leaky_relu"
  pieces: int = 1
  dropout: tuple[float, float] = (0.0, 0.0)
  kernel_init: Callable = nn.initializers.lecun_normal()
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
    """Scores x."""
    act = _choose(ACTIVATIONS, self.activation, "activation")
    x = nn.Dropout(self.dropout[0], deterministic=not train)(_flat(x))
    for width in self.widths:
      if self.pieces > 1:
        x = linear.Maxout(width, self.pieces, kernel_init=self.kernel_init, dtype=self.dtype)(x)
      else:
        x = act(nn.Dense(width, kernel_init=self.kernel_init, dtype=self.dtype)(x))
      x = nn.Dropout(self.dropout[1], deterministic=not train)(x)
    logits = nn.Dense(1, kernel_init=self.kernel_init, dtype=self.dtype)(x)
    return logits[:, 0].astype(jnp.float32)


class Encoder(nn.Module):
  """x [B, ...] -> mean and log-variance of q(z | x), each [B, latent], float32.

  Attributes:
    latent: Z.
    widths: of the hidden layers; () makes the mean linear in x.
    activation: as the generator's.
    one_var: the log-variance is one parameter, starting at 0, instead of a function of x.
  """

  latent: int
  widths: Sequence[int] = (200, 200)
  activation: str = "tanh"
  one_var: bool = False
  kernel_init: Callable = nn.initializers.glorot_uniform()
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Encodes x."""
    act = _choose(ACTIVATIONS, self.activation, "activation")
    x = _flat(x)
    for width in self.widths:
      x = act(nn.Dense(width, kernel_init=self.kernel_init, dtype=self.dtype)(x))
    num = self.latent if self.one_var else 2 * self.latent
    out = nn.Dense(num, kernel_init=self.kernel_init, dtype=self.dtype)(x).astype(jnp.float32)
    if self.one_var:
      log_var = self.param("log_var", nn.initializers.zeros, (self.latent,))
      return out, jnp.broadcast_to(log_var, out.shape)
    mean, log_var = jnp.split(out, 2, axis=-1)
    return mean, log_var


class Decoder(nn.Module):
  """z [..., Z] -> logits or means [..., *shape], float32; any leading axes (samples by batch)."""

  shape: tuple[int, ...]
  widths: Sequence[int] = (200, 200)
  activation: str = "tanh"
  kernel_init: Callable = nn.initializers.glorot_uniform()
  output_bias_init: Callable = nn.initializers.zeros
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, z: jax.Array) -> jax.Array:
    """Decodes z."""
    act = _choose(ACTIVATIONS, self.activation, "activation")
    for width in self.widths:
      z = act(nn.Dense(width, kernel_init=self.kernel_init, dtype=self.dtype)(z))
    x = nn.Dense(
      math.prod(self.shape),
      kernel_init=self.kernel_init,
      bias_init=self.output_bias_init,
      dtype=self.dtype,
    )(z)
    return x.astype(jnp.float32).reshape(*z.shape[:-1], *self.shape)
