package explain

import (
	"postern/catalog"
	"regexp"
	"slices"
)

// clientMet is what a client's log shows of an answer.
type clientMet struct {
	marks []mark
	form  *regexp.Regexp // of such a line; nil for any
}

// Answers that servers give to one device.
var (
	metForbidden = clientMet{marks: []mark{reached, refusal, companion, mark(catalog.SymptomClientCertificateRequired), mark(catalog.SymptomConnectorClientCertificateRequired),
		mark(catalog.SymptomConnectorForbidden), mark(catalog.SymptomConnectorWebException), mark(catalog.SymptomClientCertificateUnusable)}, form: regexp.MustCompile(`\b403\b|forbidden|clientcertificate|private key|certificate`)}
	metUnauthorized = clientMet{marks: []mark{reached, refusal, noTokenCode, mark(catalog.SymptomGatewayInvalidToken), mark(catalog.SymptomConnectorUnauthorized), mark(catalog.SymptomNothingToAuthenticateWith),
		mark(catalog.SymptomDownloadUnauthenticated)}, form: regexp.MustCompile(`\b401\b|0x87d0027e|token`)}
	metNotTaken = clientMet{marks: []mark{reached, refusal, companion, contentFailed, mark(catalog.SymptomSetupPropfind), mark(catalog.SymptomFilteredOnTheWay)},
		form: regexp.MustCompile(`\b(404|405|413)\b|propfind|dav`)}
	metRejected = clientMet{marks: []mark{mark(catalog.SymptomRegistrationRejected), mark(catalog.SymptomRegistrationReset), mark(catalog.SymptomRegistrationPending), mark(catalog.SymptomNotApproved), transient,
		postFailed, noTokenCode}, form: regexp.MustCompile(`regist|regtask|approval`)}
)

// ofOneDevice are refusals of a server that concern the device that asked, and how its own log shows them.
var ofOneDevice = map[catalog.Code]clientMet{
	catalog.SymptomAccessClientCertificateMissing: metForbidden, catalog.SymptomAccessHTTPSRequired: metForbidden, catalog.SymptomCertificateMappingDenied: metForbidden,
	catalog.SymptomCertificateUntrusted: metForbidden, catalog.SymptomCertificateOutOfDate: metForbidden,
	catalog.SymptomTokenLifetimeOver: metUnauthorized, catalog.SymptomTokenBlocked: metUnauthorized, catalog.SymptomAllTokensRejected: metUnauthorized,
	catalog.SymptomRootNotInTrustList: metRejected, catalog.SymptomClientCertificateExpired: metRejected, catalog.SymptomCertificateRevoked: metRejected,
	catalog.SymptomRegistrationBodyInvalid: metRejected, catalog.SymptomDeviceBlocked: metRejected, catalog.SymptomRecordBad: metRejected,
	catalog.SymptomRequestFiltered: metNotTaken, catalog.SymptomPropfindRefused: metNotTaken,
	catalog.SymptomNegotiateFailed: metUnauthorized, catalog.SymptomAccessLogonFailed: metUnauthorized,
}

// explainLogons says of refused logons that they are what a computer of no domain meets, whose approval is the matter.
func (t *timeline) explainLogons(logons []finding) {
	if len(t.seen[workgroup]) == 0 || len(t.seen[mark(catalog.SymptomNotApproved)]) == 0 {
		return
	}
	for i := range logons {
		if logons[i].code == catalog.SymptomNegotiateFailed {
			logons[i].because = catalog.SymptomNotApproved
		}
	}
}

// setAside takes out what a server refused to one device among many that it served, and no client's log shows: every server of a site has such lines every day.
// Where there is nothing else, it is the verdict, and less sure, unless the logs of clients show that they are well.
func (t *timeline) setAside(active []finding) (kept, others []finding) {
	for i := range active {
		f := &active[i]
		shown := slices.ContainsFunc(active, func(effect finding) bool {
			r := ruleOf(effect.code)
			return (slices.Contains(r.follows, f.code) || slices.Contains(r.partOf, f.code)) && !sameLog(&effect.lines[0], &f.lines[0])
		})
		if answer, ok := ofOneDevice[f.code]; ok && !shown && t.among(f) && !t.met(answer) {
			others = append(others, *f)
			continue
		}
		kept = append(kept, *f)
	}
	if len(roots(kept)) > 0 || t.clientWorks() {
		return kept, others
	}
	for i := range active {
		if slices.ContainsFunc(others, func(f finding) bool { return f.code == active[i].code }) {
			active[i].sure = Likely
		}
	}
	return active, nil
}

// manyServed is how many records of a server's log are of others, for each that was refused.
const manyServed = 20

// among says whether the lines of a finding are few in the logs that they are in, which are no client's.
func (t *timeline) among(f *finding) bool {
	sightings := t.seen[mark(f.code)]
	if len(sightings) == 0 { // read from several lines, of one log each
		sightings = []*sighting{{last: f.last, count: f.count}}
	}
	return !slices.ContainsFunc(sightings, func(s *sighting) bool {
		return slices.ContainsFunc(t.logs[generations(s.last.file)], func(file *logFile) bool {
			return file.name == s.last.file && (file.client || file.lines < manyServed*s.count)
		})
	})
}

// met says whether a client or a connection point met the answer.
func (t *timeline) met(answer clientMet) bool {
	return slices.ContainsFunc(t.sightings(answer.marks...), func(s *sighting) bool {
		l := &s.last
		return (ofClient(l) || ofConnector(l)) && (answer.form == nil || answer.form.MatchString(l.low) || slices.ContainsFunc(s.lines, func(l line) bool { return answer.form.MatchString(l.low) }))
	})
}

// clientWorks says whether the work of a client goes well.
func (t *timeline) clientWorks() bool {
	return slices.ContainsFunc(t.files, func(f *logFile) bool {
		return f.client && slices.ContainsFunc(working, func(m mark) bool { return f.seen[m] != nil })
	})
}
