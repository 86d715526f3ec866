package main

import (
	"bytes"
	"strings"
	"testing"

	"postern/site"
)

func TestEvidenceStandsInOneColumn(t *testing.T) {
	facts := map[string]string{"account": "WK1$", "own-computer-account": "yes", "hint-by-former-key": "abc"}
	var device, conflict bytes.Buffer
	showDevice(&device, site.Device{ClientID: "GUID:1", Approval: site.Approval{Evidence: facts}, Block: site.Block{By: "anna@hq", Why: "found"}}, nil)
	showConflict(&conflict, site.Conflict{ID: "3f2a", Kind: site.ConflictKey, State: site.ConflictMerged, Evidence: facts, By: "bert@hq", Why: "seen"})
	for name, text := range map[string]string{"device": device.String(), "conflict": conflict.String()} {
		column := strings.Index(text, "yes") - strings.LastIndex(text[:strings.Index(text, "yes")], "\n")
		for line := range strings.Lines(text) {
			if len(line) <= column || line[column-2] != ' ' || line[column-1] == ' ' {
				t.Errorf("%s: %q has no value in column %d", name, line, column)
			}
		}
	}
	for _, want := range []string{"unblocked ", "by anna@hq at ", ": found"} {
		if !strings.Contains(device.String(), want) {
			t.Errorf("no %q in\n%s", want, device.String())
		}
	}
}
