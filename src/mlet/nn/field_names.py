"""A ``state_dict`` that goes by fields, however their tables are stacked in memory."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote

import torch
from torch import Tensor, nn


class FieldEntries(nn.Module):
    """Base of a module whose ``state_dict`` has the parts of each field behind the field's name.

    ``<field>.inner`` and ``<field>.projection`` of a two-layer field, ``<field>.weight`` of an
    ordinary one, and so on: which fields share a matrix in memory, and in what order, is not seen,
    so that a checkpoint fits a model by the meaning of its tables. In names of fields, what is no
    letter, digit, ``_`` or ``-`` is percent-encoded: a dot would part the name in two.

    The parameters themselves keep the names of the stacks, as optimizers see them. A
    ``state_dict`` that goes by stacks (``tables.0.inner``), as mlet 0.1 wrote it, still loads, into
    fields that are stacked in the same way.

    A table that several fields share is there once, by the field that it is of.

    Attributes:
        tables: the modules that hold the parts.
        table_names: the fields that they are of.
    """

    tables: nn.ModuleList
    table_names: Sequence[str]

    def __init__(self) -> None:
        super().__init__()
        self._register_state_dict_hook(_name_by_field)  # type: ignore[no-untyped-call]

    @abstractmethod
    def parts(self, name: str) -> dict[str, Tensor]:
        """All that is one field's own, by name: views of the parameters and buffers it lies in."""

    def entry_of(self, name: str) -> str:
        """What a field goes by in the ``state_dict``."""
        return _encoded(name)

    def _entries(self) -> Iterator[tuple[str, Tensor]]:
        """Every entry's name and a view of where its values are."""
        for name in self.table_names:
            for part, tensor in self.parts(name).items():
                yield f"{self.entry_of(name)}.{part}", tensor

    @torch.no_grad()
    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        own = self.tables.state_dict(prefix=f"{prefix}tables.", keep_vars=True)
        given = {key for key in state_dict if key.startswith(prefix)}
        entries = {f"{prefix}{name}": view for name, view in self._entries()}
        if given != set(own) or given == set(entries):
            for key, view in entries.items():
                if key not in state_dict:
                    missing_keys.append(key)
                    continue
                value = state_dict.pop(key)
                if view.is_meta:
                    error_msgs.append(
                        f"{key} lies in a matrix with other fields, so it is copied there, and the "
                        f"module is on the meta device: give it memory first, with to_empty()"
                    )
                elif value.shape != view.shape:
                    error_msgs.append(
                        f"size mismatch for {key}: copying a table of shape {tuple(value.shape)} "
                        f"from checkpoint, the shape in current model is {tuple(view.shape)}."
                    )
                else:
                    view.copy_(value)
            # What the stacks find to load is what they have.
            state_dict.update(own)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def _encoded(field: str) -> str:
    return quote(field, safe="").replace(".", "%2E").replace("~", "%7E")


def _name_by_field(
    module: FieldEntries, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]
) -> None:
    """Put the entries of the fields in the place of those of the stacks."""
    stacked = [key for key in state_dict if key.startswith(f"{prefix}tables.")]
    variables = any([isinstance(state_dict.pop(key), nn.Parameter) for key in stacked])
    for name, view in module._entries():
        state_dict[prefix + name] = view if variables else view.detach()
