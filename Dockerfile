# Images of the two programs, made of their packages. Run scripts/package first, then
# docker build --target server --tag wattle-server . and docker build --target agent --tag wattle-agent .

# What both are made of. A digest (debian@sha256:...) is taken as well.
ARG DEBIAN_IMAGE=debian:12.12-slim

FROM ${DEBIAN_IMAGE} AS server
COPY target/package/wattle-server_*.deb /tmp/
# The user has this number in each image, as volumes remember it.
RUN useradd --uid 10001 --home-dir /var/lib/wattle-server --create-home --shell /usr/sbin/nologin wattle-server \
    && apt-get update \
    && apt-get install --yes --no-install-recommends systemd-standalone-sysusers /tmp/wattle-server_*.deb \
    && rm -rf /tmp/*.deb /var/lib/apt/lists/*
USER wattle-server
ENV WATTLE_DATA_DIR=/var/lib/wattle-server WATTLE_LISTEN=0.0.0.0:8443
VOLUME /var/lib/wattle-server
EXPOSE 8443
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=3 \
    CMD ["wattle-server", "healthcheck"]
ENTRYPOINT ["wattle-server"]

# Needs --network=host --cap-add=NET_ADMIN --device=/dev/net/tun, and a volume for its keys. It does not
# run as root: its file has the right to set interfaces, so not with --security-opt=no-new-privileges.
FROM ${DEBIAN_IMAGE} AS agent
COPY target/package/wattle-agent_*.deb /tmp/
RUN useradd --uid 10002 --home-dir /var/lib/wattle --create-home --shell /usr/sbin/nologin wattle \
    && apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates iproute2 libcap2-bin \
        systemd-standalone-sysusers systemd-standalone-tmpfiles /tmp/wattle-agent_*.deb \
    && rm -rf /tmp/*.deb /var/lib/apt/lists/* \
    && install --directory --owner=wattle --group=wattle --mode=0700 /run/wattle /run/wireguard \
    && setcap cap_net_admin,cap_net_raw=p /usr/bin/wattle-agent
USER wattle
VOLUME /var/lib/wattle
ENTRYPOINT ["wattle-agent"]
CMD ["run"]
