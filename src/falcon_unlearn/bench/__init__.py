"""The public benchmarks: TOFU, MUSE, WMDP with MMLU and WikiText."""
