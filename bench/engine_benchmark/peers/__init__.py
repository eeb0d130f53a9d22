"""One file per engine that we are compared with; each is run as a process of its own."""
