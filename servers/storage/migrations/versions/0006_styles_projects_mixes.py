"""Styles, projects and mixes."""

from alembic import op

revision = "0006"
down_revision = "0005"

SCHEMA = """
-- What a cut makes of a recording. The id is made of bytes, cut and version, so that the same is built once.
CREATE TABLE grain_libraries (
    id              uuid PRIMARY KEY,
    sha256          text NOT NULL REFERENCES recordings,
    cut             jsonb NOT NULL,            -- protobuf Cut, with every default written down
    version         integer NOT NULL,          -- of the grains engine's format and measurements
    object_key      text NOT NULL,
    size_bytes      bigint NOT NULL,
    content_sha256  text NOT NULL,
    grain_count     integer NOT NULL CHECK (grain_count > 0),
    pitched_count   integer NOT NULL,
    grain_seconds   double precision NOT NULL,
    low_hz          double precision,
    high_hz         double precision,
    -- The preview.
    preview_key     text NOT NULL,
    preview_bytes   bigint NOT NULL,
    preview_sha256  text NOT NULL,
    preview_rate    integer NOT NULL,
    preview_channels integer NOT NULL,
    preview_frames  bigint NOT NULL,
    preview_peak    double precision NOT NULL,
    preview_clipped bigint NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX grain_libraries_recording ON grain_libraries (sha256);

CREATE TABLE styles (
    id           uuid PRIMARY KEY,
    owner        text NOT NULL,
    request_id   uuid NOT NULL,
    display_name text NOT NULL,
    sha256       text NOT NULL REFERENCES recordings,
    cut          jsonb NOT NULL,
    library_id   uuid NOT NULL,                -- of grain_libraries, once that is built
    job_id       uuid,                         -- that builds it
    created_at   timestamptz NOT NULL DEFAULT now(),
    UNIQUE (owner, request_id)
);
CREATE INDEX styles_newest ON styles (owner, created_at DESC, id DESC);
CREATE INDEX styles_library ON styles (library_id);
CREATE INDEX styles_recording ON styles (sha256);

CREATE TABLE projects (
    id             uuid PRIMARY KEY,
    owner          text NOT NULL,
    request_id     uuid NOT NULL,
    display_name   text NOT NULL,
    track_id       uuid NOT NULL REFERENCES tracks ON DELETE CASCADE,
    model          text NOT NULL,              -- without its version
    separation_job uuid,
    analysis_job   uuid,
    created_at     timestamptz NOT NULL DEFAULT now(),
    UNIQUE (owner, request_id)
);
CREATE INDEX projects_newest ON projects (owner, created_at DESC, id DESC);
CREATE INDEX projects_track ON projects (track_id);

CREATE TABLE mixes (
    id             uuid PRIMARY KEY,
    owner          text NOT NULL,
    request_id     uuid NOT NULL,
    project_id     uuid NOT NULL REFERENCES projects ON DELETE CASCADE,
    display_name   text NOT NULL,
    config         jsonb NOT NULL,             -- protobuf MixConfig, with every default written down
    revision       bigint NOT NULL DEFAULT 1,
    latest_job     uuid,                       -- that renders this revision
    -- Its newest finished rendering; all of it null before the first.
    rendered_revision bigint,
    rendered_job   uuid,
    report         jsonb,                      -- protobuf MixReport
    format         text,
    object_key     text,
    size_bytes     bigint,
    content_sha256 text,
    sample_rate    integer,
    channels       integer,
    frames         bigint,
    peak           double precision,
    clipped        bigint,
    loudness       double precision,
    true_peak      double precision,
    rendered_at    timestamptz,
    created_at     timestamptz NOT NULL DEFAULT now(),
    updated_at     timestamptz NOT NULL DEFAULT now(),
    UNIQUE (owner, request_id)
);
CREATE INDEX mixes_newest ON mixes (owner, created_at DESC, id DESC);
CREATE INDEX mixes_project ON mixes (project_id);
CREATE INDEX mixes_rendered ON mixes (rendered_job) WHERE rendered_job IS NOT NULL;

-- What is played in stems; they can be made again.
CREATE TABLE traces (
    sha256     text NOT NULL REFERENCES recordings ON DELETE CASCADE,
    model      text NOT NULL,                  -- with version, as in htdemucs-1
    stem       text NOT NULL,
    content_sha256 text NOT NULL,              -- of the stem's file that was listened to
    version    integer NOT NULL,               -- of the grains engine's measurements
    notes      bytea NOT NULL,                 -- protobuf Trace, compressed
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (sha256, model, stem)
);

-- Stems as they are played with a style. The id is made of all that they are made of; they can be made again.
CREATE TABLE layers (
    id             uuid PRIMARY KEY,
    sha256         text NOT NULL REFERENCES recordings ON DELETE CASCADE,
    object_key     text NOT NULL,
    size_bytes     bigint NOT NULL,
    content_sha256 text NOT NULL,
    used_at        timestamptz NOT NULL DEFAULT now(),
    created_at     timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX layers_recording ON layers (sha256);
CREATE INDEX layers_used ON layers (used_at);

-- Jobs that must have ended before a job may begin.
ALTER TABLE jobs ADD COLUMN after uuid[] NOT NULL DEFAULT '{}';
"""


def upgrade() -> None:
    for statement in SCHEMA.split(";\n"):  # asyncpg prepares one statement at a time
        if statement.strip():
            op.execute(statement)
