"""Autoencoder: the linear floor, the loss, the codes, sizes, and that curves beat planes."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import OPTIMISED, described, quickly, train

from gm import core, job
from gm.core import Info
from gm.data import installed
from gm.metrics import reconstruction


def config_of(variant, **changes):
  config = importlib.import_module("configs.autoencoder").get_config(variant)
  config.update_from_flattened_dict({"num_devices": 1, **changes})
  return config


@pytest.fixture(scope="module")
def digits():
  """The training digits, [1500, 8, 8, 1] in [-1, 1]."""
  source = installed.load({"name": "digits"}, "train", shuffle=False)
  return jax.tree.map(jnp.asarray, source.decode(source.batch(0, 1_500)))


def fit(variant, data, **changes):
  """Trains a variant on rows in memory; returns its mean squared error per pixel on all of them."""
  config = config_of(variant, **changes)
  (stage,) = job.prepare(config).stages
  rows = np.random.default_rng(0).integers(1_500, size=(config.num_steps, config.batch_size))

  @functools.partial(jax.jit, compiler_options=OPTIMISED)
  def run(state, rows):
    def body(i, state):
      batch = jax.tree.map(lambda x: x[rows[i]], data)
      return stage.step(state, batch, jax.random.key(0))[0]

    state = jax.lax.fori_loop(0, len(rows), body, state)
    return stage.evaluate(state, data, jax.random.key(0))

  return float(run(stage.init(jax.random.key(0), data, None), rows)["mse"])


# --------------------------------------------------------------------------------- the linear floor


def test_components_leave_the_known_errors_on_all_digits():
  sets = [installed.load({"name": "digits"}, split, shuffle=False) for split in ("train", "test")]
  images = [np.asarray(s.decode(s.batch(0, s.num_examples))["image"]) for s in sets]
  x = (np.concatenate(images).reshape(1_797, 64) + 1) / 2
  found = [reconstruction.pca_error(x, k) for k in (0, 2, 8)]
  np.testing.assert_allclose(found, [0.073332, 0.052426, 0.023913], atol=6e-7)


def test_components_are_the_best_projection():
  """Against the singular vectors, applied to the data; the metric takes Z from the samples."""
  rng = np.random.default_rng(0)
  x = rng.standard_normal((50, 6)) @ rng.standard_normal((6, 6)) + 5
  _, _, v = np.linalg.svd(x - x.mean(0), full_matrices=False)
  for k in (0, 2, 6):
    back = (x - x.mean(0)) @ v[:k].T @ v[:k] + x.mean(0)
    assert reconstruction.pca_error(x, k) == pytest.approx(((x - back) ** 2).mean(), abs=1e-12)
  real = {"image": (2 * x - 1).reshape(50, 2, 3, 1)}
  found = reconstruction.pca({"latent": np.zeros((9, 2))}, real, Info({}))
  assert found["pca_mse"] == pytest.approx(reconstruction.pca_error(x, 2))
  assert found["mean_mse"] == pytest.approx(x.var(0).mean())
  with pytest.raises(ValueError, match=r"7 components of 6 numbers.*config.model.z_dim"):
    reconstruction.pca_error(x, 7)
  with pytest.raises(ValueError, match="with a latent"):
    reconstruction.pca({}, real, Info({}))


def test_linear_reaches_the_floor_and_a_curved_one_goes_below(digits):
  x = (np.asarray(digits["image"], np.float64).reshape(1_500, 64) + 1) / 2
  floor = reconstruction.pca_error(x, 2)
  linear = fit("linear", digits)
  assert floor * (1 - 1e-5) < linear < 1.01 * floor, (linear, floor)
  assert fit("digits", digits, num_steps=600) < 0.85 * floor


# -------------------------------------------------------------------------------- the method itself


def test_sizes():
  for variant, enc, dec in (("paper", 1_418_280, 1_419_034), ("small", 533_762, 534_544)):
    (stage,) = described("autoencoder", variant)
    assert stage["params"] == {"enc": enc, "dec": dec}


def test_loss_sums_over_pixels_in_unit_range():
  """A decoder that says c everywhere loses 64 E (x - c)^2, x in [0, 1]; it starts at the mean."""
  (stage,) = job.prepare(config_of("digits")).stages
  x = np.random.default_rng(0).uniform(0, 1, (10, 8, 8, 1)).astype(np.float32)
  batch = {"image": jnp.asarray(2 * x - 1), "label": jnp.zeros(10, jnp.int32)}
  state = quickly(stage.init, jax.random.key(0), batch, None)
  dec = jax.tree.map(jnp.zeros_like, state.params["dec"])
  last = sorted(dec)[-1]
  mean = state.params["dec"][last]["bias"]
  np.testing.assert_allclose(mean, x.mean(0).ravel(), atol=1e-6)
  dec[last]["bias"] = jnp.full(64, 0.25)
  state = state.replace(params={**state.params, "dec": dec})
  _, found = quickly(stage.step, state, batch, jax.random.key(0))
  expected = ((x - 0.25) ** 2).sum((1, 2, 3)).mean()
  np.testing.assert_allclose(found["loss_enc+dec"], expected, rtol=1e-5)
  np.testing.assert_allclose(found["mse"], expected / 64, rtol=1e-5)
  np.testing.assert_allclose(stage.evaluate(state, batch, None)["mse"], expected / 64, rtol=1e-5)


@pytest.fixture(scope="module")
def first_two():
  """The linear variant, its codes the first two pixels; the decoder puts them back."""
  (stage,) = job.prepare(config_of("linear")).stages
  batch = {"image": jnp.zeros((64, 8, 8, 1)), "label": jnp.zeros(64, jnp.int32)}
  state = quickly(stage.init, jax.random.key(0), batch, None)
  kernel = jnp.zeros((64, 2)).at[0, 0].set(1).at[1, 1].set(1)
  net = lambda kernel: {"Dense_0": {"kernel": kernel, "bias": jnp.zeros(kernel.shape[1])}}
  return stage, state.replace(params={"enc": net(kernel), "dec": net(kernel.T)})


def images_of(codes):
  """Images whose first two pixels, in [0, 1] units, are the codes [N, 2]; the others are black."""
  x = jnp.zeros((len(codes), 64)).at[:, :2].set(jnp.asarray(codes))
  return 2 * x.reshape(-1, 8, 8, 1) - 1


def test_nearest_codes(first_two):
  """On a line at 0, 1, 3, 3.5, 9: the nearest others are 1, 0, 3.5, 3, 3.5."""
  stage, state = first_two
  codes = jnp.stack([jnp.array([0, 1, 3, 3.5, 9]), jnp.zeros(5)], 1)
  batch = {"image": images_of(codes), "label": jnp.array([1, 1, 2, 3, 3])}
  found = quickly(stage.evaluate, state, batch, None)
  assert found.pop("mse") < 1e-12
  np.testing.assert_allclose(stage.conclude(found, None)["nearest_accuracy"], 3 / 5)


def test_pictures(first_two):
  """The plane covers the range of the codes, its first axis to the right, the second upwards."""
  stage, state = first_two
  codes = np.random.default_rng(0).uniform([2, -1], [6, 1], (64, 2)).astype(np.float32)
  batch = {"image": images_of(codes), "label": jnp.arange(64) % 10}
  found = quickly(stage.show, state, batch, jax.random.key(0))
  np.testing.assert_allclose(found["codes"]["points"], codes, atol=1e-6)
  np.testing.assert_array_equal(found["codes"]["label"], batch["label"])
  np.testing.assert_allclose(found["reconstruction"][0], found["reconstruction"][1], atol=1e-5)
  plane = (np.asarray(found["plane"]).reshape(20, 20, 64)[..., :2] + 1) / 2
  share = (np.arange(20) + 0.5) / 20
  low, high = codes.min(0), codes.max(0)
  right, up = (a + (b - a) * share for a, b in zip(low, high))
  np.testing.assert_allclose(plane[7, :, 0], right, atol=1e-4)
  np.testing.assert_allclose(plane[:, 3, 1], up[::-1], atol=1e-4)
  drawn = quickly(stage.sample, state, batch, jax.random.key(1))
  np.testing.assert_allclose(drawn["image"], images_of(drawn["latent"]), atol=1e-5)
  assert 0.7 < drawn["latent"].std() < 1.3  # the prior's, whatever the codes'


# ------------------------------------------------------------------------------- draws and the data


def test_acceptance_of_draws():
  """Real points at 0, 1, ..., 19 are 1 apart: half a step passes, three steps do not."""
  rows = lambda *x: {"image": 2 * np.array(x, np.float64).reshape(-1, 1, 1, 1) - 1}
  real = rows(*range(20))
  found = reconstruction.accepted(rows(2.5, 7.0, 22.0, -3.0, 10.25), real, Info({}))
  assert found["accepted"] == 3 / 5
  assert found["nearest_ratio"] == pytest.approx(0.5)  # of 0, 0.25, 0.5, 3, 3
  x = np.random.default_rng(0).standard_normal((2_400, 3, 1, 1))
  same = reconstruction.accepted({"image": x[:1_200]}, {"image": x[1_200:]}, Info({}))
  assert same["accepted"] == pytest.approx(0.95, abs=0.02)
  assert same["nearest_ratio"] == pytest.approx(1, abs=0.05)
  with pytest.raises(ValueError, match="two real ones at least"):
    reconstruction.accepted(rows(1), rows(1), Info({}))


# --------------------------------------------------------------------------------------- learning


def run(folder, variant, **changes):
  return train(config_of(variant, **changes), folder)


@pytest.mark.learning
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_small_goes_far_below_two_components(tmp_path, seed):
  found = run(tmp_path / "run", "small", seed=seed)
  assert found["mse"] < 0.75 * found["pca_mse"], found


@pytest.mark.learning
def test_an_encoder_that_stands_still_does_not(tmp_path, monkeypatch):
  """The decoder alone learns from fixed random codes."""
  true = core.minimize

  def of_decoder(state, tx, loss_fn, names, batch, **options):
    still = state.params["enc"]
    state, found = true(state, tx, loss_fn, names, batch, **options)
    return state.replace(params={**state.params, "enc": still}), found

  monkeypatch.setattr(core, "minimize", of_decoder)
  found = run(tmp_path / "run", "small")
  assert found["mse"] > 0.75 * found["pca_mse"], found
