"""The fixtures of small_run: a small network with random parameters."""

from small_run import as_run, digits, experiment, params

__all__ = ['as_run', 'digits', 'experiment', 'params']
