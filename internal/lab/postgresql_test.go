package lab_test

import (
	"testing"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/internal/lab"
	"postern/internal/role"
	"postern/store/postgrestest"
	"postern/token"
)

// TestEnrolStoryOnPostgreSQL tells the story on the other store.
func TestEnrolStoryOnPostgreSQL(t *testing.T) {
	t.Parallel()
	dsn := postgrestest.Start(t)
	w := newWorld(t, func(o *lab.Options) { o.Store = dsn })
	story, err := lab.FindStory("enrol")
	w.must(err)
	w.must(w.Tell(t.Context(), story))
	for _, step := range w.Steps() {
		if !step.OK {
			t.Errorf("step %+v", step)
		}
	}
	if _, err := w.Site().VerifyTrustLog(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestDatabaseStoppedMidWay (design decision 8): registrations are answered pending from the inbox, directly and through the gateway, all else
// is refused with a code; when the database is back, the ids that devices were told are final.
func TestDatabaseStoppedMidWay(t *testing.T) {
	t.Parallel()
	server, err := postgrestest.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	dsn, err := server.Database()
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, func(o *lab.Options) { o.Store = dsn })
	known := w.enrolled("known")
	raw, _ := w.bulk(0)
	remote, direct := newDevice(t, "remote"), newDevice(t, "direct")
	reserved := w.token(w.exchange(remote, raw, token.KindCCM))
	remote.register = reserved.AccessToken

	w.must(server.Stop())
	var told acknowledged
	response, _ := w.register(direct)
	if response.Status != ccm.RegistrationPending || response.SMSID == "" {
		t.Errorf("registration while the database is away: %+v, want pending with an id", response)
	}
	told.add(direct, response.SMSID)
	response, err = ccm.ParseRegistrationResponse(w.text(w.message(remote, remote.register, "MP_ClientRegistration", remote.registration(t), false)))
	w.must(err)
	if response.Status != ccm.RegistrationPending || response.SMSID != reserved.ClientID {
		t.Errorf("registration through the gateway: %+v, want pending as %s", response, reserved.ClientID)
	}
	told.add(remote, response.SMSID)
	if again := w.confirm(direct, told.ids[direct]); again.Status != ccm.RegistrationPending {
		t.Errorf("confirmation while the database is away: %+v, want pending", again)
	}
	for name, a := range map[string]answer{
		"a token":  w.exchange(newDevice(t, "late"), raw, token.KindCCM),
		"policies": w.message(known, known.ccm, "MP_PolicyManager", known.assignments(), true),
	} {
		if a.status != 503 && a.reason != "CMGConnector_ServiceUnavailable" || a.problem() != catalog.StoreUnavailable {
			t.Errorf("%s while the database is away: %s, want 503 and %s", name, a, catalog.StoreUnavailable)
		}
	}

	w.must(server.Resume())
	began := time.Now()
	w.kept(&told)
	t.Logf("final %s after the database came back", time.Since(began).Round(time.Millisecond))
	for _, d := range []*device{remote, direct} {
		if mine, err := w.Site().DeviceByKey(t.Context(), d.thumbprint(t)); err != nil || mine.ClientID != told.ids[d] {
			t.Errorf("%s is %s, %v; want %s", d.name, mine.ClientID, err, told.ids[d])
		}
	}
	if mine, err := w.Site().Device(t.Context(), reserved.ClientID); err != nil || mine.Approval.Status != ccm.ApprovalApproved {
		t.Errorf("the remote device is %+v, %v; want it approved by its bulk token", mine.Approval, err)
	}
	w.text(w.message(known, known.ccm, "MP_PolicyManager", known.assignments(), true))
}

// TestKilledWhileTheDatabaseIsAway: kill -9 after the answer and before the database has the registration. The inbox has it.
func TestKilledWhileTheDatabaseIsAway(t *testing.T) {
	t.Parallel()
	server, err := postgrestest.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	dsn, err := server.Database()
	if err != nil {
		t.Fatal(err)
	}
	d := deployPoint(t, role.NewSite{Store: dsn})
	d.must(server.Stop())
	var told acknowledged
	for range 5 {
		one := newDevice(t, "waiting")
		response, a, err := d.tryRegister(one)
		d.must(err)
		if response.Status != ccm.RegistrationPending {
			t.Errorf("registration while the database is away: %s, want pending", a)
			continue
		}
		told.add(one, response.SMSID)
	}
	d.point.kill()
	d.must(server.Resume())
	d.restartPoint()
	d.kept(&told)
}
