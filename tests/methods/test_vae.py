"""VAE: the bound against exact likelihoods, its parts, sizes, and that it learns."""

import importlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import described, quickly, train

from gm import core, errors, feed, job, optim, steps
from gm.data import installed
from gm.nets import mlp
from gm.probability import evidence_study, likelihood, linear_gaussian


def config_of(variant, **changes):
  config = importlib.import_module("configs.vae").get_config(variant)
  config.update_from_flattened_dict({"num_devices": 1, **changes})
  return config


QUICK = {"xla_backend_optimization_level": 0}  # compiles faster, runs slower


# ------------------------------------------------- the linear-Gaussian model, exactly, in float64

W = np.array([[1, 0], [0.8, 0.5], [0, 1.2], [-0.6, 0.4], [0.3, -0.9]])
MU, S2 = np.array([0.1, -0.2, 0.3, 0, 0.5]), 0.25
X = np.array([1, 0, 0.5, -0.3, 0.2])
LOG_PX = -4.279372658473659


def posterior():
  precision = W.T @ W / S2 + np.eye(2)
  cov = np.linalg.inv(precision)
  return cov @ W.T @ (X - MU) / S2, cov, precision


def log_weight(z, mean, log_var):
  """Weight log p(x, z) - log q(z|x) through the project's own densities; z [..., 2]."""
  log_px = likelihood.gaussian_log_prob(X, z @ W.T + MU, 0.5 * np.log(S2), event_ndim=1)
  log_q = likelihood.gaussian_log_prob(z, mean, 0.5 * log_var, event_ndim=1)
  return log_px + likelihood.standard_normal_log_prob(z, event_ndim=1) - log_q


def elbo(mean, cov):
  """Closed form for q = N(mean, cov); the expectation of the squared error written out."""
  r = X - MU - W @ mean
  likelihood = -0.5 * (5 * np.log(2 * np.pi * S2) + (r @ r + np.trace(W @ cov @ W.T)) / S2)
  kl = 0.5 * (np.trace(cov) + mean @ mean - 2 - np.linalg.slogdet(cov)[1])
  return likelihood - kl


@pytest.fixture
def float64():
  with jax.enable_x64(True):
    yield


def test_density_of_the_fixture(float64):
  """Bayes: log p(x) = log p(x, z) - log p(z|x) for any z, with the exact posterior."""
  mean, cov, _ = posterior()
  np.testing.assert_allclose(mean, [0.50026, 0.18729], atol=5e-6)
  rng = np.random.default_rng(0)
  for z in rng.standard_normal((5, 2)):
    joint = log_weight(z, np.zeros(2), np.zeros(2)) + likelihood.standard_normal_log_prob(
      z, event_ndim=1
    )
    d = z - mean
    log_post = -0.5 * (
      2 * np.log(2 * np.pi) + np.linalg.slogdet(cov)[1] + d @ np.linalg.inv(cov) @ d
    )
    np.testing.assert_allclose(joint - log_post, LOG_PX, atol=1e-8)


def test_bound_and_gap_of_the_fixture(float64):
  mean, cov, precision = posterior()
  best = np.diag(1 / np.diag(precision))
  np.testing.assert_allclose(LOG_PX - elbo(mean, best), 0.000889268021604, atol=1e-8)
  np.testing.assert_allclose(elbo(np.zeros(2), np.eye(2)), -12.768956763223638, atol=1e-8)
  np.testing.assert_allclose(LOG_PX - elbo(mean, cov), 0, atol=1e-10)
  # the project's rate and distortion give the same bound: a Monte Carlo mean of log weights
  z = jax.random.normal(jax.random.key(0), (400_000, 2), jnp.float64)
  w = log_weight(z, np.zeros(2), np.zeros(2))
  np.testing.assert_allclose(w.mean(), -12.768956763223638, atol=4 * w.std() / np.sqrt(len(z)))


