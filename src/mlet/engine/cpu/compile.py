"""How the CPU kernels are compiled: on first use for each dtype, then kept on disk.

Numba notices when the file of a kernel changes, but not when a kernel that it calls does. Whoever
edits one of these files removes ``__pycache__/*.nb?`` beside it; the test suite does so by itself.
"""

from __future__ import annotations

import numba

kernel = numba.njit(nogil=True, cache=True, boundscheck=False)
# Sums may be reassociated so that they vectorise. Infinities and NaN keep their meaning.
fast_kernel = numba.njit(
    nogil=True, cache=True, boundscheck=False, fastmath={"reassoc", "contract", "nsz", "arcp"}
)
parallel_kernel = numba.njit(nogil=True, cache=True, boundscheck=False, parallel=True)
