"""StarGAN: the losses, who is moved by what, the labels, the rate, edits, and that it learns.

Its networks: tests/parity/test_parity_stargan.py; images of one's own: tests/unit/test_editing.py.
"""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import train
from flax import linen as nn

from gm import columns, core, errors, job, optim
from gm.nets import stargan, translator
from gm.nn import embed

QUICK = {"xla_backend_optimization_level": 0}
jit = functools.partial(jax.jit, compiler_options=QUICK)


def config_of(variant, **changes):
  config = importlib.import_module("configs.stargan").get_config(variant)
  config.update_from_flattened_dict({"num_devices": 1, **changes})
  return config


def batch_of(made, num=None):
  """Random images, and labels of which no two rows are alike as far as can be."""
  rng, info = np.random.default_rng(0), made.infos[0]
  num = num or made.sizes[0]
  labels = rng.integers(0, 2, (num, len(info.columns)))
  return {
    "image": jnp.asarray(np.tanh(rng.normal(size=(num, *info.shape["image"]))), jnp.float32),
    "attributes": jnp.asarray(labels, jnp.float32),
  }


def started(**changes):
  """The job, a state of random numbers, and a batch."""
  made, rng = job.prepare(config_of("test", **changes)), np.random.default_rng(1)
  state = jax.tree.map(jnp.zeros_like, made.templates[0])
  number = lambda s: jnp.asarray(0.3 * rng.normal(size=s.shape), jnp.float32)
  return made, state.replace(params=jax.tree.map(number, state.params)), batch_of(made)


def unrolled(body, carry, parts):
  """lax.scan as a loop, so that it can be looked into."""
  found = []
  for i in range(len(jax.tree.leaves(parts)[0])):
    carry, out = body(carry, jax.tree.map(lambda x, i=i: x[i], parts))
    found.append(out)
  return carry, jax.tree.map(lambda *x: jnp.stack(x), *found)


def moves(made, state, batch, monkeypatch):
  """[(names, what they saw, gradients)] of a step that moves nobody, and its metrics."""

  def step(*args):
    seen, true = [], core.minimize
    with monkeypatch.context() as patched:
      patched.setattr(jax.lax, "scan", unrolled)
      patched.setattr(core, "move", lambda s, tx, g, *, slot=None: seen[-1].append(g) or (s, {}))

      def minimize(state, tx, loss, names, batch, **how):
        seen.append([batch])
        return true(state, tx, loss, names, batch, **how)

      patched.setattr(core, "minimize", minimize)
      _, found = made.stages[0].step(*args)
    return seen, found

  return jit(step)(state, batch, jax.random.key(2))


def near(a, b, rtol=1e-3):
  """Every array within rtol of its largest entry."""

  def one(x, y):
    np.testing.assert_allclose(x, y, rtol=0, atol=rtol * float(jnp.abs(y).max()) + 1e-6)

  jax.tree.map(one, a, b)


# ------------------------------------------------------------------------------------------- sizes


def test_sizes():
  (state,) = job.prepare(config_of("paper"), on_paper=True).templates
  sizes = {n: core.count(p) for n, p in state.params.items()}
  assert sizes == {"g": 8_430_528, "d": 44_762_048}


# ----------------------------------------------------------------------------------------- padding


@pytest.mark.parametrize("pad, told", [("reflect", False), ("zero", True)])
def test_labels_reach_g_by_its_borders_of_zeros(pad, told):
  net = translator.Translator(3, 8, 0, 1, **{**translator.STARGAN, "pad": pad})
  x = jax.random.normal(jax.random.key(0), (1, 16, 16, 3))
  of = lambda c: embed.tiled(x, jnp.array([c]))
  params = net.init(jax.random.key(1), of([0.0, 0.0]))
  layer = lambda module, _: module.name == "first_norm"

  def features(c):
    found = net.apply(params, of(c), capture_intermediates=layer)[1]
    return found["intermediates"]["first_norm"]["__call__"][0]

  far = float(jnp.abs(features([1.0, 0.0]) - features([0.0, 1.0])).max())
  assert far > 0.1 if told else far < 1e-4, far


# ------------------------------------------------------------------------------------------ losses


