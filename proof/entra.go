package proof

// Cloud is what an Entra token (or one of another onboarded OpenID provider) has
// proved. All ids are the immutable ones; names and addresses are never evidence.
type Cloud struct {
	Tenant    string // tid, lower case
	Issuer    string // iss, as the token has it
	Kind      string // "Device" or "UDA", the words of CCM_STS.log (S2)
	Device    string // deviceid, lower case; may be "" in a user's token
	User      string // oid of the user, lower case; "" in a device's token
	UserSID   string // onprem_sid of a user, when the directory is synchronised
	DeviceSID string // onprem_sid of a device
	TokenID   string // uti or jti
}

// The kinds of identity that an Entra token is for.
const (
	CloudDevice = "Device"
	CloudUser   = "UDA"
)
