package ccm

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"postern/catalog"
)

// PolicyFlags say how a policy is to be handled (protocol.md 4.3).
type PolicyFlags uint32

// The policy flags of protocol.md 4.3.
const (
	PolicyTaskSequence              PolicyFlags = 1
	PolicyRequiresAuth              PolicyFlags = 2
	PolicySecret                    PolicyFlags = 4
	PolicyIntranetOnly              PolicyFlags = 8
	PolicyPersistWhole              PolicyFlags = 16
	PolicyAuthorizedDynamicDownload PolicyFlags = 32
	PolicyCompressed                PolicyFlags = 64
)

// Has reports whether every flag of want is set.
func (f PolicyFlags) Has(want PolicyFlags) bool { return f&want == want }

// PolicyError is the body that clients take for "you may not have this policy" (protocol.md 1.5). It goes with status 200.
const PolicyError = "<HTML><HEAD><TITLE>ERROR</TITLE></HEAD><BODY></BODY></HTML>"

// The two ways to ask for assignments (protocol.md 4.1).
const (
	AssignmentsAlways   = "Always"   // everything
	AssignmentsOnUpdate = "OnUpdate" // what changed since the server cookie
)

// AssignmentsRequest is the body of a message to MP_PolicyManager (protocol.md 4.1).
type AssignmentsRequest struct {
	ClientID     ClientID
	FQDN         string
	NetBIOSName  string
	PolicySource string // "SMS:" and a site code; some clients write a wrong one, so it decides nothing
	RequestType  string // AssignmentsAlways, AssignmentsOnUpdate or, in old clients, "Full"
	ServerCookie string
	ResourceType string // Machine or User
	Ack          bool
}

// ParseAssignmentsRequest reads the body of a request for policy assignments, of the elements in any order. The client id
// is what the body claims: the caller compares it with the proved one. Errors have the code AssignmentsRequestMalformed.
func ParseAssignmentsRequest(text string) (AssignmentsRequest, error) {
	root, err := parseRoot(text, "RequestAssignments")
	if err != nil {
		return AssignmentsRequest{}, catalog.Wrap(catalog.AssignmentsRequestMalformed, err, "request for policy assignments")
	}
	machine := root.Child("Identification").Child("Machine")
	if machine == nil {
		return AssignmentsRequest{}, catalog.Errorf(catalog.AssignmentsRequestMalformed, "Identification/Machine is missing")
	}
	for _, node := range []*element{root, root.Child("Identification"), machine} {
		if twice := node.Twice(); twice != "" {
			return AssignmentsRequest{}, catalog.Errorf(catalog.AssignmentsRequestMalformed, "%s is given twice", twice)
		}
	}
	id, err := ParseClientID(machine.ChildText("ClientID"))
	if err != nil {
		return AssignmentsRequest{}, catalog.Wrap(catalog.AssignmentsRequestMalformed, err, "Identification/Machine/ClientID is not a client id")
	}
	return AssignmentsRequest{
		ClientID:     id,
		FQDN:         machine.ChildText("FQDN"),
		NetBIOSName:  machine.ChildText("NetBIOSName"),
		PolicySource: root.ChildText("PolicySource"),
		RequestType:  root.Attr("RequestType"),
		ServerCookie: root.ChildText("ServerCookie"),
		ResourceType: root.Child("Resource").Attr("ResourceType"),
		Ack:          acknowledges(root),
	}, nil
}

// acknowledges reads the attribute that clients spell ACK, Ack and ack (protocol.md 4.1).
func acknowledges(root *element) bool {
	return slices.ContainsFunc(root.Attributes, func(a attribute) bool {
		return strings.EqualFold(a.Name, "ACK") && strings.EqualFold(a.Value, "true")
	})
}

// BuildAssignmentsRequest returns the body of a request for policy assignments, in the form of protocol.md 4.1.
func BuildAssignmentsRequest(r AssignmentsRequest) string {
	return tag("RequestAssignments",
		[]string{"SchemaVersion", "1.00", "ACK", strconv.FormatBool(r.Ack), "RequestType", cmp.Or(r.RequestType, AssignmentsAlways)},
		identification(r.ClientID, r.FQDN, r.NetBIOSName),
		textTag("PolicySource", r.PolicySource),
		tag("Resource", []string{"ResourceType", cmp.Or(r.ResourceType, "Machine")}),
		textTag("ServerCookie", r.ServerCookie))
}

