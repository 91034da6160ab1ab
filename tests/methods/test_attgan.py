"""AttGAN: the losses, who is moved by what, the labels, edits by degrees, and that it learns.

Its networks: tests/parity/test_parity_attgan.py; images of one's own: tests/unit/test_editing.py.
"""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import train
from flax import linen as nn
from test_stargan import batch_of, jit, moves, near

from gm import columns, core, errors, job, optim
from gm.metrics import edits
from gm.nets import attgan

# the editors' own move, two of D's; the decoder makes two images in the first
PASSES = [("test", {}, {"enc": 3, "dec": 4})]  # see test_promises.py


def config_of(variant, **changes):
  config = importlib.import_module("configs.attgan").get_config(variant)
  config.update_from_flattened_dict({"num_devices": 1, **changes})
  return config


def started(**changes):
  """The job, a state of random numbers, and a batch."""
  made, rng = job.prepare(config_of("test", **changes)), np.random.default_rng(1)
  state = jax.tree.map(jnp.zeros_like, made.templates[0])
  number = lambda s: jnp.asarray(0.3 * rng.normal(size=s.shape), jnp.float32)
  stats = jax.tree.map(lambda s: 1 + 0.1 * jnp.abs(number(s)), state.stats)
  return made, state.replace(params=jax.tree.map(number, state.params), stats=stats), batch_of(made)


def test_sizes():
  (state,) = job.prepare(config_of("paper"), on_paper=True).templates
  sizes = {n: core.count(p) for n, p in state.params.items()}
  assert sizes == {"enc": 11_148_160, "dec": 32_311_043, "d": 44_718_990}


# ------------------------------------------------------------------------------------------ losses


class Linear(nn.Module):
  """A critic <w, x>, and logits that are those of another head, of zeros."""

  num: int
  scale: float

  @nn.compact
  def __call__(self, x):
    w = self.param("w", nn.initializers.constant(self.scale), x.shape[1:])
    head = self.param("head", nn.initializers.zeros, (self.num,))
    return jnp.sum(x * w, (1, 2, 3)), jnp.zeros((len(x), self.num)) + head


