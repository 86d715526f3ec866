package client

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
	"postern/token"
)

// fileNext holds the keys that are to take the place of those in keys.sealed, from when they were made until the site is known to have taken them.
const (
	fileNext  = "keys.next.sealed"
	labelNext = "next client keys"
)

// keyChangeProperty is the property of a registration by which the registered key names its successor (ours).
const keyChangeProperty = "Postern Key Change"

// RotateKey gives the device new keys: the registered key names the new one, and the site takes it in one step. The device keeps its client id and its
// approval. The former keys are thrown away once a token was got with the new one; until then both are kept, so that a device that is stopped at any moment
// finds out which one the site knows. Run it again after a failure: it goes on where it stopped, with the same new keys.
//
// Errors: ClientKeyOfCompany, ClientKeyNotChanged (the device goes on with its former key), ClientKeyChangeOpen (it is not known yet), and the codes of
// the server.
func (a *Agent) RotateKey(ctx context.Context) error {
	r := a.current()
	switch {
	case !r.State.registered():
		return notEnrolled()
	case !r.tokens():
		return catalog.Errorf(catalog.ClientKeyOfCompany, "known by %s", cmp.Or(r.Certificate.String(), "its messages' signatures over "+r.Route.Scheme))
	}
	var before proof.KeyThumbprint
	return a.byAnyWay(ctx, func() error {
		return a.exclusive(ctx, func() error {
			if key := a.current().Key; before == "" {
				before = key
			} else if key != before {
				return a.remember(nil) // the site had taken the new key, which was found out while another way was looked for
			}
			ctx, c := a.converse(ctx, a.current(), a.logs.identity, messageLine())
			err := a.rotate(ctx, c)
			return errors.Join(err, a.remember(err))
		})
	})
}

func (a *Agent) rotate(ctx context.Context, c *conversation) error {
	next := a.nextKeys()
	if next == nil {
		err := a.step(ctx, "client", "new keys made and kept beside those in use", func() (err error) {
			next, err = a.makeNext()
			return err
		})
		if err != nil {
			return err
		}
	} else if taken, err := a.changeOver(ctx, c, next); taken || Transient(err) {
		return keyOpen(err) // of a change that was begun before
	}
	sent := a.nameSuccessor(ctx, c, next)
	if nowhere(c.route, sent) {
		return sent
	}
	if code := catalog.CodeOf(sent); code == catalog.ReplyEmpty || code == catalog.ClientRegistrationRejected {
		return catalog.Wrap(catalog.ClientKeyNotChanged, sent, "%s", plain(sent))
	}
	taken, err := a.changeOver(ctx, c, next) // also when there was no answer: the site may have acted
	switch {
	case taken:
		return err
	case err != nil && !notKnown(err):
		return keyOpen(err)
	case sent != nil:
		return sent
	}
	return catalog.Wrap(catalog.ClientKeyNotChanged, err, "the site took the registration, and does not know the new key")
}

// nowhere reports whether an act failed before it had a server of the site to send to, so that none has heard of it.
func nowhere(way route, err error) bool {
	code := catalog.CodeOf(err)
	return code == catalog.ClientNameNotResolved || code == catalog.ClientCannotConnect || anotherServer(way, err)
}

// keyOpen says that it is not known yet which key the site knows.
func keyOpen(err error) error {
	if err == nil {
		return nil
	}
	return catalog.Wrap(catalog.ClientKeyChangeOpen, err, "%s", plain(err))
}

// makeNext makes keys and certificates and keeps them beside those in use, before anything is sent.
func (a *Agent) makeNext() (*identity, error) {
	next, err := a.newKeys()
	if err != nil {
		return nil, err
	}
	if err := a.writeIdentity(fileNext, labelNext, next); err != nil {
		return nil, err
	}
	a.setNext(next)
	return next, nil
}

// nextKeys are the keys of a change that was begun and is not known to have ended, or nil.
func (a *Agent) nextKeys() *identity {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.next
}

func (a *Agent) setNext(next *identity) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.next = next
}

// nameSuccessor sends the registration by which the key in use names the next one.
func (a *Agent) nameSuccessor(ctx context.Context, c *conversation, next *identity) error {
	r := a.current()
	if t := a.cached().CCM; t.Scope != token.ScopeClient || !t.lasts(a.clock.corrected(), closeToExpiry) {
		if _, err := a.obtain(ctx, c, token.KindCCM, ""); err != nil {
			return err
		}
	}
	id, err := a.newMessageID()
	if err != nil {
		return err
	}
	address := c.url(ccm.EndpointSystemTokenAuth, "/request")
	m := message{id: id, endpoint: endpointRegistration, token: a.cached().CCM.Token, source: r.ClientID, signed: true}
	m.body = func(now time.Time) (string, error) {
		statement, err := token.SignKeyChange(a.ownKeys().signing, r.ClientID, next.thumbprint, address, now)
		if err != nil {
			return "", err
		}
		request := ccm.RegistrationRequest{
			Type: ccm.RegistrationTypeRegistration, SMSID: r.ClientID, TimeStamp: wireTime(now), Agent: ccm.Agent{Identity: agentIdentity, Version: agentVersion}, KeyType: 1,
			Signing: next.signingCert, Encryption: next.encryptionCert,
			Properties: map[string]string{
				"netbios name": netBIOSName(r.Name), "fq name": r.Name, "internetflag": string(rune('0' + r.Internet)), "agent edition": "0",
				keyChangeProperty: statement,
			},
		}
		return ccm.BuildRegistration(request, next.signing)
	}
	return a.step(ctx, c.route.hop(), "registration message: the key in use names its successor", func() error {
		got, err := a.deliver(ctx, c, m)
		if err != nil {
			return err
		}
		response, err := ccm.ParseRegistrationResponse(got.text)
		switch {
		case err != nil:
			return err
		case response.Status != ccm.RegistrationDone:
			return catalog.Errorf(catalog.ClientRegistrationRejected, "status %d for %s", response.Status, next.thumbprint)
		}
		return nil
	})
}

