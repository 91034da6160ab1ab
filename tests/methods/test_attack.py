"""The game of attack and classifier: who moves by what, its sizes, and that it gets to its numbers.

What attacks keep to, and their exact worst cases, are in tests/unit/test_attacks.py.
"""

import functools
import importlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import OPTIMISED, described, train
from PIL import Image

from gm import attacks, core, errors, inspection, job, loop, sampling
from gm.methods import attack
from gm.nets import attack as nets

ALL = ["classifier", "network", "finetune", "compete"]
QUICK = {"xla_backend_optimization_level": 0}  # compiles faster, runs slower


def config_of(variant, **changes):
  config = importlib.import_module("configs.attack").get_config(variant)
  config.update_from_flattened_dict({"num_devices": 1, **changes})
  return config


@functools.cache
def made(**changes):
  return job.prepare(config_of("test", **changes))


def batch_of(made, size=8):
  source = job.load(made, 0, "test", shuffle=False)
  return jax.tree.map(jnp.asarray, source.decode(source.batch(0, size)))


@functools.cache
def first_states(**changes):
  """The state that every stage starts from, were there no steps before."""
  run, states = made(**changes), []
  for stage, keys in zip(run.stages, run.keys):
    prev = states[-1] if states else None
    init = jax.jit(lambda key, batch, prev, stage=stage: stage.init(key, batch, prev))
    states.append(init(keys["init"], batch_of(run), prev))
  return states


# ------------------------------------------------------------------------------------------- sizes


def test_paper_has_the_published_classifier():
  stages = described("attack", "paper")
  assert [s["name"] for s in stages] == ALL
  assert stages[0]["params"] == {"c": 3_274_634}


def test_the_game_says_how_far_it_goes():
  stages = lambda variant: [s.name for s in job.prepare(config_of(variant)).stages]
  assert stages("small") == ["classifier"]
  assert stages("network") == ["classifier", "network"]
  assert stages("compete") == ALL
  assert set(job.prepare(config_of("small")).templates[0].params) == {"c", "other"}


def test_one_pass_of_the_network_costs_a_tenth_of_pgd_at_most():
  """In operations, as they are counted for both."""
  for variant in ("network", "compete"):
    run = job.prepare(config_of(variant))
    m, state = run.config.model, run.templates[1]
    x = jax.ShapeDtypeStruct((10, 28, 28, 1), jnp.float32)
    y = jax.ShapeDtypeStruct((10,), jnp.int32)
    c = nets.Classifier(10, widths=m.c_widths, features=m.c_features, pool=m.c_pool)

    def pgd(params, x, y, c=c, m=m):
      logits = lambda x: c.apply({"params": params}, x)
      raises = lambda x: optax.softmax_cross_entropy_with_integer_labels(logits(x), y)
      key, step = jax.random.key(0), 2 * m.pgd_step
      return attacks.pgd(key, raises, x, 2 * m.eps, step=step, num_steps=m.pgd_steps)

    stage = run.stages[1]
    batch = {"image": x, "label": y}
    both = inspection.flops(jax.make_jaxpr(pgd)(state.params["c"], x, y).jaxpr)
    key = jax.eval_shape(lambda: jax.random.key(0))
    # the sample is A's, and C's word before and after
    once = inspection.flops(jax.make_jaxpr(stage.sample)(state, batch, key).jaxpr)
    assert 10 * once < both, (variant, once, both)


# -------------------------------------------------------------------------------- who moves by what


def compete(monkeypatch=None, **changes):
  """One step of `compete` in which every player moves by its gradient alone; (before, after)."""
  run = made(**changes)
  stage, before = run.stages[3], first_states(**changes)[3]
  moved = []

  def by_gradient(state, tx, grads, *, slot=None):
    params = {n: jax.tree.map(lambda p, g: p - g, state.params[n], g) for n, g in grads.items()}
    moved.append(slot or "+".join(grads))
    return state.replace(params={**state.params, **params}), {}

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(core, "move", by_gradient)
    step = jax.jit(lambda *args: stage.step(*args), compiler_options=QUICK)
    after, found = step(before, batch_of(run), jax.random.key(3))
  return run, before.params, after.params, moved, found


