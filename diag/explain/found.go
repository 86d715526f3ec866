package explain

import (
	"regexp"
	"slices"
	"strings"
	"time"

	"postern/catalog"
)

// extra are the findings that need more than lines with a mark.
var extra = []func(*timeline) []finding{linkTroubles, disagreement, noEntraToken, tenantNotOnboarded, flipping, sharedIdentity, everyPathFails, nameOnAccount,
	switchedOffForSetup, awayTooLong, cutCommandLine, automaticSite, certificateSwitch, tokenAndManagementPoint, unauthorizedByToken, unknownUser, tokenOfOther, certificateSelection, contentName}

// pair makes a finding of two lines.
func pair(code catalog.Code, sure Sure, first, second line) finding {
	return finding{code: code, sure: sure, lines: []line{first, second}, last: second, count: 1}
}

// firsts are the first lines of marks, one of each file, in the order of the files.
func (t *timeline) firsts(marks ...mark) (all []line) {
	for _, s := range t.sightings(marks...) {
		all = append(all, s.lines[0])
	}
	return all
}

func (t *timeline) codes(codes ...catalog.Code) (all []line) {
	for _, code := range codes {
		all = append(all, t.firsts(mark(code))...)
	}
	return all
}

// sharedIdentity finds one client id on machines with different hardware (S0:L25).
func sharedIdentity(t *timeline) []finding {
	hardwareOf := map[string]string{}
	for _, l := range t.firsts(hardware) {
		if found := hardwareForm.FindStringSubmatch(l.low); found != nil {
			hardwareOf[folderOf(l.file)] = found[1]
		}
	}
	for i, a := range t.assigned {
		for _, b := range t.assigned[i+1:] {
			one, other := hardwareOf[folderOf(a.l.file)], hardwareOf[folderOf(b.l.file)]
			if a.id == b.id && one != "" && other != "" && one != other {
				return []finding{pair(catalog.SymptomDuplicateIdentity, Likely, a.l, b.l)}
			}
		}
	}
	return nil
}

var hardwareForm = regexp.MustCompile(`hardware ?id ?[=:] ?'?([0-9a-f:{}-]{8,})`)

// everyPathFails finds a management point whose every path answers 500.
func everyPathFails(t *timeline) (found []finding) {
	for _, f := range t.files {
		s := f.seen[serverError]
		if s == nil {
			continue
		}
		folders := map[string]bool{}
		for _, l := range s.lines {
			folders[folderOfStem(l.access.Stem)] = true
		}
		if well := f.seen[answered]; len(folders) >= 2 && (well == nil || !after(&well.last, &s.lines[0])) {
			found = append(found, finding{code: catalog.SymptomManagementPointDown500, sure: Likely, lines: cut(s.lines), last: s.last, count: s.count})
		}
	}
	return found
}

// nameOnAccount finds a service name in a listing of the directory under an account that is not the computer of that name.
func nameOnAccount(t *timeline) (found []finding) {
	for _, s := range t.sightings(listedName) {
		var owner *line
		for i := range s.lines {
			l := &s.lines[i]
			name := strings.TrimSpace(l.low)
			if !strings.HasPrefix(name, "http/") {
				owner = l
				continue
			}
			host, _, _ := strings.Cut(strings.TrimPrefix(name, "http/"), ".")
			if owner != nil && ownerName(owner) != host {
				found = append(found, pair(catalog.SymptomNameOnUserAccount, Certain, *owner, *l))
			}
		}
	}
	return found
}

func ownerName(l *line) string {
	name, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(l.low), "cn="), ",")
	return name
}

// switchedOffForSetup finds a revocation check that was switched off for the installation, which went well, and fails later (S2:L227).
func switchedOffForSetup(t *timeline) (found []finding) {
	for _, set := range t.firsts(noCRLCheck) {
		for _, failed := range t.codes(catalog.SymptomRevocationCheckFailed) {
			if !ofSetup(&failed) && (after(&failed, &set) || !sameLog(&set, &failed) && (set.time.IsZero() || failed.time.IsZero())) {
				found = append(found, pair(catalog.SymptomNoCRLCheckTooShort, Likely, set, failed))
			}
		}
	}
	return found
}

