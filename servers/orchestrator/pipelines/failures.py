"""What a pipeline's parts may fail with, as callers are told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from servers.inference.asking import InferenceFailed
from servers.inference.conversion import VoiceUnavailable
from servers.inference.keeper import ModelUnavailable
from servers.media.errors import MediaError
from servers.orchestrator.engines.mixer import MixerError
from servers.orchestrator.jobs.runner import JobFailure
from servers.platform import telemetry


@contextmanager
def told_to_the_caller() -> Iterator[None]:
    """Turn the errors of models, engines and media into failures of the job."""
    try:
        yield
    except MediaError as error:
        raise JobFailure(error.reason, str(error)) from error
    except ModelUnavailable as error:
        telemetry.log().error("model unavailable", error=str(error))  # it names files: not for callers
        raise JobFailure("MODEL_UNAVAILABLE", "a model could not be loaded", retryable=True) from error
    except InferenceFailed as error:
        telemetry.log().error("inference failed", error=str(error))
        raise JobFailure("MODEL_FAILED", "a model failed again and again", retryable=True) from error
    except VoiceUnavailable as error:
        telemetry.log().error("voice unavailable", reason=error.reason, error=str(error))
        retryable = error.reason in ("VOICE_LOADING", "VOICE_STORE")
        raise JobFailure("VOICE_UNAVAILABLE", "the voice could not be loaded", retryable=retryable) from error
    except MixerError as error:
        if error.status is grpc.StatusCode.UNAVAILABLE:  # it will be back, and the attempt is made again
            raise ConnectionError("the mixer is away") from error
        telemetry.log().error("mixing failed", status=error.status.name, reason=error.reason, error=error.message)
        raise JobFailure("MIXER_FAILED", "the mixer failed", retryable=True) from error
