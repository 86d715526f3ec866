package explain

import (
	"regexp"
	"slices"
	"strings"
	"time"

	"postern/catalog"
)

// extra are the findings that need more than lines with a mark.
var extra = []func(*timeline) []finding{linkTroubles, disagreement, noEntraToken, tenantNotOnboarded, flipping, sharedIdentity, everyPathFails, nameOnAccount, nameOnSeveral,
	switchedOffForSetup, awayTooLong, cutCommandLine, automaticSite, certificateSwitch, tokenAndManagementPoint, unauthorizedByToken, postFailedBy500, unknownUser, tokenOfOther, certificateSelection, contentName}

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

// pairs makes a finding of each line with a mark and the first line with another one on its machine that fits it.
func (t *timeline) pairs(code catalog.Code, sure Sure, first, second mark, fit func(a, b *line) bool) (found []finding) {
	for _, a := range t.firsts(first) {
		for _, s := range t.of(&a, second) {
			if b := s.lines[0]; fit(&a, &b) {
				found = append(found, pair(code, sure, a, b))
				break
			}
		}
	}
	return found
}

func before(a, b *line) bool { return after(b, a) }

func always(*line, *line) bool { return true }

// sharedIdentity finds one client id on machines with different hardware (S0:L25).
func sharedIdentity(t *timeline) []finding {
	hardwareOf := map[string]string{}
	for _, l := range t.firsts(hardware) {
		if found := hardwareForm.FindStringSubmatch(l.low); found != nil {
			hardwareOf[folderOf(l.file)] = found[1]
		}
	}
	machines := map[string][]line{} // with an id, whose hardware is known and is of none before
	var ids []string
	for _, b := range t.assigned {
		own := hardwareOf[folderOf(b.l.file)]
		if own == "" || slices.ContainsFunc(machines[b.id], func(l line) bool { return hardwareOf[folderOf(l.file)] == own }) {
			continue
		}
		if machines[b.id] == nil {
			ids = append(ids, b.id)
		}
		machines[b.id] = append(machines[b.id], b.l)
	}
	for _, id := range ids {
		if all := machines[id]; len(all) > 1 {
			return []finding{{code: catalog.SymptomDuplicateIdentity, sure: Likely, lines: cut(all), last: all[len(all)-1], count: len(all)}}
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
			if owner != nil && ownerName(owner) != host && !shared.MatchString(host) && !t.poolAccount(ownerName(owner)) {
				found = append(found, pair(catalog.SymptomNameOnUserAccount, Certain, *owner, *l))
			}
		}
	}
	return found
}

// nameOnSeveral finds a service name in a listing with several accounts below it; the sentence before them is in the language of the system.
func nameOnSeveral(t *timeline) (found []finding) {
	for _, f := range t.files {
		names, owners := f.seen[listedTwice], f.seen[listedName]
		if names == nil || owners == nil {
			continue
		}
		for _, name := range names.lines {
			below := slices.DeleteFunc(slices.Clone(owners.lines), func(l line) bool { return l.number <= name.number || l.number > name.number+2 || ownerName(&l) == "" })
			if len(below) == 2 {
				found = append(found, finding{code: catalog.SymptomTicketModified, sure: Certain, lines: append([]line{name}, below...), last: below[1], count: 1})
			}
		}
	}
	return found
}

// shared are parts of names that several computers have in common; the account of their pool owns such a name.
var shared = regexp.MustCompile(`nlb|clus|vip|farm|balanc|pool|(?:^|-)lb|lb(?:$|-)`)