func identification(id ClientID, fqdn, netBIOSName string) string {
	return tag("Identification", nil,
		tag("Machine", nil, textTag("ClientID", string(id)), textTag("FQDN", fqdn), textTag("NetBIOSName", netBIOSName), tag("SID", nil)),
		tag("User", nil))
}

// PolicyAssignment assigns one policy to a device (protocol.md 4.2).
type PolicyAssignment struct {
	ID       string // of the assignment, a GUID in braces
	PolicyID string
	Version  string // "1.00"
	Type     string // Machine or User
	Category string // for instance NAAConfig
	Flags    PolicyFlags
	Location string // where the body is; empty: PolicyLocation(PolicyID, Version)
	Hash     string // PolicyHash of the body, or empty
}

// AssignmentsReply is the answer to an AssignmentsRequest (protocol.md 4.2).
type AssignmentsReply struct {
	SiteCode     SiteCode
	ClientID     ClientID
	FQDN         string
	NetBIOSName  string
	ReplyType    string // Full (also when empty) or Delta
	ResourceType string // Machine when empty
	ServerCookie string // a time, "2026-01-01 00:00:00.000"
	Assignments  []PolicyAssignment
}

// XML returns the reply in the shape that the strictest parsers take: assignments directly under the root, PolicyCategory
// before the location, PolicyLocation the first child of Policy and its text a CDATA section (protocol.md 4.2, 12).
func (r AssignmentsReply) XML() string {
	return tag("ReplyAssignments",
		[]string{"SchemaVersion", "1.00", "ReplyType", cmp.Or(r.ReplyType, "Full")},
		identification(r.ClientID, r.FQDN, r.NetBIOSName),
		textTag("PolicySource", "SMS:"+string(r.SiteCode)),
		tag("Resource", []string{"ResourceType", cmp.Or(r.ResourceType, "Machine")}),
		textTag("ServerCookie", r.ServerCookie),
		each(r.Assignments, PolicyAssignment.xml))
}

func (a PolicyAssignment) xml() string {
	location := cmp.Or(a.Location, PolicyLocation(a.PolicyID, a.Version))
	location = strings.ReplaceAll(location, "]", "%5D") // clients read up to the first bracket
	return tag("PolicyAssignment", []string{"PolicyAssignmentID", a.ID},
		tag("Condition", nil),
		tag("Policy", []string{
			"PolicyID", a.PolicyID,
			"PolicyVersion", cmp.Or(a.Version, "1.00"),
			"PolicyType", cmp.Or(a.Type, "Machine"),
			"PolicyCategory", a.Category,
			"PolicyFlags", strconv.FormatUint(uint64(a.Flags), 10),
			"PolicyPriority", "25",
		}, tag("PolicyLocation", optional("PolicyHash", a.Hash, "PolicyHashEx", a.Hash), "<![CDATA["+strings.Map(xmlCharacter, location)+"]]>")))
}

// ParseAssignmentsReply reads a reply to a request for policy assignments. Errors have the code AssignmentsReplyMalformed.
func ParseAssignmentsReply(text string) (AssignmentsReply, error) {
	root, err := parseRoot(text, "ReplyAssignments")
	if err != nil {
		return AssignmentsReply{}, catalog.Wrap(catalog.AssignmentsReplyMalformed, err, "reply with policy assignments")
	}
	reply := AssignmentsReply{
		FQDN:         root.Child("Identification").Child("Machine").ChildText("FQDN"),
		NetBIOSName:  root.Child("Identification").Child("Machine").ChildText("NetBIOSName"),
		ReplyType:    root.Attr("ReplyType"),
		ResourceType: root.Child("Resource").Attr("ResourceType"),
		ServerCookie: root.ChildText("ServerCookie"),
	}
	// The two ids are for the reader only: a management point may leave them out or write anything.
	reply.ClientID, _ = ParseClientID(root.Child("Identification").Child("Machine").ChildText("ClientID"))
	reply.SiteCode, _ = ParseSiteCode(strings.TrimPrefix(root.ChildText("PolicySource"), "SMS:"))
	for _, node := range root.All("PolicyAssignment") {
		assignment, err := parseAssignment(node)
		if err != nil {
			return AssignmentsReply{}, catalog.Wrap(catalog.AssignmentsReplyMalformed, err, "policy assignment %s", node.Attr("PolicyAssignmentID"))
		}
		reply.Assignments = append(reply.Assignments, assignment)
	}
	return reply, nil
}

