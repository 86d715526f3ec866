package entra

import (
	"context"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/windows"

	"postern/catalog"
)

// statusTime bounds "dsregcmd /status", which asks the tenant in its diagnostics.
const statusTime = time.Minute

// platformJoinState asks the system's own program, of the system's own folder.
func platformJoinState() (JoinState, error) {
	folder, err := windows.GetSystemDirectory()
	if err != nil {
		return JoinState{}, catalog.Wrap(catalog.EntraJoinState, err, "the system folder is not known")
	}
	output, err := run(filepath.Join(folder, "dsregcmd.exe"), "/status")
	if err != nil {
		return JoinState{}, catalog.Wrap(catalog.EntraJoinState, err, "dsregcmd /status")
	}
	return ParseStatus(output)
}

func run(program string, arguments ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), statusTime)
	defer cancel()
	command := exec.CommandContext(ctx, program, arguments...)
	out, err := command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := command.Start(); err != nil {
		return nil, fmt.Errorf("start: %w", err)
	}
	output, err := io.ReadAll(io.LimitReader(out, maxStatus+1))
	if err != nil || len(output) > maxStatus {
		cancel() // whoever prints more is not waited for
	}
	if waited := command.Wait(); err == nil && len(output) <= maxStatus {
		err = waited
	}
	return output, err
}

// windowsBroker stands where Windows' own broker (WAM) would: the workplace-join key and
// the primary refresh token are the system's, and only its broker uses them.
type windowsBroker struct{}

// Token always fails with EntraNeedsBroker.
func (windowsBroker) Token(context.Context, Want) (Token, error) {
	return Token{}, catalog.Errorf(catalog.EntraNeedsBroker, "the workplace-join certificate is in the machine's store")
}

// system returns the platform's own way to a device token.
func system() Signer { return windowsBroker{} }
