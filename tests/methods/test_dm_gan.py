"""DM-GAN: sizes, what the memory does, who is moved by what, wrong captions, and that it learns."""

import functools
import math

import conftest
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import jit, on_paper, train

from gm import core, errors, evaluation, job, loop, matching
from gm.methods import dm_gan as method
from gm.metrics import reader
from gm.nets import dm_gan
from gm.nets import matching as encoders
from gm.nn import spectral

config_of = functools.partial(conftest.config_of, "dm_gan")
prepared = functools.partial(conftest.prepared, "dm_gan")
compiled = functools.partial(conftest.compiled, "dm_gan", 1)  # of the second stage
PASSES = [("test", {}, {"g": 1, "d": 1})]  # data and samples in one; see test_promises.py


def started(**changes):
  """The stages, the second's state of random numbers, and a batch of captions of any length."""
  made, rng = prepared(**changes), np.random.default_rng(0)
  number = lambda s: jnp.asarray(0.5 * rng.normal(size=s.shape), s.dtype)
  zeros, template = lambda s: jnp.zeros(s.shape, s.dtype), made.templates[1]
  state = jax.tree.map(zeros, template).replace(
    params=jax.tree.map(number, template.params),
    stats=jax.tree.map(lambda s: jnp.abs(number(s)) + 0.5, template.stats),
    ema={
      "g": jax.tree.map(number, template.ema["g"]),
      "g_stats": jax.tree.map(lambda s: jnp.abs(number(s)) + 0.5, template.ema["g_stats"]),
    },
    extra=jax.tree.map(number, template.extra),
  )
  length = rng.integers(2, 16, size=(8, 1))
  tokens = np.where(np.arange(16) < length, rng.integers(1, 60, size=(8, 16)), 0)
  image = jnp.asarray(rng.uniform(-1, 1, size=(8, 16, 16, 3)), jnp.float32)
  return made, state, {"image": image, "tokens": jnp.asarray(tokens, jnp.int32)}


def still(state, *names):
  zero = lambda p: jax.tree.map(jnp.zeros_like, p)
  return state.replace(params={n: zero(p) if n in names else p for n, p in state.params.items()})


# ------------------------------------------------------------------------------------------- sizes


def test_sizes():
  """Those of the authors' networks for birds."""
  made = on_paper("dm_gan", "paper")
  g, d = (made.templates[1].params[n] for n in "gd")
  assert core.count(g) == 21_449_042
  first = [g[n] for n in ("first", "norm", "up0", "up1", "up2", "up3")]
  found = [core.count(x) for x in (g["augmentation"], first, g["refine1"], g["refine2"])]
  assert found == [102_800, 19_156_736, 1_092_161, 1_092_161]
  assert all(core.count(g[f"image{i}"]) == 1_728 for i in range(3))
  sizes = [core.count(d["net"][f"size{i}"]) for i in range(3)]
  assert sizes == [1_878_242, 5_155_810, 18_264_546]


def test_sizes_for_coco():
  """Three residual blocks; pictures of 64, 128 and 256 pixels."""
  net = dm_gan.Generator((256, 256, 3), num_blocks=3)
  shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)
  args = (shape(2, 100), shape(2, 100), shape(2, 256), shape(2, 12, 256), shape(2, 12))
  drawn, variables = jax.eval_shape(net.init_with_output, jax.random.key(0), *args)
  assert core.count(variables["params"]) == 22_335_314
  assert core.count(variables["params"]["refine1"]) == 1_535_297
  assert [x.shape for x in drawn.images] == [(2, n, n, 3) for n in (64, 128, 256)]


# ------------------------------------------------------------------------------------------ memory

B, T, C = 3, 5, 5
MASK = np.arange(T) < np.array([[5], [2], [3]])


def memory(**changes):
  """A memory of T one-hot words whose kernels are 0, but for what is given by name."""
  rng = np.random.default_rng(1)
  h = rng.normal(size=(B, 2, 3, C)).astype(np.float32)
  words = np.broadcast_to(np.eye(T, dtype=np.float32), (B, T, T))
  net = dm_gan.Memory()
  shapes = jax.eval_shape(net.init, jax.random.key(0), h, words, MASK)["params"]
  params = jax.tree.map(lambda s: np.zeros(s.shape, np.float32), shapes)
  for path, value in changes.items():
    name, leaf = path.split("__")
    params[name][leaf] = np.broadcast_to(np.float32(value), params[name][leaf].shape)
  return net, {"params": params}, h, words


HALVES = np.eye(T, 2 * C)  # of words into the memory, and back out of it
WORDS_ONLY = {"gate_word__kernel": 1e9, "write_word__kernel": HALVES, "write_image__bias": 7.0}


