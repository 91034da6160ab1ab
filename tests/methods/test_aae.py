"""AAE: sizes, which loss moves what, losses by hand, spokes, labels, and what is learned."""

import importlib
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import described, quickly, train

from gm import core, errors, job, optim
from gm.metrics import digits
from gm.nets import mlp
from gm.probability import spokes

QUICK = {"xla_backend_optimization_level": 0}  # what runs once
SMALL = {"model.widths": (8,), "model.d_widths": (8,)}
MOVES = {
  "rec": {"enc", "z_head", "y_head", "dec"},
  "d_z": {"d_z"},
  "g_z": {"enc", "z_head"},
  "d_y": {"d_y"},
  "g_y": {"enc", "y_head"},
  "cls": {"enc", "y_head"},
}


def config_of(variant, **changes):
  config = importlib.import_module("configs.aae").get_config(variant)
  config.update_from_flattened_dict({"num_devices": 1, **changes})
  return config


def batch_of(n, num_classes=10):
  """Noise, with labels that come in turn."""
  image = jnp.tanh(jax.random.normal(jax.random.key(3), (n, 28, 28, 1)))
  return {"image": image, "label": jnp.arange(n, dtype=jnp.int32) % num_classes}


def first_state(variant="test", n=8, **changes):
  """The stage that trains, its first state, and a batch."""
  made = job.prepare(config_of(variant, **changes))
  state = None
  for stage in made.stages:
    init = jax.jit(stage.init, compiler_options=QUICK)
    state = init(jax.random.key(0), batch_of(max(n, 64)), state)
  return stage, state, batch_of(n)


def moves_of(stage):
  """The moves of a step in order, {slot: players}, filled by the first call of a function; and that
  function of state and batch. It gives of each move the parameters before, its batch, its metrics
  and the gradient of its loss in all networks; then what the step returns.
  """
  players, true = {}, core.minimize

  def traced(state, batch):
    seen = {}

    def spy(now, tx, loss_fn, names, b, *, slot=None, accumulate=1):
      players[slot] = set(names)
      after, found = true(now, tx, loss_fn, names, b, slot=slot, accumulate=accumulate)
      seen[slot] = now.params, b, found
      losses[slot] = loss_fn
      return after, found

    losses, core.minimize = {}, spy
    try:
      after, found = stage.step(state, batch, jax.random.key(1))
    finally:
      core.minimize = true
    gradient = lambda slot: jax.grad(lambda p: losses[slot](p, seen[slot][1])[0])(seen[slot][0])
    return {slot: (*what, gradient(slot)) for slot, what in seen.items()}, after, found

  return players, jax.jit(traced, compiler_options=QUICK)


