"""The models that a server offers (reward model, critic): request tensors to token sequences to output tensors."""
