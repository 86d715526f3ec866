package site

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
)

// Diagnosis says why a device can or cannot talk.
type Diagnosis struct {
	Verdict   *WhyVerdict  `json:"verdict"` // nil is "don't know"
	Stopped   string       `json:"stopped"` // where: before the site, token service, registration, approval, policy, ...; "" when nowhere
	Because   []string     `json:"because"` // what the verdict rests on
	Needs     []string     `json:"needs"`   // what it needs next, for this device
	Remedy    []string     `json:"remedy"`  // the catalogue's
	Tried     []Attempt    `json:"tried"`   // the newest first
	Decisions []string     `json:"decisions"`
	Also      []WhyVerdict `json:"also"` // true as well, and not what stops it first
	Undecided []string     `json:"undecided"`
}

// WhyVerdict is an entry of the catalogue, and how sure it is.
type WhyVerdict struct {
	Code  catalog.Code `json:"code"`
	Title string       `json:"title"`
	Sure  string       `json:"sure"` // certain or likely
}

// How sure a verdict is. What is less sure is no verdict.
const (
	certain = "certain"
	likely  = "likely"
)

// Attempt is one thing that the device, or somebody in its name, tried.
type Attempt struct {
	At      time.Time    `json:"at"`
	What    string       `json:"what"` // token, registration, policy, message, ...
	Code    catalog.Code `json:"code,omitempty"`
	Refused bool         `json:"refused"`
	Address string       `json:"address,omitempty"`
	Detail  string       `json:"detail,omitempty"`
	Times   int          `json:"times"` // in a row
}

// ruling is what a rule says.
type ruling struct {
	code    catalog.Code
	sure    string
	stopped string
	because string
	needs   []string
}

// whyRules are tried in order; the first that says something decides. What stops a device everywhere comes first, then what stopped it last, then what it
// waits for, then what stands between it and the site.
func whyRules() []func(*DeviceFacts) *ruling {
	return []func(*DeviceFacts) *ruling{whyBlocked, whyObsolete, whyNotRunning, whyTenant, whyWaiting, whyClock, whyHeld, whyQuarantined, whyUnapproved(true), whyRefused, whyUnapproved(false),
		whySilent, whyAfterToken, whyRemoved, whyTalks, whyLogs}
}

// Why judges the facts. It is a pure function of them.
func Why(f DeviceFacts) Diagnosis {
	d := Diagnosis{Because: []string{}, Needs: []string{}, Remedy: []string{}, Tried: f.tried(), Decisions: f.decisions(), Also: []WhyVerdict{}, Undecided: []string{}}
	for _, cut := range f.Cut {
		d.Undecided = append(d.Undecided, "looked at in part only: "+cut)
	}
	for _, rule := range whyRules() {
		r := rule(&f)
		if r == nil || d.Verdict != nil && d.Verdict.Code == r.code || slices.ContainsFunc(d.Also, func(v WhyVerdict) bool { return v.Code == r.code }) {
			continue
		}
		entry, _ := catalog.Lookup(r.code)
		verdict := WhyVerdict{r.code, entry.Title, r.sure}
		switch {
		case d.Verdict == nil:
			d.Verdict, d.Stopped, d.Needs = &verdict, r.stopped, append(d.Needs, r.needs...)
			d.Because = append(d.Because, r.because)
			for _, step := range entry.Remedy {
				d.Remedy = append(d.Remedy, strings.Join(strings.Fields(step), " "))
			}
			if len(d.Needs) == 0 && len(d.Remedy) > 0 {
				d.Needs = d.Remedy[:1:1]
			}
		case entry.Severity != catalog.SeverityInfo:
			d.Also = append(d.Also, verdict)
			d.Because = append(d.Because, string(r.code)+": "+r.because)
		}
	}
	if d.Verdict == nil {
		f.unknown(&d)
	}
	if f.ClockBehind != "" && (d.Verdict == nil || d.Verdict.Code != catalog.ClockBehind) {
		d.Undecided = append(d.Undecided, "whether times can be trusted: "+strings.Join(strings.Fields(f.ClockBehind), " "))
	}
	for _, problem := range f.Problems {
		d.Undecided = append(d.Undecided, "health of the management point: "+problem)
	}
	return d
}

// call is how a command names the device.
func (f *DeviceFacts) call() string {
	if f.Device == nil {
		return f.Asked
	}
	if name := f.Device.Name(); name != "" && !strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("'\"`$\\;&|<>", r) }) {
		return name
	}
	return string(f.Device.ClientID)
}

