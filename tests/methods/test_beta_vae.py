"""beta-VAE: objectives by hand, limits, schedules, players, collapse, what single latents tell."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import described, train

from gm import errors, inspection, job
from gm.methods import beta_vae
from gm.probability import aggregate

QUICK = {"xla_backend_optimization_level": 0}
KEY = jax.random.key(2)


def config_of(variant, name="beta_vae", **changes):
  config = importlib.import_module(f"configs.{name}").get_config(variant)
  config.update_from_flattened_dict({"num_devices": 1, **changes})
  return config


SMALL = {"data.image_size": 4, "model.z_dim": 3}


@functools.cache
def begin(changes=()):
  """The stage of a tiny model, a batch of 8 and a state of random parameters."""
  made = job.prepare(config_of("test", **SMALL, **dict(changes)))
  image = jnp.tanh(jax.random.normal(jax.random.key(0), (8, 4, 4, 1)))
  batch = {"image": image, "factors": jnp.arange(40.0).reshape(8, 5) % 4}
  rng = np.random.default_rng(0)
  random = lambda s: jnp.asarray(rng.normal(0, 0.4, s.shape), s.dtype)
  state = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), made.templates[0])
  return made.stages[0], batch, state.replace(params=jax.tree.map(random, state.params))


def step(at=0, **changes):
  """Metrics of one step and the gradient of the encoder."""
  changes = {f"model.{k}": v for k, v in changes.items()}
  stage, batch, state = begin(tuple(changes.items()))
  state = state.replace(step=jnp.int32(at))
  after, found = jax.jit(stage.step, compiler_options=QUICK)(state, batch, KEY)
  return found, jax.tree.map(lambda g: 10 * np.asarray(g), after.opt["enc+dec"][0].mu["enc"])


def loss(at=0, **changes):
  return float(step(at, **changes)[0]["loss_enc+dec"])


def codes():
  """What a step draws: z, mean and log-variance, [8, 3] each, in NumPy."""
  _, batch, state = begin((("model.objective", "beta"),))
  k_pixels, k_eps, _ = jax.random.split(KEY, 3)
  words = np.asarray(jax.random.bits(k_pixels, (8, 8)))
  x = (np.asarray(batch["image"]).reshape(8, -1) + 1) / 2
  x = (np.concatenate([words >> 16, words & 0xFFFF], axis=1) < x * 65_536).astype(np.float64)
  enc = jax.tree.map(np.asarray, state.params["enc"])
  h = np.maximum(x @ enc["Dense_0"]["kernel"] + enc["Dense_0"]["bias"], 0)
  out = h @ enc["Dense_1"]["kernel"] + enc["Dense_1"]["bias"]
  mean, log_var = np.split(out, 2, 1)
  return mean + np.exp(log_var / 2) * np.asarray(jax.random.normal(k_eps, (8, 3))), mean, log_var


# -------------------------------------------------------------------------------------- objectives


def test_every_objective_is_its_formula():
  """Distortion and rate as they are reported, and the penalty written out."""
  z, mean, log_var = codes()
  kl = 0.5 * (mean**2 + np.exp(log_var) - 1 - log_var)
  found, _ = step(objective="beta")
  d, r = float(found["distortion"]), float(found["rate"])
  np.testing.assert_allclose(r, kl.sum(1).mean(), rtol=1e-5)
  least, half = float(np.median(kl.mean(0))) + 1e-3, kl.mean(0)
  expected = {
    ("beta", "beta", 4.0): 4 * r,
    ("capacity", "capacity", r + 2): 30 * (r + 2 - r),
    ("capacity", "capacity", 0.0): 30 * r,
    ("free_bits_unit", "free_bits", least): np.maximum(half, least).sum(),
    ("free_bits_group", "free_bits", least): max(half.sum(), least),
    ("free_bits_group", "free_bits", 99.0): 99.0,
    ("tc", "beta", 4.0): r + 3 * float(aggregate.total_correlation(z, mean, log_var)),
    ("dip_i", "dip_off", 7.0): r + float(aggregate.moments_penalty(mean, off=7.0, on=10.0)),
    ("dip_ii", "dip_off", 7.0): r
    + float(aggregate.moments_penalty(mean, log_var, off=7.0, on=10.0)),
  }
  for (objective, key, value), penalty in expected.items():
    got = loss(10**6, objective=objective, gamma=30.0, **{key: value})
    np.testing.assert_allclose(got, d + penalty, rtol=2e-5, err_msg=f"{objective} {key}={value}")


def test_beta_of_one_is_the_vae_bit_for_bit():
  """Of one batch and key, in all parameters; beta 2 is not."""
  changes = {**SMALL, "data.source": "embedded", "data.name": "mnist10k"}
  plain = job.prepare(config_of("test", "vae", **changes)).stages[0]
  batch = {"image": begin()[1]["image"]}
  state = jax.jit(plain.init)(KEY, batch, None)
  enc = {"model.enc_activation": "tanh", "model.dec_activation": "tanh"}
  enc |= {"model.objective": "beta"}
  for beta, equal in ((1.0, True), (2.0, False)):
    made = job.prepare(config_of("test", **changes, **enc, **{"model.beta": beta}))
    one, a = jax.jit(plain.step, compiler_options=QUICK)(state, batch, KEY)
    two, b = jax.jit(made.stages[0].step, compiler_options=QUICK)(state, batch, KEY)
    assert (a["loss_enc+dec"] == b["loss_enc+dec"]) == equal
    same = jax.tree.map(lambda x, y: bool((x == y).all()), one.params, two.params)
    assert all(jax.tree.leaves(same)) == equal


def test_latents_with_free_bits_are_not_pushed_and_others_as_before():
  """In the encoder's last layer, whose columns are latents; of distortion alone as of w = 0."""
  _, mean, log_var = codes()
  kl = 0.5 * (mean**2 + np.exp(log_var) - 1 - log_var).mean(0)
  least = float(np.sort(kl)[:2].mean())  # one latent is under it
  of = lambda at=0, **changes: step(at, **changes)[1]["Dense_1"]["kernel"].reshape(16, 2, 3)
  off = of(objective="beta", warmup=10)  # the distortion's alone
  whole = of(objective="beta", beta=1.0)
  free = of(objective="free_bits_unit", free_bits=least)
  under = kl < least
  assert under.sum() == 1
  np.testing.assert_allclose(free[..., under], off[..., under], rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(free[..., ~under], whole[..., ~under], rtol=1e-4, atol=1e-6)
  assert abs(whole - off)[..., under].max() > 1e-3


def test_weights_rise_as_they_say_and_after_a_resume():
  """They are functions of the step that the state holds: at 0, half, the end and beyond."""
  d, r = (float(step(objective="beta")[0][n]) for n in ("distortion", "rate"))
  for at, weight in ((0, 0.0), (50, 0.5), (100, 1.0), (1_000, 1.0)):
    found = loss(at, objective="beta", beta=2.0, warmup=100)
    np.testing.assert_allclose(found, d + weight * 2 * r, rtol=1e-5)
    found = loss(at, objective="capacity", gamma=3.0, capacity=8.0, capacity_steps=100)
    np.testing.assert_allclose(found, d + 3 * abs(r - weight * 8), rtol=1e-5)


# ------------------------------------------------------------------------------------------- factor


def test_factor_judges_codes_as_they_come_and_exchanged_between_examples(monkeypatch):
  """The VAE's loss holds the mean logit; d's is the logistic one, of a constant logit here."""
  calls, true = [], beta_vae.losses.bce_d
  monkeypatch.setattr(
    beta_vae.losses, "bce_d", lambda real, fake: calls.append(1) or true(real, fake)
  )
  stage, batch, state = begin((("model.objective", "factor"), ("model.gamma", 5.0)))
  still = jax.tree.map(jnp.zeros_like, state.params["d"])
  still["Dense_1"]["bias"] = jnp.array([0.75])
  state = state.replace(params={**state.params, "d": still})
  _, found = jax.jit(stage.step, compiler_options=QUICK)(state, batch, KEY)
  assert calls
  np.testing.assert_allclose(
    found["loss_enc+dec"], found["distortion"] + found["rate"] + 5 * 0.75, rtol=1e-5
  )
  np.testing.assert_allclose(
    found["loss_d"], np.log1p(np.exp(-0.75)) + np.log1p(np.exp(0.75)), 1e-5
  )
  z = jnp.arange(24.0).reshape(8, 3)
  mixed = beta_vae.shuffle(KEY, z)
  np.testing.assert_array_equal(np.sort(mixed, 0), z)
  assert any((mixed[i] != z).any(1).all() for i in range(8))  # rows that never stood together


# ------------------------------------------------------------------------------------------- sizes


def test_paper_has_the_published_networks():
  """Of the table: four convolutions and two layers, two layers and four transposed convolutions."""
  (stage,) = described("beta_vae", "paper")
  conv = lambda kernel, a, b: kernel**2 * a * b + b
  enc = conv(4, 1, 32) + conv(4, 32, 32) + conv(2, 32, 64) + conv(2, 64, 64)
  enc += 1024 * 256 + 256 + 256 * 20 + 20
  dec = 10 * 256 + 256 + 256 * 1024 + 1024
  dec += conv(4, 64, 64) + conv(4, 64, 32) + conv(4, 32, 32) + conv(4, 32, 1)
  assert stage["params"] == {"enc": enc, "dec": dec}
  assert stage["outputs"]["image"][1:] == [64, 64, 1]


def test_convolutions_take_what_halves_four_times():
  conv = {"model.nets": "conv"}
  made = job.prepare(config_of("test", **conv, **{"data.image_size": (32, 48)}))
  assert inspection.describe(made)["stages"][0]["outputs"]["image"][1:] == [32, 48, 1]
  with pytest.raises(errors.UserError, match=r"40x40 .*--config\.data\.image_size .*nets=mlp"):
    job.prepare(config_of("test", **conv, **{"data.image_size": 40}))


def test_scores_are_taken_where_factors_are_known():
  stage, batch, state = begin()
  found = jax.jit(stage.evaluate, compiler_options=QUICK)(state, batch, KEY)
  arrays = {k: x for k, x in found.items() if x.ndim}
  scores = jax.jit(stage.conclude, compiler_options=QUICK)(arrays, KEY)
  assert {"mig", "difference_score", "active_units"} <= set(scores)
  del arrays["factors"]
  assert "mig" not in jax.eval_shape(stage.conclude, arrays, KEY)
  tiles = {"image": jnp.tile(batch["image"], (8, 1, 1, 1))}
  rows = jax.eval_shape(stage.show, state, tiles, KEY)["traversals"]
  assert rows.shape == (3, 9, 4, 4, 1)


# ----------------------------------------------------------------------------------- that it learns


def bounds_of(workdir, config):
  """ELBO of the test digits, a mean over 20 binarisations, and the log-likelihood of their pixels
  drawn each by itself with its share of the training digits.
  """
  config.model.eval_k = 1
  made = job.prepare(config)
  state, rows = job.restore(made, str(workdir), 0), {}
  for split in ("train", "test"):
    source = job.load(made, 0, split, shuffle=False, whole=True)
    rows[split] = source.decode(source.batch(0, source.num_examples))
  evaluate = jax.jit(lambda key: made.stages[0].evaluate(state, rows["test"], key)["elbo"])
  elbo = np.mean([evaluate(key) for key in jax.random.split(KEY, 20)])
  share, x = (np.asarray((rows[n]["image"].reshape(-1, 64) + 1) / 2) for n in ("train", "test"))
  share = np.clip(share.mean(0), 1e-4, 1 - 1e-4)
  return elbo, (x * np.log(share) + (1 - x) * np.log1p(-share)).sum(1).mean()


@pytest.mark.learning
def test_a_large_beta_collapses_to_the_pixels_marginals(tmp_path):
  """On 8 x 8 digits with 8 latents: nothing is told for beta 4, and all latents are used for 1."""
  quick, found = {"model.z_dim": 8, "sample_every": 0}, {}
  for beta in (1.0, 4.0):
    config = config_of("digits", **quick, **{"model.beta": beta})
    found[beta] = train(config, tmp_path / f"{beta}")
  assert found[4.0]["rate"] < 0.01 and found[4.0]["active_units"] == 0, found
  elbo, apart = bounds_of(tmp_path / "4.0", config)
  assert abs(elbo - apart) < 0.1
  assert found[1.0]["rate"] > 4 and found[1.0]["active_units"] == 8, found
  assert found[1.0]["elbo"] > -23.5, found


@pytest.mark.learning
def test_slow_weights_and_free_bits_keep_more_latents(tmp_path):
  """32 latents on 8 x 8 digits; 19, 27 and 32 were active in the published comparison."""
  found = {
    v: train(config_of(v, sample_every=0), tmp_path / v)
    for v in ("digits", "digits_warmup", "digits_free_bits")
  }
  units = {v: run["active_units"] for v, run in found.items()}
  assert units["digits"] < units["digits_warmup"] <= units["digits_free_bits"] == 32, found
  assert found["digits_free_bits"]["rate"] > 32 * 0.1, found


@pytest.mark.learning
def test_single_latents_come_to_tell_single_factors(tmp_path):
  """Where the rate rises slowly from 0; a VAE of the same rate mixes them."""
  found = {
    (v, seed): train(config_of(v, seed=seed, sample_every=0), tmp_path / f"{v}{seed}")
    for v, seed in (("small", 0), ("small", 1), ("small", 2), ("plain", 0))
  }
  told = {k: run["difference_score"] > 0.72 and run["mig"] > 0.17 for k, run in found.items()}
  assert told == {k: k[0] == "small" for k in found}, found
  assert found["small", 0]["elbo"] < found["plain", 0]["elbo"]
