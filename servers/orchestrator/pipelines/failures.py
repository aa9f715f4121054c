"""What a pipeline's parts may fail with, as callers are told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from servers.inference.asking import InferenceFailed, InferenceRefused
from servers.inference.conversion import VoiceUnavailable
from servers.inference.keeper import ModelUnavailable
from servers.media.errors import MediaError
from servers.orchestrator.engines.engine import EngineError
from servers.orchestrator.jobs.runner import JobFailure
from servers.platform import telemetry

_ENGINE_AWAY = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED,  # a server that stops ends its calls so
)


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
    except InferenceRefused as error:
        telemetry.log().error("inference refused", error=str(error))
        raise JobFailure("MODEL_REFUSED", "a model does not do what the job asks for") from error
    except InferenceFailed as error:
        telemetry.log().error("inference failed", error=str(error))
        raise JobFailure("MODEL_FAILED", "a model failed again and again", retryable=True) from error
    except VoiceUnavailable as error:
        telemetry.log().error("voice unavailable", reason=error.reason, error=str(error))
        retryable = error.reason in ("VOICE_LOADING", "VOICE_STORE")
        raise JobFailure("VOICE_UNAVAILABLE", "the voice could not be loaded", retryable=retryable) from error
    except EngineError as error:
        if error.status in _ENGINE_AWAY:  # it will be back, and the attempt is made again
            raise ConnectionError(f"the {error.engine} is away: {error.reason or error.status.name}") from error
        telemetry.log().error(f"{error.engine} failed", status=error.status.name, reason=error.reason, error=str(error))
        refused = error.status is grpc.StatusCode.INVALID_ARGUMENT
        message = f"the {error.engine} failed"
        raise JobFailure(f"{error.engine.upper()}_FAILED", message, retryable=not refused) from error