func ofSetup(l *line) bool { return strings.Contains(strings.ToLower(l.component), "ccmsetup") }

// absence is how long a client is away before its token ends for that reason (S4:L97).
const absence = 30 * 24 * time.Hour

// awayTooLong finds a token that is refused after a long silence of a client that had worked.
func awayTooLong(t *timeline) (found []finding) {
	for _, failed := range t.codes(catalog.SymptomGatewayInvalidToken) {
		if failed.time.IsZero() || ofSetup(&failed) {
			continue
		}
		for _, s := range t.sightings(cached, replied, registered, delivered) {
			if last := s.last; sameMachine(&last, &failed) && !last.time.IsZero() && failed.time.Sub(last.time) >= absence {
				found = append(found, pair(catalog.SymptomAwayTooLong, Likely, last, failed))
				break
			}
		}
	}
	return found
}

// cutCommandLine finds a command line with a token that the installer could not take apart.
func cutCommandLine(t *timeline) (found []finding) {
	for _, given := range t.firsts(regToken) {
		for _, failed := range t.codes(catalog.SymptomPropertySyntax) {
			if sameMachine(&given, &failed) {
				found = append(found, pair(catalog.SymptomCommandLineCut, Likely, given, failed))
			}
		}
	}
	return found
}

// automaticSite finds the site code AUTO with a gateway, and no registration after it.
func automaticSite(t *timeline) (found []finding) {
	for _, given := range t.firsts(autoSite) {
		works := slices.ContainsFunc(t.sightings(registered, cached, replied), func(s *sighting) bool { return sameMachine(&s.last, &given) && after(&s.last, &given) })
		if !works {
			found = append(found, finding{code: catalog.SymptomAutomaticSite, sure: Likely, lines: []line{given}, last: given, count: 1})
		}
	}
	return found
}

// certificateSwitch finds the switch for certificates on a device that is joined to a tenant.
func certificateSwitch(t *timeline) (found []finding) {
	for _, given := range t.firsts(usePKICert) {
		for _, joined := range t.firsts(joinedDevice) {
			asked := slices.ContainsFunc(t.sightings(askedEntra, entraAsking, entraToken, installed, registered), func(s *sighting) bool { return sameMachine(&s.last, &given) })
			if sameMachine(&joined, &given) && !asked {
				found = append(found, pair(catalog.SymptomPKISwitchOnJoined, Likely, given, joined))
			}
		}
	}
	return found
}

// tokenAndManagementPoint finds an installation with /mp and /regtoken that ends with 0x87d0027e.
func tokenAndManagementPoint(t *timeline) (found []finding) {
	for _, given := range t.firsts(mpAndToken) {
		for _, failed := range t.firsts(noTokenCode) {
			if sameMachine(&given, &failed) && after(&failed, &given) && !t.status(catalog.SymptomConnectorUnauthorized, "cmgconnector_unauthorized") {
				found = append(found, pair(catalog.SymptomManagementPointWithToken, Likely, given, failed))
			}
		}
	}
	return found
}

// status says whether a symptom was seen by a text.
func (t *timeline) status(code catalog.Code, text string) bool {
	return slices.ContainsFunc(t.sightings(mark(code)), func(s *sighting) bool {
		return slices.ContainsFunc(s.lines, func(l line) bool { return strings.Contains(l.low, text) })
	})
}

// unauthorizedByToken finds the code of a refused token on a line that no other symptom has.
func unauthorizedByToken(t *timeline) (found []finding) {
	if len(t.seen[mark(catalog.SymptomConnectorUnauthorized)]) > 0 {
		return nil
	}
	for _, s := range t.sightings(noTokenCode) {
		found = append(found, finding{code: catalog.SymptomConnectorUnauthorized, sure: Likely, lines: cut(s.lines), last: s.last, count: s.count})
	}
	return found
}

