package explain

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
)

// Redacted is the report without the names, addresses, ids and accounts of the people and machines in it: each has the same
// placeholder wherever it stands, so that the story can still be followed. Codes, titles and remedies stay.
func (r Report) Redacted() Report {
	d := &redaction{placeholders: map[string]string{}, counts: map[string]int{}}
	r.Undecided, r.Looked = withoutOtherFiles(r.Undecided), withoutOtherFiles(r.Looked)
	for _, e := range r.Evidence { // names that only an address shows to be names are known before anything is replaced
		d.learn(e.Text)
	}
	for _, s := range slices.Concat(r.Followed, r.Undecided, r.Looked) {
		d.learn(s)
	}
	for _, e := range r.Events {
		d.learn(e.Text)
		d.folder(path.Dir(e.File))
	}
	out := r
	out.Evidence = slices.Clone(r.Evidence)
	for i := range out.Evidence {
		e := &out.Evidence[i]
		e.File, e.Text = d.file(e.File), d.text(e.Text)
	}
	out.Events = slices.Clone(r.Events)
	for i := range out.Events {
		e := &out.Events[i]
		e.File, e.Text = d.file(e.File), d.text(e.Text)
	}
	out.Followed, out.Undecided, out.Looked = d.texts(r.Followed), d.texts(r.Undecided), d.texts(r.Looked)
	return out
}

// withoutOtherFiles leaves out what files are called that are no logs.
func withoutOtherFiles(sentences []string) []string {
	all := slices.Clone(sentences)
	for i, s := range all {
		if before, _, found := strings.Cut(s, noKnownLine); found {
			all[i] = before + noKnownLine
		}
	}
	return all
}

// redaction gives placeholders.
type redaction struct {
	placeholders map[string]string
	counts       map[string]int
	names        []string // host names, longest first
	folders      []string
}

func (d *redaction) placeholder(kind, what string) string {
	key := kind + "\n" + strings.ToLower(what)
	if d.placeholders[key] == "" {
		d.counts[kind]++
		d.placeholders[key] = fmt.Sprintf("%s-%d", kind, d.counts[kind])
	}
	return d.placeholders[key]
}

