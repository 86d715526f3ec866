package mp

// giveNonce puts a nonce into the answer to every request with a proof (RFC 9449 8.2): a device whose clock is wrong uses the newest that it has heard.
func (v *visit) giveNonce() {
	if len(v.r.Header.Values("DPoP")) > 0 {
		v.w.Header().Set("DPoP-Nonce", v.mp.site.Nonce())
	}
}
