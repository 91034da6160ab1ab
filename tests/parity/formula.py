"""Reference networks as numbers: weights and inputs by a formula, and what came out.

A file of this folder has, for networks of other people's code, names and shapes of their tensors
and the outputs for weights that are made by a formula of their names, so that a port can be checked
without the code and without trained weights. Tensors are laid out as torch's: OIHW, [out, in],
NCHW. `precision` float64 means that the numbers are those of the float32 weights to 7 digits;
err32 is how far the reference's own float32 pass is from them.
"""

import json
import pathlib
import zlib

import numpy as np

FOLDER = pathlib.Path(__file__).parent


def bits(name, num):
  """`num` integers of 24 bits, a counter hashed with the name."""
  word, s = np.uint64(0xFFFFFFFF), np.uint64
  x = (np.arange(num, dtype=s) * s(0x9E3779B9) + s(zlib.crc32(name.encode()))) & word
  x ^= x >> s(16)
  x = (x * s(0x7FEB352D)) & word
  x ^= x >> s(15)
  x = (x * s(0x846CA68B)) & word
  return ((x ^ (x >> s(16))) >> s(8)).astype(np.int64)


def real(name, shape, mean, scale):
  u = (bits(name, int(np.prod(shape))) + 0.5) / 2.0**23 - 1.0
  return (mean + scale * u).astype(np.float32).reshape(shape)


def case(file, name):
  """A case, and its file's rules."""
  found = json.loads((FOLDER / f"{file}.json").read_text())
  return next(c for c in found["cases"] if c["name"] == name), found["rules"]


def state(case, rules):
  """The tensors of a case by name, counters left out."""
  found = {}
  for name, shape, code, *_ in case["state"]:
    if code == "k":
      continue
    rule = rules[code]
    fan = np.prod(shape) / shape[0] if rule["fan"] else 1.0
    found[name] = real(name, shape, rule["mean"], rule["gain"] / np.sqrt(fan))
  return found


def inputs(case):
  found = {}
  for i in case["inputs"]:
    if "given" in i:
      found[i["name"]] = np.array(i["given"])
    elif "high" in i or "binary" in i:
      whole = (bits(i["key"], int(np.prod(i["shape"]))) * i.get("high", 2)) >> 24
      found[i["name"]] = whole.reshape(i["shape"])
    else:
      found[i["name"]] = real(i["key"], i["shape"], i["mean"], i["scale"])
  return found


def run(case, mode="eval"):
  return next(r for r in case["runs"] if r["mode"] == mode)


def agrees(x, record, *, atol):
  """Asserts that an array, laid out as torch's, is the recorded one: values, shape and sums."""
  x = np.asarray(x, np.float64)
  assert list(x.shape) == record["shape"]
  num = len(record["values"])
  places = [j * x.size // num for j in range(num)]
  np.testing.assert_allclose(x.ravel()[places], record["values"], rtol=1e-5, atol=atol)
  np.testing.assert_allclose(x.sum(), record["sum"], rtol=1e-4, atol=atol * x.size)
  np.testing.assert_allclose((x**2).sum(), record["sumsq"], rtol=1e-4, atol=atol)


# ---------------------------------------------------------------- tensors as this project lays them


def kernel(w):
  """Of a convolution, OIHW -> HWIO; of a dense layer or one of size 1, [O, I, 1 ...] -> [I, O]."""
  if w.ndim == 4 and w.shape[2:] != (1, 1):
    return w.transpose(2, 3, 1, 0)
  return w.reshape(w.shape[:2]).T


def nchw(x):
  return np.moveaxis(np.asarray(x), -1, 1)


def nhwc(x):
  return np.moveaxis(np.asarray(x), 1, -1)
