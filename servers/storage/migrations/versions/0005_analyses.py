"""Analyses, scans of libraries, tags and marks, and what is searched by sound."""

from alembic import op

revision = "0005"
down_revision = "0004"

SCHEMA = """
CREATE EXTENSION IF NOT EXISTS vector;

ALTER TABLE tracks
    ADD COLUMN tags  text[] NOT NULL DEFAULT '{}',
    ADD COLUMN marks text[] NOT NULL DEFAULT '{}'  -- STUDIO, KARAOKE: what its stems are kept for
;
CREATE INDEX tracks_tags ON tracks USING gin (tags);

-- What a recording sounds like, for all who have it.
CREATE TABLE analyses (
    sha256     text PRIMARY KEY REFERENCES recordings ON DELETE CASCADE,
    analyzer   text NOT NULL,              -- the version that made it
    summary    bytea NOT NULL,             -- protobuf Features, without its long lists
    details    bytea NOT NULL,             -- protobuf Features: its long lists
    waveform   bytea NOT NULL,             -- protobuf Waveform, 100 points a second
    segments   bytea NOT NULL,             -- protobuf SegmentEmbeddings; empty: there are none
    created_at timestamptz NOT NULL DEFAULT now()
);
-- They are compressed already, or are not worth it; and nobody reads them by parts.
ALTER TABLE analyses ALTER COLUMN waveform SET STORAGE EXTERNAL;
ALTER TABLE analyses ALTER COLUMN segments SET STORAGE EXTERNAL;

-- One row for each analysed track, with all that a search filters by but its tags: see orchestrator.search.
CREATE TABLE sounds (
    track_id  uuid PRIMARY KEY REFERENCES tracks ON DELETE CASCADE,
    owner     text NOT NULL,
    model     text,                        -- of the embedding
    embedding halfvec(512),                -- of norm 1; none: it could not be told
    bpm       double precision,
    key       smallint,                    -- Camelot: twice the number, and one more for B
    loudness  double precision,
    seconds   double precision NOT NULL,
    added_at  timestamptz NOT NULL
);
-- In the row, of which seven fit a page: all of an owner's are compared, one by one.
ALTER TABLE sounds ALTER COLUMN embedding SET STORAGE PLAIN;
CREATE INDEX sounds_newest ON sounds (owner, added_at DESC, track_id DESC)
    INCLUDE (model, bpm, key, loudness, seconds);
CREATE INDEX sounds_embedding ON sounds USING hnsw (embedding halfvec_ip_ops) WITH (m = 24, ef_construction = 100);

CREATE TABLE scans (
    id         uuid PRIMARY KEY,
    owner      text NOT NULL,
    request_id uuid NOT NULL,
    spec       jsonb NOT NULL,             -- protobuf ScanSpec
    headers    jsonb NOT NULL DEFAULT '{}',
    complete   boolean NOT NULL DEFAULT false,  -- all its items are known
    cursor     text NOT NULL DEFAULT '',   -- after what its source is to be listed on
    cancelled  boolean NOT NULL DEFAULT false,
    -- How many items it has and how many have which state; changed together with them.
    total      bigint NOT NULL DEFAULT 0,
    existing   bigint NOT NULL DEFAULT 0,
    analyzed   bigint NOT NULL DEFAULT 0,
    skipped    bigint NOT NULL DEFAULT 0,
    failed     bigint NOT NULL DEFAULT 0,
    pace       double precision NOT NULL DEFAULT 0,  -- items a second, see orchestrator.scans.store
    named_at   timestamptz NOT NULL DEFAULT now(),   -- when tracks were named last
    fed_at     timestamptz NOT NULL DEFAULT now(),   -- when it had its last turn
    created_at timestamptz NOT NULL DEFAULT now(),
    ended_at   timestamptz,
    UNIQUE (owner, request_id)
);
CREATE INDEX scans_newest ON scans (owner, created_at DESC, id DESC);
CREATE INDEX scans_unfinished ON scans (fed_at) WHERE ended_at IS NULL;
CREATE INDEX scans_ended ON scans (ended_at) WHERE ended_at IS NOT NULL;

CREATE TABLE scan_items (
    scan_id  uuid NOT NULL REFERENCES scans ON DELETE CASCADE,
    number   bigint GENERATED ALWAYS AS IDENTITY,
    object   text,                         -- to be imported
    version  text,                         -- of the object
    named    uuid,                         -- the track that was named, which may be deleted by now
    track_id uuid REFERENCES tracks ON DELETE SET NULL,
    state    text NOT NULL DEFAULT 'WAITING'
             CHECK (state IN ('WAITING', 'EXISTING', 'ANALYZED', 'SKIPPED', 'FAILED')),
    busy     boolean NOT NULL DEFAULT false,    -- its job has not ended, as far as is known
    job_id   uuid,                         -- its latest; jobs are forgotten after a while, items are not
    error    jsonb,
    tries    integer NOT NULL DEFAULT 0,   -- how many of its jobs failed for a reason that may pass
    not_before timestamptz NOT NULL DEFAULT '-infinity',  -- its next job
    PRIMARY KEY (scan_id, number),
    CHECK ((object IS NULL) <> (named IS NULL))
);
CREATE UNIQUE INDEX scan_items_object ON scan_items (scan_id, object) WHERE object IS NOT NULL;
CREATE UNIQUE INDEX scan_items_named ON scan_items (scan_id, named) WHERE named IS NOT NULL;
CREATE INDEX scan_items_imported ON scan_items (object, version) WHERE object IS NOT NULL AND track_id IS NOT NULL;
CREATE INDEX scan_items_of_track ON scan_items (track_id);
CREATE INDEX scan_items_of_state ON scan_items (scan_id, state, number);
-- Of these a scan has few, or takes the first, however many are done.
CREATE INDEX scan_items_busy ON scan_items (scan_id, number) WHERE busy;
CREATE INDEX scan_items_waiting ON scan_items (scan_id, not_before, number) WHERE state = 'WAITING' AND NOT busy;

CREATE TABLE playlists (
    id           uuid PRIMARY KEY,
    owner        text NOT NULL,
    request_id   uuid NOT NULL,
    display_name text NOT NULL,
    query        jsonb NOT NULL,           -- protobuf TrackQuery
    track_limit  integer NOT NULL,
    ordered      boolean NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    UNIQUE (owner, request_id)
);
CREATE INDEX playlists_newest ON playlists (owner, created_at DESC, id DESC);
"""


def upgrade() -> None:
    for statement in SCHEMA.split(";\n"):  # asyncpg prepares one statement at a time
        if statement.strip():
            op.execute(statement)
