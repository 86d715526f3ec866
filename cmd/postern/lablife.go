package main

import (
	"fmt"
	"path/filepath"
	"time"

	"postern/internal/lab"
)

// labNextMoved is what to try in a lab whose story has moved its clock: to look, for a new device has this machine's clock and would be a year behind.
func (s *session) labNextMoved(l *lab.Lab) {
	postern := self()
	fmt.Fprintf(s.out, `
The lab is up. Its clock is %d days ahead of this machine's; for a lab that lets further devices in: %s lab
  logs              %s

To look, in another terminal:
  export POSTERN_CONFIG=%s
  # which way the device uses, since when and why
  %s client status --dir %s
  # its history at the site: approved, blocked, unblocked, quarantined, released
  %s device show laptop1
  # the trust log, checked link by link
  %s audit verify

Ctrl-C stops it.
`, int(l.Ahead()/(24*time.Hour)), postern, filepath.Join(l.Dir, "*", "logs"), filepath.Join(l.Dir, "site", "mp.yaml"), postern, filepath.Join(l.Dir, "device-laptop1"), postern, postern)
}
