"""Two-layer lookups at the price of one: distinct rows, fused updates, 16-bit tables."""

from mlet.engine.batch import Distinct, Lookups, RowGradient, TableStack
from mlet.engine.choice import BackendName, choose_backend, use_backend
from mlet.engine.factored_gradient import FactoredGradient, rows_of
from mlet.engine.fetched import FetchedRows
from mlet.engine.function import Asked, look_up, projection_gradient
from mlet.engine.large_pages import empty_rows
from mlet.engine.reference import update_rows
from mlet.engine.rules import Rule, RuleName, new_state
from mlet.engine.vectors import distinct_vectors, each_projected, engine_serves

__all__ = [
    "Asked",
    "BackendName",
    "Distinct",
    "FactoredGradient",
    "FetchedRows",
    "Lookups",
    "RowGradient",
    "Rule",
    "RuleName",
    "TableStack",
    "choose_backend",
    "distinct_vectors",
    "each_projected",
    "empty_rows",
    "engine_serves",
    "look_up",
    "new_state",
    "projection_gradient",
    "rows_of",
    "update_rows",
    "use_backend",
]
