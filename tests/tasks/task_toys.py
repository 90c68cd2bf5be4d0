"""Five toys that the contracts of tasks, conditions, codecs and frozen parts must carry.

None of them is a part of the package: each plugs in by its name, as 'task_toys:adversarial'.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from tiny import filled

from ddpm_jax.codec import Codec, scale, to_uint8
from ddpm_jax.data import Arrays, Dataset
from ddpm_jax.diffusion.parameterization import network_input
from ddpm_jax.keys import for_purpose
from ddpm_jax.losses import LossOutput
from ddpm_jax.losses.products import add_noise
from ddpm_jax.tasks.parts import make_preview
from ddpm_jax.training.task import Task, Use

# ---------------------------------------------------------------- 1. latents of a frozen codec


def normal(mean: float = 140.0, deviation: float = 20.0) -> Dataset:
  """Pictures (2, 2, 1) of 256 levels, whose pixels are normal but for the rounding."""
  rng = np.random.default_rng(0)
  mixed = rng.standard_normal((512, 4)) @ np.array(
    [[1, 0.5, 0, 0], [0, 1, -0.5, 0], [0, 0, 1, 0], [0.3, 0, 0, 1]]
  )
  x = np.clip(np.round(mean + deviation * mixed), 0, 255).reshape(-1, 2, 2, 1).astype(np.uint8)
  return Dataset('normal', Arrays(x[:448]), Arrays(x[448:]), (2, 2, 1), 256)


def linear(shape, num_levels, path: str = '', latents: int = 2, noise: float = 0.1) -> Codec:
  """z = encoder x + noise eps and x = decoder z; both matrices are read from a file."""

  def encode(params, x, keys):
    flat = scale(x, num_levels).reshape(len(x), -1)
    eps = jax.vmap(lambda key: jax.random.normal(key, (latents,)))(keys)
    return (flat @ params['encoder'].T + noise * eps).reshape(-1, 1, latents, 1)

  def decode(params, z):
    return to_uint8(z.reshape(len(z), latents) @ params['decoder'].T).reshape(-1, *shape)

  def load():
    with np.load(path) as file:
      return {name: file[name] for name in ('encoder', 'decoder')}

  return Codec(encode, decode, (1, latents, 1), load=load, source=path)


class Posterior(nn.Module):
  """E[z | zt] of two normal latents on a path with alpha² + sigma² = 1, by the log-SNR.

  It learns their mean and covariance, R(angle) diag(exp(log_variances)) R(angle)ᵀ.
  """

  spec: dict
  out_channels: int

  @nn.compact
  def __call__(self, x, noise_label, cond, keys=None):
    mean = self.param('mean', nn.initializers.zeros, (2,))
    angle = self.param('angle', nn.initializers.zeros, ())
    variances = jnp.exp(self.param('log_variances', lambda key: jnp.array([0.5, -0.5])))
    turn = jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]])

    def example(z, log_snr):
      alpha, noise = jnp.sqrt(nn.sigmoid(log_snr)), nn.sigmoid(-log_snr)
      gain = alpha * variances / (alpha**2 * variances + noise)
      return mean + turn @ (gain * (turn.T @ (z - alpha * mean)))

    return jax.vmap(example)(x.reshape(-1, 2), noise_label).reshape(x.shape)


# ---------------------------------------------------------------- 2. an adversarial pair


def two_rates(learning_rate, critic_rate: float = 0.1) -> optax.GradientTransformation:
  """Gradient descent of both networks, each at a rate of its own."""
  rates = {'generator': learning_rate, 'critic': critic_rate}
  return optax.partition({k: optax.sgd(v) for k, v in rates.items()}, {k: k for k in rates})


def adversarial(experiment, teacher=None) -> Task:
  """A generator of shifted noise and a linear critic of the difference of means."""
  shape, hold = experiment.codec.shape, jax.lax.stop_gradient

  def init(given):
    return {'generator': {'shift': jnp.zeros(shape)}, 'critic': {'weight': jnp.ones(shape)}}, ()

  def made(generator, keys):
    noise = jax.vmap(lambda key: jax.random.normal(key, shape))(for_purpose(keys, 'noise'))
    return jax.vmap(lambda eps: generator['shift'] + 0.2 * eps)(noise)

  def judged(critic, x):
    return jax.vmap(lambda x: jnp.sum(critic['weight'] * x))(x)

  def loss(params, state, frozen, batch, keys, gather):
    real, fake = (
      experiment.encode(frozen, batch['x'], keys.examples),
      made(params['generator'], keys.examples),
    )
    gap = judged(params['critic'], hold(fake)) - judged(params['critic'], real)
    critic = gap + jnp.sum(jnp.square(params['critic']['weight'])) / 2
    generator = -judged(hold(params['critic']), fake)
    return LossOutput(critic + generator, {'critic': critic, 'generator': generator}, state)

  def generate(params, frozen, cond, keys):
    return made(params['generator'], keys)

  return Task(
    init,
    loss,
    experiment.optimizer,
    preview=make_preview(experiment, generate),
    use=Use(generate),
  )


# ---------------------------------------------------------------- 3. a contrastive pair


def contrastive(experiment, teacher=None, width: int = 4) -> Task:
  """Encoders of images and labels, each of which finds its partner among those of the batch.

  Reference: Radford et al. 2021, https://arxiv.org/abs/2103.00020, figure 3.
  """
  size, count = int(np.prod(experiment.codec.shape)), experiment.dataset.cond['label'].num_classes

  def init(given):
    keys = jax.random.split(jax.random.key(experiment.config.seed))
    image = jax.random.normal(keys[0], (size, width)) / size**0.5
    return {'image': image, 'label': jax.random.normal(keys[1], (count, width))}, ()

  def loss(params, state, frozen, batch, keys, gather):
    x = experiment.encode(frozen, batch['x'], keys.examples)
    image, label = x.reshape(len(x), -1) @ params['image'], params['label'][batch['cond']['label']]
    own = batch['index'][:, None] == gather(batch['index'])[None]

    def lost(ours, theirs):
      return -jnp.sum(own * jax.nn.log_softmax(ours @ gather(theirs).T), axis=1)

    return LossOutput((lost(image, label) + lost(label, image)) / 2, {}, state)

  return Task(init, loss, experiment.optimizer)


# ---------------------------------------------------------------- 4. a network of two times


class TwoTimes(nn.Module):
  """The mean velocity of normal data's flow from t to s; s is t where the condition has none.

  It learns the data's mean and the logarithm of its variance, component by component.
  """

  spec: dict
  out_channels: int

  @nn.compact
  def __call__(self, x, noise_label, cond, keys=None):
    mean = self.param('mean', nn.initializers.zeros, x.shape[1:])
    log_variance = self.param('log_variance', nn.initializers.zeros, x.shape[1:])
    t = noise_label / 1000
    variance = jnp.exp(log_variance)

    def example(x, s, t):
      here, there = (jnp.sqrt((1 - u) ** 2 * variance + u**2) for u in (t, s))
      slope = (t + s - (2 - t - s) * variance) / (here * (here + there))
      return slope * (x - (1 - t) * mean) - mean

    return jax.vmap(example)(x, cond.get('s', t), t)


def mean_flow(context, params, state, batch, keys) -> LossOutput:
  """mean |u - target|² with target v - (t - s) du/dt, held fixed, along v = eps - x0.

  Reference: Geng et al. 2025, https://arxiv.org/abs/2505.13447, equations 9 to 11.
  """
  noised = add_noise(context, state, batch, keys)
  share = jax.vmap(jax.random.uniform)(for_purpose(keys.examples, 'loss'))

  def u(xt, s, t):
    x, label = network_input(context.parameterization, context.schedule, xt, t)
    cond = {**batch['cond'], 's': s}
    return context.network(params['network'], x, label, cond, batch['index'], keys.examples)

  t, s, v = noised.t, share * noised.t, noised.eps - noised.x0
  value, change = jax.jvp(u, (noised.xt, s, t), (v, jnp.zeros_like(s), jnp.ones_like(t)))
  target = v - jax.vmap(jnp.multiply)(t - s, change)
  error = jnp.square(value - jax.lax.stop_gradient(target))
  return LossOutput(jnp.mean(error.reshape(len(error), -1), axis=1), {}, state)


# ---------------------------------------------------------------- 5. a discrete state

CHANCES = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.25, 0.25, 0.5], [0.4, 0.5, 0.1]])


def tokens() -> Dataset:
  """Four independent tokens of three levels each, with CHANCES."""
  rng = np.random.default_rng(0)
  x = np.stack([rng.choice(3, 576, p=p) for p in CHANCES], axis=1).reshape(-1, 1, 4, 1)
  return Dataset('tokens', Arrays(x[:512]), Arrays(x[512:]), (1, 4, 1), 3)


def whole(shape, num_levels) -> Codec:
  """Levels as the whole numbers that they are."""
  return Codec(
    lambda params, x, keys: x.astype(jnp.int32),
    lambda params, z: (z * (255 // (num_levels - 1))).astype(jnp.uint8),
    shape,
    (0, num_levels - 1),
    num_levels,
  )


def masking(experiment, teacher=None) -> Task:
  """Cross-entropy on masked tokens, whose number is uniform; the mask is the level after the last.

  Reference: Sahoo et al. 2024, https://arxiv.org/abs/2406.07524, equation 10.
  """
  shape, levels = experiment.codec.shape, experiment.dataset.num_levels
  size = int(np.prod(shape))

  def init(given):
    zeros = jnp.zeros((size, levels + 1, size, levels))
    return {'table': jnp.zeros((size, levels)), 'context': zeros}, ()

  def logits(params, seen):  # (size,) tokens or masks -> (size, levels)
    return params['table'] + jnp.sum(params['context'][jnp.arange(size), seen], axis=0)

  def loss(params, state, frozen, batch, keys, gather):
    def example(x, key):
      of_order, of_count = jax.random.split(key)
      count = jax.random.randint(of_count, (), 1, size + 1)
      masked = jax.random.permutation(of_order, size) < count
      log_p = jax.nn.log_softmax(logits(params, jnp.where(masked, levels, x)))
      return -jnp.sum(masked * log_p[jnp.arange(size), x]) / count

    x = experiment.encode(frozen, batch['x'], keys.examples).reshape(-1, size)
    return LossOutput(jax.vmap(example)(x, for_purpose(keys.examples, 'noise')), {}, state)

  def generate(params, frozen, cond, keys):
    def unmask(x, step):
      place, key = step
      return x.at[place].set(jax.random.categorical(key, logits(params, x)[place])), None

    def example(key):
      of_order, *of_tokens = jax.random.split(key, size + 1)
      steps = jax.random.permutation(of_order, size), jnp.stack(of_tokens)
      return jax.lax.scan(unmask, jnp.full(size, levels), steps)[0].reshape(shape)

    return jax.vmap(example)(for_purpose(keys, 'sampler'))

  return Task(
    init,
    loss,
    experiment.optimizer,
    preview=make_preview(experiment, generate),
    use=Use(generate),
  )


# ---------------------------------------------------------------- how each is trained

COMMON = {
  'dataset.batch_size': 16,
  'optimizer.name': 'sgd',
  'optimizer.learning_rate': 0.1,
  'ema.decay': 0.5,
  'training.num_steps': 6,
  'evaluation.every_steps': 6,
  'checkpoint.every_steps': 2,
  'logging.every_steps': 2,
  'logging.preview_every_steps': 6,
}

TOYS = {
  'latents': {
    'dataset.name': 'task_toys:normal',
    'codec.name': 'task_toys:linear',
    'model.name': 'task_toys:Posterior',
    'schedule.name': 'cosine_log_snr',
    'parameterization.name': 'x0',
    'parameterization.noise_label': 'log_snr',
    'loss.name': 'simple',
    'loss.weight': 'output',
    'sampler.name': 'rk4',
    'sampler.grid': 'log_snr',
    'sampler.num_steps': 80,
  },
  'adversarial': {
    'dataset.name': 'task_toys:normal',
    'task.name': 'task_toys:adversarial',
    'optimizer.name': 'task_toys:two_rates',
  },
  'contrastive': {'dataset.name': 'digits', 'task.name': 'task_toys:contrastive'},
  'two times': {
    'dataset.name': 'task_toys:normal',
    'model.name': 'task_toys:TwoTimes',
    'schedule.name': 'flow',
    'parameterization.name': 'flow',
    'loss.name': 'task_toys:mean_flow',
    'sampler.name': 'rk4',
    'sampler.grid': 'linspace',
    'sampler.num_steps': 40,
  },
  'masking': {
    'dataset.name': 'task_toys:tokens',
    'task.name': 'task_toys:masking',
    'codec.name': 'task_toys:whole',
  },
}


def config_of(toy, **settings):
  """A toy's config with some settings changed, as config_of('masking', **{'seed': 1})."""
  return filled({**COMMON, **TOYS[toy], **settings})
