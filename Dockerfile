# The server and its Python clients. The last of the four stages is the image.
#
#   docker build . -t p3
#   docker run --name=server -d -m 512m -v "$PWD/inputs:/inputs" p3
#   docker exec server python3 upload.py /inputs/simple.csv
#
# It works with every builder, also the classic one: no RUN --mount, no heredocs, no COPY --chmod.

# Python, which the clients need at run time. The stage that prepares their packages and the image both begin with this
# stage, so that they have the same Python.
FROM debian:bookworm-slim AS runtime
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log


FROM rust:1-slim-bookworm AS binary
WORKDIR /src
# The dependencies are built in a separate layer, with an empty program, so that a change of the source does not rebuild
# them. The empty program is removed, or cargo would take it for the real one, whose source files are older.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src \
    && echo 'fn main() {}' | tee build.rs > src/main.rs \
    && touch src/lib.rs \
    && cargo build --release --locked \
    && cargo clean --release --package tally
COPY build.rs ./
COPY proto proto
COPY inputs inputs
COPY web web
COPY src src
RUN cargo build --release --locked


FROM runtime AS python
RUN apt-get update && apt-get install -y --no-install-recommends python3-venv
WORKDIR /build
# The versions are those of the tests, so the image has what was tested.
COPY tests/python/requirements.txt ./
RUN python3 -m venv venv \
    && venv/bin/pip install --no-cache-dir --only-binary :all: --constraint requirements.txt grpcio-tools \
    && venv/bin/pip install --no-cache-dir --only-binary :all: --constraint requirements.txt --no-compile \
        --target packages grpcio protobuf
COPY proto proto
COPY clients app
# Byte code is made here, because nobody may write it in the running image. Python does not compare it with the times of the
# source files, because not every builder preserves them.
RUN venv/bin/python -m grpc_tools.protoc -Iproto --python_out=app --grpc_python_out=app proto/*.proto \
    && python3 -m compileall -q --invalidation-mode unchecked-hash packages app


FROM runtime
LABEL org.opencontainers.image.title="Tally" \
      org.opencontainers.image.description="A table server: CSV in over gRPC, kept as CSV and as Parquet, exact sums" \
      org.opencontainers.image.licenses="Apache-2.0"
# Inside the container the server listens on all addresses, and without a token file anyone who reaches them may call it. Which
# of them others reach is decided by `docker run -p`; `-e TALLY_TOKEN_FILE=/run/secrets/...` closes it.
# Only /data can be written: it belongs to the server's user, and the folders that Debian lets everyone write are closed.
# /tmp is removed: if it existed, `--tmpfs /tmp` would take its closed mode; without it, the tmpfs can be written by all.
RUN install -d -o 10001 -g 10001 -m 755 /data \
    && chmod 755 /var/tmp /run/lock \
    && rm -rf /tmp
COPY --from=python /build/packages /opt/python
COPY --from=python /build/app /app
COPY --from=binary /src/target/release/tally /usr/local/bin/tally
ENV PYTHONPATH=/opt/python \
    PYTHONDONTWRITEBYTECODE=1 \
    TALLY_DATA=/data \
    TALLY_GRPC="0.0.0.0:5440,[::]:5440" \
    TALLY_HTTP="0.0.0.0:5000,[::]:5000" \
    TALLY_INSECURE_ALLOW_ANYONE=true
# A number, so that an orchestrator can see that it is not root.
USER 10001:10001
WORKDIR /app
VOLUME /data
EXPOSE 5440 5000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=10s --start-period=30s --retries=3 CMD ["tally", "health"]
# There is no ENTRYPOINT: `docker run p3` serves, and `docker run p3 tally --help` or `docker run -it p3 bash` run these
# commands.
CMD ["tally", "serve"]
