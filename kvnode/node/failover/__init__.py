"""Moving the primary to another region, and what its nodes do when they return."""
