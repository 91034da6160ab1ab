"""What --mode=sample promises: seeds, labels, walks, from the averaged weights."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from gm import asked, core, errors, inspection, job, pictures, sampling, sharding
from gm.workdir import record

METHODS = sorted(p.stem for p in (ROOT / "gm/methods").glob("*.py") if p.stem != "__init__")
# draw nothing, or of what has none
WITHOUT_LATENT = ("attack", "attgan", "classifier", "cyclegan", "sampling", "srgan", "stargan")
KINDS = {"image", "point"}


@functools.cache
def made(name, num_devices=1, **changes):
  config = importlib.import_module(f"configs.{name}").get_config("test")
  with config.unlocked():
    config.num_devices = num_devices
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
  return job.prepare(config)


def last(run):
  """The last stage of a job, the shapes of its state, of a batch and of a key."""
  batch = core.batch_shapes(run.infos[-1], run.sizes[-1])
  return run.stages[-1], run.templates[-1], batch, jax.eval_shape(lambda: jax.random.key(0))


@functools.cache
def sampler(name, num_devices=1, **changes):
  """Of the state that a method starts from."""
  run = made(name, num_devices, **changes)
  return sampling.Sampler(run, len(run.stages) - 1, first_state(run))


def first_state(run):
  stage, batch = run.stages[-1], last(run)[2]
  batch = {n: jnp.zeros(s.shape, s.dtype) for n, s in batch.items()}
  quick = {"xla_backend_optimization_level": 0}
  state = jax.jit(stage.init, compiler_options=quick)(run.keys[-1]["init"], batch, None)
  return jax.device_put(jax.device_get(state), sharding.replicated(run.mesh))


def drawn(parts):
  parts = list(parts)
  return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


@pytest.mark.parametrize("name", METHODS)
def test_sample_is_generate_after_latent(name):
  """To the letter: both are traced to the same program, so they are the same bit for bit."""
  stage, *args = last(made(name))
  assert (stage.latent is None) == (stage.generate is None) == (name in WITHOUT_LATENT)
  if stage.latent is None:
    return
  after = lambda state, batch, key: stage.generate(state, stage.latent(batch, key), batch)
  trace = lambda function: str(jax.make_jaxpr(lambda *given: function(*given))(*args))
  assert trace(after) == trace(stage.sample)
  z = jax.eval_shape(stage.latent, *args[1:])
  assert all(x.shape[0] == len(jax.tree.leaves(args[1])[0]) for x in jax.tree.leaves(z))


@pytest.mark.parametrize("name", METHODS)
def test_a_latent_on_a_box_is_walked_in_straight_lines(name):
  stage, _, batch, _ = last(made(name))
  if stage.latent is None:
    return
  zeros = jax.tree.map(lambda x: jnp.zeros((32, *x.shape[1:]), x.dtype), batch)
  quick = {"xla_backend_optimization_level": 0}
  z = jax.jit(stage.latent, compiler_options=quick)(zeros, jax.random.key(0))
  floats = [x for x in jax.tree.leaves(z) if x.dtype == jnp.float32]
  assert stage.straight == all(np.abs(x).max() <= 1 for x in floats)


@pytest.mark.parametrize("name", METHODS)
def test_what_is_asked_for_by_seed_follows_the_average(name):
  """Where networks are averaged, those that play and their statistics are not even read."""
  normalised = {"model__g_norm": "batch"} if name in ("wgan", "lsgan", "gan") else {}
  stage, state, batch, key = last(made(name, **normalised))
  if stage.latent is None or not state.ema:
    return
  assert jax.tree.leaves(state.ema.get("g_stats", True))  # statistics that could be mistaken
  z = jax.eval_shape(stage.latent, batch, key)
  found, _ = inspection.depends(stage.generate, state, z, batch)
  network = next(n for n in ("g", "dec") if n in state.ema)
  for kind in KINDS & set(found):
    read = {path for path in found[kind] if path.startswith("[0]")}
    assert any(path.startswith(f"[0].ema['{network}']") for path in read)
    assert not any(path.startswith(("[0].params", "[0].opt")) for path in read), read
    assert not any(p.startswith("[0].stats") and "w_avg" not in p for p in read), read


# ---------------------------------------------------------------------------------------- by seed


def test_the_sample_of_a_seed_does_not_depend_on_what_else_is_asked_for():
  s = sampler("cgan")
  many = drawn(s.stream(range(3, 140)))
  assert many["seed"].tolist() == list(range(3, 140)) and many["image"].shape == (137, 28, 28, 1)
  few = drawn(s.stream([70, 5, 139, 64]))
  assert few["seed"].tolist() == [70, 5, 139, 64]
  for i, seed in enumerate(few["seed"]):
    np.testing.assert_array_equal(few["image"][i], many["image"][seed - 3])
  assert len(np.unique(many["image"].round(6), axis=0)) == 137
  np.testing.assert_array_equal(many["label"], many["seed"] % 10)  # every class in turn


def test_the_sample_of_a_seed_is_drawn_from_its_own_key_alone():
  """As `sample` would draw it for a batch of one."""
  s = sampler("cgan")
  for seed in (0, 77):
    key = jax.random.fold_in(s.job.keys[-1]["seeds"], seed)
    batch = {"image": jnp.zeros((1, 28, 28, 1)), "label": jnp.array([4])}
    alone = s.stage.sample(s.state, batch, key)
    found = drawn(s.stream([seed], [4]))
    np.testing.assert_allclose(found["image"], alone["image"], atol=1e-6)
    assert found["label"].tolist() == alone["label"].tolist() == [4]


def test_two_devices_draw_what_one_draws():
  one, two = (drawn(sampler("cgan", n).stream(range(50, 80))) for n in (1, 2))
  np.testing.assert_allclose(one["image"], two["image"], atol=1e-5)
  assert sampler("cgan", 2).job.mesh.size == 2


def test_samples_normalised_by_their_batch_are_a_function_of_the_seed_too():
  s = sampler("dcgan", model__bn_mode="batch")
  many, one = drawn(s.stream(range(60, 70))), drawn(s.stream([66]))
  np.testing.assert_array_equal(one["image"][0], many["image"][6])


def test_labels_are_crossed_with_seeds():
  s = sampler("cgan")
  found = drawn(s.stream([1, 2], [3, 7]))
  assert found["seed"].tolist() == [1, 2, 1, 2] and found["label"].tolist() == [3, 3, 7, 7]
  assert (found["image"][0] != found["image"][2]).any()  # one seed, two labels


def test_labels_have_names():
  s = sampler("cgan")
  assert s.numbers(["3", 7, "3"]) == [3, 7] and s.numbers(None) is None
  named = sampling.Sampler(s.job, 0, s.state, ["cat", "dog", *"abcdefg", "1"])
  assert named.numbers(["dog", "1", "2"]) == [1, 9, 2]  # a name goes before a number
  for label in ("10", "-1", "cow"):
    with pytest.raises(errors.UserError, match=rf"no label '{label}'.*0 to 9.*cat, dog"):
      named.numbers([label])


@pytest.mark.parametrize(
  ("name", "changes", "conditional"),
  [
    ("gan", {}, False),
    ("cgan", {}, True),
    ("cgan", {"model__sample_label": 3}, False),  # always the same one
    ("sngan", {"model__conditional": False}, False),
    ("biggan", {}, True),
    ("infogan", {}, False),
    ("classifier", {}, False),
  ],
)
def test_labels_are_for_what_depends_on_them(name, changes, conditional):
  run = made(name, **changes)
  run = run._replace(stages=[run.stages[0]._replace(ready=None)])  # which works on arrays
  s = sampling.Sampler(run, 0, run.templates[0])
  assert s.conditional == conditional
  if not conditional:
    with pytest.raises(errors.UserError, match=f"--labels: this {name} is told no label"):
      s.numbers(["3"])


def test_only_what_depends_on_an_example_reads_the_data():
  assert drawn(sampler("infogan").stream([0])).keys() == {"image", "category", "seed"}
  rows = drawn(sampler("classifier").stream([5, 6]))  # the examples with those numbers
  s = sampler("classifier")
  source = job.load(s.job, 0, "test", shuffle=False, whole=True)
  rest = source.decode(source.batch(0, 8))["image"][5:7]
  np.testing.assert_allclose(rows["image"], rest, atol=1e-6)


def test_methods_without_a_latent_draw_by_seed_too():
  s = sampler("sampling")
  many, one = drawn(s.stream(range(4))), drawn(s.stream([2]))
  np.testing.assert_array_equal(one["point"][0], many["point"][2])
  assert len(np.unique(many["point"], axis=0)) > 1


# ------------------------------------------------------------------------------------------ walks


@pytest.mark.parametrize("name", ["cgan", "infogan", "stylegan2"])
def test_a_walk_passes_through_its_seeds_and_ends_where_it_began(name):
  s = sampler(name)
  label = [4] if s.conditional else None
  frames = drawn(s.walk([5, 9, 130], 66, 4 if s.conditional else None))["image"]
  assert len(frames) == 66
  at = drawn(s.stream([5, 9, 130], label))["image"]
  np.testing.assert_allclose(frames[[0, 22, 44]], at, atol=1e-5)
  steps = np.abs(np.diff(frames, axis=0, append=frames[:1])).mean((1, 2, 3))
  assert steps.max() < 0.5 * np.abs(at[0] - at[1]).mean()  # no jump, at the end neither


def test_between_two_latents():
  a, b = jax.random.normal(jax.random.key(0), (2, 5, 300))
  at = lambda t, **how: np.asarray(pictures.between(a, b, jnp.full(5, t), **how))
  for straight in (True, False):
    np.testing.assert_array_equal(at(0.0, straight=straight), a)
    np.testing.assert_allclose(at(1.0, straight=straight), b, atol=1e-6)
  length = lambda x: np.linalg.norm(x, axis=1)
  np.testing.assert_allclose(length(at(0.5, straight=False)), length(a), rtol=0.1)
  np.testing.assert_allclose(length(at(0.5, straight=True)), length(a) / 2**0.5, rtol=0.1)
  t = jnp.linspace(0, 1, 5)
  for end in (a, -a):  # an angle of 0 or pi has no arc
    found = pictures.between(a, end, t, straight=False)
    np.testing.assert_allclose(found, (1 - t)[:, None] * a + t[:, None] * end, atol=1e-5)
  whole = pictures.between(
    jnp.zeros(3, int), jnp.full(3, 9), jnp.array([0.4, 0.5, 1.0]), straight=False
  )
  assert whole.tolist() == [0, 9, 9]


# -------------------------------------------------------------------------------------- truncation


@pytest.mark.parametrize(("name", "key"), [("biggan", "truncation"), ("stylegan2", "psi")])
def test_truncation_is_that_of_the_call(name, key, tmp_path, monkeypatch):
  config = importlib.import_module(f"configs.{name}").get_config("test")
  record.write_config(tmp_path, config.to_dict())
  monkeypatch.setattr(sampling, "newest", lambda workdir, config: (config, 0, None))
  monkeypatch.setattr(sampling, "Sampler", lambda config, *rest: config)
  found = sampling.open_run(tmp_path, None, 0.7)
  assert found.model[key] == 0.7 != config.model[key]
  assert sampling.open_run(tmp_path).model[key] == config.model[key]
  assert sampling.open_run(tmp_path, config, 0.7).model[key] == 0.7 != config.model[key]


def test_truncation_of_what_has_none_is_refused(tmp_path):
  record.write_config(tmp_path, importlib.import_module("configs.gan").get_config().to_dict())
  with pytest.raises(errors.UserError, match=r"--truncation=0.7: gan has none"):
    sampling.open_run(tmp_path, None, 0.7)


def test_statistics_that_samples_share_are_taken_before_the_first():
  """BigGAN's, of a state that has none of its own step yet; those that it has are left."""
  s = sampler("biggan")
  before, kept = first_state(s.job).extra["standing"], s.state.extra["standing"]
  assert int(before["step"]) == -1 and int(kept["step"]) == 0
  assert float(kept["threshold"]) == s.job.config.model.truncation
  for a, b in zip(*(jax.tree.leaves(x["statistics"]) for x in (before, kept)), strict=True):
    assert (a != b).any()
  again = sampling.Sampler(s.job, 0, s.state).state.extra["standing"]
  jax.tree.map(np.testing.assert_array_equal, again, kept)