def test_gap_is_the_divergence_for_any_q(float64):
  mean, cov, precision = posterior()
  rng = np.random.default_rng(1)
  for _ in range(100):
    m, v = rng.standard_normal(2), np.exp(rng.standard_normal(2))
    d = m - mean
    log_det = np.linalg.slogdet(cov)[1] - np.log(v).sum()
    kl = 0.5 * (np.trace(precision @ np.diag(v)) + d @ precision @ d - 2 + log_det)
    np.testing.assert_allclose(LOG_PX - elbo(m, np.diag(v)), kl, atol=1e-10)
    np.testing.assert_allclose(
      likelihood.kl_gaussian(m[None], np.log(v)[None])[0],
      0.5 * (v.sum() + m @ m - 2 - np.log(v).sum()),
      atol=1e-10,
    )


def test_importance_weighted_bound_rises_to_the_likelihood(float64):
  mean, _, precision = posterior()
  log_var = -np.log(np.diag(precision))

  def bound(k, m, lv, repeats):
    eps = jax.random.normal(jax.random.key(k), (repeats, k, 2), jnp.float64)
    w = log_weight(m + jnp.exp(0.5 * lv) * eps, m, lv)
    return likelihood.importance_weighted_bound(w, axis=1).mean()

  repeats = {1: 200_000, 5: 400_000, 20: 100_000, 100: 20_000}
  rising = [bound(k, np.zeros(2), np.zeros(2), n) for k, n in repeats.items()]
  np.testing.assert_allclose(rising[1:], [-5.374, -4.447, -4.308], atol=0.02)
  assert all(a < b for a, b in itertools.pairwise(rising))
  np.testing.assert_allclose(bound(1000, mean, log_var, 200), LOG_PX, atol=0.01)


# ------------------------------------------------------------------------------- the method itself


def test_paper_has_the_published_sizes():
  (stage,) = described("vae", "paper")
  assert sum(stage["params"].values()) == 425_284
  assert stage["num_steps"] == 3280 * 3000


def test_loss_is_the_sum_of_its_parts_and_sums_over_pixels():
  """At a decoder that says 1/2 everywhere the distortion is 784 log 2, whatever the data."""
  made = job.prepare(config_of("test"))
  batch = {"image": jnp.tanh(jax.random.normal(jax.random.key(0), (8, 28, 28, 1)))}
  state = quickly(made.stages[0].init, jax.random.key(1), batch, None)
  state = state.replace(
    params={**state.params, "dec": jax.tree.map(jnp.zeros_like, state.params["dec"])}
  )
  _, found = quickly(made.stages[0].step, state, batch, jax.random.key(2))
  np.testing.assert_allclose(found["distortion"], 784 * np.log(2), rtol=1e-6)
  np.testing.assert_allclose(found["loss_enc+dec"], found["distortion"] + found["rate"], rtol=1e-6)
  zero = jax.tree.map(jnp.zeros_like, state.params["enc"])
  state = state.replace(params={**state.params, "enc": zero})
  _, found = quickly(made.stages[0].step, state, batch, jax.random.key(2))
  assert found["rate"] == 0.0  # q is the prior


def test_rate_is_the_closed_form():
  """With mean (1, -2) and std 0.7 in two latents: 1/2 (5 + 2 0.49 - 2 - 2 log 0.49)."""
  made = job.prepare(config_of("test"))
  batch = {"image": jnp.zeros((8, 28, 28, 1))}
  state = quickly(made.stages[0].init, jax.random.key(1), batch, None)
  enc = jax.tree.map(jnp.zeros_like, state.params["enc"])
  last = sorted(enc)[-1]
  enc[last]["bias"] = jnp.array([1.0, -2.0, *[2 * np.log(0.7)] * 2])
  _, found = quickly(
    made.stages[0].step,
    state.replace(params={**state.params, "enc": enc}),
    batch,
    jax.random.key(2),
  )
  exact = 0.5 * (5 + 2 * 0.49 - 2 - 2 * np.log(0.49))
  np.testing.assert_allclose(found["rate"], exact, rtol=1e-5)


def test_importance_weighting_is_no_worse_than_the_bound():
  made = job.prepare(config_of("test", **{"model.eval_k": 64, "model.eval_chunk": 16}))
  source = job.load(made, 0, "test", shuffle=False)
  batch = jax.tree.map(jnp.asarray, source.decode(source.batch(0, 64)))
  state = quickly(made.stages[0].init, jax.random.key(1), batch, None)
  found = quickly(made.stages[0].evaluate, state, batch, jax.random.key(2))
  assert found["nll"] < -found["elbo"]
  np.testing.assert_allclose(-found["elbo"], found["distortion"] + found["rate"], rtol=1e-6)


