package main

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"strings"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"postern/ccm"
	"postern/internal/role"
	"postern/proof"
	"postern/site"
)

// agents are the keys of the devices that scripts register, by name.
type agents struct {
	mu   sync.Mutex
	keys map[string]*rsa.PrivateKey
}

func (a *agents) key(ts *testscript.TestScript, name string) *rsa.PrivateKey {
	a.mu.Lock()
	defer a.mu.Unlock()
	name = ts.Name() + " " + name
	if a.keys[name] == nil {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		ts.Check(err)
		a.keys[name] = key
	}
	return a.keys[name]
}

// register CONFIG KEY NAME HARDWARE registers a device with the key of that name, as a message that nothing but its own key signed. It goes past
// the listener: scripts that need a hardware id have no client that sends the one they want.
func (a *agents) register(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 4 {
		ts.Fatalf("usage: register CONFIG KEY NAME HARDWARE")
	}
	key := a.key(ts, args[1])
	now := time.Now()
	certificate, err := ccm.NewClientCertificate(key, "ConfigMgr Client", ccm.UsageSigning|ccm.UsageEncryption, now, rand.Reader)
	ts.Check(err)
	text, err := ccm.BuildRegistration(ccm.RegistrationRequest{
		Type: ccm.RegistrationTypeRegistration, TimeStamp: now.UTC().Format("2006-01-02T15:04:05Z"), Agent: ccm.Agent{Identity: "script", Version: "5.00.9128.1000"},
		Signing: certificate, Encryption: certificate, KeyType: 1,
		Properties: map[string]string{"Netbios Name": strings.ToUpper(args[2]), "FQ Name": args[2], "HardwareID1": args[3]},
	}, key)
	ts.Check(err)
	request, err := ccm.ParseRegistration(&ccm.Message{Body: append(ccm.PolicyBody(text)[2:], 0, 0)})
	ts.Check(err)
	config, err := role.Load(ts.MkAbs(args[0]))
	ts.Check(err)
	opened, err := role.OpenSite(context.Background(), config, role.Protection{}, time.Now, nil)
	ts.Check(err)
	defer opened.Close()
	_, err = opened.Site.Register(context.Background(), site.Caller{Proof: proof.Proof{Method: proof.MessageSignature}, Ceiling: proof.LevelManaged}, request)
	opened.Site.Flush(context.Background())
	if neg != (err != nil) {
		ts.Fatalf("register %v: %v", args, err)
	}
}
