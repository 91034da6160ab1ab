"""How far estimates of the evidence are from it: curves over draws and over latents, for plots."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from gm.probability import evidence, linear_gaussian

# what a plot's axes are, where its x stands
DRAWS = {
  "estimate": "x: log10 of the draws; y: log p(x), nats",
  "bias": "x: log10 of the draws; y: estimate - log p(x), nats",
  "spread": "x: log10 of the draws; y: standard deviation of an estimate, nats",
}
LATENTS = "x: latents; y: estimate - log p(x), nats"


def over_draws(
  key: jax.Array,
  log_likelihood: Callable,
  mean: jax.Array,
  log_var: jax.Array,
  *,
  exact: jax.Array | None = None,
  num_prior: int = 1_000_000,
  num_importance: int = 10_000,
  chains: int = 8,
  **annealing: int,
) -> dict[str, dict[str, jax.Array]]:
  """Estimates of log p(x), their bias and their spread, against log10 of the number of draws.

  All are means over examples. The mean of estimates by n draws of q is the importance-weighted
  bound L_n, which begins at the ELBO.

  Args:
    key: PRNG key.
    log_likelihood: log p(x_b | z), [..., B or 1, Z] -> [..., B].
    mean: of q, [B, Z].
    log_var: of q, [B, Z].
    exact: log p(x), [B]; None: what annealed importance sampling gives, which is too low by little.
    num_prior: draws from the prior, of which all estimates by fewer are made; a power of 10.
    num_importance: draws of q for each example, likewise, and no more.
    chains: of annealed importance sampling, for each example.
    **annealing: numbers of `evidence.annealed_weights`.

  Returns:
    {"estimate", "bias", "spread"}, each {DRAWS[..]: log10 n, name: curve}.
  """
  k_prior, k_q, k_chains = jax.random.split(key, 3)
  b, z_dim = mean.shape
  plain = evidence.prior_weights(k_prior, log_likelihood, (b, z_dim), num_prior)
  num = min(num_importance, num_prior)
  weighted = evidence.importance_weights(k_q, log_likelihood, mean, log_var, num)
  log_w, _ = evidence.annealed_weights(k_chains, log_likelihood, (chains, b, z_dim), **annealing)
  annealed, elbo = evidence.log_mean(log_w).mean(), weighted.mean()
  truth = annealed if exact is None else exact.mean()
  sizes = evidence.sizes_up_to(num_prior)
  x = jnp.log10(jnp.array(sizes, jnp.float32))

  def padded(log_w):  # to the longest, by its end
    found = evidence.by_size(log_w, evidence.sizes_up_to(len(log_w)))
    fill = lambda v: jnp.concatenate([v, jnp.full(len(sizes) - len(v), jnp.nan)])
    return fill(found.mean.mean(1)), fill(found.spread.mean(1)[:-1])  # of one group none is known

  (prior, prior_spread), (bound, bound_spread) = padded(plain), padded(weighted)
  level = lambda v: jnp.full(len(sizes), v)
  known = {} if exact is None else {"exact": level(truth)}
  return {
    "estimate": {
      DRAWS["estimate"]: x,
      "prior": prior,
      "importance (bound L_n)": bound,
      "annealed": level(annealed),
      "ELBO": level(elbo),
      **known,
    },
    "bias": {
      DRAWS["bias"]: x,
      "prior": prior - truth,
      "importance": bound - truth,
      "annealed": level(annealed - truth),
    },
    "spread": {DRAWS["spread"]: x, "prior": prior_spread, "importance": bound_spread},
  }


def rotated(
  key: jax.Array, model: linear_gaussian.LinearGaussian
) -> linear_gaussian.LinearGaussian:
  """The same law of x with its latents turned at random, so that their posterior is correlated.

  >>> model = linear_gaussian.LinearGaussian(jnp.eye(3)[:, :2], jnp.zeros(3), jnp.array(1.0))
  >>> w = rotated(jax.random.key(0), model).weight
  >>> bool(jnp.allclose(w @ w.T, model.weight @ model.weight.T, atol=1e-5))
  True
  """
  turn = jnp.linalg.qr(jax.random.normal(key, (model.weight.shape[1],) * 2))[0]
  return model._replace(weight=model.weight @ turn)


def linear(model: linear_gaussian.LinearGaussian, x: jax.Array) -> tuple[Callable, jax.Array]:
  """Returns log p(x_b | z) as the estimates take it, and the exact log p(x), [B].

  >>> model = linear_gaussian.LinearGaussian(jnp.ones((1, 1)), jnp.zeros(1), jnp.array(1.0))
  >>> log_likelihood, exact = linear(model, jnp.zeros((1, 1)))
  >>> round(float(log_likelihood(jnp.zeros((1, 1, 1)))[0, 0]), 4), round(float(exact[0]), 4)
  (-0.9189, -1.2655)
  """
  w, mean, var = model
  square, projected = ((x - mean) ** 2).sum(-1), (x - mean) @ w  # no [..., B, D] is needed
  inner, size = w.T @ w, len(mean)

  def log_likelihood(z):
    distance = square - 2 * (z * projected).sum(-1) + ((z @ inner) * z).sum(-1)
    return -0.5 * (distance / var + size * jnp.log(2 * jnp.pi * var))

  return log_likelihood, linear_gaussian.log_likelihood(model, x)


def over_latents(
  key: jax.Array,
  data: jax.Array,
  latents: Sequence[int] = (2, 5, 10, 20, 50),
  *,
  num_examples: int = 8,
  num_prior: int = 10_000,
  num_importance: int = 500,
  num_bound: int = 50,
  chains: int = 8,
  **annealing: int,
) -> dict[str, jax.Array]:
  """Errors of estimates of log p(x) by linear models of the data, against their latents.

  The models are those of maximum likelihood, turned; q has the posterior's mean and independent
  latents, so it is not exact.

  Args:
    key: PRNG key.
    data: [N, D], N above the largest number of latents.
    latents: their numbers.
    num_examples: first rows, whose evidence is estimated.
    num_prior: draws from the prior.
    num_importance: draws of q for each example.
    num_bound: draws of the importance-weighted bound.
    chains: of annealed importance sampling, for each example.
    **annealing: numbers of `evidence.annealed_weights`.

  Returns:
    {LATENTS: their i32 numbers, name: mean over examples of estimate - log p(x), nats}.
  """
  x, mean, cov, rows = data[:num_examples], data.mean(0), jnp.cov(data.T, bias=True), []
  for d, one in zip(latents, jax.random.split(key, len(latents))):
    k_turn, k_prior, k_q, k_chains = jax.random.split(one, 4)
    model = rotated(k_turn, linear_gaussian.maximum_likelihood(mean, cov, d))
    log_likelihood, exact = linear(model, x)
    q_mean, q_var = linear_gaussian.best_diagonal(model, x)
    log_var = jnp.broadcast_to(jnp.log(q_var), q_mean.shape)
    plain = evidence.prior_weights(k_prior, log_likelihood, q_mean.shape, num_prior)
    weighted = evidence.importance_weights(k_q, log_likelihood, q_mean, log_var, num_importance)
    log_w, _ = evidence.annealed_weights(
      k_chains, log_likelihood, (chains, *q_mean.shape), **annealing
    )
    elbo = jax.vmap(lambda x, m: linear_gaussian.elbo(model, x, m, jnp.diag(q_var)))(x, q_mean)
    bound = evidence.by_size(weighted, (num_bound,)).mean[0]
    found = {
      "prior": evidence.log_mean(plain),
      "importance": evidence.log_mean(weighted),
      "annealed": evidence.log_mean(log_w),
      "ELBO": elbo,
      f"bound L_{num_bound}": bound,
    }
    rows.append({name: (v - exact).mean() for name, v in found.items()})
  curves = {name: jnp.stack([row[name] for row in rows]) for name in rows[0]}
  return {LATENTS: jnp.array(latents, jnp.int32), **curves, "exact": jnp.zeros(len(latents))}
