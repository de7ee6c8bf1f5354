# An environment in an image: the CPU list, or with --build-arg KIND=gpu the CUDA one (KIND=transformers: without vLLM).
#
#     docker build -t pst .
#     docker run --rm -v "$PWD/runs:/pst/runs" -v pst-cache:/pst/.cache pst make round ROUND=1
#
# docs/scaling.md has the command for GPUs and for your own models and questions.
FROM debian:bookworm-slim

# Triton and torch.compile call a compiler when a model is first used; on a GPU they need Python's headers, too.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates g++ make python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# Whoever runs the image (docker run --user), runs/ and the caches can be written to.
RUN useradd --uid 1000 --no-create-home --home-dir /pst pst \
    && install -d -o 1000 /pst && install -d -m 1777 /pst/runs /pst/.cache
USER 1000
WORKDIR /pst

ARG KIND=cpu
ARG EXTRA=
ENV KIND=$KIND USER=pst HOME=/pst/.cache PATH=/pst/.venv/bin:$PATH PIP_NO_CACHE_DIR=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# The packages, some GB: a layer of its own, which only a change of what is pinned makes anew.
COPY --chown=1000 Makefile ./
COPY --chown=1000 requirements requirements
RUN make setup "EXTRA=$EXTRA"

COPY --chown=1000 . .
CMD ["make", "help"]
