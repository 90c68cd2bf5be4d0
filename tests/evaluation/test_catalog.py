import re

import pytest

from ddpm_jax.evaluation.catalog import order_of, reference
from ddpm_jax.samplers import SAMPLERS


@pytest.mark.parametrize('name', SAMPLERS)
def test_every_sampler_names_its_source(name):
  assert re.fullmatch(r'[A-Z].* \d{4}, https://\S+', reference(SAMPLERS[name]))


@pytest.mark.parametrize(
  ('name', 'order'), [('ipndm', '2 (4)'), ('pndm', '2 (4)'), ('lms', '4'), ('consistency', '-')]
)
def test_orders_are_shown_with_where_they_hold(name, order):
  assert order_of(SAMPLERS[name]()) == order