var (
	hostInAddress = regexp.MustCompile(`(?i)(?:https?:/{2,3}|host=|server '|host '|from CMG '|server )([a-z0-9][a-z0-9_-]*(?:\.[a-z0-9_-]+)*\.?[a-z0-9_-]*)`)
	hostAlone     = regexp.MustCompile(`(?i)\b[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*\.(?:com|net|org|edu|gov|int|local|localdomain|lan|corp|internal|intern|intra|home|example|test|invalid|cloud|app|dev|io|[a-z]{2})\b`)
	computerName  = regexp.MustCompile(`\b[A-Za-z][A-Za-z0-9]*(?:-[A-Za-z0-9]+)*-[A-Za-z0-9]*[0-9][A-Za-z0-9]*(?:-[A-Za-z0-9]+)*\b`)
	accountName   = regexp.MustCompile(`\b[A-Za-z][A-Za-z0-9._-]*\\[A-Za-z0-9._-]+\$?|[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+|\bS-1-[0-9]+(?:-[0-9]+)+\b|\b[A-Za-z0-9-]+\$(?:\s|$|')`)
	certName      = regexp.MustCompile(`(?i)\b((?:CN|O|OU|DC|E|L)=)([^,;"'<>]{1,120})`)
	guidForm      = regexp.MustCompile(`(?i)[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)
	ipForm        = regexp.MustCompile(`\b(?:[0-9]{1,3}\.){3}[0-9]{1,3}\b|\b(?:[0-9a-fA-F]{1,4}:){3,7}[0-9a-fA-F]{1,4}\b|\b[0-9a-fA-F:]*::[0-9a-fA-F:]+\b`)
	longNumber    = regexp.MustCompile(`\b[0-9]{10,}\b`)
	secretForm    = regexp.MustCompile(`(?i)\b((?:password|passwd|pwd|secret|client_secret|api[_-]?key|kennwort|mot de passe|sig|signature)\s*[=:]\s*)[^\s,;&]+|\b[0-9A-Fa-f]{40,}\b`)
	longText      = regexp.MustCompile(`[A-Za-z0-9+_-]{44,}={0,2}`)
	tenantName    = regexp.MustCompile(`(?i)\btenant (?:named )?'?([A-Za-z][A-Za-z0-9-]{3,})`)
	fileEnding    = regexp.MustCompile(`(?i)\.(?:log|lo_|txt|zip|json|cpp|dll|exe|cab|msi|xml|ini|svc|cs|config|rdr|md|gz)$`)
	systemName    = regexp.MustCompile(`^(?:System|Microsoft|Windows)\.|^UTF-|^SHA-|^AES-|^TLS-|^RFC-`)
)

// learn collects the names of hosts from where they cannot be anything else.
func (d *redaction) learn(text string) {
	for _, found := range hostInAddress.FindAllStringSubmatch(text, -1) {
		d.name(found[1])
	}
	for _, name := range hostAlone.FindAllString(text, -1) {
		d.name(name)
	}
	for _, found := range tenantName.FindAllStringSubmatch(text, -1) {
		if low := strings.ToLower(found[1]); !slices.Contains(tenantWords, low) && !slices.Contains(d.names, low) {
			d.names = append(d.names, low)
		}
	}
}

func (d *redaction) name(name string) {
	name = strings.Trim(name, ".")
	if len(name) < 2 || fileEnding.MatchString(name) || systemName.MatchString(name) || ipForm.MatchString(name) || slices.Contains(d.names, strings.ToLower(name)) {
		return
	}
	d.names = append(d.names, strings.ToLower(name))
	if parts := strings.Split(strings.ToLower(name), "."); len(parts) > 1 {
		for _, part := range parts[:len(parts)-1] {
			if len(part) > 2 && !slices.Contains(publicNames, part) && !slices.Contains(d.names, part) {
				d.names = append(d.names, part)
			}
		}
	}
	slices.SortFunc(d.names, func(a, b string) int { return len(b) - len(a) })
}

// tenantWords follow the word tenant without being its name.
var tenantWords = []string{"named", "gives", "that", "which", "does", "with", "from", "were", "tenantid", "policy", "this", "asks", "only", "without", "token"}

// publicNames are parts of names that are everybody's.
var publicNames = []string{"www", "com", "net", "org", "login", "sts", "cmg", "windows", "microsoft", "microsoftonline", "cloudapp", "azure", "manage", "graph", "blob", "core", "vault", "internal",
	"local", "client", "server", "gateway", "site", "system", "error", "token", "https", "http"}

func (d *redaction) texts(all []string) (out []string) {
	for _, text := range all {
		out = append(out, d.text(text))
	}
	return out
}

// commonFolders are names of folders that say nothing of whose they are.
var commonFolders = []string{"", ".", "..", "logs", "log", "client", "clients", "mp", "iis", "site", "gateway", "connector", "device", "cmg", "ccm", "ccmsetup", "windows", "tmp", "var", "inetpub", "logfiles", "w3svc1"}

func (d *redaction) folder(name string) {
	for part := range strings.SplitSeq(name, "/") {
		if !slices.Contains(commonFolders, strings.ToLower(part)) && !slices.Contains(d.folders, part) && !fileEnding.MatchString(strings.TrimSuffix(part, "!")) {
			d.folders = append(d.folders, part)
			slices.SortFunc(d.folders, func(a, b string) int { return len(b) - len(a) })
		}
	}
}

// file replaces the folders of a file's name, and what of the name itself is a name.
func (d *redaction) file(name string) string {
	parts := strings.Split(name, "/")
	for i, part := range parts[:len(parts)-1] {
		if !slices.Contains(commonFolders, strings.ToLower(part)) {
			parts[i] = d.placeholder("FOLDER", part)
			d.folder(part)
		}
	}
	last := &parts[len(parts)-1]
	*last = d.plain(*last)
	return strings.Join(parts, "/")
}

// text replaces everything that names somebody or something.
func (d *redaction) text(text string) string {
	for _, folder := range d.folders {
		text = strings.ReplaceAll(text, folder+"/", d.placeholder("FOLDER", folder)+"/")
	}
	return d.plain(text)
}

func (d *redaction) plain(text string) string {
	text = token.ReplaceAllString(text, "(left out)")
	text = secretForm.ReplaceAllString(text, "$1(left out)")
	text = replace(text, guidForm, func(s string) string { return d.placeholder("GUID", s) })
	text = replace(text, accountName, func(s string) string {
		tail := s[len(strings.TrimRight(s, " \t'")):]
		return d.placeholder("ACCOUNT", strings.TrimRight(s, " \t'")) + tail
	})
	text = certName.ReplaceAllStringFunc(text, func(s string) string {
		kind, name, _ := strings.Cut(s, "=")
		return kind + "=" + d.placeholder("NAME", strings.TrimSpace(name))
	})
	text = replace(text, ipForm, func(s string) string { return d.placeholder("ADDRESS", s) })
	for _, name := range d.names {
		text = replaceName(text, name, d.placeholder("NAME", name))
	}
	text = replace(text, computerName, func(s string) string {
		if systemName.MatchString(s) || placeholderForm.MatchString(s) {
			return s
		}
		return d.placeholder("NAME", s)
	})
	text = replace(text, longText, func(s string) string {
		if strings.ContainsAny(s, "0123456789") && strings.ToUpper(s) != s && strings.ToLower(s) != s {
			return "(left out)"
		}
		return s
	})
	return replace(text, longNumber, func(s string) string { return d.placeholder("NUMBER", s) })
}

var placeholderForm = regexp.MustCompile(`^(?:GUID|NAME|ADDRESS|ACCOUNT|FOLDER|NUMBER)-[0-9]+$`)

func replace(text string, form *regexp.Regexp, with func(string) string) string {
	return form.ReplaceAllStringFunc(text, with)
}

// replaceName replaces a name where it stands alone, in whatever case.
func replaceName(text, name, with string) string {
	low := lower(text)
	var b strings.Builder
	from := 0
	for {
		at := strings.Index(low[from:], name)
		if at < 0 {
			b.WriteString(text[from:])
			return b.String()
		}
		begin, end := from+at, from+at+len(name)
		if begin > 0 && ofName(low[begin-1]) || end < len(low) && ofName(low[end]) {
			b.WriteString(text[from:end])
		} else {
			b.WriteString(text[from:begin] + with)
		}
		from = end
	}
}

func ofName(c byte) bool { return c-'0' < 10 || c-'a' < 26 || c == '-' || c == '_' }
