package main

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"net/http"
	"net/http/httptest"
	"syscall"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/jcmturner/gofork/encoding/asn1"
	"github.com/jcmturner/gokrb5/v8/asn1tools"
	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/gssapi"
	"github.com/jcmturner/gokrb5/v8/iana/flags"
	"github.com/jcmturner/gokrb5/v8/keytab"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/spnego"
	"github.com/jcmturner/gokrb5/v8/test/testdata"
	"github.com/jcmturner/gokrb5/v8/types"

	"postern/auth"
	"postern/auth/kerberos"
)

const (
	ticketRealm   = "A2003.VM.LOCAL"
	ticketService = "HTTP/mp.a2003.vm.local"
	ticketClient  = "WK02-020-51W$"
	// ticketBatch is how many requests of one handler are measured before the other has its turn.
	ticketBatch = 1000
)

// BenchmarkTicket judges tickets as requests over keep-alive connections bring them, by our acceptor and by gokrb5's own handler in turns, with
// the same tokens. It reports the CPU time of the whole process (getrusage), garbage collection included, and ours as a multiple of theirs.
// Proving the server (mutual) is work that only ours does.
func BenchmarkTicket(b *testing.B) {
	for _, bench := range []struct {
		name        string
		kind        int32
		pac, mutual bool
	}{
		{"aes256", 18, false, false},
		{"aes256-mutual", 18, false, true},
		{"aes256-pac", 18, true, false},
		{"aes256-pac-mutual", 18, true, true},
		{"aes128sha2", 19, false, false},
	} {
		b.Run(bench.name, func(b *testing.B) { benchTicket(b, bench.kind, bench.pac, bench.mutual) })
	}
}

func benchTicket(b *testing.B, kind int32, withPAC, mutual bool) {
	keys := keytab.New()
	if err := keys.AddEntry(ticketService, ticketRealm, "secret", time.Now().Add(-time.Hour), 1, kind); err != nil {
		b.Fatal(err)
	}
	tokens := makeTokens(b, keys, kind, withPAC, mutual, b.N)
	ours, theirs := ticketHandler(b, keys), spnego.SPNEGOKRB5Authenticate(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), keys)
	var ourTime, theirTime time.Duration
	b.ResetTimer()
	for start := 0; start < len(tokens); start += ticketBatch {
		batch := tokens[start:min(start+ticketBatch, len(tokens))]
		ourTime += cpuOf(b, ours, batch)
		theirTime += cpuOf(b, theirs, batch)
	}
	b.ReportMetric(0, "ns/op") // of both together, which says nothing
	b.ReportMetric(float64(ourTime.Nanoseconds())/float64(b.N), "cpu-ns/op-postern")
	b.ReportMetric(float64(theirTime.Nanoseconds())/float64(b.N), "cpu-ns/op-gokrb5")
	b.ReportMetric(float64(ourTime)/float64(theirTime), "x")
}

// ticketHandler puts the acceptor behind the same header as the library's handler.
func ticketHandler(b *testing.B, keys *keytab.Keytab) http.Handler {
	b.Helper()
	data, err := keys.Marshal()
	if err != nil {
		b.Fatal(err)
	}
	parsed, err := kerberos.ParseKeytab(data)
	if err != nil {
		b.Fatal(err)
	}
	acceptor, err := kerberos.New(kerberos.Config{Keytab: parsed, Replay: auth.NewMemory(1<<22, time.Now)})
	if err != nil {
		b.Fatal(err)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token, err := base64.StdEncoding.DecodeString(r.Header.Get("Authorization")[len("Negotiate "):])
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		_, reply, err := acceptor.Accept(context.Background(), token, auth.Channel{})
		w.Header().Set("WWW-Authenticate", "Negotiate "+base64.StdEncoding.EncodeToString(reply))
		if err != nil {
			http.Error(w, err.Error(), http.StatusUnauthorized)
		}
	})
}

func cpuOf(b *testing.B, h http.Handler, tokens []string) time.Duration {
	b.Helper()
	before := cpuTime(b)
	for _, token := range tokens {
		r := &http.Request{Method: "CCM_POST", RemoteAddr: "127.0.0.1:4711", Header: http.Header{"Authorization": {token}}}
		w := httptest.NewRecorder()
		if h.ServeHTTP(w, r); w.Code != http.StatusOK {
			b.Fatalf("status %d, %s", w.Code, w.Body)
		}
	}
	return cpuTime(b) - before
}

func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// makeTokens makes tokens of one ticket, with an authenticator each.
func makeTokens(b *testing.B, keys *keytab.Keytab, kind int32, withPAC, mutual bool, count int) []string {
	b.Helper()
	now := time.Now().UTC().Truncate(time.Microsecond) // another one in each run, since the library's memory of uses is one for the process
	ticket, session := makeTicket(b, keys, kind, withPAC, now.Truncate(time.Second))
	tokens := make([]string, count)
	for i := range tokens {
		tokens[i] = makeToken(b, ticket, session, ticketClient, now.Add(time.Duration(i)*time.Microsecond), mutual)
	}
	return tokens
}

