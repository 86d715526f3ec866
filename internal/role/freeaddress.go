package role

import (
	"fmt"
	"math/rand/v2"
	"net"
)

// FreeAddress returns an address on loopback that nobody listens at now, for a role that is listed at its site before it starts and so cannot choose one
// itself. The port is below those that systems give away by themselves, so that nobody else has it a moment later.
func FreeAddress() (address string, err error) {
	const first, count, tries = 20_000, 12_000, 100
	for range tries {
		var l net.Listener
		if l, err = net.Listen("tcp", fmt.Sprint("127.0.0.1:", first+rand.N(count))); err == nil {
			defer l.Close()
			return l.Addr().String(), nil
		}
	}
	return "", err
}
