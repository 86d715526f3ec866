package main

import (
	"bytes"
	"context"
	"strings"
	"testing"
)

// TestInterruptedDiagnosisIsNoSuccess: checks that were not made have found nothing, which is not the same as nothing being wrong.
func TestInterruptedDiagnosisIsNoSuccess(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var out bytes.Buffer
	got := run(ctx, &session{in: strings.NewReader(""), out: &out, err: &out, actor: "anna"}, []string{"preflight", "gateway", "--name", "gw1", "--domain", "contoso.invalid"})
	if got != exitFailed || !strings.Contains(out.String(), " 0 failed, 10 not told") {
		t.Errorf("exit %d:\n%s", got, out.String())
	}
}
