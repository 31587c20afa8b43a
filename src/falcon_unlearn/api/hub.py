"""Upload a finished folder to the model hub."""

from __future__ import annotations

from pathlib import Path

from falcon_unlearn.config.paths import public_text
from falcon_unlearn.errors import PrerequisiteError, UsageError


def upload_folder(folder: Path, repo_id: str, *, private: bool) -> str:
    """Create the repository where it does not exist, upload `folder` in one commit, and return its address.

    Raises:
        UsageError: `repo_id` is not a repository name.
        PrerequisiteError: The hub cannot be reached, or refused: no token, no right, offline mode.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi()
    try:
        repository = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository.repo_id, folder_path=folder, commit_message="Upload unlearned model"
        )
    except HFValidationError as error:
        raise UsageError(
            f"repo_id: {public_text(repo_id)!r} is not a repository name", hint=str(error)
        ) from error
    except HfHubHTTPError.__bases__ as error:
        # Its bases are OSError and the root of the errors of whichever HTTP client the hub library uses.
        lines = public_text(str(error)).strip().splitlines() or [type(error).__name__]
        raise PrerequisiteError(
            f"the upload to {public_text(repo_id)!r} failed: {lines[0]}",
            hint="Check the network, HF_TOKEN (with write access) and HF_HUB_OFFLINE.",
        ) from error
    return str(repository)
