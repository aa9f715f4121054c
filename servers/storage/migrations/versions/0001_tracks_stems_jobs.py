"""Uploads, tracks, stems and jobs."""

from alembic import op

revision = "0001"
down_revision = None

SCHEMA = """
-- What was recorded, by the digest of its bytes; shared by all who uploaded the same bytes.
CREATE TABLE recordings (
    sha256      text PRIMARY KEY CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    size_bytes  bigint NOT NULL CHECK (size_bytes > 0),
    object_key  text NOT NULL,
    container   text NOT NULL,
    codec       text NOT NULL,
    sample_rate integer NOT NULL CHECK (sample_rate > 0),
    channels    integer NOT NULL CHECK (channels BETWEEN 1 AND 8),
    frames      bigint NOT NULL CHECK (frames > 0),
    bit_depth   integer,
    mean        double precision NOT NULL,  -- of the mono downmix, for the model's normalisation
    std         double precision NOT NULL,
    peak        double precision NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE tracks (
    id           uuid PRIMARY KEY,
    owner        text NOT NULL,
    display_name text NOT NULL,
    sha256       text NOT NULL REFERENCES recordings,
    created_at   timestamptz NOT NULL DEFAULT now(),
    UNIQUE (owner, sha256)
);
CREATE INDEX tracks_newest ON tracks (owner, created_at DESC, id DESC);
CREATE INDEX tracks_recording ON tracks (sha256);

CREATE TABLE uploads (
    id              uuid PRIMARY KEY,
    owner           text NOT NULL,
    request_id      uuid NOT NULL,
    display_name    text NOT NULL,
    size_bytes      bigint NOT NULL,       -- 0: not announced
    sha256          text NOT NULL,         -- '': not announced
    committed_bytes bigint NOT NULL DEFAULT 0,
    writer          uuid,                  -- the one stream that may go on
    track_id        uuid REFERENCES tracks ON DELETE SET NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now(),
    UNIQUE (owner, request_id)
);
CREATE INDEX uploads_stale ON uploads (updated_at);

CREATE TABLE upload_pieces (
    upload_id  uuid NOT NULL REFERENCES uploads ON DELETE CASCADE,
    start      bigint NOT NULL,
    size_bytes bigint NOT NULL CHECK (size_bytes > 0),
    PRIMARY KEY (upload_id, start)
);

CREATE TABLE stems (
    sha256         text NOT NULL REFERENCES recordings ON DELETE CASCADE,
    model          text NOT NULL,          -- with version, as in htdemucs-1
    stem           text NOT NULL,
    format         text NOT NULL,
    object_key     text NOT NULL,
    size_bytes     bigint NOT NULL,
    content_sha256 text NOT NULL,
    sample_rate    integer NOT NULL,
    channels       integer NOT NULL,
    frames         bigint NOT NULL,
    peak           double precision NOT NULL,
    clipped        bigint NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (sha256, model, stem, format)
);

CREATE TABLE jobs (
    id               uuid PRIMARY KEY,
    owner            text NOT NULL,
    request_id       uuid NOT NULL,
    kind             text NOT NULL,
    priority         text NOT NULL CHECK (priority IN ('INTERACTIVE', 'BACKGROUND')),
    state            text NOT NULL DEFAULT 'QUEUED'
                     CHECK (state IN ('QUEUED', 'RUNNING', 'SUCCEEDED', 'FAILED', 'CANCELLED')),
    track_id         uuid REFERENCES tracks ON DELETE SET NULL,
    spec             jsonb NOT NULL,
    headers          jsonb NOT NULL DEFAULT '{}',  -- ids of the call that created it
    stage            text NOT NULL DEFAULT 'UNSPECIFIED',
    fraction         double precision NOT NULL DEFAULT 0,
    eta_seconds      double precision,
    attempt          integer NOT NULL DEFAULT 0,     -- fences writes
    failures         integer NOT NULL DEFAULT 0,     -- attempts that ended badly and not for good
    not_before       timestamptz NOT NULL DEFAULT now(),
    cancel_requested boolean NOT NULL DEFAULT false,
    error            jsonb,
    warnings         jsonb NOT NULL DEFAULT '[]',
    timings          jsonb NOT NULL DEFAULT '[]',
    created_at       timestamptz NOT NULL DEFAULT now(),
    started_at       timestamptz,
    ended_at         timestamptz,
    heartbeat_at     timestamptz,
    UNIQUE (owner, request_id)
);
CREATE INDEX jobs_newest ON jobs (owner, created_at DESC, id DESC);
CREATE INDEX jobs_unfinished ON jobs (priority, created_at) WHERE state IN ('QUEUED', 'RUNNING');
CREATE INDEX jobs_track ON jobs (track_id);

-- The stems that a job made or found.
CREATE TABLE job_stems (
    job_id uuid NOT NULL REFERENCES jobs ON DELETE CASCADE,
    sha256 text NOT NULL,
    model  text NOT NULL,
    stem   text NOT NULL,
    format text NOT NULL,
    PRIMARY KEY (job_id, stem),
    FOREIGN KEY (sha256, model, stem, format) REFERENCES stems ON DELETE CASCADE
);

-- Pieces of stems that are being made, for whoever listens.
CREATE TABLE live_pieces (
    job_id       uuid NOT NULL REFERENCES jobs ON DELETE CASCADE,
    attempt      integer NOT NULL,
    stem         text NOT NULL,
    start        bigint NOT NULL,
    size_bytes   bigint NOT NULL CHECK (size_bytes > 0),
    frames_ready bigint NOT NULL,
    PRIMARY KEY (job_id, attempt, stem, start)
);
"""


def upgrade() -> None:
    for statement in SCHEMA.split(";\n"):  # asyncpg prepares one statement at a time
        if statement.strip():
            op.execute(statement)
