"""CVAE: the bound by hand, limits, both priors, who is told labels, and that they are obeyed."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import described, train
from scipy.special import logsumexp

from gm import job, sampling
from gm.methods import cvae

QUICK = {"xla_backend_optimization_level": 0}
KEY = jax.random.key(2)
LABEL = jnp.array([3, 3, 1, 4, 1, 5, 9, 2])


def config_of(variant, name="cvae", **changes):
  config = importlib.import_module(f"configs.{name}").get_config(variant)
  config.update_from_flattened_dict({"num_devices": 1, **changes})
  return config


@functools.cache
def begin(changes=()):
  """The stage of a tiny model, a batch of 8 and a state of random parameters."""
  made = job.prepare(config_of("test", **{"data.image_size": 4, **dict(changes)}))
  image = jnp.tanh(jax.random.normal(jax.random.key(0), (8, 4, 4, 1)))
  rng = np.random.default_rng(0)
  random = lambda s: jnp.asarray(rng.normal(0, 0.4, s.shape), s.dtype)
  state = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), made.templates[0])
  state = state.replace(params=jax.tree.map(random, state.params))
  return made.stages[0], {"image": image, "label": LABEL}, state


def moved(stage, state, batch):
  return jax.jit(stage.step, compiler_options=QUICK)(state, batch, KEY)[1]


def net(params, h):
  layers = [jax.tree.map(np.asarray, params[n]) for n in sorted(params)]
  for layer in layers[:-1]:
    h = np.tanh(h @ layer["kernel"] + layer["bias"])
  return h @ layers[-1]["kernel"] + layers[-1]["bias"]


@pytest.mark.parametrize("prior", ["plain", "learned"])
def test_the_bound_by_hand(prior):
  """Pixels and noise as a step draws them, labels joined to what each network is given."""
  stage, batch, state = begin((("model.prior", prior),))
  found = moved(stage, state, batch)
  k_pixels, k_eps = jax.random.split(KEY)
  words = np.asarray(jax.random.bits(k_pixels, (8, 8)))
  x = (np.asarray(batch["image"]).reshape(8, -1) + 1) / 2
  x = (np.concatenate([words >> 16, words & 0xFFFF], axis=1) < x * 65_536).astype(np.float64)
  y, p = np.eye(10)[np.asarray(LABEL)], state.params
  mean, log_var = np.split(net(p["enc"], np.c_[x, y]), 2, 1)
  z = mean + np.exp(log_var / 2) * np.asarray(jax.random.normal(k_eps, (8, 2)))
  logits = net(p["dec"], np.c_[z, y])
  distortion = (np.logaddexp(0, logits) - x * logits).sum(1).mean()
  m, v = np.split(net(p["prior"], y), 2, 1) if prior == "learned" else (0 * z, 0 * z)
  kl = 0.5 * (np.exp(log_var - v) - 1 + v - log_var + (mean - m) ** 2 / np.exp(v)).sum(1).mean()
  np.testing.assert_allclose(found["distortion"], distortion, rtol=1e-5)
  np.testing.assert_allclose(found["rate"], kl, rtol=1e-5)
  slot = "enc+dec+prior" if prior == "learned" else "enc+dec"
  np.testing.assert_allclose(found[f"loss_{slot}"], distortion + kl, rtol=1e-5)


def test_with_one_constant_label_it_is_the_vae():
  """The label's weights are then a bias: zeros make it the VAE of the same parameters."""
  made = job.prepare(config_of("test", "vae", **{"data.image_size": 4}))
  stage, batch, state = begin((("model.prior", "plain"),))

  def first_layers(change):  # what changes is the first kernel of each network, of so many inputs
    params = jax.tree.map(lambda w: w, state.params)
    for n, inputs in (("enc", 16), ("dec", 2)):
      params[n]["Dense_0"]["kernel"] = change(params[n]["Dense_0"]["kernel"], inputs)
    return params

  vae_state = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), made.templates[0])
  vae_state = vae_state.replace(params=first_layers(lambda w, inputs: w[:inputs]))
  told = first_layers(lambda w, inputs: w.at[inputs:].set(0.0))
  a = moved(made.stages[0], vae_state, batch)
  b = moved(stage, state.replace(params=told), batch)
  np.testing.assert_allclose(a["loss_enc+dec"], b["loss_enc+dec"], rtol=1e-6)
  np.testing.assert_allclose(a["rate"], b["rate"], rtol=1e-6)


def hears(monkeypatch=None, deaf=None):
  """Which parts of the bound change with the labels, for random networks."""
  if deaf:  # a network that is given zeros for labels
    true = cvae.join
    wide = {"enc": 16, "dec": 2}[deaf]
    monkeypatch.setattr(cvae, "join", lambda a, y: true(a, 0 * y if a.shape[-1] == wide else y))
  stage, batch, state = begin((("model.prior", "plain"),))
  one = moved(stage, state, batch)
  other = moved(stage, state, {**batch, "label": (LABEL + 1) % 10})
  return {n for n in ("rate", "distortion") if abs(one[n] - other[n]) > 1e-3}


