import gc
import os

from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Workers of xdist inherit the width of its terminal; tables must not depend on where the tests run.
os.environ.pop("COLUMNS", None)

# A slow machine is no failure: hypothesis's own deadline would make it one.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_collection_finish() -> None:
    """Spare what was imported from every later collection: audits and runs collect garbage on purpose."""
    gc.collect()
    gc.freeze()