func moment(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.UTC().Format(time.RFC3339)
}

func whyBlocked(f *DeviceFacts) *ruling {
	if f.Device == nil || !f.Device.Block.Blocked {
		return nil
	}
	b := f.Device.Block
	return &ruling{catalog.DeviceBlocked, certain, "every door of the site", fmt.Sprintf("%s blocked it at %s: %s", b.By, moment(b.At), cmp.Or(b.Why, "no reason is kept")),
		[]string{"If it is to come back: postern device unblock " + f.call() + " --why REASON"}}
}

func whyObsolete(f *DeviceFacts) *ruling {
	if f.Device == nil || !f.Device.Superseded() {
		return nil
	}
	o := f.Device.Obsolete
	if o.By == f.Device.ClientID { // of a device that changed its key after the backup that was restored
		return &ruling{catalog.DeviceObsolete, certain, "every door of the site", fmt.Sprintf("at %s: %s, and which one is not known here", moment(o.At), o.Why),
			[]string{"To enrol again with the key that it has now: postern token new, then enrol the device with it"}}
	}
	return &ruling{catalog.DeviceObsolete, certain, "every door of the site", fmt.Sprintf("at %s the record %s (%s) took its place: %s", moment(o.At), o.By, cmp.Or(f.Successor, "which is gone too"), o.Why),
		[]string{"Ask about the record that took its place: postern device why " + string(o.By)}}
}

func whyNotRunning(f *DeviceFacts) *ruling {
	if f.Running {
		return nil
	}
	return &ruling{catalog.SiteNotRunning, certain, "before the site", "nothing answers at the administration door of the management point", []string{"Start the management point: postern serve mp --config FILE"}}
}

func whyTenant(f *DeviceFacts) *ruling {
	switch t := f.Tenant; {
	case t == nil || t.Listed && !t.Disabled:
		return nil
	case t.Listed:
		return &ruling{catalog.EntraTenantDisabled, certain, "token service", "it is approved on the word of tenant " + t.ID + " alone, and that tenant is switched off",
			[]string{"Switch it on again (postern tenant enable), or let the device enrol by another proof"}}
	default:
		return &ruling{catalog.EntraTenantUnknown, certain, "token service", "it is approved on the word of tenant " + t.ID + " alone, and that tenant was removed",
			[]string{"Onboard the tenant again (postern tenant add), or let the device enrol by another proof"}}
	}
}

func whyWaiting(f *DeviceFacts) *ruling {
	if len(f.Waiting) == 0 {
		return nil
	}
	w := f.Waiting[0]
	return &ruling{catalog.RegistrationWaits, certain, "registration", fmt.Sprintf("a registration of %s from %s waits since %s as %s", shown(cmp.Or(w.Name, "a device without a name")), cmp.Or(w.Address, "-"), moment(w.Received), w.ClientID),
		[]string{"The database: the registration is applied when it is back"}}
}

// clockCodes are refusals that a wrong clock of the site brings about.
func clockCodes() []catalog.Code {
	return []catalog.Code{catalog.TokenNotYetValid, catalog.TokenExpired, catalog.ProofFuture, catalog.ProofStale, catalog.AssertionExpired, catalog.EntraNotYetValid, catalog.EntraExpired, catalog.RegistrationCertificateExpired}
}

func whyClock(f *DeviceFacts) *ruling {
	last := f.lastRefusal()
	if f.ClockBehind == "" || last == nil || !slices.Contains(clockCodes(), catalog.Code(last.Code)) {
		return nil
	}
	return &ruling{catalog.ClockBehind, certain, "token service", "its last request was refused by the time (" + last.Code + "), and the clock of the management point jumped back",
		[]string{"Set the clock of the management point right"}}
}

func whyHeld(f *DeviceFacts) *ruling {
	if f.Device == nil || f.Device.Conflict == "" {
		return nil
	}
	id := f.Device.Conflict
	return &ruling{catalog.DeviceHeld, certain, "approval", "the conflict " + id + " waits for a person, and holds it at level known", []string{"A person's decision: postern conflict show " + id + " says what there is to decide"}}
}

func whyQuarantined(f *DeviceFacts) *ruling {
	if f.Device == nil || !f.Device.Quarantined() {
		return nil
	}
	q := f.Device.Quarantine
	return &ruling{catalog.DeviceQuarantined, certain, "approval", "in quarantine since " + moment(q.Since) + ": " + q.Why,
		[]string{"A fresh proof (a bulk token, Kerberos, a new registration), or a person: postern device release " + f.call() + " --why REASON"}}
}

