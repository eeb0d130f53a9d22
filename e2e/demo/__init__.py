"""A model that everyone can train in a minute and whose right answers are known, and `make demo`, which serves it."""
