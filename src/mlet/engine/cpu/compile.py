"""How the CPU kernels are compiled: on first use for each dtype, then kept on disk.

Numba notices when the file of a kernel changes, but not when a kernel that it calls does. Whoever
edits one of these files removes ``__pycache__/*.nb?`` beside it; the test suite does so by itself.
Where neither the package nor the user's cache folder can be written to, every process compiles
anew; ``NUMBA_CACHE_DIR`` names another folder.
"""

from __future__ import annotations

import os

import numba


def _probe() -> None:
    """Compiled for nothing."""


def _has_cache() -> bool:
    try:
        numba.njit(cache=True)(_probe)
    except RuntimeError:  # no place that can be written to
        return False
    return True


#: Set ``MLET_BOUNDS_CHECK=1`` to have every index checked, as the tests do once; much slower.
CHECKED = os.environ.get("MLET_BOUNDS_CHECK") == "1"
# Compiled otherwise, kernels must not take the place of those on disk.
_CACHE = _has_cache() and not CHECKED

kernel = numba.njit(nogil=True, cache=_CACHE, boundscheck=CHECKED)
# Sums may be reassociated so that they vectorise. Infinities and NaN keep their meaning.
fast_kernel = numba.njit(
    nogil=True,
    cache=_CACHE,
    boundscheck=CHECKED,
    fastmath={"reassoc", "contract", "nsz", "arcp"},
    error_model="numpy",
)
parallel_kernel = numba.njit(nogil=True, cache=_CACHE, boundscheck=CHECKED, parallel=True)
