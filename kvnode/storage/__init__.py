"""What survives a crash: the log's segments and the SQLite state."""
