"""Keys that every config has, with their defaults; configs/NAME.py sets the rest."""

from ml_collections import ConfigDict, FieldReference


def base(method: str) -> ConfigDict:
  """Returns the common keys; `data` and `model` are filled by the method's config."""
  return ConfigDict(
    {
      "method": method,  # file in gm/methods
      "seed": 0,
      "num_steps": 1000,
      "batch_size": 64,
      "accumulate": 1,  # parts into which a batch is split to save memory
      "compute_dtype": "float32",  # or bfloat16: activations; parameters stay float32
      "num_devices": 0,  # 0: all
      "cpu_devices": 1,  # virtual devices on a CPU; 0: one per core
      "steps_per_call": 0,  # steps per compiled call; 0: chosen by the clock; no effect on results
      "log_every": 100,  # steps; 0, here and in the next three: only at the end
      "sample_every": 1000,
      "checkpoint_every": 1000,
      "keep_checkpoints": 3,
      "eval_every": 0,
      "metrics": (),  # "file.function" of gm/metrics
      "num_eval_samples": 10_000,
      "reference_split": "train",  # real data that samples are compared with
      "best_metric": "",  # "-frechet": also keep the checkpoint where it is least
      "init_from": "",  # <other workdir>/checkpoints/00-name: start after that finished stage
      "data": {
        "source": "embedded",  # file in gm/data
        "name": "mnist10k",
        "dir": "",  # "": the user's cache folder
        # 0: as stored; a number: square; (height, width): where the network permits it
        "image_size": FieldReference(0, field_type=object),
        "channels": 0,  # 0: as stored
        "num_classes": 0,  # of folder and tfds; 0: no labels
        "num_train": 0,  # training examples, spread evenly over the set; 0: all
        "image_key": "",  # of tfds: the feature that is the image; "": image
        "label_key": "",  # the feature (tfds; "": label) or attribute (avatars) that is the label
        "text_key": "",  # of tfds: the feature that is the text; folder, avatars: caption; "": none
        "text_length": 32,  # tokens of a text, see gm/data/text.py
        "vocab_size": 1_024,
        "tokenizer": "word",  # or bpe
        "train_split": "train",  # of tfds, in its notation: train[:90%]
        "test_split": "test",
        "memory_mb": 256,  # of folder and tfds: larger sets are streamed
        "scale": 1.0,  # of points: their coordinates are multiplied by it
        "attributes": (),  # of avatars: columns of 0 and 1, see gm/data/attributes.py; tfds: names
        "paired": False,  # of domains: a batch has the same scenes in both
      },
      "model": {},
    }
  )


def unknown(variant: str, known: tuple) -> ValueError:
  """The error for a variant that a config does not have."""
  return ValueError(f"no variant {variant!r}; this config has {', '.join(known)}")
