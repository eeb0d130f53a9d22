"""Tools that a model may call: in which form it writes calls, and how they are found in its answer."""
