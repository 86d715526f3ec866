package connector

import (
	"net"
	"net/url"
	"testing"
	"time"
)

// Whatever the path says, the host is the table's.
func FuzzBackendURL(f *testing.F) {
	for _, path := range []string{"/CCM_STS", "/SMS_MP/.sms_aut?MPLIST", "//evil.example/", "https://evil.example/", "/\\evil.example", "/%2f%2fevil.example", "@evil.example", "/x?@evil.example#f", "*"} {
		f.Add(path)
	}
	f.Fuzz(func(t *testing.T, path string) {
		u, err := backendURL("https://mp.example:8443", path)
		if err != nil {
			return
		}
		if u.Host != "mp.example:8443" || u.Scheme != "https" || u.User != nil {
			t.Fatalf("%q leads to %s", path, u)
		}
		again, err := url.Parse(u.String())
		if err != nil || again.Host != u.Host {
			t.Fatalf("%q is written as %s, which leads to %v, %v", path, u, again, err)
		}
	})
}

// Whatever a proxy answers, askProxy ends without panic.
func FuzzProxyAnswer(f *testing.F) {
	for _, answer := range []string{
		"HTTP/1.1 200 Connection established\r\n\r\n", "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: NTLM\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\nxx", "HTTP/1.0 403 Forbidden\r\n\r\n", "SSH-2.0\r\n", "", "HTTP/1.1 100 Continue\r\n\r\n",
	} {
		f.Add([]byte(answer))
	}
	f.Fuzz(func(t *testing.T, answer []byte) {
		near, far := net.Pipe()
		deadline := time.Now().Add(time.Second)
		near.SetDeadline(deadline)
		far.SetDeadline(deadline)
		go func() {
			far.Read(make([]byte, 4096))
			far.Write(answer)
			far.Close()
		}()
		askProxy(near, &url.URL{Scheme: "http", Host: "proxy.example"}, "gateway.example:443")
		near.Close()
	})
}
