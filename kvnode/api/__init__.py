"""What a node answers: gRPC services and the ops port."""
