"""Run folders: atomic writes, one writer, all or nothing, and a manifest that closes them."""

from __future__ import annotations

from falcon_unlearn.config.paths import public_name, public_text
from falcon_unlearn.runs.cache import CACHE_VARIABLE, cache_folder
from falcon_unlearn.runs.environment import capture_environment
from falcon_unlearn.runs.folder import check_output, free_disk_check, staged_folder
from falcon_unlearn.runs.journal import Journal
from falcon_unlearn.runs.manifest import MANIFEST, RECORDS, fingerprint, verify_manifest, write_manifest
from falcon_unlearn.runs.writing import format_bytes, sha256_file, slug, write_json_atomic, write_text_atomic

__all__ = [
    "CACHE_VARIABLE",
    "MANIFEST",
    "RECORDS",
    "Journal",
    "cache_folder",
    "capture_environment",
    "check_output",
    "fingerprint",
    "format_bytes",
    "free_disk_check",
    "public_name",
    "public_text",
    "sha256_file",
    "slug",
    "staged_folder",
    "verify_manifest",
    "write_json_atomic",
    "write_manifest",
    "write_text_atomic",
]
