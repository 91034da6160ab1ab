"""Signs of the known failures of GAN and VAE training, as numbers, and alarms made of them.

The first three functions are pure functions of arrays, cheap enough for every step; `alarms` reads
the history that they left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


def discriminator_stats(real_logits: jax.Array, fake_logits: jax.Array) -> dict[str, jax.Array]:
  """What a logistic discriminator says, and how much of it the generator can feel.

  saturation = E D(G(z)) / E (1 - D(G(z))): the gradient of the minimax loss per logit over that of
  the non-saturating loss. It falls towards 0 where the discriminator wins, and with it the minimax
  gradient, while the non-saturating one stays.

  Args:
    real_logits: D on data, [B] or any shape.
    fake_logits: D on samples, [B] or any shape.

  Returns:
    d_real and d_fake, the means of sigmoid; d_accuracy, the mean of both halves' accuracies, 1/2
    for an untrained D (a logit of 0 counts as fake); saturation, at most 1e12. All f32 scalars.
    Outputs of critics are not logits: leave these out there.

  Source: Goodfellow et al., 2014, arXiv:1406.2661, section 3; Arjovsky and Bottou, 2017,
  arXiv:1701.04862, theorem 2.4.

  >>> stats = discriminator_stats(jnp.array([2.0]), jnp.array([-2.0]))
  >>> {name: round(float(value), 3) for name, value in stats.items()}
  {'d_real': 0.881, 'd_fake': 0.119, 'd_accuracy': 1.0, 'saturation': 0.135}
  """
  real, fake = (logits.astype(jnp.float32) for logits in (real_logits, fake_logits))
  return {
    "d_real": jnp.mean(jax.nn.sigmoid(real)),
    "d_fake": jnp.mean(jax.nn.sigmoid(fake)),
    "d_accuracy": 0.5 * (jnp.mean(real > 0) + jnp.mean(fake <= 0)),
    "saturation": jnp.mean(jax.nn.sigmoid(fake))
    / jnp.maximum(jnp.mean(jax.nn.sigmoid(-fake)), 1e-12),
  }


def margin_stats(real: jax.Array, fake: jax.Array) -> dict[str, jax.Array]:
  """How far a D whose outputs are no logits of a probability tells data from samples.

  Args:
    real: D on data, [B] or any shape.
    fake: D on samples, [B] or any shape.

  Returns:
    margin, the difference of the means, and d_accuracy, the mean of both halves' accuracies with 0
    as the border (an output of 0 counts as fake). Both f32 scalars.

  >>> stats = margin_stats(jnp.array([2.0, -1.0]), jnp.array([-2.0]))
  >>> {name: float(value) for name, value in stats.items()}
  {'margin': 2.5, 'd_accuracy': 0.75}
  """
  return {
    "margin": real.mean() - fake.mean(),
    "d_accuracy": 0.5 * (jnp.mean(real > 0) + jnp.mean(fake <= 0)),
  }


def dead_units(grads: Any) -> jax.Array:
  """Fraction of units that no example moves: kernel columns whose gradient is exactly 0.

  Args:
    grads: gradient of one network; leaves with at least two axes are kernels, with the outputs
      last.

  Returns:
    f32 scalar in [0, 1]; log it as dead_<network>. A unit counts once for each kernel that feeds
    it.

  Raises:
    ValueError: if no leaf has two axes.

  >>> float(dead_units({"kernel": jnp.array([[0.0, 1.0, 0.0, 2.0]]), "bias": jnp.zeros(4)}))
  0.5
  """
  kernels = [g for g in jax.tree.leaves(grads) if g.ndim >= 2]
  if not kernels:
    raise ValueError(
      f"no kernel of two or more axes in {jax.tree.structure(grads)}: pass the gradient of one "
      "network, or leave dead_units out"
    )
  dead = [jnp.sum(jnp.all(g == 0, axis=tuple(range(g.ndim - 1)))) for g in kernels]
  return sum(dead).astype(jnp.float32) / sum(g.shape[-1] for g in kernels)


def generator_gradients(logits: Callable, params: Any) -> dict[str, jax.Array]:
  """Compares the gradients that the two losses of the first GAN would give the generator.

  Args:
    logits: G's params -> D(G(z)) in logits, [B].
    params: of G.

  Returns:
    of the gradient of this batch, as a step feels it, noise and all, so compare equal batch sizes:
    gradnorm_minimax and gradnorm_nonsaturating, the norms of the gradients of -E softplus(s) and
    E softplus(-s); grad_ratio, the first over the second; dead_g, the share of G's units that get
    none of either.

  Source: Goodfellow et al., 2014, arXiv:1406.2661, section 3.

  >>> found = generator_gradients(lambda w: jnp.ones((5, 2)) @ w, jnp.zeros((2, 1)))  # D = 1/2
  >>> float(found["grad_ratio"]), float(found["dead_g"])
  (1.0, 0.0)
  """
  out, pullback = jax.vjp(logits, params)
  per_logit = lambda weight: pullback(-weight.astype(out.dtype) / out.size)[0]
  minimax = per_logit(jax.nn.sigmoid(out))
  nonsaturating = per_logit(jax.nn.sigmoid(-out))
  norm = lambda tree: jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(tree)))
  return {
    "gradnorm_minimax": norm(minimax),
    "gradnorm_nonsaturating": norm(nonsaturating),
    "grad_ratio": norm(minimax) / jnp.maximum(norm(nonsaturating), 1e-12),
    "dead_g": dead_units(nonsaturating),
  }


def active_units(means: jax.Array, *, threshold: float = 0.01) -> jax.Array:
  """Number of latents that the encoder uses: Var_x of the posterior mean > threshold.

  Args:
    means: posterior means of held-out data, [N, Z].
    threshold: variance, in units of the prior's (1).

  Returns:
    f32 scalar in [0, Z].

  Source: Burda et al., 2016, arXiv:1509.00519.

  >>> float(active_units(jnp.array([[1.0, 0.01], [-1.0, 0.02]])))
  1.0
  """
  return jnp.sum(jnp.var(means, axis=0) > threshold).astype(jnp.float32)


# --- alarms ---------------------------------------------------------------------------------------


class Alarm(NamedTuple):
  """A failure that the history shows."""

  step: int  # of the first record that shows it
  stage: str
  name: str
  message: str  # what was seen and what to try


class _Rule(NamedTuple):
  name: str
  check: Callable  # (record, info) -> None: says nothing about it; "": healthy; else the message
  patience: int = 1  # records in a row
  lasting: bool = False  # only if it lasts to the end: false alarms of the first steps go away


def _get(record: Mapping, name: str) -> float | None:
  """A metric by its name, with or without a prefix such as "eval/"."""
  for key, value in record.items():
    if key == name or key.endswith(("/" + name, "." + name)):
      return float(value)
  return None


def _vanishing_gradient(record, info):
  accuracy, ratio = _get(record, "d_accuracy"), _get(record, "grad_ratio")
  ratio = _get(record, "saturation") if ratio is None else ratio
  if accuracy is None or ratio is None:
    return None
  if not (accuracy > 0.99 and ratio < 1e-2):
    return ""
  return (
    f"the discriminator is right on {accuracy:.1%} and the minimax gradient is {ratio:.0e} of the "
    "non-saturating one: use the non-saturating loss, add noise to the discriminator's inputs or "
    "a gradient penalty, or slow the discriminator down"
  )


def _one_sided_discriminator(record, info):
  accuracy = _get(record, "d_accuracy")
  if accuracy is None:
    return None
  if accuracy > 0.995:
    return (
      f"the discriminator stays right on {accuracy:.1%}: lower its learning rate, regularise it "
      "(R1, spectral norm, dropout, smoothed labels), or augment what it sees if the data are few"
    )
  if accuracy < 0.02:
    return (
      f"the discriminator stays wrong on both real and fake ({accuracy:.1%} right): look for a "
      "flipped sign or exchanged arguments in its loss, or raise its learning rate or number of "
      "steps"
    )
  return ""


def _mode_collapse(record, info):
  covered, total = _get(record, "modes_20"), _get(record, "num_modes")
  total = len(getattr(info, "modes", ())) or total
  share, classes = _get(record, "class_min_share"), getattr(info, "num_classes", 0) or 10
  advice = (
    "show the discriminator packs of several samples (PacGAN), try the Wasserstein loss with "
    "gradient penalty, unroll the discriminator, lower the learning rates, or change the seed"
  )
  verdict = None
  if covered is not None and total:
    verdict = ""
    if covered < 0.75 * total:
      return f"samples cover {covered:.0f} of {total:.0f} modes: {advice}"
  if share is not None:
    verdict = ""
    if share < 0.2 / classes:
      return (
        f"the rarest class makes {share:.1%} of the samples, {1 / classes:.1%} is fair: {advice}"
      )
  return verdict


def _dead_units(record, info):
  dead = {k: float(v) for k, v in record.items() if k.rpartition("/")[2].startswith("dead_")}
  if not dead:
    return None
  name, worst = max(dead.items(), key=lambda item: item[1])
  if not worst > 0.5:
    return ""
  return (
    f"{name} is {worst:.0%}, the share of units without any gradient: use leaky_relu, lower the "
    "learning rate, or check the initialisation and the scale of the inputs"
  )


def _kl_collapse(record, info):
  rate = _get(record, "rate")
  if rate is None:
    return None
  if not rate < 0.1:
    return ""
  return (
    f"the latents carry {rate:.2g} nats, so the decoder ignores them: raise the weight of the KL "
    "term from 0 slowly or use free bits, weaken the decoder, and check that pixels and latents "
    "are both summed, not averaged"
  )


_RULES = (
  _Rule("vanishing_gradient", _vanishing_gradient),
  _Rule("one_sided_discriminator", _one_sided_discriminator, patience=3),
  _Rule("mode_collapse", _mode_collapse, lasting=True),
  _Rule("dead_units", _dead_units, lasting=True),
  _Rule("kl_collapse", _kl_collapse, lasting=True),
)


def _first(rule: _Rule, records: list[Mapping], info: Any) -> tuple[int, str] | None:
  """Step and message of the first stretch of records that sets the rule off."""
  stretches, on = [], False
  for record in records:
    message = rule.check(record, info)
    if message is None:
      continue
    if message and not on:
      stretches.append([])
    if message:
      stretches[-1].append((int(record["step"]), message))
    on = bool(message)
  if rule.lasting:
    stretches = stretches[-1:] if on else []
  return next((s[0] for s in stretches if len(s) >= rule.patience), None)


def alarms(records: Iterable[Mapping], info: Any = None) -> list[Alarm]:
  """Reads failures out of a history of metrics, each once for a stage, with its first step.

  | alarm | fires where |
  |---|---|
  | vanishing_gradient | d_accuracy > 0.99 and grad_ratio (else saturation) < 1e-2 |
  | one_sided_discriminator | d_accuracy > 0.995, or < 0.02, in 3 records in a row |
  | mode_collapse | modes_20 < 3/4 of the modes, or class_min_share < 1/5 of the fair share |
  | dead_units | a dead_* metric > 0.5 |
  | kl_collapse | rate < 0.1 nat |

  The last three are common in the first steps of healthy runs, so they must still hold at the last
  record that has the metric. A record without the metric says nothing. Not-a-number sets nothing
  off.

  Args:
    records: dicts with step, stage and metrics, in order, such as the lines of metrics.jsonl.
    info: facts on the data (`core.Info`): the number of modes and classes; else num_modes of the
      record, and 10 classes.

  Returns:
    alarms, by stage and then by step.

  >>> rates = {100: 5.0, 200: 0.02, 300: 0.01}
  >>> history = [{"stage": "train", "step": i, "rate": rate} for i, rate in rates.items()]
  >>> [(a.step, a.name) for a in alarms(history)]
  [(200, 'kl_collapse')]
  """
  stages: dict[str, list[Mapping]] = {}
  for record in records:
    stages.setdefault(record.get("stage", ""), []).append(record)
  found = []
  for stage, history in stages.items():
    firsts = [(rule.name, _first(rule, history, info)) for rule in _RULES]
    here = [Alarm(first[0], stage, name, first[1]) for name, first in firsts if first]
    found += sorted(here, key=lambda alarm: alarm.step)
  return found