def test_both_networks_are_told_the_label(monkeypatch):
  """The rate is the encoder's alone: with only the decoder told it does not change with labels."""
  assert hears() == {"rate", "distortion"}
  begin.cache_clear()
  assert hears(monkeypatch, deaf="enc") == {"distortion"}
  begin.cache_clear()


def test_nll_is_of_the_label_and_its_loss_of_the_next_one():
  """Where the decoder sees y alone: log p(x|y) is that of its pixels, and q is the prior."""
  changes = (("model.eval_k", 8), ("model.dec_widths", ()))
  stage, batch, state = begin(changes)
  p = jax.tree.map(jnp.zeros_like, state.params)
  rows = jnp.asarray(np.random.default_rng(0).normal(size=(10, 16)), jnp.float32)
  p["dec"]["Dense_0"]["kernel"] = p["dec"]["Dense_0"]["kernel"].at[2:].set(rows)
  batch = {**batch, "image": jnp.sign(batch["image"])}
  found = jax.jit(stage.evaluate, compiler_options=QUICK)(state.replace(params=p), batch, KEY)
  x = (np.asarray(batch["image"]).reshape(8, -1) + 1) / 2
  nll = lambda y: (np.logaddexp(0, rows[y]) - x * rows[y]).sum(1).mean()
  right, wrong = nll(np.asarray(LABEL)), nll((np.asarray(LABEL) + 1) % 10)
  np.testing.assert_allclose(found["nll"], right, rtol=1e-5)
  np.testing.assert_allclose(-found["elbo"], right, rtol=1e-5)
  np.testing.assert_allclose(found["wrong_label_loss"], wrong - right, rtol=1e-3)


def test_importance_weights_are_of_the_learned_prior():
  """Against a sum over many draws of that prior, which an encoder of zeros is not."""
  changes = (("model.eval_k", 4_000), ("model.eval_chunk", 500), ("model.prior", "learned"))
  stage, batch, state = begin(changes)
  batch = {**batch, "image": jnp.sign(batch["image"])}
  p = {**state.params, "enc": jax.tree.map(jnp.zeros_like, state.params["enc"])}
  found = jax.jit(stage.evaluate, compiler_options=QUICK)(state.replace(params=p), batch, KEY)
  y = np.eye(10)[np.asarray(LABEL)]
  mean, log_var = np.split(net(p["prior"], y), 2, 1)
  z = mean + np.exp(log_var / 2) * np.random.default_rng(0).normal(size=(20_000, 8, 2))
  logits = net(p["dec"], np.concatenate([z, np.broadcast_to(y, (20_000, 8, 10))], 2))
  x = (np.asarray(batch["image"]).reshape(8, -1) + 1) / 2
  exact = logsumexp((x * logits - np.logaddexp(0, logits)).sum(2), 0) - np.log(20_000)
  np.testing.assert_allclose(found["nll"], -exact.mean(), atol=0.02)


def test_paper_has_its_sizes():
  (stage,) = described("cvae", "paper")
  assert stage["params"]["enc"] == 794 * 200 + 200 + 40_200 + 2 * 10_050
  assert stage["params"]["dec"] == 60 * 200 + 200 + 40_200 + 157_584
  assert stage["params"]["prior"] == 10 * 100 + 100 + 101 * 100


def test_data_without_labels_are_refused():
  config = config_of("test", **{"data.source": "folder", "data.channels": 1, "data.image_size": 28})
  with pytest.raises(ValueError, match=r"folder has none here: set --config.data.num_classes"):
    job.plan(config)


# ----------------------------------------------------------------------------------- that it learns


def agreement(workdir, num=1_000):
  """Share of samples, made for each label in turn, whose nearest training image has that label."""
  made = sampling.draw(str(workdir), seeds=range(num // 10), labels=[str(i) for i in range(10)])
  config = config_of("small")
  source = job.load(job.prepare(config), 0, "train", shuffle=False, whole=True)
  real = source.decode(source.batch(0, source.num_examples))
  flat = lambda x: np.asarray(x).reshape(len(x), -1)
  gap = ((flat(made["image"])[:, None] - flat(real["image"])) ** 2).sum(-1)
  return float((np.asarray(real["label"])[gap.argmin(1)] == made["label"]).mean())


@pytest.mark.learning
@pytest.mark.parametrize("prior", ["plain", "learned"])
def test_small_obeys_its_labels(tmp_path, prior):
  """Of 1,000 samples more than 95 % look like their label; a wrong one costs at least 8 nats."""
  found = train(config_of("small", **{"model.prior": prior}), tmp_path / "run")
  assert 18.0 < found["nll"] < 21.0 and found["wrong_label_loss"] >= 8.0, found
  assert agreement(tmp_path / "run") > 0.95


@pytest.mark.learning
def test_large_digits_are_what_was_asked_for(tmp_path):
  """By a classifier of this project, of 10,000 samples."""
  found = train(config_of("mnist10k"), tmp_path / "run")
  assert found["label_agreement"] > 0.8 and found["wrong_label_loss"] >= 8.0, found
