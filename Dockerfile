# The server with its Python clients beside it. Three stages are thrown away; the last one is the image.
#
#   docker build . -t p3
#   docker run --name=server -d -m 512m -v "$PWD/inputs:/inputs" p3
#   docker exec server python3 upload.py /inputs/simple.csv
#
# Written for every builder, the classic one too: no RUN --mount, no heredocs, no COPY --chmod.

# What the clients need at run time: a Python, here once for the stage that prepares their packages and for the image,
# so that both have the same one.
FROM debian:bookworm-slim AS runtime
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log


FROM rust:1-slim-bookworm AS binary
WORKDIR /src
# The dependencies in a layer of their own, built for an empty program: a change of the source does not rebuild them.
# What was built of the empty program must go, or cargo takes it for the real one, whose files are older.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src \
    && echo 'fn main() {}' | tee build.rs > src/main.rs \
    && touch src/lib.rs \
    && cargo build --release --locked \
    && cargo clean --release --package tally
COPY build.rs ./
COPY proto proto
COPY src src
RUN cargo build --release --locked


FROM runtime AS python
RUN apt-get update && apt-get install -y --no-install-recommends python3-venv
WORKDIR /build
# The tests' list of versions holds here too, so what was tested is what is shipped.
COPY tests/python/requirements.txt ./
RUN python3 -m venv venv \
    && venv/bin/pip install --no-cache-dir --only-binary :all: --constraint requirements.txt grpcio-tools \
    && venv/bin/pip install --no-cache-dir --only-binary :all: --constraint requirements.txt --no-compile \
        --target packages grpcio protobuf
COPY proto proto
COPY clients app
# Nobody may write byte code in the image, so it is made here. It is not checked against the sources' times again,
# because not every builder keeps them.
RUN venv/bin/python -m grpc_tools.protoc -Iproto --python_out=app --grpc_python_out=app proto/*.proto \
    && python3 -m compileall -q --invalidation-mode unchecked-hash packages app


FROM runtime
LABEL org.opencontainers.image.title="Tally" \
      org.opencontainers.image.description="A table server: CSV in over gRPC, kept as CSV and as Parquet, exact sums" \
      org.opencontainers.image.licenses="Apache-2.0"
# /data alone can be written: it belongs to the server's user, and the folders that Debian opens to everyone are closed.
# /tmp goes altogether, because `--tmpfs /tmp` would give its own the closed one's mode; without one it is open to all.
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
    TALLY_HTTP="0.0.0.0:5000,[::]:5000"
# By number, so that an orchestrator can see that it is not root.
USER 10001:10001
WORKDIR /app
VOLUME /data
EXPOSE 5440 5000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=10s --start-period=30s --retries=3 CMD ["tally", "health"]
# No ENTRYPOINT: `docker run p3` serves, and `docker run p3 tally --help` or `docker run -it p3 bash` is what it says.
CMD ["tally", "serve"]
