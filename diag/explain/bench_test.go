package explain

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// siteLogs writes the logs of a busy day, so many bytes of each kind: a client's, a connection point's and a web server's. The
// same bytes each time.
func siteLogs(tb testing.TB, folder string, size int) (paths []string, total int64) {
	tb.Helper()
	client := noiseLines(11, 4000)
	incident, err := os.ReadFile("../testdata/incidents/s2-renewal/logs/CcmMessaging.log")
	if err != nil {
		tb.Fatal(err)
	}
	client = append(client, incident...)
	var connector, web bytes.Buffer
	at := time.Date(2024, 3, 11, 0, 0, 0, 0, time.UTC)
	web.WriteString("#Fields: date time s-ip cs-method cs-uri-stem cs-uri-query s-port cs-username c-ip cs(User-Agent) cs(Referer) sc-status sc-substatus sc-win32-status time-taken\r\n")
	for i := range 4000 {
		at = at.Add(700 * time.Millisecond)
		fmt.Fprintf(&connector, "MessageID: %08x-b82c-4950-b972-e82bb0fb8385 RequestURI: https://MP.MYCORP.COM/CCM_STS EndpointName: CCM_STS ResponseHeader: HTTP/1.1 200 OK ~~ ResponseBodySize: %d ElapsedTime: 2 ms~~  $$<SMS_CLOUD_PROXYCONNECTOR><%s+00><thread=4992 (0x1380)>\r\n",
			i*7919, 800+i, at.Format("01-02-2006 15:04:05.000"))
		fmt.Fprintf(&web, "%s 10.0.0.5 CCM_POST /ccm_system_tokenauth/request - 443 - 10.20.%d.%d ccmhttp - 200 0 0 %d\r\n", at.Format(time.DateTime), i%250, i%253, i%90)
	}
	for name, part := range map[string][]byte{"CcmMessaging.log": client, "SMS_CLOUD_PROXYCONNECTOR.log": connector.Bytes(), "u_ex240311.log": web.Bytes()} {
		path := filepath.Join(folder, name)
		file, err := os.Create(path)
		if err != nil {
			tb.Fatal(err)
		}
		for written := 0; written < size; written += len(part) {
			file.Write(part)
			total += int64(len(part))
		}
		if err := file.Close(); err != nil {
			tb.Fatal(err)
		}
		paths = append(paths, path)
	}
	return paths, total
}

// BenchmarkExplainBesideGrep reads the logs of a site, and lets grep count in the same files in the same run. Both use one core.
func BenchmarkExplainBesideGrep(b *testing.B) {
	paths, total := siteLogs(b, b.TempDir(), 64<<20)
	b.SetBytes(total)
	var explained, counted time.Duration // of the processor, because the machine may have other work
	for b.Loop() {
		begin := processorTime(b)
		if _, err := Run(b.Context(), Input{Paths: paths}); err != nil {
			b.Fatal(err)
		}
		explained += processorTime(b) - begin
		grep := exec.Command("grep", append([]string{"-c", "CMGConnector_Forbidden"}, paths...)...)
		if out, err := grep.CombinedOutput(); err != nil && len(out) == 0 {
			b.Fatalf("grep: %v", err)
		}
		counted += grep.ProcessState.UserTime() + grep.ProcessState.SystemTime()
	}
	b.ReportMetric(float64(total)*float64(b.N)/1e6/explained.Seconds(), "MB/s-explain")
	b.ReportMetric(float64(total)*float64(b.N)/1e6/counted.Seconds(), "MB/s-grep")
	b.ReportMetric(explained.Seconds()/counted.Seconds(), "times-grep")
}

// processorTime is what the test has used of the processor.
func processorTime(tb testing.TB) time.Duration {
	tb.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func readAll(b *testing.B, content []byte) {
	begin, n := processorTime(b), 0
	for b.Loop() {
		if _, err := Run(b.Context(), Input{Paths: []string{"-"}, Stdin: bytes.NewReader(content)}); err != nil {
			b.Fatal(err)
		}
		n++
	}
	b.ReportMetric(float64(len(content))*float64(n)/1e6/(processorTime(b)-begin).Seconds(), "MB/s-of-a-core")
}

// BenchmarkKinds reads each kind of log by itself.
func BenchmarkKinds(b *testing.B) {
	paths, _ := siteLogs(b, b.TempDir(), 32<<20)
	for _, path := range paths {
		content, err := os.ReadFile(path)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(filepath.Base(path), func(b *testing.B) {
			readAll(b, content)
		})
		b.Run(filepath.Base(path)+" in UTF-16", func(b *testing.B) {
			_, wide := toUTF16("", content[:len(content)/2])
			readAll(b, wide)
		})
	}
}
