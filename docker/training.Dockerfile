# Training, evaluation, export and releases. PyTorch's wheels bring CUDA; the machine brings NVIDIA's driver.
#
#   docker build --file docker/training.Dockerfile --tag diptych-training .
#   docker run --rm --gpus all --shm-size 2g --user "$(id -u):$(id -g)" --volume "$PWD:/work" diptych-training \
#       train quickstart --out runs/mine --set data.train_csv=train.csv ...
#
# Exports say which PyTorch made them; docker/Dockerfile says which Triton can load that.
ARG PYTHON_IMAGE=python:3.12.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    SOURCE_DATE_EPOCH=315532800
COPY LICENSE VERSION training/constraints.txt /src/
COPY model_repository /src/model_repository
COPY client /src/client
COPY serving /src/serving
COPY training /src/training
RUN python3 -m venv /opt/venv \
    && /opt/venv/bin/pip install --constraint /src/constraints.txt /src/client '/src/serving[tools]' '/src/training[quickstart,doubt]'

FROM ${PYTHON_IMAGE}
ENV DIPTYCH_CACHE=/tmp/diptych \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp \
    PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
COPY --from=build /opt/venv /opt/venv

ARG VERSION=unknown
ARG REVISION=unknown
ARG PYTHON_IMAGE
LABEL org.opencontainers.image.title="diptych-training" \
    org.opencontainers.image.description="Trains an image-and-text classifier and exports it to NVIDIA Triton" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.base.name="${PYTHON_IMAGE}"

USER 10001:10001
# Mount what is read and written here.
WORKDIR /work
ENTRYPOINT ["diptych"]
CMD ["--help"]
