"""VQ-VAE: the bound, who is moved by what, the frozen first stage, samples, and that it learns."""

import functools
import json
import math

import conftest
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import on_paper, train

from gm import core, errors, evaluation, job, loop
from gm.nets import transformer
from gm.nn import quantize

config_of = functools.partial(conftest.config_of, "vqvae")
prepared = functools.partial(conftest.prepared, "vqvae")
compiled = functools.partial(conftest.compiled, "vqvae")
GREY = {"model.likelihood": "gaussian", "model.std": 0.5}
GRADIENT = {"model.codebook": "gradient", "model.restart_every": 0}


def started(**changes):
  """The stages, a state of random numbers for each, the second with the first's, and a batch."""
  made, rng = prepared(**changes), np.random.default_rng(0)
  number = lambda s: jnp.asarray(0.3 * rng.normal(size=s.shape), jnp.float32)
  image = jnp.tanh(3 * number(jnp.zeros((8, 28, 28, 1))))
  first, second = made.templates
  tokenizer = jax.tree.map(jnp.zeros_like, first).replace(params=jax.tree.map(number, first.params))
  if "book" in first.extra:
    tokenizer.extra["book"] = quantize.start(number(first.extra["book"].codes))
  prior = jax.tree.map(jnp.zeros_like, second).replace(
    params={**jax.tree.map(number, second.params), **tokenizer.params}, extra=tokenizer.extra
  )
  return made, (tokenizer, prior), {"image": image, "label": jnp.arange(8)}


# ------------------------------------------------------------------------------------------- sizes


def conv(i, o, size):
  return size**2 * i * o + o


@pytest.mark.parametrize(
  "variant, w0, w1, block, dim",
  [("paper", 256, 256, 256, 10), ("notebook", 64, 128, 32, 64)],
)
def test_sizes(variant, w0, w1, block, dim):
  made = on_paper("vqvae", variant)
  tokenizer, prior = ({n: core.count(p) for n, p in t.params.items()} for t in made.templates)
  blocks = 2 * (conv(w1, block, 3) + conv(block, w1, 1))
  enc = conv(3, w0, 4) + conv(w0, w1, 4) + conv(w1, w1, 3) + blocks + conv(w1, dim, 1)
  dec = conv(dim, w1, 3) + blocks + conv(w1, w0, 4) + conv(w0, 3, 4)
  book = {"book": 512 * dim} if variant == "paper" else {}
  assert tokenizer == {"enc": enc, "dec": dec, **book}
  num = (513 + 64 + 512) * 512 + 6 * (12 * 512**2 + 13 * 512) + 2 * 512
  assert prior == {**tokenizer, "prior": num}


# --------------------------------------------------------------------------------------- the bound


def test_the_bound_of_a_decoder_that_says_nothing():
  """784 log 2 and 49 log K, and with a prior that says nothing the same again; log p(k) else."""
  _, (state, prior), batch = started()
  still = lambda s, *names: s.replace(
    params={n: jax.tree.map(jnp.zeros_like, p) if n in names else p for n, p in s.params.items()}
  )
  found = compiled(0, "evaluate")(still(state, "dec"), batch, jax.random.key(2))
  np.testing.assert_allclose(found["distortion"], 784 * math.log(2), rtol=1e-5)
  np.testing.assert_allclose(-found["elbo"], 784 * math.log(2) + 49 * math.log(8), rtol=1e-5)
  evaluate = compiled(1, "evaluate")
  found = evaluate(still(prior, "dec", "prior"), batch, jax.random.key(2))
  np.testing.assert_allclose(found["rate"], 49 * math.log(8), rtol=1e-5)
  np.testing.assert_allclose(found["elbo"], found["elbo_uniform"], rtol=1e-5)
  found = evaluate(prior, batch, jax.random.key(2))
  assert abs(found["elbo"] - found["elbo_uniform"]) > 1e-3
  np.testing.assert_allclose(-found["elbo"], found["distortion"] + found["rate"], rtol=1e-6)


