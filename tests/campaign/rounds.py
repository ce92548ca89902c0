"""The cases of a campaign, from a seed: given in turn to every subject, counted and told."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import child
from workshop import make_workshop


class Named(Protocol):
    """What cases are of."""

    @property
    def name(self) -> str:
        """In the table."""
        ...


S = TypeVar("S", bound=Named)
W = TypeVar("W")


def main(
    description: str,
    option: str,
    cases: int,
    subjects: Sequence[S],
    prepare: Callable[[Path, S], W],
    run_case: Callable[[Path, S, W, str], tuple[str, str]],
    states: Sequence[str],
    faults: Sequence[str],
) -> None:
    """Run a campaign as its command says, print its table, and exit with 1 if there was a fault.

    Args:
        description: of the command.
        option: its name for the number of cases, and ``cases`` the default.
        subjects: what cases are of.
        prepare: what is made once for a subject, from the workshop.
        run_case: a case, from the workshop, the subject, what was prepared, and a seed; the state
            in which it ended, and how.
        states, faults: all states, and those that ought not to be.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(f"--{option}", dest="cases", type=int, default=cases)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="subjects whose name contains this")
    options = parser.parse_args()
    chosen = [subject for subject in subjects if options.only in subject.name]
    counts: dict[str, Counter[str]] = {subject.name: Counter() for subject in chosen}
    with tempfile.TemporaryDirectory() as name:
        workshop = Path(name) / "workshop"
        workshop.mkdir()
        make_workshop(workshop)
        child.warm_up()
        for place, subject in enumerate(chosen):
            made = prepare(workshop, subject)
            for case in range(place, options.cases, len(chosen)):
                seed = f"{options.seed}-{case}"
                state, how = run_case(workshop, subject, made, seed)
                counts[subject.name][state] += 1
                if state in faults:
                    print(f"{subject.name}, case {seed}: {state}: {how}", flush=True)
    total: Counter[str] = sum(counts.values(), Counter())
    print("| subject | " + " | ".join(states) + " |")
    print("| --- |" + " --- |" * len(states))
    for subject_name, found in [*counts.items(), ("all", total)]:
        print(f"| {subject_name} | " + " | ".join(str(found[state]) for state in states) + " |")
    sys.exit(any(total[fault] for fault in faults))