// whyUnapproved says that a device waits for a person: first of all where policy was what it was refused.
func whyUnapproved(refusedPolicy bool) func(*DeviceFacts) *ruling {
	return func(f *DeviceFacts) *ruling {
		d := f.Device
		if d == nil || d.Approval.Level > proof.LevelKnown || d.Approval.Status != ccm.ApprovalNone {
			return nil
		}
		if last := f.lastRefusal(); refusedPolicy && (last == nil || last.Kind != "policy") {
			return nil
		}
		because := fmt.Sprintf("it registered by %s; the rule %q gave approval status %d, level %s", cmp.Or(string(d.Approval.Method), "its key alone"), d.Approval.Rule, d.Approval.Status, d.Approval.Level)
		if d.Rejected() {
			because = fmt.Sprintf("%s rejected it at %s: %s", d.Approval.By, moment(d.Approval.At), cmp.Or(d.Approval.Why, "no reason is kept"))
		}
		return &ruling{catalog.SymptomNotApproved, certain, "approval", because,
			[]string{"If it is yours: postern device approve " + f.call() + " --why REASON, or let it enrol by a proof that the site trusts (a bulk token, Kerberos of a trusted realm, an onboarded tenant)"}}
	}
}

// byStanders are events that refuse nothing.
func byStanders() []catalog.Code {
	return []catalog.Code{catalog.DeviceQuarantined, catalog.QuarantineLifted, catalog.RegistrationIDTaken, catalog.RegistrationCopyFailed, catalog.ClockBehind, catalog.HopHeadersForged, catalog.TwinHardware,
		catalog.TwinIdentity, catalog.TwinKey, catalog.RegistrationHintRefused, catalog.RegistrationUserAccount, catalog.RegistrationOtherComputer, catalog.RegistrationOutsideRealm}
}

// refuses reports whether an event is a refusal.
func refuses(e Event) bool {
	code := catalog.Code(e.Code)
	entry, ok := catalog.Lookup(code)
	return ok && entry.Severity != catalog.SeverityInfo && !slices.Contains(byStanders(), code)
}

// accepted is when a request of the device was accepted last.
func (f *DeviceFacts) accepted() (at time.Time) {
	if f.Device != nil {
		at = f.Device.LastSeen
	}
	return at
}

// lastRefusal is the newest refusal, unless a request was accepted after it.
func (f *DeviceFacts) lastRefusal() *Event {
	i := slices.IndexFunc(f.Events, refuses)
	if i < 0 || f.Device != nil && !f.Events[i].At.After(f.accepted()) {
		return nil
	}
	return &f.Events[i]
}

// needsOf says for common refusals what the device needs; others have the catalogue's remedy alone.
func needsOf(code catalog.Code) string {
	fresh := "A fresh bulk token: postern token new, then enrol the device with it"
	return map[catalog.Code]string{
		catalog.BulkTokenUsedUp: fresh, catalog.BulkTokenUnknown: fresh, catalog.TokenExpired: "A token that has not ended: a registered device gets one by its key (postern client renew), another needs a fresh bulk token",
		catalog.TokenBlocked: "A token that is not blocked: postern token new", catalog.KeyBlocked: "A key that is not blocked: postern device unblock, or a new enrolment",
		catalog.ProofStale: "A right clock: compare that of the device with that of the gateway", catalog.ProofFuture: "A right clock: compare that of the device with that of the gateway",
		catalog.TokenNotYetValid: "A right clock at the device, the gateway and the management point", catalog.ReturnUnknown: "To enrol: no registered device has its key",
		catalog.ReturnRejected: "A person who approves it: postern device approve", catalog.DeviceUnknown: "To register: its client id is not of this site",
	}[code]
}

// places says in which part of the site a kind of conversation ends.
func placeOf(kind string) string {
	return cmp.Or(map[string]string{"token": "token service", "registration": "registration", "policy": "policy", "message": "message endpoint", "peer": "peers", kindGateway: "the gateway"}[kind], cmp.Or(kind, "the site"))
}

func whyRefused(f *DeviceFacts) *ruling {
	e := f.lastRefusal()
	if e == nil {
		return nil
	}
	sure, how := f.certainty(*e), ""
	if sure == likely {
		how = "; what names the device there is not proved"
	}
	r := &ruling{code: catalog.Code(e.Code), sure: sure, stopped: placeOf(e.Kind)}
	r.because = fmt.Sprintf("refused at %s, from %s: %s%s", moment(e.At), cmp.Or(e.Address, "-"), shown(cmp.Or(e.Detail, "no detail is kept")), how)
	if text := needsOf(r.code); text != "" {
		r.needs = []string{text}
	}
	return r
}