func makeTicket(b *testing.B, keys *keytab.Keytab, kind int32, withPAC bool, now time.Time) (messages.Ticket, types.EncryptionKey) {
	b.Helper()
	service, client := types.NewPrincipalName(2, ticketService), types.NewPrincipalName(1, ticketClient)
	ticket, session, err := messages.NewTicket(client, ticketRealm, service, ticketRealm, types.NewKrbFlags(), keys, kind, 1, now, now, now.Add(10*time.Hour), now.Add(10*time.Hour))
	if err != nil || !withPAC {
		return ticket, session
	}
	key, _, err := keys.GetEncryptionKey(service, ticketRealm, 1, kind)
	if err != nil {
		b.Fatal(err)
	}
	if err := ticket.Decrypt(key); err != nil {
		b.Fatal(err)
	}
	inner := encode(b, types.AuthorizationData{{ADType: 128, ADData: makePAC(b, key, now)}})
	ticket.DecryptedEncPart.AuthorizationData = types.AuthorizationData{{ADType: 1, ADData: inner}}
	plain := asn1tools.AddASNAppTag(encode(b, ticket.DecryptedEncPart), 3)
	if ticket.EncPart, err = crypto.GetEncryptedData(plain, key, 2, 1); err != nil {
		b.Fatal(err)
	}
	ticket.DecryptedEncPart = messages.EncTicketPart{}
	return ticket, session
}

func encode(b *testing.B, value any) []byte {
	b.Helper()
	data, err := asn1.Marshal(value)
	if err != nil {
		b.Fatal(err)
	}
	return data
}

// makePAC makes a PAC of the logon information that a domain controller wrote, signed anew.
func makePAC(b *testing.B, key types.EncryptionKey, now time.Time) []byte {
	b.Helper()
	logon, err := hex.DecodeString(testdata.MarshaledPAC_Kerb_Validation_Info)
	if err != nil {
		b.Fatal(err)
	}
	name := utf16.Encode([]rune(ticketClient))
	client := binary.LittleEndian.AppendUint64(nil, uint64(now.Unix()+11644473600)*1e7)
	client = binary.LittleEndian.AppendUint16(client, uint16(2*len(name)))
	for _, unit := range name {
		client = binary.LittleEndian.AppendUint16(client, unit)
	}
	signature := append([]byte{16, 0, 0, 0}, make([]byte, 12)...)
	parts := []struct {
		kind uint32
		data []byte
	}{{1, logon}, {10, client}, {6, signature}, {7, signature}}
	pac := []byte{byte(len(parts)), 0, 0, 0, 0, 0, 0, 0}
	offset, sealAt := len(pac)+16*len(parts), 0
	for _, part := range parts {
		if part.kind == 6 {
			sealAt = offset + 4
		}
		pac = binary.LittleEndian.AppendUint32(pac, part.kind)
		pac = binary.LittleEndian.AppendUint32(pac, uint32(len(part.data)))
		pac = binary.LittleEndian.AppendUint64(pac, uint64(offset))
		offset += (len(part.data) + 7) &^ 7
	}
	for _, part := range parts {
		pac = append(append(pac, part.data...), make([]byte, (8-len(part.data)%8)%8)...)
	}
	e, err := crypto.GetEtype(key.KeyType)
	if err != nil {
		b.Fatal(err)
	}
	sum, err := e.GetChecksumHash(key.KeyValue, pac, 17)
	if err != nil {
		b.Fatal(err)
	}
	copy(pac[sealAt:], sum)
	return pac
}

func makeToken(b *testing.B, ticket messages.Ticket, session types.EncryptionKey, account string, at time.Time, mutual bool) string {
	b.Helper()
	checksum := make([]byte, 24)
	checksum[0], checksum[20] = 16, gssapi.ContextFlagInteg
	a := types.Authenticator{
		AVNO: 5, CRealm: ticketRealm, CName: types.NewPrincipalName(1, account), Cksum: types.Checksum{CksumType: 0x8003, Checksum: checksum},
		CTime: at.Truncate(time.Second), Cusec: at.Nanosecond() / 1000, SeqNumber: 1,
	}
	request, err := messages.NewAPReq(ticket, session, a)
	if err != nil {
		b.Fatal(err)
	}
	if mutual {
		types.SetFlag(&request.APOptions, flags.APOptionMutualRequired)
	}
	message, err := request.Marshal()
	if err != nil {
		b.Fatal(err)
	}
	oid := encode(b, gssapi.OIDKRB5.OID())
	inner := asn1tools.AddASNAppTag(append(append(oid, 1, 0), message...), 0)
	negotiation := spnego.SPNEGOToken{Init: true, NegTokenInit: spnego.NegTokenInit{MechTypes: []asn1.ObjectIdentifier{gssapi.OIDKRB5.OID()}, MechTokenBytes: inner}}
	token, err := negotiation.Marshal()
	if err != nil {
		b.Fatal(err)
	}
	return "Negotiate " + base64.StdEncoding.EncodeToString(token)
}
