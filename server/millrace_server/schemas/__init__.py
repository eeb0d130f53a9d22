"""Clients' JSON schemas: tried out by a process that may be killed before the engine, which all share, gets them."""
