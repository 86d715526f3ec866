package lab_test

import (
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"postern/ccm"
	"postern/internal/role"
	"postern/site"
)

// acknowledged is what devices were told, and must stay true whatever happens.
type acknowledged struct {
	mu  sync.Mutex
	ids map[*device]ccm.ClientID
}

func (a *acknowledged) add(d *device, id ccm.ClientID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ids == nil {
		a.ids = map[*device]ccm.ClientID{}
	}
	a.ids[d] = id
}

func (a *acknowledged) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.ids)
}

// tryRegister registers a device at the plain listener, without failing the test: the management point may be dead.
func (w *world) tryRegister(d *device) (ccm.RegistrationResponse, answer, error) {
	contentType, body := d.encode(w, "MP_ClientRegistration", d.registration(w), false)
	a, err := w.try(w.http1(), "CCM_POST", w.plain("/ccm_system/request"), contentType, body, nil)
	if err != nil || a.status != 200 || len(a.body) == 0 {
		return ccm.RegistrationResponse{Status: -1}, a, err
	}
	response, err := ccm.ParseRegistrationResponse(w.text(a))
	return response, a, err
}

// confirm asks whether an id is final.
func (w *world) confirm(d *device, id ccm.ClientID) ccm.RegistrationResponse {
	w.Helper()
	contentType, body := d.encode(w, "MP_ClientRegistration", d.confirmation(w, id), false)
	a := w.send(w.http1(), "CCM_POST", w.plain("/ccm_system/request"), contentType, body, nil)
	if a.status != 200 || len(a.body) == 0 {
		return ccm.RegistrationResponse{Status: -1}
	}
	response, err := ccm.ParseRegistrationResponse(w.text(a))
	w.must(err)
	return response
}

// kept fails when an acknowledged id is not confirmed, or the trust log does not tell of it.
func (w *world) kept(a *acknowledged) {
	w.Helper()
	for d, id := range a.ids {
		var last ccm.RegistrationResponse
		eventually(w, "the id "+string(id)+" is final", func() bool {
			last = w.confirm(d, id)
			return last.Status != ccm.RegistrationPending
		})
		if last.Status != ccm.RegistrationDone || last.SMSID != id {
			w.Errorf("%s was acknowledged; its confirmation is answered %+v", id, last)
		}
	}
	eventually(w, "the trust log is whole", func() bool {
		_, err := w.Site().VerifyTrustLog(w.Context())
		if err != nil && !errors.Is(err, site.ErrUnavailable) { // this process's own connections may be those to the database before
			w.Fatal(err)
		}
		return err == nil
	})
	devices, err := w.Site().Devices(w.Context(), site.DeviceFilter{})
	w.must(err)
	if len(devices) < len(a.ids) {
		w.Errorf("%d devices are known, %d were acknowledged", len(devices), len(a.ids))
	}
}

// TestKilledManagementPoint (design decision 8): kill -9 at random instants while devices register, again and again on the same store. What
// was acknowledged is confirmed afterwards.
func TestKilledManagementPoint(t *testing.T) {
	t.Parallel()
	d := deployPoint(t, role.NewSite{})
	var told acknowledged
	const rounds, devices = 10, 12
	for round := range rounds {
		if round > 0 {
			d.restartPoint()
		}
		fresh := make([]*device, devices)
		for i := range fresh {
			fresh[i] = newDevice(t, "crash")
		}
		var killed sync.Once
		var work sync.WaitGroup
		for worker := range 4 {
			work.Go(func() {
				for i := worker; i < devices; i += 4 {
					response, _, err := d.tryRegister(fresh[i])
					if err != nil {
						continue // it is dead
					}
					if response.Status != ccm.RegistrationDone {
						t.Errorf("registration answered %+v", response)
						continue
					}
					told.add(fresh[i], response.SMSID)
					killed.Do(func() { time.AfterFunc(rand.N(15*time.Millisecond), func() { d.point.Process.Kill() }) })
				}
			})
		}
		work.Wait()
		d.point.kill()
	}
	d.restartPoint()
	d.kept(&told)
	if n := told.count(); n < rounds || n == rounds*devices {
		t.Logf("%d of %d registrations were acknowledged: the kills came at the wrong time", n, rounds*devices)
	}
}
