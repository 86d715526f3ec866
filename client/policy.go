package client

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"postern/catalog"
	"postern/ccm"
)

// Budgets of policy.
const (
	maxAssignments  = 2000
	maxPolicyStored = 256 << 20
)

// Assignment is one policy that the site assigned to this device, and what became of its
// body. The body itself is kept sealed; see [Agent.Policy].
type Assignment struct {
	ID       string          `json:"id"` // of the assignment
	PolicyID string          `json:"policy_id"`
	Version  string          `json:"version"`
	Type     string          `json:"type,omitempty"`
	Category string          `json:"category,omitempty"`
	Flags    ccm.PolicyFlags `json:"flags"`
	Hash     string          `json:"hash,omitempty"`

	Bytes   int          `json:"bytes,omitempty"`     // of the body as text; 0 when there is none
	Sealed  bool         `json:"sealed,omitempty"`    // the body came sealed for this device
	Fetched time.Time    `json:"fetched,omitzero"`    // when
	Code    catalog.Code `json:"code,omitempty"`      // why there is no body
	Error   string       `json:"code_text,omitempty"` // the same in words
}

func (p Assignment) same(other Assignment) bool {
	return p.PolicyID == other.PolicyID && p.Version == other.Version && p.Hash == other.Hash
}

// Policies asks for the policies that are assigned to this device, fetches the bodies that
// are new, and returns them all. A body that could not be had has its reason in Code and
// is no error; it is tried again the next time.
func (a *Agent) Policies(ctx context.Context) ([]Assignment, error) {
	r := a.current()
	if !r.State.registered() {
		return nil, notEnrolled()
	}
	err := a.byAnyWay(ctx, func() error {
		ctx, c := a.converse(ctx, a.current(), a.logs.messaging, messageLine())
		return a.withToken(ctx, c, func(token string) error {
			return a.exclusive(ctx, func() error { return a.updatePolicies(ctx, c, token) })
		})
	})
	return a.current().Policies, err
}

