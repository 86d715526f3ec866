package ccm

import (
	"cmp"
	"crypto"
	"crypto/rsa"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"postern/catalog"
)

// The two kinds of a registration message (protocol.md 3.1, 3.5).
const (
	RegistrationTypeRegistration = "Registration"
	RegistrationTypeConfirmation = "Confirmation"
)

// What a registration is answered with (protocol.md 3.4).
const (
	RegistrationDone             = 0 // registered
	RegistrationPending          = 1 // accepted; confirm later, ask for no policy yet
	RegistrationReset            = 2 // could not be processed; send the registration again
	RegistrationRejected         = 3
	RegistrationCertificateReset = 4 // make new certificates and send the registration again
)

// ApprovalStatus says whether an administrator or a rule has approved a device (protocol.md 3.4).
type ApprovalStatus int

// The approval statuses of protocol.md 3.4 and S2.
const (
	ApprovalUnknown       ApprovalStatus = -1
	ApprovalNone          ApprovalStatus = 0
	ApprovalApproved      ApprovalStatus = 1
	ApprovalNotApplicable ApprovalStatus = 2 // the device has a PKI certificate
	ApprovalEntra         ApprovalStatus = 3 // the device has an Entra identity (S2)
)

// String returns the status in words.
func (a ApprovalStatus) String() string {
	names := map[ApprovalStatus]string{
		ApprovalUnknown: "unknown", ApprovalNone: "not approved", ApprovalApproved: "approved",
		ApprovalNotApplicable: "not applicable", ApprovalEntra: "approved by Entra ID",
	}
	if name, ok := names[a]; ok {
		return name
	}
	return "approval " + strconv.Itoa(int(a))
}

// wireTime is the form of every time in messages and headers.
const wireTime = "2006-01-02T15:04:05Z"

// Budgets of one registration, far above what clients send.
const (
	maxRegistrationProperties = 64
	maxRegistrationField      = 1024 // characters of one attribute or name
	maxRegistrationValue      = 1536 // of one property: the statement of a key about its successor is one
)

// Agent is the program that registers (protocol.md 3.1).
type Agent struct {
	Identity string // program name
	Version  string // dotted, four parts
	Type     int    // 0 client, 1 boot media, 2 or 3 device, 4 proxy, 8 proxy's client
}

// RegistrationRequest is a registration or a confirmation (protocol.md 3.1, 3.5). All its fields but the two of the
// signature come from SignedBytes and from nowhere else.
type RegistrationRequest struct {
	Type           string            // RegistrationTypeRegistration or RegistrationTypeConfirmation
	SMSID          ClientID          // "" when the management point is to assign one
	SignatureSMSID string            // the signer's id, when it signs for another or confirms; "" otherwise
	HashAlgorithm  string            // an object identifier, "" in the oldest messages
	TimeStamp      string            // as sent; some clients send local time with a Z
	Agent          Agent             //
	Signing        *Certificate      // nil only in confirmations
	Encryption     *Certificate      // nil when the device sent none
	KeyType        int               // 1 self-signed, 2 PKI (Signing/@KeyType)
	Properties     map[string]string // discovery properties by lower-case name; see Property
	Hint           []byte            // signature over the former client id by the former key; nil when none can be read
	HintClientID   ClientID          // the former client id; the SMSID when the hint does not say
	SignedBytes    []byte            // from <Data to </Data>, UTF-16LE, exactly as received
	Signature      []byte            // reversed, as received
}

// ParseRegistration reads the body of a message to MP_ClientRegistration. It proves nothing: call Verify.
//
// There is one Data element only, and the request is read from the very bytes that the signature covers, so that another
// text cannot be read than the one that was signed. Errors have the codes RegistrationMalformed and RegistrationCertificate.
func ParseRegistration(m *Message) (*RegistrationRequest, error) {
	text := m.Text()
	root, err := parseRoot(text, "ClientRegistrationRequest")
	if err != nil {
		return nil, catalog.Wrap(catalog.RegistrationMalformed, err, "registration: the message is not readable")
	}
	if len(root.All("Data")) != 1 || len(root.All("Signature")) != 1 {
		return nil, catalog.Errorf(catalog.RegistrationMalformed, "registration: one Data and one Signature element are needed")
	}
	data := root.Child("Data")
	r := &RegistrationRequest{SignedBytes: rawUTF16(m.Body, text, data.Start, data.End)}
	if err := r.readSignature(root.Child("Signature")); err != nil {
		return nil, err
	}
	if err := r.readData(data); err != nil {
		return nil, err
	}
	return r, nil
}

