"""The reward model and its files: architecture, layers, attention, sharding rules, weights, artifact, workdir.

Flax NNX is used only here; outside, parameters are nested dicts of arrays. Nothing here imports `rmjax.data`.
"""
