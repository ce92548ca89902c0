"""Whether weights and a data set belong together."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from mlet.data import layout
from mlet.data.dataset import PreparedDataset
from mlet.data.schema import DatasetSchema, DenseSchema
from mlet.data.vocabulary import digest_categories
from mlet.errors import RunError


def check_data(
    schema: DatasetSchema, data: PreparedDataset, owner: Path, *, same_rows: bool = False
) -> None:
    """Refuse to let weights meet data whose ids stand for other categories.

    Args:
        schema: of the data set the weights were trained on.
        data: what they are to be used with.
        owner: the weights' run or file, for the error.
        same_rows: it must also be the very rows of training, as to resume it, or to score the split
            of a data set that is not named but looked up where it was.

    Raises:
        RunError: they do not belong together; names the field, and what to do.
    """
    reason = _difference(schema, data.schema)
    if reason is None and same_rows and not _same_rows(schema, data.schema):
        reason = "its rows or their split are others"
    if reason is not None:
        remedy = (
            "it was prepared again or changed since: prepare it as it was (what only reads a run "
            "takes that from elsewhere with --data), or train again"
            if same_rows
            else "name the data set the weights were trained on, or one with its vocabularies"
        )
        extends = data.schema.extends is not None  # the same prepared again does not
        if extends and _difference(schema, data.schema, data) is None:
            remedy = (
                "it extends that one: go on with the model on it (mlet train DATA --from RUN), or "
                "score its raw rows (mlet predict)"
            )
        raise RunError(f"{data.root} is not the data set of {owner}: {reason}; {remedy}")


def check_extension(schema: DatasetSchema, data: PreparedDataset, owner: Path) -> None:
    """Refuse to let a model go on with data whose ids do not begin with those it was trained on.

    Data extends what a model was trained on if every field has the categories of that first, in
    their order, and dense features are scaled alike. Which data set was extended, and by way of how
    many others, is no matter.

    Args:
        schema: of the data set the weights were trained on.
        data: what they are to go on with.
        owner: the weights' run or file, for the error.

    Raises:
        RunError: it does not; names the field, and what to do.
    """
    reason = _difference(schema, data.schema, data)
    if reason is not None:
        raise RunError(
            f"{data.root} does not extend the data set of {owner}: {reason}; prepare the new rows "
            f"with --extend and the data set it was trained on"
        )


def check_model(schema: DatasetSchema, model: DatasetSchema, owner: Path, file: Path) -> None:
    """Refuse a model file that is not of the run it lies in.

    Args:
        schema, model: of the run, and of the file.
        owner, file: the run and the file, for the error.

    Raises:
        RunError: they were trained on other categories or features; names the first.
    """
    reason = _difference(schema, model)
    if reason is not None:
        raise RunError(
            f"{file}: is not the model of {owner}: {reason}; collapse the run again, to another "
            f"file, and use that"
        )


def _difference(
    trained: DatasetSchema, given: DatasetSchema, extending: PreparedDataset | None = None
) -> str | None:
    """The first thing in which the inputs of a model differ; None if they are the same.

    Of data that is ``extending`` the other, more categories behind those there are do not count.
    """
    names, others = ([field.name for field in schema.fields] for schema in (trained, given))
    if names != others:
        return f"its fields are {', '.join(others)}, trained on were {', '.join(names)}"
    for field, other in zip(trained.fields, given.fields, strict=True):
        if field.multi_valued != other.multi_valued:
            return f"field {field.name!r} is multi-valued in one of them only"
        more = other.num_categories - field.num_categories
        if more < 0 or (more and extending is None):
            return (
                f"field {field.name!r} has {other.num_categories} categories, trained on were "
                f"{field.num_categories}"
            )
        digest = other.digest
        if more and extending is not None:
            if field.digest is None:
                return f"which categories the ids of field {field.name!r} stood for is not kept"
            known = extending.vocabulary(field.name).head(field.num_categories)
            digest = digest_categories(known)
        if field.shares != other.shares:
            return f"field {field.name!r} shares a vocabulary in one of them, or another one"
        # A model file of mlet 0.1 does not say which categories its rows stand for.
        if field.digest not in (None, digest):
            return f"the ids of field {field.name!r} stand for other categories"
    if _inputs(trained) != _inputs(given):
        return "its dense features, or their scaling, are others"
    return None


def _inputs(schema: DatasetSchema) -> list[DenseSchema]:
    """Its dense features, as far as they concern a model."""
    return [one.model_copy(update={"missing_in_training": None}) for one in schema.dense]


def _same_rows(one: DatasetSchema, other: DatasetSchema) -> bool:
    """Whether two data sets with the same vocabularies have the same rows in the same splits."""
    if one.checksums and other.checksums:
        return _of_rows(one.checksums) == _of_rows(other.checksums)
    return (one.seed, one.split_by, one.splits) == (other.seed, other.split_by, other.splits)


def _of_rows(checksums: dict[str, int]) -> dict[str, int]:
    """Those of columns. Vocabularies have digests: their bytes vary with who writes Parquet."""
    return {file: sum_ for file, sum_ in checksums.items() if not layout.is_vocabulary(file)}


def fingerprint(schema: DatasetSchema) -> str:
    """What a checkpoint keeps of the data set it was trained on."""
    return hashlib.sha256(schema.model_dump_json().encode()).hexdigest()[:32]


def fingerprint_of_0_1(schema: DatasetSchema) -> str:
    """What a checkpoint of mlet 0.1 keeps."""
    later: Any = {
        "checksums": True,
        "extends": True,
        "format": True,
        "dense": {"__all__": {"missing_in_training"}},
        "fields": {"__all__": {"digest"}},
    }
    text = schema.model_dump_json(exclude=later)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