def a_images(m, a_params, c_params, x, y, start):
  """A's images of x, written out."""
  c = nets.Classifier(10, widths=m.c_widths, features=m.c_features, pool=m.c_pool)
  radius = 2 * m.eps
  at = jnp.clip(jnp.clip(x + radius * start, x - radius, x + radius), -1, 1)
  loss = lambda at: (
    -jnp.sum(jax.nn.log_softmax(c.apply({"params": c_params}, at))[jnp.arange(len(y)), y])
  )
  net = nets.Perturber(1, base=m.a_base)
  for _ in range(m.a_moves):
    slope = jax.lax.stop_gradient(jax.grad(loss)(at))
    slope = jnp.tanh(slope / (jnp.abs(slope).mean((1, 2, 3), keepdims=True) + 1e-12))
    shown = jnp.concatenate([x, at - x, slope], -1)
    step = jnp.tanh(5 * net.apply({"params": a_params}, shown))
    new = at + 1.25 * radius / np.sqrt(m.a_moves) * step
    clipped = jnp.clip(jnp.clip(new, x - radius, x + radius), -1, 1)
    at = new + jax.lax.stop_gradient(clipped - new)  # as if nothing were clipped
  return at


def a_gradient(run, a_params, c_params, seen_by, sign=-1.0, drop=None):
  """Of A's loss: its images are made against `c_params` and judged by `seen_by`."""
  m, batch = run.config.model, batch_of(run)
  x, y = batch["image"], batch["label"]
  k = core.keys(jax.random.key(3), "start", "c", "a")
  start = jax.random.uniform(k.start, x.shape, minval=-1.0)
  c = nets.Classifier(
    10, widths=m.c_widths, features=m.c_features, pool=m.c_pool, dropout=m.c_dropout
  )
  rngs = {"rngs": {"dropout": drop}, "train": True} if drop is not None else {}

  def loss(a_params):
    new = a_images(m, a_params, c_params, x, y, start)
    logits = c.apply({"params": seen_by}, new, **rngs)
    return sign * optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

  return jax.jit(jax.grad(loss), compiler_options=QUICK)(a_params)


def distance(a, b):
  flat = lambda tree: np.concatenate([np.ravel(v) for v in jax.tree.leaves(tree)])
  a, b = flat(a), flat(b)
  return np.linalg.norm(a - b) / np.linalg.norm(b)


def test_a_raises_the_loss_of_the_new_c_in_its_mode_of_evaluation():
  """Its gradient is not that of the other sign, of C before its move, or of C with dropout."""
  run, before, after, moved, found = compete()
  assert moved == ["c", "a"]
  for n in ("plain", "first", "once"):
    assert distance(after[n], before[n]) == 0
  got = jax.tree.map(jnp.subtract, before["a"], after["a"])  # by gradient descent of rate 1
  old, new = before["c"], after["c"]
  assert distance(got, a_gradient(run, before["a"], new, new)) < 1e-3
  broken = {
    "sign": a_gradient(run, before["a"], new, new, sign=1.0),
    "old": a_gradient(run, before["a"], old, old),
    "dropout": a_gradient(run, before["a"], new, new, drop=jax.random.key(1)),
    "old with dropout": a_gradient(run, before["a"], old, old, drop=jax.random.key(1)),
  }
  for name, other in broken.items():
    assert distance(got, other) > 0.05, name
  assert found["loss_a"] < 0 < found["loss_c"]


CLEAN = {"model.c_dropout": 0.0, "model.a_moves": 2, "model.watch_every": 2}


@functools.cache
def clean_step(i):
  return jax.jit(lambda *args: made(**CLEAN).stages[i].step(*args), compiler_options=QUICK)


