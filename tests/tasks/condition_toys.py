"""Three conditions that are no class label, each with what a person writes to train on it.

That is a data set, `dataset.name='condition_toys:tokens'`, and a network,
`model.name='condition_toys:Tokens'`. Pictures are two ramps and a brightness, in this proportion.
"""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from tiny import filled

from ddpm_jax.condition import Field, Spec, class_field
from ddpm_jax.data import Arrays, Dataset
from ddpm_jax.models import drop_cond
from ddpm_jax.models.layers import Dropout

SIDE, LEVELS, LONGEST, KINDS = 4, 17, 5, 3

SETTINGS = {
  'dataset.batch_size': 16,
  'schedule.name': 'cosine',
  'schedule.num_steps': 20,
  'parameterization.name': 'v',
  'loss.name': 'simple',
  'optimizer.name': 'adam',
  'optimizer.learning_rate': 1e-2,
  'sampler.name': 'ddim',
  'sampler.num_steps': 4,
  'sampler.guidance': 1.5,
  'ema.decay': 0.5,
  'training.num_steps': 6,
  'evaluation.every_steps': 3,
  'evaluation.batch_size': 16,
  'evaluation.num_samples': 12,
  'checkpoint.every_steps': 3,
  'logging.every_steps': 2,
  'logging.preview_every_steps': 6,
}


def toy(dataset, model, **settings):
  """A config of one of the data sets and one of the networks."""
  names = {'dataset.name': f'condition_toys:{dataset}', 'model.name': f'condition_toys:{model}'}
  return filled({**SETTINGS, **names, **settings})


def pictures(parts, rng):
  """Levels (N, 4, 4, 1) of pictures with these shares (N, 3) of the ramps and the brightness."""
  down, across = np.meshgrid(*2 * [np.linspace(-1, 1, SIDE)], indexing='ij')
  x = np.einsum('nk,khw->nhw', parts, [down, across, np.ones_like(down)])
  x = np.tanh(x + 0.1 * rng.standard_normal(x.shape))
  return np.round((x[..., None] + 1) / 2 * (LEVELS - 1)).astype(np.uint8)


def dataset(name, draw, spec):
  """64 examples to train on and 16 that are held out."""
  train, test = (Arrays(*draw(np.random.default_rng(part), 64 >> 2 * part)) for part in (0, 1))
  return Dataset(name, train, test, (SIDE, SIDE, 1), LEVELS, spec)


def body(x, noise_label, told, keys):
  """What every network does with x and the numbers (B, N) that it is told."""
  told = jnp.concatenate([told, jnp.log1p(noise_label)[:, None]], axis=1)
  flat = jnp.concatenate([x.reshape(len(x), -1), told], axis=1)
  hidden = Dropout(0.1)(nn.tanh(nn.Dense(16)(flat)), keys)
  return nn.Dense(SIDE * SIDE)(hidden).reshape(len(x), SIDE, SIDE, 1)


# A vector. The network has learned what stands for none.


def attributes() -> Dataset:
  def draw(rng, count):
    parts = rng.uniform(-1, 1, (count, 3)).astype(np.float32)
    return pictures(parts, rng), {'attributes': parts}

  return dataset('attributes', draw, {'attributes': Field((3,), null=-9.0, title='attributes')})


class Attributes(nn.Module):
  spec: Spec
  out_channels: int = 1
  cond_dropout: float = 0.3

  @nn.compact
  def __call__(self, x, noise_label, cond, keys=None):
    null = self.spec['attributes'].null
    told = drop_cond(cond['attributes'], null, keys, self.cond_dropout)
    learned = self.param('none', nn.initializers.normal(1.0), (1, 3))
    return body(x, noise_label, jnp.where(told == null, learned, told), keys)


# A sequence of tokens and which of them are there. No tokens are one of zeros, the network says.


