"""How tables are trained and served: what a study compares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from pydantic import PositiveInt

from mlet.models import ModelConfig
from mlet.nn.compression import PRECISIONS, Compression, LowRank, Precision, Pruned
from mlet.settings import Settings, merge

Kind: TypeAlias = Literal["slt", "mlet", "peer"]


class Cut(Settings):
    """Train wide, then make narrow: the rivals of training narrow tables well.

    A single-layer model of dimension D is trained like any other. Each of its tables is cut to the
    size of one of dimension d, which is served as it is, and everything is trained on for a few
    epochs. It is cut either to rank d by truncated singular value decomposition, W ≈ A B with A
    n × d and B d × D; or to its entries of largest magnitude, as many as take the same bytes.

    Attributes:
        dim: D, above all dimensions of the study.
        epochs: afterwards, at most.
        by: what is kept, a ``rank`` or entries by ``magnitude``.
    """

    dim: PositiveInt
    epochs: PositiveInt = 1
    by: Literal["rank", "magnitude"] = "rank"

    def compression(self, dim: int) -> Compression:
        """What its tables are, at the size of tables of dimension d."""
        if self.by == "rank":
            return LowRank(rank=dim)
        return Pruned.at_bytes_of(dim, self.dim)


@dataclass(frozen=True)
class Method:
    """How tables are trained and served.

    Attributes:
        name: unique in a study.
        kind: ``slt``, single-layer training; ``mlet``, one of the study's own two-layer arms; or a
            ``peer``.
        changes: the settings it puts over a single-layer model's.
        precision: of what is served; methods that differ in it alone share their runs.
        cut: how it is made of a wider model.
    """

    name: str
    kind: Kind
    changes: Mapping[str, Any] = field(hash=False)
    precision: Precision = "float32"
    cut: Cut | None = None

    @classmethod
    def peer(cls, name: str, settings: Mapping[str, Any]) -> Method:
        """From the settings of a study's ``peers``; ``quantize`` is an older name of ``precision``.

        Raises:
            ValueError: there is no such precision.
        """
        changes = dict(settings)
        chosen = [changes.pop(key, None) for key in ("precision", "quantize")]
        precision = next((value for value in chosen if value is not None), "float32")
        if precision not in PRECISIONS:
            raise ValueError(f"peers.{name}: no precision {precision!r} of {', '.join(PRECISIONS)}")
        cut = changes.pop("cut", None)
        if cut is not None and changes:
            raise ValueError(f"peers.{name}: a cut model has no settings but 'cut' and 'precision'")
        return cls(name, "peer", changes, precision, cut and Cut.parse(cut, f"peers.{name}.cut"))

    def trains_as(self, other: Method) -> bool:
        """Whether the runs of both are the same ones, served otherwise or not."""
        return (self.changes, self.cut) == (other.changes, other.cut)

    @property
    def sort_key(self) -> float:
        """k of an MLET arm; one that is chosen comes after all numbers."""
        k = self.changes["inner_dim"]
        return float("inf") if k == "auto" else float(k)

    @property
    def label(self) -> str:
        """As in legends."""
        if self.kind == "mlet":
            k = self.changes["inner_dim"]
            return "MLET, k chosen" if k == "auto" else f"MLET, k = {k}"
        return "single-layer (SLT)" if self.kind == "slt" else self.name

    def model(self, base: ModelConfig, dim: int) -> ModelConfig:
        """The settings of a model at dimension d."""
        changes = {"inner_dim": None, **self.changes, "dim": dim}
        if self.cut is not None:
            if self.cut.dim <= dim:
                raise ValueError(f"{self.name}: cut.dim must be above every dimension, as {dim}")
            compression = self.cut.compression(dim).model_dump(mode="json")
            changes = {**changes, "dim": self.cut.dim, "compression": compression}
        if changes["inner_dim"] == "dim":
            changes["inner_dim"] = dim
        plain = base.model_dump(mode="json")
        if self.kind != "mlet":  # k of single fields, and what auto keeps to, are of two layers
            plain |= {"inner_dims": {}, "budget": None}
        return ModelConfig.parse(merge(plain, changes), f"method {self.name!r}")


SLT = Method("slt", "slt", {})


def mlet_methods(inner_dims: Sequence[int | str], settings: Mapping[str, Any]) -> list[Method]:
    """MLET with each k, a number or ``auto``, with these model settings beside ``inner_dim``.

    Raises:
        ValueError: one of them is not theirs to set.
    """
    for name in ("dim", "inner_dim", "task"):
        if name in settings:
            raise ValueError(f"mlet: {name!r} is the study's to set")
    names = {k: "mlet-auto" if k == "auto" else f"mlet-k{k}" for k in inner_dims}
    return [Method(name, "mlet", {**settings, "inner_dim": k}) for k, name in names.items()]