// changeOver asks the site, by a token for the next key, whether it knows that, and then goes over to it: tokens first, then keys; the former keys go
// when all is on disk. An error of notKnown says that the site does not know the next one.
func (a *Agent) changeOver(ctx context.Context, c *conversation, next *identity) (taken bool, err error) {
	as := *c
	as.as = next
	var got exchanged
	err = a.step(ctx, c.route.hop(), "CCM token by the new key", func() (err error) {
		got, err = a.exchange(ctx, &as, token.KindCCM, credential{what: "assertion of the new key"})
		return err
	})
	switch {
	case err != nil:
		return false, err
	case got.Client != a.current().ClientID:
		return false, catalog.Errorf(catalog.ClientOtherID, "registered as %s, the token service says %s", a.current().ClientID, got.Client)
	}
	err = a.step(ctx, "client", "the new keys are in use, the former ones are thrown away", func() error { return a.goOver(next, got) })
	if err != nil {
		return false, errors.Join(err, a.load()) // part of it may be in memory, and the folder says which
	}
	a.logs.keyChanged(string(next.thumbprint))
	if _, err := a.obtainOnce(ctx, c, token.KindSelfProve, ""); err != nil {
		a.log.WarnContext(ctx, "no self-prove token yet for the new key; it comes with the next renewal", "code", string(catalog.CodeOf(err)), "error", err)
	}
	return true, nil
}

// goOver writes what the new key brings.
func (a *Agent) goOver(next *identity, got exchanged) error {
	if err := a.saveTokens(func(t *tokenCache) { *t = tokenCache{CCM: got.cachedToken, Key: next.thumbprint} }); err != nil {
		return err
	}
	if err := a.keepKeys(next); err != nil {
		return err
	}
	tokens := a.cached().status()
	if err := a.save(func(r *record) { r.Key, r.Tokens = next.thumbprint, tokens }); err != nil {
		return err
	}
	if err := os.Remove(a.path(fileNext)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return catalog.Wrap(catalog.ClientStateNotWritten, err, "%s cannot be removed", fileNext)
	}
	a.setNext(nil)
	return nil
}

// notKnown reports whether a site has said that nobody is registered with the key that was shown.
func notKnown(err error) bool {
	return slices.Contains([]catalog.Code{catalog.ReturnUnknown, catalog.DeviceUnknown}, catalog.CodeOf(err))
}

// replacedCodes are the refusals of a key that another one has replaced.
func replacedCodes() []catalog.Code {
	return []catalog.Code{catalog.KeyBlocked, catalog.DeviceObsolete, catalog.DeviceUnknown, catalog.ReturnUnknown}
}

// replaced reports whether a refusal may be that of a former key, of a change whose end this device has not heard.
func (a *Agent) replaced(err error) bool {
	return err != nil && a.nextKeys() != nil && slices.Contains(replacedCodes(), catalog.CodeOf(err))
}

// rekeyed reports whether a message was refused because the device has, or may have, another key than this process spoke as: another process may have
// changed it.
func (a *Agent) rekeyed(err error) bool {
	if err == nil || !slices.Contains(replacedCodes(), catalog.CodeOf(err)) {
		return false
	}
	before := a.identity()
	if failed := a.load(); failed != nil {
		a.log.Warn("the state folder cannot be read", "error", failed)
	}
	now := a.identity()
	return a.nextKeys() != nil || before != nil && now != nil && before.thumbprint != now.thumbprint
}

// obtain gets a token with the best credential that the token service takes, and keeps it. When the site refuses the device's key and a change of it was
// begun, the new key is tried.
func (a *Agent) obtain(ctx context.Context, c *conversation, kind token.Kind, bulk Secret) (exchanged, error) {
	got, err := a.obtainOnce(ctx, c, kind, bulk)
	if !a.replaced(err) {
		return got, err
	}
	if taken, failed := a.changeOver(ctx, c, a.nextKeys()); !taken {
		if failed != nil && !notKnown(failed) {
			return got, failed
		}
		return got, err
	}
	return a.obtainOnce(ctx, c, kind, bulk)
}

// speaker is the identity that a conversation speaks as: the device's, or the next one while it is tried.
func (a *Agent) speaker(c *conversation) *identity {
	if c.as != nil {
		return c.as
	}
	return a.identity()
}

// keyChanged has no line in the documents.
func (l logs) keyChanged(key string) {
	l.identity.Infof("The key of this client was changed. The site knows it by %s now.", key)
}
