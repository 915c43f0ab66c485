# syntax=docker/dockerfile:1
# Images of the two programs: docker build --target server . and docker build --target agent .

# What the images are made of. A digest (debian@sha256:...) is taken as well.
ARG RUST_IMAGE=rust:1.95.0-bookworm
ARG DEBIAN_IMAGE=debian:12.12-slim

FROM ${RUST_IMAGE} AS build
WORKDIR /src
COPY . .
ENV SQLX_OFFLINE=true
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --package wattle-server \
    && cargo build --profile gateway --locked --package wattle-agent \
    && install -D --target-directory=/out target/release/wattle-server target/gateway/wattle-agent

FROM ${DEBIAN_IMAGE} AS server
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --home-dir /var/lib/wattle-server --create-home --shell /usr/sbin/nologin wattle
COPY --from=build /out/wattle-server /usr/local/bin/
COPY LICENSE NOTICE.md /usr/share/doc/wattle/
USER wattle
ENV WATTLE_DATA_DIR=/var/lib/wattle-server WATTLE_LISTEN=0.0.0.0:8443
VOLUME /var/lib/wattle-server
EXPOSE 8443
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=3 \
    CMD ["wattle-server", "healthcheck"]
ENTRYPOINT ["wattle-server"]

# Needs --network=host --cap-add=NET_ADMIN --device=/dev/net/tun, and a volume for its keys. It runs as
# no root: its file has the right to set interfaces, so not with --security-opt=no-new-privileges.
FROM ${DEBIAN_IMAGE} AS agent
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates iproute2 libcap2-bin nftables \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10002 --home-dir /var/lib/wattle --create-home --shell /usr/sbin/nologin wattle \
    && install --directory --owner=wattle --group=wattle --mode=0700 /run/wattle /run/wireguard
COPY --from=build /out/wattle-agent /usr/local/bin/
RUN setcap cap_net_admin,cap_net_raw=p /usr/local/bin/wattle-agent
COPY LICENSE NOTICE.md /usr/share/doc/wattle/
USER wattle
VOLUME /var/lib/wattle
ENTRYPOINT ["wattle-agent"]
CMD ["run"]
