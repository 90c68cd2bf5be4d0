"""What is known in closed form: exact denoisers of simple data, information and inequalities."""

from ddpm_jax.theory import diagnostics, inequalities, information, oracle

__all__ = ['diagnostics', 'inequalities', 'information', 'oracle']
