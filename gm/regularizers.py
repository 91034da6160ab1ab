"""Penalties on critics and weights.

Gradient penalties differentiate the critic with respect to its input, so inside a loss they are
second-order: the critic must be twice differentiable in reverse mode, and must not mix examples of
a batch (batch norm does; use none, layer or instance norm). The points are constants: no gradient
reaches the generator through them. Weights of the penalties stay outside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp


def _input_gradient(critic: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
  """Gradient of every critic(x_i) in x_i from one backward pass of the sum; f32 [B, ...]."""
  grads = jax.grad(lambda x: jnp.sum(critic(x)))(jax.lax.stop_gradient(x))
  return grads.astype(jnp.promote_types(grads.dtype, jnp.float32))


def interpolate(key: jax.Array, real: jax.Array, fake: jax.Array) -> jax.Array:
  """Points on the lines between real and fake examples.

  eps_i x_i + (1 - eps_i) fake_i, eps_i ~ U(0, 1), one for each example.

  Args:
    key: PRNG key.
    real: [B, ...].
    fake: [B, ...], the same shape.

  Returns:
    [B, ...].

  Raises:
    ValueError: if the shapes differ.

  Source: Gulrajani et al., 2017, arXiv:1704.00028, algorithm 1.

  >>> interpolate(jax.random.key(0), jnp.ones((2, 3)), jnp.ones((2, 3))).tolist()
  [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
  """
  if real.shape != fake.shape:
    raise ValueError(
      f"interpolation pairs real with fake examples, so both need one shape; given {real.shape} "
      f"and {fake.shape}: draw as many samples as --config.batch_size gives"
    )
  eps = jax.random.uniform(key, (real.shape[0],) + (1,) * (real.ndim - 1), real.dtype)
  return eps * real + (1 - eps) * fake


def gradient_norm(
  critic: Callable[[jax.Array], jax.Array], x: jax.Array, *, axes: Sequence[int] | None = None
) -> jax.Array:
  """Slope of a critic at every point, ||grad_x f(x)||_2.

  Args:
    critic: f, [B, ...] -> [B] (any output is summed).
    x: points, [B, ...].
    axes: axes of one norm; None is all but the first, which gives [B].

  Returns:
    f32, x's shape without `axes`.

  >>> gradient_norm(lambda x: 3 * x[:, 0] + 4 * x[:, 1], jnp.ones((2, 2))).tolist()
  [5.0, 5.0]
  """
  grads = _input_gradient(critic, x)
  axes = tuple(range(1, x.ndim)) if axes is None else tuple(axes)
  return jnp.sqrt(jnp.sum(grads**2, axis=axes) + 1e-12)  # the root alone has a NaN derivative at 0


def gradient_penalty(
  critic: Callable[[jax.Array], jax.Array],
  x: jax.Array,
  *,
  target: float = 1.0,
  axes: Sequence[int] | None = None,
  one_sided: bool = False,
) -> jax.Array:
  """Gradient penalty of a critic.

  E (||grad_x f(x)||_2 - target)^2, the norm over the whole example and not over its channels.

  Args:
    critic: f, [B, ...] -> [B] (any output is summed).
    x: points, [B, ...]; `interpolate(key, real, fake)` for WGAN-GP, noisy data for DRAGAN.
    target: norm that costs nothing.
    axes: axes of one norm; None is all but the first. (2,) of [B, T, F] is a norm for each step.
    one_sided: penalise only norms above the target: E max(0, ||grad|| - target)^2.

  Returns:
    scalar; multiply by lambda (10 in the paper) outside.

  Source: Gulrajani et al., 2017, arXiv:1704.00028, equation 3; one-sided: section 4 and Petzka et
  al., 2018, arXiv:1709.08894.

  >>> float(gradient_penalty(lambda x: 3 * x[:, 0], jnp.ones((2, 4))))
  4.0
  """
  excess = gradient_norm(critic, x, axes=axes) - target
  return jnp.mean((jax.nn.relu(excess) if one_sided else excess) ** 2)


def r1(critic: Callable[[jax.Array], jax.Array], real: jax.Array) -> jax.Array:
  """Zero-centred gradient penalty on data: E ||grad_x D(x)||^2.

  The paper's regulariser is gamma/2 times this; the factor gamma/2 is the caller's. A lazy form,
  every k steps, multiplies it by k as well (see `optim.lazy_adam`).

  Args:
    critic: D, [B, ...] -> logits [B].
    real: data, [B, ...]; with augmentation, the images before it.

  Returns:
    scalar.

  Source: Mescheder et al., 2018, arXiv:1801.04406, equation 9.

  >>> float(r1(lambda x: 3 * x[:, 0] + 4 * x[:, 1], jnp.ones((2, 4))))
  25.0
  """
  grads = _input_gradient(critic, real)
  return jnp.mean(jnp.sum(grads**2, axis=tuple(range(1, real.ndim))))


def r2(critic: Callable[[jax.Array], jax.Array], fake: jax.Array) -> jax.Array:
  """Zero-centred gradient penalty on samples: E ||grad_x D(G(z))||^2; gamma/2 outside again.

  Args:
    critic: D, [B, ...] -> logits [B].
    fake: samples, [B, ...]; held constant.

  Returns:
    scalar.

  Source: Mescheder et al., 2018, arXiv:1801.04406, equation 10.

  >>> float(r2(lambda x: 2 * x[:, 0], jnp.ones((2, 4))))
  4.0
  """
  return r1(critic, fake)


def clip_weights(params: Any, c: float) -> Any:
  """Clips every parameter to [-c, c], biases and norm scales included; after a critic update.

  Args:
    params: a tree of arrays.
    c: bound, positive (0.01 in the paper).

  Returns:
    the tree, clipped.

  Raises:
    ValueError: if c is not positive.

  Source: Arjovsky et al., 2017, arXiv:1701.07875, algorithm 1.

  >>> clip_weights({"w": jnp.array([-3.0, 0.25])}, 0.5)["w"].tolist()
  [-0.5, 0.25]
  """
  if c <= 0:
    raise ValueError(
      f"weights cannot be clipped to +-{c}; it must be positive: change --config.model.clip"
    )
  return jax.tree.map(lambda w: jnp.clip(w, -c, c), params)


def orthogonal(
  params: Any, *, off_diagonal: bool = True, skip: Sequence[str] = ("embedding",)
) -> jax.Array:
  """Distance of every kernel from orthogonal rows, summed over kernels.

  BigGAN's form, sum ||W W^T o (1 - I)||_F^2, leaves the norms of the rows free; the plain form is
  sum ||W W^T - I||_F^2. W is the kernel as [out, rest]; neither can reach 0 where out > rest,
  unless rows are 0. There W^T W is the smaller product, and has the same norm: with rows w_i,
  ||W W^T o (1 - I)||_F^2 = ||W^T W||_F^2 - sum |w_i|^4,
  ||W W^T - I||_F^2 = ||W^T W - I||_F^2 + out - rest.

  Args:
    params: a tree of arrays, or one array; leaves with at least two axes are kernels, with the
      outputs last (HWIO).
    off_diagonal: BigGAN's form, else the plain one.
    skip: names of leaves or sub-trees to leave out; BigGAN leaves out the class embedding.

  Returns:
    scalar; multiply by the strength outside. BigGAN's code adds half of this gradient, so its
    strength 1e-4 is 0.5e-4 here.

  Raises:
    ValueError: if nothing is left to penalise.

  Source: Brock et al., 2019, arXiv:1809.11096, section 3.1.

  >>> float(orthogonal(jnp.array([[1.0, 1.0], [0.0, 1.0]])))  # two columns, inner product 1, twice
  2.0
  """
  kernels = [
    leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    if leaf.ndim >= 2 and not {getattr(k, "key", None) for k in path} & set(skip)
  ]
  if not kernels:
    raise ValueError(
      f"no kernel of two or more axes outside {tuple(skip)} in "
      f"{jax.tree_util.tree_structure(params)}: pass the params of one network, or set "
      "--config.model.orthogonal_weight=0"
    )

  def penalty(kernel):
    w = kernel.reshape(-1, kernel.shape[-1])  # W^T: [rest, out]
    rest, out = w.shape
    a, b = (w, w.T) if out > rest else (w.T, w)
    gram = jnp.matmul(a, b, precision="highest")  # the smaller of [rest, rest] and [out, out]
    eye = jnp.eye(len(gram), dtype=gram.dtype)
    if not off_diagonal:
      return jnp.sum((gram - eye) ** 2) + max(out - rest, 0)
    if out > rest:
      return jnp.sum(gram**2) - jnp.sum(jnp.sum(w**2, 0) ** 2)
    return jnp.sum((gram * (1 - eye)) ** 2)

  return sum(map(penalty, kernels))