def test_with_gates_open_it_is_attention_over_words():
  """Its values are one-hot, so what is read are the weights: of sum 1, and 0 at padding."""
  key = np.abs(np.random.default_rng(2).normal(size=(2 * C, C)))
  net, params, h, words = memory(
    **WORDS_ONLY, value__kernel=HALVES.T, key__kernel=key, respond__bias=1e9
  )
  got = np.asarray(net.apply(params, h, words, MASK)).reshape(B, -1, T)
  scores = h.reshape(B, -1, C) @ key[:T].T  # not over sqrt C
  e = np.exp(scores) * MASK[:, None]
  np.testing.assert_allclose(got, e / e.sum(-1, keepdims=True), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(got.sum(-1), 1.0, rtol=1e-6)
  assert (got[~np.broadcast_to(MASK[:, None], got.shape)] == 0).all()


def test_with_the_response_closed_nothing_changes():
  net, params, h, words = memory(**WORDS_ONLY, value__kernel=HALVES.T, respond__bias=-1e9)
  np.testing.assert_array_equal(net.apply(params, h, words, MASK), h)


def test_the_gate_weighs_the_words_and_its_rest_the_mean_pixel():
  """All words are alike to the address; m = w g + r (1 - g), g = sigmoid(A w + B r)."""
  net, params, h, words = memory(
    gate_word__kernel=0.3,
    gate_image__kernel=0.5,
    write_word__bias=2.0,
    write_image__kernel=1.0,
    value__kernel=np.eye(2 * C, C),
    respond__bias=1e9,
  )
  mean = h.mean((1, 2)).sum(-1)
  gate = 1 / (1 + np.exp(-(0.3 + 0.5 * mean)))
  want = 2.0 * gate + np.maximum(mean, 0) * (1 - gate)
  got = net.apply(params, h, words, MASK)
  np.testing.assert_allclose(got, np.broadcast_to(want[:, None, None, None], h.shape), rtol=1e-5)


def test_no_gradient_comes_through_the_mean_pixel():
  """Where neither address nor response depend on a pixel, h' = h / 2 + o / 2 has the slope 1/2."""
  net, params, h, words = memory(
    gate_image__kernel=0.5, write_image__kernel=1.0, write_word__bias=2.0, value__kernel=0.3
  )
  out, pull = jax.vjp(lambda h: net.apply(params, h, words, MASK), h)
  assert np.abs(out - h / 2).max() > 0.1  # something is read
  np.testing.assert_allclose(pull(jnp.ones_like(h))[0], 0.5)


# ---------------------------------------------------------------------------------------- encoders


def test_padding_changes_nothing_of_a_caption():
  net, rng = encoders.TextEncoder(30, 8, 6), np.random.default_rng(0)
  tokens = np.where(np.arange(7) < [[7], [4], [0]], rng.integers(1, 30, size=(3, 7)), 0)
  longer = np.pad(tokens, ((0, 0), (0, 4)))
  params = jit(functools.partial(net.init, train=False))(jax.random.key(0), tokens)
  a, b = (jit(functools.partial(net.apply, train=False))(params, x) for x in (tokens, longer))
  np.testing.assert_allclose(a.sentence, b.sentence, rtol=1e-6)
  np.testing.assert_allclose(a.words, b.words[:, :7], rtol=1e-6)
  assert (b.words[~b.mask] == 0).all()
  assert b.mask.sum(1).tolist() == [7, 4, 1]  # of no word it is one
  # forward has seen all at the last word, backward at the first
  np.testing.assert_allclose(b.sentence[1], [*b.words[1, 3, :4], *b.words[1, 0, 4:]], rtol=1e-6)


# --------------------------------------------------------------------------------------- the moves


def test_losses_where_nobody_knows_anything():
  """Of two sizes: D 2 (2 log 2), G 2 (2 log 2); L_m = 4 log 8; KL 0."""
  made, state, batch = started()
  silent = still(state, "g").replace(extra=jax.tree.map(jnp.zeros_like, state.extra))
  for judge in silent.params["d"]["net"].values():
    judge.update({name: jax.tree.map(jnp.zeros_like, judge[name]) for name in dm_gan.LOGITS})
  batch["tokens"] = jnp.maximum(batch["tokens"], 1)  # of one length: each word counts
  _, found = compiled("step")(silent, batch, jax.random.key(2))
  np.testing.assert_allclose(found["loss_d"], 4 * math.log(2), rtol=1e-5)
  np.testing.assert_allclose(found["game"], 4 * math.log(2), rtol=2e-3)  # D has moved
  np.testing.assert_allclose(found["match"], 4 * math.log(8), rtol=1e-5)
  np.testing.assert_allclose(found["kl"], 0.0, atol=1e-6)
  want = found["game"] + made.config.model.matching_weight * 4 * math.log(8)
  np.testing.assert_allclose(found["loss_g"], want, rtol=1e-5)


def test_kl_is_a_mean_over_features_too():
  made, state, batch = started()
  state = still(state, "g")
  bias = state.params["g"]["augmentation"]["dense"]["bias"]
  half, num = len(bias) // 2, made.config.model.condition
  bias = bias.at[:num].set(2.0).at[half:].set(40.0)  # gates open: mean 2, log-variance 0
  state.params["g"]["augmentation"]["dense"]["bias"] = bias
  _, found = compiled("step")(state, batch, jax.random.key(2))
  np.testing.assert_allclose(found["kl"], 2.0, rtol=1e-5)


def test_wrong_captions_are_those_of_the_next_image(monkeypatch):
  made, state, batch = started()
  monkeypatch.setattr(matching, "aware_d", lambda a, b, wrong, c, d: wrong.mean())
  loss_d = lambda *args: made.stages[1].step(*args)[1]["loss_d"]
  found = jit(loss_d)(state, batch, jax.random.key(2))
  net = spectral.SpectralNorm(dm_gan.Discriminators(4), skip=dm_gan.LOGITS)
  text = encoders.TextEncoder(64, 4, 4).apply(
    {"params": state.extra["t"]}, batch["tokens"], train=False
  )
  other = text.sentence[np.array([1, 2, 3, 4, 5, 6, 7, 0])]
  variables = {"params": state.params["d"], **state.stats["d"]}
  said = jit(net.apply)(variables, dm_gan.scales(batch["image"], 1), other)
  np.testing.assert_allclose(found, sum(x.pair.mean() for x in said), rtol=1e-4)


def test_matching_moves_g_through_encoders_that_stay():
  """An image encoder of zeros passes no gradient; D and the captions are the same."""
  _, state, batch = started()
  blind = {**state.extra, "c": jax.tree.map(jnp.zeros_like, state.extra["c"])}
  step = compiled("step")
  after, _ = step(state, batch, jax.random.key(2))
  other, _ = step(state.replace(extra=blind), batch, jax.random.key(2))
  jax.tree.map(np.testing.assert_array_equal, after.extra, state.extra)
  jax.tree.map(np.testing.assert_array_equal, after.params["d"], other.params["d"])
  flat = lambda s: np.concatenate([np.ravel(x) for x in jax.tree.leaves(s.opt["g"])])
  assert np.abs(flat(after) - flat(other)).max() > 1e-6


def test_the_game_begins_with_the_encoders_that_have_matched():
  made, _, batch = started()
  first, second = made.stages
  before = jit(lambda k, b: first.init(k, b, None))(jax.random.key(0), batch)
  before, _ = jit(first.step)(before, batch, jax.random.key(1))
  state = jit(second.init)(jax.random.key(2), batch, before)
  for n in "tc":
    jax.tree.map(np.testing.assert_array_equal, state.extra[n], before.params[n])


def test_samples_are_of_their_captions():
  made, state, batch = started()
  stage = made.stages[1]
  noise = stage.latent(batch, jax.random.key(3))
  draw = compiled("generate")
  one = draw(state, noise, batch)
  np.testing.assert_array_equal(one["tokens"], batch["tokens"])
  other = draw(state, noise, {**batch, "tokens": jnp.roll(batch["tokens"], 1, axis=0)})
  assert np.abs(one["image"] - other["image"]).max((1, 2, 3)).min() > 1e-4
  again = draw(state, jax.tree.map(jnp.zeros_like, noise), batch)
  assert np.abs(one["image"] - again["image"]).max((1, 2, 3)).min() > 1e-4


def test_spread_tells_whether_noise_is_heard():
  _, state, batch = started()
  evaluate = compiled("evaluate")
  found = evaluate(state, batch, jax.random.key(3))
  assert found["spread_noise"] > 0.01
  first = state.ema["g"]["first"]  # of the condition, then of the noise; there is no other way in
  deaf = {**state.ema["g"], "first": jax.tree.map(jnp.zeros_like, first)}
  state = state.replace(ema={**state.ema, "g": deaf})
  found = evaluate(state, batch, jax.random.key(3))
  assert found["spread_noise"] == 0 < found["spread_captions"]


def test_pictures_have_a_column_for_a_caption_and_a_row_for_a_noise():
  made, state, batch = started()
  stage, key = made.stages[1], jax.random.key(4)
  shown = compiled("show")(state, batch, key)
  assert shown["sizes"].shape == (8, 3, 16, 16, 3)
  np.testing.assert_array_equal(shown["sizes"][:, -1], batch["image"])
  noise = stage.latent(batch, core.keys(key, "sizes", "captions").captions)
  row = jax.tree.map(lambda x: jnp.broadcast_to(x[2], x.shape), noise)
  want = compiled("generate")(state, row, batch)["image"]
  np.testing.assert_allclose(shown["captions"][2], want, atol=1e-5)


# --------------------------------------------------------------------------------------- bad input

NO_TEXT = {"data.text_key": "", "data.text_length": 32, "data.vocab_size": 1_024}


@pytest.mark.parametrize(
  "changes, message",
  [
    (NO_TEXT, r"dm_gan needs captions.*--config\.data\.text_key"),
    ({"data.image_size": 24}, r"24x24 pixels.*--config\.data\.image_size"),
    ({"model.num_refine": 2}, r"16x16 pixels.*--config\.model\.num_refine"),
    ({"model.features": 5}, r"--config\.model\.features=5 must be even"),
    ({"model.image_encoder": "vgg"}, r"--config\.model\.image_encoder='vgg'"),
    ({"batch_size": 4, "accumulate": 4}, r"--config\.batch_size=4"),
  ],
)
def test_what_cannot_be_is_said_in_a_line(changes, message):
  with pytest.raises(errors.UserError, match=message) as error:
    job.prepare(config_of("test", **changes))
  assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------- learning


def shuffled(true):
  """The stages, where every image is trained with the caption of another one."""

  def stages(config, info):
    def mixed(step):
      other = lambda b: {**b, "tokens": jnp.roll(b["tokens"], 1, axis=0)}
      return lambda state, batch, key: step(state, other(batch), key)

    return [stage._replace(step=mixed(stage.step)) for stage in true(config, info)]

  return stages


def swapped(workdir):
  """How often the colour seen of hair is another under another caption, with the noise as it was.

  Of pairs of captions that name two colours. Not measured yet.
  """
  made = job.prepare(config_of("small"))
  held = evaluation.Evaluator(made, 1)
  real = held.real(1_600)
  name = reader.train(real["image"], real["said"], real["said"].max(0) + 1)
  stage, state = made.stages[1], job.restore(made, str(workdir), 1)
  batch = held.source.decode(held.source.batch(0, 400))
  other = {n: jnp.roll(x, 1, axis=0) for n, x in batch.items()}
  noise, draw = stage.latent(batch, jax.random.key(0)), jax.jit(stage.generate)
  colour = [n for n, _ in made.infos[1].said].index("hair_color")
  asked = [np.asarray(b["said"])[:, colour] for b in (batch, other)]
  seen = [name(np.asarray(draw(state, noise, b)["image"]))[:, colour] for b in (batch, other)]
  told = (asked[0] >= 0) & (asked[1] >= 0) & (asked[0] != asked[1])
  return (seen[0] != seen[1])[told].mean()


@pytest.mark.learning
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_small_learns(tmp_path, seed):
  """Samples for combinations that were never seen show what their captions say."""
  found = train(config_of("small", seed=seed), tmp_path / "run")
  assert found["carried_all"] > 0.6 and found["carried_all"] > found["chance_all"] + 0.2, found
  assert swapped(tmp_path / "run") >= 0.8


@pytest.mark.learning
def test_captions_of_others_teach_nothing(tmp_path, monkeypatch):
  monkeypatch.setattr(method, "stages", shuffled(method.stages))
  found = train(config_of("small"), tmp_path / "run")
  assert found["carried_all"] < 0.6 and found["carried_all"] < found["chance_all"] + 0.2, found
  assert swapped(tmp_path / "run") < 0.8


def matched(config, workdir):
  """How often the encoders find a held-out image's caption."""
  loop.train(config, str(workdir))
  made = job.prepare(config)
  return evaluation.Evaluator(made, 0).evaluate(job.restore(made, str(workdir), 0))["r_precision"]


@pytest.mark.learning
def test_the_encoders_find_captions(tmp_path, monkeypatch):
  """Of held-out images among 32, where chance is 3 %; from shuffled ones they do not learn it."""
  config = config_of("small", num_steps=0, metrics=())
  right = matched(config, tmp_path / "right")
  monkeypatch.setattr(method, "stages", shuffled(method.stages))
  wrong = matched(config, tmp_path / "wrong")
  assert right > 0.6 and wrong < 0.15, (right, wrong)
