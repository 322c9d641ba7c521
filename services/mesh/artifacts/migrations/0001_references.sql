-- One schema for all services of a database: who needs which bytes of the artifact store.

-- A content is what one hash names and several blobs make: an artifact (the hash of its manifest) or a dataset version.
-- A hash that is no content is a blob.
CREATE TABLE contents (
    sha256 text PRIMARY KEY,
    -- False for an artifact of a time before this table: its manifest has to be read to know its blobs.
    known boolean NOT NULL
);
CREATE TABLE content_blobs (
    content text NOT NULL REFERENCES contents ON DELETE CASCADE,
    blob text NOT NULL,
    PRIMARY KEY (content, blob)
);
CREATE INDEX content_blobs_by_blob ON content_blobs (blob);

CREATE TABLE blob_references (
    -- Full name of the resource that needs the bytes.
    holder text NOT NULL,
    -- Full name of the resource that it uses them as; empty where they are the holder's own.
    resource text NOT NULL DEFAULT '',
    -- A blob or a content; empty where only the name is held.
    sha256 text NOT NULL,
    PRIMARY KEY (holder, resource, sha256)
);
CREATE INDEX blob_references_by_sha256 ON blob_references (sha256);
CREATE INDEX blob_references_by_resource ON blob_references ((resource || '/') COLLATE "C") WHERE resource <> '';
CREATE INDEX blob_references_by_holder ON blob_references ((holder || '/') COLLATE "C");

-- What may have lost its last reference; the collector looks at each and forgets it.
CREATE TABLE released (
    ordinal bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    sha256 text NOT NULL
);

-- Schemas of services whose references are in this schema. While one is missing nobody knows what it needs.
CREATE TABLE services (
    schema text PRIMARY KEY
);

-- This database, as the artifact store knows it: a store whose references are in another one is nobody's to collect.
CREATE TABLE identity (
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    -- Whether a store bears the id.
    marked boolean NOT NULL DEFAULT false
);
INSERT INTO identity DEFAULT VALUES;
