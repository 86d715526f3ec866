package preflight

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"postern/catalog"
	"postern/diag"
	"postern/diag/analyze"
)

// What a gateway wants of its machine.
const (
	wantFree  = 2 << 30
	needFree  = 200 << 20
	wantFiles = 65_536
	needFiles = 4_096
)

// checkClock compares with the time source, or with what the management point said.
func (r *run) checkClock(ctx context.Context) []diag.Finding {
	if r.TimeSource != "" {
		r.date = nil
		if err := r.askTime(ctx); err != nil {
			f := diag.NotLooked("%s: %s", r.TimeSource, analyze.Reason(err))
			f.Title = "the time source does not answer"
			return []diag.Finding{f}
		}
	}
	if r.date == nil {
		return []diag.Finding{diag.NotLooked("there is nothing to compare with; give --time-source or --management-point")}
	}
	return []diag.Finding{analyze.Clocks(r.date.theirs, r.date.ours, "at "+r.date.source)}
}

// askTime asks the Date of a URL, or an NTP server.
func (r *run) askTime(ctx context.Context) error {
	if strings.Contains(r.TimeSource, "://") {
		if _, err := r.ask(ctx, r.TimeSource, r.Proxy, "https", "http"); err != nil {
			return err
		}
		if r.date == nil {
			return errors.New("the answer has no Date")
		}
		return nil
	}
	server := r.TimeSource
	if _, _, err := net.SplitHostPort(server); err != nil {
		server = net.JoinHostPort(strings.Trim(server, "[]"), "123")
	}
	conn, err := (&net.Dialer{Timeout: r.Timeout, Resolver: r.Resolver}).DialContext(ctx, "udp", server)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(r.Timeout))
	theirs, err := simpleTime(conn)
	if err != nil {
		return err
	}
	r.date = &dated{theirs, r.Now(), server}
	return nil
}

// simpleTime asks for the time by SNTP (RFC 4330) to the second; a way of some milliseconds
// does not matter here.
func simpleTime(conn net.Conn) (time.Time, error) {
	question := make([]byte, 48)
	question[0] = 4<<3 | 3 // version 4, client
	if _, err := conn.Write(question); err != nil {
		return time.Time{}, err
	}
	answer := make([]byte, 512)
	n, err := conn.Read(answer)
	switch {
	case err != nil:
		return time.Time{}, err
	case n < 48 || answer[0]&7 != 4 || answer[1] == 0 || answer[1] > 15:
		return time.Time{}, errors.New("what answers does not know the time")
	}
	const since1900 = 2_208_988_800
	seconds := int64(binary.BigEndian.Uint32(answer[40:])) - since1900
	if seconds < 0 {
		seconds += 1 << 32 // the next era, from 2036
	}
	return time.Unix(seconds, 0), nil
}

// checkDisk looks at the file system of the state folder, or of the nearest folder above it
// that exists. Nothing is made.
func (r *run) checkDisk(context.Context) []diag.Finding {
	folder, err := filepath.Abs(r.State)
	if err != nil {
		return []diag.Finding{diag.Found(diag.Fail, catalog.FolderNotWritable, "%s: %s", r.State, analyze.Reason(err))}
	}
	for {
		if _, err := os.Stat(folder); err == nil || folder == filepath.Dir(folder) {
			break
		}
		folder = filepath.Dir(folder)
	}
	free, writable, err := room(folder)
	detail := fmt.Sprintf("%s has %d MiB free for %s", folder, free>>20, r.State)
	switch {
	case err != nil:
		return []diag.Finding{diag.NotLooked("%s: %s", folder, analyze.Reason(err))}
	case free < needFree:
		return []diag.Finding{diag.Found(diag.Fail, catalog.DiskFull, "%s, wanted are %d", detail, wantFree>>20)}
	case free < wantFree:
		return []diag.Finding{diag.Found(diag.Warn, catalog.MachineTooSmall, "%s, wanted are %d", detail, wantFree>>20)}
	case !writable:
		return []diag.Finding{diag.Found(diag.Warn, catalog.FolderNotWritable, "%s, and this user may not write there; the gateway's user must", detail)}
	}
	return []diag.Finding{diag.Good("there is room", "%s", detail)}
}

// checkFiles looks at the limit of open files of this process: that of the shell or unit
// that starts it.
func (r *run) checkFiles(context.Context) []diag.Finding {
	limit, err := openFiles()
	detail := fmt.Sprintf("%d files and connections may be open at once, under the limits of this shell", limit)
	switch {
	case err != nil:
		return []diag.Finding{diag.NotLooked("%v", err)}
	case limit < needFiles:
		return []diag.Finding{diag.Found(diag.Fail, catalog.MachineTooSmall, "%s; wanted are %d", detail, wantFiles)}
	case limit < wantFiles:
		return []diag.Finding{diag.Found(diag.Warn, catalog.MachineTooSmall, "%s; wanted are %d, for some ten thousand devices at once", detail, wantFiles)}
	}
	return []diag.Finding{diag.Good("enough connections may be open", "%s", detail)}
}
