package realms

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"slices"
	"strings"
	"text/template"
)

// MIT reads "REALM = {" and what follows it from lines of their own only.
var templates = template.Must(template.New("").Parse(`
{{- define "realms"}}[realms]
{{- range .Realms}}
 {{.Name}} = {
  kdc = {{.Address}}
 }
{{- end}}
{{end}}

{{- define "domains"}}[domain_realm]
{{- range .Domains}}
 .{{.Suffix}} = {{.Realm}}
 {{.Suffix}} = {{.Realm}}
{{- end}}
{{end}}

{{- define "client"}}[libdefaults]
 default_realm = {{.Realm}}
 dns_lookup_realm = false
 dns_lookup_kdc = false
 dns_canonicalize_hostname = false
 rdns = false
 canonicalize = true
 udp_preference_limit = 1
 default_ccache_name = FILE:{{.Folder}}/ccache
{{template "realms" .}}
{{- if .Domains}}{{template "domains" .}}{{end}}
{{- end}}

{{- define "server"}}[libdefaults]
 default_realm = {{.Realm}}
 dns_lookup_realm = false
 dns_lookup_kdc = false
 allow_rc4 = true
{{template "realms" .}}
{{- template "domains" .}}
[capaths]
{{- range .Paths}}
 {{.From}} = {
  {{.To}} = {{.Through}}
 }
{{- end}}
{{end}}

{{- define "kdc"}}[kdcdefaults]
 kdc_listen = {{.Address}}
 kdc_tcp_listen = {{.Address}}
[realms]
 {{.Realm}} = {
  database_name = {{.Folder}}/principal
  key_stash_file = {{.Folder}}/stash
  acl_file = {{.Folder}}/kadm5.acl
  max_life = 10h
  max_renewable_life = 7d
  supported_enctypes = {{.EncryptionTypes}}
  reject_bad_transit = {{not .Unchecked}}
 }
[logging]
 kdc = FILE:{{.Folder}}/kdc.log
 admin_server = FILE:{{.Folder}}/kadmin.log
 default = FILE:{{.Folder}}/lib.log
{{end}}`))

type (
	kdcAddress struct{ Name, Address string }
	domain     struct{ Suffix, Realm string }
	path       struct{ From, To, Through string }
)

// configuration is what the templates read.
type configuration struct {
	Realm, Folder, Address, EncryptionTypes string
	Realms                                  []kdcAddress
	Domains                                 []domain
	Paths                                   []path
	Unchecked                               bool
}

func (r *Realms) configuration() (c configuration) {
	c.Realm, c.Folder = r.Child, r.Folder
	for _, k := range r.realms {
		c.Realms = append(c.Realms, kdcAddress{k.name, k.address})
	}
	return c
}

// writeConfigurations writes every file that names a KDC's address.
func (r *Realms) writeConfigurations() error {
	client := r.configuration()
	if err := write(r.ClientConfig(), "client", client); err != nil {
		return err
	}
	client.Domains = r.domains()
	if err := write(r.HintedConfig(), "client", client); err != nil {
		return err
	}
	return r.each(r.writeServer)
}

// writeServer writes the files of one KDC. Its own map of domains is what makes it answer with a referral.
func (r *Realms) writeServer(k *realm) error {
	c := r.configuration()
	c.Realm, c.Folder, c.Address, c.EncryptionTypes = k.name, k.folder, k.address, keySalts(r.options.EncryptionTypes)
	c.Domains = r.domains()
	for _, other := range r.options.Others {
		if other.Name == k.name && !other.Referral {
			c.Domains = []domain{{strings.ToLower(other.Name), other.Name}}
		}
		if other.TrustedBy != r.Parent && (!other.Unchecked || k.name != r.Parent) {
			c.Paths = append(c.Paths, path{other.Name, r.Parent, other.TrustedBy})
		}
		c.Unchecked = c.Unchecked || other.Unchecked
	}
	if err := write(k.path("krb5.conf"), "server", c); err != nil {
		return err
	}
	return write(k.path("kdc.conf"), "kdc", c)
}

// domains maps each realm's DNS domain to it, the longer first.
func (r *Realms) domains() (domains []domain) {
	for _, name := range r.Names() {
		domains = append(domains, domain{strings.ToLower(name), name})
	}
	slices.SortStableFunc(domains, func(a, b domain) int { return cmp.Compare(len(b.Suffix), len(a.Suffix)) })
	return domains
}

// keySalts writes encryption types as MIT's files and commands want them.
func keySalts(types []string) string { return strings.Join(types, ":normal ") + ":normal" }

func write(file, name string, c configuration) error {
	var text bytes.Buffer
	if err := templates.ExecuteTemplate(&text, name, c); err != nil {
		return fmt.Errorf("fill in %s: %w", file, err)
	}
	return os.WriteFile(file, text.Bytes(), 0o600)
}
