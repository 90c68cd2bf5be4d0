"""Data sets, and the stream of batches that training reads."""

from ddpm_jax.data.ahead import Ahead
from ddpm_jax.data.augmentation import augment
from ddpm_jax.data.dataset import (
  Arrays,
  Dataset,
  Decoded,
  Split,
  check_examples,
  held_out,
  labeled,
)
from ddpm_jax.data.images import random_flip
from ddpm_jax.data.pipeline import batches, train_iterator
from ddpm_jax.data.plane import mixture
from ddpm_jax.data.sources import DATASETS, arrays, digits, folder, load, source, tfds

__all__ = [
  'DATASETS',
  'Ahead',
  'Arrays',
  'Dataset',
  'Decoded',
  'Split',
  'arrays',
  'augment',
  'batches',
  'check_examples',
  'digits',
  'folder',
  'held_out',
  'labeled',
  'load',
  'mixture',
  'random_flip',
  'source',
  'tfds',
  'train_iterator',
]
