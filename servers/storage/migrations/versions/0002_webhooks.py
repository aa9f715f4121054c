"""Deliveries of webhooks."""

from alembic import op

revision = "0002"
down_revision = "0001"

SCHEMA = """
-- Who is to be told that a job has ended; written together with its final state.
CREATE TABLE webhook_deliveries (
    id              uuid PRIMARY KEY,
    job_id          uuid NOT NULL REFERENCES jobs ON DELETE CASCADE,
    url             text NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    attempts        integer NOT NULL DEFAULT 0,
    next_attempt_at timestamptz NOT NULL DEFAULT now(),  -- while one is under way: when it counts as lost
    delivered_at    timestamptz,
    failed_at       timestamptz,                         -- given up
    last_error      text,
    UNIQUE (job_id, url)
);
CREATE INDEX webhook_deliveries_due ON webhook_deliveries (url, next_attempt_at)
    WHERE delivered_at IS NULL AND failed_at IS NULL;
CREATE INDEX webhook_deliveries_oldest ON webhook_deliveries (created_at);
"""


def upgrade() -> None:
    for statement in SCHEMA.split(";\n"):  # asyncpg prepares one statement at a time
        if statement.strip():
            op.execute(statement)
