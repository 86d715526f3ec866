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
		return notWritten(err, fileStateCopy)
	}
	return nil
}

// readState reads state.json, or its copy when it is damaged or missing; the damaged one is put aside. The keys are in another file, so that neither loses
// them. Where there is no copy either, a missing file is that of a device which was never enrolled. a.mu is held.
func (a *Agent) readState() (r record, recovered, err error) {
	if r, err = a.readFile(fileState); catalog.CodeOf(err) != catalog.ClientStateDamaged {
		return r, nil, err
	}
	done, failed := a.writing()
	if failed != nil {
		return r, nil, failed
	}
	defer done()
	r, lost := a.readFile(fileState) // another process may have been faster
	missing := errors.Is(lost, fs.ErrNotExist)
	if opening, ok := errors.AsType[*fs.PathError](lost); catalog.CodeOf(lost) != catalog.ClientStateDamaged || ok && opening.Op == "open" && !missing {
		return r, nil, lost // what cannot be opened at this moment may be as good as ever
	}
	copied, err := a.readFile(fileStateCopy)
	switch {
	case missing && catalog.CodeOf(err) == catalog.ClientStateDamaged:
		return record{State: StateNew, Since: a.config.Now().UTC()}, nil, nil
	case missing && err != nil:
		return r, nil, err
	case err != nil:
		return r, nil, lost
	}
	told := "it was missing"
	if !missing {
		told = "the damaged file is " + fileState + ".damaged"
		if err := os.Rename(a.path(fileState), a.path(fileState+".damaged")); err != nil {
			return r, nil, lost
		}
	}
	if _, err := a.writeRecord(fileState, copied); err != nil {
		return r, nil, err
	}
	return copied, catalog.Wrap(catalog.ClientStateRecovered, lost, "going on as %s; %s", copied.ClientID, told), nil
}
