"""Who calls, which database is meant, and what the caller may do with it."""
