"""Adversarial examples, and the game of an attack with a classifier that leads to the GAN.

Goodfellow et al., Explaining and Harnessing Adversarial Examples, ICLR 2015, arXiv:1412.6572.
Idea: a classifier C that is nearly always right fails on images that a person cannot tell from the
ones it knows. So let a network A find such images; let C learn from them; let them compete. Where
C tells data from samples and A makes the samples, this is the GAN.
Objective, with CE the cross-entropy of C's logits, x' in the box [-1, 1], |.| in its units:
  C, alone:          E CE(C(x), y)
  smallest:          min |r|^2 + c CE(C(x + r), t), a target t, c found for each image
  A, against C:      max E CE(C(x'), y), x' = x + radius tanh A(x), radius = 2 eps
  C, against A:      E CE(C(x), y) / 2 + E CE(C(x'), y) / 2, then A moves against the new C
model.game says how far it goes: `attack` is C alone, and what falls to a search for the smallest
r, to one step along the sign of the slope (fgsm) and to 40 (pgd, Madry et al., 2018,
arXiv:1706.06083); `network` adds A against a C that stands still, Baluja and Fischer, 2017,
arXiv:1703.09387; `compete` first finetunes a copy of C, `once`, on what this A finds, and then lets
C and A move in turn. Accuracies under pgd and fgsm are of attacks made anew on each classifier;
those under network are of the A that was trained along, and prove nothing. train_pgd_accuracy is of
images before C learns from them; --config.eval_every adds what is measured on the test split.
Departures: |r|^2 by steps of fixed length, clipped to the box after each, for |r| by L-BFGS. A may
see the slope of C's loss at a random point of the ball (model.a_sees), after Lee et al., 2017,
arXiv:1705.03387. `paper` is Madry's network and numbers, but its game is against A, theirs against
PGD. C has dropout in its own moves, none while it is attacked.
Run: python main.py --config=configs/attack.py --workdir=/tmp/attack
  about a minute of processor time; no digit of 1,000 stands against pgd at eps 0.3
Then: python main.py --workdir=/tmp/attack --mode=sample --input=IMAGE --target=3
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from gm import attacks, core, flags, optim
from gm.nets import attack as nets

GAMES = ("attack", "network", "compete")
PICTURES, CURVES, MOST_EPS = 16, 128, 0.5  # examples shown, in curves up to this eps
GAIN = 5.0  # of A's output: it has to reach the ends of tanh


def stages(config, info: core.Info) -> list[core.Stage]:
  """Returns the stages of model.game: classifier; network; finetune, compete.

  Raises:
    ValueError: for a name or a number that is not possible, or data that are no labelled images.
  """
  m = config.model
  flags.leaf(info, "image")
  if info.num_classes < 2:
    raise ValueError(flags.unlabelled("attack", config.data))
  game = GAMES.index(flags.choice(m, "game", GAMES))
  flags.within(m, "c_widths", "c_features", "a_base", "a_moves", "watch_every", least=1)
  flags.within(m, "c_steps", "a_steps", "once_steps", least=0, most=flags.MOST_STEPS)
  flags.within(m, "c_dropout", least=0.0, below=1.0)
  flags.within(m, "a_lr", "pgd_step", "near_weight", "near_stride", above=0.0)
  flags.within(m, "eps", above=0.0, most=1.0)
  flags.within(m, "pgd_steps", "restarts", "num_tries", "near_rounds", "near_steps", least=1)
  flags.choice(m, "a_sees", ("image", "slope"))
  shape, num_classes = info.shape["image"], info.num_classes
  radius, stride = 2 * m.eps, 2 * m.pgd_step  # pixels in [-1, 1]: twice those in [0, 1]
  form, dtype = {"widths": m.c_widths, "features": m.c_features}, config.compute_dtype
  c = nets.Classifier(num_classes, pool=m.c_pool, dropout=m.c_dropout, dtype=dtype, **form)
  a = nets.Perturber(shape[-1], base=m.a_base, dtype=dtype)

  # ------------------------------------------------------------------------------ the two players

  def C(params, x, key=None):  # [B, H, W, C] -> logits [B, K]; with a key in its mode of training
    rngs = {"dropout": key} if key is not None else None
    return c.apply({"params": params}, x, train=key is not None, rngs=rngs)

  def losses(logits, y):  # [B]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y)

  def against(params, y):  # what an attack raises
    return lambda x: losses(C(params, x), y)

  def wrong(params, y):
    return lambda x: attacks.margin(C(params, x), y)

  def right(params, x, y):
    return jnp.mean(C(params, x).argmax(-1) == y, dtype=jnp.float32)

  def A(params, c_params, x, y, start):  # -> attacked images; start in [-1, 1], of the ball
    def move(at, size, *more):  # what it is shown decides where it goes from `at`
      shown = jnp.concatenate([x, *more], axis=-1)
      new = at + size * jnp.tanh(GAIN * a.apply({"params": params}, shown))
      # the clip is passed on as it were none: most pixels lie at an end of the box, and those that
      # were pushed out once would never move again
      return new + jax.lax.stop_gradient(attacks.project(new, x, radius) - new)

    if m.a_sees == "image":
      return move(x, radius)
    # from a random point, or else C learns to bend its slopes at x, and stands against nothing else
    at = attacks.project(x + radius * start, x, radius)
    for _ in range(m.a_moves):
      found = jax.lax.stop_gradient(attacks.slope(against(c_params, y), at))
      mean = jnp.abs(found).mean((1, 2, 3), keepdims=True)
      at = move(at, 1.25 * radius / m.a_moves**0.5, at - x, jnp.tanh(found / (mean + 1e-12)))
    return at

  def starts(key, x):
    return jax.random.uniform(key, x.shape, minval=-1.0)

  def c_loss(name, attack=None):  # of batches x, y, drop and, against an attack, start
    def loss(p, b):
      k = core.keys(b["drop"], "clean", "attacked")
      logits = C(p[name], b["x"], k.clean)
      nll, clean = losses(logits, b["y"]).mean(), jnp.mean(logits.argmax(-1) == b["y"])
      found = {f"train_accuracy_{name}": clean.astype(jnp.float32)}
      if attack is None:
        return nll, ({}, found)
      seen = jax.lax.stop_gradient(attack(p, b))
      return (nll + losses(C(p[name], seen, k.attacked), b["y"]).mean()) / 2, ({}, found)

    return loss

  def a_loss(p, b):  # moves a only, against the C that stands in p
    seen = A(p["a"], p["c"], b["x"], b["y"], b["start"])
    logits = C(p["c"], seen)
    fooled = jnp.mean(logits.argmax(-1) != b["y"], dtype=jnp.float32)
    return -losses(logits, b["y"]).mean(), ({}, {"fooled": fooled})

  # ------------------------------------------------------------------------------------- attacks

  def pgd(key, params, x, y, num_steps=m.pgd_steps, size=radius, step=stride):
    return attacks.pgd(key, against(params, y), x, size, step=step, num_steps=num_steps)

  def stands(key, params, x, y, **how):  # the share that is still right
    return right(params, pgd(key, params, x, y, **how), y)

  def worst(key, params, x, y):  # over several starts
    keys = jax.random.split(key, m.restarts)
    return attacks.worst(keys, lambda k: pgd(k, params, x, y), wrong(params, y), x)

  def nearest(params, x, target):
    search = {"weight": m.near_weight, "rounds": m.near_rounds, "num_steps": m.near_steps}
    return attacks.smallest(lambda x: C(params, x), x, target, stride=m.near_stride, **search)

  def another(key, y):  # a class that is not y
    return (y + jax.random.randint(key, y.shape, 1, num_classes)) % num_classes

  def own(p, x, y, key):  # what a stage's samples are: A's images, or without A the nearest
    if "a" in p:
      return A(p["a"], p["c"], x, y, starts(key, x))
    return nearest(p["c"], x, another(key, y))

  def attacked(p, batch, key):  # -> images, and what C says before and after
    x = batch["image"]
    before = C(p["c"], x).argmax(-1).astype(jnp.int32)
    new = nearest(p["c"], x, batch["target"]) if "target" in batch else own(p, x, before, key)
    return new, before, C(p["c"], new).argmax(-1).astype(jnp.int32)

  def row(x, new, before, after):  # original, difference, attacked, and what C says of them
    tiles = jnp.stack([x, attacks.difference(x, new), new], axis=1)
    return tiles, jnp.stack([before, jnp.full_like(before, -1), after], axis=1)

  def sample(state, batch, key):
    """Attacked images, towards batch["target"] where it is given, and what C takes them for."""
    new, before, after = attacked(state.params, batch, key)
    tiles, label = row(batch["image"], new, before, after)
    return {"image": new, "label": after, "attack": tiles, "attack_label": label}

  def sizes(name, x, new, falls):  # of the attacks that succeed, pixels in [0, 1]
    r = jnp.abs(new - x).reshape(len(x), -1) / 2
    share = lambda v: jnp.sum(v * falls) / jnp.maximum(1, jnp.sum(falls))
    return {f"{name}_l2": share(jnp.sqrt((r**2).sum(1))), f"{name}_linf": share(r.max(1))}

  def hold(p, key, x, y):  # accuracies of c, and of another classifier on c's attacks
    k = core.keys(key, "noise", "pgd", "target")
    raises, target = against(p["c"], y), another(k.target, y)
    signs = jax.random.rademacher(k.noise, x.shape, x.dtype)
    found = {
      "accuracy": right(p["c"], x, y),
      "noise_accuracy": right(p["c"], attacks.project(x + radius * signs, x, radius), y),
    }
    made = {"fgsm": attacks.fgsm(raises, x, radius), "pgd": worst(k.pgd, p["c"], x, y)}
    if game == 0:
      made["nearest"] = nearest(p["c"], x, target)
      found["nearest_success"] = jnp.mean(
        C(p["c"], made["nearest"]).argmax(-1) == target, dtype=jnp.float32
      )
    for name, new in made.items():
      falls = wrong(p["c"], y)(new) >= 0
      found[f"{name}_accuracy"] = right(p["c"], new, y)
      found |= sizes(name, x, new, falls)
      if "other" in p:
        found[f"{name}_transfer"] = 1 - right(p["other"], new, y)
    return found

  def curves(named, key, x, y):  # accuracy under PGD, for radii from 0 to the largest
    eps = jnp.linspace(0.0, MOST_EPS, 6)

    def line(key, params):
      def at(given):  # steps in proportion, one start
        key, size = given[0], 2 * given[1]
        return stands(key, params, x, y, size=size, step=size * m.pgd_step / m.eps)

      return jax.lax.map(at, (jax.random.split(key, len(eps)), eps))

    keys, axes = core.keys(key, *named), "x: eps; y: accuracy under pgd"
    return {axes: eps, **{n: line(getattr(keys, n), params) for n, params in named.items()}}

  def show(state, batch, key):
    """Attacks with what C says of them, and accuracy against the size of an attack."""
    k, p = core.keys(key, "own", "curves"), state.params
    few = {n: batch[n][:PICTURES] for n in ("image", "label")}
    tiles, label = row(few["image"], *attacked(p, few, k.own))
    names = {"plain": "plain", "once": "finetuned", "c": "competed" if "plain" in p else "plain"}
    named = {shown: p[n] for n, shown in names.items() if n in p}
    x, y = (batch[n][:CURVES] for n in ("image", "label"))
    return {"attack": {"images": tiles, "label": label}, "eps": curves(named, k.curves, x, y)}

  # -------------------------------------------------------------------------------------- stages

  def stage(name, num_steps, rates, first, moves, evaluate):
    """Each of the players `rates` moves once a step, in their order, by its loss in `moves`."""
    tx = {n: optim.adam(optim.cosine(lr, num_steps)) for n, lr in rates.items()}

    def init(key, batch, prev):
      params = first(key, batch, prev)
      opt = {n: core.init_slot(tx[n], params, [n]) for n in rates}
      extra = {"stands": jnp.zeros(())} if name == "compete" else {}
      return core.State(step=jnp.zeros((), jnp.int32), params=params, opt=opt, extra=extra)

    def step(state, batch, key):
      k, x, y = core.keys(key, "start", *rates, "pgd"), batch["image"], batch["label"]
      given, found = {"x": x, "y": y, "start": starts(k.start, x)}, {}
      if "stands" in state.extra:
        look = lambda s: s.replace(extra={"stands": stands(k.pgd, s.params["c"], x, y)})
        state = core.every(m.watch_every, state.step, look, state)
        found["train_pgd_accuracy"] = state.extra["stands"]
      for n in rates:
        b = {**given, "drop": getattr(k, n)}
        state, more = core.minimize(state, tx[n], moves[n], [n], b, accumulate=config.accumulate)
        found |= more
      return state.replace(step=state.step + 1), found

    return core.Stage(name, num_steps, init, step, sample, evaluate, show)

  def classifiers(key, batch, prev):  # another of another seed, to see whether attacks transfer
    k = core.keys(key, "c", "other")
    new = lambda key: core.build(c, key, batch["image"][:2])[0]
    return {"c": new(k.c), **({"other": new(k.other)} if game == 0 else {})}

  def with_a(key, batch, prev):
    seen = (2, *shape[:2], shape[-1] * (3 if m.a_sees == "slope" else 1))
    return {"c": prev.params["c"], "a": core.build(a, key, jnp.zeros(seen))[0]}

  def with_once(key, batch, prev):
    return {**prev.params, "once": prev.params["c"]}

  def with_first(key, batch, prev):
    return {**prev.params, "plain": prev.params["c"], "first": prev.params["a"]}

  def hold_a(state, batch, key):
    k, p, x, y = core.keys(key, "c", "a"), state.params, batch["image"], batch["label"]
    new = A(p["a"], p["c"], x, y, starts(k.a, x))
    found = hold(p, k.c, x, y)
    holds, most = right(p["c"], new, y), jnp.maximum(1 - found["pgd_accuracy"], 1e-6)
    found |= sizes("network", x, new, wrong(p["c"], y)(new) >= 0)
    return {**found, "network_accuracy": holds, "relative_success": (1 - holds) / most}

  def hold_once(state, batch, key):
    k, p, x, y = core.keys(key, "old", "pgd"), state.params, batch["image"], batch["label"]
    first, plain = p.get("first", p["a"]), p.get("plain", p["c"])
    return {
      "once_accuracy": right(p["once"], x, y),
      "once_old_accuracy": right(p["once"], A(first, plain, x, y, starts(k.old, x)), y),
      "once_pgd_accuracy": right(p["once"], worst(k.pgd, p["once"], x, y), y),
    }

  def hold_all(state, batch, key):
    k = core.keys(key, "a", "once", "more", "search")
    p, x, y = state.params, batch["image"], batch["label"]
    some = slice(-(-len(x) // 4))  # of what is dear
    longer = {"num_steps": 4 * m.pgd_steps, "step": stride / 2}
    blind = attacks.random_search(
      k.search, wrong(p["c"], y[some]), x[some], radius, num_tries=m.num_tries
    )
    return {
      **hold_a(state, batch, k.a),
      **hold_once(state, batch, k.once),
      "longer_accuracy": stands(k.more, p["c"], x[some], y[some], **longer),
      "search_accuracy": right(p["c"], blind, y[some]),
    }

  hold_c = lambda state, batch, key: hold(state.params, key, batch["image"], batch["label"])
  own_a = lambda p, b: A(p["a"], p["c"], b["x"], b["y"], b["start"])
  lone = {n: c_loss(n) for n in ("c", "other")}
  both, once = {"c": c_loss("c", own_a), "a": a_loss}, {"once": c_loss("once", own_a)}
  lrs = {n: config.lr for n in ("c", "other")[: 2 if game == 0 else 1]}
  before = ((), (m.c_steps,), (m.c_steps, m.a_steps, m.once_steps))[game]
  plan = [
    ("classifier", lrs, classifiers, lone, hold_c),
    ("network", {"a": m.a_lr}, with_a, {"a": a_loss}, hold_a),
    ("finetune", {"once": config.lr}, with_once, once, hold_once),
    ("compete", {"c": config.lr, "a": m.a_lr}, with_first, both, hold_all),
  ]
  return [stage(name, num, *rest) for (name, *rest), num in zip(plan, (*before, config.num_steps))]
