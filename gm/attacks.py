"""Adversarial perturbations of images in [-1, 1], as pure functions of what they shall raise.

`radius` is the largest change of a pixel, in units of the images: twice the eps of papers, whose
pixels lie in [0, 1]. `raises` maps images [B, H, W, C] to [B], of which an attack wants more:
losses or margins of logits, never of probabilities, whose slope is 0 where a classifier is sure.
The classifier must be in its mode of evaluation. All that comes out lies in the box and the ball.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax


def project(x: jax.Array, centre: jax.Array, radius: jax.Array | float) -> jax.Array:
  """The nearest images in the box [-1, 1] that differ from `centre` by at most `radius`.

  Args:
    x: [B, ...].
    centre: in the box, the shape of x.
    radius: a scalar, or what broadcasts to x.

  Returns:
    The shape of x.

  >>> project(jnp.array([0.5, -3.0]), jnp.array([0.0, -0.75]), 0.25).tolist()
  [0.25, -1.0]
  """
  return jnp.clip(x, jnp.maximum(centre - radius, -1.0), jnp.minimum(centre + radius, 1.0))


def difference(x: jax.Array, attacked: jax.Array) -> jax.Array:
  """Ten times the change of every pixel, as an image: grey where there is none.

  >>> difference(jnp.array([0.5, 0.5]), jnp.array([0.5, 0.75])).tolist()
  [0.0, 1.0]
  """
  return jnp.clip(10 * (attacked - x), -1.0, 1.0)


def margin(logits: jax.Array, label: jax.Array) -> jax.Array:
  """How far the best other class is above the label's: positive where the answer is wrong.

  Args:
    logits: [B, K].
    label: i32 [B].

  Returns:
    [B].

  >>> margin(jnp.array([[1.0, 3.0, 0.0]]), jnp.array([1])).tolist()
  [-2.0]
  """
  mine = jax.nn.one_hot(label, logits.shape[-1], dtype=bool)
  other = jnp.where(mine, -jnp.inf, logits).max(-1)
  return other - jnp.where(mine, logits, -jnp.inf).max(-1)


def slope(raises: Callable, x: jax.Array) -> jax.Array:
  """Gradient of each raises(x)_i in x_i, from one backward pass of the sum.

  >>> slope(lambda x: (x**2).sum(1), jnp.array([[1.0, 2.0]])).tolist()
  [[2.0, 4.0]]
  """
  return jax.grad(lambda x: raises(x).sum())(x)


def fgsm(raises: Callable, x: jax.Array, radius: jax.Array | float) -> jax.Array:
  """One step of the whole radius along the sign of the slope: exact for what is linear in x.

  A pixel of slope 0 stays as it is.

  Args:
    raises: [B, ...] -> [B].
    x: [B, ...].
    radius: scalar.

  Returns:
    The shape of x.

  Source: Goodfellow et al., 2015, arXiv:1412.6572, section 4.

  >>> fgsm(lambda x: 3 * x[:, 0] - x[:, 1], jnp.zeros((1, 3)), 0.25).tolist()
  [[0.25, -0.25, 0.0]]
  """
  return project(x + radius * jnp.sign(slope(raises, x)), x, radius)


def pgd(
  key: jax.Array,
  raises: Callable,
  x: jax.Array,
  radius: jax.Array | float,
  *,
  step: jax.Array | float,
  num_steps: int,
) -> jax.Array:
  """Steps along the sign of the slope, from a uniform point of the ball, projected after each.

  Args:
    key: PRNG key.
    raises: [B, ...] -> [B].
    x: [B, ...].
    radius: scalar.
    step: of a pixel, in units of the images.
    num_steps: their number.

  Returns:
    The shape of x.

  Source: Madry et al., 2018, arXiv:1706.06083, section 2.1.

  >>> rise = lambda x: 3 * x[:, 0] - x[:, 1]
  >>> pgd(jax.random.key(0), rise, jnp.zeros((1, 2)), 0.25, step=0.125, num_steps=4).tolist()
  [[0.25, -0.25]]
  """

  def move(_, at):
    return project(at + step * jnp.sign(slope(raises, at)), x, radius)

  noise = jax.random.uniform(key, x.shape, x.dtype, -1.0, 1.0)
  return jax.lax.fori_loop(0, num_steps, move, project(x + radius * noise, x, radius))


def worst(keys: jax.Array, attack: Callable, raises: Callable, x: jax.Array) -> jax.Array:
  """Of several tries the one that raises most, image by image.

  Args:
    keys: one for each try.
    attack: key -> images like x.
    raises: [B, ...] -> [B]: `margin`, so that an image counts that was wrong once.
    x: [B, ...].

  Returns:
    The shape of x.

  >>> keys = jax.random.split(jax.random.key(0), 3)
  >>> far = lambda key: jax.random.normal(key, (2, 1))
  >>> best = jnp.stack([far(k) for k in keys]).max(0)
  >>> bool((worst(keys, far, lambda x: x[:, 0], jnp.full((2, 1), -9.0)) == best).all())
  True
  """

  def better(best, key):
    new = attack(key)
    score = raises(new)
    rises = score > best[0]
    along = rises.reshape(-1, *[1] * (x.ndim - 1))
    return (jnp.where(rises, score, best[0]), jnp.where(along, new, best[1])), None

  (_, found), _ = jax.lax.scan(better, (jnp.full(len(x), -jnp.inf), x), keys)
  return found


def random_search(
  key: jax.Array, raises: Callable, x: jax.Array, radius: float, *, num_tries: int
) -> jax.Array:
  """Squares of one sign at random places, each kept if it raises: an attack without any gradient.

  The squares shrink from half of the image's side to a tenth. What falls to it and stands against
  gradients has hidden its gradients, and is not robust.

  Args:
    key: PRNG key.
    raises: [B, H, W, C] -> [B].
    x: [B, H, W, C].
    radius: scalar.
    num_tries: passes through the classifier.

  Returns:
    The shape of x.

  Source: after Andriushchenko et al., Square attack, 2020, arXiv:1912.00049.

  >>> bright = lambda x: x.sum((1, 2, 3))
  >>> found = random_search(jax.random.key(0), bright, jnp.zeros((1, 4, 4, 1)), 0.5, num_tries=60)
  >>> float(found.mean())
  0.5
  """
  n, height, width, channels = x.shape
  k_start, k_tries = jax.random.split(key)
  signs = lambda key, shape: jax.random.rademacher(key, shape, x.dtype)
  stripes = signs(k_start, (n, 1, width, channels))
  first = project(x + radius * stripes, x, radius)

  def attempt(carry, given):
    (at, best), (key, part) = carry, given
    k_top, k_left, k_sign = jax.random.split(key, 3)
    side = jnp.maximum(1, jnp.round(part * min(height, width))).astype(jnp.int32)

    def inside(key, size):  # bool [B, size]
      start = jax.random.randint(key, (n, 1), 0, size - side + 1)
      place = jnp.arange(size)
      return (place >= start) & (place < start + side)

    square = (inside(k_top, height)[:, :, None] & inside(k_left, width)[:, None, :])[..., None]
    new = jnp.where(square, x + radius * signs(k_sign, (n, 1, 1, channels)), at)
    new = project(new, x, radius)
    score = raises(new)
    rises = score > best
    return (jnp.where(rises[:, None, None, None], new, at), jnp.where(rises, score, best)), None

  parts = jnp.geomspace(0.5, 0.1, num_tries)
  (found, _), _ = jax.lax.scan(
    attempt, (first, raises(first)), (jax.random.split(k_tries, num_tries), parts)
  )
  return found


def smallest(
  logits: Callable,
  x: jax.Array,
  target: jax.Array,
  *,
  weight: float = 1.0,
  rounds: int = 6,
  num_steps: int = 40,
  stride: float = 0.3,
) -> jax.Array:
  """The nearest images that are taken for another class: min |r|^2 + c CE(logits(x + r), target).

  Steps down the gradient, of a length that does not depend on its own, and x + r clipped to the
  box after each. c is found for each image by bisection on a scale of factors, smaller where a
  round reached the class and 10 times larger while none has. Of all images on the way the nearest
  of that class counts, drawn back along the line to x as far as it stays in it.

  Args:
    logits: [B, H, W, C] -> [B, K].
    x: [B, H, W, C].
    target: i32 [B], the classes to reach.
    weight: c in the first round.
    rounds: values of c.
    num_steps: of each round; one forward and one backward pass each.
    stride: |r|_2 of the first step, in units of the images; the last has a hundredth of it.

  Returns:
    The shape of x; where the class was not reached, the end of the last round.

  Source: Szegedy et al., 2014, arXiv:1312.6199, section 4.1, by L-BFGS and |r|; the bisection after
  Carlini and Wagner, 2017, arXiv:1608.04644; steps of fixed length after Rony et al., 2019,
  arXiv:1811.09600.

  >>> two = lambda x: jnp.stack([jnp.zeros(len(x)), 4 * x[:, 0, 0, 0] - 1], axis=1)
  >>> near = smallest(two, jnp.zeros((1, 1, 1, 2)), jnp.array([1]))
  >>> [round(float(v), 2) for v in near.ravel()]  # 4 x = 1
  [0.25, 0.0]
  """
  along = lambda v: v.reshape(-1, *[1] * (x.ndim - 1))
  square = lambda r: jnp.sum(r**2, axis=tuple(range(1, x.ndim)))
  hits = lambda at: logits(at).argmax(-1) == target
  strides = stride * jnp.geomspace(1.0, 0.01, num_steps)

  def objective(at, c):
    out = logits(at)
    ce = optax.softmax_cross_entropy_with_integer_labels(out, target)
    return jnp.sum(square(at - x) + c * ce), out.argmax(-1) == target

  def one_round(carry, _):
    low, high, c, best, size = carry

    def move(carry, stride):
      at, best, size, reached = carry
      slopes, hit = jax.grad(objective, has_aux=True)(at, c)
      nearer = hit & (square(at - x) < size)
      best = jnp.where(along(nearer), at, best)
      size = jnp.where(nearer, square(at - x), size)
      slopes = slopes / jnp.maximum(jnp.sqrt(along(square(slopes))), 1e-12)
      return (jnp.clip(at - stride * slopes, -1.0, 1.0), best, size, reached | hit), None

    start = (x, best, size, jnp.zeros(len(x), bool))
    (at, best, size, reached), _ = jax.lax.scan(move, start, strides)
    best = jnp.where(along(jnp.isinf(size)), at, best)
    low, high = jnp.where(reached, low, c), jnp.where(reached, c, high)
    between = jnp.sqrt(low * high)
    up, down = jnp.where(jnp.isinf(high), 10 * c, between), jnp.where(low == 0, c / 10, between)
    return (low, high, jnp.where(reached, down, up), best, size), None

  zeros = jnp.zeros(len(x), x.dtype)
  start = (zeros, zeros + jnp.inf, zeros + weight, x, zeros + jnp.inf)
  (_, _, _, best, _), _ = jax.lax.scan(one_round, start, None, rounds)

  def halve(carry, _):  # of the way from x, the part that is needed
    low, high = carry
    middle = (low + high) / 2
    hit = hits(x + along(middle) * (best - x))
    return (jnp.where(hit, low, middle), jnp.where(hit, middle, high)), None

  (_, part), _ = jax.lax.scan(halve, (zeros, zeros + 1), None, 8)
  return jnp.where(along(hits(best)), x + along(part) * (best - x), best)
