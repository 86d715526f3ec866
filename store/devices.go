package store

import (
	"bytes"
	"strings"
	"time"
	"unicode/utf8"

	"postern/ccm"
	"postern/proof"
	"postern/site"
)

// deviceColumns are the columns of a device: its identity, the fields of the stored procedure (protocol.md 3.7), the approval with its
// evidence, the block, the times, and what tells it from its twins.
func deviceColumns() []string {
	return []string{
		"client_id", "key_thumbprint",
		"site_code", "smsid", "csmsid", "identity", "device_id", "certificate", "thumbprint", "enc_key", "enc_is_signing", "enc_thumbprint", "key_type",
		"public_key", "valid_from", "valid_to", "agent_type", "smbios_id", "mac_address", "hardware_id1", "isv_proxy_id", "always_internet",
		"internet_enabled", "force", "approval_method", "resolution_method", "is_integrated_auth", "version", "netbios_name", "fqd_name",
		"manual_conflict_resolution",
		"approval_status", "approval_level", "approval_proof", "approval_rule", "approval_evidence", "approval_by", "approval_why", "approval_at",
		"blocked", "blocked_by", "blocked_why", "blocked_at",
		"created", "updated", "last_seen",
		"proved", "conflict_id", "obsolete_by", "obsolete_why", "obsolete_at",
		"quarantine_at", "quarantine_why",
	}
}

// A name is also kept folded, so that both databases compare it alike in any alphabet.
var (
	selectDevice = selection("devices", deviceColumns()...)
	putFormerKey = insertNew("former_keys", "key_thumbprint", "client_id", "since")
	putDevice    = upsert("devices", 1, append(deviceColumns(), "netbios_folded", "fqd_folded")...)
)

func scanDevice(r row, d *site.Device) error {
	c, a, b := &d.Record, &d.Approval, &d.Block
	var oneCertificate bool
	err := r.Scan(
		&d.ClientID, &d.Key,
		&c.SiteCode, &c.SMSID, &c.CSMSID, &c.Identity, &c.DeviceID, bytesTo{&c.Certificate}, &c.Thumbprint, bytesTo{&c.EncKey}, &oneCertificate, &c.EncThumbprint, &c.KeyType,
		bytesTo{&c.PublicKey}, instant{&c.ValidFrom}, instant{&c.ValidTo}, &c.AgentType, &c.SMBIOSID, &c.MACAddress, &c.HardwareID1, &c.ISVProxyID, &c.AlwaysInternet,
		&c.InternetEnabled, &c.Force, &c.ApprovalMethod, &c.ResolutionMethod, &c.IsIntegratedAuth, &c.Version, &c.NetbiosName, &c.FQDName,
		&c.ManualConflictResolution,
		&a.Status, &a.Level, &a.Method, &a.Rule, objectTo[map[string]string]{&a.Evidence}, &a.By, &a.Why, instant{&a.At},
		&b.Blocked, &b.By, &b.Why, instant{&b.At},
		instant{&d.Created}, instant{&d.Updated}, instant{&d.LastSeen},
		&d.Proved, &d.Conflict, &d.Obsolete.By, &d.Obsolete.Why, instant{&d.Obsolete.At},
		instant{&d.Quarantine.Since}, &d.Quarantine.Why,
	)
	if oneCertificate {
		c.EncKey = bytes.Clone(c.Certificate)
	}
	return err
}

// Device implements site.Devices.
func (t *tx) Device(id ccm.ClientID) (site.Device, error) {
	if !t.readOnly {
		if _, err := one(t, "select 1 from devices where client_id = $1", value[int64], string(id)); err != nil {
			return site.Device{}, err
		}
	}
	return one(t, selectDevice+" where client_id = $1", scanDevice, string(id))
}

// DeviceByKey implements site.Devices. A change mostly asks in order to register a new device: there it looks first whether there is one, because
// a query for fifty columns costs something even when it finds nothing.
func (t *tx) DeviceByKey(key proof.KeyThumbprint) (site.Device, error) {
	if !t.readOnly {
		if _, err := t.owner(key); err != nil {
			return site.Device{}, err
		}
	}
	return one(t, selectDevice+" where key_thumbprint = $1", scanDevice, string(key))
}

