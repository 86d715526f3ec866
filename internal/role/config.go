package role

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"

	"postern/auth/kerberos"
	"postern/catalog"
)

// The roles that a configuration file can be for.
const (
	ManagementPoint = "management-point"
	Gateway         = "gateway"
	Connector       = "connector"
)

// maxConfig bounds a configuration file before it is parsed.
const maxConfig = 1 << 20

// Config is one role's configuration file. Paths are relative to the file's folder. docs/configuration.md lists every setting; a test keeps it true.
type Config struct {
	Role string `yaml:"role" doc:"management-point, gateway or connector"`
	Name string `yaml:"name" doc:"host name of this role; a connector's name as it was invited"`

	Names []string `yaml:"names,omitempty" doc:"management point: further host names and addresses that clients and connectors use"`

	Listen Listen `yaml:"listen,omitempty"`

	Store   string `yaml:"store,omitempty" doc:"management point: path of the SQLite file, or postgres://... (a file that holds the address when it begins with @)"`
	SiteKey string `yaml:"site_key,omitempty" doc:"management point: path of site.key, which opens the keys in the store"`

	Kerberos Kerberos `yaml:"kerberos,omitempty" doc:"management point: Windows authentication"`

	Entra Entra `yaml:"entra,omitempty" doc:"how the providers of Entra tenants are reached (management point), and their tokens judged (gateway too)"`

	SiteRoot           string   `yaml:"site_root,omitempty" doc:"gateway, connector: hash of the site root, as postern site init printed it"`
	ManagementPoint    string   `yaml:"management_point,omitempty" doc:"connector: https address of its management point"`
	Gateways           []Listed `yaml:"gateways,omitempty" doc:"connector: gateways to dial instead of those that the site state lists"`
	Connections        int      `yaml:"connections,omitempty" doc:"connector: connections to each gateway, default 2"`
	CompanyHosts       []string `yaml:"company_hosts,omitempty" doc:"connector: management points (host or host:port) that take only a certificate of the company"`
	ClientCertificates string   `yaml:"client_certificates,omitempty" doc:"connector: folder with the machine's certificates, NAME.pem with its key in NAME.key"`
	BackendRoots       string   `yaml:"backend_roots,omitempty" doc:"connector: PEM file with the company's authorities, for management points in HTTPS mode"`

	TLS TLSFiles `yaml:"tls,omitempty" doc:"gateway: certificate for clients from the company's or a public authority; without it the site issues one"`

	State   string `yaml:"state,omitempty" doc:"folder of keys, administration door and inbox; default the file's folder"`
	Logs    string `yaml:"logs,omitempty" doc:"folder of the log files; default logs below the state folder"`
	Verbose bool   `yaml:"verbose,omitempty" doc:"verbose log lines from the start; postern log verbose switches at run time"`

	path string // of the file itself
}

// Listen says where a role listens. Empty means not at all.
type Listen struct {
	HTTPS string   `yaml:"https,omitempty" doc:"address of the gateway, or of the management point in enhanced HTTP mode"`
	HTTP  string   `yaml:"http,omitempty" doc:"management point: address for plain HTTP (mixed mode); off unless set"`
	PKI   PKIFiles `yaml:"pki,omitempty" doc:"management point: HTTPS mode with the company's own certificate"`
}

// PKIFiles is a listener with a certificate of the company.
type PKIFiles struct {
	Address     string `yaml:"address,omitempty" doc:"address to listen on"`
	Certificate string `yaml:"certificate,omitempty" doc:"PEM file: leaf first, then intermediates"`
	Key         string `yaml:"key,omitempty" doc:"PEM file with the private key, readable by its owner only"`
}

// TLSFiles is a certificate with its key.
type TLSFiles struct {
	Certificate string `yaml:"certificate,omitempty" doc:"PEM file: leaf first, then intermediates"`
	Key         string `yaml:"key,omitempty" doc:"PEM file with the private key, readable by its owner only"`
}

// Listed is a gateway with its pin.
type Listed struct {
	URL string `yaml:"url" doc:"https address of the gateway"`
	Pin string `yaml:"pin" doc:"pin that postern gateway init printed"`
}

// Load reads and checks a configuration file. Unknown settings are refused, with the line that holds them.
func Load(path string) (Config, error) {
	content, err := readBounded(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Config{}, catalog.Wrap(catalog.ConfigInvalid, err, "there is no configuration file %s; `postern site init`, `postern gateway init` and `postern connector join` write one", path)
	}
	if err != nil {
		return Config{}, catalog.Wrap(catalog.ConfigInvalid, err, "the configuration file %s cannot be read", path)
	}
	return parse(path, content)
}

func readBounded(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxConfig {
		return nil, fmt.Errorf("%d bytes, at most %d are read", info.Size(), maxConfig)
	}
	return os.ReadFile(path)
}

func parse(path string, content []byte) (Config, error) {
	var c Config
	decoder := yaml.NewDecoder(bytes.NewReader(content))
	decoder.KnownFields(true)
	err := decoder.Decode(&c)
	if errors.Is(err, io.EOF) {
		return Config{}, catalog.Errorf(catalog.ConfigInvalid, "%s is empty", path)
	}
	if err != nil {
		return Config{}, catalog.Errorf(catalog.ConfigInvalid, "%s: %s", path, strings.ReplaceAll(err.Error(), "\n", " "))
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return Config{}, catalog.Errorf(catalog.ConfigInvalid, "%s: it goes on after the configuration, behind a line ---; that would not be read", path)
	}
	absolute, err := filepath.Abs(path)
	if err != nil {
		return Config{}, err
	}
	c.path = absolute
	c.fill()
	if problem := c.problem(); problem != "" {
		return Config{}, catalog.Errorf(catalog.ConfigInvalid, "%s: %s", path, problem)
	}
	return c, nil
}

