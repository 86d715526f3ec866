package client

import (
	"strconv"
	"strings"
	"time"

	"postern/catalog"
)

// Use says what becomes of a parameter.
type Use string

// The uses.
const (
	Applies Use = "applies"
	Ignored Use = "accepted, no effect" // there is nothing here that it could change
	Later   Use = "later"               // accepted with a warning; not part of this version
	Refused Use = "refused"             // to go on would do something else than was asked
)

// Parameter is one line of the table of ccmsetup's parameters and properties
// (product.md 7).
type Parameter struct {
	Name    string // as documented: "/mp", "CCMHOSTNAME"; compared without case
	Value   string // what the value is; "" for a switch
	Meaning string
	Use     Use
	Note    string // why it has no effect, or is refused

	set func(*Setup, string) error
}

// Parameters returns the table, for help texts and documentation.
func Parameters() []Parameter {
	return []Parameter{
		{"/mp", "address[;address]", "management points or gateways to start from", Applies, "", (*Setup).parsePoints},
		{"/regtoken", "token", "bulk registration token", Applies, "", (*Setup).setToken},
		{"/NoCRLCheck", "", "do not check revocation lists while enrolling", Applies, "", (*Setup).setNoCRLCheck},
		{"/UsePKICert", "", "use a certificate of the company when there is a valid one", Applies, "", (*Setup).setUsePKICert},
		{"/retry", "minutes", "try again after this long when the network fails", Applies, "", (*Setup).setRetry},
		{"/downloadtimeout", "minutes", "give up after this long of trying", Applies, "", (*Setup).setTimeout},
		{"/source", "folder", "where the client's files are", Ignored, "this client is one program and installs nothing", nil},
		{"/service", "", "run as a service", Ignored, "let the system run `postern client run` as a service", nil},
		{"/noservice", "", "do not run as a service", Ignored, "it runs in the foreground anyway", nil},
		{"/logon", "", "stop when a client is installed already", Ignored, "enrolling again changes nothing", nil},
		{"/forceinstall", "", "remove an existing client first", Ignored, "enrolling again changes nothing; remove the state folder to begin anew", nil},
		{"/forcereboot", "", "restart the machine when needed", Ignored, "nothing needs a restart", nil},
		{"/BITSPriority", "priority", "priority of downloads", Ignored, "nothing is downloaded to install", nil},
		{"/AllowMetered", "", "use metered networks", Ignored, "networks are not told apart", nil},
		{"/config", "file", "read parameters from a file", Refused, "write its parameters on the command line", nil},
		{"/skipprereq", "file", "skip a prerequisite", Ignored, "there are no prerequisites", nil},
		{"/ExcludeFeatures", "features", "leave features out", Ignored, "there are no features to leave out", nil},
		{"/uninstall", "", "remove the client", Refused, "delete the device at the site and remove the state folder", nil},

		{"CCMHOSTNAME", "HOST/CCM_Proxy_MutualAuth/<id>", "gateway, or management point on the internet", Applies, "", (*Setup).parseHostName},
		{"SMSSITECODE", "code", "three-character site code, or AUTO", Applies, "", (*Setup).parseSiteCode},
		{"SMSMP", "address", "initial management point inside", Applies, "", (*Setup).setPoint},
		{"SMSMPLIST", "address[;address]", "further initial management points", Applies, "", (*Setup).parsePointList},
		{"SMSPublicRootKey", "key", "the site root's key, or its hash", Applies, "", (*Setup).setRootKey},
		{"SMSROOTKEYPATH", "file", "file with the site root's key or its hash", Applies, "", (*Setup).setRootKeyFile},
		{"RESETKEYINFORMATION", "TRUE", "accept another root key than the one on record", Applies, "", (*Setup).setReset},
		{"SMSSIGNCERT", "file", "the site's signing certificate", Later, "answers are protected by TLS under the root key", nil},
		{"CCMALWAYSINF", "1", "always on the internet", Applies, "", (*Setup).setAlwaysInternet},
		{"CCMHTTPPORT", "port", "port for http", Applies, "", (*Setup).setHTTPPort},
		{"CCMHTTPSPORT", "port", "port for https", Applies, "", (*Setup).setHTTPSPort},
		{"CCMHTTPSSTATE", "mask", "options for https", Ignored, "https is always used where it is offered", nil},
		{"CCMCERTNAMECHECK", "0", "skip the name check", Refused, "a server's name is always checked", nil},
		{"CCMCERTSEL", "subject:NAME, subjectstr:PART or subjectattr:OU=VALUE", "which company certificate", Applies, "", (*Setup).setCertificateSelect},
		{"CCMCERTSTORE", "folder", "where company certificates are: NAME.pem with NAME.key", Applies, "", (*Setup).setCertificateStore},
		{"CCMCERTISSUERS", "CN=NAME; O=NAME | CN=OTHER", "issuers of company certificates", Applies, "", (*Setup).setCertificateIssuers},
		{"CCMFIRSTCERT", "1", "of several take the one that lasts longest", Applies, "", (*Setup).setFirstCertificate},
		{"AADTENANTID", "id", "Entra tenant; else that of the join", Applies, "", (*Setup).setTenant},
		{"AADCLIENTAPPID", "id", "Entra client application; else the gateway says it", Applies, "", (*Setup).setClientApp},
		{"AADRESOURCEURI", "URI", "Entra server application; else the gateway says it", Applies, "", (*Setup).setResource},
		{"CCMLOGLEVEL", "0 to 3", "0 writes everything", Applies, "", (*Setup).setLogLevel},
		{"CCMDEBUGLOGGING", "0 or 1", "1 writes everything", Applies, "", (*Setup).setDebug},
		{"CCMENABLELOGGING", "TRUE", "write logs", Ignored, "logs are always written", nil},
		{"CCMLOGMAXSIZE", "bytes", "size of a log", Ignored, "the documented default is used", nil},
		{"CCMLOGMAXHISTORY", "number", "older logs to keep", Ignored, "one older log is kept", nil},
		{"DNSSUFFIX", "domain", "where to look for management points", Later, "management points are not looked up in DNS yet", nil},
		{"FSP", "host", "fallback status point", Ignored, "there is no such role", nil},
		{"NOTIFYONLY", "TRUE", "report and do not repair", Ignored, "nothing is repaired by itself", nil},
		{"SMSCACHESIZE", "MB", "size of the content cache", Ignored, "there is no content cache", nil},
		{"PROVISIONTS", "id", "task sequence to run", Later, "task sequences are not run", nil},
		{"SMSCONFIGSOURCE", "letters", "where properties come from", Ignored, "they come from this command line", nil},
	}
}

