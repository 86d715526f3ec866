package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"postern/catalog"
	"postern/internal/lab"
)

func newLab(s *session) *cobra.Command {
	var once bool
	var name, dir string
	c := &cobra.Command{
		Use:   "lab",
		Short: "Run the whole hierarchy on loopback and watch a device enrol",
		Long: `Brings up a site, a management point, a gateway and a connector on loopback, with real TLS and real listeners, and tells a story on them:
each hop is a line with what was proved there and how long it took. Nothing listens beyond this machine.

Stories:
` + storiesHelp(),
		Example: `  postern lab                       # stays up and prints what to try next
  postern lab --once                # ends after the story; exit status 0 when every step went well
  postern lab --story life          # one device from its first day to its return after a year
  postern lab --json | jq .ok       # the same as one JSON document
  postern lab --dir lab             # keeps its data and logs in a folder`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			story, err := lab.FindStory(name)
			if err != nil {
				return err
			}
			return s.lab(c.Context(), story, dir, once || s.asJSON)
		},
	}
	c.Flags().BoolVar(&once, "once", false, "end after the story")
	c.Flags().BoolVar(&s.asJSON, "json", false, "print one JSON document and nothing else; implies --once")
	c.Flags().StringVar(&name, "story", "enrol", "the story to tell")
	c.Flags().StringVar(&dir, "dir", "", "folder for data and logs, kept afterwards (default: a temporary folder)")
	return c
}

func storiesHelp() string {
	var b strings.Builder
	for _, story := range lab.Stories() {
		fmt.Fprintf(&b, "  %-8s %s\n", story.Name, story.About)
	}
	return b.String()
}

// labReport is the JSON form of a story.
type labReport struct {
	OK    bool         `json:"ok"`
	Story string       `json:"story"`
	Steps []lab.Step   `json:"steps"`
	Code  catalog.Code `json:"code,omitempty"` // of what ended it before its end
	Error string       `json:"error,omitempty"`
}

func (s *session) lab(ctx context.Context, story lab.Story, dir string, once bool) error {
	if err := story.Ready(); err != nil {
		report(s.err, err)
		return exitError{exitMissing}
	}
	folder, remove, err := labFolder(dir)
	if err != nil {
		return err
	}
	defer remove()
	options := lab.Options{Dir: folder, HTTP: true, Verbs: func() lab.VerbMaker { return verbs }}
	if !s.asJSON {
		fmt.Fprintf(s.out, "Postern lab, story %q. Data and logs: %s\n\n", story.Name, folder)
		options.Report = s.labLine()
	}
	l, err := story.Start(ctx, options)
	if err == nil {
		defer l.Stop()
		err = l.Tell(ctx, story)
	}
	if s.asJSON {
		return s.labJSON(story, l, err)
	}
	if err != nil {
		fmt.Fprintln(s.err)
		return err
	}
	if failed := l.FailedSteps(); failed > 0 {
		fmt.Fprintf(s.err, "\npostern: %d steps failed; they are marked FAIL above\n", failed)
		if once {
			return exitError{exitFailed}
		}
	} else if once {
		fmt.Fprintln(s.out, "\nEvery step went well.")
	}
	if once {
		return nil
	}
	s.labNext(l)
	<-ctx.Done()
	fmt.Fprintln(s.out, "\nStopping.")
	return nil
}

func (s *session) labJSON(story lab.Story, l *lab.Lab, failed error) error {
	result := labReport{Story: story.Name, Steps: []lab.Step{}}
	if l != nil { // what the story needs beside the hierarchy did start
		result.OK, result.Steps = failed == nil && l.FailedSteps() == 0, l.Steps()
	}
	if failed != nil {
		result.Code, result.Error = catalog.CodeOf(failed), failed.Error()
	}
	if err := json.NewEncoder(s.out).Encode(result); err != nil {
		return err
	}
	if !result.OK {
		return exitError{exitFailed}
	}
	return nil
}