def moving(tree):
  return any(np.any(g != 0) for g in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def game():
  """The variant in which all six losses play: stage, state, batch, players, and one step."""
  stage, state, batch = first_state()
  players, play = moves_of(stage)
  return stage, state, batch, players, play, play(state, batch)


# ------------------------------------------------------------------------------------------- parity


@pytest.mark.parametrize(
  ("variant", "encoder", "decoder", "discriminators"),
  [
    ("paper", 1_790_004, 1_788_784, [1_005_001]),
    ("paper_spokes", 1_790_004, 1_788_784, [1_016_001]),  # sees 2 numbers and one of 11 labels
    ("paper_supervised", 1_790_004, 1_798_784, [1_005_001]),
    ("paper_semisupervised", 1_816_030, 1_806_784, [1_013_001, 1_013_001]),
  ],
)
def test_paper_has_the_published_sizes(variant, encoder, decoder, discriminators):
  stage = described("aae", variant)[-1]
  found = stage["params"]
  assert sum(found.get(n, 0) for n in ("enc", "z_head", "y_head")) == encoder
  assert found["dec"] == decoder
  assert [found[n] for n in ("d_z", "d_y") if n in found] == discriminators


@pytest.mark.parametrize(
  ("variant", "epochs"),
  [
    ("paper", (100, 300, 400)),
    ("paper_spokes", (100, 300, 400)),
    ("paper_supervised", (100, 300, 400)),
    ("paper_semisupervised", (150, 200, 250)),
    ("paper_clustering", (150, 200, 250)),
  ],
)
def test_paper_recipe(variant, epochs, monkeypatch):
  """The rate falls to a tenth twice, of a move that is made in every tenth step too."""
  rates, true = [], optim.adam
  spy = lambda lr, b1: rates.append((lr, b1)) or true(lr, b1)
  monkeypatch.setattr(optim, "adam", spy)
  config = config_of(variant)
  job.prepare(config)
  first, second, last = (469 * n for n in epochs)
  assert (config.batch_size, config.num_steps) == (128, last)
  assert len(rates) == len(config.model.moves)
  for move, (rate, b1) in zip(config.model.moves, rates, strict=True):
    every = 10 if move == "cls" else 1
    found = [rate(s // every) for s in (0, first - 1, first, second - 1, second, last)]
    np.testing.assert_allclose(found, [2e-4, 2e-4, 2e-5, 2e-5, 2e-6, 2e-6], rtol=1e-5)
    assert b1 == 0.5


def test_a_sixth_of_what_d_sees_has_a_label():
  """10,000 of 60,000 images are labelled."""
  config = config_of("paper_spokes")
  made, more = job.prepare(config), config.model.labelled_batch
  assert made.templates[-1].extra["label"].shape == (10_000,)
  np.testing.assert_allclose(more / (config.batch_size + more), 1 / 6, atol=0.003)


def test_networks_start_as_in_the_port():
  """He's cut normal, std sqrt(2 / fan_in), but for the pixels: uniform to sqrt(6 / fans)."""
  _, state, _ = first_state("small")
  for name, net in state.params.items():
    for path, p in jax.tree_util.tree_leaves_with_path(net):
      where = f"{name}{jax.tree_util.keystr(path)}"
      if p.ndim == 1:
        assert not p.any(), where
      elif p.shape == (256, 784):
        limit = math.sqrt(6 / (256 + 784))
        assert 0.99 * limit < np.abs(p).max() <= limit, where
        np.testing.assert_allclose(p.std(), limit / math.sqrt(3), rtol=0.01)
      elif p.size > 10_000:
        np.testing.assert_allclose(p.std(), math.sqrt(2 / p.shape[0]), rtol=0.02, err_msg=where)
        assert np.abs(p).max() < 2.3 * math.sqrt(2 / p.shape[0]), where  # 2 / 0.8796


# ------------------------------------------------------------------------------------------ routing


def test_every_loss_moves_its_players_and_no_other(game):
  _, _, _, players, _, (seen, _, _) = game
  assert players == MOVES
  for move, (_, _, _, grads) in seen.items():
    assert {n for n in MOVES[move] if moving(grads[n])} == MOVES[move], move
  assert not moving(seen["cls"][3]["z_head"]) and not moving(seen["cls"][3]["dec"])
  assert not moving(seen["d_y"][3]["z_head"]) and not moving(seen["g_z"][3]["y_head"])


def test_order_and_optimizers(game):
  """Each move starts where the one before ended, on noise of its own, with moments of its own."""
  _, state, _, players, _, (seen, after, _) = game
  assert list(players) == list(MOVES)
  starts = [*(seen[move][0] for move in MOVES), after.params]
  jax.tree.map(np.testing.assert_array_equal, starts[0], state.params)
  for move, (before, then) in zip(MOVES, itertools.pairwise(starts), strict=True):
    changed = {n for n in before if moving(jax.tree.map(jnp.subtract, before[n], then[n]))}
    assert changed == MOVES[move], move
  eps = [b["eps"] for _, b, _, _ in seen.values()]
  assert all(not np.any(a[:4] == b[:4]) for i, a in enumerate(eps) for b in eps[:i])
  assert set(state.opt) == set(MOVES)
  for move, opt in after.opt.items():
    assert int(opt[0].count) == 1, move
    assert set(opt[0].mu) == MOVES[move], move


def test_labels_play_every_so_many_steps():
  stage, state, batch = first_state(**{"model.label_every": 3})
  step = jax.jit(stage.step, compiler_options=QUICK)
  for i in range(4):
    state, found = step(state, batch, jax.random.key(i))
    assert found["loss_cls"] > 0 and found["gradnorm_cls"] > 0  # also where it does not play
  assert int(state.opt["cls"][0].count) == 2  # steps 0 and 3
  assert int(state.opt["g_y"][0].count) == 4


def test_labelled_images_play_in_turn(monkeypatch):
  """Of 20 the first 15, then the last 5 and the first 10 again, every third step."""
  changes = {"model.num_labels": 20, "model.labelled_batch": 15, "model.label_every": 3}
  stage, state, batch = first_state("labels_only", **SMALL, **changes)
  seen = []
  monkeypatch.setattr(
    core, "minimize", lambda state, tx, loss, names, b, **options: seen.append(b) or (state, {})
  )
  for i in (0, 3, 6):
    stage.step(state.replace(step=jnp.array(i)), batch, jax.random.key(0))
  for b, start in zip(seen, (0, 15, 10), strict=True):
    rows = (start + np.arange(15)) % 20
    np.testing.assert_array_equal(b["label"], state.extra["label"][rows])
    assert abs(b["x"] - state.extra["image"][rows]).max() < 2  # but for noise of 0.3


def test_rates_fall_at_the_same_steps_for_all_moves():
  """A move that is made every third step sees a third of the updates."""
  ends = {"model.rate_ends": (6,), "model.label_every": 3, "model.moves": ("g_y", "d_y", "cls")}
  stage, state, batch = first_state(**ends)
  step = jax.jit(stage.step, compiler_options=QUICK)
  sizes = []
  for i in range(7):
    after, _ = step(state, batch, jax.random.key(i))
    move = jax.tree.map(jnp.subtract, after.params["d_y"], state.params["d_y"])
    sizes.append(float(jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(move)))))
    state = after
  assert sizes[6] < 0.3 * sizes[5], sizes
  assert min(sizes[:6]) > 0.3 * max(sizes[:6]), sizes


# ----------------------------------------------------------------------------------- losses by hand


def test_losses_where_all_networks_say_zero(game):
  """1/2 E sum x^2, 6 log 4, 6 log 2 and log 10: sums over pixels, terms not halved."""
  _, state, batch, _, play, _ = game
  zero = state.replace(params=jax.tree.map(jnp.zeros_like, state.params))
  seen, _, found = play(zero, batch)
  x = np.asarray(batch["image"])
  expected = 0.5 * (x**2).sum((1, 2, 3)).mean()  # of the clean image, the noise is the encoder's
  np.testing.assert_allclose(seen["rec"][2]["loss_rec"], expected, rtol=1e-5)
  np.testing.assert_allclose(seen["d_z"][2]["loss_d_z"], 6 * math.log(4), rtol=1e-5)
  np.testing.assert_allclose(seen["d_y"][2]["loss_d_y"], 6 * math.log(4), rtol=1e-5)
  # D has moved by then, by one step of Adam
  np.testing.assert_allclose(seen["g_z"][2]["loss_g_z"], 6 * math.log(2), rtol=0.02)
  np.testing.assert_allclose(seen["g_y"][2]["loss_g_y"], 6 * math.log(2), rtol=0.02)
  np.testing.assert_allclose(seen["cls"][2]["loss_cls"], math.log(10), rtol=0.02)
  for *_, of_move, _ in seen.values():  # the metrics are those of the moves
    assert {name: found[name] for name in of_move} == of_move
  noise = np.asarray(seen["rec"][1]["x"] - batch["image"])
  np.testing.assert_allclose([noise.mean(), noise.std()], [0, 0.3], atol=0.02)


def test_losses_by_hand(game):
  """Of the first networks, with the noise of each move: what D is to say of whom, and what the
  decoder is told.
  """
  _, _, _, _, _, (seen, _, _) = game
  softplus = lambda x: np.logaddexp(0, x)

  def dense(p, x, slope=0.0):  # rectified between layers, not after the last
    for i in range(len(p)):
      x = x if i == 0 else np.maximum(x, slope * x)
      x = x @ np.asarray(p[f"Dense_{i}"]["kernel"]) + np.asarray(p[f"Dense_{i}"]["bias"])
    return x

  head = lambda p, x: x @ np.asarray(p["kernel"]) + np.asarray(p["bias"])
  found = {}
  for move, (p, b, _, _) in seen.items():
    h = np.maximum(dense(p["enc"], np.asarray(b["x"]).reshape(len(b["x"]), -1)), 0)
    mean, raw = np.split(head(p["z_head"], h), 2, axis=1)
    z = mean + softplus(raw) * np.asarray(b["eps"])
    logits = head(p["y_head"], h)
    y = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    d_z, d_y = (lambda v, d=d: dense(p[d], np.asarray(v), 0.2)[:, 0] for d in ("d_z", "d_y"))
    if move == "rec":
      x = np.tanh(dense(p["dec"], np.concatenate([z, y], 1)))
      wrong = np.asarray(b["clean"]).reshape(x.shape) - x
      found[move] = 0.5 * (wrong**2).sum(1).mean()
    elif move == "cls":
      found[move] = -np.log(y[np.arange(len(y)), b["label"]]).mean()
    elif move == "d_z":
      found[move] = 6 * (softplus(-d_z(b["prior"])).mean() + softplus(d_z(z)).mean())
    elif move == "d_y":
      found[move] = 6 * (softplus(-d_y(b["one_hot"])).mean() + softplus(d_y(y)).mean())
    else:
      found[move] = 6 * softplus(-(d_z(z) if move == "g_z" else d_y(y))).mean()
  for move, (*_, metrics, _) in seen.items():
    np.testing.assert_allclose(metrics[f"loss_{move}"], found[move], rtol=1e-4, err_msg=move)
  one_hot = np.asarray(seen["d_y"][1]["one_hot"])
  assert set(one_hot.ravel()) == {0, 1} and (one_hot.sum(1) == 1).all()


def test_samples_are_decoded_draws_of_the_prior():
  """Normal ones, or on spokes; on that of the label where D sees labels."""
  batch = batch_of(2_000)
  for variant, on_spokes, labelled in (("small", False, False), ("spokes", True, True)):
    stage, state, _ = first_state(variant, **SMALL)
    found = jax.jit(stage.sample, compiler_options=QUICK)(state, batch, jax.random.key(0))
    z = np.asarray(found["latent"])
    radius = np.hypot(*z.T)
    if not on_spokes:
      np.testing.assert_allclose(z.mean(0), 0, atol=0.1)
      np.testing.assert_allclose(np.cov(z.T), np.eye(2), atol=0.1)
    else:
      turn = np.round(np.arctan2(z[:, 1], z[:, 0]) * 10 / (2 * np.pi)) % 10
      assert abs(radius.mean() - 1.4) < 0.05
      assert ((turn == batch["label"])[radius > 0.8].mean() > 0.95) == labelled
    decode = mlp.Generator((28, 28, 1), (8,))
    np.testing.assert_allclose(
      found["image"][:9], decode.apply({"params": state.params["dec"]}, z[:9]), atol=1e-5
    )


def test_codes_are_mean_plus_softplus_times_noise(game):
  """A head of bias b says mean b[:2] and std log(1 + e^b[2:]), whatever the image."""
  stage, state, *_ = game
  head = jax.tree.map(jnp.zeros_like, state.params["z_head"])
  head["bias"] = jnp.array([1.0, -2.0, 0.5, -3.0])
  fixed = state.replace(params={**state.params, "z_head": head})
  big = batch_of(2_000)
  z = jax.jit(stage.sample, compiler_options=QUICK)(fixed, big, jax.random.key(0))["code"]
  np.testing.assert_allclose(z.mean(0), [1, -2], atol=0.1)
  np.testing.assert_allclose(z.std(0), np.log1p(np.exp([0.5, -3.0])), rtol=0.06)


def test_decoder_stays_in_range(game):
  stage, state, batch, *_ = game
  wild = jax.tree.map(lambda p: 30 * p, state.params["dec"])
  wild = state.replace(params={**state.params, "dec": wild})
  x = jax.jit(stage.sample, compiler_options=QUICK)(wild, batch, jax.random.key(0))["image"]
  assert x.shape == (8, 28, 28, 1)
  assert np.abs(x).max() <= 1 and np.abs(x).max() > 0.9


# ----------------------------------------------------------------------------------- spokes, labels


def test_spokes():
  """Moments of spoke 3 of 10 in two pairs of axes; without a label all spokes are as likely."""
  draw = jax.jit(spokes.draw, static_argnums=(2, 3))
  z = np.asarray(draw(jax.random.key(0), jnp.full(50_000, 3), 4, 10))
  angle = 2 * np.pi * 3 / 10
  turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
  for pair in (z[:, :2], z[:, 2:]):
    np.testing.assert_allclose(pair.mean(0), 1.4 * turn[:, 0], atol=0.01)
    np.testing.assert_allclose(np.cov(pair.T), turn @ np.diag([0.25, 0.01]) @ turn.T, atol=0.005)
  assert abs(np.corrcoef(z[:, 0], z[:, 2])[0, 1]) < 0.02  # pairs are independent within a spoke
  z = np.asarray(draw(jax.random.key(1), jnp.full(50_000, 10), 4, 10))
  nearest = lambda z: np.round(np.arctan2(z[:, 1], z[:, 0]) * 10 / (2 * np.pi)) % 10
  counts = np.bincount(nearest(z[:, :2]).astype(int), minlength=10)
  np.testing.assert_allclose(counts / 50_000, 0.1, atol=0.01)
  far = np.hypot(z[:, 0], z[:, 1]) > 1, np.hypot(z[:, 2], z[:, 3]) > 1
  both = far[0] & far[1]  # near the hub a point may lie beside another spoke
  assert (nearest(z[:, :2]) == nearest(z[:, 2:]))[both].mean() > 0.99


def test_the_discriminator_sees_the_label_of_both():
  """A draw is on the spoke of the label that comes with it; D's input is the code and one of 11."""
  for known, d_label in ((0, True), (20, True), (0, False)):
    changes = {"model.num_labels": known, "model.labelled_batch": 5, "model.d_label": d_label}
    changes["model.moves"] = ("d_z",)
    stage, state, batch = first_state("spokes", n=30, **SMALL, **changes)
    seen, _, _ = moves_of(stage)[1](state, batch)
    _, b, _, grads = seen["d_z"]
    label, p = np.asarray(b["label"]), np.asarray(b["prior"])
    first = grads["d_z"]["Dense_0"]["kernel"]
    assert first.shape[0] == (2 + 11 if d_label else 2)
    if known:
      np.testing.assert_array_equal(label, [10] * 30 + [0, 1, 2, 3, 4])
      np.testing.assert_array_equal(b["clean"][30:], state.extra["image"][:5])
      p, label = p[30:], label[30:]
    else:
      np.testing.assert_array_equal(label, batch["label"])
    far = np.hypot(*p.T) > 0.8
    turn = np.round(np.arctan2(p[:, 1], p[:, 0]) * 10 / (2 * np.pi)) % 10
    assert far.any() and (turn == label)[far].all()
    if d_label:  # its weights for the labels that came, and no other, have a gradient
      rows = {int(r) for r in np.flatnonzero(np.abs(first).sum(1) > 0)}
      assert rows == {0, 1, *(2 + np.unique(np.asarray(b["label"])))}


def test_labelled_images_are_the_first_of_each_class():
  made = job.prepare(config_of("test"))
  n = 64
  batch = batch_of(n)
  batch["label"] = jax.random.permutation(jax.random.key(0), batch["label"])
  known = quickly(made.stages[0].init, jax.random.key(0), batch, None).extra
  np.testing.assert_array_equal(known["label"], [*range(10)] * 2)  # the classes in turn
  places = [np.flatnonzero(np.asarray(batch["label"]) == c)[:2] for c in range(10)]
  rows = np.stack(places, 1).ravel()
  np.testing.assert_array_equal(known["image"], batch["image"][rows])
  assert made.stages[0].num_steps == 0 and made.sizes[0] == 1_024


def test_the_decoder_is_told_the_label():
  """In the supervised variant the label of the image, when sampling the one that is asked for."""
  stage, state, batch = first_state("supervised", **SMALL)
  dec = jax.tree.map(jnp.zeros_like, state.params["dec"])
  dec["Dense_0"]["kernel"] = dec["Dense_0"]["kernel"].at[2 + 3, 0].set(1.0)  # reads class 3
  dec["Dense_1"]["kernel"] = dec["Dense_1"]["kernel"].at[0].set(1.0)
  told = state.replace(params={**state.params, "dec": dec})
  found = jax.jit(stage.sample, compiler_options=QUICK)(told, batch, jax.random.key(0))
  lit = np.tanh(1.0) * (np.asarray(batch["label"]) == 3)
  np.testing.assert_allclose(found["image"].mean((1, 2, 3)), lit, atol=1e-6)
  np.testing.assert_array_equal(found["label"], batch["label"])
  shown = jax.jit(stage.show, compiler_options=QUICK)(told, batch_of(64), jax.random.key(0))
  expected = np.tile(np.tanh(1.0) * (np.arange(10) == 3), (10, 1))
  np.testing.assert_allclose(shown["styles"].mean((2, 3, 4)), expected, atol=1e-6)


def test_held_out_numbers(game):
  """A classifier that always says 3, a decoder that says 0; codes that all lie on spoke 3."""
  stage, state, _, *_ = game
  params = jax.tree.map(jnp.zeros_like, state.params)
  params["y_head"]["bias"] = params["y_head"]["bias"].at[3].set(1.0)
  batch = batch_of(50)
  found = jax.jit(stage.evaluate)(state.replace(params=params), batch, jax.random.key(0))
  np.testing.assert_allclose(found["accuracy"], 0.1)
  np.testing.assert_allclose(found["mse"], np.mean(np.asarray(batch["image"]) ** 2) / 4, rtol=1e-5)
  stage, state, _ = first_state("spokes", **SMALL)
  angle = 2 * math.pi * 3 / 10
  head = jax.tree.map(jnp.zeros_like, state.params["z_head"])
  head["bias"] = jnp.array([math.cos(angle), math.sin(angle), -20.0, -20.0])
  params = {**state.params, "z_head": head}
  found = jax.jit(stage.evaluate)(state.replace(params=params), batch, jax.random.key(0))
  np.testing.assert_allclose(found["spoke_accuracy"], 0.1)
  batch["label"] = jnp.full(50, 3)
  found = jax.jit(stage.evaluate)(state.replace(params=params), batch, jax.random.key(0))
  np.testing.assert_allclose(found["spoke_accuracy"], 1.0)


def test_clusters_and_the_baseline_sample_what_their_metrics_take():
  stage, state, batch = first_state("clustering", n=200, **SMALL)
  found = jax.jit(stage.sample, compiler_options=QUICK)(state, batch, jax.random.key(0))
  assert set(found) >= {"category", "data_category", "data_label", "code", "latent"}
  assert "label" not in found and np.unique(found["category"]).size == 16
  stage, state, batch = first_state("labels_only", **SMALL)
  assert set(state.params) == {"enc", "y_head"} and set(state.opt) == {"cls"}
  found = jax.jit(stage.sample, compiler_options=QUICK)(state, batch, jax.random.key(0))
  np.testing.assert_array_equal(found["image"], batch["image"])
  assert quickly(stage.show, state, batch, jax.random.key(0)) == {}


def test_what_cannot_work_is_refused():
  points = {"data.source": "points", "data.name": "gaussian1d"}
  unlabelled = {"data.source": "folder", "data.channels": 1, "data.image_size": 28}
  for changes, flag in (
    ({"model.moves": ("rec", "vae")}, "moves"),
    ({"model.moves": ("rec", "g_z")}, "g_z plays against d_z: --config.model.moves"),
    ({"model.moves": ("rec", "g_y")}, "g_y plays against d_y: --config.model.moves"),
    ({"model.moves": ()}, "moves"),
    ({"model.prior": "ring"}, "prior"),
    ({"model.widths": ()}, "widths"),
    ({"model.z_dim": 0}, "z_dim"),
    ({"model.labelled_batch": 0}, "labelled_batch"),
    ({"model.label_every": 0}, "label_every"),
    ({"model.num_labels": -10}, "num_labels"),
    ({"model.moves": ("d_y", "g_y"), "model.num_categories": 1}, "num_categories"),
    ({"model.prior": "spokes", "model.z_dim": 3}, "z_dim"),
    ({"model.decoder_label": True}, "decoder_label"),
    ({"model.num_labels": 0}, "num_labels"),
    ({"model.num_labels": 25}, "num_labels"),
    ({"model.num_categories": 16}, "num_categories"),
    (points, "data.source"),
    (unlabelled, "num_labels"),
  ):
    with pytest.raises(errors.UserError, match=flag):
      job.prepare(config_of("test", **changes))


# ----------------------------------------------------------------------------------------- learning


@pytest.mark.learning
def test_codes_follow_the_prior(tmp_path):
  """The control is a plain autoencoder of the same networks and steps."""
  found, control = (train(config_of(v), tmp_path / v) for v in ("small", "plain"))
  assert found["code_mean"] < 0.2, found
  assert 0.75 <= found["code_std_min"] <= found["code_std_max"] <= 1.25, found
  assert found["code_mmd"] < control["code_mmd"] / 5, (found, control)
  assert found["class_min_share"] > 0.02, found


@pytest.mark.learning
def test_classes_go_to_their_spokes_only_where_d_sees_the_label(tmp_path):
  assert train(config_of("spokes"), tmp_path / "spokes")["spoke_accuracy"] >= 0.8
  blind = config_of("spokes", **{"model.d_label": False})
  assert train(blind, tmp_path / "blind")["spoke_accuracy"] < 0.4


@pytest.mark.learning
def test_the_label_sets_the_digit_and_the_code_its_style(tmp_path):
  """100 codes from the prior, each with all ten labels, read by the classifier of this project."""
  config = config_of("supervised")
  assert train(config, tmp_path / "run")["label_agreement"] >= 0.8
  made = job.prepare(config)
  state = job.restore(made, str(tmp_path / "run"), 0)
  right = []
  for i in range(10):
    styles = quickly(made.stages[0].show, state, batch_of(64), jax.random.key(i))["styles"]
    seen = digits.classify(np.asarray(styles).reshape(100, 28, 28, 1))[0].argmax(1)
    right.append(seen == np.tile(np.arange(10), 10))
  assert np.mean(right) >= 0.8


@pytest.mark.learning
def test_unlabelled_images_help(tmp_path):
  """100 labels with and without the other images: 3 points of accuracy at least, three seeds."""
  gains = []
  for seed in range(3):
    found, baseline = (
      train(config_of(v, seed=seed), tmp_path / f"{v}{seed}")["accuracy"]
      for v in ("semisupervised", "labels_only")
    )
    gains.append(found - baseline)
  assert min(gains) >= 0.03, gains


@pytest.mark.learning
def test_clusters_follow_classes(tmp_path):
  """Without any label; 16 categories that say nothing reach 0.2 at most."""
  found = train(config_of("clustering"), tmp_path)
  assert found["cluster_purity"] >= 0.25 and found["cluster_classes"] >= 3, found