// updatePolicies brings the kept policies up to date; the folder is ours.
func (a *Agent) updatePolicies(ctx context.Context, c *conversation, token string) error {
	var assigned ccm.AssignmentsReply
	err := a.step(ctx, c.route.hop(), "policy assignments", func() (err error) {
		assigned, err = a.assignments(ctx, c, token)
		return err
	})
	if err != nil {
		return err
	}
	kept := a.current().Policies
	list := make([]Assignment, 0, len(assigned.Assignments))
	for _, p := range assigned.Assignments {
		next := Assignment{ID: clean(p.ID, 128), PolicyID: p.PolicyID, Version: p.Version, Type: clean(p.Type, 64), Category: clean(p.Category, 64), Flags: p.Flags, Hash: clean(p.Hash, 200)}
		if at := slices.IndexFunc(kept, next.same); at >= 0 && kept[at].Bytes > 0 {
			next.Bytes, next.Sealed, next.Fetched = kept[at].Bytes, kept[at].Sealed, kept[at].Fetched
			list = append(list, next)
			continue
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		list = append(list, a.fetch(ctx, c, token, p, next))
	}
	err = a.save(func(r *record) {
		r.Policies = list
		if r.SiteCode == "" {
			r.SiteCode = assigned.SiteCode
		}
	})
	if err != nil {
		return err
	}
	a.forget(kept, list)
	return nil
}

// assignments is the question which policies there are (protocol.md 4.1).
func (a *Agent) assignments(ctx context.Context, c *conversation, token string) (ccm.AssignmentsReply, error) {
	id, err := a.newMessageID()
	if err != nil {
		return ccm.AssignmentsReply{}, err
	}
	r := a.current()
	site := r.SiteCode
	if site == "" {
		site = "PRI" // what clients that do not know write; the answer has the right one (protocol.md 4.1)
	}
	body := ccm.BuildAssignmentsRequest(ccm.AssignmentsRequest{
		ClientID: r.ClientID, FQDN: r.Name, NetBIOSName: netBIOSName(r.Name), PolicySource: "SMS:" + string(site), RequestType: ccm.AssignmentsAlways, ResourceType: "Machine",
	})
	got, err := a.deliver(ctx, c, message{id: id, endpoint: "MP_PolicyManager", body: fixed(body), token: token, source: r.ClientID, signed: true})
	if err != nil {
		return ccm.AssignmentsReply{}, err
	}
	reply, err := ccm.ParseAssignmentsReply(got.text)
	switch {
	case err != nil:
		return reply, err
	case reply.ClientID != "" && reply.ClientID != r.ClientID:
		return reply, catalog.Errorf(catalog.ClientReplyOther, "asked for %s, answered for %s", r.ClientID, reply.ClientID)
	case len(reply.Assignments) > maxAssignments:
		return reply, catalog.Errorf(catalog.ClientAnswerTooLarge, "%d assignments; at most %d are taken", len(reply.Assignments), maxAssignments)
	}
	return reply, nil
}

// fetch gets one body and keeps it sealed.
func (a *Agent) fetch(ctx context.Context, c *conversation, token string, p ccm.PolicyAssignment, next Assignment) Assignment {
	err := a.step(ctx, c.route.hop(), "policy body "+clean(p.PolicyID, 128), func() error {
		text, sealed, err := a.policyBody(ctx, c, token, p)
		if err != nil {
			return err
		}
		if err := a.keepBody(next, text); err != nil {
			return err
		}
		next.Bytes, next.Sealed, next.Fetched = len(text), sealed, a.config.Now().UTC()
		return nil
	})
	if err != nil {
		next.Code, next.Error = catalog.CodeOf(err), plain(err)
	}
	return next
}

// policyBody downloads a body and opens it (protocol.md 4.4, 4.5).
func (a *Agent) policyBody(ctx context.Context, c *conversation, token string, p ccm.PolicyAssignment) (text string, sealed bool, err error) {
	if p.Flags.Has(ccm.PolicyIntranetOnly) && c.route.Internet {
		return "", false, catalog.Errorf(catalog.ClientPolicyRefused, "it is for the inner network only")
	}
	query, err := locate(p)
	if err != nil {
		return "", false, err
	}
	endpoint := ccm.EndpointMP
	if token != "" {
		endpoint = ccm.EndpointMPTokenAuth
	}
	r := a.current()
	err = a.ask(ctx, c.to(c.log, policyLine()), func(now time.Time) (call, error) {
		header := http.Header{}
		err := ccm.SignPolicyAuth(header, r.ClientID, a.identity().signing, now)
		return call{method: http.MethodGet, url: c.url(endpoint, "/.sms_pol"), query: query, token: token, header: header, limit: maxPolicyBody}, err
	}, func(got answer) (err error) {
		text, sealed, err = a.openBody(got.body, p.Hash)
		return err
	})
	return text, sealed, err
}

// locate returns the query of a policy's address. The host in it is not used: the body is
// fetched where the agent talks anyway, so that nobody leads its proofs elsewhere.
func locate(p ccm.PolicyAssignment) (string, error) {
	foreign := catalog.Errorf(catalog.ClientPolicyLocation, "%.200q", clean(p.Location, 200))
	_, after, found := strings.Cut(p.Location, "://")
	at := strings.IndexByte(after, '/')
	if !found || at < 0 {
		return "", foreign
	}
	path, err := ccm.ParsePath(after[at:])
	if err != nil || path.Rest != "/.sms_pol" {
		return "", foreign
	}
	id, version, err := ccm.ParsePolicyQuery(path.Query)
	if err != nil || !ccm.ValidPolicyID(id) || !strings.EqualFold(strings.Trim(id, "{}"), strings.Trim(p.PolicyID, "{}")) {
		return "", foreign
	}
	_ = version // the query is sent as it was given; the hash says whether it is the body that was meant
	return strings.NewReplacer("{", "%7B", "}", "%7D").Replace(path.Query), nil
}

// openBody returns a body's text, whether it was sealed, and refuses one that is not what
// the assignment's hash says.
func (a *Agent) openBody(body []byte, hash string) (text string, sealed bool, err error) {
	if len(body) >= 6 && strings.EqualFold(string(body[:6]), "<HTML>") {
		return "", false, catalog.Errorf(catalog.ClientPolicyRefused, "the management point answered with its error page")
	}
	if len(body) > 0 && body[0] == derSequence {
		keys := a.identity()
		if body, err = ccm.OpenPolicy(body, keys.encryptionCert, keys.encryption); err != nil {
			return "", true, catalog.Wrap(catalog.ClientPolicyUnreadable, err, "the sealed body does not open with this device's key")
		}
		sealed = true
	}
	text = ccm.DecodePolicyBody(body)
	if text == "" {
		return "", sealed, catalog.Errorf(catalog.ClientPolicyUnreadable, "the body is empty")
	}
	// Which bytes the hash covers is nowhere documented (protocol.md 4.2): as served, or the text.
	if strings.HasPrefix(strings.ToUpper(hash), "SHA256:") && !strings.EqualFold(hash, ccm.PolicyHash(body)) && !strings.EqualFold(hash, ccm.PolicyHash([]byte(text))) {
		return "", sealed, catalog.Errorf(catalog.ClientPolicyUnreadable, "the body does not have the hash that its assignment names")
	}
	return text, sealed, nil
}

// derSequence begins EnvelopedData; a plain policy begins with its byte order mark or "<".
const derSequence = 0x30

// bodyFile is the name of a kept body: nothing that a server wrote becomes a file name.
func (p Assignment) bodyFile() string {
	sum := sha256.Sum256([]byte(p.PolicyID + "\x00" + p.Version))
	return hex.EncodeToString(sum[:16]) + ".sealed"
}

func (p Assignment) label() string { return "client policy " + p.PolicyID + " " + p.Version }

// keepBody writes a body sealed under the folder's key (C3).
func (a *Agent) keepBody(p Assignment, text string) error {
	if err := openFolder(a.path(folderBody)); err != nil {
		return err
	}
	total := len(text)
	for _, kept := range a.current().Policies {
		total += kept.Bytes
	}
	if total > maxPolicyStored {
		return catalog.Errorf(catalog.ClientAnswerTooLarge, "the kept policies would exceed %d bytes", maxPolicyStored)
	}
	if err := a.key.WriteSealed(a.path(folderBody, p.bodyFile()), p.label(), []byte(text)); err != nil {
		return notWritten(err, folderBody+"/"+p.bodyFile())
	}
	return nil
}

// forget removes the bodies of policies that are no longer assigned.
func (a *Agent) forget(old, list []Assignment) {
	for _, p := range old {
		still := slices.ContainsFunc(list, func(q Assignment) bool { return q.bodyFile() == p.bodyFile() })
		if still || p.Bytes == 0 {
			continue
		}
		if err := os.Remove(a.path(folderBody, p.bodyFile())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			a.log.Warn("a policy that is no longer assigned cannot be removed", "policy", p.PolicyID, "error", err)
		}
	}
}

// Policy returns the text of a kept policy. It may hold secrets.
func (a *Agent) Policy(policyID string) (string, error) {
	for _, p := range a.current().Policies {
		if p.Bytes == 0 || !strings.EqualFold(strings.Trim(p.PolicyID, "{}"), strings.Trim(policyID, "{}")) {
			continue
		}
		text, err := a.key.ReadSealed(a.path(folderBody, p.bodyFile()), p.label())
		if err != nil {
			return "", catalog.Wrap(catalog.ClientPolicyUnreadable, err, "the kept policy %s", p.PolicyID)
		}
		return string(text), nil
	}
	return "", catalog.Errorf(catalog.NotFound, "no policy %.128q is kept here", policyID)
}
