"""Embedding and projection head by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm.nn import embed


def test_rows_are_looked_up_and_only_theirs_get_a_gradient():
  net, labels = embed.Embed(5, 3), jnp.array([[4, 1], [1, 1]])
  variables = net.init(jax.random.key(0), labels)
  table = variables["params"]["embedding"]
  assert table.shape == (5, 3)
  np.testing.assert_array_equal(net.apply(variables, labels), np.asarray(table)[labels])
  grads = jax.grad(lambda v: jnp.sum(net.apply(v, labels)))(variables)["params"]["embedding"]
  np.testing.assert_array_equal(grads, np.array([0, 3, 0, 0, 1])[:, None] * np.ones(3))
  assert "dot_general" not in str(jax.make_jaxpr(net.apply)(variables, labels))
  for label in (5, -1, -5, -6):  # an index below 0 counts from the end, a label does not
    assert np.isnan(net.apply(variables, jnp.array([label]))).all(), label
  assert embed.Embed(5, 3, dtype=jnp.bfloat16).apply(variables, labels).dtype == jnp.bfloat16


def test_one_hot_labels_are_nan_where_there_is_no_such_class():
  found = np.asarray(embed.one_hot(jnp.array([[2, 0], [3, -1]]), 3))
  np.testing.assert_array_equal(found[0], [[0, 0, 1], [1, 0, 0]])
  assert np.isnan(found[1]).all() and found.dtype == np.float32


def test_projection():
  """w.h + b + <e_y, h>; the difference of two classes is that of their vectors on h."""
  h, y = jnp.array([[1.0, 2.0], [3.0, -1.0]]), jnp.array([2, 0])
  net = embed.ProjectionHead(3, bias_init=jax.nn.initializers.ones)
  variables = net.init(jax.random.key(0), h, y)
  p = variables["params"]
  e, w = np.asarray(p["embed"]["embedding"]), np.asarray(p["dense"]["kernel"])[:, 0]
  want = [h[i] @ w + 1 + e[y[i]] @ h[i] for i in range(2)]
  got = net.apply(variables, h, y)
  np.testing.assert_allclose(got, want, rtol=1e-6)
  other = net.apply(variables, h, jnp.array([1, 1]))
  np.testing.assert_allclose(got - other, [(e[y[i]] - e[1]) @ h[i] for i in range(2)], rtol=1e-5)
  zero = {**p, "embed": {"embedding": jnp.zeros((3, 2))}}
  plain = embed.ProjectionHead().apply({"params": {"dense": p["dense"]}}, h)
  np.testing.assert_allclose(net.apply({"params": zero}, h, y), plain, rtol=1e-6)
  assert plain.shape == (2,)
  assert set(
    embed.ProjectionHead(use_bias=False).init(jax.random.key(0), h)["params"]["dense"]
  ) == {"kernel"}


def test_labels_are_asked_for():
  with pytest.raises(ValueError, match="conditional"):
    embed.ProjectionHead(3).init(jax.random.key(0), jnp.ones((2, 2)))