def test_c_learns_from_clean_and_attacked_images_in_equal_parts():
  """Without dropout its loss is the mean of two cross-entropies, and that of its copy too."""
  run, before, _, _, found = compete(**CLEAN)
  m, batch = run.config.model, batch_of(run)
  x, y = batch["image"], batch["label"]
  a = jax.tree.map(lambda p: p + 0.1, before["a"])  # which is zero at the start
  found = {}
  for i in (2, 3):  # finetune, compete
    state = first_states(**CLEAN)[i]
    state = state.replace(params={**state.params, "a": a})
    found |= clean_step(i)(state, batch, jax.random.key(3))[1]
  k = core.keys(jax.random.key(3), "start", "c", "a")
  start = jax.random.uniform(k.start, x.shape, minval=-1.0)
  new = a_images(m, a, before["c"], x, y, start)
  c = nets.Classifier(10, widths=m.c_widths, features=m.c_features, pool=m.c_pool)
  ce = lambda x: optax.softmax_cross_entropy_with_integer_labels(
    c.apply({"params": before["c"]}, x), y
  ).mean()
  assert abs(float(ce(new) - ce(x))) > 1e-2
  np.testing.assert_allclose(found["loss_c"], (ce(x) + ce(new)) / 2, rtol=1e-4)
  np.testing.assert_allclose(found["loss_once"], (ce(x) + ce(new)) / 2, rtol=1e-4)


def test_what_stands_is_looked_at_now_and_then_before_c_moves():
  """Every second step, of the images and the C of that step; the number stays until the next."""
  run, state = made(**CLEAN), first_states(**CLEAN)[3]
  m, x = run.config.model, batch_of(run)["image"]
  c = nets.Classifier(10, widths=m.c_widths, features=m.c_features, pool=m.c_pool)
  y = c.apply({"params": state.params["c"]}, x).argmax(-1)  # without an attack all would stand

  def stands(params, key):
    ce = lambda x: optax.softmax_cross_entropy_with_integer_labels(
      c.apply({"params": params}, x), y
    )
    k = core.keys(key, "start", "c", "a", "pgd")
    new = attacks.pgd(k.pgd, ce, x, 2 * m.eps, step=2 * m.pgd_step, num_steps=m.pgd_steps)
    return (c.apply({"params": params}, new).argmax(-1) == y).mean()

  said, wanted = [], []
  for i in range(3):
    wanted.append(float(stands(state.params["c"], jax.random.key(i))))
    state, found = clean_step(3)(state, {"image": x, "label": y}, jax.random.key(i))
    said.append(float(found["train_pgd_accuracy"]))
  assert 0 < wanted[0] < 1 and wanted[2] != wanted[0]
  np.testing.assert_allclose(said, [wanted[0], wanted[0], wanted[2]], atol=1e-6)


def test_the_network_does_nothing_at_the_start_and_stays_in_the_ball():
  run, states = made(**{"model.a_sees": "image"}), first_states(**{"model.a_sees": "image"})
  batch = batch_of(run)
  x, key = batch["image"], jax.random.key(0)
  stage, state = run.stages[1], states[1]
  sample = jax.jit(stage.sample, compiler_options=QUICK)
  np.testing.assert_array_equal(sample(state, batch, key)["image"], x)
  big = jax.tree.map(lambda p: 10 * jnp.ones_like(p), state.params["a"])
  new = sample(state.replace(params={**state.params, "a": big}), batch, key)["image"]
  assert float(jnp.abs(new).max()) <= 1 and 0.5 < float(jnp.abs(new - x).max()) < 0.6 + 1e-6


def test_metrics_are_of_attacks_in_the_box_and_the_ball(monkeypatch):
  """A clip that is left out shows in `_linf`, which is in units of eps."""
  run, states = made(**{"model.game": "attack"}), first_states(**{"model.game": "attack"})
  batch, key = batch_of(run), jax.random.key(0)
  label = {"label": (batch["label"] + 1) % 10}  # all are wrong, so all count as fallen

  def largest():
    evaluate = jax.jit(lambda *args: run.stages[0].evaluate(*args), compiler_options=QUICK)
    found = evaluate(states[0], {**batch, **label}, key)
    return max(float(found[f"{name}_linf"]) for name in ("fgsm", "pgd"))

  assert 0.25 < largest() <= 0.3 + 1e-6
  monkeypatch.setattr(attacks, "project", lambda x, centre, radius: x)
  assert largest() > 0.3 + 1e-3


