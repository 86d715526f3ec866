package main

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jcmturner/gokrb5/v8/keytab"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"

	"postern/ccm"
	"postern/internal/role"
	"postern/site"
)

const (
	windowsCallers = 16  // keep-alive connections at once
	windowsDevices = 256 // new devices of a round
)

// BenchmarkWindowsAuth registers new devices over keep-alive TLS at a management point, each with a ticket of its own account, by both legs as clients of the
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
			began, cpu := time.Now(), cpuTime(b)
			w.registerAll(b, way.path, messages)
			w.approved(b, way.tickets)
			n := float64(len(messages))
			b.ReportMetric(n/time.Since(began).Seconds(), way.name+"/s")
			b.ReportMetric(float64((cpuTime(b)-cpu).Microseconds())/n, way.name+"-cpu-us")
			w.point.Stop()
		}
	}
}

// windows is a management point with a keytab, and tickets for it.
type windows struct {
	point   *role.Running
	base    string
	tickets []string // a device's own, as its header has it
}

// newWindows starts a management point whose keytab has the key by which the tickets are made: one computer account for each device, since a site takes
// two keys of one account for one computer.
func newWindows(b *testing.B, tickets bool) *windows {
	b.Helper()
	keys := keytab.New()
	if err := keys.AddEntry(ticketService, ticketRealm, "secret", time.Now().Add(-time.Hour), 1, 18); err != nil {
		b.Fatal(err)
	}
	data, err := keys.Marshal()
	if err != nil {
		b.Fatal(err)
	}
	dir := b.TempDir()
	file := filepath.Join(dir, "mp.keytab")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		b.Fatal(err)
	}
	made, err := role.InitSite(b.Context(), role.NewSite{Dir: filepath.Join(dir, "site"), Code: "BEN", HTTPS: "127.0.0.1:0", Actor: "bench"}, role.Protection{}, time.Now)
	if err != nil {
		b.Fatal(err)
	}
	config, err := role.Load(made.Config)
	if err != nil {
		b.Fatal(err)
	}
	config.Kerberos.Keytab = file
	w := &windows{}
	if w.point, err = role.StartManagementPoint(b.Context(), config, role.Environment{}); err != nil {
		b.Fatal(err)
	}
	w.base = "https://" + w.point.Addresses["https"]
	for n := range windowsDevices {
		if !tickets {
			break
		}
		now := time.Now().UTC().Truncate(time.Microsecond)
		ticket, session, err := messages.NewTicket(types.NewPrincipalName(1, windowsName(n)+"$"), ticketRealm, types.NewPrincipalName(2, ticketService), ticketRealm,
			types.NewKrbFlags(), keys, 18, 1, now, now, now.Add(10*time.Hour), now.Add(10*time.Hour))
		if err != nil {
			b.Fatal(err)
		}
		w.tickets = append(w.tickets, makeToken(b, ticket, session, windowsName(n)+"$", now, true))
	}
	return w
}

// windowsName is the name of a device.
func windowsName(n int) string { return fmt.Sprintf("PC%05d", n) }

// windowsMessage is a registration of a device of its own.
type windowsMessage struct {
	contentType string
	body        []byte
}

// approved looks whether the tickets did what they are for.
func (w *windows) approved(b *testing.B, want bool) {
	b.Helper()
	devices, err := w.point.Site.Devices(b.Context(), site.DeviceFilter{})
	if err != nil || len(devices) != windowsDevices {
		b.Fatalf("%d devices, %v", len(devices), err)
	}
	for _, d := range devices {
		if (d.Approval.Status == ccm.ApprovalApproved) != want {
			b.Fatalf("%s has approval status %d by %q", d.Name(), d.Approval.Status, d.Approval.Rule)
		}
	}
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
		Properties: map[string]string{"NetBIOS Name": windowsName(n), "FQ Name": strings.ToLower(windowsName(n) + "." + ticketRealm), "HardwareID1": fmt.Sprintf("2:%040X", n)},
	}, key)
	if err != nil {
		return windowsMessage{}, err
	}
	header := ccm.Header{TargetEndpoint: "MP_ClientRegistration", SourceHost: windowsName(n), ReplyTo: "direct:" + windowsName(n) + ":SccmMessaging", ReplyMode: "Sync", Compressed: true, ReplyCompression: "zlib"}
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
		legs = []string{"", w.tickets[n]}
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
