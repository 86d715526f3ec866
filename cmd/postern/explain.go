package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"postern/catalog"
	"postern/diag/explain"
)

func newExplain(s *session) *cobra.Command {
	var page string
	var redact, follow bool
	var every time.Duration
	c := &cobra.Command{
		Use: "explain PATH...", Short: "Read log files and say what is wrong, what proves it and what to do",
		Long: `Reads log files and says what is wrong: the first wrong thing, the lines that prove it, what to do, and what followed from it.
Where the lines do not decide, it says that it does not know, and what it looked at. Logs of a ConfigMgr site serve as well as Postern's own; no server is asked and nothing is changed.

A PATH is a file, a folder with everything below it, a pattern, a zip archive, a gzip file, or - for standard input. Files are recognised by their content, not by their names:
CcmMessaging, ClientIDManagerStartup, LocationServices, ccmsetup, CCM_STS, MP_RegistrationManager, CMGService, SMS_CLOUD_PROXYCONNECTOR and the like, rotated ones too (.lo_),
access logs of the web server (W3C), and Postern's JSON logs; in UTF-8 or UTF-16. Give the logs of the device and of the servers together: one timeline is made of all.

The exit status is 0 whenever something could be read, whatever it says.`,
		Example: `  postern explain /var/log/postern                     # everything below a folder
  postern explain LocationServices.log CCM_STS.log     # what the device saw, and why
  postern explain 'C:\Windows\CCM\Logs\*.lo*'          # a pattern, rotated files too
  postern explain logs-from-the-user.zip               # an archive, read in place
  postern explain --json logs | jq -r .verdict.code    # for a script; null is "don't know"
  postern explain - < u_ex260101.log                   # standard input
  postern explain logs --html page.html --redact       # a page to mail, without names and addresses
  postern explain --follow /var/log/postern            # again whenever the verdict changes`,
		Args: func(_ *cobra.Command, paths []string) error {
			if len(paths) == 0 && page != "" {
				return usageError{fmt.Errorf("--html takes the file to write, and nothing is left to read: postern explain LOGS --html page.html")}
			}
			if len(paths) == 0 {
				return usageError{fmt.Errorf("name a log file, a folder, an archive, or - for standard input; see `postern explain --help`")}
			}
			if follow && slices.Contains(paths, explain.StdinPath) {
				return usageError{fmt.Errorf("--follow reads files again and again, which standard input cannot be: name files or folders")}
			}
			if every <= 0 {
				return usageError{fmt.Errorf("--every wants a time such as 2s")}
			}
			return nil
		},
		RunE: func(c *cobra.Command, paths []string) error {
			if err := freeForPage(page); err != nil {
				return err
			}
			in := explain.Input{Paths: paths, Stdin: s.in, Progress: s.progress(time.Now)}
			if follow {
				ticker := time.NewTicker(every)
				defer ticker.Stop()
				return explain.Follow(c.Context(), in, ticker.C, func(report explain.Report) {
					if err := s.explained(report, page, redact); err != nil {
						fmt.Fprintln(s.err, err)
					}
				})
			}
			report, err := explain.Run(c.Context(), in)
			if err != nil {
				return err
			}
			return s.explained(report, page, redact)
		},
	}
	c.Flags().BoolVar(&s.asJSON, "json", false, "print JSON")
	c.Flags().StringVar(&page, "html", "", "write one page to this `FILE` that can be mailed: it loads nothing and runs nothing")
	c.Flags().BoolVar(&redact, "redact", false, "replace names, addresses, ids and accounts by placeholders, and leave secrets out")
	c.Flags().BoolVar(&follow, "follow", false, "go on: look at the files again and print the verdict when it changes, until Ctrl-C")
	c.Flags().DurationVar(&every, "every", 2*time.Second, "how often --follow looks")
	return c
}

// explained prints a report, and writes its page when one is wanted.
func (s *session) explained(report explain.Report, page string, redact bool) error {
	if redact {
		report = report.Redacted()
	}
	if page != "" {
		if err := writePage(page, report); err != nil {
			return err
		}
	}
	return s.print(report, report.Write)
}

// freeForPage refuses a file that is there and is no earlier page: a log in its place would be lost.
func freeForPage(path string) error {
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() || info.Size() == 0 {
		return nil // writing it says what is wrong
	}
	file, err := os.Open(path)
	if err != nil {
		return catalog.Wrap(catalog.PageNotWritten, err, "%s is there and cannot be read", path)
	}
	defer file.Close()
	if !explain.IsPage(file) {
		return catalog.Errorf(catalog.PageNotWritten, "%s is no earlier page of postern explain", path)
	}
	return nil
}

// writePage writes the page whole or not at all; to what is no file, such as a terminal or a pipe, as it can be written.
func writePage(path string, report explain.Report) error {
	var content bytes.Buffer
	if err := report.WriteHTML(&content); err != nil {
		return fmt.Errorf("write the page: %w", err)
	}
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		if err := os.WriteFile(path, content.Bytes(), 0o600); err != nil {
			return fmt.Errorf("write the page: %w", err)
		}
		return nil
	}
	file, err := os.CreateTemp(filepath.Dir(path), ".explain-*")
	if err != nil {
		return fmt.Errorf("write the page: %w", err)
	}
	defer os.Remove(file.Name())
	_, err = file.Write(content.Bytes())
	if err = errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("write the page: %w", err)
	}
	if err := os.Rename(file.Name(), path); err != nil {
		return fmt.Errorf("write the page: %w", err)
	}
	return nil
}

// progress returns what shows on a terminal how far a reading is that takes more than a second; nil where there is no terminal.
func (s *session) progress(now func() time.Time) func(explain.Progress) {
	file, isFile := s.err.(*os.File)
	if !isFile || !term.IsTerminal(int(file.Fd())) {
		return nil
	}
	return showProgress(file, now)
}

// showProgress writes a line that is overwritten, at most ten times a second.
func showProgress(w io.Writer, now func() time.Time) func(explain.Progress) {
	begin := now()
	shown := begin
	return func(p explain.Progress) {
		at := now()
		switch {
		case p.Done == p.Files && shown != begin:
			fmt.Fprint(w, "\r\x1b[K")
		case at.Sub(begin) >= time.Second && at.Sub(shown) >= 100*time.Millisecond:
			shown = at
			fmt.Fprintf(w, "\r\x1b[K%d MB, %d of %d files", p.Bytes>>20, p.Done, p.Files)
		}
	}
}
