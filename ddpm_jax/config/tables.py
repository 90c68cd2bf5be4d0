"""Where the names in a config are looked up, and what the entries take."""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ddpm_jax.config.signatures import keywords, kind
from ddpm_jax.errors import InputError, choose, unknown

PLUGIN = re.compile(r'[A-Za-z_][\w.]*:[A-Za-z_]\w*')


@dataclasses.dataclass(frozen=True)
class Group:
  """A choice group's table.

  Attributes:
    table: name -> function, whose keyword arguments are settings.
    supplied: the keyword arguments that the program gives itself.
    fallback: name -> function, for names that are not in the table; None refuses them.
  """

  table: Mapping[str, Callable]
  supplied: frozenset[str] = frozenset()
  fallback: Callable[[str], Callable] | None = None

  def arguments(self) -> dict[str, type]:
    """The keyword arguments of all the functions, each with the type that they agree on."""
    functions = [*self.table.values(), *([self.fallback('')] if self.fallback else [])]
    kinds: dict[str, set[type]] = {}
    for function in functions:
      for name, parameter in keywords(function, self.supplied).items():
        kinds.setdefault(name, set()).add(kind(parameter.annotation))
    return {name: found.pop() if len(found) == 1 else object for name, found in kinds.items()}


class Tables(NamedTuple):
  """All that names are looked up in: choice groups, and plain settings as 'sampler.grid'."""

  groups: Mapping[str, Group]
  options: Mapping[str, Mapping[str, Callable]]


def all_tables() -> Tables:
  """The package's own tables."""
  # Here and not above: training and data read this module.
  from ddpm_jax import data, losses, models, samplers
  from ddpm_jax.diffusion import parameterization, schedules
  from ddpm_jax.evaluation import likelihood
  from ddpm_jax.training import optimizers, parallel

  groups = {
    'dataset': Group(data.DATASETS, fallback=data.source),
    'model': Group(models.MODELS, frozenset({'num_classes', 'out_channels'})),
    'schedule': Group(schedules.SCHEDULES),
    'parameterization': Group(parameterization.PARAMETERIZATIONS),
    'loss': Group(losses.LOSSES, frozenset({'problem', 'params', 'state', 'batch', 'keys'})),
    'optimizer': Group(optimizers.OPTIMIZERS, frozenset({'learning_rate'})),
    'sampler': Group(samplers.SAMPLERS),
  }
  options = {
    **{f'loss.{factor}': table for factor, table in losses.FACTORS.items()},
    'optimizer.lr_schedule': optimizers.LR_SCHEDULES,
    'sampler.grid': samplers.TIME_GRIDS,
    'sampler.noise': samplers.NOISES,
    'sampler.threshold': samplers.THRESHOLDS,
    'parallel.mode': parallel.PARALLEL,
    'evaluation.likelihoods': likelihood.LIKELIHOODS,
    'evaluation.decoder': likelihood.DECODERS,
  }
  return Tables(groups, options)


def find_function(
  name: str,
  table: Mapping[str, Callable],
  field: str,
  fallback: Callable[[str], Callable] | None = None,
) -> Callable:
  """An entry of the table, an imported plug-in 'package.module:function', or fallback(name)."""
  if name in table or not PLUGIN.fullmatch(name):
    return choose(table, name, field) if name in table or not fallback else fallback(name)
  module_name, function_name = name.split(':')
  try:
    module = importlib.import_module(module_name)
  except Exception as error:
    raise InputError(f"{field}: '{name}' cannot be imported: {error!r}") from error
  if not callable(getattr(module, function_name, None)):
    public = [key for key, value in vars(module).items() if callable(value) and key[0] != '_']
    raise InputError(unknown(function_name, public, f'{field}: {module_name}'))
  return getattr(module, function_name)
