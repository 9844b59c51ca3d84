"""Migration from other trainers: their configurations as configuration files of rmjax, NeMo's checkpoints as models.

One module for each trainer declares every key that it has (`keys.Key`) and turns them into rmjax's. A key that is not
declared is an error; one without a counterpart is reported with the reason, never ignored.
"""
