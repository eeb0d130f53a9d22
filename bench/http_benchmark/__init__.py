"""The HTTP front by itself and under too much load: see bench/README.md."""
