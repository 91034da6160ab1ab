"""DALL-E: the two objectives, what sees what, masks, guidance, samples, and that it learns."""

import functools
import math

import conftest
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import jit, on_paper, train

from gm import core, errors, job
from gm.metrics import captions, reader
from gm.nets import dalle, dvae, transformer
from gm.nn import quantize
from gm.probability import likelihood

config_of = functools.partial(conftest.config_of, "dalle")
prepared = functools.partial(conftest.prepared, "dalle")
compiled = functools.partial(conftest.compiled, "dalle")
UNGUIDED = {"model.caption_dropout": 0.0, "model.guidance": 1.0}


def started(**changes):
  """The stages, a state of random numbers for each, the second with the first's, and a batch."""
  made, rng = prepared(**changes), np.random.default_rng(0)
  number = lambda s: jnp.asarray(0.3 * rng.normal(size=s.shape), jnp.float32)
  first, second = made.templates
  tokenizer = jax.tree.map(jnp.zeros_like, first).replace(params=jax.tree.map(number, first.params))
  prior = jax.tree.map(jnp.zeros_like, second).replace(
    params={**jax.tree.map(number, second.params), **tokenizer.params}
  )
  shapes = core.batch_shapes(made.infos[0], 8)
  image = jnp.tanh(3 * number(shapes["image"]))
  tokens = rng.integers(1, 48, (8, 14)) * (np.arange(14) < rng.integers(3, 14, (8, 1)))
  said = rng.integers(-1, 3, shapes["said"].shape)
  batch = {"image": image, "tokens": jnp.asarray(tokens, jnp.int32), "said": jnp.asarray(said)}
  return made, (tokenizer, prior), batch


# ------------------------------------------------------------------------------------------- sizes


def test_sizes():
  """DALLE-pytorch's script, its class, the paper's tokenizer, and the 12 billion of its prior."""
  count = lambda variant: {
    n: core.count(p) for n, p in on_paper("dalle", variant).templates[1].params.items()
  }
  code, paper = count("code"), count("paper")
  assert code["enc"] + code["dec"] == 16_672_259 and code["prior"] == 239_653_904
  assert (paper["enc"], paper["dec"]) == (53_786_240, 43_829_766)
  assert 12.0e9 < paper["prior"] < 12.4e9
  shape = lambda net, x: core.count(jax.eval_shape(net.init, jax.random.key(0), x))
  image, codes = jnp.zeros((1, 64, 64, 3)), jnp.zeros((1, 8, 8), jnp.int32)
  small = shape(dvae.Encoder(512), image) + shape(dvae.Decoder(3, 512), codes)
  assert small == 1_085_507
  net = dalle.Dalle(10_000, 256, 8_192, (32, 32), num_layers=2)
  places = 512 * (257 + 32 + 32)  # which rotary ones are without
  assert shape(net, jnp.zeros((1, 1_280), jnp.int32)) == 27_315_216 + places == 27_479_568


# ------------------------------------------------------------------------------------ the tokenizer


def test_the_divergence_is_from_the_uniform_law_in_nats_a_position():
  np.testing.assert_allclose(likelihood.kl_uniform(jnp.zeros((2, 3, 64))), 0.0, atol=1e-6)
  sure = 50 * jax.nn.one_hot(jnp.arange(4), 64)
  np.testing.assert_allclose(likelihood.kl_uniform(sure), math.log(64), atol=1e-3)
  logits = jnp.asarray(np.random.default_rng(0).normal(size=(5, 7)))
  q = jax.nn.softmax(logits)
  np.testing.assert_allclose(likelihood.kl_uniform(logits), (q * jnp.log(7 * q)).sum(-1), rtol=1e-5)


