"""Ladder VAE: merging, both kinds of inference by hand, limits, schedules, and use of layers."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import described, train

from gm import errors, job
from gm.probability import hierarchy

QUICK = {"xla_backend_optimization_level": 0}
KEY = jax.random.key(2)
KINDS = ("ladder", "bottom_up")


def config_of(variant, name="ladder_vae", **changes):
  config = importlib.import_module(f"configs.{name}").get_config(variant)
  config.update_from_flattened_dict({"num_devices": 1, **changes})
  return config


@functools.cache
def begin(changes=()):
  """The stage of a tiny model, a batch of 8 and a state of random parameters, all warmed up."""
  made = job.prepare(config_of("test", **{"data.image_size": 4, **dict(changes)}))
  image = jnp.tanh(jax.random.normal(jax.random.key(0), (8, 4, 4, 1)))
  rng = np.random.default_rng(0)
  random = lambda s: jnp.asarray(rng.normal(0, 0.4, s.shape), s.dtype)
  state = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), made.templates[0])
  state = state.replace(params=jax.tree.map(random, state.params), step=jnp.int32(10**6))
  return made.stages[0], {"image": image}, state


def step(changes, at=10**6):
  stage, batch, state = begin(changes)
  return jax.jit(stage.step, compiler_options=QUICK)(state.replace(step=jnp.int32(at)), batch, KEY)[
    1
  ]


def drawn():
  """What a step draws: pixels [B, P] and noise [B, Z] for both layers."""
  k_pixels, k_eps = jax.random.split(KEY)
  x = (np.asarray(begin()[1]["image"]).reshape(8, -1) + 1) / 2
  words = np.asarray(jax.random.bits(k_pixels, (8, 8)))
  x = (np.concatenate([words >> 16, words & 0xFFFF], axis=1) < x * 65_536).astype(np.float64)
  keys = jax.random.split(k_eps)
  return x, [np.asarray(jax.random.normal(key, (8, n))) for key, n in zip(keys, (3, 2))]


def dense(layer, h):
  return h @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"], np.float64)


def net(params, h):
  return dense(params["Dense_1"], np.tanh(dense(params["Dense_0"], h)))


def law(params, h):
  return np.split(net(params, h), 2, -1)


def kl(m1, v1, m2, v2):
  return 0.5 * (np.exp(v1 - v2) - 1 - v1 + v2 + (m1 - m2) ** 2 / np.exp(v2)).sum(1)


def log_prob(z, mean, log_var):
  return -0.5 * ((z - mean) ** 2 / np.exp(log_var) + log_var + np.log(2 * np.pi)).sum(-1)


def test_merged_laws_are_the_product_of_their_densities():
  rng = np.random.default_rng(0)
  (m1, l1), (m2, l2) = rng.normal(size=(2, 2, 5))
  mean, log_var = (np.asarray(a) for a in hierarchy.merge((m1, l1), (m2, l2)))
  z = rng.normal(size=(100, 5))
  gap = log_prob(z, m1, l1) + log_prob(z, m2, l2) - log_prob(z, mean, log_var)
  np.testing.assert_allclose(gap, gap[0], rtol=1e-4)  # a constant: the same density
  far = hierarchy.merge((jnp.zeros(1), jnp.full(1, -80.0)), (jnp.ones(1), jnp.full(1, 80.0)))
  np.testing.assert_allclose(np.concatenate(far), [0.0, -80.0], atol=1e-6)  # and nothing overflows


def test_the_ladder_by_hand():
  found = step((("model.inference", "ladder"),))
  x, eps = drawn()
  p = begin((("model.inference", "ladder"),))[2].params
  up = p["enc"]["up0"]
  h1 = np.tanh(dense(up["Dense_0"], x))
  m1, l1 = np.split(dense(up["Dense_1"], h1), 2, -1)
  m2, l2 = np.split(dense(up["Dense_3"], np.tanh(dense(up["Dense_2"], h1))), 2, -1)
  z2 = m2 + np.exp(l2 / 2) * eps[1]
  mp, lp = law(p["dec"]["down1"], z2)
  v = 1 / (np.exp(-l1) + np.exp(-lp))
  m = v * (m1 * np.exp(-l1) + mp * np.exp(-lp))
  z1 = m + np.sqrt(v) * eps[0]
  logits = net(p["dec"]["down0"], z1)
  rates = [kl(m, np.log(v), mp, lp).mean(), kl(m2, l2, 0 * m2, 0 * m2).mean()]
  distortion = (np.logaddexp(0, logits) - x * logits).sum(1).mean()
  np.testing.assert_allclose([found["rate_1"], found["rate_2"]], rates, rtol=1e-4)
  np.testing.assert_allclose(found["distortion"], distortion, rtol=1e-5)
  np.testing.assert_allclose(found["loss_enc+dec"], distortion + sum(rates), rtol=1e-5)


def test_bottom_up_by_hand_and_its_lower_rate_is_none_in_closed_form():
  """For z2 as it was drawn from z1, KL(q(z1|x) || p(z1|z2)) is another number."""
  changes = (("model.inference", "bottom_up"),)
  found = step(changes)
  x, eps = drawn()
  p = begin(changes)[2].params
  m1, l1 = law(p["enc"]["up0"], x)
  z1 = m1 + np.exp(l1 / 2) * eps[0]
  m2, l2 = law(p["enc"]["up1"], z1)
  z2 = m2 + np.exp(l2 / 2) * eps[1]
  mp, lp = law(p["dec"]["down1"], z2)
  rates = [(log_prob(z1, m1, l1) - log_prob(z1, mp, lp)).mean(), kl(m2, l2, 0 * m2, 0 * m2).mean()]
  np.testing.assert_allclose([found["rate_1"], found["rate_2"]], rates, rtol=1e-4)
  assert abs(found["rate_1"] - kl(m1, l1, mp, lp).mean()) > 0.02
  np.testing.assert_allclose(found["rate"], sum(rates), rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_one_layer_is_the_vae(kind, monkeypatch):
  plain = job.prepare(config_of("test", "vae", **{"data.image_size": 4, "model.z_dim": 3}))
  one = (("model.inference", kind), ("model.z_dims", (3,)), ("model.widths", (16,)))
  monkeypatch.setattr(
    hierarchy, "noise", lambda key, lead, sizes: [jax.random.normal(key, (*lead, sizes[0]))]
  )
  begin.cache_clear()
  stage, batch, state = begin(one)
  params = {"enc": state.params["enc"]["up0"], "dec": state.params["dec"]["down0"]}
  vae_state = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), plain.templates[0])
  run = lambda step, state: jax.jit(step, compiler_options=QUICK)(state, batch, KEY)[1]
  a = run(plain.stages[0].step, vae_state.replace(params=params))
  b = run(stage.step, state)
  begin.cache_clear()
  for name in ("loss_enc+dec", "distortion", "rate"):
    np.testing.assert_allclose(a[name], b[name], rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_the_likelihood_is_that_of_the_generator(kind):
  """By importance weights of q, against a mean over 100,000 draws from the top down."""
  changes = (("model.inference", kind), ("model.eval_k", 8_000), ("model.eval_chunk", 500))
  stage, batch, state = begin(changes)
  batch = {"image": jnp.sign(batch["image"])}
  shrink = jax.tree.map(lambda w: 0.3 * w, state.params)  # so that q is near the posterior
  state = state.replace(params=shrink)
  found = jax.jit(stage.evaluate, compiler_options=QUICK)(state, batch, KEY)
  rng, p = np.random.default_rng(0), shrink["dec"]
  mean, log_var = law(p["down1"], rng.normal(size=(100_000, 2)))
  logits = net(p["down0"], mean + np.exp(log_var / 2) * rng.normal(size=mean.shape))
  x = (np.asarray(batch["image"]).reshape(8, -1) + 1) / 2
  log_x = x @ logits.T - np.logaddexp(0, logits).sum(1)
  exact = np.log(np.exp(log_x).mean(1))
  np.testing.assert_allclose(found["nll"], -exact.mean(), atol=0.02)
  assert found["elbo"] < -found["nll"] - 1e-3
  np.testing.assert_allclose(found["elbo"], -found["distortion"] - found["rate"], rtol=1e-5)


def test_weights_rise_and_layers_have_free_bits():
  free = (("model.warmup", 100), ("model.free_bits", 2.0))
  plain = step(())
  d, rates = float(plain["distortion"]), [float(plain[f"rate_{i}"]) for i in (1, 2)]
  assert min(rates) < 2.0 < max(rates)
  for at, weight in ((0, 0.0), (50, 0.5), (100, 1.0), (999, 1.0)):
    total = d + weight * sum(rates)
    np.testing.assert_allclose(step(free[:1], at)["loss_enc+dec"], total, rtol=1e-5)
    total = d + weight * sum(max(2.0, r) for r in rates)
    np.testing.assert_allclose(step(free, at)["loss_enc+dec"], total, rtol=1e-5)


def test_samples_come_from_the_top_down():
  stage, batch, state = begin()
  eps = stage.latent(batch, KEY)
  mean, log_var = law(state.params["dec"]["down1"], np.asarray(eps[1]))
  z = mean + np.exp(log_var / 2) * np.asarray(eps[0])
  image = stage.generate(state, eps, batch)["image"].reshape(8, 16)
  expected = 2 / (1 + np.exp(-net(state.params["dec"]["down0"], z))) - 1
  np.testing.assert_allclose(image, expected, rtol=1e-4, atol=1e-5)


def test_paper_has_five_layers_of_the_published_sizes():
  config = config_of("paper")
  (stage,) = described("ladder_vae", "paper")
  m, enc, dec, below = config.model, 0, 0, 784
  full = lambda a, b: a * b + b
  for i, (z, w) in enumerate(zip(m.z_dims, m.widths)):
    enc += full(below, w) + full(w, w) + full(w, 2 * z)
    out = 784 if i == 0 else 2 * m.z_dims[i - 1]
    dec += full(z, w) + full(w, w) + full(w, out)
    below = w
  assert stage["params"] == {"enc": enc, "dec": dec}


def test_layers_and_widths_must_agree():
  with pytest.raises(errors.UserError, match=r"model\.widths=\(8,\) .* give 2, .*model\.z_dims"):
    job.prepare(config_of("test", **{"model.widths": (8,)}))


# ----------------------------------------------------------------------------------- that it learns


@pytest.mark.learning
def test_both_layers_are_used(tmp_path):
  """On 8 x 8 digits, means of three seeds: below 22.8 nats, and the top layer holds some."""
  found = {}
  for kind in KINDS:
    runs = [
      train(config_of("small", seed=s, **{"model.inference": kind}), tmp_path / f"{kind}{s}")
      for s in (0, 1, 2)
    ]
    found[kind] = {n: np.mean([run[n] for run in runs]) for n in ("nll", "rate_2")}
    assert 20.0 < found[kind]["nll"] < 22.8 and found[kind]["rate_2"] > 0.5, found
  assert found["ladder"]["nll"] < found["bottom_up"]["nll"] + 0.2, found