// Budgets of a command line.
const (
	maxArguments = 256
	maxArgument  = 32 << 10
)

// ParseCommandLine reads ccmsetup's parameters and properties (product.md 7): parameters
// begin with "/" and take a value after a colon or an equals sign, properties are
// NAME=value; neither minds case or order. Errors have the codes ClientCommandUnknown
// (with the nearest name), ClientCommandValue, ClientCommandConflict,
// ClientCommandNotSupported and ClientPlainInternet, and never repeat a token.
func ParseCommandLine(args []string) (Setup, error) {
	var s Setup
	if len(args) > maxArguments {
		return Setup{}, catalog.Errorf(catalog.ClientCommandValue, "%d arguments; at most %d are read", len(args), maxArguments)
	}
	table, given := Parameters(), map[string]bool{}
	for _, arg := range args {
		name, value, err := splitArgument(arg)
		if err != nil {
			return Setup{}, err
		}
		parameter, ok := lookup(table, name)
		if !ok {
			return Setup{}, unknown(table, name)
		}
		if given[parameter.Name] {
			return Setup{}, catalog.Errorf(catalog.ClientCommandConflict, "%s is given twice", parameter.Name)
		}
		given[parameter.Name] = true
		if err := parameter.apply(&s, value); err != nil {
			return Setup{}, err
		}
	}
	return s, s.settle()
}