def test_the_loss_weighs_a_sum_over_positions_against_one_over_pixels():
  """By beta h w / (H W C) times the mean over positions; the error is a mean over pixels."""
  how = {"model.beta": 3.0, "model.beta_final": 1.0, "model.beta_steps": 4, "model.tau_steps": 8}
  _, (state, _), batch = started(**how)
  state = state.replace(step=jnp.int32(2))
  _, found = compiled(0, "step", **how)(state, batch, jax.random.key(1))
  np.testing.assert_allclose(found["beta"], 2 / 4 * (3 - 2 / 8 * 2))
  np.testing.assert_allclose(found["tau"], (1 / 16) ** 0.25, rtol=1e-5)
  want = found["error"] + 1.25 * 16 / (16 * 16 * 3) * found["kl"]
  np.testing.assert_allclose(found["loss_enc+dec"], want, rtol=1e-5)
  net = dvae.Encoder(8, 4, 2, 1)
  logits = net.apply({"params": state.params["enc"]}, batch["image"])
  np.testing.assert_allclose(found["kl"], likelihood.kl_uniform(logits).mean(), rtol=1e-4)
  y = quantize.gumbel_softmax(jax.random.key(1), logits, found["tau"])
  out = dvae.Decoder(3, 8, 4, 4, 2, 1).apply({"params": state.params["dec"]}, y)
  np.testing.assert_allclose(found["error"], jnp.mean((out - batch["image"]) ** 2), rtol=1e-4)


def test_the_laplace_loss_is_a_density_of_mapped_pixels():
  """Integrates to one over (0, 1), and is the paper's formula by hand."""
  x = jnp.linspace(0, 1, 200_001)[1:-1, None]
  ones = jnp.ones_like(x)
  density = jnp.exp(likelihood.logit_laplace_log_prob(x, 0.7 * ones, math.log(0.5) * ones))
  np.testing.assert_allclose(density.mean(), 1.0, atol=1e-3)
  made, (state, _), batch = started(**{"model.likelihood": "laplace"})
  zero = jax.tree.map(jnp.zeros_like, state.params["dec"])
  state = state.replace(params={**state.params, "dec": zero})  # mean 0, scale 1
  _, found = jit(made.stages[0].step)(state, batch, jax.random.key(1))
  x = 0.8 * (np.asarray(batch["image"], np.float64) + 1) / 2 + 0.1
  want = np.abs(np.log(x / (1 - x))) + np.log(2 * x * (1 - x))
  np.testing.assert_allclose(found["error"], want.mean(), rtol=1e-4)
  image = jit(made.stages[0].sample)(state, batch, jax.random.key(2))["image"]
  np.testing.assert_allclose(image, 0.0, atol=1e-6)  # a half


@pytest.mark.parametrize("kind, stages", [("plain", 2), ("published", 1)])
def test_the_tokenizer_learns_in_all_of_its_parts_and_then_no_more(kind, stages, monkeypatch):
  """Encoder, codes and decoder have a gradient, through the noise; in the second stage none has."""
  made, (state, prior), batch = started(**{"model.tokenizer": kind})
  grads = {}
  monkeypatch.setattr(core, "move", lambda s, tx, g, *, slot=None: grads.update(g) or (s, {}))

  def moved(stage, state):
    grads.clear()
    run = jit(lambda *args: (stage.step(*args), dict(grads))[1])
    return run(state, batch, jax.random.key(1))

  for i, of, names in ((0, state, {"enc", "dec"}), (1, prior, {"prior"}))[:stages]:
    found = moved(made.stages[i], of)
    assert set(found) == names
    for path, g in jax.tree_util.tree_leaves_with_path(found):
      dead = kind == "published" and "block" in jax.tree_util.keystr(path)  # one unit, and a ReLU
      assert dead or jnp.abs(g).max() > 0, jax.tree_util.keystr(path)


def test_use_of_codes_is_counted_over_the_whole_split():
  code = jnp.concatenate([jnp.zeros((5, 16), jnp.int32), jnp.ones((5, 16), jnp.int32)])
  found = compiled(0, "conclude")({"code": code}, jax.random.key(0))
  np.testing.assert_allclose(found["perplexity"], 2.0, rtol=1e-5)
  np.testing.assert_allclose(found["usage"], 2 / 8)


# ----------------------------------------------------------------------------------- what sees what


