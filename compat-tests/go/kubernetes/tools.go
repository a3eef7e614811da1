//go:build tools

// Package tools names the program that the Kubernetes suite needs, so that go.mod keeps its version.
package tools

import _ "k8s.io/kubernetes/cmd/kube-apiserver"
