"""Weights of VGG-19 out of a file of the user's own: torchvision's vgg19-dcbb9e9d.pth.

The file is a checkpoint of torch's old format, 575 MB, with tensors features.N.weight and
features.N.bias; the dense layers in it are left aside. It is read without torch.
"""

from __future__ import annotations

import os
import pickle

import numpy as np

from gm.weights import efficientnet

# positions of the convolutions in torchvision's list of layers, with ReLUs and maxima between
LAYERS = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)
NAMES = [f"conv{i}_{j}" for i, n in enumerate((2, 2, 4, 4, 4), 1) for j in range(1, n + 1)]


def convert(tensors: dict[str, np.ndarray]) -> dict:
  """Lays torch's tensors out as the params of `gm.nets.vgg.VGG19`: kernels HWIO.

  Raises:
    KeyError: if a layer is missing.
  """
  found = {}
  for name, layer in zip(NAMES, LAYERS, strict=True):
    kernel = tensors[f"features.{layer}.weight"].transpose(2, 3, 1, 0)
    bias = tensors[f"features.{layer}.bias"]
    found[name] = {
      "kernel": np.ascontiguousarray(kernel, np.float32),
      "bias": np.ascontiguousarray(bias, np.float32),
    }
  return {"params": found}


def load(file: str | os.PathLike) -> dict:
  """Returns the variables of `gm.nets.vgg.VGG19`.

  Args:
    file: its path.

  Raises:
    RuntimeError: if there is none or it cannot be read; the message says what to do.
  """
  remedy = "set --config.model.features_file to torchvision's vgg19-dcbb9e9d.pth"
  if not file:
    raise RuntimeError(f"the weights of VGG-19 come from a file of your own: {remedy}")
  try:
    with open(os.path.expanduser(file), "rb") as opened:
      return convert(efficientnet.read_checkpoint(opened))
  except (OSError, ValueError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
    reason = " ".join(str(error).split()) or type(error).__name__
    raise RuntimeError(f"{file} holds no weights of VGG-19 ({reason}): {remedy}") from error