def test_patterns_by_hand():
  """Of a map of 7 x 7 the code at (5, 6), of which the row, the column and what lies near."""
  grid, text = (7, 7), 3
  query = text + 1 + 5 * 7 + 6
  for kind in dalle.PATTERNS:
    seen = dalle.pattern(kind, text, grid)
    assert seen.shape == (3 + 49, 3 + 49) and seen[query, : text + 1].all()
    assert not np.triu(seen, 1).any() and np.diag(seen).all()
    assert (seen[: text + 1] == np.tri(52, dtype=bool)[: text + 1]).all()
    codes = np.pad(seen[query, text + 1 :], (0, 1)).reshape(grid)
    want = np.zeros(grid, bool)
    if kind == "full":
      want.ravel()[: 5 * 7 + 7] = True
    elif kind == "row":
      want[5, :7] = True
    elif kind == "column":
      want[:6, 6] = True
    else:
      want[1:6, 2:7] = True
    np.testing.assert_array_equal(codes, want)


@pytest.mark.parametrize("kind", dalle.PATTERNS)
def test_no_token_sees_what_comes_after_it_and_codes_see_all_text(kind):
  net = dalle.Dalle(9, 3, 6, (3, 3), 1, 2, 4, 8, (kind,))
  ids = jnp.asarray([[0, 4, 9 + 1, 9 + 2, *(12 + np.array([0, 3, 5, 1, 2, 4, 0, 1]))]], jnp.int32)
  variables = jit(net.init)(jax.random.key(0), ids)
  apply = jit(net.apply)
  before = apply(variables, ids)
  for j, other in [(6, 12), *((t, 7) for t in range(1, 4))]:
    after = apply(variables, ids.at[0, j].set(other))
    same = (after == before).all(-1)[0]
    assert same[:j].all() and not same[j], j
    if j < 4:
      assert not same[4:].any(), j


def test_text_and_codes_are_never_mistaken():
  """Where codes come next no text has a probability, and the other way round: exactly 0."""
  net = dalle.Dalle(9, 3, 6, (2, 2), 2, 2, 4, 8, ("full", "row"))
  ids = jnp.asarray([[0, 4, 10, 11, 13, 14, 12]], jnp.int32)
  variables = jit(net.init)(jax.random.key(0), ids)
  probs = jax.nn.softmax(jit(net.apply)(variables, ids))[0]
  assert (probs[:3, 12:] == 0).all() and (probs[:3, :12] > 0).all()
  assert (probs[3:, :12] == 0).all() and (probs[3:, 12:] > 0).all()
  first, u = ids[:, :4], jax.random.uniform(jax.random.key(1), (1, 4))
  for guidance in (None, 30.0):
    start = first if guidance is None else jnp.concatenate([first, first.at[0, 1].set(9)])
    sample = jit(functools.partial(transformer.sample, net, guidance=guidance))
    drawn = sample(variables["params"], start, u)
    assert drawn.shape == (1, 4) and drawn.min() >= 12 and drawn.max() < 18


def test_padding_is_an_id_of_its_position_and_a_sequence_begins_with_0():
  made, (_, prior), batch = started()

  class Given(Exception):
    """Of the transformer, which has then done its part."""

  def given(net, ids):
    raise Given(ids)

  with pytest.MonkeyPatch.context() as patch, pytest.raises(Given) as error:
    patch.setattr(dalle.Dalle, "__call__", given)
    made.stages[1].evaluate(prior, batch, jax.random.key(0))
  ids, tokens = np.asarray(error.value.args[0]), np.asarray(batch["tokens"])
  assert ids.shape == (8, 14 + 16) and (ids[:, 0] == 0).all()
  np.testing.assert_array_equal(ids[:, 1:15], np.where(tokens, tokens, 48 + np.arange(14)))
  assert ids[:, 15:].min() >= 48 + 14 and ids[:, 15:].max() < 48 + 14 + 8


# --------------------------------------------------------------------------------------- the prior


def test_the_loss_weighs_the_image_by_seven_to_one():
  _, (_, prior), batch = started(**UNGUIDED)
  step = compiled(1, "step", **UNGUIDED)
  still = {**prior.params, "prior": jax.tree.map(jnp.zeros_like, prior.params["prior"])}
  _, found = step(prior.replace(params=still), batch, jax.random.key(0))
  np.testing.assert_allclose(found["text_nats"], math.log(48 + 14), rtol=1e-5)
  np.testing.assert_allclose(found["image_nats"], math.log(8), rtol=1e-5)
  _, found = step(prior, batch, jax.random.key(0))
  want = (found["text_nats"] + 7 * found["image_nats"]) / 8
  np.testing.assert_allclose(found["loss_prior"], want, rtol=1e-5)
  assert abs(found["text_nats"] - math.log(62)) > 0.01