func (r *RegistrationRequest) readSignature(node *element) error {
	if len(node.All("SignatureValue")) != 1 {
		return catalog.Errorf(catalog.RegistrationMalformed, "registration: one SignatureValue is needed")
	}
	value, err := parseSignatureHex(node.ChildText("SignatureValue"))
	if err != nil {
		return catalog.Wrap(catalog.RegistrationMalformed, err, "registration: SignatureValue is not a signature")
	}
	r.Signature = value
	smsid := node.Attr("SMSID")
	if smsid == "" {
		return nil
	}
	id, err := ParseClientID(smsid)
	if err != nil {
		return catalog.Wrap(catalog.RegistrationMalformed, err, "registration: Signature/@SMSID is not a client id")
	}
	r.SignatureSMSID = string(id)
	return nil
}

// readData fills the request from the Data element.
func (r *RegistrationRequest) readData(data *element) error {
	if twice := data.Twice(); twice != "" {
		return catalog.Errorf(catalog.RegistrationMalformed, "registration: %s is given twice", twice)
	}
	r.Type = data.Attr("RequestType")
	r.HashAlgorithm, r.TimeStamp = data.Attr("HashAlgorithm"), data.Attr("TimeStamp")
	if err := r.readIdentity(data); err != nil {
		return catalog.Wrap(catalog.RegistrationMalformed, err, "registration: an attribute or property is wrong")
	}
	if err := r.readCertificates(data.Child("Certificates")); err != nil {
		return catalog.Wrap(catalog.RegistrationCertificate, err, "registration: a certificate cannot be read")
	}
	if r.Type == RegistrationTypeRegistration && r.Signing == nil {
		return catalog.Errorf(catalog.RegistrationCertificate, "registration: the Signing certificate is missing")
	}
	r.HintClientID, r.Hint = parseHint(data.ChildText("RegistrationHint"), r.SMSID)
	return nil
}

func (r *RegistrationRequest) readIdentity(data *element) error {
	if r.Type != RegistrationTypeRegistration && r.Type != RegistrationTypeConfirmation {
		return errors.New("RequestType is neither Registration nor Confirmation")
	}
	if smsid := data.Attr("SMSID"); smsid != "" {
		id, err := ParseClientID(smsid)
		if err != nil {
			return errors.New("SMSID is not a client id")
		}
		r.SMSID = id
	}
	if r.Type == RegistrationTypeConfirmation && r.SMSID == "" {
		return errors.New("the confirmation has no SMSID")
	}
	agent := data.Child("AgentInformation")
	agentType, err := strconv.Atoi(cmp.Or(agent.Attr("AgentType"), "0"))
	if err != nil {
		return errors.New("AgentType is not a number")
	}
	r.Agent = Agent{Identity: agent.Attr("AgentIdentity"), Version: agent.Attr("AgentVersion"), Type: agentType}
	for _, field := range []string{r.HashAlgorithm, r.TimeStamp, r.Agent.Identity, r.Agent.Version} {
		if len(field) > maxRegistrationField {
			return errors.New("an attribute is too long")
		}
	}
	return r.readProperties(data.Child("DiscoveryProperties").All("Property"))
}

func (r *RegistrationRequest) readProperties(nodes []*element) error {
	if len(nodes) > maxRegistrationProperties {
		return fmt.Errorf("%d discovery properties are more than %d", len(nodes), maxRegistrationProperties)
	}
	r.Properties = make(map[string]string, len(nodes))
	for _, node := range nodes {
		name, value := propertyKey(node.Attr("Name")), node.Attr("Value")
		if name == "" || len(name) > maxRegistrationField || len(value) > maxRegistrationValue {
			return errors.New("a discovery property has no name or is too long")
		}
		if _, twice := r.Properties[name]; twice {
			return fmt.Errorf("the discovery property %q is given twice", name)
		}
		r.Properties[name] = value
	}
	return nil
}

// propertyKey returns the form of a property's name under which it is kept. Sources write "Device ID" and "DeviceID".
func propertyKey(name string) string {
	key := strings.ToLower(strings.TrimSpace(name))
	if key == "device id" {
		return "deviceid"
	}
	return key
}

func (r *RegistrationRequest) readCertificates(node *element) error {
	var err error
	if r.Signing, err = parseCertificateHex(node, "Signing"); err != nil {
		return err
	}
	if r.Encryption, err = parseCertificateHex(node, "Encryption"); err != nil {
		return err
	}
	r.KeyType, err = strconv.Atoi(cmp.Or(node.Child("Signing").Attr("KeyType"), "0"))
	if err != nil {
		return errors.New("KeyType is not a number")
	}
	return nil
}

