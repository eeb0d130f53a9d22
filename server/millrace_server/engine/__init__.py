"""The engine: one process that holds the model and runs one batch, step after step."""