def test_the_rate_is_that_of_all_codes_in_their_order():
  """A prior whose head is fixed by hand knows what follows the start token, and nothing else."""
  _, (_, prior), batch = started()
  params = jax.tree.map(jnp.zeros_like, prior.params["prior"])
  params["positions"] = params["positions"].at[0, 0].set(1.0)  # the first position differs
  params["norm"]["scale"] = jnp.ones(8)
  params["head"]["kernel"] = params["head"]["kernel"].at[0, 3].set(2.0)
  prior = prior.replace(params={**prior.params, "prior": params})
  found = compiled(1, "evaluate")(prior, batch, jax.random.key(2))
  # normalised, (1, 0, ..., 0) is sqrt 7 in its first entry, but for eps
  logits = np.zeros(8)
  logits[3] = 2 * (7 / 8) / math.sqrt(7 / 64 + 1e-5)
  nats = np.log(np.exp(logits).sum()) - logits
  want = nats[np.asarray(found["code"][:, 0])].mean() + 48 * math.log(8)
  np.testing.assert_allclose(found["rate"], want, rtol=1e-5)


def test_gaussian_distortion_is_the_squared_error_of_grey_images():
  """A decoder that says 1/2 everywhere; with std^2 half the variance the loss is error/variance."""
  _, (state, _), batch = started(**GREY)
  state = state.replace(
    params={**state.params, "dec": jax.tree.map(jnp.zeros_like, state.params["dec"])}
  )
  error = jnp.mean(batch["image"] ** 2) / 4
  found = compiled(0, "evaluate", **GREY)(state, batch, jax.random.key(2))
  np.testing.assert_allclose(found["mse"], error, rtol=1e-5)
  constant = 784 * 0.5 * math.log(2 * math.pi * 0.25)
  np.testing.assert_allclose(found["distortion"], 784 * error / 0.5 + constant, rtol=1e-5)
  _, found = compiled(0, "step", **GREY)(state, batch, jax.random.key(2))
  want = found["distortion"] / 784 + 0.25 * found["commitment"]
  np.testing.assert_allclose(found["loss_enc+dec"], want, rtol=1e-5)


def test_use_of_codes_is_counted_over_the_whole_split():
  code = jnp.concatenate([jnp.zeros((5, 49), jnp.int32), jnp.ones((5, 49), jnp.int32)])
  found = compiled(0, "conclude")({"code": code}, jax.random.key(0))
  np.testing.assert_allclose(found["perplexity"], 2.0, rtol=1e-5)
  np.testing.assert_allclose(found["usage"], 2 / 8)


# ---------------------------------------------------------------------------------------- the moves


def test_averages_move_codes_by_the_batch_that_was_seen():
  how = GREY | {"model.restart_every": 0}
  made, (state, _), batch = started(**how)
  after, found = compiled(0, "step", **how)(state, batch, jax.random.key(2))
  z = quantities(made, state, batch)
  counts, sums = quantize.totals(z, quantize.nearest(z, state.extra["book"].codes), 8)
  want = quantize.update(state.extra["book"], counts, sums, decay=0.99)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), after.extra["book"], want
  )
  np.testing.assert_allclose(found["perplexity"], quantize.perplexity(counts), rtol=1e-5)
  np.testing.assert_allclose(found["usage"], (counts > 0).mean())


def quantities(made, state, batch):
  """What the encoder gives, seen where its codes are looked up."""
  seen, true = [], quantize.nearest
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(quantize, "nearest", lambda z, codes: seen.append(z) or true(z, codes))
    made.stages[0].evaluate(state, batch, jax.random.key(2))
  return seen[0]