// parseCertificateHex reads the named certificate under node; nil when there is none.
func parseCertificateHex(node *element, name string) (*Certificate, error) {
	if len(node.All(name)) > 1 {
		return nil, fmt.Errorf("the %s certificate is given twice", name)
	}
	text := node.ChildText(name)
	if text == "" {
		return nil, nil
	}
	der, err := parseHex(text)
	if err != nil {
		return nil, fmt.Errorf("the %s certificate is not hexadecimal", name)
	}
	certificate, err := ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("the %s certificate: %w", name, err)
	}
	return certificate, nil
}

// parseHint reads a RegistrationHint in either of its forms: the bare signature (protocol.md 3.1), or lines of the
// policy headers with CCMClientID and CCMClientIDSignature among them, as the messaging SDK writes it.
func parseHint(text string, id ClientID) (ClientID, []byte) {
	if signature, err := parseSignatureHex(text); err == nil {
		return id, signature
	}
	lines := map[string]string{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(line, ":"); ok {
			lines[strings.ToLower(strings.TrimSpace(name))] = strings.TrimSpace(value)
		}
	}
	former, err := ParseClientID(lines["ccmclientid"])
	if err != nil {
		return "", nil
	}
	signature, err := parseSignatureHex(lines["ccmclientidsignature"])
	if err != nil {
		return "", nil
	}
	return former, signature
}

// Verify checks the signature over SignedBytes with the key, or with the request's own signing certificate when key is
// nil; the latter proves only that the sender holds that key. Errors have the code RegistrationSignature.
func (r *RegistrationRequest) Verify(key *rsa.PublicKey) error {
	if key == nil && r.Signing != nil {
		key = r.Signing.PublicKey
	}
	if key == nil {
		return catalog.Errorf(catalog.RegistrationSignature, "there is no key to check the signature with")
	}
	if err := VerifyReversed(key, r.HashAlgorithm, r.SignedBytes, r.Signature); err != nil {
		return catalog.Wrap(catalog.RegistrationSignature, err, "the signature over the Data element does not fit")
	}
	return nil
}

// VerifyHint checks that the hint is a signature by key over HintClientID. Errors have the code RegistrationHintInvalid.
//
// WARNING: the hint has no time in it, and the same signature travels in every signed message. Whoever has seen one can
// send it, so a hint may explain a registration and must never by itself hand over a client id.
func (r *RegistrationRequest) VerifyHint(key *rsa.PublicKey) error {
	if len(r.Hint) == 0 || key == nil {
		return catalog.Errorf(catalog.RegistrationHintInvalid, "there is no hint or no key to check it with")
	}
	if err := verifySignedText(key, cmp.Or(r.HashAlgorithm, hashSHA256WithRSA), r.Hint, string(r.HintClientID)); err != nil {
		return catalog.Wrap(catalog.RegistrationHintInvalid, err, "the hint is not a signature over %s", r.HintClientID)
	}
	return nil
}

// Property returns a discovery property by its name in any case, for instance "NetBIOS Name"; "" when it was not sent.
func (r *RegistrationRequest) Property(name string) string { return r.Properties[propertyKey(name)] }

// propertyNames are the discovery properties as clients write them, in their order (protocol.md 3.1).
func propertyNames() []string {
	return []string{"Netbios Name", "FQ Name", "Locale ID", "InternetFlag", "DeviceID", "HardwareID1", "MACAddress", "SMBIOSID",
		"ExchangeDeviceID", "PublisherDeviceID", "Agent Edition"}
}

// BuildRegistration returns the body of a registration or a confirmation, signed with key, SHA-256. Type, SMSID,
// SignatureSMSID, TimeStamp, Agent, KeyType, the certificates, Properties and Hint are taken from r; the rest is ignored. A
// confirmation is written without certificates and properties, as clients do.
func BuildRegistration(r RegistrationRequest, key *rsa.PrivateKey) (string, error) {
	data := tag("Data",
		[]string{"HashAlgorithm", hashSHA256WithRSA, "SMSID", string(r.SMSID), "RequestType", r.Type, "TimeStamp", r.TimeStamp},
		tag("AgentInformation", []string{"AgentIdentity", r.Agent.Identity, "AgentVersion", r.Agent.Version, "AgentType", strconv.Itoa(r.Agent.Type)}),
		r.certificatesXML(), r.propertiesXML(), r.hintXML())
	signature, err := SignReversed(key, encodeUTF16(data))
	if err != nil {
		return "", fmt.Errorf("sign %s: %w", strings.ToLower(r.Type), err)
	}
	return tag("ClientRegistrationRequest", nil, data,
		tag("Signature", optional("SMSID", r.SignatureSMSID), textTag("SignatureValue", signature))), nil
}

