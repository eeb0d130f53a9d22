"""A real Kubernetes for everyone who has none: `python -m cluster up|down|status|kubectl …` (see README.md here)."""
