"""A small process for somebody else's program (a template, a schema, a pattern): it has limits of time and memory, and no secrets."""
