"""Keep finished stores and tensors in the work folder of a run, and take them over only if they are whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from safetensors.torch import load_file, save_file
from torch import Tensor

from falcon_unlearn.runs import WorkFolder, sha256_file, sync_file, write_failure

ResultT = TypeVar("ResultT")


def kept_files(
    work: WorkFolder | None,
    key: str,
    paths: Sequence[Path],
    *,
    compute: Callable[[], ResultT],
    reopen: Callable[[], ResultT],
    is_whole: bool | None = None,
) -> ResultT:
    """Return what an earlier process computed into files, or compute it and mark the files as finished.

    Args:
        work: Work folder of the run; None computes always and marks nothing.
        key: Name of the piece.
        paths: The files that `compute` writes.
        compute: Writes the files.
        reopen: Opens files that are whole.
        is_whole: Whether they are, where that is known already: ranks without `work` follow the leader.

    Raises:
        PrerequisiteError: The files could not be brought to the disk.
    """
    if is_whole or (is_whole is None and files_are_whole(work, key, paths)):
        return reopen()
    result = compute()
    if work is None:
        return result
    try:
        for path in paths:
            if path.is_file():
                sync_file(path)
    except OSError as error:
        raise write_failure(paths[0], error) from error
    work.put(key, _hashes(paths))
    return result


def files_are_whole(work: WorkFolder | None, key: str, paths: Sequence[Path]) -> bool:
    """Tell whether an earlier process finished these files, and nothing has changed them since."""
    expected = None if work is None else work.get(key)
    return expected is not None and expected == _hashes(paths)


def kept_tensors(
    work: WorkFolder | None, key: str, compute: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Return the tensors kept under a key, or compute and keep them; they are on the processor then."""
    if work is None:
        return compute()
    path = work.folder("tensors") / f"{key}.safetensors"

    def compute_and_write() -> dict[str, Tensor]:
        tensors = compute()
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
        return tensors

    return kept_files(
        work, f"tensors:{key}", [path], compute=compute_and_write, reopen=lambda: load_file(path)
    )


def _hashes(paths: Sequence[Path]) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in paths if path.is_file()}
