// Command postern is the self-hosted cloud management gateway: every role, the client and the tools in one binary.
//
// Each verb has its file. A verb reads flags, calls one act below, and prints; rules live in the packages.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"postern/catalog"
)

// Exit codes of every command.
const (
	exitFailed  = 1 // it was tried and did not succeed
	exitUsage   = 2 // the command line was not understood
	exitMissing = 3 // the machine lacks something that can be installed
)

func main() {
	os.Exit(Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// Main runs one command line and returns its exit code.
func Main(arguments []string, in io.Reader, out, errOut io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return run(ctx, &session{in: in, out: out, err: errOut, actor: whoami()}, arguments)
}

// run runs one command line in a session.
func run(ctx context.Context, s *session, arguments []string) int {
	root := newRoot(s)
	root.SetArgs(arguments)
	root.SetIn(s.in)
	root.SetOut(s.out)
	root.SetErr(s.err)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	var ended exitError
	if errors.As(err, &ended) {
		return ended.code
	}
	report(s.err, err)
	if catalog.CodeOf(err) == "" && isUsage(err) {
		return exitUsage
	}
	return exitFailed
}

// exitError ends a command with a code after it has said everything itself.
type exitError struct{ code int }

func (e exitError) Error() string { return fmt.Sprintf("exit %d", e.code) }

// usageError marks what cobra found wrong with the command line itself.
type usageError struct{ error }

func isUsage(err error) bool {
	var usage usageError
	return errors.As(err, &usage) || strings.HasPrefix(err.Error(), "unknown command")
}

// report prints an error for a person: what happened, then what to do about it, then the code to look up.
func report(w io.Writer, err error) {
	code := catalog.CodeOf(err)
	entry, known := catalog.Lookup(code)
	if !known {
		fmt.Fprintf(w, "postern: %v\n", err)
		return
	}
	var coded *catalog.Error
	errors.As(err, &coded)
	fmt.Fprintf(w, "postern: %s: %s\n", code, entry.Title)
	if coded.Detail != "" {
		fmt.Fprintf(w, "  %s\n", coded.Detail)
	}
	if coded.Err != nil {
		fmt.Fprintf(w, "  (%v)\n", coded.Err)
	}
	for i, step := range entry.Remedy {
		lead := "  do: "
		if i > 0 {
			lead = "      "
		}
		fmt.Fprintf(w, "%s%s\n", lead, strings.Join(strings.Fields(step), " "))
	}
}

// newRoot builds the command tree.
func newRoot(s *session) *cobra.Command {
	root := &cobra.Command{
		Use:   "postern",
		Short: "Self-hosted cloud management gateway",
		Long: `Postern is a self-hosted cloud management gateway: devices on the internet prove who they are
and reach their management point, and no firewall port is opened inwards.

Independent of Microsoft.`,
		Example: `  postern lab                 the whole hierarchy on loopback, and a device that enrols
  postern site init --help    how a real deployment begins`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version(),
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see `%s --help`", err, c.CommandPath())}
	})
	root.AddCommand(
		newLab(s), newServe(s), newSite(s), newGateway(s), newConnector(s), newToken(s), newTenant(s), newAuthority(s), newDevice(s), newConflict(s), newPolicy(s), newClient(s),
		newStatus(s), newLog(s), newRoutes(s), newDoctor(s), newKerberos(s), newBackup(s), newRestore(s), newExplain(s), newExplainCode(s), newVersion(s),
	)
	return root
}