def test_a_batch_in_parts_moves_the_codes_as_a_whole_one():
  _, (state, _), batch = started(**GREY)
  step = lambda **how: compiled(0, "step", **GREY, **how)(state, batch, jax.random.key(2))
  (one, found), (four, in_parts) = step(), step(accumulate=4)
  for a, b in zip(jax.tree.leaves(one.extra), jax.tree.leaves(four.extra), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
  for name in ("perplexity", "usage", "distortion", "commitment"):
    np.testing.assert_allclose(found[name], in_parts[name], rtol=1e-4)


def test_dead_codes_begin_again_when_it_is_time():
  how = {"model.restart_every": 2, "model.restart_below": 1.0}
  _, (state, _), batch = started(**how)
  book = state.extra["book"]
  far = book.replace(codes=book.codes.at[5:].set(1e3))
  state = state.replace(extra={"book": far})
  step = compiled(0, "step", **how)
  first, found = step(state, batch, jax.random.key(2))
  assert found["num_dead"] >= 3
  np.testing.assert_array_equal(first.extra["book"].codes[5:], far.codes[5:])
  second, _ = step(first, batch, jax.random.key(3))
  assert np.abs(second.extra["book"].codes).max() < 500


@pytest.mark.parametrize("beta, what", [(0.25, "weighed"), (0.0, "none")])
def test_commitment_moves_the_encoder_and_the_other_term_the_codes(beta, what, monkeypatch):
  """Of a decoder that is 0 in all but its last bias nothing comes back: what moves is the rest."""
  made, (state, _), batch = started(**GREY, **GRADIENT, **{"model.beta": beta})
  zero = jax.tree.map(jnp.zeros_like, state.params["dec"])
  state, grads = state.replace(params={**state.params, "dec": zero}), {}
  monkeypatch.setattr(core, "move", lambda s, tx, g, *, slot=None: grads.update(g) or (s, {}))
  made.stages[0].step(state, batch, jax.random.key(2))
  z, codes = quantities(made, state, batch), state.params["book"]["codes"]
  index = quantize.nearest(z, codes).ravel()
  rows = z.reshape(-1, 4)
  want = jnp.zeros_like(codes).at[index].add(2 * (codes[index] - rows) / rows.size)
  np.testing.assert_allclose(grads["book"]["codes"], want, rtol=1e-3, atol=1e-7)
  bias = grads["enc"]["last"]["bias"]
  pull = 2 * beta * (rows - codes[index]).sum(0) / rows.size
  np.testing.assert_allclose(bias, pull, rtol=1e-3, atol=1e-7)


def test_the_prior_leaves_the_tokenizer_as_it_is_to_the_bit():
  for changes in ({}, GRADIENT):
    _, (state, prior), batch = started(**changes)
    after = prior
    for i in range(2):
      after, _ = compiled(1, "step", **changes)(after, batch, jax.random.key(i))
    for n in state.params:
      jax.tree.map(np.testing.assert_array_equal, after.params[n], state.params[n])
    jax.tree.map(np.testing.assert_array_equal, after.extra, state.extra)
    moved = jax.tree.map(lambda a, b: (a != b).any(), after.params["prior"], prior.params["prior"])
    assert any(jax.tree.leaves(moved))


# ------------------------------------------------------------------------------------------ samples


def test_a_sample_is_the_picture_of_the_codes_that_its_numbers_choose():
  """A prior without an opinion cuts [0, 1) into equal parts, as the first stage's samples are."""
  _, (state, prior), batch = started()
  even = jax.tree.map(jnp.zeros_like, prior.params["prior"])
  prior = prior.replace(params={**prior.params, "prior": even})
  draw = lambda i, s: compiled(i, "sample")(s, batch, jax.random.key(3))["image"]
  np.testing.assert_allclose(draw(1, prior), draw(0, state), atol=1e-5)
  x = compiled(0, "evaluate")(state, batch, jax.random.key(2))["code"]
  assert x.shape == (8, 49) and x.dtype == jnp.int32 and x.min() >= 0 and x.max() < 8
  shown = compiled(1, "show")(
    prior, jax.tree.map(lambda x: jnp.resize(x, (64, *x.shape[1:])), batch), jax.random.key(4)
  )["completion"]
  before, after = shown[0::2], shown[1::2]
  # codes of 3 of 7 rows are given, and the first row of pixels depends on no other
  np.testing.assert_allclose(before[:, :, :1], after[:, :, :1], atol=1e-6)
  assert np.abs(before - after)[:, :, 16:].max() > 1e-3


def test_conditions_are_tokens_that_are_never_drawn():
  how = {"model.conditional": True}
  _, (_, prior), batch = started(**how)
  assert prior.params["prior"]["tokens"]["embedding"].shape == (8 + 10, 8)
  assert prior.params["prior"]["head"]["kernel"].shape == (8, 8)
  draw = compiled(1, "sample", **how)
  loud = jax.tree.map(lambda p: 20 * p, prior.params["prior"])
  prior = prior.replace(params={**prior.params, "prior": loud})
  found = draw(prior, batch, jax.random.key(0))
  np.testing.assert_array_equal(found["label"], batch["label"])
  other = draw(prior, {**batch, "label": (batch["label"] + 1) % 10}, jax.random.key(0))
  assert np.abs(found["image"] - other["image"]).max() > 1e-3


# -------------------------------------------------------------------- runs from another one's stage


def test_the_prior_starts_from_a_tokenizer_of_another_run(tmp_path, blind):
  """Its networks are those bits; one of other sizes is refused, and nothing is lost."""
  first, second = tmp_path / "first", tmp_path / "second"
  loop.train(config_of("test", metrics=(), num_steps=0), str(first))
  place = f"{first}/checkpoints/00-tokenizer"
  again = config_of("test", metrics=(), init_from=place)
  loop.train(again, str(second))
  assert not (second / "checkpoints/00-tokenizer").exists()
  made = job.prepare(again)
  tokenizer, prior = job.restore(made, str(first), 0), job.restore(made, str(second), 1)
  for n in tokenizer.params:
    jax.tree.map(np.testing.assert_array_equal, prior.params[n], tokenizer.params[n])
  jax.tree.map(np.testing.assert_array_equal, prior.extra, tokenizer.extra)
  before = sorted(tmp_path.rglob("*"))

  def refused(message, **changes):
    config = config_of("test", **{"metrics": (), "init_from": place, **changes})
    with pytest.raises(errors.UserError, match=message) as error:
      loop.train(config, str(tmp_path / "third"))
    assert "\n" not in str(error.value) and "--workdir" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before

  other = r"--config\.init_from=.*: \(8, 4\) in the checkpoint, \(4, 4\) now.*config\.init_from"
  refused(other, **{"model.num_codes": 4})
  refused(r"--config\.init_from=.*dec/blocks/in0", **{"model.widths": (4, 4)})
  refused(r"--config\.init_from=.*00-tokenizer", init_from=f"{first}/checkpoints/01-prior")
  refused("holds no checkpoint", init_from=f"{tmp_path}/none/checkpoints/00-tokenizer")
  facts = json.loads((first / "config.json").read_text())
  facts["stages"]["tokenizer"] = 5
  (first / "config.json").write_text(json.dumps(facts))
  refused(r"00-tokenizer is at step 2 of 5: let that run finish")


# --------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"model.num_codes": 393}, r"392 positions to begin 393 codes.*--config\.model\.num_codes"),
    ({"data.image_size": 30}, r"30x30 pixels do not halve 2 times.*--config\.data\.image_size"),
    ({"model.prior_heads": 3}, r"--config\.model\.prior_heads=3 do not divide"),
    ({"model.codebook": "gradient"}, r"--config\.model\.restart_every=0"),
    ({"model.code_init": "grid"}, r"--config\.model\.code_init='grid'"),
    (
      {"model.conditional": True, "data.source": "folder", "data.channels": 1},
      r"--config\.data\.num_classes",
    ),
  ],
)
def test_what_cannot_be_is_said_in_a_line(changes, message):
  if changes.get("data.source") == "folder":
    changes = {**changes, "data.image_size": 28}
  with pytest.raises(errors.UserError, match=message) as error:
    job.prepare(config_of("test", **changes))
  assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------- learning