@pytest.mark.parametrize("scale", [0.0, 0.05, 1 / np.sqrt(8 * 8 * 3)])
def test_losses_where_they_are_known(scale, monkeypatch):
  monkeypatch.setattr(attgan, "Discriminator", lambda _, __, num, **___: Linear(num, scale))
  weights = {"model.gp": 10.0, "model.d_cls": 2.0, "model.g_cls": 3.0, "model.rec": 4.0}
  made = job.prepare(config_of("test", **weights, **{"model.flip": 0.0}))
  batch = batch_of(made)
  state = jit(made.stages[0].init)(jax.random.key(0), batch, None)
  seen, found = moves(made, state, batch, monkeypatch)
  penalty, entropy = (scale * np.sqrt(8 * 8 * 3) - 1) ** 2, np.log(2)  # a mean over attributes
  np.testing.assert_allclose(found["penalty"], penalty, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(found["cls_real"], entropy, rtol=1e-5)
  d_loss = -found["w_estimate"] + 10 * penalty + 2 * entropy
  np.testing.assert_allclose(found["loss_d"], d_loss, rtol=1e-4, atol=1e-5)
  g_loss = found["adversarial"] + 3 * entropy + 4 * found["rec"]
  np.testing.assert_allclose(found["loss_enc+dec"], g_loss, rtol=1e-4, atol=1e-5)
  # the penalty is of the critic alone: what moves the other head is the cross-entropy at 0
  b, grads = seen[-1]
  np.testing.assert_allclose(
    grads["d"]["head"], 2 * (0.5 - b["labels"]).mean(0) / b["labels"].shape[1], atol=1e-6
  )


def explicit(made, state, b):
  """The losses of the paper, written out, of what the players saw."""
  m, shape, num = made.config.model, made.infos[0].shape["image"], len(made.infos[0].columns)
  enc = attgan.Encoder(m.widths, momentum=m.momentum)
  dec = attgan.Decoder(shape[2], m.widths, momentum=m.momentum)
  d = attgan.Discriminator(m.d_widths, m.d_features, num)
  x, a, c = b["image"], b["labels"], b["target"]
  bce = lambda z, y: jnp.mean(jnp.maximum(z, 0) - z * y + jnp.log1p(jnp.exp(-jnp.abs(z))))
  D = lambda p, x: d.apply({"params": p["d"]}, x)

  def edit(p, x, told):
    run = lambda net, n, *args: net.apply({"params": p[n], **state.stats[n]}, *args, train=True)
    return run(dec, "dec", run(enc, "enc", x), told)

  def loss_d(players):
    p = {**state.params, **players}
    fake, t = edit(p, x, 2 * c - 1), jax.random.uniform(b["between"], (len(x), 1, 1, 1))
    slope = jax.vmap(jax.grad(lambda x: D(p, x[None])[0].sum()))(t * fake + (1 - t) * x)
    penalty = jnp.mean((jnp.sqrt(jnp.sum(slope**2, (1, 2, 3))) - 1) ** 2)
    real = -D(p, x)[0].mean() + m.d_cls * bce(D(p, x)[1], a)
    return real + D(p, fake)[0].mean() + m.gp * penalty

  def loss_g(players):
    p = {**state.params, **players}
    scores, logits = D(p, edit(p, x, 2 * c - 1))
    rec = jnp.mean(jnp.abs(x - edit(p, x, 2 * a - 1)))
    return -scores.mean() + m.g_cls * bce(logits, c) + m.rec * rec

  return loss_d, loss_g


def test_each_player_moves_down_the_gradient_of_the_paper(monkeypatch):
  """First encoder and decoder, then D on every other part of the batch, each by itself alone."""
  made, state, batch = started(**{"model.flip": 0.0})
  seen, found = moves(made, state, batch, monkeypatch)
  assert [sorted(grads) for _, grads in seen] == [["dec", "enc"], ["d"], ["d"]]
  assert len(batch["image"]) == 3 * made.config.batch_size
  only = lambda *names: {n: state.params[n] for n in names}

  @jit
  def wanted(first, *rest):
    of_g = jax.value_and_grad(explicit(made, state, first)[1])(only("enc", "dec"))
    return of_g, [jax.value_and_grad(explicit(made, state, b)[0])(only("d")) for b in rest]

  (loss_g, of_g), of_d = wanted(*(b for b, _ in seen))
  near(seen[0][1], of_g)
  for (_, grads), (_, want) in zip(seen[1:], of_d, strict=True):
    near(grads, want)
  np.testing.assert_allclose(found["loss_enc+dec"], loss_g, rtol=1e-4)
  np.testing.assert_allclose(found["loss_d"], of_d[-1][0], rtol=1e-4)


def test_every_part_has_targets_of_its_own_images(monkeypatch):
  made, state, batch = started(**{"batch_size": 16, "model.flip": 1.0})
  batch["attributes"] = jax.random.uniform(jax.random.key(5), batch["attributes"].shape)
  seen, orders = moves(made, state, batch, monkeypatch)[0], []
  for b, _ in seen:
    same = (np.asarray(b["target"])[:, None] == np.asarray(b["labels"])[None]).all(2)
    assert (same.sum(0) == 1).all() and (same.sum(1) == 1).all()
    orders.append(same.argmax(1).tolist())
  assert len(set(map(tuple, [*orders, range(16)]))) == 4
  together = np.concatenate([np.asarray(b["image"]).reshape(16, -1) for b, _ in seen])
  want = np.asarray(batch["image"][:, :, ::-1]).reshape(48, -1)
  assert sorted(together.tolist()) == sorted(want.tolist())


def test_a_sample_is_told_twice_what_training_is():
  """-1 and 1 there, see `explicit`."""
  made, state, batch = started()
  few = {n: x[:8] for n, x in batch.items()}
  found = jit(made.stages[0].sample)(state, few, jax.random.key(3))
  names, column = made.infos[0].columns, found["column"]
  target = np.asarray(2 * columns.change(few["attributes"], column, names) - 1)
  assert set(np.unique(target)) == {-1.0, 1.0} and len(set(column.tolist())) > 1
  wanted = target * np.where(np.eye(len(names))[column], 2.0, 1.0)
  edit = jit(made.stages[0].edit)
  np.testing.assert_allclose(edit(state, few["image"], wanted), found["image"], atol=1e-5)
  assert float(jnp.abs(edit(state, few["image"], target) - found["image"]).max()) > 1e-3


def test_without_what_is_asked_of_edits_there_is_the_distance_alone(monkeypatch):
  """D of zeros passes on nothing; else what C reads of edits moves the encoder too."""
  made, state, batch = started(**{"model.flip": 0.0, "model.g_cls": 0.0})
  blind = jax.tree.map(jnp.zeros_like, state.params["d"])
  b, grads = moves(made, state.replace(params={**state.params, "d": blind}), batch, monkeypatch)[0][
    0
  ]
  alone = state.replace(params={**state.params, "d": blind})
  _, loss = explicit(made, alone, {**b, "target": 1 - b["labels"]})  # whatever is asked of edits
  near(grads, jit(jax.grad(loss))({n: state.params[n] for n in ("enc", "dec")}))
  made, state, batch = started(**{"model.flip": 0.0, "model.rec": 0.0})
  _, grads = moves(made, state, batch, monkeypatch)[0][0]
  assert float(optax.global_norm(grads["enc"])) > 1e-3


def test_the_rate_of_both_falls_in_the_second_half(monkeypatch):
  rates, true = [], optim.adam
  monkeypatch.setattr(optim, "adam", lambda lr, **how: rates.append(lr) or true(lr, **how))
  job.prepare(config_of("test", num_steps=100, lr=1.0, **{"model.num_critic": 5}))
  of_d, of_g = rates
  np.testing.assert_allclose([of_d(i) for i in (0, 250, 375, 500)], [1, 1, 0.5, 0], atol=1e-6)
  np.testing.assert_allclose([of_g(i) for i in (0, 50, 75, 100)], [1, 1, 0.5, 0], atol=1e-6)


# ------------------------------------------------------------------------------------------- edits


def test_images_of_ones_own_are_read_by_c():
  made, state, batch = started()
  x, stage = batch["image"][:8], made.stages[0]
  assert stage.strengths == (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)
  m, num = made.config.model, len(made.infos[0].columns)
  d = attgan.Discriminator(m.d_widths, m.d_features, num)
  read = np.where(d.apply({"params": state.params["d"]}, x)[1] > 0, 1.0, -1.0)
  assert 0 < (read > 0).mean() < 1
  edit, wanted = jit(stage.edit), np.full((8, num), np.nan)
  np.testing.assert_allclose(edit(state, x, wanted), edit(state, x, read), atol=1e-5)
  wanted[:, 1], read[:, 1] = 1.5, 1.5
  np.testing.assert_allclose(edit(state, x, wanted), edit(state, x, read), atol=1e-5)


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"data.attributes": ()}, r"attgan changes attributes.*--config\.data\.attributes"),
    ({"data.image_size": 10}, r"10x10 pixels do not halve 2 times.*--config\.data\.image_size"),
    ({"model.d_widths": (4,) * 4}, r"8x8 pixels do not halve 4 times.*--config\.model\.d_widths"),
    ({"model.shortcuts": 2}, r"--config\.model\.shortcuts=2"),
    ({"model.num_critic": 0}, r"--config\.model\.num_critic=0"),
    ({"model.rec": -1.0}, r"--config\.model\.rec=-1"),
    ({"model.strength": 0.0}, r"--config\.model\.strength=0"),
    ({"model.momentum": 1.0}, r"--config\.model\.momentum=1"),
  ],
)
def test_what_cannot_be_is_said_in_a_line(changes, message):
  with pytest.raises(errors.UserError, match=message) as error:
    job.prepare(config_of("test", **changes))
  assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------- learning


