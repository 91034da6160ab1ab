"""The shortest code: against all others of few symbols, its bounds, and that it can be read."""

import itertools

import numpy as np
import pytest

from gm.probability import coding, information

RNG = np.random.default_rng(0)


def test_the_alphabets_of_the_lecture():
  second = coding.prefix_code([1 / 2, 1 / 4, 1 / 8, 1 / 8])
  assert dict(zip("ABCD", second.words)) == {"A": "0", "B": "10", "C": "110", "D": "111"}
  assert second.mean_length == 1.75
  first = coding.prefix_code([1, 1, 1, 1])
  assert sorted(first.words) == ["00", "01", "10", "11"] and first.mean_length == 2.0


def best_of_all(p):
  """Least mean length over all lengths that a prefix code can have (Kraft's inequality)."""
  lengths = itertools.product(range(1, len(p)), repeat=len(p))
  return min(float(np.dot(p, l)) for l in lengths if sum(2.0**-n for n in l) <= 1)


@pytest.mark.parametrize("num_symbols", [2, 3, 4, 5, 6])
def test_no_code_is_shorter(num_symbols):
  for _ in range(6):
    p = RNG.dirichlet(np.full(num_symbols, 0.5))
    found = coding.prefix_code(p)
    np.testing.assert_allclose(found.mean_length, best_of_all(p), atol=1e-12)
    np.testing.assert_allclose(found.mean_length, np.dot(p, [len(w) for w in found.words]))


def test_the_mean_length_is_between_the_entropy_and_one_bit_more():
  for k in (1, 2, 3, 10, 300):
    for concentration in (0.1, 1.0, 30.0):
      p = RNG.dirichlet(np.full(k, concentration))
      found = coding.prefix_code(p)
      entropy = float(information.entropy(p, base="bits"))
      assert entropy - 1e-5 <= found.mean_length < entropy + 1, (k, concentration)
  lopsided = coding.prefix_code([0.999, 0.001])  # nearly the one bit more
  assert lopsided.mean_length == 1.0 > information.entropy(np.array([0.999, 0.001])) + 0.9


def test_no_word_begins_another_and_what_is_written_is_read():
  p = RNG.dirichlet(np.full(40, 0.3))
  words = coding.prefix_code(p).words
  assert all(not b.startswith(a) for a, b in itertools.permutations(words, 2))
  symbols = RNG.choice(40, 20_000, p=p)
  bits = coding.encode(words, symbols)
  assert coding.decode(words, bits) == symbols.tolist()
  mean, spread = coding.prefix_code(p).mean_length, np.std([len(words[k]) for k in symbols])
  assert abs(len(bits) / 20_000 - mean) < 4 * spread / np.sqrt(20_000)


def test_what_never_occurs_has_no_word():
  words = coding.prefix_code([0.5, 0.0, 0.5]).words
  assert words == ("0", "", "1")
  assert coding.prefix_code([0, 7]) == (("", ""), 0.0)  # nothing needs to be said
  with pytest.raises(ValueError, match="symbol 1 has no word"):
    coding.encode(words, [0, 1])
  with pytest.raises(ValueError, match="symbol -1 has no word"):
    coding.encode(words, [-1])


def test_wrong_input_is_named():
  for p, message in (([0.5, -1], "p: given .*none negative"), (np.eye(2), r"p: given \(2, 2\)")):
    with pytest.raises(ValueError, match=message):
      coding.prefix_code(p)
  with pytest.raises(ValueError, match="after 1 symbols '11' is no word"):
    coding.decode(("0", "10", "110", "111"), "011")
