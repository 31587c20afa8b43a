"""The command `env`."""

from __future__ import annotations

import os
from typing import Annotated

from cyclopts import Parameter


def env(*, json: Annotated[bool, Parameter(help="Print one JSON document.")] = False) -> None:
    """Print the environment."""
    from falcon_unlearn.cli.console import print_result
    from falcon_unlearn.cli.tables import show_environment
    from falcon_unlearn.runs import capture_environment

    device, threads = _probe_torch()
    print_result(capture_environment(device, threads), show_environment, as_json=json)


def _probe_torch() -> tuple[str, int]:
    """Ask torch for its device; a broken installation is an answer too."""
    cores = os.cpu_count() or 1
    try:
        import torch
    except (ImportError, OSError) as error:
        return f"torch cannot be imported: {type(error).__name__}", cores
    if torch.cuda.is_available():
        return f"cuda ({torch.cuda.get_device_name(0)})", torch.get_num_threads()
    if torch.backends.mps.is_available():
        return "mps", torch.get_num_threads()
    return "cpu", torch.get_num_threads()
