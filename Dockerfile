# fledge as an image. Make the package first (make deb), for each platform of the image:
#     docker build -t fledge .
#     docker run --rm -v "$PWD:/work" -u "$(id -u):$(id -g)" fledge build
ARG BASE=debian:bookworm-slim
FROM ${BASE}
COPY dist/fledge_*.deb /tmp/
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        "/tmp/$(cd /tmp && echo fledge_*_"$(dpkg --print-architecture)".deb)" \
    && apt-get clean \
    && rm -rf /tmp/* /var/lib/apt/lists/* /var/log/* /var/cache/* \
    && mkdir -m 1777 /var/cache/fledge
# Any user may run it and cache there, also one without a name or a home.
ENV FLEDGE_CACHE_DIR=/var/cache/fledge
USER 65532:65532
WORKDIR /work
ENTRYPOINT ["fledge"]
