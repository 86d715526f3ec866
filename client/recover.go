package client

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"

	"postern/catalog"
	"postern/keyfile"
)

// fileStateCopy is written after state.json when what a device cannot do without has changed: who it is, where its site is and how that is recognised.
const fileStateCopy = "state.copy.json"

// lasting is a record without what changes from one act to the next and comes by itself again.
func (r record) lasting() ([]byte, error) {
	fresh := record{}
	r.WaitingFor, r.NextTry, r.LastError, r.ErrorText = "", fresh.NextTry, "", ""
	r.Since, r.Tokens, r.Policies = fresh.Since, nil, nil
	r.Roaming = r.Roaming.lasting()
	return json.Marshal(r)
}

// keepCopy writes the copy when something that lasts has changed, or when there is none.
func (a *Agent) keepCopy(before, next record, content []byte) error {
	was, err := before.lasting()
	if err != nil {
		return err
	}
	is, err := next.lasting()
	if err != nil {
		return err
	}
	if _, missing := os.Stat(a.path(fileStateCopy)); missing == nil && string(was) == string(is) {
		return nil
	}
	if err := keyfile.WriteFile(a.path(fileStateCopy), content); err != nil {
		return catalog.Wrap(catalog.FolderNotWritable, err, "the copy of the state cannot be written")
	}
	return nil
}

// readState reads state.json, or its copy when it is damaged; the damaged one is put aside. The keys are in another file, so that neither loses them.
func (a *Agent) readState() (record, error) {
	r, damaged := a.readRecord()
	if catalog.CodeOf(damaged) != catalog.ClientStateDamaged {
		return r, damaged
	}
	copied, err := a.readFile(fileStateCopy)
	if err != nil {
		return r, damaged
	}
	content, err := json.MarshalIndent(copied, "", "  ")
	if err != nil {
		return r, damaged
	}
	if err := os.Rename(a.path(fileState), a.path(fileState+".damaged")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return r, damaged
	}
	if err := keyfile.WriteFile(a.path(fileState), append(content, '\n')); err != nil {
		return r, catalog.Wrap(catalog.FolderNotWritable, err, "the state cannot be written")
	}
	told := catalog.Wrap(catalog.ClientStateRecovered, damaged, "going on as %s; the damaged file is %s.damaged", copied.ClientID, fileState)
	a.log.Warn("the state file was damaged and its copy is used", "code", string(told.Code), "error", damaged)
	a.config.Say(catalog.Public(told) + " [" + string(told.Code) + "]")
	return copied, nil
}
