"""Perceptual distance: its form by hand, black images, and the networks that it looks through."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm import perceptual
from gm.data import embedded
from gm.nets import classifier
from gm.weights import digits


def maps(seed, *shapes):
  rng = np.random.default_rng(seed)
  return [jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes]


SHAPES = (2, 4, 3, 5), (2, 2, 2, 7)


def by_hand(a, b, weights=None):
  total = np.zeros(len(a[0]))
  for i, (m, n) in enumerate(zip(a, b, strict=True)):
    unit = lambda x: np.asarray(x) / np.linalg.norm(x, axis=-1, keepdims=True)
    apart = (unit(m) - unit(n)) ** 2 * (1.0 if weights is None else np.asarray(weights[i]))
    total += apart.sum(-1).mean((1, 2))
  return total


def test_distance_is_that_of_unit_features_summed_over_channels_and_maps():
  a, b = maps(0, *SHAPES), maps(1, *SHAPES)
  np.testing.assert_allclose(perceptual.between(a, b), by_hand(a, b), rtol=1e-5)
  weights = [jnp.abs(w) for w in maps(2, (5,), (7,))]
  found = perceptual.between(a, b, weights=weights)
  np.testing.assert_allclose(found, by_hand(a, b, weights), rtol=1e-5)
  np.testing.assert_allclose(perceptual.between(a, [3 * m for m in a]), 0, atol=1e-10)


def test_positions_without_features_have_a_gradient():
  a = [jnp.zeros((1, 2, 2, 3))]
  b = maps(0, (1, 2, 2, 3))
  for given in ((a, a), (a, b)):
    found = jax.grad(lambda m: perceptual.between(m, given[1]).sum())(given[0])
    assert np.isfinite(found[0]).all()


def test_digits_are_seen_by_the_convolutions_of_the_classifier():
  source = embedded.load({"name": "mnist10k"}, "test", shuffle=False)
  x = source.decode(source.batch(0, 16))["image"]
  weights = perceptual.load("digits")
  assert jax.tree.map(jnp.shape, weights) == jax.tree.map(jnp.shape, perceptual.shapes("digits"))
  y = jnp.roll(x, 1, axis=0)
  net = classifier.DigitClassifier()
  _, found = net.apply(digits.load()[0], x, capture_intermediates=True, mutable=["intermediates"])
  seen = [jax.nn.relu(found["intermediates"][f"Conv_{i}"]["__call__"][0]) for i in range(2)]
  np.testing.assert_allclose(
    perceptual.distance("digits", weights, x, y),
    perceptual.between(seen, [jnp.roll(m, 1, axis=0) for m in seen]),
    rtol=1e-4,
  )
  d = lambda y: perceptual.distance("digits", weights, x, y).mean()
  soft = (x + jnp.roll(x, 1, 1) + jnp.roll(x, 1, 2)) / 3
  assert d(x) < 1e-6 < d(soft) < d(y)  # another digit is further off than the same one blurred
  # of any size, and colours that are grey are grey
  wide = jnp.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=-1.0)
  assert perceptual.distance("digits", weights, wide, jnp.tile(wide, 3)).max() < 1e-6


@pytest.mark.parametrize("channels", [1, 3])
def test_photographs_are_seen_by_five_maps(channels):
  variables = perceptual.shapes("efficientnet")
  x = jax.ShapeDtypeStruct((2, 64, 64, channels), jnp.float32)
  found = jax.eval_shape(lambda v, x: perceptual.distance("efficientnet", v, x, x), variables, x)
  assert found.shape == (2,)
