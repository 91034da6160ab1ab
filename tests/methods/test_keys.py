"""Every random draw of a method has bits of its own, in parts of a batch too.

`jax.debug_key_reuse` does not know that `split(key, n)[j]` is `fold_in(key, j)`, and it sees what a
loop draws once. Here methods run on keys of a kind of their own, whose every use is written down.
Only keys are computed: all that does not lead to one is cut out of the traced function. What is not
seen: a loop under differentiation that repeats a draw, which jax takes out of the loop.
"""

import importlib
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from jax._src.random import prng
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.extend.random import define_prng_impl
from jax.interpreters import partial_eval as pe

from gm import core, evaluation, job

METHODS = sorted(p.stem for p in (ROOT / "gm/methods").glob("*.py") if p.stem != "__init__")
QUICK = {"xla_backend_optimization_level": 0}

# ------------------------------------------------------------------ keys whose use is written down


def mix(h):
  for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
    h = (h ^ (h >> shift)) * jnp.uint32(factor)
  return h ^ (h >> 16)


def child(key, j):
  """Key j below, [2] -> [..., 2]: by split and by fold_in the same, as threefry's, but quick."""
  j = jnp.asarray(j, jnp.uint32)
  first = mix(key[0] + mix(key[1] ^ mix(j + jnp.uint32(0x9E3779B9))))
  return jnp.stack([first, mix(key[1] + mix(first ^ j))], axis=-1)


def children(key, shape):
  return child(key, jnp.arange(np.prod(shape, dtype=int)).reshape(shape))


WATCHED = define_prng_impl(
  key_shape=(2,),
  seed=lambda seed: jnp.stack([jnp.uint32(0), jnp.asarray(seed, jnp.uint32)]),
  split=children,
  fold_in=child,
  random_bits=lambda key, width, shape: children(key, shape)[..., 0].astype(f"uint{width}"),
  name="watched",
  tag="watched",
)
ROOT_KEY = (0, 7)
ROWS = []  # of what networks were given
LOG = []  # ("bits" | "split" | "fold_in", key, keys below)


def watch(kind, true):
  def used(keys, *args, **kwargs):
    out = true(keys, *args, **kwargs)
    if keys.dtype == jax.random.key(0, impl=WATCHED).dtype:
      words = [jax.random.key_data(keys)]
      if kind == "fold_in":
        words += [jax.random.key_data(out), args[0]]
      elif kind == "split":
        words += [jax.random.key_data(out)]
      jax.debug.callback(lambda *w: LOG.append((kind, *w)), *words)
    return out

  return used


def both_branches(at, yes, no, *operands):
  return jax.tree.map(lambda a, b: jnp.where(at, a, b), yes(*operands), no(*operands))


def faults(function, *args):
  """What `function` does wrong with the key among its arguments, by the way to each from it."""
  closed = jax.make_jaxpr(function)(*args)
  jaxpr, used = pe.dce_jaxpr(closed.jaxpr, [False] * len(closed.out_avals))
  value = lambda x: x if isinstance(x, jax.Array) else jnp.zeros(x.shape, x.dtype)
  inputs = [value(x) for x, u in zip(jax.tree.leaves(args), used, strict=True) if u]
  LOG.clear()
  run = jaxpr_as_fun(ClosedJaxpr(jaxpr, closed.consts))
  jax.block_until_ready(jax.jit(run, compiler_options=QUICK)(*inputs))
  jax.effects_barrier()
  way, uses, draws = {ROOT_KEY: "key"}, {}, Counter()
  words = lambda w: [tuple(k) for k in np.asarray(w).reshape(-1, 2).tolist()]
  for kind, keys, *below in LOG:
    for key in words(keys):
      uses.setdefault(key, set()).add(kind)
      draws[key] += kind == "bits"
    if below:
      ways = np.asarray(below[1]).ravel() if kind == "fold_in" else range(10**9)
      for j, key in zip(ways, words(below[0])):
        way[key] = (words(keys)[0], int(j))

  def name(key):
    return way[key] if isinstance(way[key], str) else f"{name(way[key][0])}.{way[key][1]}"

  found = [f"{n} draws from {name(key)}" for key, n in draws.items() if n > 1]
  return found + [f"{name(k)}: {', '.join(sorted(u))}" for k, u in uses.items() if len(u) > 1]


