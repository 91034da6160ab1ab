"""Diagnostics on made-up logits, gradients and histories: healthy ones are silent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm import core, diagnostics, losses


def test_discriminator_stats_by_hand():
  real, fake = np.array([2.0, -1.0, 0.5, 3.0]), np.array([-3.0, 1.0])
  sigmoid = lambda l: 1 / (1 + np.exp(-l))
  got = diagnostics.discriminator_stats(jnp.asarray(real), jnp.asarray(fake))
  want = {
    "d_real": sigmoid(real).mean(),
    "d_fake": sigmoid(fake).mean(),
    "d_accuracy": (3 / 4 + 1 / 2) / 2,  # halves weigh the same whatever their sizes
    "saturation": sigmoid(fake).mean() / (1 - sigmoid(fake)).mean(),
  }
  assert set(got) == set(want)
  for name in want:
    assert got[name].shape == () and got[name].dtype == jnp.float32
    np.testing.assert_allclose(got[name], want[name], rtol=1e-6)


def test_an_untrained_discriminator_is_right_half_of_the_time():
  got = diagnostics.discriminator_stats(jnp.zeros(4), jnp.zeros(8))
  assert [float(got[k]) for k in ("d_real", "d_fake", "d_accuracy", "saturation")] == [
    0.5,
    0.5,
    0.5,
    1,
  ]


def test_saturation_is_the_ratio_of_the_generators_gradients():
  fake = jnp.array([-4.0, -6.0, -1.0])
  minimax = jnp.abs(jax.grad(losses.minimax_g)(fake)).sum()
  other = jnp.abs(jax.grad(losses.nonsaturating_g)(fake)).sum()
  got = diagnostics.discriminator_stats(fake, fake)["saturation"]
  np.testing.assert_allclose(got, minimax / other, rtol=1e-6)


@pytest.mark.parametrize("logit", [-300.0, 300.0])
def test_stats_are_finite_for_a_certain_discriminator(logit):
  got = diagnostics.discriminator_stats(jnp.full(3, logit), jnp.full(3, logit, jnp.bfloat16))
  assert all(np.isfinite(float(v)) for v in got.values())
  assert float(got["d_accuracy"]) == 0.5


def test_dead_units_of_a_relu_layer():
  x = jnp.abs(jax.random.normal(jax.random.key(0), (32, 5)))
  bias = jnp.array([0.0, -100.0, 0.0, -100.0])  # units 1 and 3 never fire
  params = {"a": {"kernel": jnp.ones((5, 4)), "bias": bias}, "b": {"kernel": jnp.ones((4, 2))}}

  def loss(p):
    h = jax.nn.relu(x @ p["a"]["kernel"] + p["a"]["bias"])
    return jnp.sum((h @ p["b"]["kernel"]) ** 2)

  got = jax.jit(lambda p: diagnostics.dead_units(jax.grad(loss)(p)))(params)
  assert got.dtype == jnp.float32 and float(got) == pytest.approx(2 / 6)  # of 4 + 2 units


def test_dead_units_counts_columns_that_are_exactly_zero():
  kernel = np.zeros((3, 3, 2, 5), np.float32)
  kernel[1, 2, 0, 3] = 1e-30  # tiny is not dead
  kernel[0, 0, 1, 0] = -1.0
  assert float(diagnostics.dead_units({"kernel": jnp.asarray(kernel)})) == pytest.approx(3 / 5)
  with pytest.raises(ValueError, match="kernel"):
    diagnostics.dead_units({"bias": jnp.zeros(3)})


def test_active_units_has_burdas_threshold():
  sign = np.array([1.0, -1.0] * 50)[:, None]
  stds = np.array([[1.0, 0.11, 0.09, 0.0]])  # variances 1, 0.0121, 0.0081, 0
  means = jnp.asarray(sign * stds + np.array([[0.0, 5.0, 5.0, 5.0]]), jnp.float32)
  assert float(diagnostics.active_units(means)) == 2  # an offset is not activity
  assert float(diagnostics.active_units(means, threshold=0.005)) == 3


# --- alarms ---------------------------------------------------------------------------------------


def history(stage="train", **metrics):
  """Records 100, 200, ... from lists of equal length; None leaves a metric out."""
  rows = zip(*metrics.values())
  return [
    {"stage": stage, "step": 100 * i, **{k: v for k, v in zip(metrics, row) if v is not None}}
    for i, row in enumerate(rows, 1)
  ]


def fired(records, info=None):
  return [(a.name, a.step) for a in diagnostics.alarms(records, info)]


HEALTHY = history(
  loss_d=[1.38, 1.1, 1.2, 1.25, 1.3],
  d_accuracy=[0.5, 0.992, 0.8, 0.7, 0.65],
  saturation=[1.0, 0.02, 0.4, 0.5, 0.7],
  dead_g=[0.9, 0.1, 0.05, 0.1, 0.1],  # the zero of a first layer's start goes away
  dead_d=[0.0, 0.0, 0.02, 0.0, 0.0],
  rate=[0.001, 2.0, 8.0, 12.0, 14.0],  # so does the first rate of a VAE
  modes_20=[None, 2.0, None, 7.0, 8.0],
  num_modes=[None, 8.0, None, 8.0, 8.0],
  class_min_share=[None, 0.0, None, 0.04, 0.06],
)


def test_a_healthy_history_is_silent():
  assert diagnostics.alarms(HEALTHY) == []
  assert diagnostics.alarms([]) == []
  assert fired(HEALTHY, core.Info({}, num_classes=10, modes=((0.0, 0.0),) * 8)) == []
  assert fired(history(w_distance=[1.0, 2.0], loss_d=[-1.0, -2.0])) == []  # no such metric


def test_vanishing_gradient():
  bad = history(d_accuracy=[0.9, 0.995, 1.0], saturation=[0.2, 0.004, 4e-4])
  assert fired(bad) == [("vanishing_gradient", 200)]
  assert "non-saturating" in diagnostics.alarms(bad)[0].message
  assert fired(history(d_accuracy=[0.995], saturation=[0.02])) == []
  assert fired(history(d_accuracy=[0.985], saturation=[1e-3])) == []
  # the measured ratio of gradients, where there is one, is believed before the saturation
  assert fired(history(d_accuracy=[0.995], saturation=[1e-3], grad_ratio=[0.5])) == []
  assert fired(history(d_accuracy=[0.995], grad_ratio=[1e-3])) == [("vanishing_gradient", 100)]
  assert fired(history(d_accuracy=[0.995])) == []


def test_one_sided_discriminator_needs_three_records_in_a_row():
  name = "one_sided_discriminator"
  assert fired(history(d_accuracy=[0.9, 0.996, 1.0, 0.999, 1.0])) == [(name, 200)]
  assert fired(history(d_accuracy=[0.996, 1.0, 0.9, 0.999, 1.0])) == []
  assert fired(history(d_accuracy=[0.9, 0.01, 0.0, 0.019])) == [(name, 200)]
  assert fired(history(d_accuracy=[1.0, None, 1.0, None, 1.0])) == [(name, 100)]
  wins = diagnostics.alarms(history(d_accuracy=[1.0] * 3))[0].message
  loses = diagnostics.alarms(history(d_accuracy=[0.0] * 3))[0].message
  assert "regularise" in wins and "sign" in loses


def test_mode_collapse_by_modes():
  assert fired(history(modes_20=[8, 7, 3, 1], num_modes=[8] * 4)) == [("mode_collapse", 300)]
  assert fired(history(modes_20=[6, 6], num_modes=[8, 8])) == []  # three quarters
  assert fired(history(modes_20=[1, 7], num_modes=[8, 8])) == []  # recovered
  assert fired(history(modes_20=[18])) == []  # of how many?
  grid = core.Info({}, modes=((0.0, 0.0),) * 25)
  assert fired(history(modes_20=[18]), grid) == [("mode_collapse", 100)]
  assert fired(history(modes_20=[20]), grid) == []
  assert "18 of 25" in diagnostics.alarms(history(modes_20=[18]), grid)[0].message


def test_mode_collapse_by_the_rarest_class():
  assert fired(history(class_min_share=[0.05, 0.01, 0.0])) == [("mode_collapse", 200)]
  assert fired(history(class_min_share=[0.021])) == []
  hundred = core.Info({}, num_classes=100)
  assert fired(history(class_min_share=[0.004]), hundred) == []
  assert fired(history(class_min_share=[0.001]), hundred) == [("mode_collapse", 100)]


def test_dead_units_alarm_names_the_worst_network():
  bad = history(dead_g=[0.1, 0.2, 0.3], dead_d=[0.4, 0.6, 0.8])
  assert fired(bad) == [("dead_units", 200)]
  assert diagnostics.alarms(bad)[0].message.startswith("dead_d is 60%")
  assert fired(history(dead_g=[0.5])) == []


def test_kl_collapse():
  bad = history(rate=[3.0, 0.05, 4e-7])
  assert fired(bad) == [("kl_collapse", 200)]
  assert "KL" in diagnostics.alarms(bad)[0].message
  assert fired(history(rate=[0.1, 0.2])) == []
  assert fired(history(learning_rate=[1e-3], generate=[0.0])) == []  # other names that end in rate


def test_each_alarm_once_for_each_stage_at_its_first_step():
  first = history(stage="4px", rate=[0.0, 0.0], dead_g=[0.0, 1.0])
  second = history(stage="8px", rate=[5.0, 0.0], dead_g=[0.0, 0.0])
  got = [(a.stage, a.name, a.step) for a in diagnostics.alarms(first + second)]
  assert got == [
    ("4px", "kl_collapse", 100),
    ("4px", "dead_units", 200),
    ("8px", "kl_collapse", 200),
  ]


def test_prefixed_names_are_found_and_not_a_number_is_silent():
  assert fired(history(**{"eval/rate": [0.0]})) == [("kl_collapse", 100)]
  assert fired(history(**{"modes.modes_20": [1], "modes.num_modes": [8]})) == [
    ("mode_collapse", 100)
  ]
  assert fired(history(**{"train/dead_enc": [0.9]})) == [("dead_units", 100)]
  nan = [float("nan")] * 3
  assert (
    fired(history(d_accuracy=nan, saturation=nan, rate=nan, dead_g=nan, class_min_share=nan)) == []
  )


def test_every_alarm_together_on_a_run_that_went_wrong():
  bad = history(
    d_accuracy=[1.0] * 4,
    saturation=[1e-5] * 4,
    dead_g=[0.9] * 4,
    rate=[0.0] * 4,
    modes_20=[0] * 4,
    num_modes=[8] * 4,
  )
  got = diagnostics.alarms(bad)
  assert {a.name for a in got} == {
    "vanishing_gradient",
    "one_sided_discriminator",
    "mode_collapse",
    "dead_units",
    "kl_collapse",
  }
  assert all(a.step == 100 and a.stage == "train" and ":" in a.message for a in got)