// splitArgument cuts an argument into name and value and takes quotes off the value.
func splitArgument(arg string) (name, value string, err error) {
	if len(arg) > maxArgument || strings.ContainsFunc(arg, func(r rune) bool { return r < ' ' || r == 0x7F }) {
		return "", "", catalog.Errorf(catalog.ClientCommandValue, "an argument is too long or holds control characters")
	}
	separators := "="
	if strings.HasPrefix(arg, "/") {
		separators = ":="
	}
	name = arg
	if at := strings.IndexAny(arg, separators); at >= 0 {
		name, value = arg[:at], arg[at+1:]
	}
	if len(value) >= 2 && value[0] == '"' && value[len(value)-1] == '"' {
		value = value[1 : len(value)-1]
	}
	return name, value, nil
}

func lookup(table []Parameter, name string) (Parameter, bool) {
	for _, p := range table {
		if strings.EqualFold(p.Name, name) {
			return p, true
		}
	}
	return Parameter{}, false
}

func (p Parameter) apply(s *Setup, value string) error {
	switch p.Use {
	case Refused:
		return catalog.Errorf(catalog.ClientCommandNotSupported, "%s: %s", p.Name, p.Note)
	case Ignored:
		s.note("%s has no effect: %s", p.Name, p.Note)
		return nil
	case Later:
		s.warn("%s is not part of this version: %s", p.Name, p.Note)
		return nil
	}
	if p.Value == "" && value != "" {
		return catalog.Errorf(catalog.ClientCommandValue, "%s takes no value", p.Name)
	}
	if value == "" && p.Value != "" {
		return catalog.Errorf(catalog.ClientCommandValue, "%s needs a value: %s", p.Name, p.Value)
	}
	if err := p.set(s, value); err != nil {
		return named(p.Name, err)
	}
	return nil
}

// named puts the parameter's name before what is wrong with its value.
func named(name string, err error) error {
	if e, ok := err.(*catalog.Error); ok {
		return &catalog.Error{Code: e.Code, Detail: name + ": " + e.Detail, Err: e.Err}
	}
	return err
}

// unknown names the nearest parameter, so that a slip of the hand is seen at once.
func unknown(table []Parameter, name string) error {
	best, distance := "", len(name)/2+1
	for _, p := range table {
		if len(name) > 4 && len(name) < len(p.Name) && strings.EqualFold(p.Name[:len(name)], name) {
			best, distance = p.Name, 0 // the beginning of one
			continue
		}
		if d := editDistance(strings.ToUpper(name), strings.ToUpper(p.Name), distance); d < distance {
			best, distance = p.Name, d
		}
	}
	if len(name) > 64 {
		name = name[:64]
	}
	if best == "" {
		return catalog.Errorf(catalog.ClientCommandUnknown, "%q is none of ccmsetup's parameters and properties", name)
	}
	return catalog.Errorf(catalog.ClientCommandUnknown, "%q is none of ccmsetup's parameters and properties; did you mean %s?", name, best)
}

