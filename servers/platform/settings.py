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
    worker_concurrency: int = Field(2, ge=1, le=256)
    lease_seconds: float = Field(15.0, ge=2)
    drain_seconds: float = Field(10.0, ge=0)
    temporary_folder: Path | None = None

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