def test_a_share_of_captions_is_left_out_and_not_of_the_data():
  nats = {}
  for share in (0.0, 1.0):
    how = UNGUIDED | {"model.caption_dropout": share}
    _, (_, prior), batch = started(**how)
    step = compiled(1, "step", **how)
    nats[share] = float(step(prior, batch, jax.random.key(0))[1]["image_nats"])
    blank = {**batch, "tokens": jnp.zeros_like(batch["tokens"])}
    nats[share, "blank"] = float(step(prior, blank, jax.random.key(0))[1]["image_nats"])
  assert nats[1.0] == nats[1.0, "blank"] == nats[0.0, "blank"] != nats[0.0]


def test_the_prior_leaves_the_tokenizer_as_it_is_to_the_bit():
  _, (state, prior), batch = started(**UNGUIDED)
  after, _ = compiled(1, "step", **UNGUIDED)(prior, batch, jax.random.key(0))
  for n in state.params:
    jax.tree.map(np.testing.assert_array_equal, after.params[n], state.params[n])


# ----------------------------------------------------------------------------------------- samples


def test_cached_sampling_draws_what_the_whole_pass_says():
  """Code by code the inverse of the distribution that one pass over all of them gives."""
  net = dalle.Dalle(9, 3, 6, (3, 3), 4, 2, 4, 8, dalle.PATTERNS)
  first = jnp.asarray([[0, 4, 10, 11], [0, 3, 5, 2]], jnp.int32)
  ids = jnp.zeros((2, 12), jnp.int32)
  params = jit(net.init)(jax.random.key(0), ids)["params"]
  params = jax.tree.map(lambda p: 3 * p, params)
  u = jax.random.uniform(jax.random.key(1), (2, 9))
  bare = first.at[:, 1:].set(jnp.arange(9, 12))
  for guidance in (None, 2.5):
    start = first if guidance is None else jnp.concatenate([first, bare])
    sample = jit(functools.partial(transformer.sample, net, guidance=guidance))
    drawn = sample(params, start, u)
    apply = jit(lambda ids: net.apply({"params": params}, ids))
    logits = apply(jnp.concatenate([first, drawn[:, :-1]], axis=1))[:, 3:]
    if guidance is not None:
      without = apply(jnp.concatenate([bare, drawn[:, :-1]], axis=1))[:, 3:]
      logits = without + guidance * (logits - without)
    want = transformer.pick(jax.nn.softmax(logits), u)
    assert (drawn == want).mean() > 0.9 and len(np.unique(drawn)) > 3
    np.testing.assert_array_equal(drawn[:, 0], want[:, 0])


def test_guidance_changes_samples():
  draw = {}
  for how in ({}, UNGUIDED):
    made, (_, prior), batch = started(**how)
    loud = jax.tree.map(lambda p: 3 * p, prior.params["prior"])
    prior = prior.replace(params={**prior.params, "prior": loud})
    found = compiled(1, "sample", **how)(prior, batch, jax.random.key(3))
    draw[made.config.model.guidance] = found["image"]
  assert np.abs(draw[1.0] - draw[3.0]).max() > 1e-3


def test_a_sample_follows_its_caption_and_says_it_again():
  _, (_, prior), batch = started()
  sample = compiled(1, "sample")
  found = sample(prior, batch, jax.random.key(0))
  np.testing.assert_array_equal(found["tokens"], batch["tokens"])
  np.testing.assert_array_equal(found["data_said"], batch["said"])
  other = {**batch, "tokens": jnp.roll(batch["tokens"], 1, axis=0)}
  assert np.abs(sample(prior, other, jax.random.key(0))["image"] - found["image"]).max() > 1e-3
  blank = {**batch, "image": 0 * batch["image"]}  # which is only asked for how many there are
  np.testing.assert_array_equal(sample(prior, blank, jax.random.key(0))["image"], found["image"])


