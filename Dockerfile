# docker build -t sepal:0.1.0 .      (deploy/README.md says more)
#
# The binary is static, because it is also the CNI plugin and then runs on the host, with any libc.
FROM rust:1.95-alpine3.22 AS build
RUN apk add --no-cache gcc linux-headers musl-dev
# Stores the list of crates in the binary for vulnerability scanners.
RUN cargo install --locked --version 0.7.7 cargo-auditable
WORKDIR /src
COPY . .
RUN cargo auditable build --release --locked --bin sepal

FROM debian:bookworm-slim AS tools
COPY deploy/image-files /
RUN apt-get update \
 && apt-get install -y --no-install-recommends iptables nftables \
 && /image-files /image

FROM scratch
COPY --from=tools /image /
COPY --from=build /src/target/release/sepal /usr/local/bin/sepal
ENV PATH=/usr/local/bin:/usr/sbin
ENTRYPOINT ["sepal"]
