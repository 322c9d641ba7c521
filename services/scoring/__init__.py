"""Pure text scorers, used by rewards and by metrics. No grpc, torch or service is imported here."""
