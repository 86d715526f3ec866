package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"postern/catalog"
	"postern/client/entra"
)

// joinState is `postern client join-state`.
func (s *session) joinState() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use: "join-state", Short: "Show how this device belongs to its tenant of Entra, what is missing for a token, and what to do", Args: cobra.NoArgs,
		Long: `Shows what "dsregcmd /status" shows of a device's join, and looks at the workplace-join certificate that the device proves itself with.

On Windows it runs that program. Elsewhere it reads the join state file: the one of --file, else of POSTERN_JOIN_STATE, else /etc/postern/join-state.json.
Such a file needs {"join_type": "entra", "tenant_id": GUID, "device_id": GUID, "workplace_join": {"certificate": FILE, "key": FILE}}, and only its
owner may write to it.

Nothing is sent. Exit status 1 when the device cannot ask for its own token; a person who signs in may still get one.`,
		Example: "  postern client join-state\n  postern client join-state --file join-state.json --json",
		RunE: func(c *cobra.Command, _ []string) error {
			if given := c.Flag("join-state"); given != nil { // of all the client's commands
				file = cmp.Or(file, given.Value.String())
			}
			read := entra.PlatformJoinState
			if file != "" {
				read = func() (entra.JoinState, error) { return entra.ReadJoinState(file) }
			}
			state, err := read()
			if err != nil {
				return err
			}
			return s.printJoinState(state, entra.Examine(state, time.Now()))
		},
	}
	c.Flags().StringVar(&file, "file", "", "the join state file")
	return c
}

// joinProblem is one thing that is missing.
type joinProblem struct {
	Code   catalog.Code `json:"code"`
	Title  string       `json:"title"`
	Detail string       `json:"detail,omitempty"`
	Remedy []string     `json:"remedy"`
}

// joinReport is what the command prints as JSON.
type joinReport struct {
	Source      string          `json:"source"`
	State       entra.JoinState `json:"state"`
	Certificate struct {
		Thumbprint string    `json:"thumbprint,omitempty"`
		NotBefore  time.Time `json:"not_before,omitzero"`
		NotAfter   time.Time `json:"not_after,omitzero"`
	} `json:"certificate"`
	Missing []joinProblem `json:"missing"`
}

func (s *session) printJoinState(state entra.JoinState, found entra.Examination) error {
	report := joinReport{Source: state.Source, State: state, Missing: []joinProblem{}}
	report.Certificate.Thumbprint, report.Certificate.NotBefore, report.Certificate.NotAfter = found.Thumbprint, found.NotBefore, found.NotAfter
	for _, problem := range found.Problems {
		report.Missing = append(report.Missing, newJoinProblem(problem))
	}
	if err := s.print(report, report.write); err != nil {
		return err
	}
	if len(report.Missing) > 0 {
		return exitError{exitFailed}
	}
	return nil
}

func newJoinProblem(err error) joinProblem {
	problem := joinProblem{Code: catalog.CodeOf(err)}
	entry, _ := catalog.Lookup(problem.Code)
	problem.Title, problem.Remedy = entry.Title, entry.Remedy
	var coded *catalog.Error
	if errors.As(err, &coded) {
		problem.Detail = coded.Detail
	}
	return problem
}

// write prints the sections that administrators know, with their names.
func (r joinReport) write(w io.Writer) {
	j := r.State
	certificate := "-"
	if !r.Certificate.NotAfter.IsZero() {
		certificate = "until " + stamp(r.Certificate.NotAfter)
	}
	for _, section := range []struct {
		title string
		rows  [][2]string
	}{
		{"Device State", [][2]string{
			{"AzureAdJoined", yes(j.Joined())}, {"EnterpriseJoined", yes(j.EnterpriseJoined)}, {"DomainJoined", yes(j.DomainJoined)},
			{"DeviceId", j.DeviceID}, {"DeviceSid", j.DeviceSID}, {"Thumbprint", r.Certificate.Thumbprint},
			{"DeviceCertificateValidity", certificate}, {"Certificate", j.WorkplaceJoin.Certificate}, {"Key", j.WorkplaceJoin.Key},
		}},
		{"Tenant Details", [][2]string{
			{"TenantName", j.TenantName}, {"TenantId", j.TenantID}, {"Provider", string(j.Provider)}, {"Authority", j.Authority},
		}},
		{"User State", [][2]string{
			{"WorkplaceJoined", yes(j.WorkplaceJoined)}, {"User", j.User.Name}, {"UserObjectId", j.User.ObjectID}, {"UserSid", j.User.SID},
		}},
	} {
		fmt.Fprintf(w, "%s\n", section.title)
		t := tabwriter.NewWriter(w, 0, 4, 1, ' ', tabwriter.AlignRight)
		for _, row := range section.rows {
			fmt.Fprintf(t, "  %s\t : %s\n", row[0], cmp.Or(row[1], "-"))
		}
		t.Flush()
		fmt.Fprintln(w)
	}
	fmt.Fprintf(w, "(from %s)\n\n", r.Source)
	r.writeMissing(w)
}

func (r joinReport) writeMissing(w io.Writer) {
	if len(r.Missing) == 0 {
		fmt.Fprintln(w, "Nothing is missing: the device can ask for its own token.")
		return
	}
	fmt.Fprintln(w, "What is missing")
	for _, problem := range r.Missing {
		fmt.Fprintf(w, "  %s %s\n    %s\n", problem.Code, problem.Title, problem.Detail)
		for _, step := range problem.Remedy {
			fmt.Fprintf(w, "    - %s\n", strings.Join(strings.Fields(step), " "))
		}
	}
}

func yes(is bool) string {
	if is {
		return "YES"
	}
	return "NO"
}
