"""The reward head as a model of its own, which reads features that were computed before.

Axis letters: B rows, R readouts, D model, A attributes.
"""

import dataclasses

import jax

from rmjax.models.architecture import HeadConfig
from rmjax.models.decoder import Params, RewardModel


@dataclasses.dataclass(frozen=True)
class FeatureModel:
    """The head of the model `whole`; batches have its `RewardModel.features` in place of tokens."""

    whole: RewardModel

    @property
    def head(self) -> HeadConfig:
        """The configuration of the head."""
        return self.whole.head

    @property
    def frozen_dtype(self) -> str:
        """See `RewardModel`."""
        return self.whole.frozen_dtype

    def init(self, key: jax.Array) -> Params:
        """Returns random parameters of the head, as those of `RewardModel.init`."""
        return {"head": self.whole.init(key)["head"]}

    def shapes(self) -> Params:
        """Returns the shapes and dtypes of the parameters of the head."""
        return {"head": self.whole.shapes()["head"]}

    def rewards(self, params: Params, batch: dict[str, jax.Array]) -> jax.Array:
        """Returns the rewards float32 [B, R, A] of `features`, [B, R, D]."""
        return self.whole.head_rewards(params, batch["features"])

    def features(self, params: Params, batch: dict[str, jax.Array]) -> jax.Array:
        """Returns `features` [B, R, D] of a batch."""
        return batch["features"]

    def member_rewards(self, params: Params, features: jax.Array) -> jax.Array:
        """See `RewardModel`."""
        return self.whole.member_rewards(params, features)
