"""Attacks on classifiers whose worst case is known, and what all of them keep to."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm import attacks

KEY = jax.random.key(0)


def linear(seed=0, size=6, num_classes=2):
  """Logits of x [B, size, size, 1]; for two classes 0 and w.x + b."""
  k_w, k_b = jax.random.split(jax.random.key(seed))
  w = jax.random.normal(k_w, (size * size, num_classes))
  b = jax.random.normal(k_b, (num_classes,))
  if num_classes == 2:
    w, b = w.at[:, 0].set(0), b.at[0].set(0)
  return w, b, lambda x: x.reshape(len(x), -1) @ w + b


def images(n, size=6, inside=1.0):
  return jax.random.uniform(jax.random.key(7), (n, size, size, 1), minval=-inside, maxval=inside)


def ce(logits, label):
  return -jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], 1)[:, 0]


def test_one_step_is_the_worst_case_of_a_linear_classifier():
  """Max over |r|_inf <= eps of log(1 + exp(-(w.(x + r) + b))) has w.r = -eps |w|_1."""
  w, b, logits = linear()
  x, label, radius = images(32, inside=0.5), jnp.ones(32, jnp.int32), 0.3
  raises = lambda x: ce(logits(x), label)
  margin = x.reshape(32, -1) @ w[:, 1] + b[1] - radius * jnp.abs(w[:, 1]).sum()
  worst = jax.nn.softplus(-margin)
  found = raises(attacks.fgsm(raises, x, radius))
  np.testing.assert_allclose(found, worst, rtol=1e-5)
  for k in jax.random.split(KEY, 20):  # nothing in the ball is worse
    r = radius * jax.random.uniform(k, x.shape, minval=-1.0)
    assert (raises(x + r) < worst).all()
  walk = functools.partial(attacks.pgd, raises=raises, x=x, radius=radius)
  np.testing.assert_allclose(raises(walk(KEY, step=0.1, num_steps=8)), worst, rtol=1e-5)
  short = raises(walk(KEY, step=0.01, num_steps=2))
  assert (short < worst - 1e-3).all()  # it began inside of the ball


def test_the_smallest_change_is_the_distance_to_the_boundary():
  """|w.x + b| / |w|, within 2 %, along w."""
  w, b, logits = linear()
  x = images(32, inside=0.6)
  side = x.reshape(32, -1) @ w[:, 1] + b[1]
  target = (side < 0).astype(jnp.int32)  # the other one
  new = jax.jit(lambda x, t: attacks.smallest(logits, x, t))(x, target)
  assert (logits(new).argmax(1) == target).all() and jnp.abs(new).max() < 1
  exact = jnp.abs(side) / jnp.linalg.norm(w[:, 1])
  r = (new - x).reshape(32, -1)
  ratio = np.asarray(jnp.linalg.norm(r, axis=1) / exact)
  assert (ratio > 1 - 1e-4).all() and (ratio < 1.02).all(), ratio.max()


def test_a_class_that_cannot_be_reached_leaves_an_image_in_the_box():
  never = lambda x: jnp.stack([jnp.ones(len(x)), 0 * x.sum((1, 2, 3))], axis=1)
  new = attacks.smallest(never, images(3), jnp.ones(3, jnp.int32), rounds=2, num_steps=3)
  assert (jnp.abs(new) <= 1).all()


@functools.cache
def all_attacks(radius):
  """Each attack on images that touch the box, against three linear classes."""
  _, _, logits = linear(1, num_classes=3)
  x = images(16, inside=1.2).clip(-1, 1)
  label = logits(x).argmax(1)
  raises = lambda x: attacks.margin(logits(x), label)
  pgd = lambda key: attacks.pgd(key, raises, x, radius, step=radius / 4, num_steps=9)
  return x, {
    "fgsm": attacks.fgsm(raises, x, radius),
    "pgd": pgd(KEY),
    "worst": attacks.worst(jax.random.split(KEY, 3), pgd, raises, x),
    "search": attacks.random_search(KEY, raises, x, radius, num_tries=40),
    "smallest": attacks.smallest(logits, x, (label + 1) % 3, num_steps=10, rounds=3),
  }


def outside(x, made, radius):
  """By how much an attack leaves the box, or the ball where it has one."""
  worst = 0.0
  for name, new in made.items():
    far = 0.0 if name == "smallest" else float(jnp.abs(new - x).max() - radius)
    worst = max(worst, float(jnp.abs(new).max() - 1), far)
  return worst


@pytest.mark.parametrize("radius", [0.05, 0.6])
def test_attacks_stay_in_the_box_and_in_the_ball(radius):
  x, made = all_attacks(radius)
  assert outside(x, made, radius) <= 1e-6
  assert all((new != x).any() for new in made.values())


def test_without_the_clip_they_do_not(monkeypatch):
  monkeypatch.setattr(attacks, "project", lambda x, centre, radius: x)
  assert outside(*all_attacks.__wrapped__(0.6), 0.6) > 0.1


def test_a_slope_of_zero_leaves_a_pixel_alone():
  raises = lambda x: x[:, 0, 0, 0]
  found = attacks.fgsm(raises, jnp.zeros((1, 3, 3, 1)), 0.25)
  assert float(jnp.abs(found).sum()) == 0.25


def test_the_worst_of_several_starts_is_taken_image_by_image():
  """Two hills in one pixel: which one is climbed depends on the start."""
  raises = lambda x: jnp.where(x[:, 0, 0, 0] > 0, 1.0, 2.0) * jnp.abs(x[:, 0, 0, 0])
  x = jnp.zeros((64, 1, 1, 1))
  pgd = lambda key: attacks.pgd(key, raises, x, 0.5, step=0.1, num_steps=10)
  one = raises(pgd(KEY))
  many = raises(attacks.worst(jax.random.split(KEY, 8), pgd, raises, x))
  assert set(np.asarray(one).round(3).tolist()) == {0.5, 1.0}
  assert (many >= one).all() and float(many.mean()) > float(one.mean()) + 0.2
  assert float((many == 1.0).mean()) > 0.95  # of 8 starts all miss once in 256 times


def test_the_search_needs_no_gradient_and_finds_what_fgsm_finds():
  _w, _b, logits = linear()
  x, label, radius = images(16, inside=0.5), jnp.ones(16, jnp.int32), 0.3
  smooth = lambda x: attacks.margin(logits(x), label)
  blind = lambda x: jax.lax.stop_gradient(smooth(x))
  start, best = smooth(x), smooth(attacks.fgsm(smooth, x, radius))
  np.testing.assert_array_equal(attacks.fgsm(blind, x, radius), x)  # sees nothing
  search = lambda n: jax.jit(lambda: attacks.random_search(KEY, blind, x, radius, num_tries=n))()
  share = ((smooth(search(400)) - start) / (best - start)).mean()
  assert 0.7 < share < 1.0, share  # of what there is to gain
  assert ((smooth(search(20)) - start) / (best - start)).mean() < share - 0.2


def test_margin_is_positive_where_the_answer_is_wrong():
  logits = jnp.array([[2.0, 1.0, 0.0], [2.0, 1.0, 5.0]])
  np.testing.assert_allclose(attacks.margin(logits, jnp.array([0, 0])), [-1.0, 3.0])
