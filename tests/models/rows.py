"""Batches of packed rows for the tests."""

import numpy as np


def whole_rows(tokens):
    """Returns a batch in which each row is one conversation, read at its last token."""
    ones = np.ones_like(tokens)
    position = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    last = np.full((len(tokens), 1), tokens.shape[1] - 1, np.int32)
    return {"tokens": tokens, "group": ones, "branch": ones, "position": position, "readout_index": last}
