"""Training of reward models: experiment, train state, step, loop, losses, objectives, optimizer, checkpoints, logs.

Export of a trained workdir as a serving artifact is here too. Nothing in `rmjax.serving` imports it.
"""
