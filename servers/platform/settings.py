"""Settings of every server, read from the environment and an optional file.

Each field ``name`` is read from ``CONTRAFACT_NAME``, else from the TOML file that ``CONTRAFACT_CONFIG``
names, else from its default. The embedded stack sets only URLs: the same servers run against external
services by pointing these elsewhere.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

MIB = 1024 * 1024


class Settings(BaseSettings):
    """What a server needs to know; see the module for where values come from."""

    model_config = SettingsConfigDict(env_prefix="CONTRAFACT_", extra="forbid", frozen=True)

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

    # How this server is reached.
    api_host: str = "127.0.0.1"
    api_port: int = Field(50051, ge=0, le=65535)
    metrics_port: int | None = Field(
        None, description="Port of the Prometheus endpoint (0: any free one); none: no endpoint."
    )
    authentication: Literal["development"] = Field(
        "development", description="'development': every loopback caller is the principal 'local'."
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
    segments_in_flight: int = Field(2, ge=1, le=64)
    skip_covered_segment: bool = Field(
        False,
        description="Leave out a last segment whose frames the one before covers: one inference less, but "
        "the track's last two seconds are not blended (34 dB from the package's output instead of 94).",
    )
    segment_timeout_seconds: float = Field(120.0, gt=0)
    model_load_timeout_seconds: float = Field(600.0, gt=0)

    # Workers.
    worker_concurrency: int = Field(2, ge=1, le=256)
    lease_seconds: float = Field(15.0, ge=2)
    drain_seconds: float = Field(10.0, ge=0)
    temporary_folder: Path | None = None

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
