// Package deploy checks what stands in deploy/, the Dockerfile and
// docker-compose.yml, without a cluster and without a Docker engine: manifests
// are rendered and held against the schemas of Kubernetes, KEDA, the Prometheus
// operator and External Secrets; rules are tried by promtool; the dashboard and
// the rules may only name metrics that a worker has.
//
// It is a module of its own, so that nobody who builds the worker needs any of this.
package deploy
