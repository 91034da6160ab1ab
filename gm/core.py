"""The interface: one state type, one verb that moves named players, and what all modules share.

Every method is a game: one or several players, each moving its own parameters to lower its own
loss. A method module has one public function, `stages(config, info) -> list[Stage]`; the loop runs
the stages in order.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

# leaves [B, ...]; image, and a and b of two domains, f32 in [-1, 1]; label, tokens, said and drawn
# i32, the rest f32; `sample` may be given a target, i32, beside those of the data: the class to
# become, or the attribute to change
Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]  # f32 scalars


class State(struct.PyTreeNode):
  """All that a stage knows: arrays only, so that it can be donated, sharded, saved and compared."""

  step: jax.Array  # i32 (), steps done in this stage
  params: dict  # {"g": ..., "d": ...}; whatever no minimize() names is frozen
  opt: dict  # one entry per optimizer slot, not per network
  stats: dict = struct.field(default_factory=dict)  # batch-norm averages, spectral-norm vectors
  ema: dict = struct.field(default_factory=dict)  # averaged params that sample() uses
  extra: dict = struct.field(default_factory=dict)  # image pools, path-length mean, codebook counts


class Info(NamedTuple):
  """Static facts about a data set, known from the config alone."""

  shape: dict  # {"image": (28, 28, 1), "label": ()}, without the batch axis
  num_classes: int = 0
  vocab_size: int = 0  # of tokens; id 0 is padding
  columns: tuple = ()
  said: tuple = ()  # of captions whose truth is known: ((attribute, words), ...), see `said`
  modes: tuple = ()  # centres of a mixture, ((x, y), ...)
  mode_std: float = 0.0  # its standard deviation
  aligned: bool = False  # of two domains: held-out rows of a and b show the same


class Source(NamedTuple):
  """A data set that can be read at any position: `batch` is a pure function of (seed, i)."""

  info: Info
  num_examples: int
  batch: (
    Callable  # (i, size) -> dict of NumPy arrays in storage dtype: this process's rows of batch i
  )
  decode: Callable  # rows -> Batch; jnp-traceable, runs inside the compiled step
  arrays: dict | None = (
    None  # the whole set where it is held in memory, so that it can live on the device
  )
  indices: Callable | None = (
    None  # (i, size) -> i32 [size]; batch(i, n) == {k: a[indices(i, n)] for k, a in arrays}; where
    # leaves are drawn independently, {k: i32 [size]}
  )
  classes: tuple = ()  # names of the labels 0, 1, ...; () where they have none
  tokenizer: str = ""  # that text was turned into tokens by, as JSON; see gm/data/text.py
  origin: Mapping = MappingProxyType({})  # of a set of the user's own: its "name", and facts that
  # change with it, of all splits together; "unused" lists what was left out


def nothing(state: State, batch: Batch, key: jax.Array) -> dict:
  """What a stage without evaluation or extra pictures returns."""
  del state, batch, key
  return {}


class Enlarger(NamedTuple):
  """Makes images of any size larger, by convolutions: a part depends on what is near it alone."""

  enlarge: Callable  # (state, images [B, h, w, C] in [-1, 1]) -> [B, factor h, factor w, C]
  factor: int
  reach: int  # pixels of the image, to each side, that a pixel of the result depends on


class Stage(NamedTuple):
  """One leg of training: pure functions and the number of steps."""

  name: str  # "train", "16px_fade", "tokenizer", "prior"
  num_steps: int
  init: Callable  # (key, batch, prev: State | None) -> State
  step: Callable  # (state, batch, key) -> (state, metrics)
  sample: (
    Callable  # (state, batch, key) -> Batch; batch gives the conditioning and the number of outputs
  )
  # (state, batch, key) -> metrics of held-out data: a scalar is a mean over the batch and counts by
  # its rows; an array [B, ...] has an entry per example, and all of the split go to `conclude`
  evaluate: Callable = nothing
  show: Callable = nothing  # (state, batch, key) -> {name: pictures or a plot}, samples.write_show
  data: Mapping = MappingProxyType({})  # overrides of config.data (and batch_size) for this stage
  # ({name: [N, ...]}, key) -> metrics of the arrays that `evaluate` gave, over the whole split:
  # those that need variety or would depend on the batch
  conclude: Callable | None = None
  # Where there is a latent, sample is generate after latent, and single samples can be asked for:
  latent: Callable | None = None  # (batch, key) -> z, a pytree of [B, ...]
  generate: Callable | None = None  # (state, z, batch) -> Batch
  straight: bool = False  # latents of a law on a box: walks are straight lines, else on a sphere
  ready: Callable | None = None  # state -> state: what many samples share, worked out once
  furnish: Callable | None = None  # state -> state, on the host, after init: published weights
  # (state, batch, key) -> Batch: images whose lower half is made anew, to go with the upper one
  complete: Callable | None = None
  # where above 0, `sample` takes images of any size with sides that are multiples of this, gives
  # images of that size and draws nothing
  multiple: int = 0
  # (state, images, wanted [B, A]) -> images: attributes of Info.columns changed, where `wanted` is
  # no NaN, to 1, which is there, or -1, which is not, or between and beyond
  edit: Callable | None = None
  strengths: tuple = ()  # of `wanted`, from left to right in a picture; () if there is on or off
  enlarger: Enlarger | None = None  # of images of the user's own


def batch_shapes(
  info: Info, batch_size: int, sharding: jax.sharding.Sharding | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the shapes of a batch, so that a model can be built where its data are not."""
  integer = {"label", "tokens", "said", "drawn"}
  return {
    name: jax.ShapeDtypeStruct(
      (batch_size, *shape), jnp.int32 if name in integer else jnp.float32, sharding=sharding
    )
    for name, shape in info.shape.items()
  }