# ----------------------------------------------------------------------------------------- samples


def test_a_target_is_that_of_the_sample():
  """Then it is the nearest image of that class, whatever the stage attacks with by itself."""
  config = config_of("test", **{"model.near_rounds": 3, "model.near_steps": 10})
  run, state = job.prepare(config), first_states()[3]
  m, x = config.model, batch_of(run)["image"]
  target = jnp.arange(8, dtype=jnp.int32)
  c = nets.Classifier(10, widths=m.c_widths, features=m.c_features, pool=m.c_pool)
  logits = lambda x: c.apply({"params": state.params["c"]}, x)
  search = {"weight": m.near_weight, "rounds": 3, "num_steps": 10, "stride": m.near_stride}
  want = jax.jit(lambda x: attacks.smallest(logits, x, target, **search))(x)
  sample = jax.jit(run.stages[3].sample)
  found = sample(state, {"image": x, "target": target}, jax.random.key(0))
  np.testing.assert_allclose(found["image"], want, atol=1e-4)
  np.testing.assert_array_equal(found["label"], logits(found["image"]).argmax(1))
  assert (found["label"] == target).sum() > (logits(x).argmax(1) == target).sum()
  said = found["attack_label"]
  np.testing.assert_array_equal(said[:, 0], logits(x).argmax(1))
  np.testing.assert_array_equal(said[:, 2], found["label"])
  assert set(said[:, 1].tolist()) == {-1}  # nothing under the difference
  original, difference, new = np.moveaxis(np.asarray(found["attack"]), 1, 0)
  np.testing.assert_array_equal(original, x)
  np.testing.assert_array_equal(new, found["image"])
  np.testing.assert_allclose(difference, np.clip(10 * (new - original), -1, 1), atol=1e-6)
  own = sample(state, {"image": x}, jax.random.key(0))["image"]
  assert float(jnp.abs(own - x).max()) <= 0.6 + 1e-6 and float(jnp.abs(own - want).max()) > 0.1


def test_a_run_is_asked_for_the_attack_on_an_image(tmp_path, capsys):
  """From training to the picture with --input and --target, as main.py asks for it."""
  config, work = config_of("test", **{"model.game": "attack"}), tmp_path / "run"
  loop.train(config, str(work))
  for name in ("classifier_00000002.png", "classifier_00000002_attack.png"):
    assert (work / "samples" / name).stat().st_size > 1_000, name
  own = tmp_path / "my digit.png"
  Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8)).save(own)
  request = sampling.Request(range(1), inputs=[str(own)], target="3")
  written = sampling.run(str(work), None, request)
  stem = "classifier_00000002_seeds0_my_digit_target3"
  assert [p.name for p in written] == [f"{stem}.png", f"{stem}_image.png"]
  with Image.open(written[0]) as picture:
    assert picture.size[0] == 3 * 60  # original, difference, attacked
  found = sampling.draw(str(work), range(2), inputs=[str(own)], target=3)
  assert found["attack"].shape == (2, 3, 28, 28, 1)
  files = sampling.run(str(work), None, request._replace(form="files", inputs=[str(own)] * 2))
  names = {p.name for p in files[0].iterdir()}
  assert names == {"my_digit_seed0000_target3.png", "my_digit_1_seed0000_target3.png"}
  with pytest.raises(errors.UserError, match="is there already"):
    sampling.run(str(work), None, request)
  with pytest.raises(errors.UserError, match=r"^--target: there is no label 'ostrich'"):
    sampling.run(str(work), None, request._replace(target="ostrich"))
  capsys.readouterr()


