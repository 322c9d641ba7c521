-- Finds the events of a resource and of everything whose name begins with its name.
CREATE INDEX events_below ON events ((resource || '/') COLLATE "C", sequence);