def forgetful(true):
  """A prior that draws every code as if it came first."""

  def sample(net, params, first, u, **how):
    one = lambda u: true(net, params, first, u[:, None], **how)[:, 0]
    return jax.lax.map(one, u.T).T

  return sample


@pytest.mark.learning
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_small_learns(tmp_path, monkeypatch, seed):
  """Codes are in use, tell the image, and are foretold better than by how often each comes.

  Samples whose codes do not know of one another are no digits.
  """
  found = train(config_of("small", seed=seed), tmp_path / "run")
  assert found["perplexity"] > 20, found
  assert found["mse"] < 0.02, found
  assert found["nats_per_code"] < math.log(found["perplexity"]) - 0.3, found
  assert found["elbo"] > found["elbo_uniform"] + 49 * 0.3, found
  assert found["class_min_share"] > 0.03 and found["frechet"] < 150, found
  if seed == 0:
    monkeypatch.setattr(transformer, "sample", forgetful(transformer.sample))
    without = evaluation.run_eval(str(tmp_path / "run"), None)
    assert without["frechet"] > 5 * found["frechet"] and without["class_min_share"] < 0.03, without


@pytest.mark.learning
def test_an_encoder_that_reconstruction_does_not_reach_keeps_few_codes(tmp_path, monkeypatch):
  """With the estimator the wrong way round it is moved by its commitment alone."""
  config = config_of("digits", num_steps=0)
  right = train(config, tmp_path / "right")
  monkeypatch.setattr(quantize, "straight_through", lambda z, e: e + jax.lax.stop_gradient(z - e))
  wrong = train(config, tmp_path / "wrong")
  assert wrong["mse"] > 1.3 * right["mse"] and wrong["perplexity"] < right["perplexity"], wrong
