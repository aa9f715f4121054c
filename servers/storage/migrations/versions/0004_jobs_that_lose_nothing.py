"""Fair turns, one attempt at the same work, the history of attempts, what resuming and cleaning up need."""

from alembic import op

revision = "0004"
down_revision = "0003"

SCHEMA = """
ALTER TABLE jobs
    ADD COLUMN lock       text,                        -- what it does, '{kind}:{id}': jobs of one lock do the same
    ADD COLUMN turn       bigint NOT NULL DEFAULT 0,   -- its place among the jobs of its priority that wait
    ADD COLUMN claimed_at timestamptz,                 -- when its latest attempt began
    ADD COLUMN worker     text,                        -- and where
    ADD COLUMN attempts   jsonb NOT NULL DEFAULT '[]'  -- those that have ended, oldest first
;
DROP INDEX jobs_unfinished;
-- Whoever runs holds the lock; his token is the job's id and attempt, and his heartbeat renews it.
CREATE UNIQUE INDEX jobs_lock_held ON jobs (lock) WHERE state = 'RUNNING';
CREATE INDEX jobs_lock_wanted ON jobs (lock) WHERE state = 'QUEUED';
CREATE INDEX jobs_lock ON jobs (lock);
CREATE INDEX jobs_turns ON jobs (priority DESC, turn, created_at) WHERE state = 'QUEUED';
CREATE INDEX jobs_turns_of_owner ON jobs (owner, priority, turn) WHERE state = 'QUEUED';
CREATE INDEX jobs_leases ON jobs (heartbeat_at) WHERE state = 'RUNNING';
CREATE INDEX jobs_background_claimed ON jobs (claimed_at) WHERE priority = 'BACKGROUND';
CREATE INDEX job_stems_stem ON job_stems (sha256, model, stem, format);
CREATE INDEX job_covers_cover ON job_covers (cover_id);
CREATE INDEX jobs_ended ON jobs (ended_at) WHERE ended_at IS NOT NULL;

ALTER TABLE stems ADD COLUMN used_at timestamptz NOT NULL DEFAULT now();
CREATE INDEX stems_used ON stems (used_at);

-- Of the whole file, as of a piece: from here a later attempt goes on.
ALTER TABLE live_pieces
    ADD COLUMN frames  bigint,
    ADD COLUMN peak    double precision,
    ADD COLUMN clipped bigint;

-- Periodic work; whoever moves due_at on does it.
CREATE TABLE chores (
    name   text PRIMARY KEY,
    due_at timestamptz NOT NULL DEFAULT now(),
    ran_at timestamptz,
    report jsonb
);
"""


def upgrade() -> None:
    for statement in SCHEMA.split(";\n"):  # asyncpg prepares one statement at a time
        if statement.strip():
            op.execute(statement)
