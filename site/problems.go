package site

import (
	"slices"
	"sync"

	"postern/catalog"
)

// problems is what is wrong with the log of revocations, and what was applied again: read by the health while refreshes go on.
type problems struct {
	mu      sync.Mutex
	by      map[catalog.Code]error
	applied []Revoked
}

// set notes a problem, or with nil that it is over.
func (p *problems) set(code catalog.Code, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		delete(p.by, code)
		return
	}
	if p.by == nil {
		p.by = map[catalog.Code]error{}
	}
	if catalog.CodeOf(err) != code {
		err = catalog.Wrap(code, err, "what is revoked is in force, and not yet kept for a restore")
	}
	p.by[code] = err
}

func (p *problems) has(code catalog.Code) bool { return p.get(code) != nil }

func (p *problems) get(code catalog.Code) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.by[code]
}

func (p *problems) all() []error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return sortedProblems(p.by)
}

func (p *problems) apply(applied []Revoked) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.applied = append(p.applied, applied...)
}

func (p *problems) appliedAgain() []Revoked {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.applied)
}