// labFolder returns the folder of the lab and what removes it when it is temporary.
func labFolder(dir string) (folder string, remove func(), err error) {
	if dir == "" {
		folder, err = os.MkdirTemp("", "postern-lab-")
		return folder, func() { os.RemoveAll(folder) }, err
	}
	folder, err = filepath.Abs(dir)
	if err != nil {
		return "", nil, err
	}
	if _, err := os.Stat(filepath.Join(folder, "site", "mp.yaml")); err == nil {
		return "", nil, catalog.Errorf(catalog.AlreadyExists, "%s holds a lab already; remove it or choose another folder", folder)
	}
	return folder, func() {}, os.MkdirAll(folder, 0o700)
}

// labLine prints steps as they end; colour only on a terminal.
func (s *session) labLine() func(lab.Step) {
	file, isFile := s.out.(*os.File)
	colour := isFile && term.IsTerminal(int(file.Fd())) && os.Getenv("NO_COLOR") == ""
	paint := func(code, text string) string {
		if !colour {
			return text
		}
		return "\x1b[" + code + "m" + text + "\x1b[0m"
	}
	return func(step lab.Step) {
		mark := paint("32", "ok  ")
		if !step.OK {
			mark = paint("31", "FAIL")
		}
		fmt.Fprintf(s.out, "%s %8.1f ms  %s %s\n", mark, step.MS, paint("1", fmt.Sprintf("%-17s", step.Hop)), step.What)
		if step.Error != "" {
			fmt.Fprintf(s.out, "%18s%s\n", "", paint("31", step.Error))
		}
	}
}

// labNext prints what is up and what to try.
func (s *session) labNext(l *lab.Lab) {
	if l.Ahead() > 0 {
		s.labNextMoved(l)
		return
	}
	if l.Gateway == nil {
		s.labNextInside(l)
		return
	}
	config := filepath.Join(l.Dir, "site", "mp.yaml")
	gateway := filepath.Join(l.Dir, "gateway", "gateway.yaml")
	postern := self()
	fmt.Fprintf(s.out, `
The lab is up.
  gateway           https://%s/CCM_Proxy_MutualAuth/ServiceMetadata
  management point  %s  and, in plain HTTP, http://%s
  logs              %s

To try, in another terminal:
  export POSTERN_CONFIG=%s
  # another device
  %s token new --uses 1 > token
  %s client enrol --dir %s --name laptop2 CCMHOSTNAME=%s SMSSITECODE=%s --root-key %s --token-file token
  %s device list
  # a blocked token: the next device is refused at the gateway
  %s token new > token2 && %s token list
  %s token block ID
  # a blocked device
  %s device block laptop1 --why "try it"
  # a stopped connector: devices get 503, and the gateway says why
  %s site connector block lab1 --why "try it" && %s doctor --config %s

Ctrl-C stops it.
`, l.GatewayHost, l.ManagementPointURL(), l.ManagementPoint.Addresses["http"], filepath.Join(l.Dir, "*", "logs"), config, postern, postern,
		filepath.Join(l.Dir, "device-laptop2"), l.HostName(), lab.SiteCode, l.SiteRoot, postern, postern, postern, postern, postern, postern, postern, gateway)
}

// labNextInside is the same for a lab inside a domain.
func (s *session) labNextInside(l *lab.Lab) {
	kerberos, client, server := l.Checks()
	fmt.Fprintf(s.out, `
The lab is up.
  management point  https://%s  and, in plain HTTP, http://%s
  logs              %s

To try, in another terminal:
  export POSTERN_CONFIG=%s KRB5_CONFIG=%s
  %s device list
  # the evidence of the approval
  %s device show WK02-020-51W
  # the way of a ticket step by step, from the computer's seat and from the management point's
  %s kerberos check %s
  %s kerberos check %s
  # no further realm is trusted: the next registration of its computers is refused and says why
  %s site set approval.trusted-realms ""

Ctrl-C stops it.
`, l.ManagementPoint.Addresses["https"], l.ManagementPoint.Addresses["http"], filepath.Join(l.Dir, "*", "logs"), filepath.Join(l.Dir, "site", "mp.yaml"), kerberos,
		self(), self(), self(), client, self(), server, self())
}

// self is how this program was started, for commands that a person can paste.
func self() string {
	path, err := os.Executable()
	if err != nil || strings.Contains(path, "go-build") {
		return "go run ./cmd/postern"
	}
	return path
}