// fill sets defaults and makes paths absolute.
func (c *Config) fill() {
	if c.State == "" {
		c.State = "."
	}
	c.State = c.resolve(c.State)
	if c.Logs == "" {
		c.Logs = filepath.Join(c.State, "logs")
	}
	if c.Connections == 0 {
		c.Connections = 2
	}
	for _, p := range []*string{&c.Logs, &c.SiteKey, &c.BackendRoots, &c.Kerberos.Keytab, &c.Entra.Roots, &c.ClientCertificates, &c.TLS.Certificate, &c.TLS.Key, &c.Listen.PKI.Certificate, &c.Listen.PKI.Key} {
		*p = c.resolve(*p)
	}
	if path, indirect := strings.CutPrefix(c.Store, "@"); indirect {
		c.Store = "@" + c.resolve(path)
	} else if !strings.Contains(c.Store, "://") {
		c.Store = c.resolve(c.Store)
	}
}

func (c *Config) resolve(path string) string {
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(filepath.Dir(c.path), path)
}

// requirement is one line of the table of what a role's configuration must say.
type requirement struct {
	role, setting string
	missing       func(Config) bool
}

func requirements() []requirement {
	return []requirement{
		{ManagementPoint, "name", func(c Config) bool { return c.Name == "" }},
		{ManagementPoint, "store", func(c Config) bool { return c.Store == "" }},
		{ManagementPoint, "site_key", func(c Config) bool { return c.SiteKey == "" }},
		{ManagementPoint, "listen.https (or listen.http, or listen.pki)", func(c Config) bool { return c.Listen.HTTPS == "" && c.Listen.HTTP == "" && c.Listen.PKI.Address == "" }},
		{Gateway, "name", func(c Config) bool { return c.Name == "" }},
		{Gateway, "site_root", func(c Config) bool { return c.SiteRoot == "" }},
		{Gateway, "listen.https", func(c Config) bool { return c.Listen.HTTPS == "" }},
		{Connector, "name", func(c Config) bool { return c.Name == "" }},
		{Connector, "site_root", func(c Config) bool { return c.SiteRoot == "" }},
		{Connector, "management_point", func(c Config) bool { return c.ManagementPoint == "" }},
	}
}

// problem says what is wrong, or nothing.
func (c *Config) problem() string {
	if c.Role != ManagementPoint && c.Role != Gateway && c.Role != Connector {
		return fmt.Sprintf("role is %q; it must be %s, %s or %s", c.Role, ManagementPoint, Gateway, Connector)
	}
	for _, r := range requirements() {
		if r.role == c.Role && r.missing(*c) {
			return fmt.Sprintf("a %s needs the setting %s", c.Role, r.setting)
		}
	}
	for _, name := range append([]string{c.Name}, c.Names...) {
		if c.Role != Connector && !hostName(name) {
			return fmt.Sprintf("name is %q; give a host name or an address, without https:// and without a port", name)
		}
	}
	for setting, address := range map[string]string{"listen.https": c.Listen.HTTPS, "listen.http": c.Listen.HTTP, "listen.pki.address": c.Listen.PKI.Address} {
		if _, _, err := net.SplitHostPort(address); address != "" && err != nil {
			return fmt.Sprintf("%s is %q; give an address and a port, such as 127.0.0.1:8443", setting, address)
		}
	}
	if (c.TLS.Certificate == "") != (c.TLS.Key == "") {
		return "tls needs both certificate and key"
	}
	if _, err := kerberos.ParseBinding(c.Kerberos.ChannelBinding); err != nil {
		return "kerberos." + err.Error()
	}
	if c.Role != ManagementPoint && c.Kerberos != (Kerberos{}) {
		return "kerberos is a setting of a management point: Windows authentication works inside the network only"
	}
	if entra := c.Entra; c.Role == Connector && (entra.Leeway != 0 || entra.Roots != "" || len(entra.Hosts) > 0) {
		return "entra is a setting of management points and gateways: a connector judges no token"
	}
	if c.Role == Gateway && (c.Entra.Roots != "" || len(c.Entra.Hosts) > 0) {
		return "entra.roots and entra.hosts are settings of a management point: a gateway asks no provider"
	}
	if leeway := c.Entra.Leeway; leeway < 0 || leeway > maxLeeway {
		return fmt.Sprintf("entra.leeway is %s; it may be up to %s", leeway, maxLeeway)
	}
	if pki := c.Listen.PKI; pki.Address != "" && (pki.Certificate == "" || pki.Key == "") {
		return "listen.pki needs certificate and key"
	}
	return ""
}

// host is what a certificate can be issued for: labels with dots between (RFC 1123 2.1, and the underscore that some names have).
var host = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*$`)

func hostName(name string) bool {
	return net.ParseIP(name) != nil || len(name) <= 253 && host.MatchString(name)
}

// Path returns where the configuration was read from.
func (c Config) Path() string { return c.path }

// write writes the configuration file; it never replaces one.
func (c Config) write(path, comment string) error {
	var b bytes.Buffer
	b.WriteString(comment)
	encoder := yaml.NewEncoder(&b)
	encoder.SetIndent(2)
	if err := encoder.Encode(c); err != nil {
		return err
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return catalog.Errorf(catalog.AlreadyExists, "%s exists already; choose another folder, or remove it first", path)
	}
	if err != nil {
		return err
	}
	if _, err := file.Write(b.Bytes()); err != nil {
		file.Close()
		return err
	}
	return file.Close()
}
