# A node of kvnode. The first stage builds what the second one only copies; neither pip nor a compiler is left in it.
#
#   docker build -t kvnode:latest .
#   docker run --rm -v data:/data kvnode:latest serve --bootstrap --min-commit-dcs 1 --allow-unsafe-topology
ARG BASE=docker.io/library/debian:bookworm-slim

FROM ${BASE} AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/kvnode
ENV PATH=/opt/kvnode/bin:$PATH
WORKDIR /build
COPY requirements/runtime.txt requirements/
RUN pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements/runtime.txt
COPY pyproject.toml README.md ./
COPY protos protos
COPY tools/generate_protos.py tools/
COPY kvnode kvnode
COPY cluster cluster
RUN python tools/generate_protos.py \
    && pip install --no-cache-dir --disable-pip-version-check --no-index --no-deps --no-build-isolation . \
    && pip uninstall --yes grpcio-tools setuptools pip

FROM ${BASE}
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/*
RUN groupadd --gid 10001 kvnode \
    && useradd --uid 10001 --gid 10001 --home-dir /data --no-create-home --shell /usr/sbin/nologin kvnode \
    && install -d -o kvnode -g kvnode -m 0700 /data
COPY --from=build /opt/kvnode /opt/kvnode
# A node is reached by its `advertise`, which only the place that starts it can know.
ENV PATH=/opt/kvnode/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    KVNODE_DATA_DIR=/data \
    KVNODE_LISTEN=0.0.0.0:4510 \
    KVNODE_OPS_LISTEN=0.0.0.0:4511 \
    KVNODE_CONNECT_LISTEN=0.0.0.0:4512
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 4510 4511 4512
# Exec form, so that the node itself is told: it hands leadership over, drains and exits within 10 s.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python3", "-S", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:4511/readyz', timeout=2)"]
ENTRYPOINT ["kvnode"]
CMD ["serve"]
