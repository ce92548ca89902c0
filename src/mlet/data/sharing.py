"""Fields that share one vocabulary: the same categories, counted together."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from mlet.errors import ConfigError


def check_shares(shares: Mapping[str, str], fields: Collection[str]) -> None:
    """Refuse what cannot be shared.

    Args:
        shares: a field → the one whose vocabulary it shares.
        fields: all fields.

    Raises:
        ConfigError: one is no field, or has no vocabulary of its own to share.
    """
    for name, owner in shares.items():
        for given in (name, owner):
            if given not in fields:
                raise ConfigError(
                    f"shares: {given!r} is no field; the fields are {', '.join(fields)}"
                )
        if owner in shares:
            what = "itself" if owner == name else f"{owner!r}, which shares {shares[owner]!r}"
            raise ConfigError(
                f"shares: {name!r} shares the vocabulary of {what}; name a field that has one of "
                f"its own"
            )


def check_owners(shares: Mapping[str, str], min_counts: Collection[str]) -> None:
    """Refuse a minimum count for a field that has no vocabulary of its own.

    Raises:
        ConfigError: there is one; names the field whose it is.
    """
    for name in min_counts:
        if name in shares:
            raise ConfigError(
                f"min_count for {name!r}: it shares the vocabulary of {shares[name]!r}; give that "
                f"field's, by which both are counted"
            )


def members_of(shares: Mapping[str, str], owner: str) -> list[str]:
    """The fields that have the vocabulary of one, itself first."""
    return [owner, *(name for name, other in shares.items() if other == owner)]
