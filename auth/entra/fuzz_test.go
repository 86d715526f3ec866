package entra

import (
	"encoding/base64"
	"strings"
	"testing"

	"postern/catalog"
	"postern/internal/issuer"
	"postern/proof"
	"postern/token"
)

func encoded(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }

// Whatever the header and the claims say: the reader ends within its budgets with a
// code, and what it lets through has the syntax that later lines rely on.
func FuzzRead(f *testing.F) {
	f.Add(`{"typ":"JWT","alg":"RS256","kid":"a"}`, `{"iss":"https://sts.windows.net/`+otherID+`/","tid":"`+otherID+`","exp":2000000000}`, "AA")
	f.Fuzz(func(t *testing.T, head, body, signature string) {
		d, err := read(encoded(head) + "." + encoded(body) + "." + signature)
		if err != nil {
			if catalog.CodeOf(err) == "" {
				t.Errorf("no code: %v", err)
			}
			if strings.ContainsAny(catalog.Public(err), "\x00\x1b") {
				t.Errorf("unfit for a log: %q", err)
			}
			return
		}
		c := d.claims
		for name, value := range map[string]string{"deviceid": c.device, "oid": c.object} {
			if value != "" && !guid(value) {
				t.Errorf("%s is %q", name, value)
			}
		}
		if c.sid != "" && !securityID(c.sid) || !visible(d.header.keyID) || c.uti != "" && !visible(c.uti) {
			t.Errorf("got %+v", d)
		}
		_, _ = evidence(issuerTenant, c)
		if err := permitted(issuerTenant, c, c.issuedAt, 0); err != nil && strings.ContainsAny(catalog.Public(err), "\x00\x1b\r") {
			t.Errorf("unfit for a log: %q", err)
		}
	})
}

// No text is a good token of a tenant but what the tenant's provider signed.
func FuzzValidate(f *testing.F) {
	provider := start(f, issuer.Options{})
	v := validator(provider.Tenant())
	good, err := provider.DeviceToken(device(), issuer.V1)
	if err != nil {
		f.Fatal(err)
	}
	parts := strings.Split(good, ".")
	f.Add(good)
	f.Add(encoded(`{"alg":"none"}`) + "." + parts[1] + "." + parts[2])
	f.Add(parts[0] + "." + encoded(`{}`) + "." + parts[2])
	f.Fuzz(func(t *testing.T, raw string) {
		got, _, err := v.Validate(t.Context(), raw)
		if err == nil && raw != good {
			t.Errorf("%q proves %+v", raw, got)
		}
		if err != nil && got != (proof.Cloud{}) {
			t.Errorf("an error proves %+v", got)
		}
	})
}

// A key set comes from outside, and through the site's state.
func FuzzKeys(f *testing.F) {
	f.Add([]byte(`{"keys":[]}`), otherID)
	f.Fuzz(func(t *testing.T, raw []byte, tenant string) {
		keys, _, err := parseKeys(raw, tenant)
		if err != nil {
			if catalog.CodeOf(err) != catalog.EntraKeySet {
				t.Errorf("got %v", err)
			}
			return
		}
		again, err := formatKeys(keys)
		if err != nil {
			t.Fatal(err)
		}
		same, skipped, err := parseKeys(again, tenant)
		if err != nil || skipped > 0 || len(same) != len(keys) {
			t.Errorf("written and read again: %d of %d, %v", len(same), len(keys), err)
		}
	})
}

// issuerTenant is a tenant of Entra with both issuers.
var issuerTenant = token.Tenant{
	ID: otherID, Issuers: []string{"https://sts.windows.net/" + otherID + "/", "https://login.microsoftonline.com/" + otherID + "/v2.0"},
	Audiences: []string{"https://ConfigMgrService"},
}