def known_linear(made, num=1_000):
  """A batch, a state whose posterior is exact, log p(x) of the batch, W, s^2, mean of q and its
  variance, and x - mu: W's columns at right angles make the posterior diagonal, and an encoder
  without hidden layers can hold it.
  """
  rng, s2 = np.random.default_rng(0), 0.3
  batch = {"image": jnp.asarray(rng.uniform(-1, 1, (num, 8, 8, 1)), jnp.float32)}
  x = np.asarray(batch["image"], np.float64).reshape(num, 64) / 2 + 0.5
  mu = rng.normal(size=64)
  w = np.linalg.qr(rng.normal(size=(64, 2)))[0] * [1.5, 0.7]
  var = 1 / (np.array([1.5, 0.7]) ** 2 / s2 + 1)
  to_mean = w * var / s2
  enc = {"Dense_0": {"kernel": to_mean, "bias": -mu @ to_mean}, "log_var": np.log(var)}
  dec = {"Dense_0": {"kernel": w.T, "bias": mu}}
  params = {"enc": enc, "dec": dec, "std": {"log_std": np.log(s2) / 2}}
  params = jax.tree.map(lambda p, new: jnp.asarray(new, p.dtype), made.templates[0].params, params)
  state = core.State(step=jnp.zeros((), jnp.int32), params=params, opt={})
  r, cov = x - mu, w @ w.T + s2 * np.eye(64)
  log_det = np.linalg.slogdet(2 * np.pi * cov)[1]
  exact = -0.5 * (np.einsum("ni,ij,nj->n", r, np.linalg.inv(cov), r) + log_det)
  return batch, state, exact, (w, s2, r @ to_mean, var, r)


def test_nll_is_exact_where_the_posterior_is():
  """Every weight is then p(x), whatever is drawn: x = W z + mu + s eps."""
  made = job.prepare(config_of("linear", **{"model.z_dim": 2, "model.eval_k": 3}))
  batch, state, exact, (w, s2, mean, var, r) = known_linear(made)
  evaluate = jax.jit(made.stages[0].evaluate, compiler_options=QUICK)
  found = evaluate(state, batch, jax.random.key(1))
  np.testing.assert_allclose(found["log_likelihood"], exact.mean(), rtol=1e-5)
  np.testing.assert_allclose(found["nll"], -exact.mean(), rtol=1e-5)
  rate = 0.5 * (mean**2 + var - 1 - np.log(var)).sum(1).mean()
  np.testing.assert_allclose(found["rate"], rate, rtol=1e-4)
  # of one draw for each example, which differs by 0.7 from draw to draw
  errors = ((r - mean @ w.T) ** 2).sum(1).mean() + (w**2 * var).sum()
  distortion = 0.5 * errors / s2 + 32 * np.log(2 * np.pi * s2)
  np.testing.assert_allclose(found["distortion"], distortion, atol=4 * 0.7 / np.sqrt(1_000))


FEW = {"model.chains": 6, "model.temperatures": 100, "model.leaps": 4, "model.prior_exponent": 3}


def test_three_estimates_of_a_linear_decoder_beside_its_exact_evidence():
  made = job.prepare(config_of("linear", **{"model.z_dim": 2, "model.evidence": 5, **FEW}))
  batch, state, exact, _ = known_linear(made, 50)
  evaluate = jax.jit(made.stages[0].evaluate, compiler_options=QUICK)
  found, want = evaluate(state, batch, jax.random.key(1)), exact[:5].mean()
  for name, error in (("importance", 1e-3), ("elbo", 1e-3), ("prior", 0.5), ("annealed", 0.5)):
    np.testing.assert_allclose(found[f"evidence_{name}"], want, atol=error, err_msg=name)
  worse = jax.tree.map(jnp.copy, state.params)
  worse["enc"]["log_var"] += 1.0  # q too wide: then the bound is loose and the estimate is not
  found = evaluate(state.replace(params=worse), batch, jax.random.key(1))
  assert found["evidence_elbo"] < want - 0.5
  np.testing.assert_allclose(found["evidence_importance"], want, atol=0.2)


