"""One node: joins consensus, storage and machine, and routes operations among nodes."""