func parseAssignment(node *element) (PolicyAssignment, error) {
	policy := node.Child("Policy")
	flags, err := strconv.ParseUint(cmp.Or(policy.Attr("PolicyFlags"), "0"), 10, 32)
	if err != nil {
		return PolicyAssignment{}, fmt.Errorf("read PolicyFlags: %w", err)
	}
	assignment := PolicyAssignment{
		ID:       node.Attr("PolicyAssignmentID"),
		PolicyID: policy.Attr("PolicyID"),
		Version:  policy.Attr("PolicyVersion"),
		Type:     policy.Attr("PolicyType"),
		Category: policy.Attr("PolicyCategory"),
		Flags:    PolicyFlags(flags),
		Location: policy.ChildText("PolicyLocation"),
		Hash:     policy.Child("PolicyLocation").Attr("PolicyHash"),
	}
	if !policyIDForm.MatchString(assignment.PolicyID) {
		return PolicyAssignment{}, fmt.Errorf("PolicyID %q is not a policy id", assignment.PolicyID)
	}
	return assignment, nil
}

var (
	policyIDForm      = regexp.MustCompile(`^[A-Za-z0-9._{}-]{1,128}$`)
	policyVersionForm = regexp.MustCompile(`^([0-9]{1,9})_([0-9]{1,9})$`)
)

// ValidPolicyID reports whether id can stand in a policy location: letters, digits and ". _ { } -", at most 128.
func ValidPolicyID(id string) bool { return policyIDForm.MatchString(id) }

// PolicyLocation returns where the body of a policy is: "http://<mp>/SMS_MP/.sms_pol?{id}.1_00". Clients replace the
// literal <mp> (protocol.md 4.2). An empty version is 1.00.
func PolicyLocation(id, version string) string {
	return "http://<mp>/SMS_MP/.sms_pol?" + id + "." + strings.ReplaceAll(cmp.Or(version, "1.00"), ".", "_")
}

// ParsePolicyQuery reads the query of a .sms_pol request, "{id}.1_00", percent-encoded or not, and returns the id as sent
// and the version as "1.00". Errors have the code PolicyQueryMalformed.
func ParsePolicyQuery(query string) (id, version string, err error) {
	if len(query) > 1024 {
		return "", "", catalog.Errorf(catalog.PolicyQueryMalformed, "the query is longer than any policy id")
	}
	decoded, err := url.PathUnescape(query)
	if err != nil {
		return "", "", catalog.Wrap(catalog.PolicyQueryMalformed, err, "the query is wrongly encoded")
	}
	id, tail, _ := cutLast(decoded, ".")
	parts := policyVersionForm.FindStringSubmatch(tail)
	if parts == nil || !policyIDForm.MatchString(id) {
		return "", "", catalog.Errorf(catalog.PolicyQueryMalformed, "the query is not a policy id and a version")
	}
	return id, parts[1] + "." + parts[2], nil
}

func cutLast(s, separator string) (before, after string, found bool) {
	if i := strings.LastIndex(s, separator); i >= 0 {
		return s[:i], s[i+len(separator):], true
	}
	return s, "", false
}

// PolicyBody returns the body of a policy as clients read it: FF FE and UTF-16LE, no final NUL (protocol.md 4.5).
func PolicyBody(xml string) []byte { return append([]byte{0xFF, 0xFE}, encodeUTF16(xml)...) }

// DecodePolicyBody returns the text of a policy's body: UTF-16LE with or without a byte order mark and final NULs.
func DecodePolicyBody(body []byte) string { return strings.TrimRight(decodeUTF16(body), "\x00") }

// PolicyHash returns the hash that an assignment carries for a body: "SHA256:" and hexadecimal. The form is ours, in the
// likeness of what is known (protocol.md 4.2); no known client checks it.
func PolicyHash(body []byte) string {
	sum := sha256.Sum256(body)
	return "SHA256:" + upperHex(sum[:])
}
