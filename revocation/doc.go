// Package revocation answers one question: is this certificate chain good now, and if not, with which flag do the
// documents of the original product name that, and what does it mean to a person?
//
// Begin at [Checker]. [New] makes one from trusted roots and a [Policy]; [Checker.Check] judges a chain for a [Usage] and
// gives a [Verdict] with the flags of WinHTTP ([Flags], S4), a code of the catalogue and a sentence. [Checker.VerifyServer]
// and [Checker.VerifyClient] put that into a tls.Config. [Explain] does the same for the errors of a handshake that another
// check refused.
//
// Whether a chain holds is crypto/x509's judgement, with what this product asks for on top: the extended key usage stands
// in the certificate, no SHA-1, RSA keys of 2048 bits. Only when it does not hold, the chain is walked once more to find
// every reason, because one connection can set several flags (S4 shows 0x9).
//
// Whether a certificate is revoked is asked in this order: the OCSP answer that the server sent in the handshake, OCSP
// responders, revocation lists. The first answer that is good or revoked counts. Where to ask is configured
// ([Config.Sources]), because whoever shows a client certificate could otherwise make a gateway fetch any address; a client
// that checks a server asks where the server's certificate says ([Config.FromCertificate]), as Windows does, and only for
// chains that lead to a trusted root. A list in memory costs 28 bytes for each revoked certificate.
//
// The package knows nothing of devices and tokens: who a certificate stands for is decided elsewhere. The site's own role
// certificates are not judged here either.
package revocation
