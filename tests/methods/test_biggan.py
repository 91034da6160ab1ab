"""BigGAN: sizes, first state, orthogonality, averaging, accumulation, truncation, and learning."""

import functools
import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm import core, evaluation, job, loop, losses, optim, regularizers
from gm.nets import resnet
from gm.nn import spectral

KEY = jax.random.key(2)
QUICK = {"xla_backend_optimization_level": 0}  # compiles faster, runs slower


def config_of(variant, **changes):
  config = importlib.import_module("configs.biggan").get_config(variant)
  config.update_from_flattened_dict({"num_devices": 1, **changes})
  return config


@functools.cache
def first(variant="test"):
  """The job, its stage, first state, a batch, and state and metrics after a step."""
  made = job.prepare(config_of(variant))
  stage = made.stages[0]
  image = jnp.tanh(jax.random.normal(jax.random.key(3), (16, 8, 8, 1)))
  batch = {"image": image, "label": jnp.arange(16, dtype=jnp.int32) % 10}
  state = jax.jit(stage.init, compiler_options=QUICK)(jax.random.key(0), batch, None)
  return made, stage, state, batch, step_of()(state, batch, jax.random.key(1))


@functools.cache
def step_of():
  return jax.jit(job.prepare(config_of("test")).stages[0].step)  # as the contract test compiles it


@pytest.mark.parametrize(
  "variant, g, d",
  [
    ("paper", 70_433_988, 87_982_370),
    ("narrow", 31_978_628, 39_448_258),
    ("cifar10", 4_304_387, 4_207_361),
  ],
)
def test_paper_has_the_published_sizes(variant, g, d):
  made = job.prepare(config_of(variant))
  params = made.templates[0].params
  assert {n: core.count(p) for n, p in params.items()} == {"g": g, "d": d}
  if variant != "cifar10":  # z of 120 in 6 chunks of 20, beside 128 of the class
    assert params["g"]["net"]["first"]["kernel"].shape[0] == 20
    assert params["g"]["net"]["block4"]["norm1"]["scale"].shape[0] == 148


def test_what_is_normalised():
  """All kernels of G and D and D's class vectors; not G's, whether it has one table or many."""
  for variant, inside, outside in (
    ("test", "block0/norm0/scale", "embed/embedding"),
    ("test_tables", "block0/conv0/kernel", "block0/norm0/scale"),
  ):
    made = job.prepare(config_of(variant))
    of = {n: made.templates[0].stats[n]["spectral"]["u"] for n in ("g", "d")}
    assert inside in of["g"] and outside not in of["g"] and "last/kernel" in of["g"]
    assert "head/embed/embedding" in of["d"]


def test_the_first_state():
  """Attention is the identity, and every sigma is 1 after one step from a random u."""
  _, _, state, _, _ = first()
  for n in ("g", "d"):
    net, u = state.params[n]["net"], state.stats[n]["spectral"]["u"]
    weights = dict(core_paths(net))
    one_step = lambda w, u: {p: spectral.sigma(w[p], u[p])[0] for p in u}
    sigmas = jax.jit(one_step, compiler_options=QUICK)(weights, u)
    np.testing.assert_allclose(list(sigmas.values()), 1.0, atol=1e-5)
    gammas = [w for path, w in weights.items() if path.endswith("gamma")]
    assert len(gammas) == 1 and gammas[0] == 0


def core_paths(tree):
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    yield "/".join(k.key for k in path), leaf


def test_attention_starts_with_gamma_alone():
  """Adam moves what has a gradient by about lr; the kernels of attention have none."""
  _, _, state, _, (after, _) = first()
  before, moved = (dict(core_paths(s.params["g"]["net"])) for s in (state, after))
  assert moved["attention8/gamma"] != 0
  # only the regulariser could pull, and their outputs are orthogonal
  for n in ("theta", "phi", "g"):
    np.testing.assert_allclose(
      moved[f"attention8/{n}/kernel"], before[f"attention8/{n}/kernel"], atol=1e-5
    )
  assert np.abs(moved["first/kernel"] - before["first/kernel"]).max() > 1e-4


