//go:build tools

// Package tools pins the commands of the Prometheus operator, whose own go.mod `go install` refuses.
package tools

import (
	_ "github.com/prometheus-operator/prometheus-operator/cmd/operator"
	_ "github.com/prometheus-operator/prometheus-operator/cmd/prometheus-config-reloader"
)
