package entra

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"time"
	"unicode/utf16"

	"postern/catalog"
)

// Budgets of what "dsregcmd /status" prints.
const (
	maxStatus      = 256 << 10
	maxStatusLines = 4096
)

// ParseStatus reads what "dsregcmd /status" prints on Windows: Device State, Device
// Details, Tenant Details, User State and the first work account. It takes captured text
// on every platform, also as PowerShell writes it to a file (UTF-16). The error has the
// code EntraJoinState.
func ParseStatus(output []byte) (JoinState, error) {
	values, err := statusValues(output)
	if err != nil {
		return JoinState{}, catalog.Wrap(catalog.EntraJoinState, err, "dsregcmd /status")
	}
	if _, found := values["azureadjoined"]; !found {
		return JoinState{}, catalog.Errorf(catalog.EntraJoinState, "what dsregcmd /status printed has no line AzureAdJoined")
	}
	j := values.joinState()
	if j, err = j.complete(); err != nil {
		return JoinState{}, catalog.Wrap(catalog.EntraJoinState, err, "dsregcmd /status")
	}
	return j, nil
}

// status is what stands behind each name, by the name in lower case.
type status map[string]string

// statusValues reads lines "Name : value". Of a name that comes again the first counts:
// the sections with the state come before those with diagnostics, and the first work
// account before the others.
func statusValues(output []byte) (status, error) {
	if len(output) > maxStatus {
		return nil, fmt.Errorf("it is longer than %d bytes", maxStatus)
	}
	values, lines := status{}, 0
	for line := range strings.Lines(statusText(output)) {
		if lines++; lines > maxStatusLines {
			return nil, fmt.Errorf("it has more than %d lines", maxStatusLines)
		}
		name, value, found := strings.Cut(line, " : ")
		name, value = strings.ToLower(strings.TrimSpace(name)), strings.TrimSpace(value)
		if _, again := values[name]; !found || again || !statusName(name) || !plainText(value) {
			continue
		}
		values[name] = value
	}
	return values, nil
}

// statusName reports whether a text can be a name: headings and frames are none.
func statusName(name string) bool {
	return name != "" && len(name) <= 64 && !strings.ContainsAny(name, "|+[]")
}

func statusText(output []byte) string {
	if rest, found := bytes.CutPrefix(output, []byte{0xff, 0xfe}); found {
		units := make([]uint16, 0, len(rest)/2)
		for ; len(rest) >= 2; rest = rest[2:] {
			units = append(units, binary.LittleEndian.Uint16(rest))
		}
		return string(utf16.Decode(units))
	}
	return strings.ToValidUTF8(string(bytes.TrimPrefix(output, []byte("\ufeff"))), "?")
}

func (s status) yes(name string) bool { return strings.EqualFold(s[name], "YES") }

// joinState puts the values together. The four combinations are those of the program's
// documentation; what is registered stands in User State.
func (s status) joinState() JoinState {
	j := JoinState{
		DomainJoined: s.yes("domainjoined"), EnterpriseJoined: s.yes("enterprisejoined"), WorkplaceJoined: s.yes("workplacejoined"),
		Source: "dsregcmd /status", User: User{Name: lastField(s["executing account name"])},
	}
	switch {
	case s.yes("azureadjoined"):
		j.JoinType = JoinEntra
		if j.DomainJoined {
			j.JoinType = JoinHybrid
		}
		j.TenantID, j.TenantName, j.DeviceID = s["tenantid"], s["tenantname"], s["deviceid"]
		j.Authority = authorityOf(s["accesstokenurl"])
		j.WorkplaceJoin = WorkplaceJoin{Thumbprint: s["thumbprint"], NotAfter: validUntil(s["devicecertificatevalidity"])}
	case j.WorkplaceJoined:
		j.JoinType = JoinRegistered
		j.TenantID, j.TenantName, j.DeviceID = s["workplacetenantid"], s["workplacetenantname"], s["workplacedeviceid"]
		j.WorkplaceJoin.Thumbprint = s["workplacethumbprint"]
	default:
		j.JoinType = JoinNone
	}
	return j
}

// lastField is the user principal name of "AzureAD\MegBowen, meg@contoso.com".
func lastField(account string) string {
	fields := strings.Split(account, ",")
	return strings.TrimSpace(fields[len(fields)-1])
}

// authorityOf is the authority of a token endpoint, "" when it is another's.
func authorityOf(tokenURL string) string {
	authority, found := strings.CutSuffix(tokenURL, "/oauth2/token")
	if !found || checkAuthority(authority) != nil {
		return ""
	}
	return authority
}

// validUntil reads the end of "[ 2019-01-11 21:02:50.000 UTC -- 2029-01-11 21:32:50.000 UTC ]".
func validUntil(text string) time.Time {
	_, end, _ := strings.Cut(strings.Trim(text, "[] "), " -- ")
	t, err := time.Parse("2006-01-02 15:04:05.000 MST", strings.TrimSpace(end))
	if err != nil {
		return time.Time{}
	}
	return t.UTC()
}
