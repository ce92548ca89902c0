"""Module surgery: any model's tables to two layers before training, back to one after."""

from mlet.surgery.collapse import collapse, collapse_state_dict
from mlet.surgery.convert import convert
from mlet.surgery.grow import grow
from mlet.surgery.parameters import param_groups, summary

__all__ = ["collapse", "collapse_state_dict", "convert", "grow", "param_groups", "summary"]
