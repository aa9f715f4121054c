"""Model weights: where they come from, how they are verified, where they are cached.

``registry.toml`` names every weight set. `fetch` brings a set into the cache (once), `path` finds it there::

    >>> from model_repository import weights
    >>> weights.fetch("htdemucs")          # a path; quick when cached
    >>> weights.path("htdemucs")           # the same, or WeightsMissing

On a command line: ``python -m model_repository.weights fetch htdemucs``. Whatever the source, what is cached is
one canonical file whose SHA-256 is pinned in the registry, so every machine computes with the same bytes.

Environment: ``CONTRAFACT_WEIGHTS_DIR`` (cache), ``CONTRAFACT_WEIGHTS_LOCAL`` (a file or folder to take weights
from), ``CONTRAFACT_WEIGHTS_URL`` (``https://…`` or ``s3://bucket/prefix``), ``CONTRAFACT_WEIGHTS_REGISTRY``
(another registry file).

The package uses relative imports only and nothing of Contrafact's servers: model.py imports it inside Triton.
"""

from ._cache import fetch, path
from ._errors import SourceUnavailable, WeightsCorrupt, WeightsError, WeightsMissing
from ._registry import WeightSet, cache_folder, load_registry

__all__ = [
    "SourceUnavailable",
    "WeightSet",
    "WeightsCorrupt",
    "WeightsError",
    "WeightsMissing",
    "cache_folder",
    "fetch",
    "load_registry",
    "path",
]