def test_other_data_are_refused():
  for changes in ({"data.source": "points", "data.name": "ring"},):
    with pytest.raises(ValueError, match=r"--config\.data\.source"):
      job.plan(config_of("test", **changes))
  folder = {"data.source": "folder", "data.channels": 1, "data.image_size": 28}
  with pytest.raises(ValueError, match=r"attack needs labels, and folder has none"):
    job.plan(config_of("test", **folder))


# ---------------------------------------------------------------------------------------- learning


def falls(found):
  """What the plain classifier promises."""
  return (
    found["accuracy"] >= 0.97
    and found["pgd_accuracy"] <= 0.05
    and found["fgsm_accuracy"] <= 0.30
    and found["noise_accuracy"] >= 0.90
  )


@pytest.mark.learning
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_small_falls_to_every_attack_and_not_to_noise(tmp_path, seed):
  found = train(config_of("small", seed=seed), tmp_path / "run")
  assert falls(found), found
  assert found["nearest_success"] > 0.9 and found["nearest_l2"] < found["fgsm_l2"] / 2, found
  assert found["fgsm_linf"] <= 0.3 + 1e-6 and found["pgd_linf"] <= 0.3 + 1e-6, found


@pytest.mark.learning
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_network_reaches_four_fifths_of_pgd_in_a_tenth_of_its_time(tmp_path, seed):
  config = config_of("network", seed=seed)
  found = train(config, tmp_path / "run")
  assert found["relative_success"] >= 0.8 and found["network_linf"] <= 0.3 + 1e-6, found
  run = job.prepare(config)
  m, state = run.config.model, job.restore(run, str(tmp_path / "run"), 1)
  batch = batch_of(run, 500)
  c = nets.Classifier(10, widths=m.c_widths, features=m.c_features, pool=m.c_pool)
  a = nets.Perturber(1, base=m.a_base)

  def pgd(state, x, y):
    logits = lambda x: c.apply({"params": state.params["c"]}, x)
    raises = lambda x: optax.softmax_cross_entropy_with_integer_labels(logits(x), y)
    key, step = jax.random.key(0), 2 * m.pgd_step
    return attacks.pgd(key, raises, x, 2 * m.eps, step=step, num_steps=m.pgd_steps)

  def network(state, x, y):
    new = x + 2 * m.eps * jnp.tanh(attack.GAIN * a.apply({"params": state.params["a"]}, x))
    return attacks.project(new, x, 2 * m.eps)

  def seconds(function):
    call = jax.jit(function, compiler_options=OPTIMISED)
    once = lambda: call(state, batch["image"], batch["label"]).block_until_ready()
    once()
    times = []
    for _ in range(3):
      start = time.perf_counter()
      once()
      times.append(time.perf_counter() - start)
    return min(times)

  assert 10 * seconds(network) < seconds(pgd)


def stands(found):
  """What the game promises: it holds against attacks made anew, as the one finetuned does not."""
  return (
    found["accuracy"] >= 0.95
    and found["pgd_accuracy"] >= 0.70
    and found["longer_accuracy"] >= 0.65
    and found["search_accuracy"] >= 0.75
    and found["once_pgd_accuracy"] <= 0.30
    and found["once_old_accuracy"] >= 0.80
  )


@pytest.mark.learning
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_compete_stands_against_fresh_attacks(tmp_path, seed):
  found = train(config_of("compete", seed=seed), tmp_path / "run")
  assert stands(found), found


@pytest.mark.learning
def test_a_game_with_the_wrong_sign_does_not(tmp_path, monkeypatch):
  """A that helps C shows it nothing to learn from."""
  true = core.minimize

  def wrong(state, tx, loss, names, *args, **kwargs):
    if names != ["a"]:
      return true(state, tx, loss, names, *args, **kwargs)
    minus = lambda p, b: (lambda found: (-found[0], found[1]))(loss(p, b))
    return true(state, tx, minus, names, *args, **kwargs)

  monkeypatch.setattr(core, "minimize", wrong)
  assert not stands(train(config_of("compete"), tmp_path / "run"))
