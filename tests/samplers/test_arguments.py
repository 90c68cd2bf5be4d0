"""What `sample` and `solve` say of arguments that are none, in one line each."""

import jax
import jax.numpy as jnp
import pytest

from ddpm_jax.diffusion import schedules
from ddpm_jax.diffusion.score import denoiser_from_score
from ddpm_jax.samplers import SAMPLERS, SOLVERS, ancestral, ddim, sample, time_grid
from ddpm_jax.theory.oracle import GaussianData

PATH = schedules.flow()
DATA = GaussianData(jnp.zeros(3), jnp.ones(3))
GOOD = {
  'sampler': ancestral(),
  'denoiser': DATA.denoiser(PATH),
  'schedule': PATH,
  'times': time_grid('trailing', PATH, 4),
  'xT': jnp.ones((8, 3)),
  'keys': jax.random.split(jax.random.key(0), 8),
}
TIMES, KEYS = GOOD['times'], GOOD['keys']
CALLED = r"SAMPLERS\['ddim'\]\(\)"
MADE = 'denoiser_from_score'
SPLIT = r'jax.random.split\(key, 8\)'

WRONG = [
  ('sampler', 'ddim', TypeError, f"'ddim' is a name; .*{CALLED}"),
  ('sampler', SAMPLERS['ddim'], TypeError, r'ddim is a function that makes one; call it, ddim\(\)'),
  (
    'sampler',
    SOLVERS['tsit5'],
    TypeError,
    r'tsit5 is a function .* call it, tsit5\(\)',
  ),
  (
    'sampler',
    SOLVERS['tsit5'](),
    TypeError,
    r'Solver goes .*solver\(schedule, denoiser,',
  ),
  ('sampler', None, TypeError, f'None is none; .*{CALLED}'),
  ('denoiser', lambda x, t: -x, TypeError, rf'it returned an array of shape \(8, 3\).*{MADE}'),
  ('denoiser', lambda x, t: None, TypeError, f'it returned None.*{MADE}'),
  ('denoiser', 'unet', TypeError, f"'unet' is none.*{MADE}"),
  ('denoiser', jnp.ones(3), TypeError, f'an array of shape .* is none.*{MADE}'),
  (
    'denoiser',
    lambda x, t: DATA.denoiser(PATH)(x, t)._replace(x0=jnp.zeros(3)),
    ValueError,
    r'its x0 has shape \(3,\), but xt has \(8, 3\)',
  ),
  ('schedule', 'flow', TypeError, "'flow' is none; it answers alpha"),
  ('schedule', schedules.flow, TypeError, 'the function flow is none; it answers alpha'),
  ('schedule', schedules.Discrete, TypeError, 'the class Discrete is none; it answers alpha'),
  ('times', 50, TypeError, '50 is no array .*time_grid'),
  ('times', [0.9, 0.5], TypeError, 'list is no array .*time_grid'),
  ('times', TIMES[0], ValueError, r'shape \(\) is not \(N,\)'),
  ('times', TIMES[:0], ValueError, r'shape \(0,\) is not \(N,\)'),
  ('times', TIMES[::-1], ValueError, 'they have to fall strictly'),
  ('times', TIMES.at[1].set(TIMES[0]), ValueError, 'they have to fall strictly'),
  ('xT', (8, 3), TypeError, 'tuple is no array .*prior_sample'),
  ('xT', jnp.ones(()), ValueError, 'a scalar is no batch .*prior_sample'),
  ('keys', jax.random.key(0), ValueError, rf'shape \(\), but xT is a batch of 8, .*{SPLIT}'),
  ('keys', jax.random.PRNGKey(0), ValueError, rf'shape \(\), but .*{SPLIT}'),
  ('keys', KEYS[:3], ValueError, rf'shape \(3,\), but .*{SPLIT}'),
  ('keys', 0, TypeError, f'0 is no array of keys.*{SPLIT}'),
  ('keys', None, TypeError, f'None is no array of keys.*{SPLIT}'),
]


@pytest.mark.parametrize('name, value, kind, message', WRONG)
def test_each_argument_that_is_none_is_named_with_the_mend(name, value, kind, message):
  with pytest.raises(kind, match=f'^{name}: {message}') as caught:
    sample(**GOOD | {name: value})
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('name', ['denoiser', 'keys', 'times'])
def test_so_it_is_under_jit(name):
  wrong = {
    'denoiser': lambda x, t: -x,
    'keys': jax.random.key(0),
    'times': TIMES[0],
  }

  def run(times, xT, keys):
    return sample(**GOOD | {'times': times, 'xT': xT, 'keys': keys} | {name: wrong[name]})

  with pytest.raises((TypeError, ValueError), match=f'^{name}: '):
    jax.jit(run)(TIMES, GOOD['xT'], KEYS)


def test_what_is_right_is_taken():
  good = sample(**GOOD)
  raw = jax.vmap(jax.random.key_data)(KEYS)
  with jax.default_prng_impl('threefry2x32'):
    assert (sample(**GOOD | {'keys': raw}) == good).all()
  # No noise needs no key; an inversion goes up.
  sample(**GOOD | {'sampler': ddim(), 'keys': None})
  sample(**GOOD | {'sampler': ddim(), 'times': TIMES[::-1]}, final='keep')
  score = denoiser_from_score(PATH, lambda xt, t: DATA.score(PATH, xt, t))
  sample(**GOOD | {'denoiser': score, 'times': TIMES[1:]})


def test_a_recalled_denoiser_is_looked_at_too():
  with pytest.raises(TypeError, match='^denoiser: it returned an array'):
    sample(**GOOD | {'denoiser': lambda x0: lambda x, t: -x}, recall=True)


@pytest.mark.parametrize('denoiser', ['unet', lambda x, t: -x])
def test_a_solver_says_the_same_of_a_denoiser(denoiser):
  with pytest.raises(TypeError, match=f'^denoiser: .*{MADE}'):
    SOLVERS['tsit5']()(PATH, denoiser, GOOD['xT'], 1.0, 0.1)
