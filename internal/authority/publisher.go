package authority

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Mode is how a Publisher behaves.
type Mode int

// The modes of a Publisher.
const (
	Healthy   Mode = iota
	Down           // closes every connection without an answer
	Slow           // answers when the caller has given up, or when the mode changes
	Huge           // sends bytes without end
	Announced      // announces a gigabyte
	Garbage        // sends a web page
	Failing        // answers 500
	Elsewhere      // redirects to another host
	Around         // redirects to itself without end
)

// Publisher is a web server on loopback that serves lists and answers.
type Publisher struct {
	server   *http.Server
	listener net.Listener

	mu       sync.Mutex
	mode     Mode
	changed  chan struct{}
	files    map[string][]byte
	handlers map[string]http.Handler
	requests map[string]int
	sent     map[string]int // with a body
}

// NewPublisher starts a Publisher on a free port.
func NewPublisher() (*Publisher, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	p := &Publisher{
		listener: listener, changed: make(chan struct{}),
		files: map[string][]byte{}, handlers: map[string]http.Handler{}, requests: map[string]int{}, sent: map[string]int{},
	}
	p.server = &http.Server{Handler: p, ReadHeaderTimeout: 10 * time.Second}
	go p.server.Serve(listener)
	return p, nil
}

// Close ends the server and its connections.
func (p *Publisher) Close() { p.server.Close() }

// URL is the address of a path, which begins with a slash.
func (p *Publisher) URL(path string) string { return "http://" + p.listener.Addr().String() + path }

// Put publishes bytes at a path.
func (p *Publisher) Put(path string, content []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.files[path] = bytes.Clone(content)
}

// Handle serves a path and everything below it with a handler, in the mode Healthy.
func (p *Publisher) Handle(path string, handler http.Handler) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.handlers[path] = handler
}

// Switch changes the mode.
func (p *Publisher) Switch(mode Mode) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mode = mode
	close(p.changed)
	p.changed = make(chan struct{})
}

// Requests is how often a path was asked for, and how often it was sent whole: a conditional request that finds nothing new
// counts only in the first.
func (p *Publisher) Requests(path string) (asked, sent int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.requests[path], p.sent[path]
}

// ServeHTTP answers as the mode says.
func (p *Publisher) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	mode, changed := p.mode, p.changed
	p.requests[r.URL.Path]++
	p.mu.Unlock()
	switch mode {
	case Down:
		panic(http.ErrAbortHandler)
	case Slow:
		select {
		case <-r.Context().Done():
			return
		case <-changed:
		}
	case Huge:
		for chunk := make([]byte, 64<<10); ; {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	case Announced:
		w.Header().Set("Content-Length", "1073741824")
		w.Write([]byte{0x30})
		return
	case Garbage:
		fmt.Fprint(w, "<html><title>Sign in to this network</title></html>")
		return
	case Failing:
		http.Error(w, "no", http.StatusInternalServerError)
		return
	case Elsewhere:
		_, port, _ := net.SplitHostPort(p.listener.Addr().String())
		http.Redirect(w, r, "http://localhost:"+port+r.URL.Path, http.StatusFound)
		return
	case Around:
		http.Redirect(w, r, p.URL(r.URL.Path), http.StatusFound)
		return
	}
	p.serve(w, r)
}

func (p *Publisher) serve(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	content, found := p.files[r.URL.Path]
	var handler http.Handler
	for path, h := range p.handlers {
		if strings.HasPrefix(r.URL.Path, path) {
			handler = h
		}
	}
	p.mu.Unlock()
	if handler != nil {
		handler.ServeHTTP(w, r)
		return
	}
	if !found {
		http.NotFound(w, r)
		return
	}
	hash := sha256.Sum256(content)
	tag := `"` + hex.EncodeToString(hash[:8]) + `"`
	w.Header().Set("ETag", tag)
	w.Header().Set("Content-Type", "application/pkix-crl")
	if r.Header.Get("If-None-Match") == tag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	p.mu.Lock()
	p.sent[r.URL.Path]++
	p.mu.Unlock()
	w.Write(content)
}
