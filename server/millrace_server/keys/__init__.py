"""Who may ask: API keys in a file that may change while the server runs, the check of every request, and what each key has used.

Without API_KEYS_FILE everybody may. No key and no hash is ever logged, nor any text of the file.
"""

from millrace_server.keys.authentication import Authentication
from millrace_server.keys.ring import KeyRing
from millrace_server.keys.usage import Usage

__all__ = ["Authentication", "KeyRing", "Usage"]