def tokens() -> Dataset:
  def draw(rng, count):
    found = rng.uniform(-1, 1, (count, LONGEST, 4)).astype(np.float32)
    mask = np.arange(LONGEST) < rng.integers(1, LONGEST + 1, (count, 1))
    parts = np.sum(found * mask[..., None], 1)[:, :3]
    return pictures(parts, rng), {'tokens': found, 'mask': mask}

  spec = {'tokens': Field((LONGEST, 4), title='words'), 'mask': Field((LONGEST,), 'bool')}
  return dataset('tokens', draw, spec)


class Attention(nn.Module):
  """x + dense(weights v), with a method for the weights that can be intercepted."""

  @nn.compact
  def __call__(self, x, seen, mask):
    # A bias of k moves all logits of a softmax alike: its gradient would be rounding alone.
    q, k, v = nn.Dense(8)(x), nn.Dense(8, use_bias=False)(seen), nn.Dense(8)(seen)
    return x + nn.Dense(x.shape[-1])(self.weights(q, k, mask) @ v)

  def weights(self, q, k, mask):
    logits = jnp.einsum('bqd,bkd->bqk', q, k) / np.sqrt(8)
    return nn.softmax(jnp.where(mask[:, None], logits, -jnp.inf))


class Tokens(nn.Module):
  """The rows of a picture attend to each other, and then to the tokens."""

  spec: Spec
  out_channels: int = 1
  cond_dropout: float = 0.3

  @nn.compact
  def __call__(self, x, noise_label, cond, keys=None):
    cond = drop_cond(cond, self.null_cond(len(x)), keys, self.cond_dropout)
    noise = jnp.broadcast_to(jnp.log1p(noise_label)[:, None, None], (len(x), SIDE, 1))
    place = jnp.broadcast_to(jnp.eye(SIDE), (len(x), SIDE, SIDE))
    rows = jnp.concatenate([x[..., 0], place, noise], axis=-1)
    h = nn.Dense(16)(rows)
    h = Attention(name='among_rows')(h, h, jnp.ones((len(x), SIDE), bool))
    h = Attention(name='to_tokens')(h, cond['tokens'], cond['mask'])
    h = Dropout(0.1)(nn.tanh(nn.Dense(16)(h)), keys)
    return nn.Dense(SIDE)(h)[..., None]

  def null_cond(self, batch_size):
    mask = jnp.broadcast_to(jnp.arange(LONGEST) < 1, (batch_size, LONGEST))
    return {'tokens': jnp.zeros((batch_size, LONGEST, 4)), 'mask': mask}


# A picture beside the input, where it is known, and a class. Each may be missing by itself.


def inpainting() -> Dataset:
  def draw(rng, count):
    kind = rng.integers(0, KINDS, count)
    x = pictures(np.eye(3)[kind] * rng.uniform(0.3, 1, (count, 1)), rng)
    known = rng.random((count, SIDE, SIDE, 1)) < 0.5
    picture = np.where(known, 2 * x / (LEVELS - 1) - 1, 0).astype(np.float32)
    return x, {'picture': picture, 'known': known, 'kind': kind.astype(np.int32)}

  shape = (SIDE, SIDE, 1)
  fields = {'picture': Field(shape, title='picture'), 'known': Field(shape, 'bool')}
  return dataset('inpainting', draw, {**fields, 'kind': class_field(KINDS)})


class Inpainting(nn.Module):
  """Half of the examples without a kind are without a picture too: one draw decides both."""

  spec: Spec
  out_channels: int = 1
  cond_dropout: float = 0.4
  augmented: bool = False

  @nn.compact
  def __call__(self, x, noise_label, cond, keys=None):
    kind = drop_cond(cond['kind'], KINDS, keys, self.cond_dropout)
    beside = {name: cond[name] for name in ('picture', 'known')}
    beside = drop_cond(beside, {'picture': 0.0, 'known': False}, keys, self.cond_dropout / 2)
    told = jnp.concatenate(
      [part.reshape(len(x), -1) for part in (*beside.values(), jnp.eye(KINDS + 1)[kind])], axis=1
    )
    return body(x, noise_label, told, keys)


TOYS = {'attributes': 'Attributes', 'tokens': 'Tokens', 'inpainting': 'Inpainting'}
