"""Events: an outbox in the database, NATS JetStream, consumers that handle each event once."""
