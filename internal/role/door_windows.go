package role

import (
	"net"
)

// listenPrivately relies on the state folder's own access list: Windows has no mode bits for sockets.
func listenPrivately(path string) (net.Listener, error) { return net.Listen("unix", path) }
