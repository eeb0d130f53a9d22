"""Millrace's server: an HTTP front and a continuously batching engine in two processes."""
