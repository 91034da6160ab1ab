"""Samplers: every variant fits its law, and the real points do too."""

import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import quickly

from gm import loop
from gm.data import points
from gm.methods import sampling
from gm.probability import sampling as probability

KEY = jax.random.key(0)


def config_of(variant, **changes):
  config = importlib.import_module("configs.sampling").get_config(variant)
  config.update_from_flattened_dict({"num_devices": 1, **changes})
  return config


def found(variant, **changes):
  """The stage, 10,000 samples and the metrics, against the test split."""
  config = config_of(variant, **changes)
  (stage,) = sampling.stages(config, points.info(config.data))
  real = {"point": jnp.asarray(points.load(config.data, "test").arrays["point"])}
  state = quickly(stage.init, KEY, real, None)
  assert stage.num_steps == 0 and not state.params and int(state.step) == 0

  @jax.jit
  def both(state, batch):
    found = stage.conclude(stage.evaluate(state, batch, None), KEY)
    return stage.sample(state, batch, KEY)["point"], found

  x, metrics = both(state, real)
  assert x.shape == real["point"].shape and x.dtype == jnp.float32
  return stage, np.asarray(x), np.asarray(real["point"]), metrics


def two_sample_ks(x, y):
  both = np.sort(np.concatenate([x, y]))
  cdf = lambda z: np.searchsorted(np.sort(z), both, side="right") / len(z)
  return np.abs(cdf(x) - cdf(y)).max()


@pytest.mark.parametrize("variant", ["small", "tabulated", "rejection", "rejection_constant"])
def test_the_line_is_followed(variant):
  scale = 0.5 if variant == "small" else 1.0
  _, x, real, metrics = found(variant, **{"data.scale": scale})
  accepted = {"rejection": 2 / 3, "rejection_constant": 1 / 3}.get(variant, 1.0)
  np.testing.assert_allclose(metrics["ks_limit"], 1.63 / np.sqrt(200_000 * accepted), rtol=0.01)
  assert metrics["ks"] < metrics["ks_limit"] and metrics["real_ks"] < 1.95 / 100
  assert two_sample_ks(x[:, 0], real[:, 0]) < 1.95 * np.sqrt(2) / 100  # the 0.1 % point
  assert abs(x.mean() - 1.5 * scale) < 4 * scale * np.sqrt(0.15) / 100
  if variant.startswith("rejection"):
    np.testing.assert_allclose(metrics["exact_acceptance"], accepted, rtol=1e-6)
    assert abs(metrics["acceptance"] - accepted) < 0.004 and metrics["violations"] == 0
  else:
    assert set(metrics) == {"ks", "ks_limit", "real_ks"}


def test_the_table_is_followed():
  stage, x, real, metrics = found("discrete", **{"data.scale": 2.0})
  assert metrics["chi2"] < 26.12 and metrics["p_value"] > 1e-3 < metrics["real_p_value"]
  counts = [np.histogram2d(*v.T / 2, bins=3, range=[[-0.5, 2.5]] * 2)[0] for v in (x, real)]
  want = 10_000 * np.array(points.TABLE)
  for n in counts:
    assert n.sum() == 10_000 and ((n - want) ** 2 / want).sum() < 26.12  # rows are rows
  picture = stage.show(None, None, KEY)["law"]
  assert picture["draws"].dtype == jnp.int32 and picture["x"].shape == (9,)
  np.testing.assert_allclose(picture["probability"], np.array(points.TABLE).ravel(), rtol=1e-6)


def test_the_normal_is_followed_and_the_path_has_less_variance():
  stage, x, real, metrics = found("reparam")
  for v in (x, real):
    np.testing.assert_allclose(v.mean(0), [0.5, -1.0], atol=0.05)
    np.testing.assert_allclose(np.cov(v.T), [[1.5, 0.4], [0.4, 0.8]], atol=0.09)  # 4 errors
  assert metrics["covariance_error"] < 4 * 1.5 * np.sqrt(2 / 200_000)
  assert metrics["real_covariance_error"] < 4 * 1.5 * np.sqrt(2 / 10_000)
  # grad |x|^2 = 2 x, so the sum of variances is 4 tr S
  np.testing.assert_allclose(metrics["pathwise_variance"], 4 * 2.3, rtol=0.02)
  assert metrics["score_variance"] > 1.5 * metrics["pathwise_variance"]
  for kind in ("pathwise", "score"):
    assert metrics[f"{kind}_error"] < 4 * np.sqrt(metrics[f"{kind}_variance"] / 200_000)
  first = stage.show(None, None, KEY)["first"]
  np.testing.assert_allclose(np.trapezoid(first["density"], first["x"]), 1, atol=1e-3)


def test_what_does_not_fit_is_named():
  for changes, message in [
    ({"model.method": "magic"}, r"--config\.model\.method='magic'.*discrete, inverse"),
    ({"data.name": "ring"}, r"inverse draws from the law quadratic, .*--config\.data\.name=quad"),
    ({"data.source": "embedded"}, r"--config\.data\.source=points"),
    ({"model.method": "rejection", "model.bound": "none"}, r"--config\.model\.bound='none'"),
  ]:
    config = config_of("small", **changes)
    with pytest.raises(ValueError, match=message):
      sampling.stages(config, None)


def test_a_run_leaves_samples_a_picture_and_its_numbers(tmp_path):
  loop.train(config_of("test"), str(tmp_path))
  for name in ("samples/sample_00000000.png", "samples/sample_00000000_law.png", "report.html"):
    assert (tmp_path / name).stat().st_size > 1_000, name
  metrics = json.loads((tmp_path / "eval.json").read_text())["metrics"]
  assert metrics["ks"] < 1.95 / np.sqrt(64)  # the 0.1 % point


# ------------------------------------------------------------------------------------- many draws


def measured(folder, variant, seed):
  loop.train(config_of(variant, seed=seed), str(folder))
  return json.loads((folder / "eval.json").read_text())["metrics"]


@pytest.mark.learning
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("variant", ["small", "tabulated", "rejection", "rejection_constant"])
def test_runs_follow_the_line(tmp_path, variant, seed):
  found = measured(tmp_path / "run", variant, seed)
  assert found["ks"] < 1.95 / 1.63 * found["ks_limit"], found  # the 0.1 % point


@pytest.mark.learning
def test_a_sampler_of_another_law_is_found_out(tmp_path, monkeypatch):
  """The root of u instead of its cube root: draws of x / 2 on [0, 2]."""
  monkeypatch.setattr(probability, "quadratic_inverse_cdf", lambda u: 2 * jnp.sqrt(u))
  found = measured(tmp_path / "run", "small", 0)
  assert found["ks"] > 10 * found["ks_limit"], found
