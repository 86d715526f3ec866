package kerberos

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync/atomic"

	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/gssapi"
	"github.com/jcmturner/gokrb5/v8/iana/keyusage"
	"github.com/jcmturner/gokrb5/v8/types"
)

// The security layers of SASL GSSAPI (RFC 4752 3.1). We seal nothing: what we read is
// no secret. Signing is what domain controllers ask for where there is no TLS.
const (
	layerNone = 1
	layerSign = 2
)

// maxFrame bounds one signed message; maxOurs is what we tell the server.
const maxFrame, maxOurs = 4 << 20, 1<<24 - 1

// Bits of a wrap token's flags (RFC 4121 4.2.2).
const (
	flagAcceptor = 1
	flagSealed   = 2
	flagSubkey   = 4
)

// wrapper signs and checks the messages of one login (RFC 4121 4.2.6.2).
type wrapper struct {
	key      types.EncryptionKey
	subkey   bool // the key is the one that the server chose
	sequence uint64
}

func (w *wrapper) wrap(payload []byte) ([]byte, error) {
	kind, err := crypto.GetEtype(w.key.KeyType)
	if err != nil {
		return nil, err
	}
	token := gssapi.WrapToken{EC: uint16(kind.GetHMACBitLength() / 8), SndSeqNum: w.sequence, Payload: payload}
	if w.subkey {
		token.Flags = flagSubkey
	}
	w.sequence++
	if err := token.SetCheckSum(w.key, keyusage.GSSAPI_INITIATOR_SEAL); err != nil {
		return nil, err
	}
	return token.Marshal()
}

var errWrap = errors.New("the directory server's signed message is not in order")

func (w *wrapper) unwrap(message []byte) (payload []byte, err error) {
	defer guard(&err)
	token, err := parseWrap(message)
	if err != nil {
		return nil, err
	}
	if ok, err := token.Verify(w.key, keyusage.GSSAPI_ACCEPTOR_SEAL); err != nil || !ok {
		return nil, errWrap
	}
	return token.Payload, nil
}

// parseWrap reads a signed token of the server's. Its end may have been rotated to the
// front (RFC 4121 4.2.5): Windows does, others do not.
func parseWrap(message []byte) (token gssapi.WrapToken, err error) {
	const header = 16
	if len(message) < header || message[0] != 5 || message[1] != 4 || message[2]&flagAcceptor == 0 || message[2]&flagSealed != 0 {
		return token, errWrap
	}
	body := message[header:]
	extra, rotated := int(binary.BigEndian.Uint16(message[4:])), int(binary.BigEndian.Uint16(message[6:]))
	if extra == 0 || extra > len(body) {
		return token, errWrap
	}
	rotated %= len(body)
	straight := append(append(make([]byte, 0, len(body)), body[rotated:]...), body[:rotated]...)
	split := len(straight) - extra
	return gssapi.WrapToken{
		Flags: message[2], EC: uint16(extra), SndSeqNum: binary.BigEndian.Uint64(message[8:]),
		Payload: straight[:split], CheckSum: straight[split:],
	}, nil
}

// signedConn is a connection that signs what goes through it once a login has chosen so.
type signedConn struct {
	net.Conn
	layer atomic.Pointer[wrapper]
	raw   []byte // read and not yet a whole frame
	ready []byte // checked and not yet taken
}

// Write sends one frame when signing, else the bytes.
func (c *signedConn) Write(p []byte) (int, error) {
	layer := c.layer.Load()
	if layer == nil {
		return c.Conn.Write(p)
	}
	token, err := layer.wrap(p)
	if err != nil {
		return 0, err
	}
	if _, err := c.Conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(token))), token...)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Read gives checked bytes when signing. A reader may be waiting while the login turns
// signing on; the server's first signed bytes come only after our own.
func (c *signedConn) Read(p []byte) (int, error) {
	for len(c.ready) == 0 {
		buffer := make([]byte, 16<<10)
		n, err := c.Conn.Read(buffer)
		if err != nil && n == 0 {
			return 0, err
		}
		layer := c.layer.Load()
		if layer == nil {
			c.ready = buffer[:n]
			break
		}
		c.raw = append(c.raw, buffer[:n]...)
		if err := c.takeFrames(layer); err != nil {
			return 0, err
		}
	}
	n := copy(p, c.ready)
	c.ready = c.ready[n:]
	return n, nil
}

func (c *signedConn) takeFrames(layer *wrapper) error {
	for len(c.raw) >= 4 {
		length := binary.BigEndian.Uint32(c.raw)
		if length > maxFrame {
			return fmt.Errorf("%w: %d bytes", errWrap, length)
		}
		if len(c.raw) < 4+int(length) {
			return nil
		}
		payload, err := layer.unwrap(c.raw[4 : 4+length])
		if err != nil {
			return err
		}
		c.ready = append(c.ready, payload...)
		c.raw = c.raw[4+length:]
	}
	return nil
}

// chooseLayer answers the server's offer of layers: none under TLS, signing without.
func chooseLayer(offer []byte, secure bool) (answer []byte, sign bool, err error) {
	if len(offer) != 4 {
		return nil, false, errWrap
	}
	switch {
	case !secure && offer[0]&layerSign != 0:
		return []byte{layerSign, maxOurs >> 16 & 0xff, maxOurs >> 8 & 0xff, maxOurs & 0xff}, true, nil
	case offer[0]&layerNone != 0:
		return []byte{layerNone, 0, 0, 0}, false, nil
	}
	return nil, false, errors.New("the directory server wants its connections sealed")
}
