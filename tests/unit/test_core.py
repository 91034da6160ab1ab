"""The one verb, on a game small enough to do by hand: quadratic losses of scalars."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gm import core


def state_of(params, tx, slots):
  opt = {slot: core.init_slot(tx, params, slot.split("+")) for slot in slots}
  return core.State(jnp.zeros((), jnp.int32), params, opt, stats={"a": jnp.zeros(())})


PARAMS = {"a": jnp.array(2.0), "b": jnp.array(3.0), "c": jnp.array(5.0)}
X = {"x": jnp.arange(8.0)}


def product_loss(p, b):  # d/da = mean(x) b, d/db = mean(x) a
  loss = jnp.mean(b["x"]) * p["a"] * p["b"] * p["c"] / 5
  return loss, ({"a": jnp.mean(b["x"])}, {"mean": jnp.mean(b["x"])})


def test_minimize_moves_the_named_player_by_its_gradient():
  tx = optax.sgd(0.1)
  state, found = core.minimize(state_of(PARAMS, tx, ["a"]), tx, product_loss, ["a"], X)
  np.testing.assert_allclose(state.params["a"], 2 - 0.1 * 3.5 * 3, rtol=1e-6)
  assert state.params["b"] is PARAMS["b"] and state.params["c"] is PARAMS["c"]
  np.testing.assert_allclose(found["loss_a"], 3.5 * 6, rtol=1e-6)
  np.testing.assert_allclose(found["gradnorm_a"], 10.5, rtol=1e-6)
  np.testing.assert_allclose([found["mean"], state.stats["a"]], 3.5)


def test_two_players_share_a_slot():
  tx = optax.sgd(0.1)
  state, found = core.minimize(state_of(PARAMS, tx, ["a+b"]), tx, product_loss, ["a", "b"], X)
  np.testing.assert_allclose(state.params["a"], 2 - 0.1 * 3.5 * 3, rtol=1e-6)
  np.testing.assert_allclose(state.params["b"], 3 - 0.1 * 3.5 * 2, rtol=1e-6)
  np.testing.assert_allclose(found["gradnorm_a+b"], np.hypot(10.5, 7), rtol=1e-6)


def test_one_network_may_have_two_slots():
  tx = optax.adam(0.1)
  state = state_of(PARAMS, tx, ["a", "a+b"])
  state, found = core.minimize(state, tx, product_loss, ["a"], X)
  assert state.opt["a"][0].count == 1 and state.opt["a+b"][0].count == 0
  assert set(found) == {"loss_a", "gradnorm_a", "mean"}


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_accumulation_changes_nothing(parts):
  tx = optax.sgd(0.1)
  whole, found = core.minimize(state_of(PARAMS, tx, ["a"]), tx, product_loss, ["a"], X)
  split, found_split = core.minimize(
    state_of(PARAMS, tx, ["a"]), tx, product_loss, ["a"], X, accumulate=parts
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), whole, split)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, found_split)


def test_a_key_is_itself_in_one_batch_and_another_in_each_part():
  def loss(p, b):
    return p["a"] * jax.random.uniform(b["key"]) * jnp.mean(b["x"] > -1), ({}, {})

  key = jax.random.key(0)
  slope = lambda k: core.gradients(loss, PARAMS, ["a"], {**X, "key": key}, accumulate=k)[1]["a"]
  assert slope(1) == jax.random.uniform(key)
  parts = [jax.random.uniform(k) for k in jax.random.split(key, 4)]
  np.testing.assert_allclose(slope(4), np.mean(parts), rtol=1e-6)


def test_missing_network_or_slot_is_named():
  tx = optax.sgd(0.1)
  with pytest.raises(KeyError, match=r"no network 'z' .*\['a', 'b', 'c'\]"):
    core.minimize(state_of(PARAMS, tx, ["a"]), tx, product_loss, ["z"], X)
  with pytest.raises(KeyError, match=r"no optimizer slot 'b' .*\['a'\]"):
    core.minimize(state_of(PARAMS, tx, ["a"]), tx, product_loss, ["b"], X)


def test_batch_that_does_not_split_is_refused():
  with pytest.raises(ValueError, match=r"batch of 8 .* 3 equal parts.*--config.batch_size"):
    core.split_batch(X, 3)


def test_split_interleaves_and_loses_nothing():
  parts = core.split_batch(X, 4)["x"]
  assert parts.shape == (4, 2) and sorted(parts.ravel().tolist()) == list(range(8))


@pytest.mark.parametrize("parts", [1, 2])
def test_alternate_is_two_minimizes_on_the_same_noise(parts):
  """G: z -> g z, D: x -> d x; D moves first, G against the new D."""
  tx = {n: optax.sgd(0.1) for n in ("g", "d")}
  params = {"g": jnp.array(2.0), "d": jnp.array(3.0)}
  state = core.State(
    jnp.zeros((), jnp.int32), params, {n: core.init_slot(tx[n], params, [n]) for n in params}
  )
  calls = []

  def generate(p, b):
    calls.append(1)
    return p["g"] * b["z"], {"seen": jnp.mean(b["z"])}

  def d_loss(p, b, fake):
    return jnp.mean(p["d"] * fake - p["d"] * b["x"]), ({}, {"m_d": jnp.mean(fake)})

  def g_loss(p, b, fake):
    return -jnp.mean(p["d"] * fake), ({}, {"m_g": jnp.mean(fake)})

  batch = {"x": jnp.arange(4.0), "z": jnp.array([1.0, -1.0, 2.0, 4.0])}
  state, found = core.alternate(state, tx, generate, d_loss, g_loss, batch, accumulate=parts)
  d = 3 - 0.1 * (2 * 1.5 - 1.5)  # d/dd = g mean(z) - mean(x)
  np.testing.assert_allclose(state.params["d"], d, rtol=1e-6)
  np.testing.assert_allclose(state.params["g"], 2 + 0.1 * d * 1.5, rtol=1e-6)
  np.testing.assert_allclose(found["loss_g"], -d * 2 * 1.5, rtol=1e-6)
  np.testing.assert_allclose([found["m_d"], found["m_g"], state.stats["seen"]], [3, 3, 1.5])
  assert parts > 1 or len(calls) == 1, "one forward pass was promised"


def test_every():
  double = lambda s: 2 * s
  assert [int(core.every(3, jnp.array(i), double, jnp.array(1))) for i in range(4)] == [2, 1, 1, 2]


def test_batch_shapes():
  shapes = core.batch_shapes(core.Info({"image": (4, 5, 3), "label": ()}), 7)
  assert shapes["image"].shape == (7, 4, 5, 3) and shapes["image"].dtype == jnp.float32
  assert shapes["label"].shape == (7,) and shapes["label"].dtype == jnp.int32


def test_normal_numbers_are_normal_independent_and_of_any_shape():
  assert core.normal(jax.random.key(0), (3,)).shape == (3,)
  x = np.asarray(core.normal(jax.random.key(1), (41, 500)))
  assert x.shape == (41, 500) and len(np.unique(x)) > 0.99 * x.size
  assert abs(x.mean()) < 0.03 and abs(x.std() - 1) < 0.02
  assert abs(np.corrcoef(x) - np.eye(41)).max() < 0.25  # rows drawn in different parts too
  other = np.asarray(core.normal(jax.random.key(2), (41, 500)))
  assert abs(np.corrcoef(x.ravel(), other.ravel())[0, 1]) < 0.03
