"""The real engine, told that little memory is free, as in a small container: what it keeps of prompts is full within seconds, whatever the
machine has.
"""

import sys

from millrace_server.engine import model, process

FREE_BYTES = 2**30

if __name__ == "__main__":
    model._free_memory = lambda device: FREE_BYTES
    sys.exit(process.main())
