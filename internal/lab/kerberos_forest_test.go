//go:build ad && linux

package lab_test

import (
	"path/filepath"
	"strings"
	"testing"

	"postern/ccm"
	"postern/internal/realms"
	"postern/internal/realms/realmstest"
	"postern/internal/role"
)

// TestRegistrationInAForest: with Active Directory the ticket carries the account's security identifier, which the record keeps. The cluster's
// name is on a service account, whose keytab is as the domain's tools export it.
func TestRegistrationInAForest(t *testing.T) {
	forest, err := realms.StartForest(t.Context(), realms.ForestOptions{Realm: "A2003.VM.LOCAL", Domain: "A2003", Address: "127.0.0.33"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(forest.Stop)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	device := realms.Account{Name: "WK02-020-51W", Computer: true, Password: "Machine!1pw", EncryptionTypes: realms.AESOnly}
	service := realms.Account{Name: "svc-mp", Password: "Passw0rd!svc", Services: []string{"HTTP/mpcluster.a2003.vm.local"}, EncryptionTypes: realms.AESOnly}
	must(forest.Add(t.Context(), device, service))
	dir := t.TempDir()
	s := &realms.Session{Config: filepath.Join(dir, "krb5.conf"), Cache: filepath.Join(dir, "ccache")}
	must(realms.ForestsConfig(s.Config, forest))
	for _, account := range []realms.Account{device, service} {
		must(forest.Keytab(t.Context(), filepath.Join(dir, account.Name+".keytab"), account.SAMName()))
	}
	must(s.Login(t.Context(), device.SAMName()+"@"+forest.Realm, filepath.Join(dir, device.Name+".keytab")))
	sids, err := forest.Search(t.Context(), "(sAMAccountName="+device.SAMName()+")", "objectSid")
	must(err)

	i := &inside{made: newSite(t, dir, role.NewSite{})}
	n := i.add(t, "mpcluster.a2003.vm.local", filepath.Join(dir, service.Name+".keytab"))
	if status, all := n.curl(s, n.address("http"), "--anyauth", "-d", "x"); status != "200" {
		t.Errorf("curl ended with %s, want 200:\n%s", status, all)
	}
	if got := n.accesses(2); got[0] != asked || got[1] != `A2003\WK02-020-51W$ 200 0 0` {
		t.Errorf("access log %q, want the question and A2003\\WK02-020-51W$", got)
	}
	response, err := ccm.ParseRegistrationResponse(n.text(n.registerBy(computer(t), realmstest.Token(t, s, n.host), inDomain("a2003.vm.local"))))
	must(err)
	if response.ApprovalStatus != ccm.ApprovalApproved {
		t.Errorf("answered %+v, want approved", response)
	}
	kept, err := n.Site().Device(t.Context(), response.SMSID)
	must(err)
	if got := kept.Approval.Evidence["sid"]; len(sids) != 1 || got != sids[0] || !strings.HasPrefix(got, "S-1-5-21-") {
		t.Errorf("evidence %v, want the SID %q", kept.Approval.Evidence, sids)
	}
}
