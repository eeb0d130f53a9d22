"""Conversations as token ids: the model's chat template, rendered by a process that may be killed."""
