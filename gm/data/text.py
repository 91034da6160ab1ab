"""Text as ids: what a config says of it, and a tokenizer that is made of the captions at hand.

Batches carry "tokens", i32 [B, text_length]: ids from 1 on, then the padding id 0, which stands
nowhere else, so a text is as long as it has other ids. Case and punctuation do not count.

config.data: text_key ("": no text), text_length, vocab_size (ids, padding included), tokenizer:
  word   an id for each word, the most frequent first. A word of no caption is unknown, an error.
  bpe    frequent strings of bytes (Sennrich et al., 2016, arXiv:1508.07909): with 256 ids for
         single bytes no word is unknown.

It is trained on all captions of a set, of both splits, by the library `tokenizers`. What it is
stands in a string, its JSON, which a workdir keeps: prompts are read without the data.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from gm import flags
from gm.core import Info

KINDS = ("word", "bpe")
PAD = "\0"  # the name of id 0, which no text holds
MAX_LENGTH = 2**12


def reads(cfg: Any) -> frozenset[str]:
  """Returns the keys that a source with captions reads: all, or that which says there are none."""
  all_keys = frozenset({"text_key", "text_length", "vocab_size", "tokenizer"})
  return all_keys if cfg.get("text_key", "") else frozenset({"text_key"})


def declared(cfg: Any, info: Info, key: str = "") -> Info:
  """Returns the facts on a set with its captions, where the config asks for them.

  Args:
    cfg: config.data.
    info: the facts without.
    key: the only text_key that the source knows; "": any.

  Raises:
    ValueError: for a key that is none, or a length, size or tokenizer that is not possible.

  >>> cfg = {"text_key": "caption", "text_length": 8, "vocab_size": 50, "tokenizer": "word"}
  >>> declared(cfg, Info({"image": (4, 4, 1)})).shape
  {'image': (4, 4, 1), 'tokens': (8,)}
  """
  if not cfg.get("text_key", ""):
    return info
  if key:
    flags.choice(cfg, "text_key", (key, ""), section="data")
  kind = flags.choice(cfg, "tokenizer", KINDS, section="data")
  flags.within(cfg, "text_length", least=1, most=MAX_LENGTH, section="data")
  flags.within(cfg, "vocab_size", least=2 if kind == "word" else 257, section="data")
  shape = {**info.shape, "tokens": (cfg["text_length"],)}
  return info._replace(shape=shape, vocab_size=cfg["vocab_size"])


def learn(captions: Sequence[str], cfg: Any) -> str:
  """Trains the tokenizer that a config asks for.

  Args:
    captions: all of a set.
    cfg: config.data.

  Returns:
    The tokenizer, as JSON.

  Raises:
    ValueError: if there are more words than ids.

  >>> cfg = {"text_length": 4, "vocab_size": 50, "tokenizer": "word"}
  >>> encode(learn(["A red hat.", "a cap"], cfg), ["red cap"], 4, ["it"]).tolist()
  [[4, 2, 0, 0]]
  """
  from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

  word, size = cfg["tokenizer"] == "word", cfg["vocab_size"]
  net = Tokenizer(models.WordLevel({PAD: 0}, unk_token=PAD) if word else models.BPE())
  net.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
  words = pre_tokenizers.Split(Regex(r"\w+"), "removed", invert=True)
  if word:
    net.pre_tokenizer = words
  else:  # a blank before each word tells where one begins
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)
    net.pre_tokenizer = pre_tokenizers.Sequence([words, to_bytes])
    net.decoder = decoders.ByteLevel()
  how = {"special_tokens": [PAD], "show_progress": False}
  if word:  # without a limit, so that none is left out unnoticed
    trainer = trainers.WordLevelTrainer(vocab_size=2**31 - 1, **how)
  else:
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=letters, **how)
  net.train_from_iterator(captions, trainer)
  if net.get_vocab_size() > size:
    raise ValueError(
      f"the captions have {net.get_vocab_size() - 1:,} words, --config.data.vocab_size={size} has"
      f" ids for {size - 1:,}: raise it, or set --config.data.tokenizer=bpe"
    )
  return net.to_str()


@functools.lru_cache(maxsize=4)
def _load(tokenizer: str) -> Any:
  from tokenizers import Tokenizer

  return Tokenizer.from_str(tokenizer)


def encode(
  tokenizer: str, texts: Sequence[str], length: int, names: Sequence[str], longer: str = ""
) -> np.ndarray:
  """Returns texts as ids.

  Args:
    tokenizer: as JSON.
    texts: to be read.
    length: ids of each.
    names: what each is called in messages.
    longer: what else can be done where a text is too long, for the message.

  Returns:
    i32 [len(texts), length], padded with 0.

  Raises:
    ValueError: for a text without a word, with a word that is unknown, or one that is too long.
  """
  found = np.zeros((len(texts), length), np.int32)
  for i, read in enumerate(_load(tokenizer).encode_batch(list(texts), add_special_tokens=False)):
    if not read.ids:
      raise ValueError(f"{names[i]} holds no word: give it some text")
    if 0 in read.ids:
      start, end = read.offsets[read.ids.index(0)]
      raise ValueError(
        f"{names[i]}: the word {texts[i][start:end]!r} is in no caption that was trained on: take"
        " another word"
      )
    if len(read.ids) > length:
      raise ValueError(
        f"{names[i]} has {len(read.ids):,} tokens, {length:,} fit: shorten it{longer}"
      )
    found[i, : len(read.ids)] = read.ids
  return found


def of_set(captions: Sequence[tuple[str, str]], cfg: Any) -> tuple[np.ndarray, str]:
  """Trains a tokenizer on all captions of a set, and reads them.

  Args:
    captions: (text, what it is called in messages).
    cfg: config.data.

  Returns:
    i32 [len(captions), text_length] and the tokenizer.

  Raises:
    ValueError: as `learn` and `encode`.
  """
  texts, names = zip(*captions, strict=True)
  tokenizer = learn(texts, cfg)
  longer = ", or raise --config.data.text_length"
  return encode(tokenizer, texts, cfg["text_length"], names, longer), tokenizer


def decode(tokenizer: str, tokens: np.ndarray) -> list[str]:
  """Returns ids [N, T] as texts, as far as they can be had back: words with a blank between.

  >>> cfg = {"text_length": 4, "vocab_size": 300, "tokenizer": "bpe"}
  >>> made = learn(["A red hat."], cfg)
  >>> decode(made, encode(made, ["A Red, red cap"], 12, ["it"]))
  ['a red red cap']
  """
  rows = [[int(i) for i in row if i] for row in tokens]
  return [text.strip() for text in _load(tokenizer).decode_batch(rows)]


def digest(captions: Iterable[str]) -> str:
  """Returns what tells captions from others: of a set that has changed it is another.

  >>> digest(["a", "b"]) == digest(["a b"])
  False
  """
  return hashlib.sha256("\0".join(captions).encode("utf-8", "surrogatepass")).hexdigest()[:16]
