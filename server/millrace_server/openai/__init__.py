"""The routes that OpenAI's clients speak: shapes of requests and replies, and what of their API is refused, and why."""
