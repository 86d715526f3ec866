package mp

import (
	"fmt"
	"time"

	"postern/ccm"
	"postern/proof"
)

// Exchange is what is known of one request when it is over.
type Exchange struct {
	MessageID string
	TraceID   string
	Route     string      // "" when none was found
	Proof     proof.Proof // what was proved
	Act       string      // what was done, in words; "" when nothing
	Connector string      // through which it came; "" for a direct caller
	Status    ccm.Status  // as answered
	Err       error       // why it was refused; also when the wire does not show it
	Duration  time.Duration
}

func (v *visit) exchangeDone(status ccm.Status, taken time.Duration) Exchange {
	return Exchange{
		MessageID: v.trace.Message, TraceID: v.trace.ID, Route: v.routeName(), Proof: v.proof, Act: v.act, Connector: v.hop.connector,
		Status: status, Err: v.refused, Duration: taken,
	}
}

// did says in words what the request brought about.
func (v *visit) did(format string, arguments ...any) { v.act = fmt.Sprintf(format, arguments...) }