// certainty is how sure it is that a refusal was the device's: the request proved its key. Anybody can claim a client id in a registration, and an address has
// many behind it.
func (f *DeviceFacts) certainty(e Event) string {
	switch {
	case e.Kind == "registration" || e.Code == string(catalog.ProofReplayed): // a proof that comes a second time comes from whoever has seen it
		return likely
	case f.Device == nil && isThumbprint(f.Asked) && e.Subject == f.Asked:
		return certain
	case f.Device != nil && (e.Subject == string(f.Device.ClientID) || e.Subject == string(f.Device.Key)):
		return certain
	}
	return likely
}

// gatewayPatience is how long a gateway may be silent; it acknowledges far more often.
const gatewayPatience = 2 * time.Minute

// whySilent blames the way from the internet where the device was heard no later than the gateways were.
func whySilent(f *DeviceFacts) *ruling {
	if f.Device == nil || len(f.Gateways) == 0 || !f.Running {
		return nil
	}
	newest := slices.MaxFunc(f.Gateways, func(a, b GatewayFact) int { return a.Heard.Compare(b.Heard) })
	if f.At.Sub(newest.Heard) <= gatewayPatience || f.accepted().After(newest.Heard.Add(gatewayPatience)) {
		return nil
	}
	because := fmt.Sprintf("of %d gateways the one heard last is %s, at %s; the device was heard last at %s", len(f.Gateways), newest.Name, momentOr(newest.Heard), momentOr(f.accepted()))
	if len(f.Connectors) > 0 && !slices.ContainsFunc(f.Connectors, func(c Connector) bool { return !c.Blocked && f.At.Before(c.Expires) }) {
		because += "; every connector is blocked, or its certificate has ended"
	}
	return &ruling{catalog.GatewaysSilent, likely, "before the site", because, []string{"A gateway and a connector that run; or a way to the management point from inside"}}
}

// momentOr writes a time that a store may keep as the beginning of all times.
func momentOr(t time.Time) string {
	if t.Unix() <= 0 {
		return "never"
	}
	return moment(t)
}

func whyAfterToken(f *DeviceFacts) *ruling {
	if f.Device != nil {
		return nil
	}
	needs := []string{"To go on with its enrolment: on the device, postern client enrol again; postern client status says where it stands"}
	switch {
	case f.Reserved != nil:
		return &ruling{catalog.DeviceStoppedAfterToken, certain, "between token service and registration", fmt.Sprintf("the client id %s is reserved for its key since %s, until %s", f.Reserved.ClientID, moment(f.Reserved.Created), moment(f.Reserved.Expires)), needs}
	case len(f.Uses) > 0:
		newest := slices.MaxFunc(f.Uses, func(a, b TokenUse) int { return a.At.Compare(b.At) })
		return &ruling{catalog.DeviceStoppedAfterToken, likely, "between token service and registration", fmt.Sprintf("a key used a bulk registration token at %s from %s and never registered", moment(newest.At), newest.Address), needs}
	}
	return nil
}

func whyRemoved(f *DeviceFacts) *ruling {
	i := slices.IndexFunc(f.Trust, func(e TrustEntry) bool { return e.Action == "device.remove" })
	if f.Device != nil || i < 0 {
		return nil
	}
	return &ruling{catalog.DeviceRemoved, certain, "registration", fmt.Sprintf("removed at %s (entry %d of the trust log); the record %s had replaced it", moment(f.Trust[i].At), f.Trust[i].Sequence, cmp.Or(f.Trust[i].facts()["replaced-by"], "-")),
		[]string{"To register again, if it is still in use"}}
}

// talking is how fresh an accepted request must be to say that a device talks; clients ask for policy every hour.
const talking = 24 * time.Hour

func whyTalks(f *DeviceFacts) *ruling {
	if f.Device == nil || f.Device.Level() <= proof.LevelKnown || f.At.Sub(f.accepted()) > talking {
		return nil
	}
	return &ruling{catalog.DeviceTalks, certain, "", "its last request was accepted at " + moment(f.accepted()), []string{"Nothing from the site"}}
}

func whyLogs(f *DeviceFacts) *ruling {
	if f.Logs == nil || f.Logs.Code == catalog.Healthy {
		return nil
	}
	return &ruling{f.Logs.Code, likely, "", "the logs of the management point say so of the lines about it: " + strings.Join(f.Logs.Lines, " | "), nil}
}