// editDistance counts the letters to change between two short words; words whose lengths
// differ by limit or more are not compared.
func editDistance(a, b string, limit int) int {
	if len(a) > 64 || max(len(a), len(b))-min(len(a), len(b)) >= limit {
		return limit
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}

func (s *Setup) setToken(value string) error {
	if !tokenForm(value) {
		return catalog.Errorf(catalog.ClientCommandValue, "this is not a token: three parts of letters, digits, - and _, with dots between")
	}
	s.Token = Secret(value)
	s.warn("a token on the command line can be read by everyone on this machine and stays in the shell's history; use --token-file, or --token-file - for standard input")
	return nil
}

func (s *Setup) setPoint(value string) error {
	one := Setup{}
	if err := one.parsePoint(value); err != nil {
		return err
	}
	s.Notes = append(s.Notes, one.Notes...)
	s.ManagementPoint = one.ManagementPoint
	if s.listGateway.Host == "" {
		s.listGateway = one.Gateway
	}
	return nil
}

func (s *Setup) setRootKey(value string) (err error) {
	s.RootKey, err = ParseRootKey(value)
	return err
}

func (s *Setup) setRootKeyFile(value string) error { s.RootKeyFile = value; return nil }

func (s *Setup) setReset(value string) (err error) {
	s.ResetKeyInformation, err = truth(value)
	return err
}

func (s *Setup) setAlwaysInternet(value string) (err error) {
	s.AlwaysInternet, err = truth(value)
	return err
}

func (s *Setup) setNoCRLCheck(string) error { s.NoCRLCheck = true; return nil }

func (s *Setup) setUsePKICert(string) error { s.Certificate.Use = true; return nil }

func (s *Setup) setCertificateSelect(value string) error {
	s.Certificate.Select = value
	return checkCriterion(value)
}

func (s *Setup) setCertificateStore(value string) error { s.Certificate.Store = value; return nil }

func (s *Setup) setCertificateIssuers(value string) (err error) {
	s.Certificate.Issuers, err = parseIssuers(value)
	return err
}

func (s *Setup) setFirstCertificate(value string) (err error) {
	s.Certificate.First, err = truth(value)
	return err
}

func (s *Setup) setTenant(value string) (err error) {
	s.TenantID, err = identifier(value)
	return err
}

func (s *Setup) setClientApp(value string) (err error) {
	s.ClientApp, err = identifier(value)
	return err
}

func (s *Setup) setResource(value string) (err error) {
	s.Resource, err = identifier(value)
	return err
}

// identifier accepts ids and URIs of a tenant and its applications.
func identifier(value string) (string, error) {
	if len(value) > 512 || strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("\"'<>\\", r) }) {
		return "", catalog.Errorf(catalog.ClientCommandValue, "an id or a URI, not %.80q", value)
	}
	return value, nil
}

func (s *Setup) setDebug(value string) error {
	on, err := truth(value)
	s.Verbose = s.Verbose || on
	return err
}

func (s *Setup) setLogLevel(value string) error {
	level, err := strconv.Atoi(value)
	if err != nil || level < 0 || level > 3 {
		return catalog.Errorf(catalog.ClientCommandValue, "the log level is 0, 1, 2 or 3")
	}
	s.Verbose = s.Verbose || level == 0
	return nil
}

func (s *Setup) setHTTPPort(value string) (err error) {
	s.HTTPPort, err = portNumber(value)
	return err
}

func (s *Setup) setHTTPSPort(value string) (err error) {
	s.HTTPSPort, err = portNumber(value)
	return err
}

func (s *Setup) setRetry(value string) (err error) {
	s.Retry, err = minutes(value)
	return err
}

func (s *Setup) setTimeout(value string) (err error) {
	s.DownloadTimeout, err = minutes(value)
	return err
}

func truth(value string) (bool, error) {
	switch strings.ToUpper(value) {
	case "1", "TRUE":
		return true, nil
	case "0", "FALSE":
		return false, nil
	}
	return false, catalog.Errorf(catalog.ClientCommandValue, "TRUE or FALSE, 1 or 0, not %.20q", value)
}

// minutes reads a number of minutes, up to a year.
func minutes(value string) (time.Duration, error) {
	n, err := strconv.Atoi(value)
	if err != nil || n < 1 || n > 365*24*60 {
		return 0, catalog.Errorf(catalog.ClientCommandValue, "a number of minutes, not %.20q", value)
	}
	return time.Duration(n) * time.Minute, nil
}
