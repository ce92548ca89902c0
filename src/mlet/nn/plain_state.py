"""A ``state_dict`` of an ordinary layer, loaded into the two-layer one in its place."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor, nn

from mlet.nn.factored import INNER, PROJECTION, WEIGHT


class TakesPlainWeight(nn.Module):
    """Of a ``state_dict`` that has its ``weight`` and no factors, lets the factors hold that."""

    inner: nn.Parameter
    projection: nn.Parameter

    @abstractmethod
    def set_table(self, table: Tensor) -> None:
        """Put a table (n × d) into both factors."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        """``others`` are torch's; the last is the list of what does not fit."""
        self._take_plain_weight(state_dict, prefix, others[-1])
        super()._load_from_state_dict(state_dict, prefix, *others)

    def _take_plain_weight(
        self, state_dict: dict[str, Any], prefix: str, error_msgs: list[str]
    ) -> None:
        key, inner, projection = (f"{prefix}{name}" for name in (WEIGHT, INNER, PROJECTION))
        if key not in state_dict or inner in state_dict or projection in state_dict:
            return
        weight = state_dict.pop(key)
        (n, k), d = self.inner.shape, self.projection.shape[1]
        # What torch finds to load of the factors is what they have.
        state_dict.update({inner: self.inner, projection: self.projection})
        if not isinstance(weight, Tensor) or tuple(weight.shape) != (n, d):
            shape = tuple(getattr(weight, "shape", ()))
            error_msgs.append(
                f"size mismatch for {key}: copying a table of shape {shape} from checkpoint, the "
                f"two-layer table in current model stands for {(n, d)}."
            )
        elif k < d:
            error_msgs.append(
                f"{key}: inner_dim={k} cannot hold the {d} dimensions of a plain table"
            )
        elif self.inner.is_meta:
            error_msgs.append(
                f"{key} is a plain table, to be put into two factors, and the module is on the "
                f"meta device: give it memory first, with to_empty()"
            )
        else:
            self.set_table(weight.to(device=self.inner.device, dtype=self.inner.dtype))
