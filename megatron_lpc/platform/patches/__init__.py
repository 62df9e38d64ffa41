"""Changes to libraries while they run, one per file.

Each is a `Patch`: which library, in which versions, which symptom it cures. `tests/platform/test_patches.py` shows
every symptom without its patch, so that a patch which is no longer needed is found. Subclassing a library's class is
no patch and lives where it is used.

| file | when it is applied |
| --- | --- |
| `transformer_engine_import` | when `megatron_lpc` is imported |
| `known_warnings` | when `megatron_lpc` is imported |
| `cuda_device_literals`, `cuda_runtime`, `cuda_generator`, `cuda_tensor_types` | when the CPU platform is selected |
| `moe_router` | when a model with experts is built of the portable layers |
| `gradient_norm` | when an optimizer is built |
| `checkpoint_results_queue` | before the first checkpoint is saved |
"""
