"""What lets a discriminator see how much the samples of a batch differ."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def stddev(x: jax.Array, *, group: int = 4, features: int = 1, eps: float = 1e-8) -> jax.Array:
  """Appends the standard deviation over groups of samples as constant channels.

  s[m, f] = mean over pixels and the f-th part of the channels of
            sqrt(variance over group m + eps), the population variance.
  The members of a group are B / G apart. A batch of one gives sqrt(eps).

  Args:
    x: [B, H, W, C].
    group: G, the size of a group, at most B; 0 is the whole batch.
    features: channels to append; C is split into so many parts.
    eps: added to the variance.

  Returns:
    [B, H, W, C + features].

  Raises:
    ValueError: if the batch does not split into groups, or the channels into features.

  Source: Karras et al., 2018, arXiv:1710.10196, section 3, and its code.

  >>> stddev(jnp.array([1.0, -1.0]).reshape(2, 1, 1, 1), group=2)[:, 0, 0].tolist()
  [[1.0, 1.0], [-1.0, 1.0]]
  """
  n, h, w, c = x.shape
  size = min(group or n, n)
  if n % size:
    raise ValueError(
      f"a batch of {n} does not split into groups of {size}: change --config.batch_size (or"
      " --config.model.batch_sizes) or --config.model.stddev_group"
    )
  if c % features:
    raise ValueError(f"{c} channels do not split into {features} features: choose a divisor")
  y = x.astype(jnp.float32).reshape(size, n // size, h * w, features, c // features)
  y = y - y.mean(0)
  s = jnp.sqrt(jnp.mean(y * y, 0) + eps).mean((1, 3))  # [groups, features]
  s = jnp.tile(s, (size, 1))[:, None, None].astype(x.dtype)
  return jnp.concatenate([x, jnp.broadcast_to(s, (n, h, w, features))], -1)


def complete(x: jax.Array, group: int = 4) -> jax.Array:
  """Appends as many of the first samples again as the last group of `stddev` lacks.

  So any number of samples can be scored; the scores of those that are appended are left out.

  Args:
    x: [B, ...].
    group: as of `stddev`.

  Returns:
    [B, ...] with B rounded up to a multiple of min(group, B).

  >>> complete(jnp.arange(5), 4).tolist(), complete(jnp.arange(3), 4).tolist()
  ([0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 2])
  """
  n = len(x)
  return jnp.concatenate([x, x[: -n % min(group or n, n)]])
