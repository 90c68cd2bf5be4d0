"""Where the names in a config are looked up, and what the entries take."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from ddpm_jax.config.signatures import keywords, kind


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
  """All that names are looked up in, by where they are written.

  Attributes:
    groups: 'loss' -> its table.
    options: 'sampler.grid' -> the table of a plain setting's names.
    factors: 'loss.weight' -> the table of a setting that may be an expression or a plug-in.
    trusted: the modules whose functions may stand beside the tables' as plug-ins; None: any.
  """

  groups: Mapping[str, Group]
  options: Mapping[str, Mapping[str, Any]]
  factors: Mapping[str, Mapping[str, Callable]]
  trusted: Collection[str] | None = None


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
    'sampler': Group(samplers.SAMPLERS | samplers.SOLVERS),
  }
  options = {
    'parameterization.variance_head': parameterization.VARIANCE_HEADS,
    'optimizer.lr_schedule': optimizers.LR_SCHEDULES,
    'sampler.grid': samplers.TIME_GRIDS,
    'sampler.noise': samplers.NOISES,
    'sampler.threshold': samplers.THRESHOLDS,
    'parallel.mode': parallel.PARALLEL,
    'evaluation.likelihoods': likelihood.LIKELIHOODS,
    'evaluation.decoder': likelihood.DECODERS,
  }
  factors = {f'loss.{factor}': table for factor, table in losses.FACTORS.items()}
  return Tables(groups, options, factors)