// owner returns the client id of the device that has the key. The same query looks whether an id is reserved for the key, for [tx.Reservation]:
// a registration asks for both, and mostly finds neither.
func (t *tx) owner(key proof.KeyThumbprint) (id ccm.ClientID, err error) {
	if t.newKey != "" && t.newKey == key {
		return "", site.ErrNotFound
	}
	const query = "select client_id, false from devices where key_thumbprint = $1 union all select client_id, true from reservations where key_thumbprint = $2"
	var owned, reserved bool
	err = t.query(query, []any{string(key), string(key)}, func(r row) error {
		var found ccm.ClientID
		if err := r.Scan(&found, &reserved); err != nil {
			return err
		}
		if !reserved {
			id, owned = found, true
		}
		return nil
	})
	switch {
	case err != nil:
		return "", err
	case owned:
		return id, nil
	case !reserved:
		t.newKey = key
	}
	return "", site.ErrNotFound
}

// Devices implements site.Devices.
func (t *tx) Devices(f site.DeviceFilter) ([]site.Device, error) {
	w := deviceWhere(f)
	tail := w.ordered("created, client_id", f.Limit)
	return many(t, selectDevice+tail, scanDevice, w.args...)
}

func deviceWhere(f site.DeviceFilter) (w where) {
	if f.Name != "" {
		w.and("(netbios_folded = ? or fqd_folded = ?)", fold(f.Name))
	}
	if f.NameLike != "" {
		w.and("(netbios_folded like ? escape '!' or fqd_folded like ? escape '!')", glob(fold(f.NameLike)))
	}
	if f.Domain != "" {
		w.and("fqd_folded like ? escape '!'", "%."+literal(fold(strings.Trim(f.Domain, "."))))
	}
	if f.Realm != "" {
		w.and("lower(proved) like ? escape '!'", "%@"+literal(strings.ToLower(f.Realm)))
	}
	if f.Method != "" {
		w.and("approval_proof = ?", string(f.Method))
	}
	if f.Status != nil {
		w.and("approval_status = ?", int64(*f.Status))
	}
	if f.Level != nil {
		w.and("approval_level = ?", int64(*f.Level))
	}
	if f.Blocked != nil {
		w.and("blocked = ?", *f.Blocked)
	}
	w.filled("obsolete_by", f.Obsolete)
	w.filled("conflict_id", f.Held)
	w.filled("quarantine_why", f.Quarantined)
	w.time("created >= ?", f.Since)
	w.time("created < ?", f.Before)
	w.time("last_seen < ?", f.SeenBefore)
	if f.After != "" {
		w.and("(created, client_id) > (select created, client_id from devices where client_id = ?)", string(f.After))
	}
	return w
}

// filled asks whether a text column holds something.
func (w *where) filled(column string, wanted *bool) {
	switch {
	case wanted == nil:
	case *wanted:
		w.parts = append(w.parts, column+" <> ''")
	default:
		w.parts = append(w.parts, column+" = ''")
	}
}

// time adds a condition on a time unless that is zero.
func (w *where) time(fragment string, at time.Time) {
	if !at.IsZero() {
		w.and(fragment, micros(at))
	}
}

// literal is text for a like pattern in which nothing stands for something else.
func literal(text string) string {
	return strings.NewReplacer("!", "!!", "%", "!%", "_", "!_").Replace(text)
}

// glob is a like pattern from one with * and ?.
func glob(pattern string) string {
	return strings.NewReplacer("*", "%", "?", "_").Replace(literal(pattern))
}

// sameHardware finds the oldest current devices with a hardware id. The index holds the end of the id only (PostgreSQL takes substr from -8 as the
// whole), and of ids with one end the 64 oldest are looked at, so that made-up ones cost nothing.
const sameHardware = `select client_id, hardware_id1 from devices
	where substr(hardware_id1, -8) = substr($1, -8) and hardware_id1 <> '' and obsolete_by = '' order by created limit 64`