def test_the_orthogonal_term_is_the_authors():
  """Their gradient 2 s ((W W^T) o (1 - I)) W is that of s/2 times the penalty; 0 at orthogonal."""
  w, s = jax.random.normal(KEY, (3, 3, 4, 6)), 1e-2
  rows = np.asarray(w, np.float64).reshape(-1, 6).T
  theirs = 2 * s * ((rows @ rows.T) * (1 - np.eye(6))) @ rows
  ours = jax.grad(lambda w: 0.5 * s * regularizers.orthogonal({"kernel": w}))(w)
  np.testing.assert_allclose(ours.reshape(-1, 6).T, theirs, rtol=1e-4, atol=1e-5)
  q = jax.nn.initializers.orthogonal()(KEY, (8, 6))
  assert np.abs(jax.grad(regularizers.orthogonal)(q)).max() < 1e-5


def test_the_loss_of_g_has_that_term(monkeypatch):
  """Traced: half the strength times the penalty on raw weights of G, its class vectors left out."""
  seen, true = [], regularizers.orthogonal
  monkeypatch.setattr(regularizers, "orthogonal", lambda p: seen.append(p) or true(p))
  made = job.prepare(config_of("test"))
  batch = core.batch_shapes(made.infos[0], made.sizes[0])
  jax.eval_shape(lambda *a: made.stages[0].step(*a), made.templates[0], batch, KEY)
  assert seen and set(seen[0]) == {"net"} and "embed" in seen[0]["net"]
  kernels = {"w": jnp.array([[1.0, 1.0], [0.0, 1.0]])}
  with_table = {**kernels, "embed": {"embedding": jnp.ones((5, 2))}}
  assert true(with_table) == true(kernels) == 2


def test_averages_copy_until_their_start_and_then_decay():
  """Parameters, running averages and u; the test variant starts at step 1 with decay 0.99."""
  _, _, _, batch, (one, _) = first()
  for name, of in (("g", one.params["g"]), ("g_stats", one.stats["g"])):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), one.ema[name], of)
  two, _ = step_of()(one, batch, jax.random.key(5))
  want = core.ema(one.ema, {"g": two.params["g"], "g_stats": two.stats["g"]}, 0.99)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), two.ema, want)
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), two.ema["g_stats"], one.ema["g_stats"])
  assert all(max(jax.tree.leaves(moved[c])) > 1e-6 for c in ("batch_stats", "spectral"))


def test_k_averages_of_a_constant():
  average, a = {"w": jnp.array(3.0)}, {"w": jnp.array(1.0)}
  for _ in range(5):
    average = core.ema(average, a, 0.9999)
  np.testing.assert_allclose(average["w"], 1 + 2 * 0.9999**5, rtol=1e-6)


def test_two_steps_of_d_for_one_of_g():
  _, _, _, _, (after, _) = first()
  assert int(after.opt["d"][0].count) == 2 and int(after.opt["g"][0].count) == 1
  assert job.prepare(config_of("paper")).sizes == [2 * 2048]


def test_d_gradient_accumulated_is_that_of_one_batch():
  """No part of D mixes examples: 4 x 16 is 64; u starts from the same vector in each part."""
  d = spectral.SpectralNorm(resnet.Discriminator([8], 1, wide=True, num_classes=10))
  x = jax.random.normal(KEY, (128, 8, 8, 1))
  batch = {"x": x[:64], "fake": x[64:], "y": jnp.arange(64) % 10, "y_fake": jnp.arange(64) % 7}
  build = lambda: core.build(d, KEY, x[:2], batch["y"][:2])
  params, stats = jax.jit(build, compiler_options=QUICK)()

  def loss(p, b):
    both = jnp.concatenate([b["x"], b["fake"]]), jnp.concatenate([b["y"], b["y_fake"]])
    logits, new = core.apply(d, p["d"], stats, *both)
    return losses.hinge_d(*jnp.split(logits, 2)), (new, {})

  def run(k):
    step = lambda p: core.gradients(loss, {"d": p}, ["d"], batch, accumulate=k)
    (value, (new, _)), grads = jax.jit(step, compiler_options=QUICK)(params)
    return value, new, grads

  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), run(1), run(4))


def test_truncation_bounds_z_and_narrows_samples(monkeypatch):
  """By a net that returns z: every number within the threshold, and pairs ever closer."""
  spread = []
  for threshold in (2.0, 1.0, 0.5):
    z = truncated(threshold, 400)
    assert np.abs(z).max() <= threshold and np.abs(z).max() > 0.95 * threshold
    spread.append(np.linalg.norm(z[:200] - z[200:], axis=1).mean())
  assert spread[0] > 1.3 * spread[1] > 1.6 * spread[2]
  assert np.abs(truncated(0.0, 400)).max() > 2.5