# ------------------------------------------------------------------------- inputs and targets


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """Two images of the user's own, neither of the size of the data."""
  folder, found = tmp_path_factory.mktemp("own"), []
  for i, size in enumerate([(56, 56), (28, 40)]):
    grey = np.random.default_rng(i).integers(0, 256, size, np.uint8)
    found.append(str(folder / f"own{i}.png"))
    Image.fromarray(grey).save(found[-1])
  return found


def with_inputs(name, inputs):
  s = sampler(name, **({"model__game": "attack"} if name == "attack" else {}))
  return sampling.Sampler(s.job, 0, s.state, s.classes, inputs)


def test_an_image_of_ones_own_takes_the_place_of_an_example(files, monkeypatch):
  """It is read as a data set's, and no data set is."""
  monkeypatch.setattr(job, "load", None)
  s = with_inputs("classifier", files)
  found = drawn(s.stream([3, 70]))
  expected = asked.read_images(files, (28, 28, 1))
  assert expected.min() >= -1 and expected.max() <= 1 and expected.std() > 0.1
  assert found["seed"].tolist() == [3, 70, 3, 70]  # all seeds for the first, then for the second
  np.testing.assert_allclose(found["image"], np.repeat(expected, 2, axis=0), atol=1e-6)
  logits = s.stage.sample(s.state, {"image": expected, "label": None}, None)["label"]
  np.testing.assert_array_equal(found["label"], np.repeat(logits, 2))


