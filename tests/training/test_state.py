import jax
import jax.numpy as jnp
import optax

from ddpm_jax.training.state import init_state

PARAMS = {'network': {'w': jnp.ones((3, 2), jnp.bfloat16), 'b': jnp.zeros(2)}, 'loss': {}}


def test_averages_start_at_the_parameters_in_float32():
  state = init_state(PARAMS, optax.adam(1e-3), averages=('slow',))
  average = state.ema['slow']
  assert jax.tree.structure(average) == jax.tree.structure(PARAMS)
  assert average['network']['w'].dtype == jnp.float32
  assert bool((average['network']['w'] == 1).all())


def test_no_two_leaves_share_a_buffer():
  state = init_state(PARAMS, optax.adam(1e-3), averages=('slow', 'fast'))
  buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
  assert len(set(buffers)) == len(buffers)
