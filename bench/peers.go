//go:build linux

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

// nginxConfig is a plain TLS reverse proxy: one hop, upstream connections kept alive, no access log, no temporary files.
const nginxConfig = `%s
daemon off;
worker_processes auto;
worker_rlimit_nofile 20000;
pid %[2]s/nginx.pid;
error_log %[2]s/nginx-error.log warn;
events { worker_connections 8192; }
http {
  access_log off;
  server_tokens off;
  client_body_temp_path %[2]s/nginx-body;
  proxy_temp_path %[2]s/nginx-proxy;
  fastcgi_temp_path %[2]s/nginx-fastcgi;
  uwsgi_temp_path %[2]s/nginx-uwsgi;
  scgi_temp_path %[2]s/nginx-scgi;
  client_body_buffer_size 64k;
  large_client_header_buffers 4 16k;
  keepalive_requests 100000000;
  keepalive_timeout 300s;
  ssl_certificate %[3]s.crt;
  ssl_certificate_key %[3]s.key;
  ssl_protocols TLSv1.2 TLSv1.3;
  proxy_http_version 1.1;
  proxy_set_header Connection "";
  proxy_buffers 16 16k;
  proxy_max_temp_file_size 0;
  upstream plain { server %[4]s; keepalive 128; keepalive_requests 100000000; }
  upstream secure { server %[5]s; keepalive 128; keepalive_requests 100000000; }
  server { listen %[6]s ssl; location / { proxy_pass http://plain; } }
  server { listen %[7]s ssl; location / { proxy_pass https://secure; } }
}
`

// nginx is one nginx with two faces: to the backend in plain HTTP, and over TLS as a connector speaks to it.
type nginx struct {
	*process
	plain, secure string // where it listens
}

func startNginx(g *group, plainBackend, secureBackend string) (*nginx, error) {
	pair := filepath.Join(g.dir, "peer")
	if err := writePeerCertificate(pair); err != nil {
		return nil, err
	}
	n := &nginx{}
	var err error
	for _, address := range []*string{&n.plain, &n.secure} {
		if *address, err = freeAddress(); err != nil {
			return nil, err
		}
	}
	user := "" // workers of a root's nginx would be another user, who may not read the folder
	if os.Getuid() == 0 {
		user = "user root;"
	}
	file := filepath.Join(g.dir, "nginx.conf")
	if err := os.WriteFile(file, fmt.Appendf(nil, nginxConfig, user, g.dir, pair, plainBackend, secureBackend, n.plain, n.secure), 0o600); err != nil {
		return nil, err
	}
	if n.process, err = g.start("nginx", "nginx", "-e", filepath.Join(g.dir, "nginx-error.log"), "-p", g.dir, "-c", file); err != nil {
		return nil, fmt.Errorf("%w; Debian's package is nginx-light", err)
	}
	return n, n.awaitListener(n.plain)
}

// writePeerCertificate makes the certificate of the other proxies: ECDSA P-256, as the gateway's is.
func writePeerCertificate(name string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return err
	}
	return writePair(name, key, der)
}

// startProxy starts `bench proxy`; the certificate is the one that startNginx made.
func startProxy(g *group, backend string) (p *process, address string, err error) {
	if address, err = freeAddress(); err != nil {
		return nil, "", err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, "", err
	}
	pair := filepath.Join(g.dir, "peer")
	p, err = g.start("proxy", self, "proxy", "-https", address, "-to", backend, "-certificate", pair+".crt", "-key", pair+".key")
	if err != nil {
		return nil, "", err
	}
	return p, address, p.awaitListener(address)
}
