package site

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/netip"

	"postern/catalog"
	"postern/token"
)

// kindGateway is the kind of events that gateways tell.
const kindGateway = "gateway"

// noteRefusals puts what a gateway refused by itself among the events: those requests never come to the site. The subject is the key that the request
// proved, if any. Only the age of a refusal is taken from the gateway, since its clock may be another.
func (s *Site) noteRefusals(gateway Gateway, ack token.Ack) {
	now := s.time()
	for _, r := range ack.Refusals {
		entry, known := catalog.Lookup(r.Code)
		if !known {
			continue // of a gateway that is newer than this site
		}
		e := Event{At: now.Add(min(0, r.At.Sub(ack.At))), Code: string(r.Code), Kind: kindGateway}
		if isThumbprint(string(r.Key)) {
			e.Subject = string(r.Key)
		}
		if _, err := netip.ParseAddr(r.Address); err == nil {
			e.Address = r.Address
		}
		if _, err := hex.DecodeString(r.TraceID); err == nil {
			e.TraceID = r.TraceID
		}
		e.Detail = fmt.Sprintf("gateway %s at %s: %s", gateway.Name, shown(r.Endpoint), cmp.Or(shown(r.Detail), entry.Title))
		if r.Times > 1 {
			e.Detail += fmt.Sprintf(" (%d times)", r.Times)
		}
		s.Note(e)
	}
}

// isThumbprint reports whether a text has the form of the thumbprint of a key.
func isThumbprint(text string) bool {
	sum, err := base64.RawURLEncoding.DecodeString(text)
	return err == nil && len(sum) == sha256.Size
}