def test_curves_of_the_estimates():
  config = config_of("test", **{"model.evidence_shown": 2, **FEW, "model.temperatures": 3})
  with config.unlocked():
    config.data.source, config.data.name = "installed", "digits"
  made = job.prepare(config)
  source = job.load(made, 0, "test", shuffle=False)
  batch = source.decode(source.batch(0, 200))
  state = quickly(made.stages[0].init, jax.random.key(0), batch, None)
  show = jax.jit(lambda *args: made.stages[0].show(*args), compiler_options=QUICK)
  found = show(state, batch, jax.random.key(1))
  curves = {n: v for n, v in found.items() if n.startswith("evidence_")}
  assert set(curves) == {f"evidence_{n}" for n in ("estimate", "bias", "spread", "latents")}
  estimate, latents = curves["evidence_estimate"], curves["evidence_latents"]
  assert estimate[evidence_study.DRAWS["estimate"]].tolist() == [0, 1, 2, 3]
  assert np.isfinite(estimate["prior"]).all()
  assert latents[evidence_study.LATENTS].tolist() == [2, 5, 10, 20, 50]
  assert all(np.isfinite(v).all() for v in latents.values())


@pytest.mark.learning
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_plain_draws_miss_digits_where_weighted_ones_do_not(tmp_path, seed):
  """With 20 latents: 10,000 draws of the prior, 500 of q, beside annealed importance sampling.

  The prior's are 45 nats off in each of three seeds, q's 0.7, 1.0, 0.5, and its ELBO 4.3 to 4.9.
  """
  found = train(config_of("evidence", seed=seed), tmp_path / "run")
  error = lambda name: found[f"evidence_{name}"] - found["evidence_annealed"]
  assert error("prior") < -10 and abs(error("importance")) < 1.5, found
  assert error("elbo") < error("importance"), found


def test_pixels_are_drawn_with_their_own_probabilities():
  """A decoder that gives 1 the logit 1 everywhere loses softplus(1) - x in each pixel."""
  made = job.prepare(config_of("test"))
  state = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), made.templates[0])
  state.params["dec"]["Dense_1"]["bias"] = jnp.ones(784)
  step = jax.jit(lambda *args: made.stages[0].step(*args)[1], compiler_options=QUICK)
  for share, error in ((0.0, 1e-6), (0.25, 0.01), (1.0, 1e-6)):
    batch = {"image": jnp.full((64, 28, 28, 1), 2 * share - 1)}
    found = step(state, batch, jax.random.key(2))
    lost = np.log1p(np.e) - found["distortion"] / 784
    np.testing.assert_allclose(lost, share, atol=error + 1e-6)


def test_the_decoder_starts_at_the_marginals_of_the_pixels():
  x = np.random.default_rng(0).uniform(size=(8, 28, 28, 1)).astype(np.float32)
  made = job.prepare(config_of("test"))
  state = quickly(made.stages[0].init, jax.random.key(0), {"image": jnp.asarray(2 * x - 1)}, None)
  bias = state.params["dec"]["Dense_1"]["bias"]
  np.testing.assert_allclose(jax.nn.sigmoid(bias), x.mean(0).ravel(), atol=1e-5)


def test_the_rate_of_paper_falls_in_legs_of_three_to_the_i_epochs(monkeypatch):
  """From 1e-3 by 10^(-1/7) each, rounded as published; an epoch has 3,000 steps."""
  rates, true = [], optim.adam
  monkeypatch.setattr(optim, "adam", lambda lr, **k: rates.append((lr, k)) or true(lr, **k))
  job.prepare(config_of("paper"))
  ((rate, options),) = rates
  assert options == {"eps": 1e-4}
  start = 0
  for i in range(8):
    end = start + 3_000 * 3**i
    for step in (start, end - 1):
      np.testing.assert_allclose(rate(step), 1e-3 * 10 ** (-i / 7), rtol=0.02)
    start = end
  assert start == 3_280 * 3_000


def test_gaussian_likelihood_keeps_its_constant():
  """A decoder that is right to the pixel has distortion 784/2 log(2 pi std^2)."""
  made = job.prepare(config_of("test", **{"model.likelihood": "gaussian", "model.std": 0.5}))
  batch = {"image": jnp.full((8, 28, 28, 1), -1.0)}  # pixels of 0 in [0, 1]
  state = quickly(made.stages[0].init, jax.random.key(1), batch, None)
  dec = jax.tree.map(jnp.zeros_like, state.params["dec"])
  _, found = quickly(
    made.stages[0].step,
    state.replace(params={**state.params, "dec": dec}),
    batch,
    jax.random.key(2),
  )
  np.testing.assert_allclose(found["distortion"], 392 * np.log(2 * np.pi * 0.25), rtol=1e-5)