def keys(key: jax.Array, *purposes: str) -> Any:
  """One key for each purpose, by name: the one way to derive several keys from one.

  `split(key, n)[j]` is `fold_in(key, j)`, whatever n: a key that is split here must be neither
  folded nor drawn from, and a purpose that is added comes last, so that the others keep their keys.
  `fold_in(key, i)` counts views, steps or batches from a key that nothing else is done with.

  Args:
    key: PRNG key, not to be used again.
    purposes: names.

  Returns:
    A named tuple of keys.

  >>> k = keys(jax.random.key(0), "noise", "label")
  >>> jax.random.normal(k.noise, (2,)).shape, jax.random.bits(k.label).shape
  ((2,), ())
  """
  return collections.namedtuple("Keys", purposes)(*jax.random.split(key, len(purposes)))


def _is_key(x: Any) -> bool:  # one, not a key for each row
  return x.ndim == 0 and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def split_batch(batch: Any, n: int) -> Any:
  """Splits every leaf [B, ...] into [n, B/n, ...], and every PRNG key into [n] new ones.

  Rows are interleaved, so that a batch sharded over devices needs no collective.

  Raises:
    ValueError: if n does not divide B.

  >>> split_batch({"x": jnp.arange(4)}, 2)["x"].tolist()
  [[0, 2], [1, 3]]
  """

  def split(x):
    if _is_key(x):
      return jax.random.split(x, n)
    if x.shape[0] % n:
      raise ValueError(
        f"a batch of {x.shape[0]} does not split into {n} equal parts: change --config.batch_size"
      )
    return x.reshape(x.shape[0] // n, n, *x.shape[1:]).swapaxes(0, 1)

  return jax.tree.map(split, batch)


def shard(batch: Any) -> Any:
  """Splits the leading axis of every leaf, keys aside, over the devices that the loop works on.

  The compiler follows a batch of data through a step by itself, but noise that is drawn inside has
  no place of its own: left alone, every device would draw and work on all of it. `gradients`,
  `minimize` and `alternate` do this for their batch. Outside the loop it does nothing.

  >>> shard(jnp.arange(3)).tolist()
  [0, 1, 2]
  """
  if "data" not in jax.sharding.get_abstract_mesh().axis_names:
    return batch
  over = jax.sharding.PartitionSpec("data")
  return jax.tree.map(
    lambda x: x if _is_key(x) else jax.lax.with_sharding_constraint(x, over), batch
  )


def build(module: Any, key: jax.Array, *args: Any, **kwargs: Any) -> tuple[dict, dict]:
  """Returns (params, stats) of a network; stats holds every other collection it has.

  >>> from flax import linen as nn
  >>> norm = nn.BatchNorm(use_running_average=True)
  >>> params, stats = build(norm, jax.random.key(0), jnp.ones((4, 3)))
  >>> sorted(params), sorted(stats)
  (['bias', 'scale'], ['batch_stats'])
  """
  variables = dict(module.init(key, *args, **kwargs))
  return variables.pop("params", {}), variables


def apply(
  module: Any, params: dict, stats: dict, *args: Any, train: bool = True, **kwargs: Any
) -> tuple[Any, dict]:
  """Runs a network; returns (output, stats), the stats moved on if `train`."""
  mutable = list(stats) if train else []
  out, new = module.apply(
    {"params": params, **stats}, *args, train=train, mutable=mutable, **kwargs
  )
  return out, {**stats, **new}


def init_slot(
  tx: optax.GradientTransformation, params: dict, names: Sequence[str]
) -> optax.OptState:
  """Returns the optimizer state of the players `names`."""
  return tx.init({n: params[n] for n in names})


def _require(given: dict, names: Sequence[str], what: str) -> None:
  for n in names:
    if n not in given:
      raise KeyError(f"no {what} {n!r} in the state; it has {sorted(given)}")


def gradients(
  loss_fn: Callable, params: dict, names: Sequence[str], batch: Any, *, accumulate: int = 1
) -> tuple:
  """Value, auxiliary output and gradient of `loss_fn` in params[n], n in names, and no other.

  With accumulate = k the batch is split into k parts that are visited one after the other, for a
  k-th of the memory; value, gradient, statistics and metrics are their means. What the loss draws
  must come from keys in the batch: they are used as they are where k = 1, else each part has keys
  of its own, so the draws are others than in one batch, and as many. What mixes examples, such as
  batch normalisation, sees B/k of them.

  Args:
    loss_fn: (params, batch) -> (loss, (new_stats, metrics)), means over the batch.
    params: all networks; those not named are constants.
    names: the players.
    batch: pytree with leaves [B, ...] and PRNG keys.
    accumulate: number of parts.

  Returns:
    (loss, (new_stats, metrics)), {n: gradient}.
  """
  _require(params, names, "network")
  batch = shard(batch)

  def of_players(players, part):
    return loss_fn({**params, **players}, part)

  grad_fn = jax.value_and_grad(of_players, has_aux=True)
  players = {n: params[n] for n in names}
  if accumulate == 1:
    return grad_fn(players, batch)
  parts = split_batch(batch, accumulate)
  shapes = jax.eval_shape(grad_fn, players, jax.tree.map(lambda x: x[0], parts))
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

  def add(total, part):
    return jax.tree.map(jnp.add, total, grad_fn(players, part)), None

  total, _ = jax.lax.scan(add, zeros, parts)
  return jax.tree.map(lambda t: t / accumulate, total)


def move(
  state: State, tx: optax.GradientTransformation, grads: dict, *, slot: str | None = None
) -> tuple[State, Metrics]:
  """Moves the players of `grads` by one optimizer step; logs the global norm of the gradient.

  Raises:
    KeyError: if a network or the slot is not in the state.
  """
  slot = slot or "+".join(grads)
  _require(state.params, list(grads), "network")
  _require(state.opt, [slot], "optimizer slot")
  players = {n: state.params[n] for n in grads}
  updates, opt = tx.update(grads, state.opt[slot], players)
  params = {**state.params, **optax.apply_updates(players, updates)}
  state = state.replace(params=params, opt={**state.opt, slot: opt})
  return state, {f"gradnorm_{slot}": optax.global_norm(grads)}


def minimize(
  state: State,
  tx: optax.GradientTransformation,
  loss_fn: Callable,
  names: Sequence[str],
  batch: Any,
  *,
  slot: str | None = None,
  accumulate: int = 1,
) -> tuple[State, Metrics]:
  """One move of the players `names` down the gradient of their loss; all else is a constant.

  Args:
    state: the state before.
    tx: the optimizer of this slot.
    loss_fn: (params, batch) -> (loss, (new_stats, metrics)); new_stats replaces entries of
      state.stats.
    names: the networks to move, e.g. ["d"] or ["g_ab", "g_ba"].
    batch: pytree with leaves [B, ...] and PRNG keys, see `gradients`: all that is split when
      gradients are accumulated, so the noise too, and a key for what loss_fn draws.
    slot: the optimizer slot, by default the names joined with "+".
    accumulate: number of parts in which the batch is visited.

  Returns:
    The state after, and loss_<slot>, gradnorm_<slot> and the metrics of loss_fn.

  Raises:
    KeyError: if a network or the slot is not in the state.
  """
  slot = slot or "+".join(names)
  (loss, (stats, metrics)), grads = gradients(
    loss_fn, state.params, names, batch, accumulate=accumulate
  )
  state, moved = move(state, tx, grads, slot=slot)
  state = state.replace(stats={**state.stats, **stats})
  return state, {f"loss_{slot}": loss, **moved, **metrics}


def alternate(
  state: State,
  tx: dict,
  generate: Callable,
  d_loss: Callable,
  g_loss: Callable,
  batch: Any,
  *,
  g: str = "g",
  accumulate: int = 1,
) -> tuple[State, Metrics]:
  """D moves on fakes, then G on the same fakes against the new D, with one generator forward.

  The fakes are constants to D. G's gradient is the new D's gradient in the fakes, pulled back
  through the forward pass that made them: what two `minimize` calls on the same noise compute, for
  one forward pass less. The players are "d" and G, whose name is `g`.

  Args:
    state: the state before.
    tx: {"d": ..., g: ...}.
    generate: (params, batch) -> (fake, new_stats), differentiable in params[g].
    d_loss: (params, batch, fake) -> (loss, (new_stats, metrics)).
    g_loss: the same for G; it may depend on params[g] through fake only.
    batch: pytree with leaves [B, ...] and PRNG keys, see `gradients`; noise included.
    g: name of the generator.
    accumulate: number of parts; above 1 G's forward pass is done again by the same keys, to save
      memory.

  Returns:
    The state after, and the metrics of both moves.
  """
  if accumulate > 1:

    def d_part(p, b):
      return d_loss(p, b, jax.lax.stop_gradient(generate(p, b)[0]))

    def g_part(p, b):
      fake, stats = generate(p, b)
      loss, (more, metrics) = g_loss(p, b, fake)
      return loss, ({**stats, **more}, metrics)

    state, d_metrics = minimize(state, tx["d"], d_part, ["d"], batch, accumulate=accumulate)
    state, g_metrics = minimize(state, tx[g], g_part, [g], batch, accumulate=accumulate)
    return state, {**d_metrics, **g_metrics}

  batch = shard(batch)

  def forward(params):
    return generate({**state.params, g: params}, batch)

  fake, pullback, g_stats = jax.vjp(forward, state.params[g], has_aux=True)

  def on_fakes(p, b):
    return d_loss(p, b, fake)

  state, d_metrics = minimize(state, tx["d"], on_fakes, ["d"], batch)

  def of_fakes(fake):
    return g_loss(state.params, batch, fake)

  (loss, (more, g_metrics)), d_fake = jax.value_and_grad(of_fakes, has_aux=True)(fake)
  state, moved = move(state, tx[g], {g: pullback(d_fake)[0]})
  state = state.replace(stats={**state.stats, **g_stats, **more})
  return state, {**d_metrics, f"loss_{g}": loss, **moved, **g_metrics}


def ema(average: Any, new: Any, decay: float | jax.Array) -> Any:
  """Exponential moving average: decay * average + (1 - decay) * new.

  >>> ema({"w": jnp.array(1.0)}, {"w": jnp.array(0.0)}, 0.75)["w"].item()
  0.75
  """
  return jax.tree.map(lambda a, n: decay * a + (1 - decay) * n, average, new)


def normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Standard normal numbers that are made once, however many places read parts of them.

  XLA makes what is cheap again at each place that reads it, and takes random numbers for cheap; the
  steps of a loop it leaves alone. For noise maps this saves a quarter of a program.

  >>> normal(jax.random.key(0), (3, 5)).shape
  (3, 5)
  """
  n, *rest = shape
  rows = jax.lax.map(lambda k: jax.random.normal(k, (-(-n // 2), *rest)), jax.random.split(key))
  return rows.swapaxes(0, 1).reshape(-1, *rest)[:n]  # interleaved: the batch may be sharded


def every(k: int, step: jax.Array, fn: Callable, state: Any) -> Any:
  """fn(state) where step is a multiple of k, else the state itself; both branches are compiled."""
  return jax.lax.cond(step % k == 0, fn, lambda s: s, state)


def count(tree: Any) -> int:
  """Number of scalars in a tree of arrays or shapes.

  >>> count({"w": jnp.zeros((3, 2)), "b": jnp.zeros(2)})
  8
  """
  return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
