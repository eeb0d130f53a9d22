"""Millrace's operator: turns an InferenceService into running, scaled, observed servers."""
