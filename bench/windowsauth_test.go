package main

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"postern/ccm"
	"postern/internal/realms"
	"postern/internal/realms/realmstest"
	"postern/internal/role"
)

const (
	windowsCallers = 16  // keep-alive connections at once
	windowsDevices = 256 // new devices of a round
)

// BenchmarkWindowsAuth registers new devices over keep-alive TLS at a management point with a real KDC's tickets, by both legs as clients of the
// protocol do (401, then the ticket), and beside it the same registrations without proof at ccm_system. It reports registrations per second and
// the CPU time of one, client and TLS included.
func BenchmarkWindowsAuth(b *testing.B) {
	messages := windowsMessages(b, windowsDevices)
	for b.Loop() {
		for _, way := range []struct {
			name, path string
			tickets    bool
		}{{"windowsauth", "/ccm_system_windowsauth/request", true}, {"ccm_system", "/ccm_system/request", false}} {
			w := newWindows(b, way.tickets)
			began, cpu := time.Now(), processTime(b)
			w.registerAll(b, way.path, messages)
			n := float64(len(messages))
			b.ReportMetric(n/time.Since(began).Seconds(), way.name+"/s")
			b.ReportMetric(float64((processTime(b)-cpu).Microseconds())/n, way.name+"-cpu-us")
			w.point.Stop()
		}
	}
}

func processTime(b *testing.B) time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// windows is a management point with a keytab, and tickets for it.
type windows struct {
	point   *role.Running
	base    string
	tickets [][]byte
}

func newWindows(b *testing.B, tickets bool) *windows {
	b.Helper()
	domain := realmstest.Start(b, realms.Options{})
	made, err := role.InitSite(b.Context(), role.NewSite{Dir: filepath.Join(b.TempDir(), "site"), Code: "BEN", HTTPS: "127.0.0.1:0", Actor: "bench"}, role.Protection{}, time.Now)
	if err != nil {
		b.Fatal(err)
	}
	config, err := role.Load(made.Config)
	if err != nil {
		b.Fatal(err)
	}
	host := domain.Host("mp")
	config.Names = append(config.Names, host)
	config.Kerberos.Keytab = domain.MPKeytab()
	w := &windows{}
	if w.point, err = role.StartManagementPoint(b.Context(), config, role.Environment{}); err != nil {
		b.Fatal(err)
	}
	if err := w.point.Site.Set(b.Context(), "approval.trusted-realms", domain.Child, "bench"); err != nil {
		b.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(w.point.Addresses["https"])
	w.base = "https://127.0.0.1:" + port
	if tickets {
		w.tickets = realmstest.Tokens(b, realmstest.Login(b, domain, domain.Child), host, windowsDevices)
	}
	return w
}

// windowsMessage is a registration of a device of its own.
type windowsMessage struct {
	contentType string
	body        []byte
}

func windowsMessages(b *testing.B, n int) []windowsMessage {
	b.Helper()
	all := make([]windowsMessage, n)
	var next atomic.Int64
	var wait sync.WaitGroup
	for range 4 {
		wait.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				m, err := windowsRegistration(i)
				if err != nil {
					b.Error(err)
					return
				}
				all[i] = m
			}
		})
	}
	wait.Wait()
	if b.Failed() {
		b.FailNow()
	}
	return all
}

func windowsRegistration(n int) (windowsMessage, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return windowsMessage{}, err
	}
	cert, err := ccm.NewClientCertificate(key, "ConfigMgr Client Messaging", ccm.UsageSigning|ccm.UsageEncryption, time.Now(), rand.Reader)
	if err != nil {
		return windowsMessage{}, err
	}
	xml, err := ccm.BuildRegistration(ccm.RegistrationRequest{
		Type: ccm.RegistrationTypeRegistration, TimeStamp: time.Now().UTC().Format(time.RFC3339), Agent: ccm.Agent{Identity: "bench", Version: "5.00.9128.1000"},
		Signing: cert, Encryption: cert, KeyType: 1,
		Properties: map[string]string{"NetBIOS Name": "WK02-020-51W", "FQ Name": "wk02-020-51w.child.a2003.vm.local", "HardwareID1": fmt.Sprintf("2:%040X", n)},
	}, key)
	if err != nil {
		return windowsMessage{}, err
	}
	header := ccm.Header{TargetEndpoint: "MP_ClientRegistration", SourceHost: "WK02-020-51W", ReplyTo: "direct:WK02-020-51W:SccmMessaging", ReplyMode: "Sync", Compressed: true, ReplyCompression: "zlib"}
	contentType, body, err := ccm.EncodeRequest(header, xml, nil)
	return windowsMessage{contentType, body}, err
}

func (w *windows) registerAll(b *testing.B, path string, messages []windowsMessage) {
	b.Helper()
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, MaxIdleConnsPerHost: windowsCallers} // the measured path is not the client's trust
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: 30 * time.Second}
	var next atomic.Int64
	var wait sync.WaitGroup
	for range windowsCallers {
		wait.Go(func() {
			for i := int(next.Add(1)) - 1; i < len(messages); i = int(next.Add(1)) - 1 {
				if err := w.register(client, path, messages[i], i); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wait.Wait()
}

func (w *windows) register(client *http.Client, path string, m windowsMessage, n int) error {
	legs := []string{""}
	if w.tickets != nil {
		legs = []string{"", "Negotiate " + base64.StdEncoding.EncodeToString(w.tickets[n])}
	}
	for leg, credential := range legs {
		r, err := http.NewRequest("CCM_POST", w.base+path, bytes.NewReader(m.body))
		if err != nil {
			return err
		}
		r.Header.Set("Content-Type", m.contentType)
		if credential != "" {
			r.Header.Set("Authorization", credential)
		}
		answer, err := client.Do(r)
		if err != nil {
			return err
		}
		body, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		last := leg == len(legs)-1
		if err != nil || last && (answer.StatusCode != http.StatusOK || len(body) == 0) || !last && answer.StatusCode != http.StatusUnauthorized {
			return fmt.Errorf("leg %d of %s: %s with %d bytes, %v", leg+1, path, answer.Status, len(body), err)
		}
	}
	return nil
}
