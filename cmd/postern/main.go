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
	"postern/diag"
)

// Exit codes of every command.
const (
	exitFailed  = 1 // it was tried and did not succeed
	exitUsage   = 2 // the command line was not understood
	exitMissing = 3 // the machine lacks something that can be installed

	exitUnconfirmed = 4 // it was done, and some gateway has not confirmed it in time
)

func main() {
	os.Exit(Main(calledAs(os.Args[0], os.Args[1:]), os.Stdin, os.Stdout, os.Stderr))
}

// Main runs one command line and returns its exit code.
func Main(arguments []string, in io.Reader, out, errOut io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return run(ctx, &session{in: in, out: out, err: errOut, actor: whoami()}, arguments)
}

// run runs one command line in a session.
func run(ctx context.Context, s *session, arguments []string) int {
	arguments, err := fromBulkTool(arguments)
	if err != nil {
		report(s.err, err)
		return exitUsage
	}
	root := newRoot(s)
	root.SetArgs(arguments)
	root.SetIn(s.in)
	root.SetOut(s.out)
	root.SetErr(s.err)
	command, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	var ended exitError
	if errors.As(err, &ended) {
		return ended.code
	}
	if catalog.CodeOf(err) != "" || !isUsage(err) {
		report(s.err, err)
		return exitFailed
	}
	report(s.err, withHelp(command, err))
	return exitUsage
}

// exitError ends a command with a code after it has said everything itself.
type exitError struct{ code int }

func (e exitError) Error() string { return fmt.Sprintf("exit %d", e.code) }

// usageError marks what cobra found wrong with the command line itself.
type usageError struct{ error }

func isUsage(err error) bool {
	var usage usageError
	return errors.As(err, &usage) || strings.HasPrefix(err.Error(), "unknown command") || strings.HasPrefix(err.Error(), "required flag(s)")
}

// withHelp says where help is, and how the command is typed, in a refusal that does not say so by itself.
func withHelp(c *cobra.Command, err error) error {
	if strings.Contains(err.Error(), "--help`") {
		return err
	}
	return fmt.Errorf("%w; see `%s --help`", err, c.CommandPath())
}

// judgeArguments marks the refusals of a command's arguments, and of those below it, as usage errors that say how it is typed and where help is.
func judgeArguments(c *cobra.Command) {
	if judge := c.Args; judge != nil {
		c.Args = func(c *cobra.Command, arguments []string) error {
			err := judge(c, arguments)
			switch {
			case err == nil:
				return nil
			case !isUsage(err): // cobra's own, which counts
				err = fmt.Errorf("%w: `%s`", err, strings.TrimSuffix(c.UseLine(), " [flags]"))
			}
			return usageError{withHelp(c, err)}
		}
	}
	for _, below := range c.Commands() {
		judgeArguments(below)
	}
}

// report prints an error for a person: what happened, then what to do about it, then the code to look up. A peer may have had a part in the
// words, so nothing in them reaches the terminal but text.
func report(w io.Writer, err error) {
	code := catalog.CodeOf(err)
	entry, known := catalog.Lookup(code)
	if !known {
		fmt.Fprintf(w, "postern: %s\n", lines(err.Error(), "  "))
		return
	}
	var coded *catalog.Error
	errors.As(err, &coded)
	fmt.Fprintf(w, "postern: %s: %s\n", code, entry.Title)
	if coded.Detail != "" {
		fmt.Fprintf(w, "  %s\n", lines(coded.Detail, "  "))
	}
	if coded.Err != nil {
		fmt.Fprintf(w, "  (%s)\n", lines(coded.Err.Error(), "   "))
	}
	for i, step := range entry.Remedy {
		lead := "  do: "
		if i > 0 {
			lead = "      "
		}
		fmt.Fprintf(w, "%s%s\n", lead, strings.Join(strings.Fields(step), " "))
	}
}

// lines keeps the line breaks of a text, with the lead before all lines but the first, and shows its other control characters.
func lines(text, lead string) string {
	split := strings.Split(strings.TrimRight(text, "\n"), "\n")
	for i := range split {
		split[i] = diag.Printable(split[i])
	}
	return strings.Join(split, "\n"+lead)
}

// newRoot builds the command tree.
func newRoot(s *session) *cobra.Command {
	root := &cobra.Command{
		Use:   "postern",
		Short: "Self-hosted cloud management gateway",
		Long: `Postern is a self-hosted cloud management gateway: devices on the internet prove who they are
and reach their management point, and no firewall port is opened inwards.

Independent of Microsoft.`,
		Example: `  postern lab                 # the whole hierarchy on loopback, and a device that enrols
  postern site init --help    # how a real deployment begins`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version(),
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see `%s --help`", err, c.CommandPath())}
	})
	root.AddCommand(
		newLab(s), newSwarm(s), newServe(s), newSite(s), newGateway(s), newConnector(s), newToken(s), newTenant(s), newAuthority(s), newDevice(s), newConflict(s), newRevocation(s), newPolicy(s), newAudit(s), newKey(s), newClient(s),
		newStatus(s), newLog(s), newRoutes(s), newDoctor(s), newSupportBundle(s), newKerberos(s), newAnalyze(s), newPreflight(s), newBackup(s), newRestore(s), newExplain(s), newExplainCode(s), newVersion(s),
	)
	judgeArguments(root)
	return root
}
