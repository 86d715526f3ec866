package kerberos

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/jcmturner/gokrb5/v8/iana/errorcode"
	"github.com/jcmturner/gokrb5/v8/messages"

	"postern/catalog"
	"postern/diag"
)

// maxReply bounds a KDC's answer; tickets with a large PAC have some ten kilobytes.
const maxReply = 256 << 10

// maxKDCs bounds how many of a realm's KDCs are tried.
const maxKDCs = 16

// refusal is a KDC's error, with the realm that said it.
type refusal struct {
	code  int32
	text  string
	realm string
	data  []byte
	at    time.Time // the KDC's clock
}

func (e *refusal) Error() string {
	text := errorcode.Lookup(e.code)
	if e.text != "" && !strings.Contains(text, e.text) {
		text += " (" + e.text + ")"
	}
	return "the KDC of " + e.realm + " answers " + text
}

// kdcs returns the addresses of a realm's KDCs and where they are from: krb5.conf, else
// DNS.
func (r *run) kdcs(ctx context.Context, realm string) (addresses []string, from string, err error) {
	if known, ok := r.found[realm]; ok {
		return known, "", nil
	}
	for _, configured := range r.config.Realms {
		if strings.EqualFold(configured.Realm, realm) {
			for _, kdc := range configured.KDC {
				addresses = append(addresses, withPort(kdc, "88"))
			}
		}
	}
	from = r.Options.Config
	if len(addresses) == 0 {
		addresses, from = r.lookupKDCs(ctx, realm), "DNS"
	}
	if len(addresses) == 0 {
		return nil, "", catalog.Errorf(catalog.CheckKDCNotFound, "realm %s: krb5.conf names none, and DNS has no _kerberos._tcp.%s", realm, strings.ToLower(realm))
	}
	addresses = addresses[:min(len(addresses), maxKDCs)]
	r.found[realm] = addresses
	return addresses, from, nil
}

func (r *run) lookupKDCs(ctx context.Context, realm string) (addresses []string) {
	for _, transport := range []string{"tcp", "udp"} {
		for _, target := range r.lookupSRV(ctx, "kerberos", transport, realm) {
			if !slices.Contains(addresses, target) {
				addresses = append(addresses, target)
			}
		}
	}
	return addresses
}

// lookupSRV returns host:port of each target of a service in a realm's DNS domain.
func (r *run) lookupSRV(ctx context.Context, service, transport, realm string) (targets []string) {
	ctx, cancel := context.WithTimeout(ctx, r.Timeout)
	defer cancel()
	_, records, err := r.Resolver.LookupSRV(ctx, service, transport, strings.ToLower(realm)+".")
	if err != nil {
		return nil
	}
	for _, record := range records {
		if host := strings.TrimSuffix(record.Target, "."); host != "" {
			targets = append(targets, net.JoinHostPort(host, fmt.Sprint(record.Port)))
		}
	}
	return targets
}

func withPort(address, port string) string {
	if _, _, err := net.SplitHostPort(address); err == nil {
		return address
	}
	return net.JoinHostPort(strings.Trim(address, "[]"), port)
}

// ask sends a request to a realm's KDCs, the first that answers, and returns its reply
// or its refusal.
func (r *run) ask(ctx context.Context, realm string, request []byte) ([]byte, error) {
	addresses, _, err := r.kdcs(ctx, realm)
	if err != nil {
		return nil, err
	}
	var failures []string
	for _, address := range addresses {
		reply, err := r.askOne(ctx, "tcp", address, request)
		if err == nil {
			return reply, asRefusal(reply, realm)
		}
		failures = append(failures, fmt.Sprintf("%s: %v", address, plain(err)))
	}
	return nil, catalog.Errorf(catalog.CheckKDCUnreachable, "no KDC of %s answers\n%s", realm, strings.Join(failures, "\n"))
}

