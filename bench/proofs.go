//go:build linux

package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"postern/token"
)

// goodFor is how long a proof is kept for use after it was signed: well below token.ProofLifetime.
const goodFor = token.ProofLifetime - 90*time.Second

// proofs holds proofs for one method and address, signed before they are needed. A signature by an RSA key is a device's cost and takes a
// millisecond of CPU; it must not be made while a gateway is measured on the same cores.
type proofs struct {
	device      device
	method, url string

	mu    sync.Mutex
	ready []signed
}

type signed struct {
	raw string
	at  time.Time
}

// fill signs until so many are ready, on all cores.
func (p *proofs) fill(ctx context.Context, want int) error {
	p.mu.Lock()
	p.ready = slices.DeleteFunc(p.ready, func(s signed) bool { return time.Since(s.at) > goodFor })
	missing := want - len(p.ready)
	p.mu.Unlock()
	workers := runtime.NumCPU()
	failed := make([]error, workers)
	var work sync.WaitGroup
	for i := range workers {
		work.Go(func() {
			for n := i; n < missing && failed[i] == nil; n += workers {
				if failed[i] = ctx.Err(); failed[i] == nil {
					failed[i] = p.sign()
				}
			}
		})
	}
	work.Wait()
	for _, err := range failed {
		if err != nil {
			return fmt.Errorf("sign a proof: %w", err)
		}
	}
	return nil
}

func (p *proofs) sign() error {
	now := time.Now()
	raw, err := token.SignProof(p.device.key, p.method, p.url, p.device.token, now, rand.Reader)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ready = append(p.ready, signed{raw, now})
	return nil
}

// take returns the oldest proof; false when none is left.
func (p *proofs) take() (string, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.ready) == 0 {
		return "", false
	}
	first := p.ready[0]
	p.ready = p.ready[1:]
	return first.raw, true
}