def likelihood_of_grey(config, log_std, pixel=0.5):
  """Distortion of one grey picture under a decoder that says 0 everywhere, with this log s."""
  made = job.prepare(config)
  batch = {"image": jnp.full((8, 28, 28, 1), 2 * pixel - 1)}
  state = quickly(made.stages[0].init, jax.random.key(1), batch, None)
  dec = jax.tree.map(jnp.zeros_like, state.params["dec"])
  params = {**state.params, "dec": dec}
  if "std" in params:
    params["std"] = {"log_std": jnp.float32(log_std)}
  else:
    bias = dec[sorted(dec)[-1]]["bias"]
    dec[sorted(dec)[-1]]["bias"] = bias.at[len(bias) // 2 :].set(log_std)
  return float(
    quickly(made.stages[0].step, state.replace(params=params), batch, jax.random.key(2))[1][
      "distortion"
    ]
  )


def test_a_learned_deviation_is_best_at_the_root_of_the_squared_error():
  """Then the distortion is 784/2 (log 2 pi s^2 + 1), s^2 the mean squared error, here 1/4."""
  config = config_of("test", **{"model.likelihood": "gaussian_shared"})
  best = likelihood_of_grey(config, np.log(0.5))
  np.testing.assert_allclose(best, 392 * (np.log(2 * np.pi * 0.25) + 1), rtol=1e-5)
  assert all(likelihood_of_grey(config, np.log(0.5) + d) > best + 1 for d in (-0.1, 0.1))


def test_a_deviation_of_every_pixel_is_bounded_below():
  config = config_of("test", **{"model.likelihood": "gaussian_pixel"})
  expected = 784 * (0.5 * np.log(2 * np.pi) + 0.3 + 0.125 * np.exp(-0.6))
  np.testing.assert_allclose(likelihood_of_grey(config, 0.3), expected, rtol=1e-5)
  expected = 784 * (0.5 * np.log(2 * np.pi) - 5)  # a picture that is right to the pixel
  np.testing.assert_allclose(likelihood_of_grey(config, -9.0, pixel=0.0), expected, rtol=1e-5)


def test_an_unknown_likelihood_is_refused():
  with pytest.raises(errors.UserError, match=r"--config\.model\.likelihood"):
    job.prepare(config_of("test", **{"model.likelihood": "laplace"}))


def test_the_rate_is_information_and_marginal_divergence():
  """Information is 0 where q(z|x) is the same for all x, and log N where no two overlap."""
  made = job.prepare(config_of("test", **{"model.one_var": True}))
  batch = {"image": jnp.tanh(jax.random.normal(jax.random.key(0), (8, 28, 28, 1)))}
  state = quickly(made.stages[0].init, jax.random.key(1), batch, None)
  evaluate = jax.jit(made.stages[0].evaluate)
  for scale, information in ((0.0, 0.0), (1e3, np.log(8))):
    enc = jax.tree.map(lambda w, scale=scale: scale * w, state.params["enc"])
    found = evaluate(state.replace(params={**state.params, "enc": enc}), batch, jax.random.key(2))
    whole = made.stages[0].conclude(found, None)
    np.testing.assert_allclose(whole["mutual_information"], information, atol=1e-4)
    total = whole["mutual_information"] + whole["marginal_kl"]
    np.testing.assert_allclose(total, found["rate"], rtol=1e-5)


@pytest.mark.parametrize(("num_latents", "optimum"), [(2, 0.005707), (8, 14.209788)])
def test_linear_variant_reaches_the_exact_optimum(monkeypatch, num_latents, optimum):
  """On all 1,797 digits, within 0.05 nats of probabilistic PCA's optimum and never above it."""
  monkeypatch.setattr(installed, "NUM_TRAIN", 1_797)
  made = job.prepare(config_of("linear", **{"model.z_dim": num_latents}))
  source, data = feed.on_device(job.load(made, 0, "train"), made.mesh)
  x = source.arrays["image"].reshape(1_797, 64) / 16.0
  values = np.linalg.eigvalsh(np.cov(x.T, bias=True))[::-1]
  exact = linear_gaussian.maximum_log_likelihood(values, num_latents)
  np.testing.assert_allclose(exact, optimum, atol=1e-4)
  state = steps.initialise(made, 0, None, source)
  _, rows = feed.make_feed(made, 0, source)
  call, totals = steps.make_call(made, 0, source, (data, rows(0, 1)))
  for i in range(0, 6_000, 50):
    state, totals, _ = call(state, totals, data, rows(i, 50), made.keys[0]["step"], 50)
  whole = source.decode({k: a[:1_797] for k, a in source.arrays.items()})
  found = quickly(made.stages[0].evaluate, state, whole, jax.random.key(0))
  assert optimum - 0.05 < found["log_likelihood"] < optimum + 1e-3, found
  assert optimum - 0.1 < found["elbo"] < optimum + 0.05, found  # one draw of the bound for each
  residual = float(values[num_latents:].mean())
  np.testing.assert_allclose(np.exp(2 * state.params["std"]["log_std"]), residual, rtol=0.01)


def test_short_training_lowers_the_bound_and_a_wrong_sign_does_not(tmp_path, monkeypatch):
  quick = {"num_steps": 1_000, "log_every": 500, "sample_every": 0, "checkpoint_every": 0}
  quick |= {"model.eval_k": 10}  # a looser bound than of more
  found = train(config_of("small", **quick), tmp_path / "ok")
  learned = lambda found: found["nll"] < 125 and found["rate"] > 5
  assert learned(found), found
  true = likelihood.kl_gaussian
  monkeypatch.setattr(
    likelihood, "kl_gaussian", lambda *a, **k: true(*a, **k) / 784
  )  # a mean for a sum
  assert not learned(train(config_of("small", **quick), tmp_path / "mean", draw=False))


@pytest.mark.learning
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_mnist_reaches_90_nats(tmp_path, seed):
  found = train(config_of("mnist", seed=seed), tmp_path / "run")
  assert 80.0 < found["nll"] <= 90.0, found


@pytest.mark.learning
def test_small_reaches_its_number(tmp_path):
  found = train(config_of("small"), tmp_path / "run")
  assert 85.0 < found["nll"] < 104.0, found


def nearest_neighbour_accuracy(made, state):
  """Share of test digits whose nearest training digit in latent means has their label."""
  m = made.config.model
  enc = mlp.Encoder(m.z_dim, widths=m.enc_widths, activation=m.activation)
  found = {}
  for split in ("train", "test"):
    source = job.load(made, 0, split, shuffle=False, whole=True)
    batch = source.decode(source.batch(0, source.num_examples))
    x = (batch["image"].reshape(source.num_examples, -1) + 1) / 2
    found[split] = (np.asarray(enc.apply({"params": state.params["enc"]}, x)[0]), batch["label"])
  (known, labels), (mean, truth) = found["train"], found["test"]
  nearest = ((mean[:, None] - known) ** 2).sum(-1).argmin(1)
  return float((np.asarray(labels)[nearest] == np.asarray(truth)).mean())


@pytest.mark.learning
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_digits_reach_their_number(tmp_path, seed):
  """Between 20.0 and 23.0 nats, and 96 % by the nearest neighbour in latent means."""
  config = config_of("digits", seed=seed)
  found = train(config, tmp_path / "run")
  assert 20.0 < found["nll"] < 23.0, found
  made = job.prepare(config)
  assert nearest_neighbour_accuracy(made, job.restore(made, str(tmp_path / "run"), 0)) >= 0.96


@pytest.mark.learning
def test_likelihoods_order_as_they_should(tmp_path):
  """A learned s beats a fixed one in the exact same pixels, and s of every pixel beats both."""
  quick = {"num_steps": 3_000, "model.eval_k": 50, "sample_every": 0}
  nll = {
    v: train(config_of(v, **quick), tmp_path / v)["nll"]
    for v in ("gaussian", "gaussian_shared", "gaussian_pixel")
  }
  assert nll["gaussian_pixel"] < nll["gaussian_shared"] < nll["gaussian"], nll
