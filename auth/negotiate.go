package auth

import (
	"context"
	"crypto/tls"

	"postern/proof"
)

// Negotiator judges the tokens of Windows authentication (RFC 4559). The one that
// Postern has is in auth/kerberos; another library can take its place behind this.
type Negotiator interface {
	// Accept judges one token, already freed of its base64. On success it returns what
	// the ticket proves and the token for the answer, which proves the server to the
	// client (AP-REP). On a refusal the error carries a catalogue code, and the token,
	// when there is one, is still for the answer: it tells the client that it was
	// rejected, or by how much its clock is wrong.
	Accept(ctx context.Context, token []byte, channel Channel) (accepted proof.Proof, reply []byte, err error)
}

// Channel is the connection that a token came over, for channel binding (RFC 5929).
type Channel struct {
	// TLS is nil on plain HTTP.
	TLS *tls.ConnectionState
	// Certificates are the server certificates, DER, that this listener shows or has
	// shown to connections that may still be open.
	Certificates [][]byte
}