def truncated(threshold, n):
  """The z that `sample` gives to G."""
  seen, true = [], core.apply
  made = job.prepare(config_of("test", **{"model.truncation": threshold}))
  core.apply = lambda net, p, s, z, y, train: seen.append(z) or (jnp.zeros((n, 8, 8, 1)), s)
  try:
    batch = {"image": jnp.zeros((n, 8, 8, 1)), "label": jnp.zeros(n, jnp.int32)}
    made.stages[0].sample(made.templates[0], batch, KEY)
  finally:
    core.apply = true
  return np.asarray(seen[0])


def test_standing_statistics_are_means_over_batches():
  """Every 2 steps in the test variant, over 2 batches, of the averaged G; samples then use them."""
  _, stage, state, batch, (one, _) = first()
  unchanged = lambda a, b: all(
    (np.asarray(x) == np.asarray(y)).all() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b))
  )
  assert unchanged(state.extra, one.extra)
  two, _ = step_of()(one, batch, jax.random.key(5))
  assert not unchanged(one.extra, two.extra)
  first_norm = two.extra["standing"]["net"]["block0"]["norm0"]
  # of one batch or two, not of an average that began at 0 and 1
  running = two.ema["g_stats"]["batch_stats"]["net"]["block0"]["norm0"]
  assert (first_norm["var"] < 0.5 * running["var"]).all()
  draw = jax.jit(lambda s: stage.sample(s, batch, KEY)["image"], compiler_options=QUICK)
  other = two.replace(
    ema={**two.ema, "g_stats": {**two.ema["g_stats"], "batch_stats": two.extra["standing"]}}
  )
  np.testing.assert_array_equal(draw(two), draw(other))
  assert np.abs(draw(two) - draw(two.replace(extra=state.extra))).max() > 1e-3


def test_learning_rates_and_epsilons(monkeypatch):
  found, true = [], optim.adam
  monkeypatch.setattr(optim, "adam", lambda lr, **k: found.append((lr, k)) or true(lr, **k))
  for variant, g, d, eps in (("paper", 5e-5, 2e-4, 1e-6), ("cifar10", 2e-4, 2e-4, 1e-8)):
    config = config_of(variant)
    found.clear()
    job.prepare(config)
    np.testing.assert_allclose([lr for lr, _ in found], [g, d], rtol=1e-9)
    assert all(k == {"b1": 0.0, "b2": 0.999, "eps": eps} for _, k in found)


def test_errors_say_what_is_allowed():
  for changes, match in (
    ({"model.z_dim": 5}, "z_dim"),
    ({"model.truncation": -1.0}, "truncation"),
    ({"model.embed_features": 0}, "embed_features"),
    ({"data.source": "folder", "data.channels": 1}, "no labels"),
  ):
    with pytest.raises((ValueError, job.UserError), match=match):
      job.prepare(config_of("test", **changes))


def trained(workdir, **changes):
  loop.train(config_of("small", **changes), str(workdir))
  metrics = json.loads((workdir / "eval.json").read_text())["metrics"]
  return metrics, evaluation.from_workdir(str(workdir), None)


def mmd(x, y):
  """Squared MMD with a Gaussian kernel of the median distance, biased."""
  x, y = (a.reshape(len(a), -1) for a in (x, y))
  squares = lambda a, b: (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
  width = np.median(squares(y, y))
  k = lambda a, b: np.exp(-squares(a, b) / width).mean()
  return k(x, x) + k(y, y) - 2 * k(x, y)


@pytest.mark.learning
def test_small_puts_the_label_that_was_asked_for_and_averaging_helps(tmp_path):
  metrics, (evaluator, state) = trained(tmp_path / "run")
  assert metrics["label_agreement"] >= 0.9, metrics
  real, averaged = evaluator.real(2_000)["image"], evaluator.draw(state, 2_000)["image"]
  raw_state = state.replace(ema={"g": state.params["g"], "g_stats": state.stats["g"]})
  raw_state = raw_state.replace(extra={"standing": state.stats["g"]["batch_stats"]})
  raw = evaluator.draw(raw_state, 2_000)["image"]
  assert mmd(averaged, real) < mmd(raw, real)


@pytest.mark.learning
def test_small_with_a_wrong_sign_does_not_learn(tmp_path, monkeypatch):
  true = losses.hinge_g
  monkeypatch.setattr(losses, "hinge_g", lambda fake: -true(fake))
  assert trained(tmp_path / "run", num_steps=500)[0]["label_agreement"] < 0.5
