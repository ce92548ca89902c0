"""A ``state_dict`` of an ordinary layer, loaded into the two-layer one in its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from mlet.nn.factored import INNER, PROJECTION, WEIGHT


def take_plain_weight(
    module: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    error_msgs: list[str],
    hold: Callable[[Tensor], None],
) -> None:
    """Where ``state_dict`` has the module's ``weight`` and no factors, let the factors hold it.

    Args:
        module: has ``inner`` (n × k) and ``projection`` (k × d).
        state_dict, prefix, error_msgs: as torch passes them to ``_load_from_state_dict``.
        hold: puts a table (n × d) into both factors.
    """
    key, inner, projection = (f"{prefix}{name}" for name in (WEIGHT, INNER, PROJECTION))
    if key not in state_dict or inner in state_dict or projection in state_dict:
        return
    weight = state_dict.pop(key)
    own: Any = module
    (n, k), d = own.inner.shape, own.projection.shape[1]
    # What torch finds to load of the factors is what they have.
    state_dict.update({inner: own.inner, projection: own.projection})
    if not isinstance(weight, Tensor) or tuple(weight.shape) != (n, d):
        shape = tuple(getattr(weight, "shape", ()))
        error_msgs.append(
            f"size mismatch for {key}: copying a table of shape {shape} from checkpoint, the "
            f"two-layer table in current model stands for {(n, d)}."
        )
    elif k < d:
        error_msgs.append(f"{key}: inner_dim={k} cannot hold the {d} dimensions of a plain table")
    elif own.inner.is_meta:
        error_msgs.append(
            f"{key} is a plain table, to be put into two factors, and the module is on the meta "
            f"device: give it memory first, with to_empty()"
        )
    else:
        hold(weight.to(device=own.inner.device, dtype=own.inner.dtype))
