package kerberos

import (
	"errors"
	"strings"
	"time"

	"github.com/jcmturner/gokrb5/v8/iana/errorcode"

	"postern/catalog"
)

// refusals are the errors of key distribution centres and servers that have a remedy of
// their own.
func refusals() map[int32]catalog.Code {
	return map[int32]catalog.Code{
		errorcode.KDC_ERR_S_PRINCIPAL_UNKNOWN:  catalog.ClientKerberosServiceUnknown,
		errorcode.KDC_ERR_PRINCIPAL_NOT_UNIQUE: catalog.ClientKerberosServiceUnknown,
		errorcode.KDC_ERR_PATH_NOT_ACCEPTED:    catalog.ClientKerberosServiceUnknown,
		errorcode.KDC_ERR_C_PRINCIPAL_UNKNOWN:  catalog.ClientKerberosAccount,
		errorcode.KDC_ERR_CLIENT_REVOKED:       catalog.ClientKerberosAccount,
		errorcode.KDC_ERR_NAME_EXP:             catalog.ClientKerberosAccount,
		errorcode.KDC_ERR_KEY_EXPIRED:          catalog.ClientKerberosAccount,
		errorcode.KDC_ERR_PREAUTH_FAILED:       catalog.ClientKerberosKey,
		errorcode.KRB_AP_ERR_BAD_INTEGRITY:     catalog.ClientKerberosKey,
		errorcode.KDC_ERR_ETYPE_NOSUPP:         catalog.ClientKerberosEncryption,
		errorcode.KDC_ERR_NULL_KEY:             catalog.ClientKerberosEncryption,
		errorcode.KRB_AP_ERR_TKT_EXPIRED:       catalog.ClientKerberosExpired,
		errorcode.KDC_ERR_CANNOT_POSTDATE:      catalog.ClientKerberosClock,
		errorcode.KDC_ERR_NEVER_VALID:          catalog.ClientKerberosClock,
		errorcode.KRB_AP_ERR_SKEW:              catalog.ClientKerberosClock,
		errorcode.KRB_AP_ERR_TKT_NYV:           catalog.ClientKerberosClock,
	}
}

// explain gives a catalogue code to what went wrong with a centre. service is what was
// asked for, "" at a login.
func (x *exchange) explain(err error, service string) error {
	if catalog.CodeOf(err) != "" {
		return err
	}
	refused, ok := errors.AsType[*refusal](err)
	if ok {
		return refused.explain(x.machine.Principal(), service)
	}
	if away, ok := errors.AsType[*unreachable](err); ok {
		return catalog.Wrap(catalog.ClientKerberosUnreachable, err, "no key distribution centre of the realm %s answers (asked: %s)", away.realm, strings.Join(away.tried, ", "))
	}
	return catalog.Wrap(catalog.ClientKerberosFailed, err, "the exchange for %s did not succeed", x.machine.Principal())
}

func (r *refusal) explain(principal, service string) error {
	code, known := refusals()[r.code]
	if !known {
		code = catalog.ClientKerberosFailed
	}
	switch code {
	case catalog.ClientKerberosClock:
		return clockError(time.Until(r.at), "the realm "+r.realm)
	case catalog.ClientKerberosServiceUnknown:
		return catalog.Wrap(code, r, "the realm %s has no account for %s and refers to no other realm (%s)", r.realm, service, name(r.code))
	}
	return catalog.Wrap(code, r, "%s at the realm %s: %s", principal, r.realm, name(r.code))
}

// name is the error's name in RFC 4120, as other tools show it.
func name(code int32) string {
	text, _, _ := strings.Cut(strings.TrimLeft(errorcode.Lookup(code), "(0123456789) "), " ")
	return text
}

// clockError says by how much this device's clock is wrong. ahead is the other's clock
// less this device's.
func clockError(ahead time.Duration, whose string) error {
	seconds, word := int(ahead.Round(time.Second).Seconds()), "behind"
	if seconds < 0 {
		seconds, word = -seconds, "ahead of"
	}
	return catalog.Errorf(catalog.ClientKerberosClock, "this device's clock is %d seconds %s the clock of %s", seconds, word, whose)
}
