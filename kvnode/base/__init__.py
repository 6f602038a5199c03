"""What every layer may use: limits, errors, clock, config, metrics catalogue."""
