"""Voices, covers and the voice pool's settings."""

from alembic import op

revision = "0003"
down_revision = "0002"

SCHEMA = """
CREATE TABLE voices (
    id             uuid PRIMARY KEY,
    owner          text NOT NULL,
    request_id     uuid NOT NULL,
    -- IMPORTING: its files are being stored. DELETED: they are being removed; then the row goes.
    state          text NOT NULL DEFAULT 'IMPORTING' CHECK (state IN ('IMPORTING', 'READY', 'DELETED')),
    display_name   text NOT NULL,
    language       text NOT NULL,
    tags           text[] NOT NULL,
    licence        text NOT NULL,
    pitch_low      double precision,
    pitch_median   double precision,
    pitch_high     double precision,
    version        text NOT NULL CHECK (version IN ('v1', 'v2')),
    sample_rate    integer NOT NULL CHECK (sample_rate > 0),
    f0             boolean NOT NULL,
    speakers       integer NOT NULL CHECK (speakers > 0),
    vectors        bigint NOT NULL,
    weights_sha256 text NOT NULL CHECK (weights_sha256 ~ '^[0-9a-f]{64}$'),
    weights_bytes  bigint NOT NULL,
    index_sha256   text NOT NULL CHECK (index_sha256 ~ '^([0-9a-f]{64})?$'),  -- '': it has none
    index_bytes    bigint NOT NULL,
    sample         jsonb,  -- {size_bytes, media_type, audio: AudioProperties}
    created_at     timestamptz NOT NULL DEFAULT now(),
    updated_at     timestamptz NOT NULL DEFAULT now(),
    last_used_at   timestamptz,
    UNIQUE (owner, request_id)
);
CREATE INDEX voices_newest ON voices (owner, created_at DESC, id DESC);
CREATE INDEX voices_recent ON voices (last_used_at DESC) WHERE state = 'READY';
CREATE INDEX voices_unfinished ON voices (updated_at) WHERE state <> 'READY';

-- One row: how the pool is to work.
CREATE TABLE voice_pool (
    only_one     boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    enabled      boolean NOT NULL DEFAULT true,
    capacity     integer NOT NULL DEFAULT 10 CHECK (capacity BETWEEN 1 AND 1000),
    idle_seconds double precision NOT NULL DEFAULT 1800 CHECK (idle_seconds > 0),
    strategy     text NOT NULL DEFAULT 'lru' CHECK (strategy IN ('lru', 'ttl', 'lru+lfu')),
    prewarm      integer NOT NULL DEFAULT 3 CHECK (prewarm BETWEEN 0 AND 100)
);
INSERT INTO voice_pool DEFAULT VALUES;

ALTER TABLE jobs ADD COLUMN voice_id uuid REFERENCES voices ON DELETE SET NULL;
CREATE INDEX jobs_voice ON jobs (voice_id) WHERE voice_id IS NOT NULL;

-- The id is made of all that the cover is made of, so that the same cover is made once.
CREATE TABLE covers (
    id             uuid PRIMARY KEY,
    owner          text NOT NULL,
    track_id       uuid REFERENCES tracks ON DELETE SET NULL,
    voice_id       uuid REFERENCES voices ON DELETE SET NULL,
    spec           jsonb NOT NULL,
    semitones      double precision NOT NULL,
    format         text NOT NULL,
    object_key     text NOT NULL,
    size_bytes     bigint NOT NULL,
    content_sha256 text NOT NULL,
    sample_rate    integer NOT NULL,
    channels       integer NOT NULL,
    frames         bigint NOT NULL,
    peak           double precision NOT NULL,
    clipped        bigint NOT NULL,
    loudness       double precision,
    true_peak      double precision,
    created_at     timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX covers_newest ON covers (owner, created_at DESC, id DESC);
CREATE INDEX covers_track ON covers (track_id);
CREATE INDEX covers_voice ON covers (voice_id);

-- The covers that a job made or found.
CREATE TABLE job_covers (
    job_id   uuid NOT NULL REFERENCES jobs ON DELETE CASCADE,
    cover_id uuid NOT NULL REFERENCES covers ON DELETE CASCADE,
    PRIMARY KEY (job_id, cover_id)
);
"""


def upgrade() -> None:
    for statement in SCHEMA.split(";\n"):  # asyncpg prepares one statement at a time
        if statement.strip():
            op.execute(statement)
