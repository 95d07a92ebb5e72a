# A server in a container.
#
#   docker build -t windlass .
#   docker run -p 8000:8000 -v "$PWD/keys.txt:/run/secrets/windlass-keys:ro" \
#       -e WINDLASS_SERVE_API_KEY_FILE=/run/secrets/windlass-keys windlass
#   docker run -p 127.0.0.1:8000:8000 windlass --insecure
#   docker run ... -v /where/models/are:/models:ro windlass /models/NAME --quantization q4f16_1
#
# Inside, the server listens on all addresses, since 127.0.0.1 of a container is reached by nobody else. It does so only
# with a key (a file with one per line, readable for user 10001), or with --insecure, as in the second example, where the
# port is published to this machine alone. After `docker stop`, open answers have --drain-timeout seconds (30) to end, so
# stop it with --time 40.

ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY CMakeLists.txt LICENSE README.md pyproject.toml ./
COPY csrc csrc
COPY src src
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir "$(echo /wheels/windlass-*.whl)[server,hub]" && \
    useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin windlass && \
    install -d -o windlass -g windlass /cache

# Packed weights, and what HF:// names download, outlive the container in this volume.
ENV WINDLASS_CACHE_DIR=/cache/windlass \
    HF_HOME=/cache/huggingface \
    WINDLASS_SERVE_HOST=0.0.0.0 \
    WINDLASS_SERVE_PORT=8000 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
VOLUME /cache
EXPOSE 8000

# By number, so that Kubernetes can see that it is not root.
USER 10001:10001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --retries=3 CMD ["python", "-c", "import http.client, os; probe = http.client.HTTPConnection('127.0.0.1', int(os.environ['WINDLASS_SERVE_PORT']), timeout=4); probe.request('GET', '/livez'); raise SystemExit(probe.getresponse().status != 200)"]
ENTRYPOINT ["windlass", "serve"]
