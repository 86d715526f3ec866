package swarm

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"math/big"
	"runtime"
	"sync"
)

// keyBits is the size of the devices' keys, that of real ones.
const keyBits = 2048

// keys hands out RSA keys, each once. Every pair of a few primes is a key: n primes are n(n-1)/2 of them.
type keys struct {
	primes []*big.Int
}

// newKeys makes primes enough for count keys, on every core.
func newKeys(ctx context.Context, count int) (*keys, error) {
	need := 2
	for need*(need-1)/2 < count {
		need++
	}
	k := &keys{primes: make([]*big.Int, need)}
	errs := make([]error, need)
	var work sync.WaitGroup
	room := make(chan struct{}, runtime.GOMAXPROCS(0))
	for i := range k.primes {
		work.Go(func() {
			room <- struct{}{}
			defer func() { <-room }()
			k.primes[i], errs[i] = prime(ctx)
		})
	}
	work.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, fmt.Errorf("make keys for the fleet: %w", err)
		}
	}
	return k, nil
}

// prime makes a prime whose product with another such has exactly keyBits and whose predecessor is prime to the exponent.
func prime(ctx context.Context) (*big.Int, error) {
	exponent, one := big.NewInt(publicExponent), big.NewInt(1)
	for ctx.Err() == nil {
		p, err := rand.Prime(rand.Reader, keyBits/2) // the two highest bits are set
		if err != nil {
			return nil, err
		}
		if new(big.Int).GCD(nil, nil, new(big.Int).Sub(p, one), exponent).Cmp(one) == 0 {
			return p, nil
		}
	}
	return nil, ctx.Err()
}

const publicExponent = 65537

// key returns the key with that number: the pairs in their order.
func (k *keys) key(number int) (*rsa.PrivateKey, error) {
	second := 1
	for number >= second {
		number -= second
		second++
	}
	p, q := k.primes[second], k.primes[number]
	one := big.NewInt(1)
	phi := new(big.Int).Mul(new(big.Int).Sub(p, one), new(big.Int).Sub(q, one))
	private := &rsa.PrivateKey{
		PublicKey: rsa.PublicKey{N: new(big.Int).Mul(p, q), E: publicExponent},
		D:         new(big.Int).ModInverse(big.NewInt(publicExponent), phi),
		Primes:    []*big.Int{p, q},
	}
	if err := private.Validate(); err != nil {
		return nil, fmt.Errorf("key of the fleet: %w", err)
	}
	private.Precompute()
	return private, nil
}
