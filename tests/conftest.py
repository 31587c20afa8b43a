import os

from falcon_unlearn.demo.weights import cache_folder

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tests with real weights use what the demo has left in the cache; they never fetch anything themselves.
for folder in sorted(cache_folder().glob("SmolLM2-135M-Instruct-*/SmolLM2-135M-Instruct")):
    os.environ.setdefault("FALCON_TEST_MODEL", str(folder))
gemma = cache_folder() / "gemma-3-270m-q4_k_m.gguf"
if gemma.is_file():
    os.environ.setdefault("FALCON_TEST_GGUF", str(gemma))