# ------------------------------------------------------------------------------------ the promise

# whatever makes a method draw more, where its config has it
MORE = {
  "augment": "color,translation,cutout",
  "ada_kinds": "bgc",
  "d_noise": 0.1,
  "dequantise": True,
  "dropout": 0.5,
  "input_noise": 0.1,
  "mirror": True,
  "unroll": 2,
}


@pytest.fixture(scope="module", autouse=True)
def watched():
  move, alternate, apply, mover = core.minimize, core.alternate, core.apply, []

  def counted(module, params, stats, x, *args, **kwargs):
    ROWS.append(len(x))
    return apply(module, params, stats, x, *args, **kwargs)

  def minimize(state, tx, loss_fn, names, *args, **kwargs):
    mover[:] = names
    return move(state, tx, loss_fn, names, *args, **kwargs)

  def same_fakes(state, tx, generate, *args, **kwargs):
    """In parts, G's move makes D's fakes again, by the same draws: those are not written down."""
    mover.clear()
    other = lambda x: jax.random.key(0) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    again = lambda p, b: generate(p, jax.tree.map(other, b) if mover == ["g"] else b)
    return alternate(state, tx, again, *args, **kwargs)

  with pytest.MonkeyPatch.context() as patch:
    for kind in ("bits", "split", "fold_in"):
      patch.setattr(prng, f"random_{kind}", watch(kind, getattr(prng, f"random_{kind}")))
    patch.setattr(core, "apply", counted)
    patch.setattr(core, "minimize", minimize)
    patch.setattr(core, "alternate", same_fakes)
    patch.setattr(jax.lax, "cond", both_branches)
    # twice round, whatever the loop waits for
    patch.setattr(jax.lax, "while_loop", lambda again, body, first: body(body(first)))
    yield


def key_of_watch():
  return jax.random.wrap_key_data(jnp.array(ROOT_KEY, jnp.uint32), impl=WATCHED)


def prepare(name, accumulate, changes=()):
  config = importlib.import_module(f"configs.{name}").get_config("test")
  with config.unlocked():
    config.num_devices, config.accumulate = 1, accumulate
    config.model.update({k: v for k, v in MORE.items() if k in config.model})
    config.update_from_flattened_dict(dict(changes))
  return job.prepare(config)


@pytest.mark.parametrize("name", METHODS)
def test_every_draw_has_a_key_of_its_own(name):
  """And a key that is split is not folded too, nor drawn from; in parts no network sees a batch."""
  key, draws = key_of_watch(), 0
  for accumulate in (1, 4):
    made = prepare(name, accumulate)
    for i, (stage, state) in enumerate(zip(made.stages, made.templates, strict=True)):
      batch, tiles = (
        core.batch_shapes(made.infos[i], n) for n in (made.sizes[i], evaluation.NUM_TILES)
      )
      calls = {"step": (state, batch, key)} if stage.num_steps else {}
      if accumulate == 1:
        calls["init"] = (key, batch, made.templates[i - 1] if i else None)
        calls["sample"] = calls["evaluate"] = (state, batch, key)
        calls["show"] = (state, tiles, key)
        if stage.complete is not None:
          calls["complete"] = (state, batch, key)
        found = jax.eval_shape(stage.evaluate, state, batch, jax.random.key(0))
        arrays = {k: x for k, x in found.items() if x.ndim}
        if arrays:
          calls["conclude"] = (arrays, key)
      ROWS.clear()
      for what, args in calls.items():
        assert not faults(getattr(stage, what), *args), f"{what}, {accumulate} parts"
        draws += len(LOG)
      if accumulate > 1:  # D sees data and samples in one
        assert max(ROWS, default=0) <= made.config.batch_size // 2, "samples are made whole"
  assert draws, "nothing was written down"


