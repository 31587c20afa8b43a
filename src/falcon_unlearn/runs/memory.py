"""Measure the peak memory of a part of a process."""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path

import psutil

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
"""What the kernel wants to hear to set the peak back (proc(5))."""


def peak_memory_bytes() -> int:
    """Return the peak resident memory since the last reset; the present one where there is no peak."""
    peak = _high_water_mark()
    if peak is not None:
        return peak
    try:
        import resource
    except ImportError:
        return int(psutil.Process().memory_info().rss)
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return int(found if psutil.MACOS else found * 1024)


def reset_peak_memory() -> bool:
    """Free what is unused and start a new peak; False where the system keeps one for the process."""
    gc.collect()
    return_freed_pages()
    try:
        _CLEAR.write_text(_RESET_PEAK, encoding="ascii")
    except OSError:
        return False
    return _high_water_mark() is not None


def _high_water_mark() -> int | None:
    try:
        lines = _STATUS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    values = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(values[0]) * 1024 if values else None


def return_freed_pages() -> None:
    """Give pages back to the system that the C library keeps for later; does nothing where it cannot.

    Tensors under 32 MiB leave holes between one another, in which no larger one fits: with a memory limit
    they add up (300 MiB over 16 steps of a 7B window).
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