func (r RegistrationRequest) certificatesXML() string {
	if r.Type == RegistrationTypeConfirmation || r.Signing == nil {
		return ""
	}
	attributes := []string{"Encoding", "HexBinary", "KeyType", strconv.Itoa(max(r.KeyType, 1))}
	var encryption string
	if r.Encryption != nil {
		encryption = tag("Encryption", attributes, upperHex(r.Encryption.DER))
	}
	return tag("Certificates", nil, encryption, tag("Signing", attributes, upperHex(r.Signing.DER)))
}

func (r RegistrationRequest) propertiesXML() string {
	if r.Type == RegistrationTypeConfirmation {
		return ""
	}
	rest := map[string]string{}
	for name, value := range r.Properties {
		rest[propertyKey(name)] = value
	}
	var list strings.Builder
	for _, name := range propertyNames() {
		if value, ok := rest[propertyKey(name)]; ok {
			list.WriteString(tag("Property", []string{"Name", name, "Value", value}))
			delete(rest, propertyKey(name))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(rest)) {
		list.WriteString(tag("Property", []string{"Name", name, "Value", rest[name]}))
	}
	return tag("DiscoveryProperties", nil, list.String())
}

func (r RegistrationRequest) hintXML() string {
	if len(r.Hint) == 0 {
		return ""
	}
	return textTag("RegistrationHint", upperHex(r.Hint))
}

// SignRegistrationHint returns a RegistrationHint: the signature over a former client id by its key (protocol.md 3.1).
func SignRegistrationHint(id ClientID, key *rsa.PrivateKey) ([]byte, error) {
	signature, err := signReversed(key, crypto.SHA256, encodeUTF16Z(string(id)), true)
	if err != nil {
		return nil, fmt.Errorf("sign hint for %s: %w", id, err)
	}
	return signature, nil
}

// RegistrationResponse is the answer to a registration or a confirmation (protocol.md 3.4).
type RegistrationResponse struct {
	Type           string // of the request that is answered
	TimeStamp      time.Time
	Status         int // RegistrationDone to RegistrationCertificateReset
	SMSID          ClientID
	ApprovalStatus ApprovalStatus
}

// XML returns the response with its attributes on the root in the order and quotes that clients search for. The SMSID is
// there for the statuses done and pending only (protocol.md 3.4).
func (r RegistrationResponse) XML() string {
	attributes := []string{
		"ResponseType", cmp.Or(r.Type, RegistrationTypeRegistration),
		"TimeStamp", r.TimeStamp.UTC().Format(wireTime),
		"Status", strconv.Itoa(r.Status),
	}
	if r.Status == RegistrationDone || r.Status == RegistrationPending {
		attributes = append(attributes, "SMSID", string(r.SMSID))
	}
	return tag("ClientRegistrationResponse", append(attributes, "ApprovalStatus", strconv.Itoa(int(r.ApprovalStatus))))
}

// ParseRegistrationResponse reads the answer to a registration. A response of the 2007 form has no ApprovalStatus and gives
// ApprovalUnknown. Errors have the code RegistrationResponseMalformed.
func ParseRegistrationResponse(text string) (RegistrationResponse, error) {
	r, err := parseRegistrationResponse(text)
	if err != nil {
		return RegistrationResponse{}, catalog.Wrap(catalog.RegistrationResponseMalformed, err, "answer to the registration")
	}
	return r, nil
}

func parseRegistrationResponse(text string) (RegistrationResponse, error) {
	root, err := parseRoot(text, "ClientRegistrationResponse")
	if err != nil {
		return RegistrationResponse{}, err
	}
	status, err := strconv.Atoi(root.Attr("Status"))
	if err != nil || status < RegistrationDone || status > RegistrationCertificateReset {
		return RegistrationResponse{}, fmt.Errorf("status %q is unknown", root.Attr("Status"))
	}
	approval, err := strconv.Atoi(cmp.Or(root.Attr("ApprovalStatus"), "-1"))
	if err != nil {
		return RegistrationResponse{}, fmt.Errorf("read ApprovalStatus: %w", err)
	}
	r := RegistrationResponse{Type: root.Attr("ResponseType"), Status: status, ApprovalStatus: ApprovalStatus(approval)}
	// The time is for the reader only; a response without it is as good.
	r.TimeStamp, _ = time.Parse(wireTime, root.Attr("TimeStamp"))
	if status != RegistrationDone && status != RegistrationPending {
		return r, nil
	}
	if r.SMSID, err = ParseClientID(root.Attr("SMSID")); err != nil {
		return RegistrationResponse{}, fmt.Errorf("read SMSID: %w", err)
	}
	return r, nil
}
