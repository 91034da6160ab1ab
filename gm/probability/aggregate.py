"""What the posteriors q(z|x) of many examples have in common: q(z) = E_x q(z|x)."""

from __future__ import annotations

import jax
import jax.numpy as jnp


@jax.jit
def information(z: jax.Array, mean: jax.Array, log_var: jax.Array) -> jax.Array:
  """What a draw from q(z|x) tells about which of N examples it came from.

  1/N sum_i log q(z_i|x_i) - log 1/N sum_j q(z_i|x_j), with q(z|x_j) = N(mean_j, diag var_j).

  Args:
    z: a draw for each example, z_i from q(z|x_i), [N, Z].
    mean: [N, Z].
    log_var: [N, Z].

  Returns:
    nats, at most log N, which it is near where the posteriors hardly overlap.

  Source: Hoffman and Johnson, ELBO surgery, 2016.

  >>> z = jnp.array([[-9.0], [9.0]])  # two posteriors that are apart, and two that are one
  >>> [round(float(information(z, mean, 0 * z)), 4) for mean in (z, 0 * z)]
  [0.6931, 0.0]
  """
  centres, scale = mean.T, jnp.exp(-0.5 * log_var).T  # sums over the first axis are quick
  log_norm = -0.5 * log_var.sum(1)  # all but a constant that cancels

  def gain(row):  # one row at a time: [Z, N] of the N x N x Z
    i, z = row
    log_q = log_norm - 0.5 * (((z[:, None] - centres) * scale) ** 2).sum(0)
    return log_q[i] - jax.nn.logsumexp(log_q)

  return jax.lax.map(gain, (jnp.arange(len(z)), z)).mean() + jnp.log(len(z))


def total_correlation(z: jax.Array, mean: jax.Array, log_var: jax.Array) -> jax.Array:
  """How far the latents of q(z) = 1/B sum_j q(z|x_j) are from independent, seen by one batch.

  mean_i log q(z_i) - sum_d log q_d(z_id), q_d the law of latent d alone. With a batch for the data
  it is biased: each draw finds its own posterior among so few, so compare equal batches only.

  Args:
    z: a draw for each example, [B, Z].
    mean: of the posteriors, [B, Z].
    log_var: [B, Z].

  Returns:
    nats.

  Source: Chen et al., 2018, arXiv:1802.04942, without the constants of the size of the data.

  >>> grid = jnp.array([[x, y] for x in (-9.0, 9.0) for y in (-9.0, 9.0)])  # independent
  >>> line = jnp.array([[-9.0, -9.0], [9.0, 9.0]])  # each latent tells the other
  >>> [round(abs(float(total_correlation(z, z, 0 * z))), 4) for z in (grid, line)]
  [0.0, 0.6931]
  """
  square = (z[:, None] - mean) ** 2 * jnp.exp(-log_var)
  log_q = -0.5 * (square + log_var + jnp.log(2 * jnp.pi))  # of z_i under q(z|x_j), [B, B, Z]
  log_mean = lambda x: jax.nn.logsumexp(x, axis=1) - jnp.log(len(z))
  return (log_mean(log_q.sum(-1)) - log_mean(log_q).sum(-1)).mean()


def moments_penalty(
  mean: jax.Array, log_var: jax.Array | None = None, *, off: float, on: float
) -> jax.Array:
  """DIP-VAE: off sum_{i != j} C_ij^2 + on sum_i (C_ii - 1)^2 for a covariance C that is to be I.

  Args:
    mean: of the posteriors, [B, Z].
    log_var: [B, Z] makes C that of q(z) (DIP-VAE II), None that of the means (I).
    off: weight beside the diagonal.
    on: weight on it.

  Returns:
    Scalar.

  Source: Kumar et al., 2018, arXiv:1711.00848.

  >>> mean = jnp.array([[1.0, 1.0], [-1.0, -1.0]])  # variances and covariance are 1
  >>> float(moments_penalty(mean, off=3.0, on=5.0))
  6.0
  >>> float(moments_penalty(mean, jnp.zeros((2, 2)), off=3.0, on=5.0))  # variances are 2
  16.0
  """
  centred = mean - mean.mean(0)
  cov = centred.T @ centred / len(mean)
  if log_var is not None:
    cov = cov + jnp.diag(jnp.exp(log_var).mean(0))
  diagonal = jnp.diagonal(cov)
  return off * ((cov**2).sum() - (diagonal**2).sum()) + on * ((diagonal - 1) ** 2).sum()


def free_bits(kl: jax.Array, least: float) -> jax.Array:
  """sum_g max(least, mean over the batch of KL_g): a group below `least` is pushed no further.

  The maximum is of the mean over the batch; of each example's own KL it would be another number,
  and an example below `least` would count as `least`.

  Args:
    kl: of every example and group, [B, G], nats; a group is a latent, a layer or all there is.
    least: nats of a group that are free.

  Returns:
    Scalar, nats. Its gradient in a group under `least` is exactly 0.

  Source: Kingma et al., 2016, arXiv:1606.04934.

  >>> float(free_bits(jnp.array([[0.0, 3.0], [1.0, 5.0]]), 2.0))  # means 1/2 and 4
  6.0
  """
  return jnp.maximum(kl.mean(0), least).sum()
