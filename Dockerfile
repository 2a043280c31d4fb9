# syntax=docker/dockerfile:1.10
#
# zoho-worker as an image. Two targets:
#
#   production   worker without the sandbox: 27 MiB of binary, nothing else   (the default: it is last)
#   sandbox      worker with `dev` and `simulator` (nats-server, an imitation of Redis,
#                Zoho): 39 MiB, for trying things out
#
#   docker build -t zoho-worker:0.1.0 --build-arg VERSION=0.1.0 .
#   docker build -t zoho-worker-sandbox:0.1.0 --build-arg VERSION=0.1.0 --target sandbox .
#
# Reproducible: the same commit and VERSION give the same binary on every machine
# (-trimpath, no build id, no VCS stamp, no cgo). For the same image layers too:
#
#   SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) docker buildx build \
#     --output type=docker,rewrite-timestamp=true --provenance=false -t zoho-worker:0.1.0 --build-arg VERSION=0.1.0 .
#
# The base images are pinned by tag. Tags move, digests do not: a release pipeline
# with access to the registries should replace them (`docker buildx imagetools
# inspect IMAGE`, then IMAGE@sha256:…) and let a bot keep them fresh.
ARG GO_IMAGE=golang:1.26.8-bookworm
# distroless has no version tags; "nonroot" runs as uid 65532 and has CA certificates.
ARG BASE_IMAGE=gcr.io/distroless/static-debian12:nonroot

FROM --platform=$BUILDPLATFORM ${GO_IMAGE} AS build
WORKDIR /src
ENV CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS="-trimpath -buildvcs=false"
# Modules first: they change less often than the code.
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
COPY schemas schemas
COPY internal internal
COPY cmd cmd
ARG TARGETOS
ARG TARGETARCH
ARG VERSION=0.1.0-dev

FROM build AS build-production
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    GOOS=${TARGETOS} GOARCH=${TARGETARCH} go build -tags production,grpcnotrace \
    -ldflags "-s -w -buildid= -X zoho-worker/internal/app.Version=${VERSION}" -o /out/worker ./cmd/worker

FROM build AS build-sandbox
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    GOOS=${TARGETOS} GOARCH=${TARGETARCH} go build -tags grpcnotrace \
    -ldflags "-s -w -buildid= -X zoho-worker/internal/app.Version=${VERSION}" -o /out/worker ./cmd/worker

FROM ${BASE_IMAGE} AS sandbox
COPY --from=build-sandbox /out/worker /usr/bin/worker
USER 65532:65532
EXPOSE 8080 4222
ENTRYPOINT ["/usr/bin/worker"]
CMD ["dev", "--nats-addr", "0.0.0.0:4222", "--http-addr", "0.0.0.0:8080", "--zoho-addr", "127.0.0.1:8090"]

FROM ${BASE_IMAGE} AS production
ARG VERSION=0.1.0-dev
LABEL org.opencontainers.image.title="zoho-worker" \
      org.opencontainers.image.description="Call the Zoho CRM API by publishing a message" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build-production /out/worker /usr/bin/worker
# By number, so that Kubernetes' runAsNonRoot can tell.
USER 65532:65532
EXPOSE 8080
# Compose and plain Docker ask this; Kubernetes has probes of its own.
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 CMD ["/usr/bin/worker", "healthz"]
ENTRYPOINT ["/usr/bin/worker"]
CMD ["run"]
