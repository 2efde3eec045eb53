# One static program in an empty image: no shell, no libraries, no package manager.
#
#   docker build -t finial/finial:0.1.0 .
#   docker build --platform linux/arm64 -t finial/finial:0.1.0 .
#
# The tag below moves when Debian or Rust mend something. To build the same from the same, give what it stood for:
#
#   docker build --build-arg RUST_IMAGE=rust@sha256:… -t finial/finial:0.1.0 .
#
# Nothing of that image but the program and the list of public authorities comes into the second one.

ARG RUST_IMAGE=rust:1.95-bookworm
FROM ${RUST_IMAGE} AS build
WORKDIR /src
COPY . .
# Linked statically and still loaded at an address that changes; relative relocations are packed, which saves a tenth.
ENV RUSTFLAGS="-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs"
RUN target=$(rustc -vV | sed -n 's/^host: //p') \
 # The linker of x86_64 makes one of functions with the same code; that of arm64 does not know how.
 && case "$target" in x86_64-*) RUSTFLAGS="$RUSTFLAGS -C link-arg=-Wl,--icf=all";; esac \
 && cargo build --release --locked --bin finial --target "$target" \
 && install -D "target/$target/release/finial" /image/usr/bin/finial \
 # Public authorities: who serves a foreign bundle by https_web, or the agents' trust_bundle_url.
 && install -D -m 644 /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ca-certificates.crt \
 # The names and places of SPIRE's images, for scripts that run commands in a pod.
 && mkdir -p /image/opt/spire/bin \
 && ln -s /usr/bin/finial /image/opt/spire/bin/spire-server \
 && ln -s /usr/bin/finial /image/opt/spire/bin/spire-agent

FROM scratch
LABEL org.opencontainers.image.title="Finial" \
      org.opencontainers.image.description="SPIFFE workload identity: server, agent and command line" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /image/ /
ENV PATH="/usr/bin:/opt/spire/bin"
USER 1000:1000
ENTRYPOINT ["/usr/bin/finial"]