// poolAccount says whether an application pool of the web server runs as the account, which then owns the names of its sites.
func (t *timeline) poolAccount(name string) bool {
	return slices.ContainsFunc(t.sightings(poolUser), func(s *sighting) bool {
		return slices.ContainsFunc(s.lines, func(l line) bool { return containsAny(l.low, []string{`\` + name + `"`, `username="` + name + `"`}) })
	})
}

func ownerName(l *line) string {
	if found := ownerForm.FindStringSubmatch(l.low); found != nil {
		return found[1]
	}
	return ""
}

var ownerForm = regexp.MustCompile(`\bcn=([^,]+),`)

// switchedOffForSetup finds a revocation check that was switched off for the installation, which went well, and fails later (S2:L227).
func switchedOffForSetup(t *timeline) (found []finding) {
	sets := t.firsts(noCRLCheck)
	for _, set := range sets[:min(len(sets), sightingsOfMachine)] {
		for _, failed := range t.firsts(mark(catalog.SymptomRevocationCheckFailed)) {
			if !ofSetup(&failed) && (after(&failed, &set) || !sameLog(&set, &failed) && (set.time.IsZero() || failed.time.IsZero())) {
				found = append(found, pair(catalog.SymptomNoCRLCheckTooShort, Likely, set, failed))
				break
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
	for _, failed := range t.firsts(mark(catalog.SymptomGatewayInvalidToken)) {
		if failed.time.IsZero() || ofSetup(&failed) {
			continue
		}
		for _, s := range t.of(&failed, cached, replied, registered, delivered) {
			if last := s.last; !last.time.IsZero() && failed.time.Sub(last.time) >= absence {
				found = append(found, pair(catalog.SymptomAwayTooLong, Likely, last, failed))
				break
			}
		}
	}
	return found
}

// cutCommandLine finds a command line with a token that the installer could not take apart.
func cutCommandLine(t *timeline) []finding {
	return t.pairs(catalog.SymptomCommandLineCut, Likely, regToken, mark(catalog.SymptomPropertySyntax), always)
}

// automaticSite finds the site code AUTO with a gateway, and no registration after it.
func automaticSite(t *timeline) (found []finding) {
	for _, given := range t.firsts(autoSite) {
		works := slices.ContainsFunc(t.of(&given, registered, replied), func(s *sighting) bool { return after(&s.last, &given) })
		if !works {
			found = append(found, finding{code: catalog.SymptomAutomaticSite, sure: Likely, lines: []line{given}, last: given, count: 1})
		}
	}
	return found
}

// certificateSwitch finds the switch for certificates on a device that is joined to a tenant.
func certificateSwitch(t *timeline) []finding {
	return t.pairs(catalog.SymptomPKISwitchOnJoined, Likely, usePKICert, joinedDevice, func(given, _ *line) bool {
		return len(t.of(given, askedEntra, entraAsking, entraToken, installed, registered)) == 0
	})
}

// tokenAndManagementPoint finds an installation with /mp and /regtoken that ends with 0x87d0027e.
func tokenAndManagementPoint(t *timeline) []finding {
	if t.status(catalog.SymptomConnectorUnauthorized, "cmgconnector_unauthorized") {
		return nil
	}
	return t.pairs(catalog.SymptomManagementPointWithToken, Likely, mpAndToken, noTokenCode, before)
}

// status says whether a symptom was seen by a text.
func (t *timeline) status(code catalog.Code, text string) bool {
	return slices.ContainsFunc(t.sightings(mark(code)), func(s *sighting) bool {
		return slices.ContainsFunc(s.lines, func(l line) bool { return strings.Contains(l.low, text) })
	})
}

// unauthorizedByToken finds the code of a refused token on a line that no other symptom has. The code alone only says that an
// answer was not the wanted one; the line must be about a token.
func unauthorizedByToken(t *timeline) (found []finding) {
	if len(t.seen[mark(catalog.SymptomConnectorUnauthorized)]) > 0 {
		return nil
	}
	for _, s := range t.sightings(noTokenCode) {
		of := slices.DeleteFunc(slices.Clone(s.lines), func(l line) bool { return !containsAny(l.low, []string{"token", "ccm_sts"}) })
		if len(of) > 0 {
			found = append(found, finding{code: catalog.SymptomConnectorUnauthorized, sure: Likely, lines: of, last: of[len(of)-1], count: len(of)})
		}
	}
	return found
}

// postFailedBy500 finds a message that was not taken, and the status 500 of the same machine's server; without it the line does not say why, but for the path
// of Windows authentication where no other status is told.
func postFailedBy500(t *timeline) (found []finding) {
	for _, s := range t.sightings(transient) {
		i := slices.IndexFunc(s.lines, func(l line) bool { return strings.Contains(l.low, "post to ") })
		if i < 0 {
			continue
		}
		failed := s.lines[i]
		statuses := t.of(&failed, serverFailed)
		switch told := t.of(&failed, reached, mark(catalog.SymptomConnectorInternalServerError)); {
		case len(t.of(&failed, mark(catalog.SymptomConnectorInternalServerError))) > 0: // the connection point's word
		case len(statuses) > 0:
			f := pair(catalog.SymptomPostFailed500, Likely, failed, statuses[0].lines[0])
			if len(t.seen[mark(catalog.SymptomDatabaseLogin)]) > 0 && len(t.seen[mark(catalog.SymptomPostFailed500)]) == 0 {
				f.because = catalog.SymptomDatabaseLogin // no server says that it is a module
			}
			found = append(found, f)
		case len(told) == 0 && strings.Contains(failed.low, "windowsauth"):
			found = append(found, finding{code: catalog.SymptomPostFailed500, sure: Likely, lines: cut(s.lines), last: s.last, count: s.count})
		}
	}
	return found
}

// unknownUser finds a registration with a user's token that is put off again and again.
func unknownUser(t *timeline) []finding {
	return t.pairs(catalog.SymptomUserUnknown, Likely, entraUser, transient, func(asked, failed *line) bool {
		return before(asked, failed) && !strings.Contains(failed.low, "post to")
	})
}

// tokenOfOther finds a token that is kept for another account than the one whose token ended before (S2:L213-215).
func tokenOfOther(t *timeline) (found []finding) {
	for _, ended := range t.firsts(tokenEnded) {
		for _, s := range t.later(&ended, cached) {
			i := slices.IndexFunc(s.lines, func(l line) bool { return sameLog(&l, &ended) && after(&l, &ended) })
			if i < 0 {
				continue
			}
			one, other := accountForm.FindStringSubmatch(ended.text), accountForm.FindStringSubmatch(s.lines[i].text)
			if one != nil && other != nil && one[1] != other[1] {
				found = append(found, pair(catalog.SymptomTokenOfOther, Likely, ended, s.lines[i]))
				break
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
func contentName(t *timeline) []finding {
	return t.pairs(catalog.SymptomContentName, Certain, mark(catalog.SymptomServerNameMismatch), contentFailed, before)
}
