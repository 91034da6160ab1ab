"""Perceptual distance: how far two images are apart in the maps of a network that was trained.

LPIPS's form, Zhang et al., 2018, arXiv:1801.03924: at every position of every map the features are
divided by their length, and the squared difference of the two images' is summed over channels,
averaged over positions and added up over the maps. LPIPS learns a weight for each channel, to agree
with people, and takes VGG-16; both need files that are not to be had freely. Here every channel
counts alike, and the networks are two whose weights are:
  digits        the classifier of handwritten digits in this repository, two maps, 1 channel
  efficientnet  EfficientNet-Lite0, of photographs, five maps, 3 channels (fetched, 17 MB)
SRGAN's form, Ledig et al., 2017, arXiv:1609.04802, takes one map as it is: the squared difference
is summed over channels and averaged over positions, features divided by 12.75:
  vgg22, vgg54  VGG-19 after the ReLU of conv2_2 or conv5_4, 3 channels (a file of the user's own)
The numbers compare with those of the same network only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gm.nets import classifier, efficientnet, vgg
from gm.weights import digits
from gm.weights import efficientnet as efficientnet_weights
from gm.weights import vgg as vgg_weights


class Net(NamedTuple):
  """A network of which features are taken."""

  module: Any
  channels: int  # of its images
  maps: Callable  # (variables, images) -> [[B, h, w, C], ...]
  load: Callable  # file of the user's own, or "" -> variables
  scale: float = 0.0  # of features whose squared difference counts; 0: they are of length 1


_DIGITS, _PHOTOS = classifier.DigitClassifier(), efficientnet.EfficientNetLite0()
_VGG = vgg.VGG19()
NETS = {
  "digits": Net(
    _DIGITS, 1, lambda v, x: _DIGITS.apply(v, x, maps=True), lambda _: _used(digits.load()[0])
  ),
  "efficientnet": Net(
    _PHOTOS, 3, lambda v, x: _PHOTOS.apply(v, x)[1][:5], lambda _: efficientnet_weights.load()
  ),
  **{
    f"vgg{i}{j}": Net(
      *(_VGG, 3, lambda v, x, n=f"{i}_{j}": [_VGG.apply(v, x)[n]], vgg_weights.load, 1 / 12.75)
    )
    for i, j in ("22", "54")
  },
}

TO_BE_HAD = ("digits", "efficientnet")  # without a file of the user's own


def _used(variables: dict) -> dict:
  """The convolutions alone: the dense layers are of one size of image."""
  params = {n: p for n, p in variables["params"].items() if n.startswith("Conv")}
  return {"params": params}


def load(name: str, file: str = "") -> dict:
  """Returns a network's weights; the first use of `efficientnet` fetches them.

  Args:
    name: of the network, in NETS.
    file: that holds them, where it is one of the user's own.

  Raises:
    RuntimeError: if they cannot be had; the message says what to do.
  """
  return NETS[name].load(file)


def shapes(name: str) -> dict:
  """Returns the shapes of `load`, without the weights.

  >>> shapes("digits")["params"]["Conv_1"]["kernel"].shape
  (5, 5, 32, 64)
  """
  net = NETS[name]
  made = jax.eval_shape(net.module.init, jax.random.key(0), jnp.zeros((1, 32, 32, net.channels)))
  return _used(made) if name == "digits" else made


def distance(name: str, variables: dict, x: jax.Array, y: jax.Array) -> jax.Array:
  """How unlike two images look to a network.

  Args:
    name: of the network, in NETS.
    variables: its weights, from `load`.
    x: images [B, H, W, C] in [-1, 1]. Grey ones are shown to it in three channels alike, colours as
      their mean where it knows grey ones.
    y: like x.

  Returns:
    f32 [B], 0 for equal images; in LPIPS's form at most 2 a map where no feature is negative.
  """
  net = NETS[name]

  def maps(images):
    if net.channels == 1:
      images = images.mean(3, keepdims=True)
    return net.maps(variables, jnp.broadcast_to(images, (*images.shape[:3], net.channels)))

  if net.scale:
    pairs = zip(maps(x), maps(y), strict=True)
    return sum(jnp.sum((net.scale * (a - b)) ** 2, -1).mean((1, 2)) for a, b in pairs)
  return between(maps(x), maps(y))


def between(
  a: Sequence[jax.Array],
  b: Sequence[jax.Array],
  *,
  weights: Sequence[jax.Array] | None = None,
  eps: float = 1e-10,
) -> jax.Array:
  """The distance of two lists of maps: sum_l mean_hw sum_c w_lc (a^_lhwc - b^_lhwc)^2, f32 [B].

  a^ and b^ are of length 1 at every position: a / sqrt(|a|^2 + eps^2).

  Args:
    a: maps [B, h, w, C].
    b: like a.
    weights: [C] for each map; None: 1.
    eps: what a position without features is divided by.

  >>> a = jnp.array([3.0, 0.0]).reshape(1, 1, 1, 2)
  >>> between([a], [2 * a]).item(), between([a], [a[..., ::-1]]).item()
  (0.0, 2.0)
  """
  unit = lambda m: m * jax.lax.rsqrt(jnp.sum(m * m, -1, keepdims=True) + eps**2)
  total = 0.0
  for i, (m, n) in enumerate(zip(a, b, strict=True)):
    apart = (unit(m) - unit(n)) ** 2
    apart = apart if weights is None else apart * weights[i]
    total = total + apart.sum(-1).mean((1, 2))
  return total
