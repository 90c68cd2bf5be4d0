import re

import pytest

from ddpm_jax.evaluation.catalog import reference
from ddpm_jax.samplers import SAMPLERS


@pytest.mark.parametrize('name', SAMPLERS)
def test_every_sampler_names_its_source(name):
  assert re.fullmatch(r'[A-Z].* \d{4}, https://\S+', reference(SAMPLERS[name]))
