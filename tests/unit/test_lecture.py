"""The lecture's answers against the numbers worked out by hand, and where its equations stand."""

import ast
import importlib
import re

import jax
import numpy as np
import pytest
from conftest import ROOT

from gm.probability import fit, lecture

PAGE = ROOT / "gm/probability/README.md"

BY_HAND = {  # of the lecture's table and laws
  "density 3/8 x^2": 1.587401,
  "its mean and variance": ([1.5, 0.15], 0.002),
  "rejection under the constant": (1 / 3, 0.004),
  "rejection under the triangle": (2 / 3, 0.004),
  "p(x)": [0.36, 0.32, 0.32],
  "p(y)": [0.40, 0.30, 0.30],
  "p(y | x)": [[8 / 9, 1 / 12, 1 / 36], [0.1875, 0.75, 0.0625], [0.0625, 0.09375, 0.84375]],
  "p(x | y)": [[0.8, 0.1, 1 / 30], [0.15, 0.8, 1 / 15], [0.05, 0.1, 0.9]],
  "p(x = 0 | y = 0)": 0.8,
  "E x": 0.96,
  "E y": 0.90,
  "E xy": 1.42,
  "E x, E y and E xy with the values 1, 2, 3": [1.96, 1.90, 4.28],
  "E[y | x]": [0.138889, 0.875, 1.78125],
  "their mean over x": 0.90,
  "variance of x and of y": [0.6784, 0.69],
  "covariance": 0.556,
  "correlation": 0.812657,
  "H(x)": 1.5826831893,
  "H(y)": 1.5709505945,
  "H(x, y)": 2.3694500639,
  "H(y | x)": 0.7867668747,
  "H(x | y)": 0.7984994695,
  "I(x; y)": 0.7841837198,
  "KL(p_x || p_y)": 0.0048689052,
  "H(p_x, p_y)": 1.5875520944,
  "JSD of p_x and p_y": 0.0008491957,
  "A, B, C, D equally often": "00 01 10 11",
  "A, B, C, D in 1/2": "0 10 110 111",
  "what no code is shorter": 1.75,
  "the second alphabet": 0.25,
  "value of the GAN's game": -0.7126327204,
  "the same where p_g": -1.3862943611,
}


@pytest.fixture
def float64():
  with jax.enable_x64(True):
    yield


def starts(text, name):
  return text == name or text.startswith((f"{name} ", f"{name},", f"{name}:"))


def test_every_question_has_the_answer_worked_out_by_hand(float64):
  asked = lecture.questions()
  assert [q.answer() for q in asked if q.text == "its bits for a letter"] == [2.0, 1.75]
  rest = [q for q in asked if q.text != "its bits for a letter"]
  assert len(rest) == len(BY_HAND)
  for question, (name, want) in zip(rest, BY_HAND.items()):
    assert starts(question.text, name), (question.text, name)
    if isinstance(want, str):
      assert question.answer() == want
      continue
    want, error = want if isinstance(want, tuple) else (want, 1e-6)
    np.testing.assert_allclose(question.answer(), want, rtol=0, atol=error, err_msg=name)


def test_the_homework_agrees_with_draws(float64):
  exact = {"gaussian.kl_standard": 2.930024831816197, "linear_gaussian.gap": 8.489584104749979}
  for check in lecture.homework():
    formula, drawn = float(check.formula()), check.numbers()
    np.testing.assert_allclose(formula, exact.pop(check.by), atol=1e-9)
    assert abs(float(drawn.mean) - formula) < 4 * float(drawn.standard_error) < 0.1 * formula
  assert not exact


def test_the_answers_are_printed_and_named_by_what_computes_them(capsys):
  found = lecture.lines()
  asked = [*lecture.questions(), *lecture.homework()]
  assert len(found) == len(asked)
  for line, question in zip(found, asked):
    assert question.text in line and f"[{question.by}]" in line
    module, name = question.by.split(".")
    assert callable(getattr(importlib.import_module(f"gm.probability.{module}"), name))
  text = "\n".join(found)
  for said in (
    "0 10 110 111  [coding",
    ": 1.75  [",
    "0.888889 0.083333 0.027778; 0.1875",
    "2.93002",
  ):
    assert said in text, said
  importlib.import_module("gm.probability.__main__")  # which prints where it is run, not imported
  assert not capsys.readouterr().out


def test_earth_movers_distance_of_two_shifted_sets(float64):
  x = np.random.default_rng(0).normal(size=100)
  np.testing.assert_allclose(fit.wasserstein_1d(x, x[::-1] + 0.75), 0.75)


# ------------------------------------------------------------------ where the equations stand


def rows():
  """Of the table: (formula in words, functions, tests)."""
  lines = [x for x in PAGE.read_text().splitlines() if x.startswith("| ")]
  cells = [[c.strip() for c in line.strip("|").split(" | ")] for line in lines[1:]]
  return [
    (words, re.findall(r"`([^`]+)`", f), re.findall(r"`([^`]+)`", t)) for words, f, t in cells
  ]


def names_in(path):
  tree = ast.parse((ROOT / "tests" / path).read_text())
  return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_equation_of_the_lecture_has_a_function_and_a_test_that_exist():
  table = rows()
  assert len(table) > 40
  for words, functions, tests in table:
    assert functions and tests, words
    for name in functions:  # gm.probability's without it
      module, _, function = name.rpartition(".")
      module = module if module.startswith("gm.") else f"gm.probability.{module}"
      assert callable(getattr(importlib.import_module(module), function, None)), (words, name)
    for name in tests:
      path, _, test = name.partition("::")
      assert test.startswith("test_") and test in names_in(path), (words, name)


def test_every_function_of_the_folder_has_a_place_in_the_table_or_none():
  """A function that is new and in no equation is named here."""
  helpers = {"arguments", "lecture", "latents", "spokes", "pixels"}
  later = {"aggregate", "factors", "hierarchy", "logistic_mixture"}  # what came after the lecture
  beside = {"likelihood.in_parts"}  # no equation: how many weights fit into memory
  beside |= {"likelihood.logit_laplace_log_prob", "likelihood.kl_uniform"}  # of text to image
  named = {name for _, functions, _ in rows() for name in functions}
  for path in sorted((ROOT / "gm/probability").glob("[!_]*.py")):
    if path.stem in helpers | later:
      continue
    for node in ast.parse(path.read_text()).body:
      if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
        assert f"{path.stem}.{node.name}" in named | beside, f"{path.stem}.{node.name}"