// unknownUser finds a registration with a user's token that is put off again and again.
func unknownUser(t *timeline) (found []finding) {
	for _, asked := range t.firsts(entraUser) {
		for _, failed := range t.firsts(transient) {
			if sameMachine(&asked, &failed) && after(&failed, &asked) && !strings.Contains(failed.low, "post to") {
				found = append(found, pair(catalog.SymptomUserUnknown, Likely, asked, failed))
			}
		}
	}
	return found
}

// tokenOfOther finds a token that is kept for another account than the one whose token ended before (S2:L213-215).
func tokenOfOther(t *timeline) (found []finding) {
	for _, ended := range t.firsts(tokenEnded) {
		for _, s := range t.sightings(cached) {
			i := slices.IndexFunc(s.lines, func(l line) bool { return sameLog(&l, &ended) && after(&l, &ended) })
			if i < 0 {
				continue
			}
			one, other := accountForm.FindStringSubmatch(ended.text), accountForm.FindStringSubmatch(s.lines[i].text)
			if one != nil && other != nil && one[1] != other[1] {
				found = append(found, pair(catalog.SymptomTokenOfOther, Likely, ended, s.lines[i]))
			}
		}
	}
	return found
}

var accountForm = regexp.MustCompile(`'(S-1-[0-9-]+)'`)

// selectionStages are the filters of a connection point's certificates in their order, each with the words of its count.
var selectionStages = []struct {
	code catalog.Code
	zero string
}{
	{catalog.SymptomNotAllowedCertificate, "root ca: 0"},
	{catalog.SymptomNoPrivateKeyCertificate, "private key: 0"},
	{catalog.SymptomNotClientAuthCertificate, ""},
}

// certificateSelection finds which filter leaves a connection point without a certificate: the first whose count is 0, or
// the only one that took any away (S4:L25-35). Where several did, none of them alone is the reason.
func certificateSelection(t *timeline) (found []finding) {
	for _, f := range t.files {
		left := f.seen[mark(catalog.SymptomNoClientCertificateLeft)]
		var seen []finding
		primary := catalog.SymptomNoClientCertificateLeft
		counted := false
		for _, stage := range selectionStages {
			s := f.seen[mark(stage.code)]
			if s == nil {
				continue
			}
			seen = append(seen, finding{code: stage.code, sure: Certain, lines: cut(s.lines), last: s.last, count: s.count})
			zero := stage.zero != "" && slices.ContainsFunc(append(cut(s.lines), s.last), func(l line) bool { return strings.Contains(l.low, stage.zero) })
			if zero && !counted {
				primary, counted = stage.code, true
			}
		}
		switch usable := f.seen[usableCert]; {
		case left != nil:
			if len(seen) == 1 && !counted {
				primary = seen[0].code
			}
			seen = append(seen, finding{code: catalog.SymptomNoClientCertificateLeft, sure: Certain, lines: cut(left.lines), last: left.last, count: left.count})
		case usable != nil && !counted, len(seen) == 0, len(seen) > 1 && !counted:
			continue
		case !counted:
			primary = seen[0].code
			seen[0].sure = Likely
		}
		usable := f.seen[usableCert]
		for i := range seen {
			if seen[i].code != primary {
				seen[i].because = primary
			}
			if usable != nil && after(&usable.last, &seen[i].last) {
				seen[i].over = &usable.last
			}
		}
		found = append(found, seen...)
	}
	return found
}

// contentName finds content that cannot be listed after the name in a certificate was refused.
func contentName(t *timeline) (found []finding) {
	for _, refused := range t.codes(catalog.SymptomServerNameMismatch) {
		for _, failed := range t.firsts(contentFailed) {
			if sameMachine(&refused, &failed) && after(&failed, &refused) {
				found = append(found, pair(catalog.SymptomContentName, Certain, refused, failed))
			}
		}
	}
	return found
}
