"""Ablations: variants of an experiment × seeds, at equal budgets, with differences paired by seed.

`vary`, `grid`, `zipped` and `listed` say which variants there are; a `Plan` is these over seeds,
each cell an ordinary run in a folder of its own; `run_cell` trains and measures one.
"""

from ddpm_jax.ablation.sweep import COMBINATIONS, grid, listed, vary, zipped

__all__ = ['COMBINATIONS', 'grid', 'listed', 'vary', 'zipped']
