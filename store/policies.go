package store

import (
	"strconv"
	"strings"

	"postern/ccm"
	"postern/site"
)

const (
	policyColumns = "id, version, category, type, flags, level, sealed, hash, everyone, created, created_by"
	// newestFirst puts the newest version of a policy first: by number, as "10.0" is newer than "9.0".
	newestFirst = "version_rank desc, created desc, version desc"
	// current keeps a device that a newer version leaves out from being given an older one.
	current  = "not exists (select 1 from policies n where n.id = policies.id and n.version_rank > policies.version_rank)"
	targeted = "(everyone or exists (select 1 from policy_targets x where x.policy_id = policies.id and x.version = policies.version and x.client_id = $1))"
)

var putPolicy = upsert("policies", 2, "id", "version", "version_rank", "category", "type", "flags", "level", "body", "sealed", "hash", "everyone", "created", "created_by")

func scanPolicy(r row, p *site.Policy) error {
	return r.Scan(&p.ID, &p.Version, &p.Category, &p.Type, &p.Flags, &p.Level, &p.Sealed, &p.Hash, &p.All, instant{&p.Created}, &p.By)
}

// Policy implements site.Policies.
func (t *tx) Policy(id, version string) (site.Policy, error) {
	const query = "select " + policyColumns + ", body from policies where id = $1"
	scan := func(r row, p *site.Policy) error {
		return r.Scan(&p.ID, &p.Version, &p.Category, &p.Type, &p.Flags, &p.Level, &p.Sealed, &p.Hash, &p.All, instant{&p.Created}, &p.By, bytesTo{&p.Body})
	}
	p, err := site.Policy{}, error(nil)
	if version == "" {
		p, err = one(t, query+" order by "+newestFirst+" limit 1", scan, id)
	} else {
		p, err = one(t, query+" and version = $2", scan, id, version)
	}
	if err != nil {
		return site.Policy{}, err
	}
	p.Targets, err = many(t, "select client_id from policy_targets where policy_id = $1 and version = $2 order by client_id", value[ccm.ClientID], p.ID, p.Version)
	return p, err
}

// Policies implements site.Policies.
func (t *tx) Policies() ([]site.Policy, error) {
	list, err := many(t, "select "+policyColumns+" from policies order by id, "+newestFirst, scanPolicy)
	if err != nil {
		return nil, err
	}
	return list, t.addTargets(list, "select policy_id, version, client_id from policy_targets order by client_id")
}

// PoliciesFor implements site.Policies.
func (t *tx) PoliciesFor(id ccm.ClientID) ([]site.Policy, error) {
	all, err := many(t, "select "+policyColumns+" from policies where "+current+" and "+targeted+" order by id, "+newestFirst, scanPolicy, string(id))
	if err != nil {
		return nil, err
	}
	var list []site.Policy
	selected := false
	for _, p := range all {
		if len(list) == 0 || list[len(list)-1].ID != p.ID {
			list = append(list, p)
			selected = selected || !p.All
		}
	}
	if !selected {
		return list, nil
	}
	return list, t.addTargets(list, "select policy_id, version, client_id from policy_targets where policy_id in (select policy_id from policy_targets where client_id = $1) order by client_id", string(id))
}

// addTargets fills in the targets that the query lists.
func (t *tx) addTargets(list []site.Policy, query string, args ...any) error {
	type edition struct{ id, version string }
	at := make(map[edition]int, len(list))
	for i, p := range list {
		at[edition{p.ID, p.Version}] = i
	}
	return t.query(query, args, func(r row) error {
		var e edition
		var client ccm.ClientID
		if err := r.Scan(&e.id, &e.version, &client); err != nil {
			return err
		}
		if i, ok := at[e]; ok {
			list[i].Targets = append(list[i].Targets, client)
		}
		return nil
	})
}

// PutPolicy implements site.Policies.
func (t *tx) PutPolicy(p site.Policy) error {
	_, err := t.exec(putPolicy, p.ID, p.Version, versionRank(p.Version), p.Category, p.Type, int64(p.Flags), int64(p.Level), blob(p.Body), p.Sealed, p.Hash, p.All, micros(p.Created), p.By)
	if err != nil {
		return err
	}
	if _, err := t.exec("delete from policy_targets where policy_id = $1 and version = $2", p.ID, p.Version); err != nil {
		return err
	}
	for _, client := range p.Targets {
		if _, err := t.exec("insert into policy_targets (policy_id, version, client_id) values ($1, $2, $3) on conflict do nothing", p.ID, p.Version, string(client)); err != nil {
			return err
		}
	}
	return nil
}

// DeletePolicy implements site.Policies.
func (t *tx) DeletePolicy(id string) error {
	if _, err := t.exec("delete from policy_targets where policy_id = $1", id); err != nil {
		return err
	}
	n, err := t.exec("delete from policies where id = $1", id)
	return notFoundUnless(n, err)
}

// versionRank orders versions such as "1.2" and "1_02" by their numbers; what is no number counts as 0.
func versionRank(version string) int64 {
	fields := strings.FieldsFunc(version, func(r rune) bool { return r == '.' || r == '_' })
	var rank int64
	for i := range 2 {
		rank <<= 31
		if i < len(fields) {
			n, _ := strconv.ParseUint(fields[i], 10, 31)
			rank |= int64(n)
		}
	}
	return rank
}

// notFoundUnless turns a change that met no record into site.ErrNotFound.
func notFoundUnless(changed int64, err error) error {
	if err == nil && changed == 0 {
		return site.ErrNotFound
	}
	return err
}