// unknown says what was looked at where nothing decides.
func (f *DeviceFacts) unknown(d *Diagnosis) {
	add := func(format string, arguments ...any) {
		d.Undecided = append(d.Undecided, fmt.Sprintf(format, arguments...))
	}
	own := "To be looked at from its own side: postern client status on the device, and its logs to postern explain; a ConfigMgr client's logs serve as well"
	if len(f.Gateways) > 0 {
		add("a gateway tells the site within seconds what it refuses by itself where the request proved a key; where it proved none (no token, or one that is not of this site), it tells few")
		own += ". Then the gateway's own logs, which count all of it: postern explain FOLDER there"
	}
	d.Needs = []string{own}
	if f.Device == nil {
		add("no device with that id, name or key is registered, no refusal and no waiting registration names it, no client id is reserved for it, and the trust log does not know it")
		add("a device that is refused before it registers is known by its address and key only: ask by the address that it comes from, or by its key")
		return
	}
	add("it is registered, nothing at the site refuses it, and it has not been heard since %s", momentOr(f.accepted()))
	if away := f.At.Sub(f.accepted()); f.SelfProveLife > 0 && away >= f.SelfProveLife {
		add("that is longer than a self-prove token lives (%d days): when it comes back by its key alone, it comes into quarantine", int(f.SelfProveLife/day))
	}
	add("whether it is switched off, has no network or is stopped on the way, its own logs say, and not the site's")
}

// tried is what is known of its attempts. What came again in a row is told once.
func (f *DeviceFacts) tried() []Attempt {
	all := []Attempt{}
	for _, e := range f.Events {
		a := Attempt{At: e.At, What: e.Kind, Code: catalog.Code(e.Code), Refused: refuses(e), Address: e.Address, Detail: e.Detail, Times: 1}
		if n := len(all); n > 0 && all[n-1].Code == a.Code && all[n-1].What == a.What && all[n-1].Address == a.Address && all[n-1].Detail == a.Detail {
			all[n-1].Times++
			continue
		}
		all = append(all, a)
	}
	return all
}

// decisions is what was decided about the device, in words, the newest first where the trust log tells it.
func (f *DeviceFacts) decisions() []string {
	all := []string{}
	add := func(format string, arguments ...any) { all = append(all, fmt.Sprintf(format, arguments...)) }
	if d := f.Device; d != nil {
		a := d.Approval
		add("approval status %d, level %s, by %s (rule %q, proof %s) at %s%s", a.Status, a.Level, a.By, a.Rule, cmp.Or(string(a.Method), "-"), moment(a.At), reasonOf(a.Why))
		if d.Proved != "" {
			add("its key has proved to be %s", shown(d.Proved))
		}
	}
	if b := f.Bulk; b != nil {
		add("bulk registration token %s (%s): %s", b.ID, cmp.Or(shown(b.Label), "no label"), b.stands(f.At))
	}
	for _, c := range f.Conflicts {
		add("conflict %s (%s) with %s: %s%s", c.ID, c.Kind, f.otherOf(c), c.State, reasonOf(c.Why))
	}
	for _, e := range f.Trust {
		facts := e.facts()
		add("%s %s by %s, entry %d of the trust log%s", moment(e.At), e.Action, shown(e.Actor), e.Sequence, reasonOf(facts["why"]))
	}
	return all
}

func reasonOf(why string) string {
	if why == "" {
		return ""
	}
	return ": " + shown(why)
}

// otherOf is the other device of a conflict.
func (f *DeviceFacts) otherOf(c Conflict) ccm.ClientID {
	if f.Device != nil && c.Newcomer == f.Device.ClientID {
		return c.Existing
	}
	return c.Newcomer
}

// stands says in words what a bulk token is good for now. That it has ended takes nothing from the devices that came by it.
func (t BulkToken) stands(now time.Time) string {
	uses := strconv.Itoa(t.Uses) + " uses of any number"
	if t.MaxUses > 0 {
		uses = fmt.Sprintf("%d of %d uses", t.Uses, t.MaxUses)
	}
	state := cmp.Or(map[bool]string{true: "blocked"}[t.Blocked], map[bool]string{true: "used up"}[t.MaxUses > 0 && t.Uses >= t.MaxUses], map[bool]string{true: "ended"}[!now.Before(t.Expires)], "good")
	return fmt.Sprintf("%s, %s, until %s", state, uses, moment(t.Expires))
}
