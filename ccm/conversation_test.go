package ccm

import (
	"bufio"
	"bytes"
	"crypto/rsa"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
)

// openCapture returns the head of a captured request and, when its body is a message, the message.
func openCapture(t testing.TB, name string) (*http.Request, *Message) {
	t.Helper()
	request, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(captureBytes(t, name+".request.http"))))
	if err != nil {
		t.Fatal(err)
	}
	if request.ContentLength == 0 {
		return request, nil
	}
	message, err := ReadMessage(request.Header.Get("Content-Type"), request.Body, DefaultLimits())
	if err != nil {
		t.Fatalf("read %s: %v", name, err)
	}
	return request, message
}

// openCapturedReply returns the message of a captured reply.
func openCapturedReply(t testing.TB, name string) *Message {
	t.Helper()
	response, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(captureBytes(t, name+".stub-reply.http"))), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	message, err := DecodeReply(response.Header.Get("Content-Type"), response.Body, DefaultLimits())
	if err != nil {
		t.Fatalf("read reply of %s: %v", name, err)
	}
	return message
}

// openCapturedBody returns the plain body of a captured reply.
func openCapturedBody(t testing.TB, name string) []byte {
	t.Helper()
	response, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(captureBytes(t, name+".stub-reply.http"))), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

func captureBytes(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", "captures", filepath.FromSlash(name)))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// capturedKey returns the key of the signing certificate in a captured registration.
func capturedKey(t testing.TB, name string) *rsa.PublicKey {
	t.Helper()
	_, message := openCapture(t, name)
	r, err := ParseRegistration(message)
	if err != nil {
		t.Fatal(err)
	}
	return r.Signing.PublicKey
}
