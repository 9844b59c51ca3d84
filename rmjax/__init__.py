"""Reward models in pure JAX: training, evaluation, offline scoring, export and serving.

Programs: `python -m rmjax.NAME --help` with train, evaluate, score, export, serve or describe. Sub-packages import only
from lower layers: core; data and models; metrics; training and evaluation; serving.
"""

__version__ = "0.1.0"