class Same(nn.Module):
  """A generator that gives the image back, whatever it is told."""

  @nn.compact
  def __call__(self, x):
    return x[..., :3] + 0 * self.param("w", nn.initializers.zeros, ())


class Linear(nn.Module):
  """A discriminator with 2 x 3 patches, each of which is <w, x>, and logits of 0."""

  num: int
  scale: float

  @nn.compact
  def __call__(self, x):
    w = self.param("w", nn.initializers.constant(self.scale), x.shape[1:])
    score = jnp.sum(x * w, (1, 2, 3))
    return jnp.broadcast_to(score[:, None, None], (len(x), 2, 3)), jnp.zeros((len(x), self.num))


@pytest.mark.parametrize("scale", [0.0, 0.01, 0.02])
@pytest.mark.parametrize("labels", ["binary", "one_hot"])
def test_losses_where_they_are_known(labels, scale, monkeypatch):
  monkeypatch.setattr(translator, "Translator", lambda *_, **__: Same())
  monkeypatch.setattr(stargan, "Discriminator", lambda _, num, **__: Linear(num, scale))
  changes = {"model.labels": labels, "model.gp": 10.0, "model.cls": 2.0, "model.rec": 3.0}
  if labels == "one_hot":
    changes["data.attributes"] = ("skin",)
  made = job.prepare(config_of("test", **changes, **{"model.flip": 0.0}))
  batch = batch_of(made)
  if labels == "one_hot":
    batch["attributes"] = jax.nn.one_hot(jnp.arange(len(batch["image"])) % 7, 7)
  state = jit(made.stages[0].init)(jax.random.key(0), batch, None)
  _, found = moves(made, state, batch, monkeypatch)
  num = batch["attributes"].shape[1]
  entropy = num * np.log(2) if labels == "binary" else np.log(num)
  # six patches are summed: the slope is 6 |w|, wherever it is taken
  penalty = (6 * scale * np.sqrt(8 * 8 * 3) - 1) ** 2
  np.testing.assert_allclose(found["penalty"], penalty, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(found["cls_real"], entropy, rtol=1e-5)
  np.testing.assert_allclose([found["rec"], found["same"]], 0.0, atol=1e-6)
  np.testing.assert_allclose(found["w_estimate"], 0.0, atol=1e-6)  # of one and the same image
  np.testing.assert_allclose(found["loss_d"], 2 * entropy + 10 * penalty, rtol=1e-4)
  np.testing.assert_allclose(found["loss_g"], found["adversarial"] + 2 * entropy, rtol=1e-4)


def explicit(made, params, b, *, stopped=False, weights=None):
  """The losses of the paper, written out, of what the players saw."""
  m, num = weights or made.config.model, len(made.infos[0].columns)
  model = made.config.model
  g = translator.Translator(
    3, model.g_base, model.num_blocks, model.num_halvings, **translator.STARGAN
  )
  d = stargan.Discriminator(model.d_widths, num)
  x, a, c = b["image"], b["labels"], b["target"]
  bce = lambda z, y: jnp.sum(jnp.maximum(z, 0) - z * y + jnp.log1p(jnp.exp(-jnp.abs(z)))) / len(z)
  G = lambda p, x, c: g.apply({"params": p["g"]}, embed.tiled(x, c))
  D = lambda p, x: d.apply({"params": p["d"]}, x)

  def loss_d(of_d):
    p = {**params, "d": of_d}
    fake = G(p, x, c)
    t = jax.random.uniform(b["between"], (len(x), 1, 1, 1))
    slope = jax.vmap(jax.grad(lambda x: D(p, x[None])[0].sum()))(t * x + (1 - t) * fake)
    penalty = jnp.mean((jnp.sqrt(jnp.sum(slope**2, (1, 2, 3))) - 1) ** 2)
    real = -D(p, x)[0].mean() + m["cls"] * bce(D(p, x)[1], a)
    return real + D(p, fake)[0].mean() + m["gp"] * penalty

  def loss_g(of_g):
    p = {**params, "g": of_g}
    fake = G(p, x, c)
    back = G(p, jax.lax.stop_gradient(fake) if stopped else fake, a)
    judged, logits = D(p, fake)
    rec, same = (jnp.mean(jnp.abs(x - y)) for y in (back, G(p, x, a)))
    asked = m["cls"] * bce(logits, c) + m["rec"] * rec + m["same"] * same
    return asked - m.get("adversarial", 1.0) * judged.mean()

  return loss_d, loss_g


def test_each_player_moves_down_the_gradient_of_the_paper(monkeypatch):
  """D on every part of the batch, G once, on what D saw last; each moves itself alone."""
  made, state, batch = started(**{"model.num_critic": 2, "model.flip": 0.0})
  seen, found = moves(made, state, batch, monkeypatch)
  assert [list(grads) for _, grads in seen] == [["d"]] * 2 + [["g"]]
  assert len(batch["image"]) == 2 * made.config.batch_size

  @jit
  def wanted(b, last):
    loss_d, loss_g = explicit(made, state.params, b)[0], explicit(made, state.params, last)[1]
    return jax.value_and_grad(loss_d)(state.params["d"]), jax.value_and_grad(loss_g)(
      state.params["g"]
    )

  last = seen[-1][0]
  for b, grads in seen[:2]:
    (loss_d, of_d), (loss_g, of_g) = wanted(b, last)
    near(grads["d"], of_d)
  near(seen[-1][1]["g"], of_g)
  np.testing.assert_allclose(found["loss_d"], loss_d, rtol=1e-4)
  np.testing.assert_allclose(found["loss_g"], loss_g, rtol=1e-4)
  for name in ("image", "labels", "target"):
    np.testing.assert_array_equal(last[name], seen[1][0][name])


def test_every_part_has_targets_of_its_own_images(monkeypatch):
  """A permutation of the labels of each part, not the same in all; images are mirrored."""
  made, state, batch = started(**{"model.num_critic": 3, "batch_size": 16, "model.flip": 1.0})
  names = made.infos[0].columns
  batch["attributes"] = jax.random.uniform(jax.random.key(5), (48, len(names)))  # no two alike
  parts = [b for b, _ in moves(made, state, batch, monkeypatch)[0][:3]]
  orders = []
  for b in parts:
    same = (np.asarray(b["target"])[:, None] == np.asarray(b["labels"])[None]).all(2)
    assert (same.sum(0) == 1).all() and (same.sum(1) == 1).all()
    orders.append(same.argmax(1).tolist())
  assert len(set(map(tuple, [*orders, range(16)]))) == 4
  for name, x in (("labels", batch["attributes"]), ("image", batch["image"][:, :, ::-1])):
    together = np.concatenate([np.asarray(b[name]).reshape(16, -1) for b in parts])
    assert sorted(together.tolist()) == sorted(np.asarray(x).reshape(48, -1).tolist())


def test_the_way_back_reaches_both_makings(monkeypatch):
  """With rec alone G's gradient is not that of the second making, and not zero."""
  changes = {"model.cls": 0.0, "model.same": 0.0, "model.flip": 0.0, "model.num_critic": 1}
  made, state, batch = started(**changes)
  state = state.replace(
    params={**state.params, "d": jax.tree.map(jnp.zeros_like, state.params["d"])}
  )
  seen, _ = moves(made, state, batch, monkeypatch)
  only = {"cls": 0.0, "gp": 0.0, "same": 0.0, "rec": made.config.model.rec, "adversarial": 0.0}
  b = seen[-1][0]
  both, second = (
    jit(jax.grad(explicit(made, state.params, b, stopped=stopped, weights=only)[1]))(
      state.params["g"]
    )
    for stopped in (False, True)
  )
  near(seen[-1][1]["g"], both)
  far = lambda a, b: float(optax.global_norm(jax.tree.map(jnp.subtract, a, b)))
  assert far(both, second) > 0.1 * float(optax.global_norm(both)) > 0


# ----------------------------------------------------------------------------------------- recipe


def test_d_moves_num_critic_times_and_g_once():
  made, state, batch = started(**{"model.num_critic": 5})
  after = jit(made.stages[0].step)(state, batch, jax.random.key(0))[0]
  count = lambda n: {int(c) for _, c in optax.tree.get_all_with_path(after.opt[n], "count")}
  assert count("d") == {5} and count("g") == {1}


@pytest.mark.parametrize("decay, at", [("linear", 5e-5), ("literal", 9.995e-5)])
def test_the_rate_of_both_players_is_that_of_the_iteration(decay, at, monkeypatch):
  rates, true = [], optim.adam
  monkeypatch.setattr(optim, "adam", lambda lr, **how: rates.append(lr) or true(lr, **how))
  job.prepare(config_of("paper", **{"model.decay": decay}), on_paper=True)
  of_d, of_g = rates
  np.testing.assert_allclose(of_d(100_000), 1e-4, rtol=1e-6)
  np.testing.assert_allclose(of_d(150_000), at, rtol=1e-5)
  np.testing.assert_allclose(of_g(30_000), of_d(150_004), rtol=1e-6)  # after the fifth of its five
  end = 0.0 if decay == "linear" else 9.99e-5
  np.testing.assert_allclose(of_d(200_000), end, rtol=1e-5, atol=1e-12)


# ------------------------------------------------------------------------------------------- edits


def test_samples_are_edits_of_one_attribute(monkeypatch):
  made, state, batch = started()
  batch = {n: x[:8] for n, x in batch.items()} | {"drawn": jnp.zeros((8, 10), jnp.int32)}
  names, stage = made.infos[0].columns, made.stages[0]
  found = jit(stage.sample)(state, batch, jax.random.key(3))
  column = found["column"]
  assert len(set(column.tolist())) > 1
  again = jit(stage.sample)(state, {**batch, "target": column}, jax.random.key(4))
  for n, x in found.items():
    np.testing.assert_array_equal(x, again[n])
  # asked in words, of images whose labels D reads
  wanted = np.full((8, len(names)), np.nan, np.float32)
  target = columns.change(batch["attributes"], column, names)
  edit = jit(stage.edit)
  np.testing.assert_allclose(edit(state, batch["image"], 2 * target - 1), found["image"], atol=1e-5)
  d = stargan.Discriminator(made.config.model.d_widths, len(names))
  read = (d.apply({"params": state.params["d"]}, batch["image"])[1] > 0).astype(jnp.float32)
  assert 0 < float(read.mean()) < 1
  wanted[:, 3] = -1.0
  for given, labels in ((wanted, read.at[:, 3].set(0.0)), (np.full_like(wanted, np.nan), read)):
    np.testing.assert_allclose(
      edit(state, batch["image"], given), edit(state, batch["image"], 2 * labels - 1), atol=1e-5
    )


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"data.attributes": ()}, r"stargan changes attributes.*--config\.data\.attributes"),
    ({"data.image_size": 9}, r"9x9 pixels do not halve 1 times.*--config\.data\.image_size"),
    ({"model.d_widths": (4,) * 4}, r"8x8 pixels do not halve 4 times.*--config\.model\.d_widths"),
    ({"model.labels": "one_hot"}, r"--config\.model\.labels='one_hot' is for one attribute"),
    ({"model.labels": "many"}, r"--config\.model\.labels='many'"),
    ({"model.num_critic": 0}, r"--config\.model\.num_critic=0"),
    ({"model.gp": -1.0}, r"--config\.model\.gp=-1"),
    ({"model.decay": "cosine"}, r"--config\.model\.decay='cosine'"),
    ({"model.flip": 1.5}, r"--config\.model\.flip=1\.5"),
    ({"data.source": "embedded", "data.name": "mnist10k"}, "data.attributes"),
  ],
)
def test_what_cannot_be_is_said_in_a_line(changes, message):
  with pytest.raises(errors.UserError, match=message) as error:
    job.prepare(config_of("test", **changes))
  assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------- learning


@pytest.mark.learning
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_small_changes_what_is_asked_for(tmp_path, seed):
  """Not reached yet: black hair, and so 78 %, and the distance, see configs/stargan.py."""
  found = train(config_of("small", seed=seed), tmp_path / "run")
  assert found["changed"] > 0.8 > 0.1 > found["before"], found
  assert found["kept"] > 0.9 and found["l1"] < found["l1_before"], found


@pytest.mark.learning
def test_without_the_labels_nothing_is_changed(tmp_path):
  """The threshold is a proposal, not measured."""
  found = train(config_of("small", **{"model.cls": 0.0}), tmp_path / "run")
  assert found["changed"] < 0.3, found
