"""Spectral normalisation: every weight of a network over its largest singular value.

It is a rule on parameters, so it is one wrapper around any network and no layer knows of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util
from jax import lax

COLLECTION = "spectral"


def sigma(w: jax.Array, u: jax.Array, *, eps: float = 1e-12) -> tuple[jax.Array, jax.Array]:
  """Largest singular value of a weight by one step of power iteration.

  With W [out, rest] the weight, its last axis first:  v = W^T u / (|W^T u| + eps),
  u' = W v / (|W v| + eps), sigma = u'^T W v.  u' and v are constants to autodiff, so that
  d sigma / dW = u' v^T. The norm is that of the matrix, not of the convolution it may belong to,
  which can be up to sqrt(kh kw) times as large.

  Args:
    w: [..., out].
    u: [out], of any length; the result of the step before.
    eps: keeps a weight of zeros finite.

  Returns:
    sigma, a scalar, and u' [out].

  Source: Miyato et al., 2018, arXiv:1802.05957, algorithm 1.

  >>> w = jnp.array([[2.0, 0.0], [0.0, 1.0]])
  >>> value, u = sigma(w, jnp.array([1.0, 0.0]))
  >>> float(value), u.tolist()
  (2.0, [1.0, 0.0])
  """
  w = w.reshape(-1, w.shape[-1])  # W^T
  dot = lambda a, b: jnp.matmul(a, b, precision="highest")
  v = lax.stop_gradient(_unit(dot(w, u), eps))
  wv = dot(v, w)
  u = lax.stop_gradient(_unit(wv, eps))
  return jnp.vdot(u, wv, precision="highest"), u


def _unit(x: jax.Array, eps: float) -> jax.Array:
  return x / (jnp.linalg.norm(x) + eps)


class SpectralNorm(nn.Module):
  """A network whose weights are used divided by their largest singular values.

  Weights are the parameters of two or more axes: kernels of convolutions and dense layers, and
  tables of embeddings. The parameters stay as they are; gradients pass through the division. The
  vectors u live in the collection "spectral", one for each weight, N(0, I) at first. Every pass
  makes one step of power iteration from them, and keeps it where `apply` is given
  `mutable=["spectral"]`: any training pass of `gm.core.apply` does, any other leaves no trace.

  Attributes:
    net: the network; its arguments are passed on.
    skip: names of parameters or modules that are left as they are.
    eps: see `sigma`.

  Source: Miyato et al., 2018, arXiv:1802.05957.

  >>> net = SpectralNorm(nn.Dense(3))
  >>> variables = net.init(jax.random.key(0), jnp.ones((1, 2)))
  >>> jax.tree.map(jnp.shape, variables["spectral"])
  {'u': {'kernel': (3,)}}
  """

  net: nn.Module
  skip: Sequence[str] = ()
  eps: float = 1e-12

  @nn.compact
  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    """Runs the network on its normalised weights."""
    forward = lambda net: net(*args, **kwargs)
    # Where the parameters are made, what comes back from the map is kept: so it changes nothing.
    return nn.map_variables(forward, "params", self._divide, init=self.is_initializing())(self.net)

  def _divide(self, variables: dict) -> dict:
    weights = traverse_util.flatten_dict(variables.get("params", {}), sep="/")
    chosen = {
      path: w
      for path, w in weights.items()
      if w.ndim >= 2 and not set(path.split("/")) & set(self.skip)
    }
    if not chosen:
      raise ValueError(
        f"no weight of two or more axes outside {tuple(self.skip)} among {sorted(weights)}: there "
        "is nothing to normalise (--config.model)"
      )

    def first():
      keys = jax.random.split(self.make_rng("params"), len(chosen))
      return {
        path: jax.random.normal(k, w.shape[-1:]) for k, (path, w) in zip(keys, chosen.items())
      }

    stored = self.variable(COLLECTION, "u", first)
    if self.is_initializing():
      return variables
    found = {path: sigma(w, stored.value[path], eps=self.eps) for path, w in chosen.items()}
    if self.is_mutable_collection(COLLECTION):
      stored.value = {path: u for path, (_, u) in found.items()}
    divided = {path: weights[path] / value for path, (value, _) in found.items()}
    return {"params": traverse_util.unflatten_dict({**weights, **divided}, sep="/")}