def test_a_completion_keeps_the_upper_half():
  made, (_, prior), batch = started(**{"model.guidance": 2.0, "model.num_blocks": 0})
  many = jax.tree.map(lambda x: jnp.tile(x, (4,) + (1,) * (x.ndim - 1)), batch)
  found = jit(made.stages[1].show)(prior, many, jax.random.key(4))["completion"]
  before, after = found[0::2], found[1::2]
  # 2 of 4 rows of codes are given, and without blocks the first row of pixels depends on no other
  np.testing.assert_allclose(before[:, :, :1], after[:, :, :1], atol=1e-6)
  assert np.abs(before - after)[:, :, 12:].max() > 1e-3


# --------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"data.text_key": "", "data.text_length": 32, "data.vocab_size": 1024}, "dalle needs text"),
    ({"data.image_size": 18}, r"do not halve 2 times.*--config\.data\.image_size"),
    ({"model.patterns": ("full", "axial")}, r"--config\.model\.patterns='axial'.*row, column"),
    ({"model.patterns": ()}, r"--config\.model\.patterns"),
    ({"model.tokenizer": "openai"}, r"--config\.model\.tokenizer='openai'"),
    ({"model.guidance": -1.0}, r"--config\.model\.guidance=-1"),
    ({"model.caption_dropout": 0.0}, r"guidance=3\.0 .*--config\.model\.caption_dropout=0"),
  ],
)
def test_what_cannot_be_is_said_in_a_line(changes, message):
  with pytest.raises(errors.UserError, match=message) as error:
    job.prepare(config_of("test", **changes))
  assert "\n" not in str(error.value)


# -------------------------------------------------------------------------------------- the metric


def test_what_samples_carry_is_read_by_a_network_that_learned_it(monkeypatch):
  """Of squares whose colour and place are said: true ones, and those beside other captions."""
  monkeypatch.setattr(reader, "NUM_STEPS", 60)
  rng = np.random.default_rng(0)
  said = np.stack([rng.integers(0, 3, 900), rng.integers(-1, 2, 900)], axis=1)
  image = np.full((900, 8, 8, 3), -1.0, np.float32)
  for x, (colour, place) in zip(image, said, strict=True):
    half = place if place >= 0 else rng.integers(2)
    x[4 * half : 4 * half + 4, :, colour] = 1.0
  info = core.Info({}, said=(("colour", ("red", "green", "blue")), ("place", ("up", "down"))))
  real = {"image": image[:600], "said": said[:600]}
  found = captions.carried({"image": image[600:], "data_said": said[600:]}, real, info)
  assert found["carried_colour"] > 0.98 and found["carried_place"] > 0.98 < found["real_all"]
  assert found["chance_colour"] < 0.5 and found["chance_place"] < 0.65
  wrong = np.roll(said[600:], 1, axis=0)
  found = captions.carried({"image": image[600:], "data_said": wrong}, real, info)
  assert found["carried_all"] < 0.6 and set(found) == {
    f"{a}_{b}" for a in ("carried", "real", "chance") for b in ("colour", "place", "all")
  }
  with pytest.raises(ValueError, match=r"captions\.carried needs captions.*--config\.metrics"):
    captions.carried({"image": image}, real, info)
  with pytest.raises(ValueError, match="600 real images"):
    few = {k: x[:100] for k, x in real.items()}
    captions.carried({"image": image, "data_said": said}, few, info)


# ---------------------------------------------------------------------------------------- learning


@pytest.mark.learning
def test_samples_carry_the_words_of_captions_that_were_held_out(tmp_path):
  """On combinations that training never showed; a prior that is told no caption must fail it."""
  found = train(config_of("small"), tmp_path / "told")
  assert found["carried_all"] > 0.8 and found["mse"] < 0.05  # not reached yet: 0.67, with 0.017
  assert found["image_nats_other_caption"] > found["image_nats"] + 0.1
  deaf = {"model.caption_dropout": 1.0, "num_steps": 300}
  deaf |= {"init_from": f"{tmp_path}/told/checkpoints/00-tokenizer"}
  found = train(config_of("small", **deaf), tmp_path / "deaf")
  assert found["carried_all"] < 0.5
  assert found["image_nats_other_caption"] < found["image_nats"] + 0.1
