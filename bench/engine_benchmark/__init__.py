"""Our engine against others on this machine: `python -m engine_benchmark [--quick]` (see ../README.md)."""
