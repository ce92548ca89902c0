"""Whose rows belong together: a number for each row, equal within a group."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from mlet.data import layout
from mlet.data.column_file import ColumnFile
from mlet.data.schema import SPLITS
from mlet.data.source import GROUP
from mlet.data.staging import Staged
from mlet.data.vocabulary import VocabularyBuilder


def write_groups(staged: Staged, assignment: npt.NDArray[np.uint8], root: Path) -> None:
    """Write the group of every row of every split.

    Unlike categories, groups that training never saw are told apart: memory depends on how many
    there are.
    """
    builder = VocabularyBuilder()
    for _, frame in staged.chunks(GROUP):
        builder.add(frame[GROUP])
    numbers = builder.build(1)
    outputs = [
        ColumnFile(layout.groups(root, split), np.int32, int((assignment == place).sum()))
        for place, split in enumerate(SPLITS)
    ]
    for chunk, frame in staged.chunks(GROUP):
        missing = (frame[GROUP].fill_null("") == "").to_numpy()
        found = np.where(missing, -1, numbers.encode(frame[GROUP])).astype(np.int32)
        for place, output in enumerate(outputs):
            output.append(found[assignment[chunk] == place])
