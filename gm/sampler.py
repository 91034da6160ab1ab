"""Draws samples of a state by seed: each a function of the seed, the label and what is given.

What is given beside a label is an example: of the data's test split, or images or texts (prompts)
of the user's own; and a target, the class that a sample shall become or the attribute that changes,
as `target` of the batch that `sample` reads. Images of the user's own can also be finished, by
`complete` of a stage in place of `sample`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gm import asked, core, inspection, pictures, sharding
from gm.errors import UserError
from gm.job import Job, load

CHUNK = 64  # seeds that are drawn together, fewer of large images; a sample's bits belong to it


class Sampler:
  """Draws from one state of a stage, each sample a function of its seed and label.

  Attributes:
    data: names of the entries that are samples: "image", "point", ...
    images: names of all entries that are images.
    conditional: whether they depend on a label.
    walks: whether there is a latent to walk in.
    completes: whether images are finished in place of samples.
    inputs: images [N, H, W, C] that were given in place of examples, or None.
    prompts: tokens i32 [N, T] that were given in place of examples' texts, or None.
    bytes: of one sample with its seed.
  """

  def __init__(
    self,
    job: Job,
    index: int,
    state: core.State,
    classes: Sequence[str] = (),
    inputs: Sequence[str] | None = None,
    complete: Sequence[str] | None = None,
    prompts: np.ndarray | None = None,
  ):
    """Takes a state.

    Args:
      job: the run.
      index: of the stage.
      state: of that stage.
      classes: the names of the labels; others than the labels are left aside.
      inputs: files of images that samples are made of, each; None: examples of the data.
      complete: files of images that are finished, each, in place of samples.
      prompts: tokens i32 [N, T] of texts that samples are made for; None: those of examples.

    Raises:
      UserError: if a file cannot be read, samples are not made of images, or of text, or none are
        finished.
    """
    self.job, self.index, self.state = job, index, state
    self.stage, self.info = job.stages[index], job.infos[index]
    if complete is not None and self.stage.complete is None:
      raise UserError(
        f"--complete: stage {self.stage.name} of this {job.config.method} finishes no images: leave"
        " it out"
      )
    self.completes, flag = complete is not None, "--input"
    if self.completes:
      inputs, flag = complete, "--complete"
    known = len(classes) == self.info.num_classes
    self.classes = list(classes if known else map(str, range(self.info.num_classes)))
    size = sum(math.prod(shape) for shape in self.info.shape.values())
    self.chunk = int(np.clip(2 ** int(math.log2(2**22 / size)), 4, CHUNK))
    shapes = core.batch_shapes(self.info, job.sizes[index])
    key = jax.eval_shape(lambda: jax.random.key(0))
    paths, made = inspection.depends(self._make, job.templates[index], shapes, key)
    found = {name: {n for n in shapes if f"[1]['{n}']" in read} for name, read in paths.items()}
    self.images = {name for name, x in made.items() if x.ndim == 4}
    told = {"label", "tokens"}  # said of a sample
    self.data = sorted((set(found) & set(self.info.shape)) - told or set(found))
    self.conditional = any("label" in found[name] for name in self.data)
    self.walks = self.stage.latent is not None and not self.completes
    self._own = inputs is not None and not self.completes  # labels of the inputs: they have none
    self._source, self.inputs, self.prompts = None, None, prompts
    needs = set().union(*(found[name] for name in self.data)) - {"label"}
    if prompts is not None:
      if "tokens" not in needs:
        raise UserError(f"--prompt: this {self.job.config.method} is told no text: leave it out")
      needs -= {"tokens"}
    else:
      told -= {"tokens"}
    kept = [n for n in found if found[n] <= told and not n.startswith("data_")]
    if inputs is not None:
      self.inputs, kept = self._read(inputs, needs, flag), list(found)
    elif needs:  # then examples are the condition
      self._source, kept = load(job, index, "test", shuffle=False, whole=True), list(found)

    self.bytes = 8 + sum(math.prod(made[n].shape[1:]) * made[n].dtype.itemsize for n in kept)

    def compiled(function):
      def call(state, rows, told, *rest):
        with sharding.over(job.mesh):
          batch = self._source.decode(rows) if self._source else {**self._blank(), **rows}
          batch = {**batch, **told}
          made = function(state, batch, *rest)
          return {name: made[name] for name in kept}

      return jax.jit(call, out_shardings=sharding.replicated(job.mesh))

    self._draw, self._between = compiled(self._samples), compiled(self._way)
    if self.stage.ready is not None:
      with sharding.over(job.mesh):
        self.state = jax.jit(self.stage.ready)(state)

  @property
  def _make(self):
    return self.stage.complete if self.completes else self.stage.sample

  def stream(
    self,
    seeds: Iterable[int],
    labels: Sequence[int] | None = None,
    target: int | None = None,
    prompts: Sequence[int] | None = None,
  ) -> Iterator[dict[str, np.ndarray]]:
    """Yields samples in parts of up to 64.

    Args:
      seeds: 0 to 2^31 - 1.
      labels: every seed is drawn for each of them, the first label's seeds first; None: the label
        of seed s is s modulo the number of classes or, where an example is the condition, its own.
      target: of all samples; every input is drawn for all labels and seeds, the first input first.
      prompts: numbers of those that were given; None: all. All the rest is drawn for each.

    Yields:
      {name: [n, ...]}, what `sample` of the stage gives but for what repeats the data, and "seed"
      i64 [n].
    """
    inputs = [None] if self.inputs is None else self.inputs
    labels = [None] if labels is None else labels
    for tokens, given, label in itertools.product(self._texts(prompts), inputs, labels):
      for k, group in itertools.groupby(seeds, lambda seed: seed // self.chunk):
        group = np.fromiter(group, np.int64)
        together = np.arange(k * self.chunk, (k + 1) * self.chunk)
        rows = self._source.batch(k, self.chunk) if self._source else {}
        if given is not None:
          rows = {"image": np.repeat(given[None], self.chunk, axis=0)}
        told = self._told(together, label, target, tokens)
        found = jax.device_get(self._draw(self.state, rows, told, together.astype(np.uint32)))
        yield {**{n: x[group - k * self.chunk] for n, x in found.items()}, "seed": group}

  def walk(
    self, seeds: Sequence[int], frames: int, label: int | None = None, prompt: int | None = None
  ) -> Iterator[dict[str, np.ndarray]]:
    """Yields the frames of a closed walk from seed to seed and back to the first, in parts.

    Frame i stands at i n / frames of the n legs, so where n divides frames the sample of every seed
    is one of them. The label, or the example that is the condition, is the first seed's throughout.

    Args:
      seeds: two or more.
      frames: their number in all.
      label: of all frames.
      prompt: of all frames, the number of one that was given; None: the first.

    Yields:
      {name: [n, ...]}.
    """
    place = np.arange(frames) * len(seeds) / frames
    leg = place.astype(np.int64)
    stops = np.array([*seeds, seeds[0]], np.uint32)
    tokens = self._texts(None if prompt is None else [prompt])[0]
    told = self._told(np.full(self.chunk, seeds[0]), label, None, tokens)
    first = self._source.batch(int(seeds[0]), 1) if self._source else {}
    rows = {name: np.repeat(x, self.chunk, axis=0) for name, x in first.items()}
    for start in range(0, frames, self.chunk):
      at = np.minimum(np.arange(start, start + self.chunk), frames - 1)
      way = (stops[leg[at]], stops[leg[at] + 1], (place - leg)[at].astype(np.float32))
      found = jax.device_get(self._between(self.state, rows, told, *way))
      yield {name: x[: frames - start] for name, x in found.items()}

  def numbers(self, labels: Sequence[str | int] | str | int | None) -> list[int] | None:
    """Returns labels, given by number or name, as numbers; raises UserError for unknown ones."""
    if labels is None:
      return None
    if not self.conditional:
      raise UserError(f"--labels: this {self.job.config.method} is told no label: leave it out")
    return asked.label_numbers(labels, self.classes)

  def target(self, target: str | int | None) -> int | None:
    """Returns a target, given by number or name, as a number; raises UserError where none is read.

    Whether `sample` reads one is seen by tracing it with one.
    """
    if target is None:
      return None
    shapes = core.batch_shapes(self.info, 2)
    shapes["target"] = jax.ShapeDtypeStruct((2,), jnp.int32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    template = self.job.templates[self.index]
    paths, _ = inspection.depends(lambda *given: self.stage.sample(*given), template, shapes, key)
    if not any("[1]['target']" in paths[name] for name in self.data):
      raise UserError(f"--target: this {self.job.config.method} is told no target: leave it out")
    names = self.classes if self.stage.edit is None else self.info.columns
    (number,) = asked.label_numbers(target, names, "--target")
    return number

  def label(self, seed: int, label: int | None) -> int | None:
    """The label that a seed is drawn for; None where samples do not depend on one."""
    if not self.conditional:
      return None
    y = self._labels(np.array([seed]), label)
    return None if y is None else int(y[0])

  def _texts(self, prompts: Sequence[int] | None) -> list[np.ndarray | None]:
    if self.prompts is None:
      return [None]
    return list(self.prompts if prompts is None else self.prompts[list(prompts)])

  def _told(
    self,
    seeds: np.ndarray,
    label: int | None,
    target: int | None = None,
    tokens: np.ndarray | None = None,
  ) -> dict:
    y, told = self._labels(seeds, label), {}
    if y is not None:
      told["label"] = y
    if target is not None:
      told["target"] = np.full(len(seeds), target, np.int32)
    if tokens is not None:
      told["tokens"] = np.repeat(tokens[None], len(seeds), axis=0)
    return told

  def _read(self, inputs: Sequence[str], needs: set[str], flag: str) -> np.ndarray:
    if needs == {"image", "tokens"}:
      raise UserError(f"{flag}: this {self.job.config.method} is told a text too: give a --prompt")
    if needs != {"image"}:
      of = f"of {', '.join(sorted(needs))}" if needs else "of no image"
      raise UserError(
        f"{flag}: samples of this {self.job.config.method} are made {of}: leave it out"
      )
    return asked.read_images(inputs, self.info.shape["image"], flag)

  def _labels(self, seeds: np.ndarray, label: int | None) -> np.ndarray | None:
    known = self._source is not None or self._own  # an example has its own
    if "label" not in self.info.shape or (label is None and known):
      return None
    every = np.full(len(seeds), label) if label is not None else seeds % self.info.num_classes
    return every.astype(np.int32)

  def _blank(self):
    shapes = core.batch_shapes(self.info, self.chunk)
    return {name: jnp.zeros(s.shape, s.dtype) for name, s in shapes.items()}

  def _share(self, tree):  # over the devices, where they divide a chunk
    return tree if self.chunk % self.job.mesh.size else core.shard(tree)

  def _each(self, function, batch, seeds):  # of one row and its own key, for every seed
    def one(row, seed):
      key = jax.random.fold_in(self.job.keys[self.index]["seeds"], seed)
      found = function(jax.tree.map(lambda x: x[None], row), key)
      return jax.tree.map(lambda x: x[0], found)

    return jax.vmap(one)(batch, seeds)

  def _samples(self, state, batch, seeds):
    batch, seeds = self._share((batch, seeds))
    if not self.walks:
      return self._each(lambda row, key: self._make(state, row, key), batch, seeds)
    return self.stage.generate(state, self._each(self.stage.latent, batch, seeds), batch)

  def _way(self, state, batch, start, end, t):
    batch, start, end, t = self._share((batch, start, end, t))
    ends = [self._each(self.stage.latent, batch, seeds) for seeds in (start, end)]
    between = lambda a, b: pictures.between(a, b, t, straight=self.stage.straight)
    return self.stage.generate(state, jax.tree.map(between, *ends), batch)
