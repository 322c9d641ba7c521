"""gRPC as every service speaks it: servers, clients, interceptors, pages, idempotency, well-known types."""