def test_a_target_is_what_sample_is_told(files):
  s = with_inputs("attack", files[:1])
  told = []
  whole = s.stage.sample

  def sample(state, batch, key):
    told.append(set(batch))
    return {**whole(state, batch, key), "image": batch["target"] + 0.0}

  assert s.target("3") == 3 and s.target(None) is None
  named = sampling.Sampler(s.job, 0, s.state, ["cat", "dog", *"abcdefgh"], files[:1])
  assert named.target("dog") == 1
  s.stage = s.stage._replace(sample=sample)
  assert drawn(s.stream([0], target=7))["image"].tolist() == [7.0]
  assert told == [{"image", "label", "target"}]


def test_what_takes_no_input_or_target_says_so(files, tmp_path):
  for name in ("gan", "cgan", "sampling"):
    with pytest.raises(errors.UserError, match=f"--input: samples of this {name} .* of no image"):
      with_inputs(name, files)
    with pytest.raises(errors.UserError, match=f"--target: this {name} is told no target"):
      sampler(name).target("3")
    run = made(name)
    with pytest.raises(errors.UserError, match=f"--complete: .* {name} finishes no images"):
      sampling.Sampler(run, 0, sampler(name).state, complete=files)
  with pytest.raises(errors.UserError, match=r"--target: this classifier is told no target"):
    sampler("classifier").target(3)
  with pytest.raises(errors.UserError, match=r"^--target: there is no label '10'.* 0 to 9"):
    with_inputs("attack", files).target("10")
  broken, missing = tmp_path / "broken.png", tmp_path / "missing.png"
  broken.write_bytes(b"no image")
  for paths, said in (
    ([], "--input names no file"),
    ([files[0], str(missing)], r"--input: .*missing\.png: No such file"),
    ([str(broken)], r"--input: .*broken\.png: not readable as an image"),
    ([str(tmp_path)], "--input: .*not readable|--input: .*Is a directory"),
  ):
    with pytest.raises(errors.UserError, match=said):
      with_inputs("classifier", paths)
