"""Optimizers and schedules: optax with the semantics that the papers of this field assume.

Learning rates are numbers or schedules, functions of the number of updates made so far (0 at the
first update). Everything not here is used from optax as it is, e.g.
`optax.chain(optax.clip_by_global_norm(1.0), adam(1e-4))`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import optax

Rate = float | optax.Schedule


def adam(
  lr: Rate, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, *, l2: float = 0.0
) -> optax.GradientTransformation:
  """Adam, with eps outside the root.

  `l2` adds l2 * w to the gradient, which is what torch's Adam calls weight decay.

  Source: Kingma and Ba, 2015, arXiv:1412.6980, algorithm 1.

  >>> tx = adam(1e-3)
  >>> round(float(tx.update(jnp.array(7.0), tx.init(jnp.array(0.0)))[0]), 6)  # -lr sign(g) at first
  -0.001
  """
  tx = optax.adam(lr, b1, b2, eps)
  return optax.chain(optax.add_decayed_weights(l2), tx) if l2 else tx


def adamw(
  lr: Rate,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  *,
  weight_decay: float = 1e-2,
  mask: Callable | None = None,
) -> optax.GradientTransformation:
  """Adam with decoupled weight decay: w -= lr (adam + weight_decay w).

  `mask` (params -> tree of bool) selects the leaves that decay; None is all.

  Source: Loshchilov and Hutter, 2019, arXiv:1711.05101, algorithm 2.

  >>> tx, w = adamw(0.1, weight_decay=0.5), jnp.array(2.0)
  >>> round(float(tx.update(jnp.array(0.0), tx.init(w), w)[0]), 6)
  -0.1
  """
  return optax.adamw(lr, b1, b2, eps, weight_decay=weight_decay, mask=mask)


def rmsprop(lr: Rate, decay: float = 0.99, eps: float = 1e-8) -> optax.GradientTransformation:
  """RMSProp as torch defines it.

  v = decay v + (1 - decay) g^2, w -= lr g / (sqrt(v) + eps), v_0 = 0. Optax's own defaults, decay
  0.9 and eps inside the root, are another rule.

  Source: Tieleman and Hinton, 2012, lecture 6.5 of "Neural Networks for Machine Learning".

  >>> tx = rmsprop(1e-3)  # moves by lr / sqrt(1 - decay) at first
  >>> round(float(tx.update(jnp.array(7.0), tx.init(jnp.array(0.0)))[0]), 6)
  -0.01
  """
  return optax.rmsprop(lr, decay, eps, eps_in_sqrt=False)


def sgd(lr: Rate, momentum: Rate = 0.0) -> optax.GradientTransformation:
  """Momentum with the learning rate inside the velocity: v = momentum v - lr g, w += v.

  Both may be schedules. With a constant rate this equals torch's form, v = momentum v + g and
  w -= lr v; where the rate falls, the old velocity keeps its size here. The first GAN was trained
  with this rule.

  Source: the learning rule of pylearn2, used by Goodfellow et al., 2014, arXiv:1406.2661.

  >>> tx = sgd(0.1, momentum=0.5)
  >>> _, state = tx.update(jnp.array(1.0), tx.init(jnp.array(0.0)))
  >>> round(float(tx.update(jnp.array(1.0), state)[0]), 6)  # 0.5 * -0.1 - 0.1
  -0.15
  """
  if not momentum:
    return optax.sgd(lr)  # no velocity to store
  velocity = optax.inject_hyperparams(optax.trace)(decay=momentum)
  return optax.chain(optax.scale_by_learning_rate(lr), velocity)


def lazy_adam(
  lr: float, b1: float, b2: float, every: int, eps: float = 1e-8
) -> optax.GradientTransformation:
  """Adam for a network whose regulariser has its own update after each `every` updates of the loss.

  The network then makes every + 1 updates where it would make `every`, so it gets lr c, b1^c and
  b2^c with c = every / (every + 1). The regulariser's loss is multiplied by `every`, outside.

  Args:
    lr: learning rate without the regulariser's updates.
    b1: decay of the first moment, likewise.
    b2: decay of the second moment, likewise.
    every: loss updates for each regulariser update, at least 1 (StyleGAN2: 16 for D, 4 for G).
    eps: added to the root of the second moment.

  Raises:
    ValueError: if every < 1.

  Source: Karras et al., 2020, arXiv:1912.04958, appendix B.

  >>> tx = lazy_adam(0.002, b1=0.0, b2=0.99, every=4)
  >>> round(float(tx.update(jnp.array(7.0), tx.init(jnp.array(0.0)))[0]), 6)
  -0.0016
  """
  if every < 1:
    raise ValueError(
      f"a regulariser cannot come every {every} steps; it must be at least 1: change "
      "--config.model.r1_every or --config.model.path_every"
    )
  c = every / (every + 1)
  return optax.adam(lr * c, b1**c, b2**c, eps)


# --- schedules: count -> rate ---------------------------------------------------------------------


def constant(lr: float) -> optax.Schedule:
  """The same rate for ever.

  >>> constant(0.1)(1000)
  0.1
  """
  return optax.constant_schedule(lr)


def linear(lr: float, num_steps: int, *, start: int = 0, final: float = 0.0) -> optax.Schedule:
  """`lr` for `start` updates, then a straight line to `final` at update `num_steps`.

  >>> [round(float(linear(1.0, 10, start=6)(t)), 4) for t in (0, 6, 8, 10, 99)]
  [1.0, 1.0, 0.5, 0.0, 0.0]
  """
  return optax.linear_schedule(lr, final, num_steps - start, transition_begin=start)


def ramp(num_steps: int) -> optax.Schedule:
  """From 0 at update 0 in a straight line to 1 at update `num_steps`, where it stays; 0: always 1.

  >>> [float(ramp(4)(t)) for t in (0, 2, 4, 9)], float(ramp(0)(0))
  ([0.0, 0.5, 1.0, 1.0], 1.0)
  """
  if not num_steps:
    return constant(1.0)
  return lambda count: jnp.minimum(1.0, count / num_steps)


def cosine(lr: float, num_steps: int, *, final: float = 0.0) -> optax.Schedule:
  """Half a cosine from `lr` to `final`: final + (lr - final) (1 + cos(pi t / num_steps)) / 2.

  >>> [round(float(cosine(1.0, 10)(t)), 4) for t in (0, 5, 10, 99)]
  [1.0, 0.5, 0.0, 0.0]
  """
  part = lambda count: jnp.minimum(count / max(num_steps, 1), 1.0)
  return lambda count: final + (lr - final) * 0.5 * (1 + jnp.cos(math.pi * part(count)))


def warmup(schedule: Rate, num_steps: int) -> optax.Schedule:
  """Multiplies a rate or a schedule by min(1, (t + 1) / num_steps): the first update already moves.

  >>> [round(float(warmup(1.0, 4)(t)), 4) for t in (0, 1, 3, 9)]
  [0.25, 0.5, 1.0, 1.0]
  """
  rate = schedule if callable(schedule) else constant(schedule)
  return lambda count: rate(count) * jnp.minimum(1.0, (count + 1) / max(num_steps, 1))


def staircase(lr: float, factor: float, every: int, *, floor: float = 0.0) -> optax.Schedule:
  """max(floor, lr factor^(t // every)).

  >>> [round(float(staircase(1.0, 0.1, 100)(t)), 4) for t in (0, 99, 100, 250)]
  [1.0, 1.0, 0.1, 0.01]
  """
  return lambda count: jnp.maximum(floor, lr * jnp.float32(factor) ** (count // every))


def momentum_ramp(start: float = 0.5, final: float = 0.7, *, num_steps: int) -> optax.Schedule:
  """The first GAN's momentum: a line from `start` to `final` in `num_steps` updates, then flat.

  There 250 epochs of 500 updates, raised once an epoch; here at every update.

  Source: the published configuration of Goodfellow et al., 2014, arXiv:1406.2661.

  >>> [round(float(momentum_ramp(num_steps=100)(t)), 4) for t in (0, 50, 100, 999)]
  [0.5, 0.6, 0.7, 0.7]
  """
  return optax.linear_schedule(start, final, num_steps)


def inverse_decay(lr: float, factor: float = 1.000004, *, floor: float = 1e-6) -> optax.Schedule:
  """The first GAN's learning rate, divided by `factor` at every update: max(floor, lr / factor^t).

  Source: the published configuration of Goodfellow et al., 2014, arXiv:1406.2661.

  >>> [round(float(inverse_decay(0.1)(t)), 4) for t in (0, 173287)]  # log 2 / 4e-6 updates
  [0.1, 0.05]
  """
  rate = math.log(factor)  # powers of float32(1.000004) are off by 10^-2 after 10^6 updates
  return lambda count: jnp.maximum(floor, lr * jnp.exp(-rate * count))


def piecewise(rates: Sequence[float], ends: Sequence[int]) -> optax.Schedule:
  """rates[0] for updates before ends[0], rates[1] before ends[1], ...; the last one for ever.

  >>> [round(float(piecewise([0.3, 0.2, 0.1], [10, 20])(t)), 2) for t in (0, 9, 10, 19, 20, 99)]
  [0.3, 0.3, 0.2, 0.2, 0.1, 0.1]
  """
  return optax.join_schedules([constant(r) for r in rates], list(ends))


BURDA_EPOCH = (2**31 - 1) // 3**7  # the most steps of an epoch: they are counted as i32


def burda(lr: float, steps_per_epoch: int) -> optax.Schedule:
  """Eight legs of 1, 3, 9, ... 3^7 epochs, from lr down to lr / 10: leg i has lr 10^(-i/7).

  Source: Burda et al., 2016, arXiv:1509.00519, and its code, which rounds to a tenth of the last.

  >>> [round(float(burda(1.0, 10)(t)), 2) for t in (0, 9, 10, 39, 40, 10**6)]
  [1.0, 1.0, 0.72, 0.72, 0.52, 0.1]
  """
  ends = [steps_per_epoch * (3 ** (i + 1) - 1) // 2 for i in range(7)]
  return piecewise([lr * round(10 ** (1 - i / 7), 1) / 10 for i in range(8)], ends)


def by_name(name: str, lr: float, num_steps: int, steps_per_epoch: int = 0) -> Rate:
  """The rate that a config names: constant, which is the number itself, cosine or burda.

  Args:
    name: of the rate.
    lr: at the first update.
    num_steps: of training, for cosine.
    steps_per_epoch: for burda.

  >>> by_name("constant", 0.1, 10), round(by_name("cosine", 0.1, 10)(5).item(), 4)
  (0.1, 0.05)
  """
  rates = {
    "constant": lambda: lr,
    "cosine": lambda: cosine(lr, num_steps),
    "burda": lambda: burda(lr, steps_per_epoch),
  }
  return rates[name]()
