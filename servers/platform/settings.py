"""Settings of every server, read from the environment and an optional file.

Each field ``name`` is read from ``CONTRAFACT_NAME``, else from the TOML file that ``CONTRAFACT_CONFIG``
names, else from its default. The embedded stack sets only URLs: the same servers run against external
services by pointing these elsewhere.
"""

from __future__ import annotations

import base64
import os
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

MIB = 1024 * 1024


def _webhook_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
        raise ValueError("not an http or https URL")
    return url


def _webhook_secret(secret: SecretStr) -> SecretStr:
    prefix, encoded = secret.get_secret_value()[:6], secret.get_secret_value()[6:]
    # binascii.Error is a ValueError, so what is not base64 ends here as well.
    if prefix != "whsec_" or not 24 <= len(base64.b64decode(encoded, validate=True)) <= 64:
        raise ValueError("not 'whsec_' and the base64 of 24 to 64 bytes")
    return secret


WebhookUrl = Annotated[str, AfterValidator(_webhook_url)]
WebhookSecret = Annotated[SecretStr, AfterValidator(_webhook_secret)]


class Settings(BaseSettings):
    """What a server needs to know; see the module for where values come from."""

    # Errors go to logs, which secrets must not.
    model_config = SettingsConfigDict(env_prefix="CONTRAFACT_", extra="forbid", frozen=True, hide_input_in_errors=True)

    # Where the backing services are.
    database_url: str = "postgresql://contrafact@127.0.0.1:5432/contrafact"
    redis_url: str = "redis://127.0.0.1:6379/0"
    s3_endpoint: str = "http://127.0.0.1:9000"
    s3_public_endpoint: str | None = Field(
        None, description="Endpoint written into presigned URLs, when clients reach S3 elsewhere."
    )
    s3_access_key: str = "contrafact"
    s3_secret_key: SecretStr = SecretStr("contrafact")
    s3_bucket: str = "contrafact"
    s3_region: str = "us-east-1"
    triton_url: str = "127.0.0.1:8001"

    # Engines.
    mixer_host: str = "127.0.0.1"
    mixer_port: int = Field(50061, ge=0, le=65535)
    mixer_url: str = Field("127.0.0.1:50061", description="Where the others find the mixer.")
    mixes_in_flight: int = Field(
        16, ge=1, le=32, description="Of one worker; the mixer makes 32 at once and refuses more."
    )
    mixer_wait_seconds: float = Field(
        600.0,
        gt=0,
        description="For so long a job waits until there is room in the mixer before its attempt is given up.",
    )

    analyzer_host: str = "127.0.0.1"
    analyzer_port: int = Field(50062, ge=0, le=65535)
    analyzer_url: str = Field("127.0.0.1:50062", description="Where the others find the analyzer.")
    analyses_in_flight: int = Field(
        8, ge=1, le=32, description="Of one process; the analyzer makes 32 at once and refuses more."
    )
    analyzer_wait_seconds: float = Field(
        600.0, gt=0, description="For so long a job waits for room in the analyzer before its attempt is given up."
    )
    analyzer_threads: int | None = Field(
        None, ge=1, le=256, description="Steps of analyses at once in one analyzer; none: as many as it has cores."
    )

    grains_host: str = "127.0.0.1"
    grains_port: int = Field(50063, ge=0, le=65535)
    grains_url: str = Field("127.0.0.1:50063", description="Where the others find the grains engine.")
    grains_in_flight: int = Field(
        16,
        ge=6,
        le=32,
        description="Renderings of one worker at once, and as many other calls; the grains engine takes 24 and 32 of "
        "all workers, and the others wait. A mix may need three of each.",
    )
    grains_wait_seconds: float = Field(
        600.0, gt=0, description="For so long a job waits for room in the grains engine before its attempt is given up."
    )
    grains_threads: int | None = Field(
        None, ge=1, le=256, description="Steps of work at once in one grains engine; none: as many as it has cores."
    )
    grains_library_bytes: int = Field(
        500_000_000, ge=0, description="Libraries that a grains engine keeps decoded, in bytes, those used last."
    )

    # How this server is reached.
    api_host: str = "127.0.0.1"
    api_port: int = Field(50051, ge=0, le=65535)
    metrics_port: int | None = Field(
        None, description="Port of the Prometheus endpoint (0: any free one); none: no endpoint."
    )
    authentication: Literal["development"] = Field(
        "development", description="'development': every loopback caller is the principal 'local'."
    )

    watchdog_seconds: float = Field(
        30.0, ge=0, description="A worker or API server that is stuck for so long ends itself; 0: it does not."
    )

    # What is seen of it.
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    otlp_endpoint: str | None = Field(None, description="OpenTelemetry collector; none: no traces.")

    # Uploads.
    max_upload_bytes: int = Field(100_000_000, gt=0)
    max_track_seconds: float = Field(12 * 3600.0, gt=0)
    upload_idle_seconds: float = Field(
        30.0, gt=0, description="An upload stream that sends nothing for so long is cut (resumable)."
    )
    upload_min_bytes_per_second: float = Field(
        1024.0, ge=0, description="Slower streams are cut after the idle time (resumable)."
    )
    upload_ttl_seconds: float = Field(24 * 3600.0, gt=0)

    # Separation.
    model: str = "htdemucs"
    shared_memory: Literal["auto", "on", "off"] = Field(
        "auto", description="Pass tensors to Triton through /dev/shm; 'auto': where Triton can open it."
    )
    segments_in_flight: int = Field(2, ge=1, le=64, description="Of one job.")
    model_requests_in_flight: int = Field(
        16,
        ge=1,
        le=128,
        description="Of one process, to each model; more wait in order of priority. 16 are two of htdemucs' batches on "
        "a GPU, one that runs and one that waits, and one of rvc's, whose queue there knows no priorities.",
    )
    skip_covered_segment: bool = Field(
        False,
        description="Leave out a last segment whose frames the one before covers: one inference less, but "
        "the track's last two seconds are not blended (34 dB from the package's output instead of 94).",
    )
    segment_timeout_seconds: float = Field(120.0, gt=0)
    model_load_timeout_seconds: float = Field(600.0, gt=0)

    # Voices.
    voice_model: str = "rvc"
    max_voice_weights_bytes: int = Field(600_000_000, gt=0)
    max_voice_index_bytes: int = Field(1_000_000_000, gt=0)
    max_voice_sample_bytes: int = Field(20_000_000, gt=0)
    live_streams: int = Field(32, ge=1, description="Live voices at once in one API server.")
    live_idle_seconds: float = Field(60.0, gt=0, description="A live stream that sends nothing for so long is ended.")
    voice_imports: int = Field(4, ge=1, le=64, description="Imports at once in one API server.")
    voice_import_seconds: float = Field(3600.0, gt=0, description="All files of an import must arrive within.")
    voice_verify_seconds: float = Field(120.0, gt=0)
    voice_import_ttl_seconds: float = Field(
        1800.0, gt=0, description="An import that has not stored its files after so long is taken for dead."
    )

    # Workers.
    worker_concurrency: int = Field(2, ge=1, le=256, description="Jobs at once in one worker.")
    interactive_slots: int = Field(
        1, ge=0, le=256, description="So many interactive jobs more: background jobs never fill a worker."
    )
    job_limits: dict[str, int] = Field({}, description="Jobs at once in one worker by kind, such as {'COVER': 1}.")
    background_ageing_seconds: float = Field(
        60.0, gt=0, description="When nothing but interactive jobs begin, a background job does after so long."
    )
    lease_seconds: float = Field(
        10.0, ge=2, description="A worker that gives no sign of life for so long loses its jobs."
    )
    max_job_failures: int = Field(5, ge=1, description="Attempts that end badly before a job fails.")
    max_queued_jobs: int = Field(100_000, ge=1, description="Jobs that wait, in each priority; more are refused.")
    max_queued_jobs_per_owner: int = Field(10_000, ge=1, description="Jobs of one owner that wait; more are refused.")
    drain_seconds: float = Field(10.0, ge=0)
    checkpoint_seconds: float = Field(
        120.0,
        ge=0,
        description="Separations of longer tracks store what they have made without loss as well, if that is not what "
        "was asked for, so that another attempt goes on from there.",
    )
    temporary_folder: Path | None = None

    # Cleaning up: done by the workers, once for all of them; see ``servers.orchestrator.tidy``.
    tidy_seconds: float = Field(600.0, gt=0, description="How often what has been kept long enough is looked for.")
    orphans_seconds: float = Field(
        3600.0, gt=0, description="How often the whole bucket is listed and compared with the database."
    )
    orphan_original_days: float = Field(
        1.0,
        ge=0,
        description="Age at which an original that the database does not know is removed. Raise it when an old backup "
        "of the database has been restored.",
    )
    half_transfer_days: float = Field(
        1.0, ge=0, description="Age at which a transfer to the object store that was never completed is given up."
    )
    event_retention_days: float = Field(
        7.0,
        gt=0,
        description="How long after its last event a job can be followed; that of a scan: ten minutes after its end.",
    )
    job_retention_days: float = Field(
        90.0, gt=0, description="Jobs that ended so long ago are forgotten, and their request ids with them."
    )
    stem_retention_days: float = Field(
        30.0, gt=0, description="Stems that nobody used for so long are removed; they can be made again."
    )

    # Analyses and search.
    analysis_cache_seconds: float = Field(3600.0, gt=0, description="How long Redis keeps an analysis that was read.")
    scan_jobs: int = Field(32, ge=1, le=10_000, description="Unfinished jobs of one scan at once.")
    embedding_model: str = Field(
        "contrafact-signal-1", description="What makes embeddings; those of another model are not searched."
    )
    max_clip_bytes: int = Field(50_000_000, gt=0)
    search_exact_tracks: int = Field(
        20_000, ge=0, description="Libraries up to this size are searched exactly, larger ones through the index."
    )

    # Styles and mixes.
    max_style_bytes: int = Field(50_000_000, gt=0)
    max_style_seconds: float = Field(600.0, gt=0, le=1200)
    style_cache_seconds: float = Field(3600.0, gt=0, description="How long Redis keeps a grain library that was used.")
    style_cache_bytes: int = Field(8_000_000, ge=0, description="Larger grain libraries are not kept in Redis.")
    layer_retention_days: float = Field(
        7.0,
        gt=0,
        description="Stems played with a style that nobody used for so long are removed.",
    )

    # Webhooks.
    webhook_urls: list[WebhookUrl] = Field([], description="Told of every job that ends; http or https.")
    webhook_secret: WebhookSecret | None = Field(
        None, description="Signs webhooks: 'whsec_' and the base64 of 24 to 64 random bytes."
    )
    webhook_attempts: int = Field(10, ge=1)
    webhook_timeout_seconds: float = Field(10.0, gt=0)

    @model_validator(mode="after")
    def _webhooks_are_signed(self) -> Self:
        if self.webhook_urls and self.webhook_secret is None:
            raise ValueError("webhook_urls need a webhook_secret")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        config = os.environ.get("CONTRAFACT_CONFIG")
        file = (TomlConfigSettingsSource(settings_cls, Path(config)),) if config else ()
        return (init_settings, env_settings, *file)


@lru_cache
def settings() -> Settings:
    """The settings of this process."""
    return Settings()
