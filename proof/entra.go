package proof

// Cloud is what an Entra token (or one of another onboarded OpenID provider) has
// proved. All ids are the immutable ones; names and addresses are never evidence.
type Cloud struct {
	Tenant    string `json:"tid"`                // lower case
	Issuer    string `json:"iss"`                // as the token has it
	Kind      string `json:"kind"`               // CloudDevice or CloudUser
	Device    string `json:"deviceid,omitempty"` // lower case; may be "" in a user's token
	User      string `json:"oid,omitempty"`      // object id of the user, lower case; "" in a device's token
	UserSID   string `json:"user_sid,omitempty"` // onprem_sid of a user, when the directory is synchronised
	DeviceSID string `json:"device_sid,omitempty"`
	TokenID   string `json:"uti,omitempty"` // uti or jti of the token
}

// The kinds of identity that an Entra token is for, in the words of CCM_STS.log (S2).
const (
	CloudDevice = "Device"
	CloudUser   = "UDA"
)
