"""Two-layer lookups at the price of one: distinct rows, fused updates, 16-bit tables."""

from mlet.engine.backend import BackendName, choose_backend, use_backend
from mlet.engine.lookup import look_up
from mlet.engine.lookups import Lookups, RowGradient, TableStack
from mlet.engine.rules import Method, Rule, new_state

__all__ = [
    "BackendName",
    "Lookups",
    "Method",
    "RowGradient",
    "Rule",
    "TableStack",
    "choose_backend",
    "look_up",
    "new_state",
    "use_backend",
]
