-- Finds what is old enough to be removed.
CREATE INDEX requests_by_age ON requests (create_time);
CREATE INDEX consumed_events_by_age ON consumed_events (consume_time);