// askOne is one exchange with one KDC (RFC 4120 7.2.1 and 7.2.2).
func (r *run) askOne(ctx context.Context, network, address string, request []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, r.Timeout)
	defer cancel()
	connection, err := r.dialer().DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	if deadline, ok := ctx.Deadline(); ok {
		connection.SetDeadline(deadline)
	}
	if network == "udp" {
		if _, err := connection.Write(request); err != nil {
			return nil, err
		}
		reply := make([]byte, 64<<10)
		n, err := connection.Read(reply)
		return reply[:n], err
	}
	if _, err := connection.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(request))), request...)); err != nil {
		return nil, err
	}
	var length [4]byte
	if _, err := io.ReadFull(connection, length[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(length[:])
	if n == 0 || n > maxReply {
		return nil, fmt.Errorf("it announces an answer of %d bytes: that is no KDC", n)
	}
	reply := make([]byte, n)
	_, err = io.ReadFull(connection, reply)
	return reply, err
}

// plain shortens a network error to what a person needs: the addresses are said beside.
func plain(err error) error {
	var unresolved *net.DNSError
	if errors.As(err, &unresolved) {
		return fmt.Errorf("%s: %s", unresolved.Name, unresolved.Err)
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Err != nil {
		if op.Timeout() {
			return errors.New("no answer in time")
		}
		return op.Err
	}
	return err
}

// asRefusal returns the KDC's error when a reply is one.
func asRefusal(reply []byte, realm string) error {
	if len(reply) == 0 || reply[0]&0x1f != 30 {
		return nil
	}
	message, err := parseRefusal(reply)
	if err != nil {
		return catalog.Wrap(catalog.CheckKDCRefused, err, "the KDC of %s answers an error that cannot be read", realm)
	}
	message.realm = realm
	return message
}

func parseRefusal(reply []byte) (parsed *refusal, err error) {
	defer guard(&err)
	var message messages.KRBError
	if err := message.Unmarshal(reply); err != nil {
		return nil, err
	}
	at := message.STime.Add(time.Duration(message.Susec) * time.Microsecond)
	return &refusal{code: message.ErrorCode, text: message.EText, data: message.EData, at: at}, nil
}

// checkKDC finds the KDCs of our realm and asks each.
func (r *run) checkKDC(ctx context.Context) []diag.Finding {
	if r.realm == "" {
		return []diag.Finding{diag.NotLooked("the realm is not known")}
	}
	addresses, from, err := r.kdcs(ctx, r.realm)
	if err != nil {
		return []diag.Finding{diag.FromError(diag.Fail, err, catalog.CheckKDCNotFound)}
	}
	request, err := r.probe().Marshal()
	if err != nil {
		return []diag.Finding{diag.FromError(diag.Fail, err, catalog.CheckKDCRefused)}
	}
	var good, bad []string
	for _, address := range addresses {
		if _, err := r.askOne(ctx, "tcp", address, request); err != nil {
			bad = append(bad, fmt.Sprintf("%s: TCP %v%s", address, plain(err), r.overUDP(ctx, address, request)))
			continue
		}
		good = append(good, address)
	}
	r.answered = len(good) > 0
	var findings []diag.Finding
	if len(good) > 0 {
		findings = append(findings, diag.Good("a KDC of our realm answers", "%s: %s (from %s)", r.realm, strings.Join(good, ", "), from))
	}
	if len(bad) > 0 {
		state := diag.Warn
		if len(good) == 0 {
			state = diag.Fail
		}
		findings = append(findings, diag.Found(state, catalog.CheckKDCUnreachable, "%s", strings.Join(bad, "\n")))
	}
	// Those that answer come first from here on.
	r.found[r.realm] = append(good, slices.DeleteFunc(slices.Clone(addresses), func(a string) bool { return slices.Contains(good, a) })...)
	return findings
}

// overUDP says whether a KDC that does not answer over TCP does over UDP.
func (r *run) overUDP(ctx context.Context, address string, request []byte) string {
	if _, err := r.askOne(ctx, "udp", address, request); err == nil {
		return " (over UDP it answers: open TCP too, tickets of Windows are often too large for UDP)"
	}
	return ", UDP neither"
}

// checkClock compares our clock with the KDC's: its refusals carry its time, and so
// does a reply to an account that needs no proof (RFC 4120 5.9.1, 5.4.2).
func (r *run) checkClock(ctx context.Context) []diag.Finding {
	if !r.answered {
		return []diag.Finding{diag.NotLooked("no KDC answered")}
	}
	offset, known, err := r.measure(ctx, r.probe())
	if err == nil && !known { // a ticket at once, and none of our keys opens it
		offset, known, err = r.measure(ctx, r.probeNobody())
	}
	switch {
	case err != nil:
		return []diag.Finding{diag.FromError(diag.Fail, err, catalog.CheckKDCUnreachable)}
	case !known:
		return []diag.Finding{diag.NotLooked("the KDC does not say its time")}
	}
	r.offset = offset
	return []diag.Finding{judgeClock("this machine", "the KDC of "+r.realm, r.offset)}
}

// measure returns the KDC's clock minus ours, when its answer to a request tells.
func (r *run) measure(ctx context.Context, request *messages.ASReq) (offset time.Duration, known bool, err error) {
	encoded, err := request.Marshal()
	if err != nil {
		return 0, false, err
	}
	before := r.Now()
	reply, err := r.ask(ctx, r.realm, encoded)
	middle := before.Add(r.Now().Sub(before) / 2)
	var refused *refusal
	if errors.As(err, &refused) {
		return refused.at.Sub(middle), true, nil
	}
	if err != nil {
		return 0, false, err
	}
	at, known := r.timeOfReply(reply)
	return at.Sub(middle), known, nil
}

// timeOfReply reads the KDC's clock out of a reply that our keys open.
func (r *run) timeOfReply(reply []byte) (time.Time, bool) {
	parsed, err := parseASReply(reply)
	if err != nil {
		return time.Time{}, false
	}
	for _, k := range r.ownKeys() {
		if inside, err := openASReply(parsed, k.key); err == nil {
			return inside.AuthTime.Add(time.Second / 2), true // it has whole seconds only
		}
	}
	return time.Time{}, false
}

// judgeClock says what a difference means: ahead is positive when theirs is ahead.
func judgeClock(ours, theirs string, ahead time.Duration) diag.Finding {
	size, direction := ahead.Abs().Round(time.Second), "behind"
	if ahead < 0 {
		direction = "ahead of"
	}
	words := fmt.Sprintf("the clock of %s is %d seconds %s the clock of %s", ours, int(size.Seconds()), direction, theirs)
	if size == 0 {
		words = fmt.Sprintf("the clocks of %s and of %s differ by less than a second", ours, theirs)
	}
	switch {
	case ahead.Abs() > Skew:
		return diag.Found(diag.Fail, catalog.CheckClockSkew, "%s", words)
	case ahead.Abs() > drift:
		return diag.Found(diag.Warn, catalog.CheckClockDrift, "%s", words)
	}
	return diag.Good("the clocks agree", "%s", words)
}
