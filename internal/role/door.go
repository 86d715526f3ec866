package role

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"postern/catalog"
	"postern/logfile"
)

// doorName is the administration door in a role's state folder: HTTP on a unix socket that only its owner can open (design decision 16).
const doorName = "admin.sock"

// DoorPath returns the administration door of the role with this configuration.
func DoorPath(c Config) string { return filepath.Join(c.State, doorName) }

// Health is what a role says of itself behind its door.
type Health struct {
	Role    string         `json:"role"`
	Name    string         `json:"name"`
	Since   time.Time      `json:"since"`
	OK      bool           `json:"ok"`
	Detail  map[string]any `json:"detail,omitempty"`
	Problem []string       `json:"problems,omitempty"`
}

// Verb is a command that the caller of a door asks the role to run in its own process.
type Verb struct {
	Arguments []string `json:"arguments"`
	Actor     string   `json:"actor"`
	Input     []byte   `json:"input,omitempty"`
}

// VerbResult is what the command printed and how it ended.
type VerbResult struct {
	Output []byte `json:"output"`
	Errors []byte `json:"errors"`
	Exit   int    `json:"exit"`
}

// RunVerb runs a command inside a role.
type RunVerb func(ctx context.Context, verb Verb) VerbResult

// maxVerb bounds a command with its input: a policy document has at most 32 MiB, in base64.
const maxVerb = 48 << 20

// door serves a role's administration.
type door struct {
	health   func() Health
	metrics  *prometheus.Registry
	logs     *logfile.Folder
	verbose  func(on bool)
	run      RunVerb // nil where the role has no verbs
	listener net.Listener
	server   *http.Server
	end      context.CancelFunc // of what is asked of the door
}

// open makes the socket. A socket that a killed process left behind is replaced; one that answers is somebody's.
func (d *door) open(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return catalog.Wrap(catalog.FolderNotWritable, err, "the state folder %s cannot be made", filepath.Dir(path))
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return catalog.Errorf(catalog.StateInUse, "another process uses the state folder %s", filepath.Dir(path))
	}
	os.Remove(path)
	listener, err := listenPrivately(path)
	if err != nil {
		return catalog.Wrap(catalog.FolderNotWritable, err, "the administration door %s cannot be opened; its path may have at most 100 bytes", path)
	}
	d.listener = listener
	asked, end := context.WithCancel(context.Background())
	d.end = end
	d.server = &http.Server{Handler: d.routes(), ReadHeaderTimeout: 5 * time.Second, BaseContext: func(net.Listener) context.Context { return asked }}
	go d.server.Serve(listener)
	return nil
}

func (d *door) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, r *http.Request) { writeJSON(w, d.health()) })
	mux.Handle("GET /metrics", promhttp.HandlerFor(d.metrics, promhttp.HandlerOpts{}))
	mux.HandleFunc("PUT /log/verbose/{on}", d.setVerbose)
	mux.HandleFunc("POST /verb", d.serveVerb)
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return mux
}

func (d *door) setVerbose(w http.ResponseWriter, r *http.Request) {
	on := r.PathValue("on") == "on"
	d.logs.Verbose("", on)
	if d.verbose != nil {
		d.verbose(on)
	}
	writeJSON(w, map[string]bool{"verbose": on})
}

func (d *door) serveVerb(w http.ResponseWriter, r *http.Request) {
	if d.run == nil {
		http.Error(w, "this role has no commands", http.StatusNotFound)
		return
	}
	var verb Verb
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxVerb)).Decode(&verb); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	writeJSON(w, d.run(r.Context(), verb))
}

// doorGrace is how long a command may go on when its role stops. One that waits, as with --wait, must not use up the time of the requests of devices.
const doorGrace = 2 * time.Second

func (d *door) close(ctx context.Context) {
	if d.server == nil {
		return
	}
	defer os.Remove(d.listener.Addr().String())
	soon, cancel := context.WithTimeout(ctx, doorGrace)
	defer cancel()
	ended := d.server.Shutdown(soon)
	d.end()
	if ended == nil {
		return
	}
	last, cancel := context.WithTimeout(ctx, doorGrace)
	defer cancel()
	if d.server.Shutdown(last) != nil {
		d.server.Close()
	}
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v)
}

// Door is a caller's side of an administration door.
type Door struct {
	path     string
	client   *http.Client
	patience time.Duration // with a question; a command may take as long as its caller waits
}

// doorPatience is how long a role may take to say how it is. One that hangs still has its socket, and whoever asks wants to hear just that.
const doorPatience = 15 * time.Second

// Knock returns the door of the role with this configuration, or nil when nothing answers there.
func Knock(c Config) *Door {
	path := DoorPath(c)
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err != nil {
		return nil
	}
	conn.Close()
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}
	return &Door{path: path, patience: doorPatience, client: &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// Run runs a command inside the role.
func (d *Door) Run(ctx context.Context, verb Verb) (result VerbResult, err error) {
	body, err := json.Marshal(verb)
	if err != nil {
		return result, err
	}
	return result, d.call(ctx, http.MethodPost, "/verb", body, &result)
}

// Health asks the role how it is.
func (d *Door) Health(ctx context.Context) (health Health, err error) {
	ctx, cancel := context.WithTimeout(ctx, d.patience)
	defer cancel()
	return health, d.call(ctx, http.MethodGet, "/health", nil, &health)
}

// SetVerbose switches verbose log lines.
func (d *Door) SetVerbose(ctx context.Context, on bool) error {
	ctx, cancel := context.WithTimeout(ctx, d.patience)
	defer cancel()
	var answer map[string]bool
	return d.call(ctx, http.MethodPut, "/log/verbose/"+map[bool]string{true: "on", false: "off"}[on], nil, &answer)
}

// Metrics copies the role's metrics in Prometheus text form.
func (d *Door) Metrics(ctx context.Context, w io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, d.patience)
	defer cancel()
	response, err := d.send(ctx, http.MethodGet, "/metrics", nil)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, err = io.Copy(w, response.Body)
	return err
}

func (d *Door) call(ctx context.Context, method, path string, body []byte, answer any) error {
	response, err := d.send(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if err := json.NewDecoder(response.Body).Decode(answer); err != nil {
		return catalog.Wrap(catalog.AdminDoorClosed, err, "the administration door %s broke off its answer", d.path)
	}
	return nil
}

func (d *Door) send(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, method, "http://door"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	response, err := d.client.Do(request)
	if err != nil {
		return nil, catalog.Wrap(catalog.AdminDoorClosed, err, "the administration door %s does not answer", d.path)
	}
	if response.StatusCode != http.StatusOK {
		defer response.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(response.Body, 4096))
		return nil, catalog.Wrap(catalog.AdminDoorClosed, errors.New(string(text)), "the administration door %s answered %s", d.path, response.Status)
	}
	return response, nil
}

// explain names the address in an error of listening.
func explain(err error, address string) error {
	return catalog.Wrap(catalog.AddressInUse, err, "cannot listen on %s: %s", address, reason(err))
}

func reason(err error) string {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err.Error()
	}
	return fmt.Sprint(err)
}
