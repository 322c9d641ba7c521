-- The W3C trace context of the call that asked for the job: what is done for it belongs to that trace.
ALTER TABLE jobs ADD COLUMN traceparent text NOT NULL DEFAULT '';
