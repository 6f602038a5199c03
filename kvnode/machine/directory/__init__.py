"""The directory: databases, tokens and signing keys as rows of the system database, and the changes to them."""