// DevicesByHardware implements site.Devices. It finds client ids first: mostly there is none, and a query for fifty columns costs something. The
// whole ids are compared here: a query around the query would sort, and every registration would pay for it.
func (t *tx) DevicesByHardware(hardwareID string, limit int) ([]site.Device, error) {
	if hardwareID == "" {
		return nil, nil
	}
	var ids []ccm.ClientID
	err := t.query(sameHardware, []any{hardwareID}, func(r row) error {
		var id ccm.ClientID
		var whole string
		err := r.Scan(&id, &whole)
		if whole == hardwareID && (limit <= 0 || len(ids) < limit) {
			ids = append(ids, id)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return t.devices(ids)
}

// devicesOf returns the devices whose client ids the query finds.
func (t *tx) devicesOf(query string, args ...any) ([]site.Device, error) {
	ids, err := many(t, query, value[ccm.ClientID], args...)
	if err != nil {
		return nil, err
	}
	return t.devices(ids)
}

func (t *tx) devices(ids []ccm.ClientID) ([]site.Device, error) {
	devices := make([]site.Device, 0, len(ids))
	for _, id := range ids {
		d, err := one(t, selectDevice+" where client_id = $1", scanDevice, string(id))
		if err != nil {
			return nil, err
		}
		devices = append(devices, d)
	}
	return devices, nil
}

// byIdentity finds the current devices that have proved an identity. The index holds the beginning of it only.
const byIdentity = `select client_id from devices
	where substr(proved, 1, 64) = substr($1, 1, 64) and proved <> '' and obsolete_by = '' and proved = $2 order by approval_level desc, created desc limit $3`

// identityReplaced counts those that took the place of others with an identity.
const identityReplaced = `select count(distinct obsolete_by) from devices
	where substr(proved, 1, 64) = substr($1, 1, 64) and proved <> '' and obsolete_by <> '' and obsolete_at >= $2 and proved = $3`

// DevicesByIdentity implements site.Devices.
func (t *tx) DevicesByIdentity(identity string, limit int) ([]site.Device, error) {
	if identity == "" {
		return nil, nil
	}
	return t.devicesOf(byIdentity, identity, identity, limitOf(limit))
}

// IdentityReplaced implements site.Devices.
func (t *tx) IdentityReplaced(identity string, since time.Time) (n int, err error) {
	if identity == "" {
		return 0, nil
	}
	return one(t, identityReplaced, value[int], identity, micros(since), identity)
}

// rejected is the condition for a device that a person has rejected, as [site.Device.Rejected] says it and the indexes have it.
const rejected = "approval_level <= 1 and approval_by <> '' and approval_by <> 'site' and obsolete_by = ''"

// Blocked devices come first. Every registration asks by hardware id, and mostly no device at all is blocked or rejected.
const (
	someRefused     = "select 1 from devices where blocked union all select 1 from devices where " + rejected + " limit 1"
	refusedHardware = `select client_id from (
	select 1 as turn, client_id from devices where blocked and hardware_id1 = $1 union all
	select 2 as turn, client_id from devices where not blocked and ` + rejected + ` and hardware_id1 = $2
) as refused order by turn, client_id limit $3`
	refusedIdentity = `select client_id from (
	select 1 as turn, client_id from devices where substr(proved, 1, 64) = substr($1, 1, 64) and proved <> '' and blocked and proved = $2 union all
	select 2 as turn, client_id from devices where not blocked and substr(proved, 1, 64) = substr($3, 1, 64) and proved <> '' and ` + rejected + ` and proved = $4
) as refused order by turn, client_id limit $5`
)

// RefusedHardware implements site.Devices. An empty hardware id names no device.
func (t *tx) RefusedHardware(hardwareID string, limit int) ([]ccm.ClientID, error) {
	return t.refused(hardwareID, refusedHardware, hardwareID, hardwareID, limitOf(limit))
}

// RefusedIdentity implements site.Devices. No identity names no device.
func (t *tx) RefusedIdentity(identity string, limit int) ([]ccm.ClientID, error) {
	return t.refused(identity, refusedIdentity, identity, identity, identity, identity, limitOf(limit))
}

func (t *tx) refused(by, query string, args ...any) ([]ccm.ClientID, error) {
	if by == "" {
		return nil, nil
	}
	if some, err := t.someRefused(); err != nil || !some {
		return nil, err
	}
	return many(t, query, value[ccm.ClientID], args...)
}

// someRefused reports whether devices may be blocked or rejected.
func (t *tx) someRefused() (bool, error) {
	if t.lore.refusedKnown || t.failed != nil {
		return t.lore.someRefused, t.failed
	}
	_, err := one(t, someRefused, value[int64])
	if err != nil && err != site.ErrNotFound {
		return false, err
	}
	t.lore.refusedKnown, t.lore.someRefused = true, err == nil
	return t.lore.someRefused, nil
}

// BlockedKeys implements site.Devices.
func (t *tx) BlockedKeys() ([]proof.KeyThumbprint, error) {
	return many(t, "select key_thumbprint from devices where blocked order by key_thumbprint", value[proof.KeyThumbprint])
}

// ReplacedKeys implements site.Devices.
func (t *tx) ReplacedKeys() (map[proof.KeyThumbprint]site.Replaced, error) {
	replaced := map[proof.KeyThumbprint]site.Replaced{}
	const query = `select key_thumbprint, obsolete_by, obsolete_at from devices where obsolete_by <> ''
	union all select key_thumbprint, client_id, since from former_keys`
	return replaced, t.query(query, nil, func(r row) error {
		var key proof.KeyThumbprint
		var by site.Replaced
		err := r.Scan(&key, &by.By, instant{&by.At})
		replaced[key] = by
		return err
	})
}

// FormerKey implements site.Devices. Every new device asks, and mostly no key is a former one.
func (t *tx) FormerKey(key proof.KeyThumbprint) (ccm.ClientID, error) {
	if !t.lore.formerKnown && t.failed == nil {
		_, err := one(t, "select 1 from former_keys limit 1", value[int64])
		if err != nil && err != site.ErrNotFound {
			return "", err
		}
		t.lore.formerKnown, t.lore.someFormer = true, err == nil
	}
	if t.failed == nil && !t.lore.someFormer {
		return "", site.ErrNotFound
	}
	return one(t, "select client_id from former_keys where key_thumbprint = $1", value[ccm.ClientID], string(key))
}

// PutFormerKey implements site.Devices.
func (t *tx) PutFormerKey(key proof.KeyThumbprint, id ccm.ClientID, at time.Time) error {
	t.lore.formerKnown, t.lore.someFormer = true, true
	_, err := t.exec(putFormerKey, string(key), string(id), micros(at))
	return err
}

// DeleteDevice implements site.Devices.
func (t *tx) DeleteDevice(id ccm.ClientID) error {
	t.newKey = ""
	if _, err := t.exec("delete from policy_targets where client_id = $1", string(id)); err != nil {
		return err
	}
	_, err := t.exec("delete from devices where client_id = $1", string(id))
	return err
}

// PutDevice implements site.Devices.
func (t *tx) PutDevice(d site.Device) error {
	owner, err := t.owner(d.Key)
	switch {
	case err == nil && owner != d.ClientID:
		return site.ErrExists
	case err != nil && err != site.ErrNotFound:
		return err
	}
	t.newKey = ""
	t.lore.someRefused = t.lore.someRefused || d.Block.Blocked || d.Rejected()
	evidence := ""
	if len(d.Approval.Evidence) > 0 {
		evidence = site.FactsJSON(d.Approval.Evidence)
	}
	c, a, b := &d.Record, &d.Approval, &d.Block
	encKey, oneCertificate := c.EncKey, len(c.EncKey) > 0 && bytes.Equal(c.EncKey, c.Certificate)
	if oneCertificate { // many clients sign and decrypt with the same one: it is the largest part of a row
		encKey = nil
	}
	_, err = t.exec(putDevice,
		string(d.ClientID), string(d.Key),
		string(c.SiteCode), string(c.SMSID), c.CSMSID, c.Identity, c.DeviceID, blob(c.Certificate), c.Thumbprint, blob(encKey), oneCertificate, c.EncThumbprint, int64(c.KeyType),
		blob(c.PublicKey), micros(c.ValidFrom), micros(c.ValidTo), int64(c.AgentType), c.SMBIOSID, c.MACAddress, c.HardwareID1, c.ISVProxyID, c.AlwaysInternet,
		c.InternetEnabled, c.Force, int64(c.ApprovalMethod), int64(c.ResolutionMethod), c.IsIntegratedAuth, c.Version, c.NetbiosName, c.FQDName,
		c.ManualConflictResolution,
		int64(a.Status), int64(a.Level), string(a.Method), a.Rule, evidence, a.By, a.Why, micros(a.At),
		b.Blocked, b.By, b.Why, micros(b.At),
		micros(d.Created), micros(d.Updated), micros(d.LastSeen),
		d.Proved, d.Conflict, string(d.Obsolete.By), d.Obsolete.Why, micros(d.Obsolete.At),
		micros(d.Quarantine.Since), d.Quarantine.Why,
		fold(c.NetbiosName), fold(c.FQDName),
	)
	return err
}

// TouchDevice implements site.Devices.
func (t *tx) TouchDevice(id ccm.ClientID, seen time.Time) error {
	_, err := t.exec("update devices set last_seen = $2 where client_id = $1 and last_seen < $2", string(id), micros(seen))
	return err
}

// fold makes names that differ only in case equal.
func fold(name string) string {
	for _, c := range []byte(name) {
		if c >= utf8.RuneSelf {
			return strings.ToLower(strings.ToUpper(name))
		}
	}
	return strings.ToLower(name)
}
