# Whatever calls the server: the command line with its demo page, and the load test. No PyTorch.
#
#   docker build --file docker/client.Dockerfile --tag diptych-client .
#   docker run --rm diptych-client classify --url grpc://HOST:8001 --text "a ripe banana"
#   docker run --rm --entrypoint locust diptych-client -f loadtest/locustfile.py --host grpc://HOST:8001 ...
ARG PYTHON_IMAGE=python:3.12.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    SOURCE_DATE_EPOCH=315532800
COPY LICENSE VERSION training/constraints.txt docker/requirements/loadtest.txt /src/
COPY client /src/client
COPY serving /src/serving
RUN python3 -m venv /opt/venv \
    && /opt/venv/bin/pip install --constraint /src/constraints.txt '/src/client[demo,score]' /src/serving \
        --requirement /src/loadtest.txt

FROM ${PYTHON_IMAGE}
ENV HOME=/tmp \
    MPLCONFIGDIR=/tmp \
    PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONPATH=/opt/diptych \
    PYTHONUNBUFFERED=1
COPY --from=build /opt/venv /opt/venv
COPY --chmod=755 loadtest /opt/diptych/loadtest

ARG VERSION=unknown
ARG REVISION=unknown
ARG PYTHON_IMAGE
LABEL org.opencontainers.image.title="diptych-client" \
    org.opencontainers.image.description="Calls a Diptych classifier, shows it on a page, loads it" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.base.name="${PYTHON_IMAGE}"

USER 10001:10001
# Locust looks for loadtest/ here.
WORKDIR /opt/diptych
ENTRYPOINT ["diptych-client"]
CMD ["--help"]
