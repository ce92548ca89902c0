"""What two layers do to training, as exact instruments for any two-layer table."""

from mlet.nn.factored import Factors
from mlet.theory.advice import (
    Suggestion,
    UpdateEnergy,
    predicted_quality,
    suggest_inner_dims,
    update_energy,
)
from mlet.theory.factors import factors_of, factors_of_state_dict
from mlet.theory.flow import FlowByFrequency, cross_category_flow, flow_by_frequency
from mlet.theory.reweighting import Reweighting, reweighting
from mlet.theory.spectra import Spectrum, TableSpectra, row_norms, table_spectra
from mlet.theory.update import (
    UpdateParts,
    decompose_preconditioned_update,
    decompose_update,
    preconditioned_steps,
)

__all__ = [
    "Factors",
    "FlowByFrequency",
    "Reweighting",
    "Spectrum",
    "Suggestion",
    "TableSpectra",
    "UpdateEnergy",
    "UpdateParts",
    "cross_category_flow",
    "decompose_preconditioned_update",
    "decompose_update",
    "factors_of",
    "factors_of_state_dict",
    "flow_by_frequency",
    "preconditioned_steps",
    "predicted_quality",
    "reweighting",
    "row_norms",
    "suggest_inner_dims",
    "table_spectra",
    "update_energy",
]
