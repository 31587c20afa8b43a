"""Run folders: atomic writes, one writer, all or nothing, and a manifest that closes them."""

from __future__ import annotations

from falcon_unlearn.config.paths import public_name, public_text
from falcon_unlearn.runs.cache import CACHE_VARIABLE, cache_folder
from falcon_unlearn.runs.environment import capture_environment
from falcon_unlearn.runs.finishing import remove_finished, remove_work, work_path
from falcon_unlearn.runs.folder import check_output, free_disk_check, has_writer, staged_folder
from falcon_unlearn.runs.identity import code_identity
from falcon_unlearn.runs.journal import Journal
from falcon_unlearn.runs.manifest import MANIFEST, RECORDS, fingerprint, verify_manifest, write_manifest
from falcon_unlearn.runs.snapshots import Snapshots
from falcon_unlearn.runs.work import Resume, WorkFolder, open_work
from falcon_unlearn.runs.writing import (
    format_bytes,
    remembered_sha256,
    sha256_file,
    slug,
    sync_file,
    weight_file_words,
    write_failure,
    write_json_atomic,
    write_text_atomic,
)

__all__ = [
    "CACHE_VARIABLE",
    "MANIFEST",
    "RECORDS",
    "Journal",
    "Resume",
    "Snapshots",
    "WorkFolder",
    "cache_folder",
    "capture_environment",
    "check_output",
    "code_identity",
    "fingerprint",
    "format_bytes",
    "free_disk_check",
    "has_writer",
    "open_work",
    "public_name",
    "public_text",
    "remembered_sha256",
    "remove_finished",
    "remove_work",
    "sha256_file",
    "slug",
    "staged_folder",
    "sync_file",
    "verify_manifest",
    "weight_file_words",
    "work_path",
    "write_failure",
    "write_json_atomic",
    "write_manifest",
    "write_text_atomic",
]