def rising(work, degrees=(-2.0, -1.0, 0.0, 1.0, 2.0), num=100):
  """The share of held-out faces that go the way of what is drawn, the farther the more is asked.

  How far: along the difference of the faces that are drawn with and without the attribute. A step
  back of a hundredth of the way is none.
  """
  made, index, state = job.newest(str(work))
  source, names = job.load(made, index, "test", shuffle=False), made.infos[0].columns
  batch = source.decode(source.batch(0, num))
  x, right = np.asarray(batch["image"]), []
  edit = jit(made.stages[index].edit)
  for i, name in enumerate(names):
    wanted = np.full((num, len(degrees), len(names)), np.nan, np.float32)
    wanted[:, :, i] = degrees
    wanted[..., columns.rivals(names)[i]] = -1.0
    found = edit(state, np.repeat(x, len(degrees), 0), wanted.reshape(-1, len(names)))
    found = np.asarray(found).reshape(num, len(degrees), *x.shape[1:])
    for row, faces in zip(np.asarray(batch["drawn"])[i :: len(names)], found[i :: len(names)]):
      there, not_there = (edits.counterfactuals(name, n, row, x.shape[1:]) for n in (1, 0))
      way = there.mean(0) - not_there.mean(0)
      how_far = np.sum((faces - not_there.mean(0)) * way, (1, 2, 3)) / np.sum(way**2)
      right.append((np.diff(how_far) > -0.01).all())
  return np.mean(right)


@pytest.mark.learning
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_small_changes_what_is_asked_for(tmp_path, seed):
  """The distance l1 is not reached yet, see configs/attgan.py."""
  found = train(config_of("small", seed=seed), tmp_path / "run")
  assert found["changed"] > 0.85 > 0.1 > found["before"], found
  assert found["kept"] > 0.95 and found["rec"] < 0.06, found
  assert found["l1"] < found["l1_before"], found
  assert rising(tmp_path / "run") > 0.8


@pytest.mark.learning
def test_without_the_attributes_nothing_is_changed(tmp_path):
  """The threshold is a proposal, not measured."""
  found = train(config_of("small", **{"model.g_cls": 0.0}), tmp_path / "run")
  assert found["changed"] < 0.3, found