def same_in_a_loop(key):
  def body(total, i):
    return total + jax.random.normal(key) * jax.random.bits(jax.random.fold_in(key, i)), None

  return jax.lax.scan(body, 0.0, jnp.arange(2))[0]


@pytest.mark.parametrize(
  "function, expected",
  [
    (lambda k: jax.vmap(jax.random.normal)(jax.random.split(k)), []),
    (lambda k: [jax.random.randint(jax.random.fold_in(k, i), (), 0, 9) for i in range(3)], []),
    (lambda k: [jax.random.normal(k), jax.random.uniform(k, (3,))], ["2 draws from key"]),
    (
      lambda k: (
        jax.grad(lambda x: x * jax.random.normal(jax.random.split(k)[1]))(1.0)
        * jax.random.normal(jax.random.fold_in(k, 1))
      ),
      ["2 draws from key.1", "key: fold_in, split"],
    ),
    (same_in_a_loop, ["2 draws from key", "key: bits, fold_in"]),
  ],
)
def test_what_is_wrong_is_seen(function, expected):
  assert sorted(faults(function, key_of_watch())) == expected


# changes that make examples small, and leave D's statistics of a batch out where it may be
SMALLER = {
  "dcgan": {"model.start": 2},
  "dm_gan": {"data.image_size": 16},
  "infogan": {
    "batch_size": 64,  # its batch norm makes a loss of few examples vary otherwise
    "model.start": 2,
    "model.category_weight": 0.0,  # the gain is of z alone
    "model.number_weight": 0.0,
  },
  "lsgan": {"model.d_norm": "none"},
  "progan": {"data.image_size": 4},
  "stylegan2": {"data.image_size": 4},
  **{n: {"model.d_steps": 1} for n in ("biggan", "sngan")},
  "wgan": {"model.num_critic": 1},
}


@pytest.mark.parametrize("name", [n for n in METHODS if "augment" in prepare(n, 1).config.model])
def test_the_loss_of_d_in_parts_varies_as_that_of_one_batch(name):
  """So does its gradient. All examples are the same, and G, all zeros, ignores z: what is left are
  the draws of augmentations, dropout, and positions between data and samples.
  """
  deviation = {}
  for parts in (1, 4):
    changes = {"data.image_size": 8, "batch_size": 16}
    made = prepare(name, parts, changes | SMALLER.get(name, {}))
    stage, template, rng = made.stages[-1], made.templates[-1], np.random.default_rng(1)
    one = lambda s: jnp.ones(s.shape, s.dtype)

    def example(s):
      values = rng.uniform(-1, 1, s.shape[1:]) if s.dtype == jnp.float32 else 0
      return jnp.broadcast_to(jnp.asarray(values, s.dtype), s.shape)

    def weight(s):
      return jnp.asarray(rng.normal(size=s.shape) / np.sqrt(np.prod(s.shape[:-1]) + 1), s.dtype)

    batch = jax.tree.map(example, core.batch_shapes(made.infos[-1], made.sizes[-1]))
    state = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), template)
    others = {n: jax.tree.map(weight, p) for n, p in template.params.items() if n != "g"}
    state = state.replace(
      params={**state.params, **others}, stats=jax.tree.map(one, template.stats)
    )
    loss = lambda key: stage.step(state, batch, key)[1]["loss_d"]
    closed = jax.make_jaxpr(loss)(jax.random.key(2))
    jaxpr, _ = pe.dce_jaxpr(closed.jaxpr, [True], instantiate=True)  # without the moves
    lean = jaxpr_as_fun(ClosedJaxpr(jaxpr, closed.consts))
    many = jax.jit(jax.vmap(lambda key: lean(key)[0]), compiler_options=QUICK)
    deviation[parts] = np.std(many(jax.random.split(jax.random.key(2), 400)))
  assert deviation[1] > 1e-5 and 0.8 < deviation[4] / deviation[1] < 1.25, (
    deviation
  )  # 2 where alike
