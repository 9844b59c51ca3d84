"""rmjax: reward models in pure JAX, from preference data to a served score."""

__version__ = "0.1.0"
